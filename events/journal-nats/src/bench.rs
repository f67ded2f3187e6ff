//! The reference that the engine is measured against: raw async-nats on the bytes that it published.
//!
//! The traffic is read back from the engine's stream and published again to a stream of its own, which is configured
//! in the same way: either message by message as the engine grouped it, subjects side by side and one message in flight
//! on each; or one message a commit, with as many in flight as there were callers. It deliberately does nothing that a
//! log must do: no expectation, no chain, no replica.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, Consumer, DeliverPolicy, pull},
};
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::task::JoinSet;

use crate::{
    api::Leader,
    clock,
    connect::{self, Options},
    error::{ApiError, OpenError},
    group,
    limit::{CONSUMER_IDLE_MAX, PULL_BYTES, PULL_EXPIRES, PULL_HEARTBEAT, PULL_MESSAGES},
    stream as region_stream, subject,
};

/// What lies in a region's stream: its messages by subject, in order.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    subjects: BTreeMap<String, Vec<Bytes>>,
    /// Messages.
    pub messages: u64,
    /// Commits in them.
    pub commits: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
}

/// How the traffic is published again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grouping {
    /// As the engine did.
    Same,
    /// One message a commit, so many in flight, for so long at most.
    Single(usize, Duration),
}

/// What publishing took.
#[derive(Debug, Clone)]
pub struct Published {
    /// Commits that were acknowledged.
    pub commits: u64,
    /// In all.
    pub elapsed: Duration,
    /// Of each message, from the call to its acknowledgement.
    pub latencies: Vec<Duration>,
}

async fn leader(options: &Options) -> Result<Leader, OpenError> {
    let client = connect::connect(options).await?.client;
    Ok(Leader::new(client, subject::stream_name(&options.region)))
}

fn failed(leader: &Leader, reason: &dyn std::fmt::Display) -> OpenError {
    let source = ApiError::Broken { subject: leader.stream.clone(), reason: reason.to_string() };
    OpenError::Api { stream: leader.stream.clone(), source }
}

/// Makes the region's stream; servers that have only just started cannot yet.
///
/// # Errors
/// As `JetStreamLog::open`.
pub async fn make(options: &Options) -> Result<(), OpenError> {
    region_stream::ensure(&leader(options).await?, options).await.map(drop)
}

/// Removes the region's stream and all it holds.
///
/// # Errors
/// As `JetStreamLog::open`; users of a configuration that Freehold ships may not.
pub async fn remove(options: &Options) -> Result<(), OpenError> {
    let leader = leader(options).await?;
    let removed = jetstream::new(leader.client.clone()).delete_stream(&leader.stream).await;
    removed.map(drop).map_err(|error| failed(&leader, &error))
}

/// Reads the whole stream of a region with a consumer like a follower's, and tells how long that took.
///
/// # Errors
/// As `JetStreamLog::open`; `Api` also if a message is missing.
pub async fn read(options: &Options) -> Result<(Traffic, Duration), OpenError> {
    let leader = leader(options).await?;
    let info = leader.info().await.map_err(|source| OpenError::Api { stream: leader.stream.clone(), source })?;
    let config = pull::Config {
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::None,
        inactive_threshold: CONSUMER_IDLE_MAX,
        num_replicas: 1,
        memory_storage: true,
        ..pull::Config::default()
    };
    let start = clock::now();
    let made = jetstream::new(leader.client.clone()).create_consumer_on_stream(config, &leader.stream).await;
    let consumer: Consumer<pull::Config> = made.map_err(|error| failed(&leader, &error))?;
    let pull = consumer.stream().max_messages_per_batch(PULL_MESSAGES).max_bytes_per_batch(PULL_BYTES);
    let messages = pull.expires(PULL_EXPIRES).heartbeat(PULL_HEARTBEAT).messages().await;
    let mut messages = messages.map_err(|error| failed(&leader, &error))?;
    let mut traffic = Traffic::default();
    while traffic.messages < info.state.last_sequence {
        let Some(message) = messages.next().await else { return Err(failed(&leader, &"the consumer ended")) };
        let message = message.map_err(|error| failed(&leader, &error))?.message;
        traffic.messages += 1;
        traffic.bytes += message.payload.len() as u64;
        traffic.subjects.entry(message.subject.to_string()).or_default().push(message.payload);
    }
    let elapsed = start.elapsed();
    let groups = traffic.subjects.values().flatten();
    traffic.commits = groups.filter_map(|bytes| Some(group::decode(bytes).ok()?.commits.len() as u64)).sum();
    Ok((traffic, elapsed))
}

/// Publishes the traffic into the stream of the region of these options.
///
/// # Errors
/// As `JetStreamLog::open`; `Api` also if a message was not acknowledged.
pub async fn publish(options: &Options, traffic: &Traffic, grouping: Grouping) -> Result<Published, OpenError> {
    let leader = leader(options).await?;
    region_stream::ensure(&leader, options).await?;
    let context = jetstream::new(leader.client.clone());
    let subject = |number: usize| format!("{}.{}.raw.{number}", subject::SUBJECT_PREFIX, options.region);
    let (lists, wait_max) = match grouping {
        Grouping::Same => (groups(traffic), Duration::MAX),
        Grouping::Single(in_flight, wait_max) => (deal(traffic, in_flight), wait_max),
    };
    let start: Instant = clock::now();
    // Tasks of their own, as the engine's writers are.
    let mut publishers = JoinSet::new();
    for (number, messages) in lists.into_iter().enumerate() {
        let (context, subject) = (context.clone(), subject(number));
        publishers.spawn(async move {
            let (mut commits, mut latencies) = (0, Vec::with_capacity(messages.len()));
            for (count, message) in messages {
                let asked = clock::now();
                if asked.duration_since(start) >= wait_max {
                    break;
                }
                let ack = context.publish(subject.clone(), message).await.map_err(|error| error.to_string())?;
                ack.await.map_err(|error| error.to_string())?;
                latencies.push(asked.elapsed());
                commits += count;
            }
            Ok::<_, String>((commits, latencies))
        });
    }
    let mut published = Published { commits: 0, elapsed: Duration::ZERO, latencies: Vec::new() };
    while let Some(done) = publishers.join_next().await {
        let done = done.map_err(|error| failed(&leader, &error))?;
        let (commits, latencies) = done.map_err(|error| failed(&leader, &error))?;
        published.commits += commits;
        published.latencies.extend(latencies);
    }
    published.elapsed = start.elapsed();
    Ok(published)
}

/// Messages and how many commits each holds.
type Messages = Vec<(u64, Bytes)>;

/// The groups of each subject.
fn groups(traffic: &Traffic) -> Vec<Messages> {
    let commits = |bytes: &Bytes| group::decode(bytes).map_or(0, |group| group.commits.len() as u64);
    let subject = |messages: &Vec<Bytes>| messages.iter().map(|bytes| (commits(bytes), bytes.clone())).collect();
    traffic.subjects.values().map(subject).collect()
}

/// All commits, one message each, dealt to so many publishers.
fn deal(traffic: &Traffic, publishers: usize) -> Vec<Messages> {
    let mut lists = vec![Vec::new(); publishers.max(1)];
    let groups = traffic.subjects.values().flatten().filter_map(|bytes| group::decode(bytes).ok());
    let commits = groups.flat_map(|group| group.commits);
    for (number, commit) in commits.enumerate() {
        let count = lists.len();
        if let Some(list) = lists.get_mut(number % count) {
            list.push((1, commit));
        }
    }
    lists
}
