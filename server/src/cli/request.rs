//! One HTTP request at a time, as an application would send it; for `freehold dev` and benchmarks.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet};

use super::failure::{Failure, Problem};

/// Largest answer that is read, bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Sends one request on a connection of its own.
///
/// # Errors
/// Nobody listens, or the answer breaks off.
pub(crate) async fn send(
    address: SocketAddr,
    method: Method,
    path: &str,
    bearer: Option<&str>,
    body: Option<String>,
) -> Result<Answer, Failure> {
    let failed =
        |error: &dyn std::error::Error| Problem::new(format!("{method} http://{address}{path}")).because(error);
    let mut request = Request::builder().method(&method).uri(path).header(header::HOST, address.to_string());
    if let Some(bearer) = bearer {
        request = request.header(header::AUTHORIZATION, format!("Bearer {bearer}"));
    }
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let body = Full::new(Bytes::from(body.unwrap_or_default()));
    let request = request.body(body).map_err(|error| failed(&error))?;
    let stream = TcpStream::connect(address).await.map_err(|error| failed(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    // Ends with this function: the set aborts what it holds.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let (head, body) = sender.send_request(request).await.map_err(|error| failed(&error))?.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| failed(&*error))?.to_bytes();
    Ok(Answer { status: head.status, headers: head.headers, body })
}
