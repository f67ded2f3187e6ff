//! The one table from failures to HTTP: status, OpenAI's error body, when to come back.

use actors_core::tenant::Rejection;
use actors_shell::Unavailable;
use axum::response::Response;
use chrono::{DateTime, SecondsFormat};
use events_model::{DurationUs, TimestampUs};
use gateway::openai::{ApiError, error::LimitKind};
use http::StatusCode;
use tracing::error;

use super::{JSON, headers, with_type};
use crate::{
    model_path::{Failed, Failure, chain},
    readiness::refusal_code,
};

/// When to come back after something that usually passes soon.
const SOON: DurationUs = DurationUs::from_secs(1);
/// Longest chain of causes in a log line, bytes.
const CHAIN_BYTES_MAX: usize = 2_048;

/// What the client hears of a failure.
pub fn api_error(failure: &Failure) -> ApiError {
    match failure {
        Failure::Unauthenticated => ApiError::invalid_api_key(),
        Failure::Invalid(error) => error.clone(),
        Failure::Rejected(rejection) => rejected(rejection),
        Failure::Unavailable(unavailable) => unavailable_error(unavailable),
        Failure::Duplicate { first } => {
            let message = format!("Request {first} was admitted under the same idempotency key.");
            ApiError { status: 409, ..ApiError::bad_request(Some("duplicate_request"), None, message) }
        }
        Failure::TooManyInFlight { .. } => {
            ApiError::unavailable(Some(SOON), "The server is handling as many requests as it can; try again.")
        }
        Failure::Draining => ApiError::unavailable(Some(SOON), "The server is shutting down; try again."),
        Failure::Upstream(error) => error.client_error(),
        Failure::Unsettled => ApiError::unavailable(
            Some(SOON),
            "The answer could not be recorded in time, so it is not delivered; try again.",
        ),
        Failure::Internal { .. } => ApiError::internal(),
    }
}

fn rejected(rejection: &Rejection) -> ApiError {
    let conflict =
        |code: &str| ApiError { status: 409, ..ApiError::bad_request(Some(code), None, sentence(rejection)) };
    let param = || Some("max_tokens".to_owned());
    match rejection {
        // What a tenant is told does not say whether it exists.
        Rejection::NotRegistered | Rejection::UnknownKey => ApiError::invalid_api_key(),
        Rejection::Suspended { .. } => ApiError::forbidden("tenant_suspended", sentence(rejection)),
        Rejection::BudgetExhausted { resets_at, .. } => {
            let resets = time(*resets_at).map(|at| format!(" It starts anew at {at}.")).unwrap_or_default();
            ApiError::insufficient_quota(format!("{}{resets}", sentence(rejection)))
        }
        Rejection::RequestRate { retry_after } => {
            ApiError::rate_limited(LimitKind::Requests, *retry_after, sentence(rejection))
        }
        Rejection::TokenRate { retry_after: Some(retry_after), .. } => {
            ApiError::rate_limited(LimitKind::Tokens, *retry_after, sentence(rejection))
        }
        // No waiting helps: the request alone is larger than a minute's tokens.
        Rejection::TokenRate { retry_after: None, .. } => {
            ApiError::bad_request(Some("request_above_token_limit"), param(), sentence(rejection))
        }
        Rejection::Concurrency { .. } => ApiError::rate_limited(LimitKind::Concurrency, SOON, sentence(rejection)),
        Rejection::RequestTooDear { .. } => {
            ApiError { param: param(), ..ApiError::forbidden("request_above_cost_limit", sentence(rejection)) }
        }
        Rejection::Invalid(_) => ApiError::bad_request(Some("invalid_value"), None, sentence(rejection)),
        Rejection::AlreadyAdmitted => conflict("duplicate_request"),
        Rejection::AlreadyRegistered
        | Rejection::NotSuspended
        | Rejection::KeyExists
        | Rejection::TooManyKeys
        | Rejection::BudgetBelowCommitted { .. }
        | Rejection::NotOpen { .. }
        | Rejection::NotDue => conflict("conflict"),
    }
}

fn unavailable_error(unavailable: &Unavailable) -> ApiError {
    match unavailable {
        // The tenant's own requests fill its mailbox; others are served.
        Unavailable::Overloaded { retry_after } => {
            ApiError::rate_limited(LimitKind::Requests, *retry_after, "Too many requests of this account are waiting.")
        }
        Unavailable::Aborted(_) | Unavailable::Restarted => {
            ApiError::unavailable(Some(SOON), "The request could not be recorded; try again.")
        }
        Unavailable::Refusing(refusal) => {
            let code = refusal_code(refusal).map(|code| format!(" [{code}]")).unwrap_or_default();
            ApiError::unavailable(Some(SOON), format!("Requests cannot be recorded at the moment{code}; try again."))
        }
        Unavailable::Storage(_) => ApiError::unavailable(Some(SOON), "The account cannot be loaded at the moment."),
        Unavailable::Closed => ApiError::unavailable(Some(SOON), "The server is shutting down; try again."),
        Unavailable::Elsewhere | Unavailable::Unreachable => {
            ApiError::unavailable(Some(SOON), "No node decides for this account at the moment; try again.")
        }
    }
}

/// A rejection's text as a sentence.
fn sentence(rejection: &Rejection) -> String {
    let text = rejection.to_string();
    let mut letters = text.chars();
    letters.next().map(|first| format!("{}{}.", first.to_uppercase(), letters.as_str())).unwrap_or_default()
}

fn time(at: TimestampUs) -> Option<String> {
    let at = DateTime::from_timestamp_micros(i64::try_from(at.0).ok()?)?;
    Some(at.to_rfc3339_opts(SecondsFormat::Secs, true))
}

/// The answer to a request that failed.
pub(super) fn failed_response(failed: &Failed) -> Response {
    log(&failed.failure);
    let mut response = response(&api_error(&failed.failure));
    if let Some(view) = &failed.view {
        headers::put_limits(response.headers_mut(), view);
    }
    response
}

/// Logs what an operator should know; refusals are daily business.
pub(crate) fn log(failure: &Failure) {
    match failure {
        Failure::Internal { .. } | Failure::Unavailable(Unavailable::Storage(_)) => {
            error!(error = chain(failure, CHAIN_BYTES_MAX), "request failed");
        }
        Failure::Unavailable(_) | Failure::Upstream(_) | Failure::Unsettled => {
            tracing::info!(error = chain(failure, CHAIN_BYTES_MAX), "request not completed");
        }
        Failure::Unauthenticated
        | Failure::Invalid(_)
        | Failure::Rejected(_)
        | Failure::Duplicate { .. }
        | Failure::TooManyInFlight { .. }
        | Failure::Draining => tracing::debug!(error = chain(failure, CHAIN_BYTES_MAX), "request refused"),
    }
}

/// An error as an answer.
pub(super) fn response(error: &ApiError) -> Response {
    let mut response = with_type(JSON, error.body());
    *response.status_mut() = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if let Some(span) = error.retry_after {
        headers::put_retry_after(headers, span);
    }
    match error.status {
        401 => {
            headers.insert(http::header::WWW_AUTHENTICATE, http::HeaderValue::from_static("Bearer"));
        }
        409 => headers::put_no_retry(headers),
        _ => {}
    }
    response
}

#[cfg(test)]
mod tests {
    use events_journal::Refusal;
    use events_model::{NanoUsd, Tokens, tenant::Period};

    use super::*;

    #[test]
    fn each_refusal_has_the_status_its_clients_understand() {
        let exhausted = Rejection::BudgetExhausted {
            period: Period::Day,
            needed: NanoUsd(5),
            available: NanoUsd(4),
            resets_at: TimestampUs(86_400_000_000),
        };
        let retry_after = DurationUs(20_000);
        for (rejection, status, code) in [
            (Rejection::UnknownKey, 401, "invalid_api_key"),
            (exhausted, 402, "insufficient_quota"),
            (Rejection::Suspended { reason: "unpaid".to_owned() }, 403, "tenant_suspended"),
            (Rejection::RequestRate { retry_after }, 429, "rate_limit_exceeded"),
            (Rejection::TokenRate { retry_after: Some(retry_after), needed: Tokens(9) }, 429, "rate_limit_exceeded"),
            (Rejection::TokenRate { retry_after: None, needed: Tokens(9) }, 400, "request_above_token_limit"),
            (Rejection::Concurrency { open: 4 }, 429, "rate_limit_exceeded"),
        ] {
            let error = api_error(&Failure::Rejected(rejection));
            assert_eq!((error.status, error.code.as_deref()), (status, Some(code)));
        }
    }

    #[test]
    fn an_exhausted_budget_says_when_it_starts_anew() {
        let rejection = Rejection::BudgetExhausted {
            period: Period::Day,
            needed: NanoUsd(5),
            available: NanoUsd(4),
            resets_at: TimestampUs(86_400_000_000),
        };
        let error = api_error(&Failure::Rejected(rejection));
        let expected = "The day budget has $0.000000004 left, the request may need $0.000000005. \
                        It starts anew at 1970-01-02T00:00:00Z.";
        assert_eq!(error.message, expected);
    }

    #[test]
    fn a_log_that_refuses_is_told_with_the_number_of_its_page() {
        for (refusal, code) in
            [(Refusal::DiskFull, "E0003"), (Refusal::ReadOnly, "E0004"), (Refusal::DirectoryRemoved, "E0005")]
        {
            let failure = Failure::Unavailable(Unavailable::Refusing(refusal));
            let message = api_error(&failure).message;
            assert_eq!(message, format!("Requests cannot be recorded at the moment [{code}]; try again."));
            let status = crate::grpc::status::failure(&failure);
            let details = tonic_types::StatusExt::get_error_details(&status);
            assert_eq!(details.error_info().unwrap().metadata["error"], code);
        }
    }

    #[test]
    fn what_passes_says_when_to_come_back() {
        for failure in [
            Failure::Unavailable(Unavailable::Refusing(Refusal::DiskFull)),
            Failure::Unavailable(Unavailable::Overloaded { retry_after: SOON }),
            Failure::TooManyInFlight { limit: 1 },
            Failure::Draining,
        ] {
            let response = response(&api_error(&failure));
            assert!([429, 503].contains(&response.status().as_u16()));
            assert_eq!(response.headers()["retry-after"], "1");
        }
    }
}
