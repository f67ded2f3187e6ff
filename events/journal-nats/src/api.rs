//! Requests to the JetStream API that only the leader of a stream answers: where it ends, and single messages.
//!
//! It deliberately uses no direct get: a replica that lags would answer about its own past.

use std::{sync::Arc, time::Duration};

use async_nats::{
    Client, HeaderMap, Request, RequestErrorKind,
    connection::State,
    jetstream::{
        message::StreamMessage,
        stream::{Info, RawMessage},
    },
};
use bytes::Bytes;
use futures::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, WeakShared},
    stream::FuturesUnordered,
};
use parking_lot::Mutex;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;
use tokio::time::MissedTickBehavior;

use crate::{
    clock,
    error::ApiError,
    limit::{LOOK_WAIT, PROBE_EVERY, PROBES_MAX, READ_WAIT, RESOLVE_MAX},
    publish::Pauses,
};

pub(crate) const STREAM_NOT_FOUND: u64 = 10059;
pub(crate) const STREAM_NAME_IN_USE: u64 = 10058;
pub(crate) const STREAM_REPLICAS_NOT_SUPPORTED: u64 = 10074;
pub(crate) const CLUSTER_NO_PEERS: u64 = 10005;
const NO_MESSAGE_FOUND: u64 = 10037;
/// No stream gets so long.
const NO_SEQUENCE: u64 = u64::MAX >> 1;

#[derive(Debug, Deserialize)]
struct Refusal {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

#[derive(Debug, Deserialize)]
struct Failed {
    error: Option<Refusal>,
}

/// A message as it lies in the stream.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) sequence: u64,
    pub(crate) subject: String,
    pub(crate) payload: Bytes,
}

/// What the server says to a publish.
#[derive(Debug, Deserialize)]
pub(crate) struct Ack {
    pub(crate) stream: String,
    pub(crate) seq: u64,
    #[serde(default)]
    pub(crate) duplicate: bool,
}

/// Sends a request and reads the JSON of the answer.
pub(crate) async fn request<T: DeserializeOwned>(
    client: &Client,
    subject: &str,
    (payload, headers): (Bytes, Option<HeaderMap>),
    wait: Duration,
) -> Result<T, ApiError> {
    let subject = subject.to_owned();
    let mut request = Request::new().payload(payload).timeout(Some(wait));
    if let Some(headers) = headers {
        request = request.headers(headers);
    }
    // The client's own bound begins when there is room in its queue, which nobody empties while there is no connection.
    let sent = tokio::time::timeout(wait, client.send_request(subject.clone(), request)).await;
    let sent = sent.map_err(|_elapsed| ApiError::TimedOut { subject: subject.clone() })?;
    let message = sent.map_err(|error| match error.kind() {
        RequestErrorKind::NoResponders => ApiError::NoResponders { subject: subject.clone() },
        RequestErrorKind::TimedOut => ApiError::TimedOut { subject: subject.clone() },
        RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded | RequestErrorKind::Other => {
            ApiError::Broken { subject: subject.clone(), reason: error.to_string() }
        }
    })?;
    let broken = |error: serde_json::Error| ApiError::Broken { subject: subject.clone(), reason: error.to_string() };
    if let Some(status) = message.status.filter(|status| !status.is_success()) {
        let description = message.description.unwrap_or_default();
        return Err(ApiError::Refused { subject, code: u64::from(status.as_u16()), description });
    }
    let failed: Failed = serde_json::from_slice(&message.payload).map_err(broken)?;
    if let Some(Refusal { err_code, description }) = failed.error {
        return Err(ApiError::Refused { subject, code: err_code, description });
    }
    serde_json::from_slice(&message.payload).map_err(broken)
}

/// Asks for one thing of the JetStream API with a JSON body.
pub(crate) async fn ask<T: DeserializeOwned>(
    client: &Client,
    what: &str,
    body: &serde_json::Value,
    wait: Duration,
) -> Result<T, ApiError> {
    let payload = Bytes::from(body.to_string());
    request(client, &format!("$JS.API.{what}"), (payload, None), wait).await
}

/// Questions to a leader that all who wait for it share.
type Probe = WeakShared<BoxFuture<'static, ()>>;

/// The leader of one stream.
#[derive(Debug, Clone)]
pub(crate) struct Leader {
    pub(crate) client: Client,
    pub(crate) stream: String,
    /// What goes on while somebody waits for the leader.
    probe: Arc<Mutex<Option<Probe>>>,
}

impl Leader {
    pub(crate) fn new(client: Client, stream: String) -> Self {
        Self { client, stream, probe: Arc::default() }
    }

    /// Waits until the leader answers, at most for this time. All who wait do it together, so that an election may be
    /// watched closely by many shards.
    pub(crate) async fn wait_for_answer(&self, wait_max: Duration) {
        let probe = {
            let mut slot = self.probe.lock();
            let running = slot.as_ref().and_then(Probe::upgrade).filter(|probe| probe.peek().is_none());
            let probe = running.unwrap_or_else(|| self.clone().probe().boxed().shared());
            *slot = probe.downgrade();
            probe
        };
        // Whoever waits looks again either way.
        drop(tokio::time::timeout(wait_max, probe).await);
    }

    /// Asks again and again for a message that cannot be, without waiting for earlier answers: what was asked while
    /// there was no leader is not answered. Nothing is asked while there is no connection: it would only wait in the
    /// client's queue, before everything that is asked later.
    async fn probe(self) {
        let mut asked = FuturesUnordered::new();
        let mut tick = tokio::time::interval(PROBE_EVERY);
        // After a time in which this process stood still, one question is enough.
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    if asked.len() < PROBES_MAX && self.client.connection_state() == State::Connected {
                        asked.push(self.get(json!({ "seq": NO_SEQUENCE }), READ_WAIT));
                    }
                }
                // Those that came to nothing are not waited for one by one: an answer may lie behind them.
                Some(answer) = asked.next() => {
                    if answer.is_ok() {
                        return;
                    }
                }
            }
        }
    }

    /// Configuration and state.
    pub(crate) async fn info(&self) -> Result<Info, ApiError> {
        ask(&self.client, &format!("STREAM.INFO.{}", self.stream), &json!({}), READ_WAIT).await
    }

    async fn get(&self, body: serde_json::Value, wait: Duration) -> Result<Option<Stored>, ApiError> {
        #[derive(Deserialize)]
        struct Got {
            message: RawMessage,
        }
        let what = format!("STREAM.MSG.GET.{}", self.stream);
        let got: Got = match ask(&self.client, &what, &body, wait).await {
            Err(error) if error.code() == Some(NO_MESSAGE_FOUND) => return Ok(None),
            got => got?,
        };
        let message = StreamMessage::try_from(got.message)
            .map_err(|error| ApiError::Broken { subject: what, reason: error.to_string() })?;
        let subject = message.subject.to_string();
        Ok(Some(Stored { sequence: message.sequence, subject, payload: message.payload }))
    }

    /// The message with this sequence.
    pub(crate) async fn at(&self, sequence: u64) -> Result<Option<Stored>, ApiError> {
        self.get(json!({ "seq": sequence }), READ_WAIT).await
    }

    /// The last message of a subject.
    pub(crate) async fn last(&self, subject: &str) -> Result<Option<Stored>, ApiError> {
        self.get(json!({ "last_by_subj": subject }), LOOK_WAIT).await
    }

    /// The first message of a subject behind a sequence.
    pub(crate) async fn after(&self, subject: &str, sequence: u64) -> Result<Option<Stored>, ApiError> {
        self.get(json!({ "seq": sequence.saturating_add(1), "next_by_subj": subject }), LOOK_WAIT).await
    }
}

impl Leader {
    /// As `at`, but asks again for `RESOLVE_MAX` while there is no leader.
    pub(crate) async fn at_patiently(&self, sequence: u64) -> Result<Option<Stored>, ApiError> {
        let start = clock::now();
        let mut pauses = Pauses::new();
        loop {
            match self.at(sequence).await {
                Err(error) if start.elapsed() < RESOLVE_MAX && error.is_passing() => pauses.pause().await,
                answer => return answer,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use async_nats::ConnectOptions;
    use tokio::{
        io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
        net::TcpListener,
    };

    use super::*;
    use crate::requests::{NoReply, Requests};

    const PATIENCE: Duration = Duration::from_secs(30);
    const INFO: &str = r#"INFO {"server_id":"S","version":"2.12.0","max_payload":1048576,"proto":1,"headers":true}"#;

    /// A client whose server went away, with room for one request in its queue.
    async fn cut_off() -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            stream.write_all(format!("{INFO}\r\n").as_bytes()).await.unwrap();
            let mut line = String::new();
            while line.trim() != "PING" {
                line.clear();
                stream.read_line(&mut line).await.unwrap();
            }
            stream.write_all(b"PONG\r\n").await.unwrap();
        };
        let options = ConnectOptions::new().client_capacity(1);
        let (connected, ()) = tokio::join!(options.connect(address), serving);
        let client = connected.unwrap();
        let cut = async {
            while client.connection_state() == State::Connected {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, cut).await.unwrap();
        client
    }

    #[tokio::test]
    async fn a_question_is_given_up_in_time_although_the_clients_queue_is_full() {
        let client = cut_off().await;
        let wait = Duration::from_millis(50);
        let requests = Requests::new(client.clone(), events_model::RegionId::new("local").unwrap());
        let body = json!({});
        // The first fills the queue; without a bound of ours those behind it would wait for a connection.
        for _ in 0..3 {
            let asked = ask::<Info>(&client, "STREAM.INFO.x", &body, wait);
            let asked = tokio::time::timeout(PATIENCE, asked).await.unwrap();
            assert!(matches!(asked, Err(ApiError::TimedOut { .. })), "{asked:?}");
            let asked = requests.ask("n1", Bytes::new(), wait);
            assert_eq!(tokio::time::timeout(PATIENCE, asked).await.unwrap(), Err(NoReply::Late));
        }
    }
}
