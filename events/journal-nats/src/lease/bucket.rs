//! The bucket: a JetStream stream with the layout of a key-value bucket, so that the usual tools can read it.
//!
//! Invariants: everything is read from the stream's leader; every write names the revision that it replaces; an
//! existing stream is never changed here.

use std::time::Duration;

use async_nats::{
    Client, HeaderMap,
    jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType},
};
use bytes::Bytes;
use events_model::RegionId;
use futures::future::join_all;
use serde::de::DeserializeOwned;
use serde_json::json;
use tracing::{debug, error};

use super::{
    error::Error,
    limit::{GONE_KEPT, META_ATTEMPTS_MAX},
    record::{FORMAT, Incarnation, Key, META_KEY, Meta, NodeRecord, NodeState, ShardRecord},
    rules::{Failure, Found, Value, Write, together},
};
use crate::{
    api::{self, Ack, Leader, Stored},
    error::{ApiError, Difference},
    limit::MAKE_WAIT,
};

/// Both say that the expected revision is not the last one; which one depends on the server.
const WRONG_LAST_SEQUENCE: [u64; 2] = [10_071, 10_164];
const EXPECTED: &str = "Nats-Expected-Last-Subject-Sequence";
const TTL: &str = "Nats-TTL";

/// One region's bucket.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    leader: Leader,
    name: String,
    /// Begins the subject of every key.
    prefix: String,
    /// Where nodes call each other to look.
    hints: String,
    /// How long an answer is waited for.
    wait: Duration,
}

impl Bucket {
    pub(crate) fn new(client: &Client, region: &RegionId, wait: Duration) -> Self {
        let name = format!("FH_LEASES_{}", region.as_str().to_uppercase());
        let leader = Leader::new(client.clone(), format!("KV_{name}"));
        Self { leader, prefix: format!("$KV.{name}."), hints: format!("fh.lease.{region}"), wait, name }
    }

    fn config(&self, replicas: usize) -> Config {
        Config {
            name: self.leader.stream.clone(),
            description: Some("Freehold: who owns which shard".to_owned()),
            subjects: vec![format!("{}>", self.prefix)],
            retention: RetentionPolicy::Limits,
            storage: StorageType::File,
            num_replicas: replicas,
            discard: DiscardPolicy::New,
            max_messages_per_subject: 1,
            max_bytes: -1,
            max_messages: -1,
            max_message_size: -1,
            max_consumers: -1,
            allow_message_ttl: true,
            allow_direct: false,
            allow_rollup: false,
            deny_delete: true,
            deny_purge: true,
            ..Config::default()
        }
    }

    /// Makes the bucket if it is not there; checks it if it is.
    pub(crate) async fn ensure(&self, replicas: usize) -> Result<(), Error> {
        let wanted = self.config(replicas);
        let failed = |source: ApiError| Error::Api { bucket: self.name.clone(), source };
        let body = serde_json::to_value(&wanted).unwrap_or_else(|_| json!({}));
        let what = format!("STREAM.CREATE.{}", self.leader.stream);
        // Creating the same stream again is no error.
        let made = api::ask::<serde_json::Value>(&self.leader.client, &what, &body, MAKE_WAIT).await;
        match made {
            Ok(_) => {}
            Err(error) if error.code() == Some(api::STREAM_NAME_IN_USE) => {}
            Err(error) => return Err(failed(error)),
        }
        let actual = self.leader.info().await.map_err(failed)?.config;
        self.check(&wanted, &actual)
    }

    /// Whether the bucket is there and what it must be, and the region's settings are these; changes nothing.
    pub(crate) async fn look(&self, replicas: usize, asked: &Meta) -> Result<bool, Error> {
        let failed = |source: ApiError| Error::Api { bucket: self.name.clone(), source };
        let actual = match self.leader.info().await {
            Err(error) if error.code() == Some(api::STREAM_NOT_FOUND) => return Ok(false),
            info => info.map_err(failed)?.config,
        };
        self.check(&self.config(replicas), &actual)?;
        match self.leader.last(&self.meta_subject()).await.map_err(failed)? {
            Some(stored) => self.compare(&stored, asked).map(|()| true),
            None => Ok(true),
        }
    }

    /// Where what all nodes agree on lies.
    pub(crate) fn stream(&self) -> &str {
        &self.leader.stream
    }

    /// The bucket cannot be read to its end.
    pub(crate) fn unread(&self) -> Error {
        let source = ApiError::TimedOut { subject: format!("$JS.API.STREAM.MSG.GET.{}", self.leader.stream) };
        Error::Api { bucket: self.name.clone(), source }
    }

    pub(crate) fn meta_subject(&self) -> String {
        format!("{}{META_KEY}", self.prefix)
    }

    fn check(&self, wanted: &Config, actual: &Config) -> Result<(), Error> {
        let pairs = fields(wanted).into_iter().zip(fields(actual));
        let differences: Vec<_> = pairs
            .filter(|((_, expected), (_, actual))| expected != actual)
            .map(|((field, expected), (_, actual))| Difference { field, expected, actual })
            .collect();
        if differences.is_empty() {
            Ok(())
        } else {
            Err(Error::ForeignBucket { bucket: self.name.clone(), differences })
        }
    }

    /// Stores what all nodes must agree on, if this is the first one, or compares.
    pub(crate) async fn agree(&self, asked: &Meta) -> Result<(), Error> {
        let payload = Bytes::from(serde_json::to_vec(asked).unwrap_or_default());
        let mut last = None;
        for _ in 0..META_ATTEMPTS_MAX {
            match self.leader.last(&self.meta_subject()).await {
                Ok(Some(stored)) => return self.compare(&stored, asked),
                Ok(None) => match self.publish(META_KEY, 0, payload.clone(), None).await {
                    Ok(_) => return Ok(()),
                    Err(error) => last = Some(error),
                },
                Err(error) => last = Some(error),
            }
        }
        let source = last.unwrap_or(ApiError::TimedOut { subject: META_KEY.to_owned() });
        Err(Error::Api { bucket: self.name.clone(), source })
    }

    /// Stores bytes under a key if nothing is there; returns what is there.
    pub(crate) async fn share(&self, key: &str, mine: Bytes) -> Result<Vec<u8>, Error> {
        let mut last = None;
        for _ in 0..META_ATTEMPTS_MAX {
            match self.leader.last(&format!("{}{key}", self.prefix)).await {
                Ok(Some(stored)) => return Ok(stored.payload.to_vec()),
                // Somebody else may be first: the next look shows what is there then.
                Ok(None) => last = self.publish(key, 0, mine.clone(), None).await.err().or(last),
                Err(error) => last = Some(error),
            }
        }
        let source = last.unwrap_or(ApiError::TimedOut { subject: key.to_owned() });
        Err(Error::Api { bucket: self.name.clone(), source })
    }

    /// Writes an empty value and reads when the servers say that was, RFC 3339.
    pub(crate) async fn stamp(&self, key: &str) -> Result<String, Error> {
        #[derive(serde::Deserialize)]
        struct Message {
            time: String,
        }
        #[derive(serde::Deserialize)]
        struct Got {
            message: Message,
        }
        let failed = |source: ApiError| Error::Api { bucket: self.name.clone(), source };
        let (client, subject) = (&self.leader.client, format!("{}{key}", self.prefix));
        let ack: Ack = api::request(client, &subject, (Bytes::new(), None), self.wait).await.map_err(failed)?;
        let what = format!("STREAM.MSG.GET.{}", self.leader.stream);
        let got: Got = api::ask(client, &what, &json!({ "seq": ack.seq }), self.wait).await.map_err(failed)?;
        Ok(got.message.time)
    }

    fn compare(&self, stored: &Stored, asked: &Meta) -> Result<(), Error> {
        let found: Meta = serde_json::from_slice(&stored.payload).map_err(|error| Error::Unreadable {
            bucket: self.name.clone(),
            key: META_KEY.to_owned(),
            reason: error.to_string(),
        })?;
        let pairs = [
            ("format", asked.format.to_string(), found.format.to_string()),
            ("region", asked.region.clone(), found.region.clone()),
            ("shards", asked.shards.to_string(), found.shards.to_string()),
            ("ttl_ms", asked.ttl_ms.to_string(), found.ttl_ms.to_string()),
        ];
        let differs = pairs.into_iter().find(|(_, asked, stored)| asked != stored);
        differs.map_or(Ok(()), |(setting, asked, stored)| Err(Error::Differs { setting, asked, stored }))
    }

    async fn publish(&self, key: &str, expected: u64, payload: Bytes, ttl: Option<Duration>) -> Result<u64, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(EXPECTED, expected.to_string());
        if let Some(ttl) = ttl {
            headers.insert(TTL, format!("{}s", ttl.as_secs()));
        }
        let subject = format!("{}{key}", self.prefix);
        let ack: Ack = api::request(&self.leader.client, &subject, (payload, Some(headers)), self.wait).await?;
        Ok(ack.seq)
    }

    /// Writes if the key's last revision is the expected one.
    pub(crate) async fn write(&self, write: &Write) -> Result<u64, Failure> {
        let (payload, ttl) = match &write.value {
            Value::Node(record) => (serde_json::to_vec(record), Some(GONE_KEPT)),
            Value::Shard(record) => (serde_json::to_vec(record), None),
        };
        let payload = Bytes::from(payload.unwrap_or_default());
        self.publish(&write.key.to_string(), write.expected, payload, ttl).await.map_err(|error| {
            debug!(key = %write.key, %error, "lease not written");
            match error.code() {
                Some(code) if WRONG_LAST_SEQUENCE.contains(&code) => Failure::Revision,
                Some(_) | None => Failure::Unknown,
            }
        })
    }

    /// The answers to so many questions for what lies behind a position.
    pub(crate) async fn poll(&self, after: u64, questions: u64) -> Result<Vec<Found>, Failure> {
        together(join_all((0..questions).map(|number| self.next(after.saturating_add(number)))).await)
    }

    /// The next message behind a position, from the leader.
    async fn next(&self, after: u64) -> Result<Option<Found>, Failure> {
        let everything = format!("{}>", self.prefix);
        let stored = match tokio::time::timeout(self.wait, self.leader.after(&everything, after)).await {
            Ok(Ok(Some(stored))) => stored,
            Ok(Ok(None)) => return Ok(None),
            Ok(Err(error)) => {
                debug!(%error, "leases not read");
                return Err(Failure::Unknown);
            }
            Err(_) => return Err(Failure::Unknown),
        };
        let key = Key::parse(stored.subject.strip_prefix(&self.prefix).unwrap_or_default());
        let value = match &key {
            Key::Node(_) => read_or(&stored, gone).map(Value::Node).map(Some),
            Key::Shard(_) => read_or(&stored, free).map(Value::Shard).map(Some),
            Key::Meta | Key::Other => Ok(None),
        };
        // Reading does not go on behind it: a lease that cannot be read must not count as one that is not there.
        let value = value.map_err(|error| {
            error!(bucket = self.name, %key, %error, "lease unreadable, no shard is taken before it is replaced");
            Failure::Unknown
        })?;
        Ok(Some(Found { revision: stored.sequence, key, value }))
    }

    /// Calls the other nodes to look.
    pub(crate) async fn hint(&self) {
        if let Err(error) = self.leader.client.publish(self.hints.clone(), Bytes::new()).await {
            debug!(%error, "other nodes not called");
        }
    }

    /// The calls of other nodes.
    pub(crate) async fn hints(&self) -> Option<async_nats::Subscriber> {
        self.leader.client.subscribe(self.hints.clone()).await.ok()
    }
}

/// What all nodes of a region must agree on.
pub(crate) fn meta(region: &RegionId, shards: u32, ttl: Duration) -> Meta {
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    Meta { format: FORMAT, region: region.to_string(), shards, ttl_ms }
}

/// Reads a document; an empty one is what deleting a key by hand leaves.
fn read_or<T: DeserializeOwned>(stored: &Stored, deleted: fn() -> T) -> Result<T, serde_json::Error> {
    if stored.payload.is_empty() { Ok(deleted()) } else { serde_json::from_slice(&stored.payload) }
}

const fn gone() -> NodeRecord {
    NodeRecord {
        incarnation: Incarnation(0),
        term: 0,
        state: NodeState::Expired,
        address: String::new(),
        version: String::new(),
        started_at_us: 0,
    }
}

const fn free() -> ShardRecord {
    ShardRecord { epoch: 0, owner: None }
}

/// The fields that decide what the bucket keeps and whom it refuses.
fn fields(config: &Config) -> Vec<(&'static str, String)> {
    vec![
        ("subjects", config.subjects.join(",")),
        ("retention", format!("{:?}", config.retention)),
        ("storage", format!("{:?}", config.storage)),
        ("num_replicas", config.num_replicas.to_string()),
        ("max_msgs_per_subject", config.max_messages_per_subject.to_string()),
        ("max_msgs", config.max_messages.to_string()),
        ("max_bytes", config.max_bytes.to_string()),
        ("max_age", format!("{:?}", config.max_age)),
        ("allow_msg_ttl", config.allow_message_ttl.to_string()),
        ("deny_delete", config.deny_delete.to_string()),
        ("no_ack", config.no_ack.to_string()),
        ("mirror", config.mirror.is_some().to_string()),
    ]
}
