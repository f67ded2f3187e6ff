//! The writer of a shard: takes it, publishes its groups one after another, and finds out what became of each.
//!
//! Invariants:
//! - one group is in flight; the next one names its hash and expects its sequence;
//! - no failure is guessed about: the first message behind the expected sequence, read from the leader, decides. It is
//!   ours: written. There is none: the same message is published again with the same expectation, which at most one
//!   message can ever meet. It is another one: ours never was and never can be written;
//! - when that cannot be found out in `Options::resolve_max`, the outcome is unknown and the shard is taken again.

use std::{io, sync::Arc, time::Duration};

use async_nats::HeaderMap;
use events_journal::Refusal;
use tracing::{info, warn};

use crate::{
    api::{self, Ack, Stored},
    clock,
    engine::Core,
    error::ApiError,
    feed::Own,
    forming::Forming,
    group::{self, Encoded, Link},
    limit::{PUBLISH_WAIT_FIRST, PUBLISH_WAIT_MAX, RETRY_FIRST, RETRY_MAX},
    shard::{Phase, Shard, Work},
};

/// Where a shard ends.
#[derive(Debug, Clone, Copy)]
struct End {
    /// Stream sequence of its last group; 0 = it has none.
    sequence: u64,
    link: Link,
}

/// What became of a group.
#[derive(Debug)]
enum Outcome {
    /// It has this sequence.
    Written(u64),
    /// Another group took its place.
    ShutOut(Option<Link>),
    /// The servers have no room for it.
    Full(String),
    /// It could not be found out in time.
    Unknown(ApiError),
}

/// Pauses that double up to a bound.
#[derive(Debug)]
pub(crate) struct Pauses(Duration);

impl Pauses {
    pub(crate) const fn new() -> Self {
        Self(RETRY_FIRST)
    }

    pub(crate) async fn pause(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(RETRY_MAX);
    }
}

/// JetStream's words for "no room": the message was refused before it was stored.
const fn is_full(code: u64) -> bool {
    matches!(code, 10002 | 10023 | 10028 | 10047)
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Writer {
    core: Arc<Core>,
    shard: Arc<Shard>,
    end: End,
    /// Groups whose outcome was unknown and which may still arrive, by their links.
    doubtful: Vec<Link>,
    /// The log says that it is not known what became of the last group.
    is_in_doubt: bool,
}

impl Writer {
    pub(crate) const fn new(core: Arc<Core>, shard: Arc<Shard>) -> Self {
        Self { core, shard, end: End { sequence: 0, link: group::START }, doubtful: Vec::new(), is_in_doubt: false }
    }

    pub(crate) async fn run(mut self) {
        let stop = self.core.stop.clone();
        stop.run_until_cancelled(self.write()).await;
    }

    async fn write(&mut self) {
        loop {
            match self.shard.work() {
                Work::Take(takes) => self.take(takes).await,
                Work::Publish(group) => self.publish(group).await,
                Work::Wait => {
                    // A shard that was given back is nobody's concern here.
                    self.doubt(false);
                    self.shard.wake.notified().await;
                }
            }
        }
    }

    fn doubt(&mut self, is_in_doubt: bool) {
        if self.is_in_doubt != is_in_doubt {
            self.is_in_doubt = is_in_doubt;
            self.core.doubt(self.shard.index, is_in_doubt);
        }
    }

    /// Reads where the shard ends from the leader and waits until the replica is there; tries until it is released.
    async fn take(&mut self, takes: u64) {
        let mut start = clock::now();
        let mut pauses = Pauses::new();
        while self.shard.is_taking(takes) {
            match self.core.leader.last(&self.shard.subject).await {
                Ok(last) => {
                    if let Some(end) = self.reach(last).await {
                        self.end = end;
                        self.doubt(false);
                        return self.shard.taken(takes);
                    }
                }
                Err(error) if start.elapsed() >= self.core.options.resolve_max => {
                    warn!(shard = self.shard.index, error = %error, "the end of a shard cannot be read");
                    self.doubt(true);
                    self.shard.refuse_waiting(&Refusal::Unreachable);
                    start = clock::now();
                }
                Err(_) => self.wait_for_leader(start).await,
            }
            pauses.pause().await;
        }
    }

    /// Until the leader answers, but not longer than what began then may take.
    async fn wait_for_leader(&self, start: std::time::Instant) {
        let left = self.core.options.resolve_max.saturating_sub(start.elapsed());
        self.core.leader.wait_for_answer(left).await;
    }

    /// Waits until the replica has this last message of the shard; `None` = the leader that told of it was behind.
    async fn reach(&self, last: Option<Stored>) -> Option<End> {
        let sequence = last.as_ref().map_or(0, |last| last.sequence);
        self.core.seen_head(sequence);
        self.core.wait_applied(sequence).await;
        let link = match (last, self.core.tail(&self.shard.subject)) {
            (_, Some((applied, link))) => (applied == sequence).then_some(link),
            (None, None) => Some(group::START),
            // The replica had it before this engine was opened.
            (Some(last), None) => group::decode(&last.payload).ok().map(|decoded| decoded.link),
        };
        link.map(|link| End { sequence, link })
    }

    async fn publish(&mut self, mut forming: Forming) {
        let applied = self.core.applied.subscribe();
        if forming.commits.is_empty() {
            // Only answers, which come true with what was sent before.
            return self.shard.sent(forming, self.end.sequence, &applied);
        }
        let members = std::mem::take(&mut forming.commits);
        let commits = members.len();
        let group = group::encode(self.shard.index, &self.end.link, members);
        let shard = self.shard.index;
        match self.resolve(&group).await {
            Outcome::Written(sequence) => {
                let before = std::mem::replace(&mut self.end, End { sequence, link: group.link });
                // What expected the sequence before this one cannot arrive any more.
                self.doubtful.clear();
                self.core.seen_head(sequence);
                self.shard.sent(forming, sequence, &applied);
                let subject = self.shard.subject.clone();
                self.core.offer(Own { sequence, subject, shard, group, before: before.link, commits });
            }
            Outcome::ShutOut(link) if link.is_some_and(|link| self.doubtful.contains(&link)) => {
                info!(shard, "a group of unknown outcome arrived late, the shard is taken again");
                self.shard.refused(forming, &Refusal::Unreachable, Phase::Taking);
            }
            Outcome::ShutOut(_) => {
                warn!(shard, "another node published to a shard of this one, which is fenced");
                self.shard.refused(forming, &Refusal::Fenced, Phase::Lost);
            }
            Outcome::Full(reason) => {
                warn!(shard, reason, "the log's servers have no room");
                self.shard.refused(forming, &Refusal::DiskFull, Phase::Taking);
            }
            Outcome::Unknown(error) => {
                warn!(shard, error = %error, "the outcome of a group is unknown, the shard is taken again");
                self.doubtful.push(group.link);
                self.doubt(true);
                self.shard.unknown(forming, io::Error::other(error), &Refusal::Unreachable);
            }
        }
    }

    async fn send(&self, group: &Encoded, wait: Duration) -> Result<Ack, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", self.end.sequence.to_string());
        headers.insert("Nats-Msg-Id", group.link.message_id(self.shard.index));
        let payload = (group.bytes.clone(), Some(headers));
        let mut connects = self.core.connects.clone();
        connects.mark_unchanged();
        tokio::select! {
            answer = api::request(&self.core.leader.client, &self.shard.subject, payload, wait) => answer,
            // The answer, if there was one, went to the connection before.
            Ok(()) = connects.changed() => Err(ApiError::TimedOut { subject: self.shard.subject.clone() }),
        }
    }

    /// Publishes until it is known what became of the group.
    async fn resolve(&self, group: &Encoded) -> Outcome {
        let start = clock::now();
        let mut wait = PUBLISH_WAIT_FIRST;
        let mut pauses = Pauses::new();
        // Whether an attempt may have left the group on its way.
        let mut is_certain = true;
        loop {
            let error = match self.send(group, wait).await {
                Ok(ack) if ack.stream == self.core.leader.stream && !ack.duplicate => return Outcome::Written(ack.seq),
                Ok(ack) => ApiError::Broken { subject: self.shard.subject.clone(), reason: format!("{ack:?}") },
                Err(ApiError::Refused { code, description, .. }) if is_certain && is_full(code) => {
                    return Outcome::Full(description);
                }
                Err(error) => error,
            };
            is_certain &= error.code().is_some();
            match self.look(group, start).await {
                Ok(Some(outcome)) => return outcome,
                Ok(None) if start.elapsed() < self.core.options.resolve_max => {}
                Ok(None) => return Outcome::Unknown(error),
                Err(error) => return Outcome::Unknown(error),
            }
            pauses.pause().await;
            wait = (wait * 2).min(PUBLISH_WAIT_MAX);
        }
    }

    /// Looks what follows the expected sequence; `None` = nothing does at the moment.
    async fn look(&self, group: &Encoded, start: std::time::Instant) -> Result<Option<Outcome>, ApiError> {
        let mut pauses = Pauses::new();
        loop {
            match self.core.leader.after(&self.shard.subject, self.end.sequence).await {
                Ok(None) => return Ok(None),
                Ok(Some(next)) => {
                    let link = group::decode(&next.payload).ok().map(|decoded| decoded.link);
                    let is_ours = link == Some(group.link);
                    let outcome = if is_ours { Outcome::Written(next.sequence) } else { Outcome::ShutOut(link) };
                    return Ok(Some(outcome));
                }
                Err(error) if start.elapsed() >= self.core.options.resolve_max => return Err(error),
                Err(_) => {
                    self.wait_for_leader(start).await;
                    pauses.pause().await;
                }
            }
        }
    }
}
