//! Asks a server's monitoring port. One request a connection, and no answer in time is no answer: a server stopped by a
//! signal still accepts connections.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::Value;

/// Longest silence of a server that runs.
const ANSWER_WITHIN: Duration = Duration::from_millis(1_000);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 16 << 20;
/// Largest greeting that is read.
const GREETING_BYTES_MAX: u64 = 64 << 10;

/// Whether the client port greets.
pub(super) fn greets(port: u16) -> bool {
    let greeting = || -> io::Result<String> {
        let mut line = String::new();
        BufReader::new(connect(port)?.take(GREETING_BYTES_MAX)).read_line(&mut line)?;
        Ok(line)
    };
    greeting().is_ok_and(|line| line.starts_with("INFO "))
}

/// Whether the server says that it can serve.
pub(super) fn is_healthy(port: u16) -> bool {
    get(port, "/healthz").is_ok_and(|(status, _)| status == 200)
}

/// What the server says at `path`; nothing where it does not answer.
pub(super) fn look(port: u16, path: &str) -> Option<Value> {
    let (status, body) = get(port, path).ok()?;
    if status == 200 { serde_json::from_str(&body).ok() } else { None }
}

fn get(port: u16, path: &str) -> io::Result<(u16, String)> {
    let mut stream = connect(port)?;
    // The old version of HTTP: the answer has no chunks and ends with the connection.
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    let status = head.split(' ').nth(1).and_then(|text| text.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    Ok((status, body.to_owned()))
}

fn connect(port: u16) -> io::Result<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&address, ANSWER_WITHIN)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    Ok(stream)
}
