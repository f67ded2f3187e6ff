//! The one table from failures to gRPC: code, `ErrorInfo` (domain `freehold`, a reason that programs compare), and
//! `RetryInfo` where trying again helps.

use std::{collections::HashMap, time::Duration};

use actors_core::tenant::{Rejection, Tenant};
use actors_shell::{Rejected, Unavailable};
use events_model::DurationUs;
use gateway::openai::ApiError;
use tonic::{Code, Status, body::Body};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    model_path::{Failed, Failure},
    readiness::refusal_code,
};

/// `ErrorInfo.domain` of every error.
pub const DOMAIN: &str = "freehold";

/// When to come back after something that usually passes soon.
const SOON: DurationUs = DurationUs::from_secs(1);

/// An error in the making.
struct Row {
    code: Code,
    reason: &'static str,
    retry_after: Option<DurationUs>,
    metadata: Vec<(&'static str, String)>,
}

impl Row {
    const fn new(code: Code, reason: &'static str) -> Self {
        Self { code, reason, retry_after: None, metadata: Vec::new() }
    }

    const fn again(code: Code, reason: &'static str, retry_after: DurationUs) -> Self {
        Self { code, reason, retry_after: Some(retry_after), metadata: Vec::new() }
    }

    fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.metadata.push((name, value.to_string()));
        self
    }

    fn status(self, message: impl Into<String>) -> Status {
        let metadata: HashMap<String, String> =
            self.metadata.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let mut details = ErrorDetails::with_error_info(self.reason, DOMAIN, metadata);
        if let Some(span) = self.retry_after {
            details.set_retry_info(Some(Duration::from_micros(span.0)));
        }
        Status::with_error_details(self.code, message, details)
    }
}

/// An error that usually passes soon.
pub(crate) fn again(code: Code, reason: &'static str, message: impl Into<String>) -> Status {
    Row::again(code, reason, SOON).status(message)
}

/// An error without particulars.
pub(crate) fn plain(code: Code, reason: &'static str, message: impl Into<String>) -> Status {
    Row::new(code, reason).status(message)
}

/// An argument that is not what it must be.
pub(crate) fn invalid(field: &str, why: impl Into<String>) -> Status {
    let why = why.into();
    let mut details = ErrorDetails::with_error_info("INVALID_ARGUMENT", DOMAIN, HashMap::new());
    details.add_bad_request_violation(field, why.clone());
    Status::with_error_details(Code::InvalidArgument, format!("{field}: {why}"), details)
}

/// Adds the particulars to an error that was found before any of our code was asked: a message that cannot be read, a
/// method that does not exist. Our own errors have theirs.
pub(super) fn detailed(response: http::Response<Body>) -> http::Response<Body> {
    let headers = response.headers();
    if !headers.contains_key(Status::GRPC_STATUS) || headers.contains_key(Status::GRPC_STATUS_DETAILS) {
        return response;
    }
    let Some(found) = Status::from_header_map(headers).filter(|status| status.code() != Code::Ok) else {
        return response;
    };
    let (code, reason) = match found.code() {
        Code::Internal => (Code::InvalidArgument, "MALFORMED_REQUEST"),
        Code::OutOfRange => (Code::InvalidArgument, "MESSAGE_TOO_LARGE"),
        Code::Unimplemented if found.message().is_empty() => (Code::Unimplemented, "UNKNOWN_METHOD"),
        Code::Unimplemented => (Code::Unimplemented, "UNSUPPORTED_ENCODING"),
        Code::NotFound => (Code::NotFound, "NOT_FOUND"),
        Code::Cancelled => (Code::Cancelled, "CANCELLED"),
        Code::DeadlineExceeded => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        code @ (Code::Ok
        | Code::Unknown
        | Code::InvalidArgument
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated) => (code, "REQUEST_FAILED"),
    };
    let message = match (found.message(), code) {
        ("", Code::Unimplemented) => "there is no such method",
        ("", code) => code.description(),
        (message, _) => message,
    };
    let details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    Status::with_error_details_and_metadata(code, message, details, found.metadata().clone()).into_http()
}

/// What a caller of the gateway hears.
pub(crate) fn failed(failed: &Failed) -> Status {
    crate::http::error::log(&failed.failure);
    failure(&failed.failure)
}

/// What a caller hears of a failure.
pub fn failure(failure: &Failure) -> Status {
    match failure {
        Failure::Unauthenticated => {
            Row::new(Code::Unauthenticated, "API_KEY_INVALID").status("the API key is missing, unknown or revoked")
        }
        Failure::Invalid(error) => api_error(error),
        Failure::Rejected(rejection) => self::rejection(rejection),
        Failure::Unavailable(unavailable) => self::unavailable(unavailable),
        Failure::Duplicate { first } => Row::new(Code::AlreadyExists, "DUPLICATE_REQUEST")
            .with("first_request_id", first)
            .status(failure.to_string()),
        Failure::TooManyInFlight { limit } => Row::again(Code::ResourceExhausted, "TOO_MANY_IN_FLIGHT", SOON)
            .with("limit", limit)
            .status(failure.to_string()),
        Failure::Draining => Row::again(Code::Unavailable, "SHUTTING_DOWN", SOON).status(failure.to_string()),
        Failure::Upstream(error) => api_error(&error.client_error()),
        Failure::Unsettled => Row::again(Code::Unavailable, "UNSETTLED", SOON).status(failure.to_string()),
        Failure::Internal { .. } => Row::new(Code::Internal, "INTERNAL").status("the server had an error"),
    }
}

/// What a caller of an administrative command hears.
pub(crate) fn rejected(rejected: &Rejected<Tenant>) -> Status {
    rejection(&rejected.rejection)
}

fn rejection(rejection: &Rejection) -> Status {
    let row = match rejection {
        Rejection::NotRegistered => Row::new(Code::NotFound, "NOT_REGISTERED"),
        Rejection::AlreadyRegistered => Row::new(Code::AlreadyExists, "ALREADY_REGISTERED"),
        Rejection::Suspended { .. } => Row::new(Code::FailedPrecondition, "SUSPENDED"),
        Rejection::NotSuspended => Row::new(Code::FailedPrecondition, "NOT_SUSPENDED"),
        Rejection::UnknownKey => Row::new(Code::NotFound, "UNKNOWN_KEY"),
        Rejection::KeyExists => Row::new(Code::AlreadyExists, "KEY_EXISTS"),
        Rejection::TooManyKeys => Row::new(Code::ResourceExhausted, "TOO_MANY_KEYS"),
        Rejection::Invalid(_) => Row::new(Code::InvalidArgument, "INVALID"),
        Rejection::BudgetBelowCommitted { period, committed } => {
            Row::new(Code::FailedPrecondition, "BUDGET_BELOW_COMMITTED")
                .with("period", period.name())
                .with("committed_nano_usd", committed.0)
        }
        Rejection::RequestRate { retry_after } => Row::again(Code::ResourceExhausted, "REQUEST_RATE", *retry_after),
        Rejection::TokenRate { retry_after: Some(retry_after), needed } => {
            Row::again(Code::ResourceExhausted, "TOKEN_RATE", *retry_after).with("needed_tokens", needed)
        }
        // No waiting helps: the request alone is larger than a minute's tokens.
        Rejection::TokenRate { retry_after: None, needed } => {
            Row::new(Code::InvalidArgument, "TOKEN_RATE").with("needed_tokens", needed)
        }
        Rejection::Concurrency { open } => {
            Row::again(Code::ResourceExhausted, "CONCURRENCY", SOON).with("open_requests", open)
        }
        Rejection::BudgetExhausted { period, needed, available, resets_at } => {
            Row::new(Code::ResourceExhausted, "BUDGET_EXHAUSTED")
                .with("period", period.name())
                .with("needed_nano_usd", needed.0)
                .with("available_nano_usd", available.0)
                .with("resets_at_us", resets_at.0)
        }
        Rejection::RequestTooDear { needed, limit } => Row::new(Code::FailedPrecondition, "REQUEST_TOO_DEAR")
            .with("needed_nano_usd", needed.0)
            .with("limit_nano_usd", limit.0),
        Rejection::AlreadyAdmitted => Row::new(Code::AlreadyExists, "ALREADY_ADMITTED"),
        Rejection::NotOpen { request_id } => {
            Row::new(Code::FailedPrecondition, "NOT_OPEN").with("request_id", request_id)
        }
        Rejection::NotDue => Row::new(Code::FailedPrecondition, "NOT_DUE"),
    };
    row.status(rejection.to_string())
}

/// What a caller hears whose command was not decided.
pub(crate) fn unavailable(unavailable: &Unavailable) -> Status {
    let row = match unavailable {
        Unavailable::Overloaded { retry_after } => Row::again(Code::ResourceExhausted, "OVERLOADED", *retry_after),
        Unavailable::Aborted(_) => Row::again(Code::Aborted, "ABORTED", SOON),
        Unavailable::Refusing(refusal) => {
            let row = Row::again(Code::Unavailable, "LOG_REFUSING", SOON);
            match refusal_code(refusal) {
                Some(code) => row.with("error", code),
                None => row,
            }
        }
        Unavailable::Storage(_) => Row::again(Code::Unavailable, "STORAGE", SOON),
        Unavailable::Restarted => Row::again(Code::Unavailable, "RESTARTED", SOON),
        Unavailable::Closed => Row::again(Code::Unavailable, "SHUTTING_DOWN", SOON),
        Unavailable::Elsewhere => Row::again(Code::Unavailable, "NO_OWNER", SOON),
        Unavailable::Unreachable => Row::again(Code::Unavailable, "OWNER_UNREACHABLE", SOON),
    };
    row.status(unavailable.to_string())
}

/// An error in OpenAI's form as gRPC says it.
fn api_error(error: &ApiError) -> Status {
    let (code, reason) = match error.status {
        400 | 413 | 415 | 422 => (Code::InvalidArgument, "INVALID_ARGUMENT"),
        401 => (Code::Unauthenticated, "UNAUTHENTICATED"),
        402 | 429 => (Code::ResourceExhausted, "UPSTREAM_LIMIT"),
        403 => (Code::PermissionDenied, "PERMISSION_DENIED"),
        404 => (Code::NotFound, "MODEL_NOT_FOUND"),
        409 => (Code::Aborted, "CONFLICT"),
        408 | 504 => (Code::DeadlineExceeded, "UPSTREAM_TIMEOUT"),
        499 => (Code::Cancelled, "CANCELLED"),
        502 => (Code::Unavailable, "UPSTREAM_FAILED"),
        503 => (Code::Unavailable, "UPSTREAM_UNAVAILABLE"),
        _ => (Code::Internal, "INTERNAL"),
    };
    let metadata = error.code.iter().map(|code| ("code".to_owned(), code.clone())).collect::<HashMap<_, _>>();
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    if let Some(span) = error.retry_after {
        details.set_retry_info(Some(Duration::from_micros(span.0)));
    }
    if let Some(param) = &error.param {
        details.add_bad_request_violation(param, error.message.clone());
    }
    Status::with_error_details(code, error.message.clone(), details)
}

#[cfg(test)]
mod tests {
    use events_model::{NanoUsd, TimestampUs, tenant::Period};

    use super::*;

    #[test]
    fn a_limit_that_passes_says_when_and_one_that_does_not_says_how_much() {
        let status = rejection(&Rejection::RequestRate { retry_after: DurationUs::from_millis(20) });
        let details = status.get_error_details();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_millis(20)));
        let status = rejection(&Rejection::BudgetExhausted {
            period: Period::Day,
            needed: NanoUsd(5),
            available: NanoUsd(4),
            resets_at: TimestampUs(9),
        });
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((info.domain.as_str(), info.reason.as_str()), (DOMAIN, "BUDGET_EXHAUSTED"));
        assert_eq!(info.metadata["available_nano_usd"], "4");
        assert!(details.retry_info().is_none());
    }

    #[test]
    fn a_parameter_at_fault_is_a_field_violation() {
        let error = ApiError::bad_request(Some("invalid_type"), Some("messages[0].role".to_owned()), "no");
        let status = failure(&Failure::Invalid(error));
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "messages[0].role");
        assert_eq!(details.error_info().unwrap().metadata["code"], "invalid_type");
    }
}
