//! What plain and streamed calls share: when the call must end, although the upstream is not done.

use events_model::tenant::Outcome;
use gateway::openai::Delivered;

use super::{Failure, settle::Ending, settle::Lost};

/// Why we end a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interruption {
    /// Nobody waits for the answer any more.
    ClientGone,
    /// The client reads nothing.
    ClientStalled,
    /// The server must stop.
    Stopped,
    /// The whole call took longer than it may.
    TooLong,
}

impl Interruption {
    pub(super) fn ending(self, delivered: Delivered) -> Ending {
        let (outcome, detail) = match self {
            Self::ClientGone => (Outcome::ClientGone, "the client closed the connection"),
            Self::ClientStalled => (Outcome::ClientGone, "the client stopped reading"),
            Self::Stopped => (Outcome::TimedOut, "the server shut down"),
            Self::TooLong => (Outcome::TimedOut, "the call took longer than it may"),
        };
        Ending::incomplete(outcome, delivered, detail)
    }

    /// What a client that is still there hears.
    pub(super) fn failure(self) -> Failure {
        match self {
            Self::ClientGone | Self::ClientStalled => Failure::Internal { what: "the client is gone" },
            Self::Stopped => Failure::Draining,
            Self::TooLong => Failure::Invalid(gateway::openai::ApiError::gateway_timeout("The answer took too long.")),
        }
    }
}

/// What a client hears whose answer is there but not its settlement.
pub(super) fn unsettled(lost: &Lost) -> Failure {
    match lost {
        Lost::NotOpen | Lost::GivenUp => Failure::Unsettled,
        Lost::Refused(_) => Failure::Internal { what: "the settlement was refused" },
    }
}
