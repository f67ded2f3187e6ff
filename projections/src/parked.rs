//! What a read model could not apply, and what operators decided about it.
//!
//! Invariants: every event that did not apply and was not given up is counted, and its place known up to a bound; those
//! that are listed with their particulars are in the log's order, bounded in all and by stream, so that one tenant's many
//! leave room for another's. Once all that are listed were given up the log is folded anew for the next ones. An event that was given up is
//! in no fold, whatever code folds the log: a fold that has applied it, or does not know that it is parked, says that
//! only a fold from the log's start is right (`wants_rebuild`), and that one knows beforehand what was given up. A commit
//! that does not decode is parked, and given up, as a whole: code that can decode it leaves out all of its events.

use std::collections::{BTreeMap, BTreeSet};

use events_model::{PayloadView, Position, Stored as _, TimestampUs, Version, group::Place, region};
use serde::{Deserialize, Serialize};

use crate::projection::ApplyError;

/// Most parked events that are listed; all are counted.
pub const PARKED_LEN_MAX: usize = 10_000;
/// Most of them of one stream.
pub const PARKED_PER_STREAM_MAX: usize = 1_000;
/// Most parked events whose places are known, so that they can be given up: some 30 MB.
pub const PLACES_LEN_MAX: usize = 1_000_000;

/// The number of a parked "event" that is a whole commit: its envelope does not decode, so nobody knows its events.
pub const WHOLE_COMMIT: u32 = u32::MAX;

/// An event that did not apply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedEvent {
    /// Place of its commit.
    pub position: Position,
    /// Its number in the commit, from 0; `WHOLE_COMMIT` = all of them.
    pub index: u32,
    /// Its stream; empty = the commit's envelope does not decode.
    pub stream: String,
    /// Its version in the stream; 0 = unknown.
    pub version: Version,
    /// Its full protobuf name; empty = unknown.
    pub kind: String,
    /// Why it did not apply, with all causes.
    pub error: String,
    /// How often this process and its checkpoints have tried it.
    pub attempts: u32,
    /// When its commit was recorded; 0 = unknown.
    pub recorded_at: TimestampUs,
}

impl ParkedEvent {
    /// Which event of the log it is.
    pub const fn place(&self) -> Place {
        Place { position: self.position, index: self.index }
    }
}

/// All events that did not apply.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parked {
    /// How many.
    pub count: u64,
    /// The first of them, in the log's order; see `PARKED_LEN_MAX` and `PARKED_PER_STREAM_MAX`.
    pub events: Vec<ParkedEvent>,
    by_stream: BTreeMap<String, usize>,
    /// Where they lie; see `PLACES_LEN_MAX`. Those that are listed are among them.
    places: BTreeSet<Place>,
    /// Given up, ever. Grows by decisions of operators alone.
    dropped: BTreeSet<Place>,
    /// The state holds what was given up.
    is_stale: bool,
    /// The list lacks what has room by now.
    has_room: bool,
    /// An operator, or a start, wants them tried again.
    is_redriven: bool,
    /// Folding the log anew has failed. The next decision or start tries it again.
    #[serde(skip)]
    has_failed: bool,
}

impl Parked {
    /// Nothing parked yet, and what is given up known beforehand.
    pub(crate) fn without(dropped: BTreeSet<Place>) -> Self {
        Self { dropped, ..Self::default() }
    }

    /// Since when the read model lacks the oldest event of which that is known; `None` = it lacks none.
    pub fn oldest_at(&self) -> Option<TimestampUs> {
        self.events.iter().map(|event| event.recorded_at).filter(|at| *at > TimestampUs(0)).min()
    }

    /// Whether the log is to be folded from its start: to be right, to try again, or because the list ran empty.
    pub const fn wants_rebuild(&self) -> bool {
        let is_used_up = self.has_room && self.events.is_empty() && self.count > 0;
        (self.is_stale || self.is_redriven || is_used_up) && !self.has_failed
    }

    /// Whether what was decided waits for a fold from the start.
    pub const fn is_pending(&self) -> bool {
        (self.is_stale || self.is_redriven) && !self.has_failed
    }

    /// Whether the state holds what was given up, and a fold from the start will mend that.
    pub const fn shows_given_up(&self) -> bool {
        self.is_stale && !self.has_failed
    }

    /// Whether a fold from the start that knows what was given up would come out the same.
    pub(crate) const fn is_settled(&self) -> bool {
        !self.is_stale && !self.has_room
    }

    /// The places of what is parked, in order, as far as they are known.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        self.places.iter().copied()
    }

    /// The places of what is parked of one commit.
    pub fn places_at(&self, position: Position) -> impl Iterator<Item = Place> {
        let place = |index| Place { position, index };
        self.places.range(place(0)..=place(WHOLE_COMMIT)).copied()
    }

    /// Wants what is parked tried again.
    pub(crate) const fn redrive(&mut self) {
        self.is_redriven = self.count > 0;
        self.has_failed = false;
    }

    /// Whether folding the log anew has failed since it was wanted last.
    pub const fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Says that folding the log anew has failed: what there is stays.
    pub(crate) const fn failed(&mut self) {
        self.is_redriven = false;
        self.has_failed = true;
    }

    /// Says that all of it has just been tried.
    pub(crate) const fn tried(&mut self) {
        self.is_redriven = false;
    }

    /// Whether an event was given up, alone or with its whole commit.
    pub(crate) fn is_dropped(&self, place: Place) -> bool {
        self.dropped.contains(&place) || self.dropped.contains(&Place { index: WHOLE_COMMIT, ..place })
    }

    pub(crate) fn into_dropped(self) -> BTreeSet<Place> {
        self.dropped
    }

    pub(crate) fn dropped(&self) -> BTreeSet<Place> {
        self.dropped.clone()
    }

    /// Counts on from what was tried before.
    pub(crate) fn tried_after(&mut self, before: &Self) {
        for event in &mut self.events {
            let earlier = before.events.binary_search_by_key(&event.place(), ParkedEvent::place).ok();
            let attempts = earlier.and_then(|index| before.events.get(index)).map_or(0, |earlier| earlier.attempts);
            event.attempts = event.attempts.saturating_add(attempts);
        }
    }

    pub(crate) fn add(&mut self, event: ParkedEvent) {
        // Also what does not even decode may have been given up.
        if self.is_dropped(event.place()) {
            return;
        }
        self.count = self.count.saturating_add(1);
        if self.places.len() >= PLACES_LEN_MAX {
            return;
        }
        self.places.insert(event.place());
        if self.events.len() < PARKED_LEN_MAX {
            let of_stream = self.by_stream.entry(event.stream.clone()).or_default();
            if *of_stream < PARKED_PER_STREAM_MAX {
                *of_stream = of_stream.saturating_add(1);
                self.events.push(event);
            }
        }
    }

    /// Takes an event away; whether it was known to be parked.
    fn remove(&mut self, place: Place) -> bool {
        if !self.places.remove(&place) {
            return false;
        }
        self.count = self.count.saturating_sub(1);
        let Ok(index) = self.events.binary_search_by_key(&place, ParkedEvent::place) else { return true };
        let event = self.events.remove(index);
        if let Some(of_stream) = self.by_stream.get_mut(&event.stream) {
            *of_stream = of_stream.saturating_sub(1);
            if *of_stream == 0 {
                self.by_stream.remove(&event.stream);
            }
        }
        true
    }

    /// Takes a decision about a read model, if it is about this one.
    pub(crate) fn decide(&mut self, name: &str, payload: PayloadView<'_>) -> Result<(), ApplyError> {
        match region::Event::from_payload(payload).map_err(ApplyError::Decode)? {
            region::Event::DroppedFromReadModel { read_model, places, .. } if read_model == name => {
                for place in places {
                    if self.dropped.insert(place) {
                        let is_known = self.remove(place);
                        self.is_stale |= !is_known;
                        self.has_failed &= is_known;
                        self.has_room = self.count > u64::try_from(self.events.len()).unwrap_or(u64::MAX);
                    }
                }
            }
            region::Event::ReadModelRedriven { read_model, .. } if read_model == name => self.redrive(),
            region::Event::DroppedFromReadModel { .. }
            | region::Event::ReadModelRedriven { .. }
            | region::Event::PriceBookPublished { .. } => {}
        }
        Ok(())
    }
}
