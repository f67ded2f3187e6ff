//! What a node would meet at the servers, found out without changing anything there.

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use crate::{
    api::{self, Leader},
    connect::{self, Options},
    error::{ApiError, OpenError},
    lease,
    limit::READ_WAIT,
    stream, subject,
};

/// The server refuses what names another stream than the one it would lie in, before anything is stored.
const EXPECTED_STREAM: (&str, &str) = ("Nats-Expected-Stream", "FH_NOTHING_IS_WRITTEN");
const WRONG_STREAM: u64 = 10060;

/// What is at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing: a start makes it.
    Absent,
    /// What a node expects.
    Fits,
}

/// Servers that a node can connect to.
#[derive(Debug)]
pub struct Probe {
    leader: Leader,
    bucket: lease::Look,
    shard: String,
    options: Options,
    /// Name of the server that answered.
    pub server: String,
    /// Its version.
    pub version: String,
    /// Its `max_payload`, bytes.
    pub max_payload: usize,
}

impl Probe {
    /// Connects and checks the server, as a start does.
    ///
    /// # Errors
    /// What a start would be refused for.
    pub async fn connect(options: Options) -> Result<Self, OpenError> {
        let client = connect::connect(&options).await?.client;
        let info = client.server_info();
        Ok(Self {
            bucket: lease::Look::new(&client, &options.region),
            leader: Leader::new(client, subject::stream_name(&options.region)),
            shard: subject::shard_subject(&options.region, &options.zone, 0),
            options,
            server: info.server_name,
            version: info.version,
            max_payload: info.max_payload,
        })
    }

    /// Looks at the region's stream.
    ///
    /// # Errors
    /// `ForeignStream`; `Api`: nobody answers, or the user may not ask.
    pub async fn stream(&self) -> Result<Found, OpenError> {
        match self.leader.info().await {
            Ok(info) => stream::check(&self.options, &info.config).map(|()| Found::Fits),
            Err(error) if error.code() == Some(api::STREAM_NOT_FOUND) => Ok(Found::Absent),
            Err(source) => Err(OpenError::Api { stream: self.leader.stream.clone(), source }),
        }
    }

    /// Looks at the bucket of the leases.
    ///
    /// # Errors
    /// `ForeignBucket`, `Differs`, `Unreadable`; `Api`: nobody answers, or the user may not ask.
    pub async fn bucket(&self, ttl: Duration) -> Result<Found, lease::Error> {
        let fits = self.bucket.check(self.options.replicas, (&self.options.region, self.options.shards, ttl)).await?;
        Ok(if fits { Found::Fits } else { Found::Absent })
    }

    /// Subjects of the stream and the bucket that the user may not publish to; both must exist.
    pub async fn denied(&self) -> Vec<String> {
        let mut denied = Vec::new();
        for subject in [self.shard.clone(), self.bucket.subject()] {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert(EXPECTED_STREAM.0, EXPECTED_STREAM.1);
            let message = (Bytes::new(), Some(headers));
            let answer = api::request::<serde_json::Value>(&self.leader.client, &subject, message, READ_WAIT).await;
            if answer.err().and_then(|error| error.code()) != Some(WRONG_STREAM) {
                denied.push(subject);
            }
        }
        denied
    }

    /// What time it is at the leader of the stream, which must exist; RFC 3339.
    ///
    /// # Errors
    /// Nobody answers, or the user may not ask.
    pub async fn time(&self) -> Result<String, ApiError> {
        #[derive(Deserialize)]
        struct Answer {
            ts: String,
        }
        let what = format!("STREAM.INFO.{}", self.leader.stream);
        let answer: Answer = api::ask(&self.leader.client, &what, &json!({}), READ_WAIT).await?;
        Ok(answer.ts)
    }
}
