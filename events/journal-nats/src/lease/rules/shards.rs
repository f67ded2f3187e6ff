//! Taking shards and giving them back.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    super::{
        assign::desired_owner,
        limit::{HINT_EVERY, RELEASES_MAX, TAKES_MAX},
        record::{Key, NodeState, OwnerRecord, ShardRecord},
        table::{Nanos, View},
    },
    Action, Core, Failure, Local, Purpose, Value, Write,
};

impl Core {
    /// Whether the bucket says that a shard is this node's, whatever its incarnation: the lease of this name is held
    /// by this process alone.
    pub(super) fn owns(&self, view: &View, shard: u32) -> bool {
        view.owner(shard).is_some_and(|owner| owner.node == self.profile.node)
    }

    /// Takes what this node should have and can, gives back what another one should have.
    pub(super) fn assign(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let draining = self.intent != NodeState::Live;
        let may_give = draining && self.current;
        let may_take = !draining && self.holds(now) && (self.current || !self.misled);
        if !may_give && !may_take {
            return;
        }
        let view = Arc::clone(&self.view);
        let view = view.read();
        self.desire(&view);
        for shard in 0..self.profile.shards {
            let wanted = !draining && self.should_own(shard);
            match self.locals.get(shard as usize) {
                Some(Local::Idle) if wanted => self.take(&view, shard, out),
                // To give away is decided on what is certain.
                Some(Local::Idle | Local::Held { .. }) if !self.current => {}
                Some(Local::Idle) if self.owns(&view, shard) && self.handing_over < RELEASES_MAX => {
                    self.release(&view, shard, out);
                }
                Some(Local::Held { .. }) if !wanted && self.handing_over < RELEASES_MAX => {
                    self.lose(shard, true, out);
                }
                Some(Local::Idle | Local::Taking | Local::Held { .. } | Local::Losing { .. } | Local::Releasing)
                | None => {}
            }
        }
    }

    /// Computes the owners again if other nodes are live now.
    fn desire(&mut self, view: &View) {
        if view.live().eq(self.desired_for.iter().map(String::as_str)) {
            return;
        }
        self.desired_for = view.live().map(str::to_owned).collect();
        let places: BTreeMap<&str, usize> = view.live().zip(0..).collect();
        let owner = |shard| desired_owner(shard, view.live()).and_then(|name| places.get(name).copied());
        self.desired = (0..self.profile.shards).map(owner).collect();
    }

    fn should_own(&self, shard: u32) -> bool {
        let place = self.desired.get(shard as usize).copied().flatten();
        place.and_then(|place| self.desired_for.get(place)) == Some(&self.profile.node)
    }

    fn take(&mut self, view: &View, shard: u32, out: &mut Vec<Action>) {
        let entry = view.shard(shard);
        let owner = entry.and_then(|entry| entry.record.owner.as_ref());
        let ended = |owner| if self.current { view.is_ended(owner) } else { view.was_ended(owner) };
        let free = owner.is_none_or(|owner| owner.node == self.profile.node || ended(owner));
        if !free || self.taking >= TAKES_MAX {
            return;
        }
        self.taking += 1;
        self.set(shard, Local::Taking);
        let owner = OwnerRecord {
            node: self.profile.node.clone(),
            incarnation: self.profile.incarnation,
            term: self.lease.term,
        };
        let epoch = entry.map_or(0, |entry| entry.record.epoch).saturating_add(1);
        let value = Value::Shard(ShardRecord { epoch, owner: Some(owner) });
        let expected = entry.map_or(0, |entry| entry.revision);
        out.push(Action::Write(Write { purpose: Purpose::Take { shard }, key: Key::Shard(shard), expected, value }));
    }

    pub(super) fn took(
        &mut self,
        now: Nanos,
        shard: u32,
        value: Value,
        result: Result<u64, Failure>,
        out: &mut Vec<Action>,
    ) {
        self.taking = self.taking.saturating_sub(1);
        self.set(shard, Local::Idle);
        let (Ok(revision), Value::Shard(record)) = (result, value) else {
            self.misled = true;
            return self.look();
        };
        let same_lease = record.owner.as_ref().is_some_and(|owner| owner.term == self.lease.term);
        let epoch = record.epoch;
        let newest = self.view.write().put_shard(shard, revision, record);
        let newest = newest || self.view.read().shard(shard).is_some_and(|entry| entry.revision == revision);
        self.changed = true;
        // A lease that ended meanwhile owns nothing, whatever was written under it.
        if newest && same_lease && self.holds(now) {
            self.set(shard, Local::Held { epoch, revision });
            self.mine.set(shard, epoch);
            out.push(Action::Taken { shard, epoch });
        }
    }

    /// Stops deciding for a shard. It is not taken again before that is acknowledged.
    pub(super) fn lose(&mut self, shard: u32, release: bool, out: &mut Vec<Action>) {
        if let Some(Local::Held { epoch, .. }) = self.locals.get(shard as usize).copied() {
            self.mine.set(shard, 0);
            self.set(shard, Local::Losing { release });
            self.handing_over += usize::from(release);
            out.push(Action::Lost { shard, epoch });
        }
    }

    pub(super) fn lose_all(&mut self, out: &mut Vec<Action>) {
        (0..self.profile.shards).for_each(|shard| self.lose(shard, false, out));
    }

    pub(super) fn acknowledged(&mut self, shard: u32, out: &mut Vec<Action>) {
        let Some(Local::Losing { release }) = self.locals.get(shard as usize).copied() else { return };
        self.set(shard, Local::Idle);
        self.handing_over = self.handing_over.saturating_sub(usize::from(release));
        let view = Arc::clone(&self.view);
        let view = view.read();
        if release && self.owns(&view, shard) {
            self.release(&view, shard, out);
        }
    }

    fn release(&mut self, view: &View, shard: u32, out: &mut Vec<Action>) {
        let Some(entry) = view.shard(shard) else { return };
        self.handing_over += 1;
        self.set(shard, Local::Releasing);
        let value = Value::Shard(ShardRecord { epoch: entry.record.epoch, owner: None });
        let (key, expected) = (Key::Shard(shard), entry.revision);
        out.push(Action::Write(Write { purpose: Purpose::Release { shard }, key, expected, value }));
    }

    pub(super) fn released(&mut self, shard: u32, value: Value, result: Result<u64, Failure>) {
        self.handing_over = self.handing_over.saturating_sub(1);
        self.set(shard, Local::Idle);
        match (result, value) {
            (Ok(revision), Value::Shard(record)) => {
                self.view.write().put_shard(shard, revision, record);
                self.changed = true;
            }
            (Ok(_) | Err(Failure::Revision | Failure::Unknown), _) => self.look(),
        }
    }

    fn set(&mut self, shard: u32, local: Local) {
        if let Some(slot) = self.locals.get_mut(shard as usize) {
            *slot = local;
        }
    }

    /// Calls the others after a change, not after each of many.
    pub(super) fn hint(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let pause = u64::try_from(HINT_EVERY.as_nanos()).unwrap_or(u64::MAX);
        let last = self.taking + self.handing_over == 0;
        if self.changed && (last || now >= self.hint_at.saturating_add(pause)) {
            self.changed = false;
            self.hint_at = now;
            out.push(Action::Hint);
        }
    }
}
