//! Reading a request's body within its limits of size and time.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use gateway::openai::ApiError;
use http::{HeaderMap, header};
use http_body_util::BodyExt as _;
use tokio::time::timeout;

/// Longest wait for a whole body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of a body that is too large is read and thrown away, and how long that may take: a client that is still
/// sending would otherwise see a broken connection instead of our answer.
const DRAIN_BYTES_MAX: usize = 64 * 1024 * 1024;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads a body of at most so many bytes.
///
/// # Errors
/// 413, 408, or 400 if it broke off.
pub(super) async fn read(headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    read_within(BODY_TIMEOUT, headers, body, bytes_max).await
}

async fn read_within(
    limit: Duration,
    headers: &HeaderMap,
    mut body: Body,
    bytes_max: usize,
) -> Result<Bytes, ApiError> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let is_too_large = declared.is_some_and(|bytes| bytes > bytes_max as u64);
    let read = if is_too_large { Ok(None) } else { timeout(limit, collect(&mut body, bytes_max)).await };
    match read {
        Ok(Some(whole)) => whole,
        Ok(None) => {
            // Who asks first whether to send it has not sent it.
            if !headers.contains_key(header::EXPECT) {
                // Whatever is left after that is the connection's to end.
                drop(timeout(DRAIN_TIMEOUT, throw_away(&mut body)).await);
            }
            Err(ApiError::too_large(bytes_max))
        }
        Err(_) => {
            let message = format!("The request body did not arrive within {} seconds.", limit.as_secs());
            Err(ApiError { status: 408, ..ApiError::bad_request(Some("request_timeout"), None, message) })
        }
    }
}

/// Reads to the end; none if that is too much.
async fn collect(body: &mut Body, bytes_max: usize) -> Option<Result<Bytes, ApiError>> {
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            let message = "The request body broke off before its end.";
            return Some(Err(ApiError::bad_request(Some("incomplete_body"), None, message)));
        };
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + whole.len() + data.len() > bytes_max {
            return None;
        }
        // Most bodies arrive as one piece, which needs no copy.
        if first.is_empty() && whole.is_empty() {
            first = data;
        } else {
            if whole.is_empty() {
                whole.extend_from_slice(&std::mem::take(&mut first));
            }
            whole.extend_from_slice(&data);
        }
    }
    Some(Ok(if whole.is_empty() { first } else { whole.freeze() }))
}

async fn throw_away(body: &mut Body) {
    let mut bytes = 0_usize;
    while let Some(Ok(frame)) = body.frame().await {
        bytes = bytes.saturating_add(frame.data_ref().map_or(0, Bytes::len));
        if bytes > DRAIN_BYTES_MAX {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn pieces(pieces: &[&'static str]) -> Body {
        let pieces: Vec<_> =
            pieces.iter().map(|piece| Ok::<_, Infallible>(Bytes::from_static(piece.as_bytes()))).collect();
        Body::from_stream(futures::stream::iter(pieces))
    }

    #[tokio::test]
    async fn pieces_are_joined_and_one_byte_too_many_is_too_large() {
        let headers = HeaderMap::new();
        assert_eq!(read(&headers, pieces(&["ab", "", "cd", "e"]), 5).await.unwrap(), "abcde");
        assert_eq!(read(&headers, pieces(&["abc"]), 5).await.unwrap(), "abc");
        assert_eq!(read(&headers, pieces(&["ab", "cd", "ef"]), 5).await.unwrap_err().status, 413);
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_times_out() {
        let stuck = Body::from_stream(futures::stream::pending::<Result<Bytes, Infallible>>());
        let limit = Duration::from_millis(5);
        assert_eq!(read_within(limit, &HeaderMap::new(), stuck, 5).await.unwrap_err().status, 408);
    }
}
