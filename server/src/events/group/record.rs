//! What a group has settled and not recorded yet.

use std::collections::{BTreeSet, VecDeque};

use events_model::{
    Position,
    group::{Command, PARKED_PER_RECORD_MAX, ParkedDelivery, Place, SETTLED_LEN_MAX},
};

use super::{SCANNED_PER_RECORD, SETTLED_PER_RECORD};

/// What waits to be recorded.
#[derive(Debug, Default)]
pub(super) struct Unrecorded {
    /// Settled events, and whether they were redriven ones.
    settled: VecDeque<(Place, bool)>,
    parked: VecDeque<ParkedDelivery>,
    /// Those of them, and of the record on its way.
    parking: BTreeSet<Place>,
    recorded: Position,
}

/// A record on its way.
#[derive(Debug, Clone)]
pub(super) struct Record {
    checkpoint: Position,
    settled: Vec<(Place, bool)>,
    pub(super) parked: Vec<ParkedDelivery>,
}

impl Unrecorded {
    /// Begins with what is recorded.
    pub(super) fn new(recorded: Position) -> Self {
        Self { recorded, ..Self::default() }
    }

    pub(super) fn settle(&mut self, place: Place, redriven: bool) {
        self.settled.push_back((place, redriven));
    }

    pub(super) fn park(&mut self, delivery: ParkedDelivery) {
        self.parking.insert(delivery.place);
        self.parked.push_back(delivery);
    }

    /// Whether an event is about to be parked: an answer comes too late for it.
    pub(super) fn is_parking(&self, place: Place) -> bool {
        self.parking.contains(&place)
    }

    /// Whether a record should not wait.
    pub(super) fn is_urgent(&self, checkpoint: Position) -> bool {
        !self.parked.is_empty()
            || self.settled.len() >= SETTLED_PER_RECORD
            || checkpoint.0.saturating_sub(self.recorded.0) >= SCANNED_PER_RECORD
    }

    /// Whether acknowledged events wait.
    pub(super) fn has_settled(&self) -> bool {
        !self.settled.is_empty()
    }

    /// Takes what one record can hold; `None` = there is nothing to record, not even a new checkpoint.
    pub(super) fn take(&mut self, checkpoint: Position) -> Option<Record> {
        if self.settled.is_empty() && self.parked.is_empty() && checkpoint <= self.recorded {
            return None;
        }
        let settled = self.settled.drain(..self.settled.len().min(SETTLED_LEN_MAX)).collect();
        let parked = self.parked.drain(..self.parked.len().min(PARKED_PER_RECORD_MAX)).collect();
        Some(Record { checkpoint, settled, parked })
    }

    /// The record is durable.
    pub(super) fn done(&mut self, record: &Record) {
        self.recorded = self.recorded.max(record.checkpoint);
        self.forget(&record.parked);
    }

    /// The record did not come about: what was acknowledged waits again, and what was to be parked, if it still is.
    pub(super) fn put_back(&mut self, record: Record, with_parked: bool) {
        for settled in record.settled.into_iter().rev() {
            self.settled.push_front(settled);
        }
        if !with_parked {
            return self.forget(&record.parked);
        }
        for parked in record.parked.into_iter().rev() {
            self.parked.push_front(parked);
        }
    }

    fn forget(&mut self, parked: &[ParkedDelivery]) {
        for parked in parked {
            self.parking.remove(&parked.place);
        }
    }
}

impl Record {
    /// The redriven ones among the settled events.
    pub(super) fn redriven(&self) -> impl Iterator<Item = Place> {
        self.settled.iter().filter(|(_, redriven)| *redriven).map(|(place, _)| *place)
    }

    /// As the group's actor is asked; what the checkpoint says is not said twice.
    pub(super) fn command(&self) -> Command {
        let apart = self.settled.iter().filter(|(place, redriven)| *redriven || place.position > self.checkpoint);
        Command::Record {
            checkpoint: self.checkpoint,
            settled: apart.map(|(place, _)| *place).collect(),
            parked: self.parked.clone(),
        }
    }
}
