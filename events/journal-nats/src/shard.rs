//! One shard as callers see it: appends are judged when they are called and put into the next group.
//!
//! An append is judged against the replica and everything that is on its way there: groups that wait to be published,
//! the one that is being published, and those that the stream has but the replica does not show yet.
//!
//! Invariants: the order of calls is the order of the shard; a commit that the replica does not show yet is in the
//! overlay; whoever is answered on the strength of a group is answered after the replica shows it; what is
//! answered `NotWritten` was in no group that was ever sent, or in one that another owner's group shut out; whoever takes
//! the shard gets it only after its end was read from the leader since.

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::Arc,
};

use events_journal::{AppendError, Refusal, Replica};
use events_model::{CommitId, Position, StreamId, Version};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::{
    forming::{Answer, Forming, Member, Waiting, find},
    limit::{GROUP_OVERHEAD_BYTES, MEMBER_OVERHEAD_BYTES},
};

/// What a node may do with a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It is not this node's.
    Idle,
    /// Its end is being read from the leader, and the replica brought there; appends wait.
    Taking,
    /// This node decides for it.
    Owned,
    /// What was appended is brought to its end, nothing more is accepted.
    Releasing,
    /// Another node published to it: it must be taken again before this node may decide for it.
    Lost,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Counts how often it was begun to be taken: what was read for an earlier time says nothing about this one.
    takes: u64,
    /// Set for good: the engine was closed or its follower stopped.
    ended: Option<Refusal>,
    /// Nobody brings anything to its end any more.
    is_over: bool,
    /// Come while the shard is being taken.
    waiting: VecDeque<Waiting>,
    /// Groups to be published; the last one takes what comes.
    forming: VecDeque<Forming>,
    /// The writer has a group.
    is_flying: bool,
    /// The release does not wait for the replica.
    is_hurried: bool,
    /// Groups that the stream has, by sequence, until the replica shows them.
    sent: VecDeque<(u64, Forming)>,
    serial: u64,
    /// Of everything in `forming`, flying and `sent`: stream heads and commit ids, with the group they come from.
    heads: HashMap<StreamId, (Version, u64)>,
    ids: HashMap<(StreamId, CommitId), u64>,
    has_writer: bool,
}

impl State {
    fn forget(&mut self, group: &Forming) {
        for member in &group.members {
            if self.heads.get(&member.stream).is_some_and(|(_, serial)| *serial == group.serial) {
                self.heads.remove(&member.stream);
            }
            self.ids.remove(&(member.stream.clone(), member.commit_id.clone()));
        }
    }
}

/// What the writer of a shard does next.
#[derive(Debug)]
pub(crate) enum Work {
    /// For the so-many-th time.
    Take(u64),
    Publish(Forming),
    Wait,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) index: u32,
    pub(crate) subject: String,
    /// Whether the first append takes it.
    lazy: bool,
    group_bytes_max: usize,
    replica: Arc<dyn Replica>,
    state: Mutex<State>,
    phase: watch::Sender<Phase>,
    pub(crate) wake: Notify,
}

impl Shard {
    pub(crate) fn new(
        (index, subject): (u32, String),
        lazy: bool,
        message_bytes_max: usize,
        replica: Arc<dyn Replica>,
    ) -> Self {
        let state = State {
            phase: Phase::Idle,
            takes: 0,
            ended: None,
            is_over: false,
            waiting: VecDeque::new(),
            forming: VecDeque::new(),
            is_flying: false,
            is_hurried: false,
            sent: VecDeque::new(),
            serial: 0,
            heads: HashMap::new(),
            ids: HashMap::new(),
            has_writer: false,
        };
        Self {
            index,
            subject,
            lazy,
            group_bytes_max: message_bytes_max.saturating_sub(GROUP_OVERHEAD_BYTES),
            replica,
            state: Mutex::new(state),
            phase: watch::Sender::new(Phase::Idle),
            wake: Notify::new(),
        }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    fn set_phase(&self, state: &mut State, phase: Phase) {
        state.phase = phase;
        state.is_hurried = false;
        self.phase.send_if_modified(|shown| std::mem::replace(shown, phase) != phase);
    }

    /// Takes a place in the order, or answers at once; `true` = the shard needs a writer.
    pub(crate) fn push(&self, one: Waiting) -> bool {
        let mut state = self.state.lock();
        if let Some(refusal) = &state.ended {
            let refused = Err(AppendError::Refused(refusal.clone()));
            drop(state);
            one.ticket.answer(refused);
            return false;
        }
        match state.phase {
            Phase::Owned => {
                self.judge(&mut state, one);
                drop(state);
                self.wake.notify_one();
                false
            }
            Phase::Taking => {
                state.waiting.push_back(one);
                false
            }
            Phase::Idle if self.lazy => {
                state.waiting.push_back(one);
                self.start_taking(&mut state)
            }
            Phase::Idle | Phase::Releasing | Phase::Lost => {
                drop(state);
                one.ticket.answer(Err(AppendError::Refused(Refusal::Fenced)));
                false
            }
        }
    }

    fn start_taking(&self, state: &mut State) -> bool {
        state.takes += 1;
        self.set_phase(state, Phase::Taking);
        self.wake.notify_one();
        !std::mem::replace(&mut state.has_writer, true)
    }

    /// Begins to take the shard, whatever is known of it: its end is read anew. `true` = it needs a writer.
    pub(crate) fn begin_take(&self) -> bool {
        let mut state = self.state.lock();
        state.ended.is_none() && self.start_taking(&mut state)
    }

    /// Accepts nothing more; the shard is idle once everything that was accepted is answered.
    pub(crate) fn begin_release(&self) {
        let mut state = self.state.lock();
        match state.phase {
            Phase::Owned | Phase::Taking => {
                let waiting = std::mem::take(&mut state.waiting);
                self.set_phase(&mut state, Phase::Releasing);
                self.finish_release(&mut state);
                drop(state);
                refuse_all(waiting, &Refusal::Fenced);
            }
            Phase::Lost => self.set_phase(&mut state, Phase::Idle),
            Phase::Idle | Phase::Releasing => {}
        }
        // A writer that takes the shard looks whether it still should.
        self.wake.notify_one();
    }

    fn finish_release(&self, state: &mut State) {
        let is_written = state.forming.is_empty() && !state.is_flying;
        if state.phase == Phase::Releasing && is_written && (state.sent.is_empty() || state.is_hurried) {
            // What the stream has and the replica does not get is answered `Unknown`; to be taken again, the replica
            // must reach it first.
            for (_, group) in std::mem::take(&mut state.sent) {
                state.forget(&group);
            }
            self.set_phase(state, Phase::Idle);
        }
    }

    /// The replica accepts nothing: a release that is under way waits for the stream alone.
    pub(crate) fn hurry(&self) {
        let mut state = self.state.lock();
        if state.phase == Phase::Releasing {
            state.is_hurried = true;
            self.finish_release(&mut state);
        }
    }

    /// Puts an append into the group that is forming, or answers it if what the replica holds decides.
    fn judge(&self, state: &mut State, one: Waiting) {
        let Waiting { entry, bytes, ticket } = one;
        let key = (entry.stream, entry.commit_id);
        if state.ids.contains_key(&key) {
            return self.group(state, 0).answers.push((ticket, Answer::Repeat(key.0, key.1)));
        }
        let durable = match self.replica.head(&key.0) {
            Ok(durable) => durable,
            Err(error) => return ticket.answer(Err(AppendError::Refused(Refusal::Disk(error.to_string())))),
        };
        if durable > Version(0) {
            match find(&*self.replica, &key.0, &key.1) {
                Ok(None) => {}
                Ok(Some(first)) => return ticket.answer(Ok(first)),
                Err(error) => return ticket.answer(Err(AppendError::Refused(Refusal::Disk(error.to_string())))),
            }
        }
        let on_its_way = state.heads.get(&key.0).map(|(version, _)| *version);
        let (actual, expected) = (on_its_way.unwrap_or(durable), Version(entry.first.0.saturating_sub(1)));
        if actual != expected {
            let conflict = AppendError::Conflict { stream: key.0, expected, actual };
            return match on_its_way {
                Some(_) => self.group(state, 0).answers.push((ticket, Answer::Conflict(conflict))),
                None => ticket.answer(Err(conflict)),
            };
        }
        let last = Version(entry.first.0.saturating_add(entry.events).saturating_sub(1));
        let group = self.group(state, bytes.len() + MEMBER_OVERHEAD_BYTES);
        let (serial, index) = (group.serial, group.members.len());
        group.bytes += bytes.len() + MEMBER_OVERHEAD_BYTES;
        group.commits.push(bytes);
        group.members.push(Member { stream: key.0.clone(), commit_id: key.1.clone(), last });
        group.answers.push((ticket, Answer::Member(index)));
        state.heads.insert(key.0.clone(), (last, serial));
        state.ids.insert(key, serial);
    }

    /// The group that is forming, a new one if it has no room for so many bytes.
    fn group<'a>(&self, state: &'a mut State, bytes: usize) -> &'a mut Forming {
        let has_room = |group: &Forming| group.bytes + bytes <= self.group_bytes_max || group.bytes == 0;
        if !state.forming.back().is_some_and(has_room) {
            state.serial += 1;
            state.forming.push_back(Forming { serial: state.serial, ..Forming::default() });
        }
        let last = state.forming.len() - 1;
        &mut state.forming[last]
    }

    /// What the writer does next. What was accepted before the shard is taken again goes out behind the end that it was
    /// accepted on, where another owner's group shuts it out; only then is the end read.
    pub(crate) fn work(&self) -> Work {
        let mut state = self.state.lock();
        match state.phase {
            Phase::Taking | Phase::Owned | Phase::Releasing => match state.forming.pop_front() {
                Some(group) => {
                    state.is_flying = true;
                    Work::Publish(group)
                }
                None if state.phase == Phase::Taking => Work::Take(state.takes),
                None => Work::Wait,
            },
            Phase::Idle | Phase::Lost => Work::Wait,
        }
    }

    /// The writer knows where the shard ends and the replica is there: judges what waited.
    pub(crate) fn taken(&self, takes: u64) {
        let mut state = self.state.lock();
        if Self::still_takes(&state, takes) {
            self.set_phase(&mut state, Phase::Owned);
            while let Some(one) = state.waiting.pop_front() {
                self.judge(&mut state, one);
            }
        }
    }

    fn still_takes(state: &State, takes: u64) -> bool {
        state.phase == Phase::Taking && state.takes == takes
    }

    /// Whether it is still to be taken, for the so-many-th time.
    pub(crate) fn is_taking(&self, takes: u64) -> bool {
        Self::still_takes(&self.state.lock(), takes)
    }

    /// The shard cannot be taken at the moment: refuses what waits.
    pub(crate) fn refuse_waiting(&self, refusal: &Refusal) {
        let waiting = std::mem::take(&mut self.state.lock().waiting);
        refuse_all(waiting, refusal);
    }

    /// The stream has the group at this sequence; it is finished once the replica has it too.
    pub(crate) fn sent(&self, group: Forming, sequence: u64, applied: &watch::Receiver<u64>) {
        let mut state = self.state.lock();
        state.is_flying = false;
        state.sent.push_back((sequence, group));
        let is_over = state.is_over;
        self.finish_release(&mut state);
        drop(state);
        // Read behind the lock: either the follower sees the group there, or it has told of the sequence before.
        let applied = *applied.borrow();
        self.finish(applied, None);
        if is_over {
            // Whoever is let go of is answered `Unknown`.
            drop(std::mem::take(&mut self.state.lock().sent));
        }
    }

    /// Answers everybody whose group the replica shows, which has everything up to this sequence; `first` is the
    /// position of the first commit of that message, if known.
    pub(crate) fn finish(&self, applied: u64, first: Option<Position>) {
        let mut done = Vec::new();
        let mut state = self.state.lock();
        while state.sent.front().is_some_and(|(sequence, _)| *sequence <= applied) {
            if let Some((sequence, group)) = state.sent.pop_front() {
                state.forget(&group);
                done.push((group, first.filter(|_| sequence == applied)));
            }
        }
        self.finish_release(&mut state);
        drop(state);
        for (group, first) in done {
            group.finish(&*self.replica, first);
        }
    }

    /// The group was certainly not written: it and all that was built on it is refused. A shard that is owned gets the
    /// phase.
    pub(crate) fn refused(&self, group: Forming, refusal: &Refusal, phase: Phase) {
        for group in self.give_up(group, phase) {
            group.refuse(refusal);
        }
    }

    /// Nobody knows whether the group was written; a shard that is owned is taken again before it accepts more.
    pub(crate) fn unknown(&self, group: Forming, error: io::Error, refusal: &Refusal) {
        let mut groups = self.give_up(group, Phase::Taking).into_iter();
        let error = Arc::new(error);
        if let Some(group) = groups.next() {
            group.fail(&error, refusal);
        }
        for group in groups {
            group.refuse(refusal);
        }
    }

    fn give_up(&self, group: Forming, phase: Phase) -> Vec<Forming> {
        let mut state = self.state.lock();
        state.is_flying = false;
        let mut groups = vec![group];
        groups.extend(std::mem::take(&mut state.forming));
        for group in &groups {
            state.forget(group);
        }
        // Heads that an earlier, sent group had set were overwritten by those that are given up.
        let state = &mut *state;
        for (_, sent) in &state.sent {
            for member in &sent.members {
                state.heads.insert(member.stream.clone(), (member.last, sent.serial));
            }
        }
        match state.phase {
            Phase::Owned if phase == Phase::Taking => {
                // The writer that says so is there.
                self.start_taking(state);
            }
            Phase::Owned => self.set_phase(state, phase),
            // Nobody holds a lease of it any more.
            Phase::Releasing => self.finish_release(state),
            // It is taken anew as it is.
            Phase::Taking | Phase::Idle | Phase::Lost => {}
        }
        groups
    }

    /// Refuses everything from now on; what the stream may have got is answered `Unknown`.
    pub(crate) fn end(&self, refusal: &Refusal) {
        let mut state = self.state.lock();
        state.ended.get_or_insert_with(|| refusal.clone());
        state.is_over = true;
        let (waiting, forming) = (std::mem::take(&mut state.waiting), std::mem::take(&mut state.forming));
        let sent = std::mem::take(&mut state.sent);
        self.set_phase(&mut state, Phase::Idle);
        drop(state);
        refuse_all(waiting, refusal);
        for group in forming {
            group.refuse(refusal);
        }
        drop(sent);
    }

    /// Accepts nothing more, but brings to its end what was accepted.
    pub(crate) fn close(&self) {
        self.state.lock().ended.get_or_insert(Refusal::Closed);
        self.begin_release();
    }
}

fn refuse_all(waiting: impl IntoIterator<Item = Waiting>, refusal: &Refusal) {
    for one in waiting {
        one.ticket.answer(Err(AppendError::Refused(refusal.clone())));
    }
}

#[cfg(test)]
mod tests;
