//! The text protocol of NATS, as much as the tests of configurations need: connect, publish, subscribe, ask.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// Longest wait for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The same while an election goes on.
const TRY_WITHIN: Duration = Duration::from_secs(1);
/// Between two questions that nobody listened to.
const PAUSE: Duration = Duration::from_millis(10);
/// What a server answers where nobody listens.
const NO_RESPONDERS: &str = "NATS/1.0 503";

/// A connection; requests one after the other.
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
    /// What the server says about itself.
    pub(crate) info: Value,
    asked: u64,
}

/// A message as it comes. Its subject is of no use: an answer with a stored message comes under that one's subject.
struct Message {
    subscription: u64,
    reply: Option<String>,
    header: String,
    payload: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(port: u16, user: &str, password: &str) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        let mut client = Self { stream: BufReader::new(stream), info: Value::Null, asked: 0 };
        let greeting = client.line()?;
        client.info = serde_json::from_str(greeting.trim_start_matches("INFO "))?;
        let options = json!({
            "user": user, "pass": password, "verbose": false, "pedantic": false, "headers": true, "no_responders": true,
        });
        client.send(format!("CONNECT {options}\r\n").as_bytes())?;
        client.synchronise()?;
        Ok(client)
    }

    /// Subscribes and waits until the server has heard it.
    pub(crate) fn subscribe(&mut self, subject: &str) -> io::Result<()> {
        self.asked += 1;
        self.send(format!("SUB {subject} {}\r\n", self.asked).as_bytes())?;
        self.synchronise()
    }

    /// Waits until the server has heard all that was sent.
    fn synchronise(&mut self) -> io::Result<()> {
        self.send(b"PING\r\n")?;
        let mut refusal = None;
        loop {
            match self.line()? {
                line if line == "PONG" => return refusal.map_or(Ok(()), Err),
                // A refused subscription is followed by the PONG, a refused connection by its end.
                line if line.starts_with("-ERR") && line.contains("Permissions") => {
                    refusal = Some(io::Error::other(line))
                }
                line if line.starts_with("-ERR") => return Err(io::Error::other(line)),
                _ => {}
            }
        }
    }

    /// The payload of the answer; an error where the server refuses or nobody listens.
    pub(crate) fn request(&mut self, subject: &str, payload: &[u8]) -> io::Result<Vec<u8>> {
        self.asked += 1;
        let (subscription, inbox) = (self.asked, format!("_INBOX.{}", self.asked));
        self.send(format!("SUB {inbox} {subscription}\r\nUNSUB {subscription} 1\r\n").as_bytes())?;
        self.publish(subject, Some(&inbox), payload)?;
        loop {
            let message = self.message()?;
            if message.subscription == subscription {
                let refused = message.header.starts_with("NATS/1.0 5");
                return if refused { Err(io::Error::other(message.header)) } else { Ok(message.payload) };
            }
        }
    }

    /// As `request`, for a subject that somebody will listen to: what a cluster has just created is known to the server
    /// that asked for it before the others have told this one who answers. Without a listener nothing was delivered,
    /// so asking again does nothing twice.
    #[expect(clippy::disallowed_methods, reason = "the servers run by the real clock")]
    pub(crate) fn request_heard(&mut self, subject: &str, payload: &[u8]) -> io::Result<Vec<u8>> {
        let begin = Instant::now();
        loop {
            match self.request(subject, payload) {
                Err(unheard) if unheard.to_string().starts_with(NO_RESPONDERS) && begin.elapsed() < ANSWER_WITHIN => {
                    thread::sleep(PAUSE)
                }
                answer => return answer,
            }
        }
    }

    /// The answer as JSON.
    #[track_caller]
    pub(crate) fn ask(&mut self, subject: &str, payload: &[u8]) -> Value {
        let answer = self.request_heard(subject, payload).unwrap();
        serde_json::from_slice(&answer).unwrap()
    }

    /// The answer as JSON; nothing where there is none soon. The connection is of no use after that.
    pub(crate) fn ask_once(mut self, subject: &str, payload: &[u8]) -> Value {
        self.stream.get_ref().set_read_timeout(Some(TRY_WITHIN)).unwrap();
        let answer = self.request(subject, payload).ok();
        answer.and_then(|answer| serde_json::from_slice(&answer).ok()).unwrap_or_default()
    }

    /// Answers the next request that comes by a subscription.
    pub(crate) fn answer(&mut self, payload: &[u8]) -> io::Result<()> {
        let request = self.message()?;
        let reply = request.reply.ok_or(io::ErrorKind::InvalidData)?;
        self.publish(&reply, None, payload)
    }

    fn publish(&mut self, subject: &str, reply: Option<&str>, payload: &[u8]) -> io::Result<()> {
        let mut command = format!("PUB {subject} {} {}\r\n", reply.unwrap_or_default(), payload.len()).into_bytes();
        command.extend_from_slice(payload);
        command.extend_from_slice(b"\r\n");
        self.send(&command)
    }

    fn message(&mut self) -> io::Result<Message> {
        loop {
            let line = self.line()?;
            let words: Vec<_> = line.split_whitespace().collect();
            // MSG subject subscription [reply] bytes, HMSG subject subscription [reply] header-bytes bytes.
            let lengths = match words.first() {
                Some(&"MSG") => 1,
                Some(&"HMSG") => 2,
                Some(&"-ERR") => return Err(io::Error::other(line)),
                Some(_) | None => continue,
            };
            let number = |index: usize| words[index].parse::<usize>().map_err(io::Error::other);
            let total = number(words.len() - 1)?;
            let head = if lengths == 2 { number(words.len() - 2)? } else { 0 };
            let reply = (words.len() == 4 + lengths).then(|| words[3].to_owned());
            let mut bytes = vec![0; total + 2];
            self.stream.read_exact(&mut bytes)?;
            bytes.truncate(total);
            let payload = bytes.split_off(head);
            let header = String::from_utf8_lossy(&bytes).into_owned();
            return Ok(Message { subscription: words[2].parse().map_err(io::Error::other)?, reply, header, payload });
        }
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if line == "PING\r\n" {
                self.send(b"PONG\r\n")?;
                continue;
            }
            return Ok(line.trim_end().to_owned());
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }
}
