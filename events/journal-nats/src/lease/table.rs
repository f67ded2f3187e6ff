//! What this node knows: which shards are its own (atomics, read on every request), and a copy of the bucket.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use super::record::{NodeRecord, NodeState, OwnerRecord, ShardRecord};

/// Nanoseconds of a monotonic clock.
pub(crate) type Nanos = u64;

/// The shards that this node may decide for, and until when.
///
/// Invariant: an epoch other than 0 is stored only after the shard was taken under the lease that lasts until
/// `deadline`, and all epochs are 0 before the deadline of another lease is stored. A deadline that has passed may be
/// followed by a later one of the same lease: nobody has ended it meanwhile.
#[derive(Debug)]
pub(crate) struct Mine {
    deadline: AtomicU64,
    /// Counts the spans in which the lease did not hold.
    gaps: AtomicU64,
    epochs: Box<[AtomicU64]>,
}

impl Mine {
    pub(crate) fn new(shards: u32) -> Self {
        Self {
            deadline: AtomicU64::new(0),
            gaps: AtomicU64::new(0),
            epochs: (0..shards).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// The epoch under which a shard is this node's at the moment of asking. The clock is read last: whatever stopped
    /// this thread before that moment counts.
    pub(crate) fn epoch(&self, shard: u32, now: impl FnOnce() -> Nanos) -> Option<u64> {
        let deadline = self.deadline.load(Ordering::Acquire);
        let epoch = self.epochs.get(shard as usize)?.load(Ordering::Acquire);
        (epoch != 0 && now() < deadline).then_some(epoch)
    }

    /// The epoch under which a shard was taken and not lost since, also while the lease is suspended.
    pub(crate) fn kept(&self, shard: u32) -> Option<u64> {
        let epoch = self.epochs.get(shard as usize)?.load(Ordering::Acquire);
        (epoch != 0).then_some(epoch)
    }

    /// Whether the lease holds at this moment.
    pub(crate) fn is_held(&self, now: Nanos) -> bool {
        now < self.deadline.load(Ordering::Acquire)
    }

    /// For how long the lease has not held.
    pub(crate) fn lapsed(&self, now: Nanos) -> Nanos {
        now.saturating_sub(self.deadline.load(Ordering::Acquire))
    }

    /// How often the lease began to hold again after it had not.
    pub(crate) fn gaps(&self) -> u64 {
        self.gaps.load(Ordering::Acquire)
    }

    /// Counts a gap; before the deadline that ends it is stored, so that nobody sees the one without the other.
    pub(crate) fn count_gap(&self) {
        self.gaps.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn set_deadline(&self, deadline: Nanos) {
        self.deadline.store(deadline, Ordering::Release);
    }

    pub(crate) fn set(&self, shard: u32, epoch: u64) {
        if let Some(cell) = self.epochs.get(shard as usize) {
            cell.store(epoch, Ordering::Release);
        }
    }
}

/// A node as last read.
#[derive(Debug, Clone)]
pub(crate) struct NodeEntry {
    pub(crate) revision: u64,
    pub(crate) record: NodeRecord,
    /// When this revision was first seen here; it was written before.
    pub(crate) seen_at: Nanos,
    /// Whether it was seen to change while it was the same lease: somebody renews it.
    pub(crate) renewed: bool,
}

impl NodeEntry {
    pub(crate) const fn is_gone(&self) -> bool {
        self.record.state.is_gone()
    }
}

/// A shard as last read.
#[derive(Debug, Clone)]
pub(crate) struct ShardEntry {
    pub(crate) revision: u64,
    pub(crate) record: ShardRecord,
}

/// A copy of the bucket: exactly what it was at the last moment at which its end was reached.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) nodes: BTreeMap<String, NodeEntry>,
    pub(crate) shards: Vec<Option<ShardEntry>>,
}

impl View {
    pub(crate) fn new(shards: u32) -> Self {
        Self { nodes: BTreeMap::new(), shards: (0..shards).map(|_| None).collect() }
    }

    /// Stores a newer revision of a node.
    pub(crate) fn put_node(&mut self, name: &str, revision: u64, record: NodeRecord, now: Nanos) {
        let before = self.nodes.get(name);
        if before.is_some_and(|before| before.revision >= revision) {
            return;
        }
        let same = |before: &NodeEntry| before.record.incarnation == record.incarnation && !record.state.is_gone();
        let renewed = before.is_some_and(same);
        self.nodes.insert(name.to_owned(), NodeEntry { revision, record, seen_at: now, renewed });
    }

    /// Stores a newer revision of a shard; whether there is such a shard and it is newer.
    pub(crate) fn put_shard(&mut self, shard: u32, revision: u64, record: ShardRecord) -> bool {
        let Some(entry) = self.shards.get_mut(shard as usize) else { return false };
        if entry.as_ref().is_some_and(|before| before.revision >= revision) {
            return false;
        }
        *entry = Some(ShardEntry { revision, record });
        true
    }

    pub(crate) fn shard(&self, shard: u32) -> Option<&ShardEntry> {
        self.shards.get(shard as usize)?.as_ref()
    }

    pub(crate) fn owner(&self, shard: u32) -> Option<&OwnerRecord> {
        self.shard(shard)?.record.owner.as_ref()
    }

    /// Whether the lease under which a shard was taken has ended for ever. True only of a copy whose end was reached:
    /// the lease was written before the shard, so it must be there, unless it was replaced or is kept no more.
    pub(crate) fn is_ended(&self, owner: &OwnerRecord) -> bool {
        self.nodes.get(&owner.node).is_none_or(|entry| {
            let record = &entry.record;
            entry.is_gone() || record.incarnation != owner.incarnation || record.term != owner.term
        })
    }

    /// Whether the lease under which a shard was taken was seen to be ended, which is for ever.
    pub(crate) fn was_ended(&self, owner: &OwnerRecord) -> bool {
        self.nodes.get(&owner.node).is_some_and(|entry| {
            let record = &entry.record;
            entry.is_gone() && record.incarnation == owner.incarnation && record.term == owner.term
        })
    }

    /// Nodes that take part, in order.
    pub(crate) fn live(&self) -> impl Iterator<Item = &str> {
        let live = |(name, entry): (_, &NodeEntry)| (entry.record.state == NodeState::Live).then_some(name);
        self.nodes.iter().filter_map(move |(name, entry)| live((name.as_str(), entry)))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::record::Incarnation, *};

    #[test]
    fn a_lease_that_is_not_there_or_another_one_was_not_seen_to_be_ended() {
        let lease = |state, term| NodeRecord {
            incarnation: Incarnation(1),
            term,
            state,
            address: String::new(),
            version: String::new(),
            started_at_us: 0,
        };
        let owner = OwnerRecord { node: "a".to_owned(), incarnation: Incarnation(1), term: 2 };
        let mut view = View::new(1);
        // At the end of the bucket each of these is an end; before it, the lease may stand further on.
        assert!(view.is_ended(&owner) && !view.was_ended(&owner));
        view.put_node("a", 1, lease(NodeState::Expired, 1), 0);
        assert!(view.is_ended(&owner) && !view.was_ended(&owner));
        view.put_node("a", 2, lease(NodeState::Live, 2), 0);
        assert!(!view.is_ended(&owner) && !view.was_ended(&owner));
        view.put_node("a", 3, lease(NodeState::Expired, 2), 0);
        assert!(view.is_ended(&owner) && view.was_ended(&owner));
    }

    #[test]
    fn a_shard_is_mine_until_the_deadline_and_not_at_it() {
        let mine = Mine::new(2);
        mine.set_deadline(100);
        mine.set(1, 7);
        assert_eq!(mine.epoch(1, || 99), Some(7));
        assert_eq!(mine.epoch(1, || 100), None);
        assert_eq!((mine.kept(1), mine.kept(0)), (Some(7), None));
        assert_eq!(mine.epoch(0, || 99), None);
        assert_eq!(mine.epoch(2, || 99), None);
    }
}
