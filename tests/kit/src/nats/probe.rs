//! Asks a server, in the protocol's own words, whether a stream takes writes: the time of an election is measured by
//! nothing of ours that could wait longer than it must.
//!
//! The message expects a sequence that cannot be: only the leader of a stream says so, and nothing is written.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use super::{PASSWORD, USER};

/// Longest wait for an answer: who has none at once has no leader.
const ANSWER_WITHIN: Duration = Duration::from_millis(200);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
const INBOX: &str = "_INBOX.probe";
/// The leader's words for an expectation that is not met; which of them depends on the server.
const WRONG_SEQUENCE: [&str; 2] = ["10071", "10164"];

/// Whether the leader of the stream with this subject answers who writes through the server at this port.
pub(super) fn takes_writes(port: u16, subject: &str) -> bool {
    ask(port, subject).is_ok_and(|answer| WRONG_SEQUENCE.iter().any(|code| answer.contains(code)))
}

fn ask(port: u16, subject: &str) -> io::Result<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_WITHIN)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    let headers = format!("NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: {}\r\n\r\n", u64::MAX >> 2);
    let connect = serde_json::json!({
        "verbose": false, "pedantic": false, "headers": true, "no_responders": true, "user": USER, "pass": PASSWORD,
    });
    let length = headers.len();
    let publish = format!("HPUB {subject} {INBOX} {length} {length}\r\n{headers}\r\n");
    stream.write_all(format!("CONNECT {connect}\r\nSUB {INBOX} 1\r\n{publish}").as_bytes())?;
    let mut lines = BufReader::new(stream.take(ANSWER_BYTES_MAX)).lines();
    // The greeting comes first; then one of ours, or `no responders` as headers.
    while let Some(line) = lines.next().transpose()? {
        if line.starts_with("MSG ") {
            return lines.next().transpose().map(Option::unwrap_or_default);
        }
        if line.starts_with("HMSG ") || line.starts_with("-ERR") {
            break;
        }
    }
    Err(io::ErrorKind::NotConnected.into())
}
