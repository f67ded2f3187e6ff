//! The reference that the engine is measured against: raw async-nats publishing of the bytes that it published.
//!
//! The traffic is read back from the engine's stream and published again to a stream of its own, which is configured
//! in the same way: either message by message as the engine grouped it, subjects side by side and one message in flight
//! on each; or one message a commit, with as many in flight as there were callers. It deliberately does nothing that a
//! log must do: no expectation, no chain, no replica.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use async_nats::jetstream;
use bytes::Bytes;
use futures::{StreamExt as _, stream};

use crate::{
    api::Leader,
    clock,
    connect::{self, Options},
    error::{ApiError, OpenError},
    group, stream as region_stream, subject,
};

/// What lies in a region's stream: its messages by subject, in order.
#[derive(Debug, Clone)]
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
    /// One message a commit, so many in flight.
    Single(usize),
}

/// Reads the whole stream of a region.
///
/// # Errors
/// As `JetStreamLog::open`; `Api` also if a message cannot be read.
pub async fn record(options: &Options) -> Result<Traffic, OpenError> {
    let client = connect::connect(options).await?.client;
    let leader = Leader::new(client, subject::stream_name(&options.region));
    let failed = |source: ApiError| OpenError::Api { stream: leader.stream.clone(), source };
    let last = leader.info().await.map_err(failed)?.state.last_sequence;
    let mut traffic = Traffic { subjects: BTreeMap::new(), messages: 0, commits: 0, bytes: 0 };
    let mut messages = stream::iter(1..=last).map(|sequence| leader.at(sequence)).buffered(64);
    while let Some(message) = messages.next().await {
        let Some(message) = message.map_err(failed)? else { continue };
        traffic.messages += 1;
        traffic.commits += group::decode(&message.payload).map_or(0, |group| group.commits.len() as u64);
        traffic.bytes += message.payload.len() as u64;
        traffic.subjects.entry(message.subject).or_default().push(message.payload);
    }
    Ok(traffic)
}

/// Publishes the traffic into the stream of the region of these options, and tells how long it took.
///
/// # Errors
/// As `JetStreamLog::open`; `Api` also if a message was not acknowledged.
pub async fn publish(options: &Options, traffic: &Traffic, grouping: Grouping) -> Result<Duration, OpenError> {
    let client = connect::connect(options).await?.client;
    let leader = Leader::new(client.clone(), subject::stream_name(&options.region));
    region_stream::ensure(&leader, options).await?;
    let context = jetstream::new(client);
    let subject = |number: usize| format!("{}.{}.raw.{number}", subject::SUBJECT_PREFIX, options.region);
    let lists: Vec<Vec<Bytes>> = match grouping {
        Grouping::Same => traffic.subjects.values().cloned().collect(),
        Grouping::Single(in_flight) => deal(traffic, in_flight),
    };
    let start: Instant = clock::now();
    let publishers = lists.into_iter().enumerate().map(|(number, messages)| {
        let (context, subject) = (context.clone(), subject(number));
        async move {
            for message in messages {
                let ack = context.publish(subject.clone(), message).await;
                let ack = match ack {
                    Ok(ack) => ack.await,
                    Err(error) => Err(error),
                };
                ack.map_err(|error| ApiError::Broken { subject: subject.clone(), reason: error.to_string() })?;
            }
            Ok(())
        }
    });
    let done: Result<Vec<()>, ApiError> = futures::future::join_all(publishers).await.into_iter().collect();
    done.map_err(|source| OpenError::Api { stream: leader.stream.clone(), source })?;
    Ok(start.elapsed())
}

/// All commits, one message each, dealt to so many publishers.
fn deal(traffic: &Traffic, publishers: usize) -> Vec<Vec<Bytes>> {
    let mut lists = vec![Vec::new(); publishers.max(1)];
    let groups = traffic.subjects.values().flatten().filter_map(|bytes| group::decode(bytes).ok());
    let commits = groups.flat_map(|group| group.commits);
    for (number, commit) in commits.enumerate() {
        let count = lists.len();
        if let Some(list) = lists.get_mut(number % count) {
            list.push(commit);
        }
    }
    lists
}
