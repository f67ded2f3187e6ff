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

/// What becomes of a publish.
#[derive(Debug)]
pub enum Publish {
    /// The server looks at it.
    Allowed,
    /// The user may not.
    Denied,
    /// It cannot be told: nobody answers at the moment.
    Unanswered(ApiError),
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

    /// Other nodes that are alive: their names and addresses. Waits for as long as a lease lasts to see which leases are
    /// renewed: a node that was killed leaves its last one.
    ///
    /// # Errors
    /// `NameTaken`, `TooManyNodes`: a start would be refused for it. `Api`: nobody answers, or something in the bucket
    /// cannot be read.
    pub async fn nodes(&self, ttl: Duration) -> Result<Vec<(String, String)>, lease::Error> {
        let before = self.bucket.nodes().await?;
        if before.values().all(|(_, record)| record.state.is_gone()) {
            return Ok(Vec::new());
        }
        tokio::time::sleep(ttl).await;
        let mut nodes = self.bucket.nodes().await?;
        let is_renewed = |name: &String, now: u64| before.get(name).is_none_or(|(before, _)| *before < now);
        nodes.retain(|name, (now, record)| !record.state.is_gone() && is_renewed(name, *now));
        let node = &self.options.node;
        if let Some((_, record)) = nodes.remove(node) {
            return Err(lease::Error::NameTaken { node: node.clone(), address: record.address });
        }
        if nodes.len() >= lease::NODES_MAX {
            return Err(lease::Error::TooManyNodes { nodes: nodes.len() });
        }
        Ok(nodes.into_iter().map(|(name, (_, record))| (name, record.address)).collect())
    }

    /// What becomes of a publish to a subject of the stream, and of the bucket, that would store nothing; both must
    /// exist.
    pub async fn publishes(&self) -> [(String, Publish); 2] {
        [
            self.publish(self.shard.clone(), &self.leader.stream).await,
            self.publish(self.bucket.subject(), self.bucket.stream()).await,
        ]
    }

    async fn publish(&self, subject: String, stream: &str) -> (String, Publish) {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(EXPECTED_STREAM.0, EXPECTED_STREAM.1);
        let (client, message) = (&self.leader.client, (Bytes::new(), Some(headers)));
        let answer = api::request::<serde_json::Value>(client, &subject, message, READ_WAIT).await;
        let became = match answer {
            Err(error) if error.code() == Some(WRONG_STREAM) => Publish::Allowed,
            // The server drops what the user may not publish, and answers nothing. Its leader answers everything else.
            Err(ApiError::TimedOut { .. }) if self.answers(stream).await => Publish::Denied,
            Err(error) => Publish::Unanswered(error),
            Ok(answer) => {
                Publish::Unanswered(ApiError::Broken { subject: subject.clone(), reason: answer.to_string() })
            }
        };
        (subject, became)
    }

    async fn answers(&self, stream: &str) -> bool {
        let what = format!("STREAM.INFO.{stream}");
        api::ask::<serde_json::Value>(&self.leader.client, &what, &json!({}), READ_WAIT).await.is_ok()
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
