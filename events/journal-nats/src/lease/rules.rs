//! The rules of leases and shard owners, without clock, network or tasks: inputs come in with their time, actions go
//! out.
//!
//! Why no two nodes decide for one shard. Every write names the revision it replaces. A lease is renewed by replacing
//! its own last revision, and counts from the moment *before* the renewal was sent. It ends by a write too: a node that
//! has seen one revision for a whole lease by its own clock replaces it by `Expired`, which fails if it was renewed, and
//! makes every later renewal fail if not. Since the revision was sent before it was seen, its owner has stopped by
//! then; the margin is for clocks that run at different speeds. Only then are the shards of that lease taken, again by
//! replacing the revision seen. The clocks of the servers play no part, except that a lease that is not there at all
//! was not renewed for `GONE_KEPT`.
//!
//! A lease that has run out and was not ended is only suspended: the node decides nothing, keeps its shards, and goes on
//! with them in the same epoch when its renewal is acknowledged at last, which proves that nobody could take them. So an
//! election among the servers that outlasts the leases costs no taking of shards after it.
//!
//! A lease that was seen to be ended is ended for ever, so the shards taken under it are taken at once, without reading
//! on; that a lease is not there, or is another one, is believed only of a copy whose end was reached.
//!
//! A lease counts as silent from when its last revision was seen, so whoever sees late takes over late. Many shards
//! change hands at once and a renewal may lie behind all of them: several questions are asked at a time, by a rule that
//! keeps the order and the meaning of the end (`together`).
//!
//! Whatever an unanswered write did is found by reading to the end of the bucket; nothing is owned before a write of
//! this node's own was acknowledged.

mod message;
mod shards;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod steps;

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::RwLock;

pub(crate) use self::message::{Action, Failure, Found, Input, Profile, Purpose, Standing, Value, Write, together};
use super::{
    limit::{GONE_KEPT, MARGIN_PART, NODES_MAX, QUESTIONS_MAX, RENEWALS_PER_TTL, RETRY_PART},
    record::{Key, NodeRecord, NodeState},
    table::{Mine, Nanos, NodeEntry, View},
};

/// After this time a node that is gone is not shown any more.
const GONE_FORGOTTEN: Nanos = GONE_KEPT.as_secs() * 2 * 1_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Local {
    /// Not this node's, and nothing under way.
    Idle,
    Taking,
    Held {
        epoch: u64,
        revision: u64,
    },
    /// Waits until nobody decides any more; then it is given back, or only forgotten.
    Losing {
        release: bool,
    },
    Releasing,
}

#[derive(Debug)]
struct Lease {
    /// The revision that the next renewal replaces, while there is a lease.
    revision: Option<u64>,
    term: u64,
    /// State as last acknowledged.
    written: NodeState,
    in_flight: bool,
    next_at: Nanos,
    /// No write before, after one that failed.
    retry_at: Nanos,
    deadline: Nanos,
    /// A revision that the server says is not the last one.
    refused: Option<u64>,
}

/// One node's part in the leases of a region.
#[derive(Debug)]
pub(crate) struct Core {
    profile: Profile,
    mine: Arc<Mine>,
    view: Arc<RwLock<View>>,
    lease: Lease,
    intent: NodeState,
    standing: Standing,
    locals: Vec<Local>,
    /// Messages up to here were read.
    position: u64,
    /// Whether the end was reached by the last poll.
    current: bool,
    /// A shard was not as the copy shows it: none is taken before the end is reached.
    misled: bool,
    polling: bool,
    /// To ask at once with the next poll: more while that finds more.
    questions: u64,
    hinted: bool,
    poll_at: Nanos,
    burying: BTreeSet<String>,
    taking: usize,
    /// Shards that are being given back: those that wait for the acknowledgement too.
    handing_over: usize,
    changed: bool,
    hint_at: Nanos,
    /// Owners that the shards should have, for these live nodes.
    desired_for: Vec<String>,
    desired: Vec<Option<usize>>,
}

impl Core {
    pub(crate) fn new(profile: Profile, mine: Arc<Mine>, view: Arc<RwLock<View>>) -> Self {
        let shards = profile.shards as usize;
        let lease = Lease {
            revision: None,
            term: 1,
            written: NodeState::Left,
            in_flight: false,
            next_at: 0,
            retry_at: 0,
            deadline: 0,
            refused: None,
        };
        Self {
            profile,
            mine,
            view,
            lease,
            intent: NodeState::Live,
            standing: Standing::Waiting,
            locals: vec![Local::Idle; shards],
            position: 0,
            current: false,
            misled: false,
            polling: false,
            questions: 1,
            hinted: false,
            poll_at: 0,
            burying: BTreeSet::new(),
            taking: 0,
            handing_over: 0,
            changed: false,
            hint_at: 0,
            desired_for: Vec::new(),
            desired: vec![None; shards],
        }
    }

    pub(crate) const fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Shards that are this node's, or that it has not given back yet.
    pub(crate) fn unreleased(&self) -> usize {
        let view = self.view.read();
        let shards = self.locals.iter().zip(0..);
        let held = |(local, shard): &(&Local, u32)| **local != Local::Idle || self.owns(&view, *shard);
        shards.filter(held).count()
    }

    /// Takes an input and adds what is to be done.
    pub(crate) fn handle(&mut self, now: Nanos, input: Input, out: &mut Vec<Action>) {
        match input {
            Input::Tick => {}
            Input::Hint => self.hinted = true,
            Input::Polled(result) => self.polled(now, result, out),
            Input::Wrote(write, result) => self.wrote(now, write, result, out),
            Input::Acknowledged { shard } => self.acknowledged(shard, out),
            Input::Drain => self.intend(NodeState::Draining),
            Input::Resume => self.intend(NodeState::Live),
            Input::Leave => self.intend(NodeState::Left),
        }
        self.keep_lease(now, out);
        if self.current {
            self.bury(now, out);
        }
        self.assign(now, out);
        self.hint(now, out);
        self.poll(now, out);
    }

    fn intend(&mut self, state: NodeState) {
        if self.intent != NodeState::Left {
            self.intent = state;
        }
    }

    const fn holds(&self, now: Nanos) -> bool {
        self.lease.revision.is_some() && now < self.lease.deadline
    }

    // Reading.

    fn poll(&mut self, now: Nanos, out: &mut Vec<Action>) {
        if !self.polling && (self.hinted || now >= self.poll_at) {
            self.polling = true;
            self.hinted = false;
            out.push(Action::Poll { after: self.position, questions: self.questions });
        }
    }

    fn polled(&mut self, now: Nanos, result: Result<Vec<Found>, Failure>, out: &mut Vec<Action>) {
        self.polling = false;
        match result {
            Ok(all) if !all.is_empty() => {
                self.current = false;
                self.poll_at = now;
                // Where messages lie far apart, all questions find the same one.
                let is_dense = all.len() as u64 * 2 > self.questions;
                let questions = if is_dense { self.questions * 2 } else { self.questions / 2 };
                self.questions = questions.clamp(1, QUESTIONS_MAX);
                for found in all {
                    self.position = self.position.max(found.revision);
                    self.apply(now, found, out);
                }
            }
            // Something has happened since it was asked for.
            Ok(_) if self.hinted => {}
            Ok(_) => {
                self.questions = 1;
                self.current = true;
                self.misled = false;
                self.poll_at = now.saturating_add(self.profile.poll_every);
                self.check_lease(now, out);
            }
            Err(Failure::Revision | Failure::Unknown) => {
                self.current = false;
                self.poll_at = now.saturating_add(self.profile.ttl / RETRY_PART);
            }
        }
    }

    /// Something happened that only reading to the end can tell.
    fn look(&mut self) {
        self.current = false;
        self.hinted = true;
    }

    fn apply(&mut self, now: Nanos, found: Found, out: &mut Vec<Action>) {
        match (found.key, found.value) {
            (Key::Node(name), Some(Value::Node(record))) => {
                self.view.write().put_node(&name, found.revision, record.clone(), now);
                if name == self.profile.node {
                    self.saw_own_lease(found.revision, &record, out);
                }
            }
            (Key::Shard(shard), Some(Value::Shard(record))) => {
                if self.view.write().put_shard(shard, found.revision, record) {
                    self.saw_shard(shard, found.revision, out);
                }
            }
            (Key::Node(_) | Key::Shard(_) | Key::Meta | Key::Other, Some(_) | None) => {}
        }
    }

    fn saw_shard(&mut self, shard: u32, revision: u64, out: &mut Vec<Action>) {
        if let Some(Local::Held { revision: held, .. }) = self.locals.get(shard as usize)
            && revision > *held
        {
            self.lose(shard, false, out);
        }
    }

    // This node's lease.

    fn is_own(&self, record: &NodeRecord) -> bool {
        record.incarnation == self.profile.incarnation && record.term == self.lease.term && !record.state.is_gone()
    }

    fn saw_own_lease(&mut self, revision: u64, record: &NodeRecord, out: &mut Vec<Action>) {
        let Some(held) = self.lease.revision else { return };
        if revision <= held {
            return;
        }
        if self.is_own(record) {
            // A renewal whose answer was lost. The deadline stays what the last answer made it.
            self.lease.revision = Some(revision);
        } else {
            self.end_lease(out);
        }
    }

    /// At the end of the bucket: a lease that should be there and is not, or that the server refuses to renew though
    /// nothing replaced it, means that the bucket is another one now. Everything is read again.
    fn check_lease(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let refused = self.lease.refused.take();
        if refused.is_some() && refused == self.lease.revision {
            self.end_lease(out);
            // The other nodes may not have noticed, and nothing there says what they own: their leases run out first.
            self.lease.retry_at = now.saturating_add(self.profile.ttl);
            self.position = 0;
            *self.view.write() = View::new(self.profile.shards);
            self.look();
        }
    }

    fn end_lease(&mut self, out: &mut Vec<Action>) {
        self.lose_all(out);
        self.lease.revision = None;
        self.lease.refused = None;
        self.lease.term = self.lease.term.saturating_add(1);
        self.lease.deadline = 0;
        self.lease.next_at = 0;
        self.mine.set_deadline(0);
        if !matches!(self.standing, Standing::Left) {
            self.standing = Standing::Waiting;
        }
    }

    fn keep_lease(&mut self, now: Nanos, out: &mut Vec<Action>) {
        if self.lease.in_flight || self.lease.refused.is_some() || now < self.lease.retry_at {
            return;
        }
        if self.intent == NodeState::Left && self.lease.revision.is_none() {
            self.standing = Standing::Left;
        }
        if self.standing == Standing::Left {
            return;
        }
        let expected = match self.lease.revision {
            Some(held) => (self.lease.written != self.lease_state() || now >= self.lease.next_at).then_some(held),
            None => self.may_begin(now),
        };
        let Some(expected) = expected else { return };
        self.lease.in_flight = true;
        let record = NodeRecord {
            incarnation: self.profile.incarnation,
            term: self.lease.term,
            state: self.lease_state(),
            address: self.profile.address.clone(),
            version: self.profile.version.clone(),
            started_at_us: self.profile.started_at_us,
        };
        let key = Key::Node(self.profile.node.clone());
        let purpose = Purpose::Lease { sent_at: now };
        out.push(Action::Write(Write { purpose, key, expected, value: Value::Node(record) }));
    }

    /// The state that the lease should show: a node has left only when it owns nothing.
    fn lease_state(&self) -> NodeState {
        match self.intent {
            NodeState::Left if self.current && self.unreleased() == 0 => NodeState::Left,
            NodeState::Left | NodeState::Draining => NodeState::Draining,
            NodeState::Live | NodeState::Expired => NodeState::Live,
        }
    }

    /// The revision that a first lease replaces, if there may be one.
    fn may_begin(&mut self, now: Nanos) -> Option<u64> {
        if !self.current {
            return None;
        }
        let view = Arc::clone(&self.view);
        let view = view.read();
        let nodes = view.nodes.iter().filter(|(name, entry)| **name != self.profile.node && !entry.is_gone()).count();
        if nodes >= NODES_MAX {
            self.standing = Standing::TooManyNodes { nodes };
            return None;
        }
        let Some(entry) = view.nodes.get(&self.profile.node) else { return Some(0) };
        if entry.is_gone() {
            return Some(entry.revision);
        }
        if entry.record.incarnation == self.profile.incarnation {
            // An earlier try whose answer was lost: a later term ends it.
            self.lease.term = self.lease.term.max(entry.record.term.saturating_add(1));
            return Some(entry.revision);
        }
        let is_renewed = entry.renewed && now < entry.seen_at.saturating_add(self.profile.ttl);
        let address = || entry.record.address.clone();
        self.standing = if is_renewed { Standing::NameTaken { address: address() } } else { Standing::Waiting };
        None
    }

    fn wrote_lease(
        &mut self,
        now: Nanos,
        sent_at: Nanos,
        (write, result): (Write, Result<u64, Failure>),
        out: &mut Vec<Action>,
    ) {
        self.lease.in_flight = false;
        let Value::Node(record) = write.value else { return };
        match result {
            Ok(revision) => {
                let view = Arc::clone(&self.view);
                let mut view = view.write();
                let newer = view.nodes.get(&self.profile.node).is_some_and(|entry| entry.revision > revision);
                if newer || record.term != self.lease.term {
                    drop(view);
                    return self.look();
                }
                self.changed |= self.lease.written != record.state || self.lease.revision.is_none();
                self.lease.written = record.state;
                let was_blind = !self.holds(now);
                view.put_node(&self.profile.node, revision, record, now);
                if was_blind {
                    self.mine.count_gap();
                    // Nobody's renewals were seen for a while: everybody gets a whole lease to show one.
                    view.nodes.values_mut().for_each(|entry| entry.seen_at = now);
                }
                drop(view);
                self.extend(sent_at, revision, out);
            }
            Err(failure) => {
                self.lease.refused = self.lease.revision.filter(|_| failure == Failure::Revision);
                self.lease.retry_at = now.saturating_add(self.profile.ttl / RETRY_PART);
                self.look();
            }
        }
    }

    fn extend(&mut self, sent_at: Nanos, revision: u64, out: &mut Vec<Action>) {
        let ttl = self.profile.ttl;
        if self.lease.written == NodeState::Left {
            self.end_lease(out);
            self.standing = Standing::Left;
            return;
        }
        self.lease.revision = Some(revision);
        self.lease.refused = None;
        self.lease.next_at = sent_at.saturating_add(ttl / RENEWALS_PER_TTL);
        self.lease.deadline = sent_at.saturating_add(ttl - ttl / MARGIN_PART);
        self.mine.set_deadline(self.lease.deadline);
        self.standing = Standing::Held;
    }

    // Other nodes' leases.

    /// Ends the leases that were not renewed for a whole lease.
    fn bury(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let holds = self.holds(now);
        let view = Arc::clone(&self.view);
        // Longer than the servers keep them.
        let forgotten = |entry: &NodeEntry| entry.is_gone() && now >= entry.seen_at.saturating_add(GONE_FORGOTTEN);
        if view.read().nodes.values().any(forgotten) {
            view.write().nodes.retain(|_, entry| !forgotten(entry));
        }
        for (name, entry) in &view.read().nodes {
            let is_mine = *name == self.profile.node;
            let may = if is_mine { self.lease.revision.is_none() && !self.is_own(&entry.record) } else { holds };
            let silent = now >= entry.seen_at.saturating_add(self.profile.ttl);
            if may && silent && !entry.is_gone() && self.burying.insert(name.clone()) {
                let record = NodeRecord { state: NodeState::Expired, ..entry.record.clone() };
                let purpose = Purpose::Bury { node: name.clone() };
                let (key, expected) = (Key::Node(name.clone()), entry.revision);
                out.push(Action::Write(Write { purpose, key, expected, value: Value::Node(record) }));
            }
        }
    }

    fn wrote(&mut self, now: Nanos, write: Write, result: Result<u64, Failure>, out: &mut Vec<Action>) {
        match write.purpose.clone() {
            Purpose::Lease { sent_at } => self.wrote_lease(now, sent_at, (write, result), out),
            Purpose::Bury { node } => {
                self.burying.remove(&node);
                match (result, write.value) {
                    (Ok(revision), Value::Node(record)) => {
                        self.view.write().put_node(&node, revision, record, now);
                        self.changed = true;
                    }
                    (Ok(_) | Err(Failure::Revision | Failure::Unknown), _) => self.look(),
                }
            }
            Purpose::Take { shard } => self.took(now, shard, write.value, result, out),
            Purpose::Release { shard } => self.released(shard, write.value, result),
        }
    }
}
