//! Why a model request gave no (complete) answer. What the client hears of it is decided in one table for each
//! surface: `http::error` and `grpc::status`.

use actors_core::tenant::{Rejection, View};
use actors_shell::Unavailable;
use events_model::RequestId;
use gateway::{openai::ApiError, upstream::CallError};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No key, or one that is unknown or revoked.
    #[error("the API key is missing, unknown or revoked")]
    Unauthenticated,
    /// The request is at fault.
    #[error("the request is not valid")]
    Invalid(#[source] ApiError),
    /// The tenant's rules refuse it.
    #[error("the request was not admitted")]
    Rejected(#[source] Rejection),
    /// The tenant's actor gave no decision.
    #[error("no decision came")]
    Unavailable(#[source] Unavailable),
    /// A request with the same idempotency key was admitted before.
    #[error("request {first} was admitted under the same idempotency key")]
    Duplicate {
        /// That request.
        first: RequestId,
    },
    /// As many requests are in flight as this server handles.
    #[error("{limit} requests are in flight, the most this server handles")]
    TooManyInFlight {
        /// The limit.
        limit: usize,
    },
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Draining,
    /// The upstream gave no complete answer.
    #[error("the upstream gave no complete answer")]
    Upstream(#[source] CallError),
    /// The answer came, but what it costs could not be recorded in time.
    #[error("the settlement could not be recorded in time")]
    Unsettled,
    /// A mistake of ours.
    #[error("the request ended without an answer: {what}")]
    Internal {
        /// What went wrong, for the operator.
        what: &'static str,
    },
}

/// A failure and the caller's limits, if they are known.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub failure: Box<Failure>,
    /// The limits as they stood.
    pub view: Option<View>,
}

impl Failed {
    /// A failure with the limits as they stood.
    pub fn with_view(failure: Failure, view: View) -> Self {
        Self { failure: Box::new(failure), view: Some(view) }
    }
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { failure: Box::new(failure), view: None }
    }
}

impl From<ApiError> for Failed {
    fn from(error: ApiError) -> Self {
        Failure::Invalid(error).into()
    }
}

impl Failure {
    /// The word of a metric's label.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::Invalid(_) => "invalid",
            Self::Rejected(_) => "rejected",
            Self::Unavailable(_) => "unavailable",
            Self::Duplicate { .. } => "duplicate",
            Self::TooManyInFlight { .. } => "too-many-in-flight",
            Self::Draining => "draining",
            Self::Upstream(_) => "upstream",
            Self::Unsettled => "unsettled",
            Self::Internal { .. } => "internal",
        }
    }
}

/// An error with all its causes in one line, at most `bytes_max` bytes of it.
pub fn chain(error: &dyn std::error::Error, bytes_max: usize) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    let end = (0..=bytes_max.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_every_cause_and_is_cut_between_characters() {
        let failure = Failure::Rejected(Rejection::NotRegistered);
        assert_eq!(chain(&failure, 500), "the request was not admitted: the tenant is not registered");
        let failure = Failure::Rejected(Rejection::Suspended { reason: "é".repeat(300) });
        let text = chain(&failure, 512);
        assert!(text.len() <= 512 && text.len() >= 510);
    }
}
