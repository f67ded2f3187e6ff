//! What a caller of the event service hears of a failure.

use std::error::Error;

use actors_core::group::Rejection;
use actors_shell::Unavailable;
use events_journal::{AppendError, Outcome, ReadError};
use events_model::{DurationUs, StreamId, application::Expected};
use projections::WaitError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::status::{self, again};
use crate::{
    events::{
        append,
        group::{self, Ended},
        tail,
    },
    model_path::chain,
};

pub(super) fn shutting_down() -> Status {
    again(Code::Unavailable, "SHUTTING_DOWN", "the server is shutting down: resume elsewhere or later")
}

/// The position may be one that this node has not come to.
pub(super) fn behind() -> Status {
    again(Code::Unavailable, "BEHIND", "this node's log has not come to that position: try again here or elsewhere")
}

pub(super) fn too_many() -> Status {
    again(Code::ResourceExhausted, "TOO_MANY_STREAMS", "this tenant has as many calls open as it may")
}

/// The log cannot be read; the particulars are the operator's.
pub(super) fn read(error: &ReadError) -> Status {
    broken(error)
}

pub(super) fn broken(error: &dyn Error) -> Status {
    tracing::error!(error = chain(error, 2_048), "the log cannot be read");
    status::plain(Code::Internal, "LOG_UNREADABLE", "the log cannot be read")
}

pub(super) fn tail(error: &tail::Failure) -> Status {
    broken(error)
}

pub(super) fn no_such_stream(stream: &StreamId) -> Status {
    status::plain(Code::NotFound, "NO_SUCH_STREAM", format!("there is no stream {stream}"))
}

/// An append that did not happen, or not certainly.
pub(super) fn append(failure: &append::Failure, expected: Expected) -> Status {
    match failure {
        append::Failure::Conflict { actual } => {
            let expected = match expected {
                Expected::Exact(version) => version.to_string(),
                Expected::None => "none".to_owned(),
                Expected::Any => "any".to_owned(),
                Expected::Exists => "exists".to_owned(),
            };
            let message = format!("the stream is at version {actual}, expected was {expected}");
            let metadata = [("expected".to_owned(), expected), ("actual".to_owned(), actual.to_string())];
            let details = ErrorDetails::with_error_info("VERSION_CONFLICT", status::DOMAIN, metadata);
            Status::with_error_details(Code::Aborted, message, details)
        }
        append::Failure::Read(error) => read(error),
        append::Failure::Append(error) => match (error, error.outcome()) {
            (AppendError::Refused(refusal), _) => status::unavailable(&Unavailable::Refusing(refusal.clone())),
            (AppendError::Busy { .. }, _) => {
                status::unavailable(&Unavailable::Overloaded { retry_after: DurationUs::from_secs(1) })
            }
            (AppendError::Invalid { reason, .. }, _) => status::invalid("events", reason.clone()),
            (AppendError::Conflict { .. } | AppendError::Unknown(_), Outcome::NotWritten) => {
                again(Code::Aborted, "NOT_WRITTEN", "nothing was written: append again")
            }
            (AppendError::Conflict { .. } | AppendError::Unknown(_), Outcome::Unknown) => {
                tracing::warn!(error = chain(error, 2_048), "outcome of an append unknown");
                let message = "it may have been written: append again with the same commit_id, that decides";
                again(Code::Unavailable, "OUTCOME_UNKNOWN", message)
            }
        },
    }
}

pub(super) fn not_parked(message: &str) -> Status {
    status::plain(Code::NotFound, "NOT_PARKED", message)
}

/// The read model is being folded anew, and what is asked has to wait for that.
pub(super) fn rebuilding(message: &str) -> Status {
    status::plain(Code::DeadlineExceeded, "REBUILDING", message)
}

/// A decision about a read model that is recorded and not carried out by this node.
pub(super) fn not_carried_out(why: &WaitError) -> Status {
    let (code, reason, message) = match why {
        WaitError::TimedOut { .. } => {
            let message =
                "it is recorded; the read model is still being folded anew: list again to see when it is done";
            return rebuilding(message);
        }
        WaitError::NotRebuilt { .. } => (
            Code::Internal,
            "NOT_REBUILT",
            "it is recorded; this node could not fold the log anew and its log lines say why: mend that and redrive",
        ),
        WaitError::Stopped { .. } => {
            (Code::Unavailable, "READ_MODEL_STOPPED", "it is recorded; the read model of this node has stopped")
        }
    };
    status::plain(code, reason, message)
}

/// A command of a group that was not carried out.
pub(super) fn group(failure: &group::Failure) -> Status {
    let rejection = match failure {
        group::Failure::Rejected(rejection) => rejection,
        group::Failure::Unavailable(unavailable) => return status::unavailable(unavailable),
    };
    let (code, reason) = match rejection {
        Rejection::Exists => (Code::AlreadyExists, "GROUP_EXISTS"),
        Rejection::NotCreated => (Code::NotFound, "NO_SUCH_GROUP"),
        Rejection::Invalid(_) => (Code::InvalidArgument, "INVALID"),
        Rejection::NothingNew => (Code::FailedPrecondition, "NOTHING_NEW"),
        Rejection::NotParked => (Code::NotFound, "NOT_PARKED"),
        Rejection::TooManyParked => (Code::ResourceExhausted, "TOO_MANY_PARKED"),
        Rejection::RedriveBusy => {
            return again(Code::ResourceExhausted, "REDRIVE_BUSY", rejection.to_string());
        }
    };
    status::plain(code, reason, rejection.to_string())
}

/// Another node decides for a group by now, or soon will.
pub(super) fn moved() -> Status {
    again(Code::Unavailable, "GROUP_MOVED", "this group is moving to another node: consume it again")
}

/// The node that decides for a group cannot be consumed at.
pub(super) fn unreachable(node: &str) -> Status {
    let message = format!("node {node}, which decides for this group, is not reachable: consume it again");
    again(Code::Unavailable, "OWNER_UNREACHABLE", message)
}

/// Why a consumer's stream ends.
pub(super) fn ended(ended: Ended) -> Status {
    match ended {
        Ended::ShuttingDown => shutting_down(),
        Ended::Elsewhere => moved(),
        Ended::TooManyConsumers => again(Code::ResourceExhausted, "TOO_MANY_CONSUMERS", ended.to_string()),
        Ended::Broken => again(Code::Unavailable, "GROUP_BROKEN", ended.to_string()),
    }
}
