//! What was taken from the stream and is on its way into the replica: the one place where messages get their order.
//!
//! Messages come from two sides: from the follower's consumer, and from this node's own writers, which know a message and
//! its sequence as soon as the stream has acknowledged it, earlier than any consumer could deliver it.
//!
//! Invariants: see `follow`; whichever side brings a message, it is taken only behind the one before it, once, and checked
//! in the same way.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use events_journal::{AppendError, Appended, Entry, Health, Receipt, Refusal};
use events_model::Position;
use tokio::sync::watch;
use tracing::info;

use crate::{
    engine::Core,
    error::FollowError,
    group::{Decoded, Encoded, Link, START},
    limit::{AHEAD_BYTES_MAX, AHEAD_COMMITS_MAX, EARLY_BYTES_MAX, OFFER_INLINE_COMMITS_MAX},
    resume::Resume,
    subject::shard_of_subject,
};

/// A message of the stream, decoded.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) sequence: u64,
    pub(crate) subject: String,
    pub(crate) group: Decoded,
    /// Of its payload.
    pub(crate) bytes: usize,
}

/// A message on its way into the replica.
#[derive(Debug)]
struct Ahead {
    sequence: u64,
    subject: String,
    link: Link,
    commits: Vec<Bytes>,
    bytes: usize,
    receipts: Vec<Receipt>,
    answers: Vec<Result<Appended, AppendError>>,
}

impl Ahead {
    /// Hands the commits to the replica, without waiting.
    ///
    /// A replica that has refused some and accepts again would put what comes later before them; so nothing is handed
    /// over once its health has changed. Were it to fail and to recover between this look and the call, positions would
    /// differ, which is seen when they are checked.
    fn submit(&mut self, core: &Core, health: &watch::Receiver<Health>) {
        self.answers.clear();
        let refused = |refusal| Receipt::ready(Err(AppendError::Refused(refusal)));
        let submit = |commit: &Bytes| match health.has_changed() {
            Ok(false) => core.replica.append_recorded(commit.clone()),
            Ok(true) => refused(Refusal::Disk("the replica failed before".to_owned())),
            // Its writer is gone for good.
            Err(_) => refused(Refusal::Closed),
        };
        self.receipts = self.commits.iter().map(submit).collect();
    }

    /// Ready when every commit has its answer.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while let Some(receipt) = self.receipts.get_mut(self.answers.len()) {
            let answer = ready!(Pin::new(receipt).poll(context));
            self.answers.push(answer);
        }
        Poll::Ready(())
    }
}

/// Why following pauses or ends.
#[derive(Debug)]
pub(crate) enum Stop {
    /// A new consumer may help.
    Again(&'static str),
    /// The replica accepts nothing at the moment.
    Replica,
    Failed(FollowError),
}

/// A message that this node published, with the place that the stream gave it.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) sequence: u64,
    pub(crate) subject: String,
    pub(crate) shard: u32,
    pub(crate) group: Encoded,
    /// The end of the chain before it.
    pub(crate) before: Link,
    pub(crate) commits: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Feed {
    /// Of the replica; seen when the commits that are on their way were handed over.
    health: watch::Receiver<Health>,
    /// The last message that was taken from the stream.
    pub(crate) received: u64,
    /// The end of each chain, as taken.
    chains: HashMap<String, Link>,
    /// Whether a subject that is not in `chains` is new.
    pub(crate) is_complete: bool,
    ahead: VecDeque<Ahead>,
    ahead_commits: usize,
    ahead_bytes: usize,
    /// Own messages behind one that is not there yet.
    early: BTreeMap<u64, Own>,
    early_bytes: usize,
    /// The replica refuses: nothing is handed to it.
    is_held: bool,
    /// Why an own message could not be taken.
    failed: Option<FollowError>,
    /// Position of the last commit that was applied, once known.
    pub(crate) position: Option<u64>,
    /// Where the stream ended when the engine was opened; the replica must end there too when it is reached.
    opened_at: Option<u64>,
}

impl Feed {
    pub(crate) fn new(resume: &Resume, last: u64, health: watch::Receiver<Health>) -> Self {
        Self {
            health,
            received: resume.sequence,
            chains: resume.tails.iter().map(|(subject, (_, link))| (subject.clone(), *link)).collect(),
            is_complete: resume.is_complete,
            ahead: VecDeque::new(),
            ahead_commits: 0,
            ahead_bytes: 0,
            early: BTreeMap::new(),
            early_bytes: 0,
            is_held: false,
            failed: None,
            position: resume.position,
            opened_at: Some(last),
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.ahead_commits < AHEAD_COMMITS_MAX && self.ahead_bytes < AHEAD_BYTES_MAX
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ahead.is_empty()
    }

    /// Ready when the first message on its way has all its answers.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.ahead.front_mut().map_or(Poll::Pending, |message| message.poll(context))
    }

    /// Keeps an own message that the stream has acknowledged until its turn comes; a small one whose turn it is is taken
    /// at once, a large one is left to the follower: the writer has the next group to publish. One that finds no place is
    /// brought by the consumer.
    pub(crate) fn offer(&mut self, core: &Core, own: Own) {
        let bytes = own.group.bytes.len();
        if own.sequence > self.received && self.early_bytes + bytes <= EARLY_BYTES_MAX {
            let is_small = own.commits <= OFFER_INLINE_COMMITS_MAX;
            self.early_bytes += bytes;
            if let Some(before) = self.early.insert(own.sequence, own) {
                self.early_bytes -= before.group.bytes.len();
            }
            if is_small {
                self.take_early(core);
            }
        }
    }

    /// Takes own messages whose turn has come.
    pub(crate) fn take_early(&mut self, core: &Core) {
        loop {
            let may_take = !self.is_held && self.failed.is_none() && self.has_room();
            let Some(first) = self.early.first_entry() else { return };
            let sequence = *first.key();
            let is_next = sequence == self.received + 1;
            if sequence > self.received && !(is_next && may_take) {
                return;
            }
            let own = first.remove();
            let bytes = own.group.bytes.len();
            self.early_bytes -= bytes;
            // What cannot be decoded, though it was encoded here, is brought by the consumer and refused there.
            if is_next && let Ok(group) = own.group.decoded(own.shard, &own.before) {
                let taken = Taken { sequence, subject: own.subject, group, bytes };
                self.failed = self.accept(core, taken).err();
            }
        }
    }

    /// Whether an own message could not be taken.
    pub(crate) fn check(&mut self) -> Result<(), Stop> {
        self.failed.take().map_or(Ok(()), |failed| Err(Stop::Failed(failed)))
    }

    /// The replica refuses.
    pub(crate) const fn hold(&mut self) {
        self.is_held = true;
    }

    /// The replica accepts again, as `health` has seen: hands over anew what is on its way.
    pub(crate) fn go_on(&mut self, core: &Core, health: watch::Receiver<Health>) {
        self.is_held = false;
        self.health = health;
        let health = &self.health;
        self.ahead.iter_mut().for_each(|message| message.submit(core, health));
        self.take_early(core);
    }

    /// Checks a message and hands it to the replica.
    pub(crate) fn accept(&mut self, core: &Core, taken: Taken) -> Result<(), FollowError> {
        let Taken { sequence, subject, group, bytes } = taken;
        if shard_of_subject(&subject) != Some(group.shard) {
            let reason = format!("it says that it is of shard {}", group.shard);
            return Err(FollowError::Unreadable { sequence, subject, reason });
        }
        let before = self.chains.get(&subject).copied().or_else(|| self.is_complete.then_some(START));
        if let Some(reason) = before.and_then(|before| group.broken_chain(&before)) {
            return Err(FollowError::Chain { subject, sequence, reason });
        }
        self.chains.insert(subject.clone(), group.link);
        self.received = sequence;
        self.ahead_commits += group.commits.len();
        self.ahead_bytes += bytes;
        let (link, commits) = (group.link, group.commits);
        let (receipts, answers) = (Vec::new(), Vec::with_capacity(commits.len()));
        let mut message = Ahead { sequence, subject, link, commits, bytes, receipts, answers };
        message.submit(core, &self.health);
        self.ahead.push_back(message);
        Ok(())
    }

    /// The first message on its way has all its answers.
    pub(crate) fn settle(&mut self, core: &Core) -> Result<(), Stop> {
        let Some(message) = self.ahead.front() else { return Ok(()) };
        let mut position = self.position;
        for (commit, answer) in message.commits.iter().zip(&message.answers) {
            position = Some(place(core, message, commit, answer, position)?);
        }
        self.position = position;
        let Some(message) = self.ahead.pop_front() else { return Ok(()) };
        self.ahead_commits -= message.commits.len();
        self.ahead_bytes -= message.bytes;
        let first = position.map(|last| last.saturating_sub(message.commits.len() as u64).saturating_add(1));
        core.applied(message.sequence, message.subject, message.link, first.map(Position));
        // There is room for one more.
        self.take_early(core);
        self.check_end(core).map_err(Stop::Failed)
    }

    /// At the place where the stream ended when it was opened, the replica must hold nothing more.
    pub(crate) fn check_end(&mut self, core: &Core) -> Result<(), FollowError> {
        if !self.ahead.is_empty() || self.opened_at.is_none_or(|last| self.received < last) {
            return Ok(());
        }
        self.opened_at = None;
        info!(sequence = self.received, "the replica has caught up with the stream");
        let end = core.replica.head_position();
        match self.position {
            Some(position) if Position(position) < end => {
                Err(FollowError::ForeignReplica { commits: end.0.saturating_sub(position) })
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Where a commit was placed, if that is where it belongs.
fn place(
    core: &Core,
    message: &Ahead,
    commit: &Bytes,
    answer: &Result<Appended, AppendError>,
    before: Option<u64>,
) -> Result<u64, Stop> {
    let (sequence, subject) = (message.sequence, message.subject.clone());
    let appended = match answer {
        Ok(appended) => appended,
        Err(AppendError::Busy { .. } | AppendError::Unknown(_)) => return Err(Stop::Replica),
        Err(AppendError::Refused(refusal)) if *refusal != Refusal::Closed => return Err(Stop::Replica),
        Err(source) => {
            let source = source.clone();
            return Err(Stop::Failed(FollowError::Refused { sequence, subject, source }));
        }
    };
    let position = appended.position.0;
    let expected = before.map_or(position, |before| before + 1);
    if position != expected {
        let reason = format!("a commit lies at position {position}, not at {expected}");
        return Err(Stop::Failed(FollowError::Diverged { sequence, subject, reason }));
    }
    if appended.duplicate && !is_same(core, commit).map_err(Stop::Failed)? {
        let reason = format!("position {position} holds other bytes");
        return Err(Stop::Failed(FollowError::Diverged { sequence, subject, reason }));
    }
    Ok(position)
}

fn is_same(core: &Core, commit: &Bytes) -> Result<bool, FollowError> {
    // The replica has read it before.
    let Ok(entry) = Entry::read(commit) else { return Ok(false) };
    let held = core.replica.find_commit(&entry.stream, &entry.commit_id).map_err(FollowError::Replica)?;
    Ok(held.is_some_and(|held| held.bytes == *commit))
}
