//! All consumer groups at a glance: how they deliver, how far they have come, what is parked.
//!
//! Invariants: a place is parked from `EventParked` until it is redriven or dropped, and parked at most once at a time,
//! as in the group's actor. Errors and attempts of parked events are not here: they lie in the group's stream.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use events_model::{
    CommitView, EventView, Position, Stored, StreamId, TimestampUs,
    group::{Event, Numbered, Place, Settings},
};
use serde::{Deserialize, Serialize};

use crate::projection::{ApplyError, Projection};

/// The projection.
#[derive(Debug)]
pub struct Groups;

/// All groups by their stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The groups.
    pub groups: BTreeMap<StreamId, Summary>,
}

/// One group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// How it delivers.
    pub settings: Settings,
    /// Since when it exists.
    pub created_at: TimestampUs,
    /// Every event of every commit up to here is settled.
    pub checkpoint: Position,
    /// How many events were parked, ever.
    pub parked_total: u64,
    /// How many were given up, ever.
    pub dropped_total: u64,
    parked: BTreeMap<Place, TimestampUs>,
    by_age: BTreeSet<(TimestampUs, Place)>,
    redriven: BTreeSet<Place>,
}

impl Summary {
    /// Events that are parked.
    pub fn parked(&self) -> u64 {
        u64::try_from(self.parked.len()).unwrap_or(u64::MAX)
    }

    /// When the oldest of them was parked.
    pub fn oldest_parked_at(&self) -> Option<TimestampUs> {
        self.by_age.first().map(|(at, _)| *at)
    }

    /// Events that were redriven and are not settled yet.
    pub fn redriven(&self) -> u64 {
        u64::try_from(self.redriven.len()).unwrap_or(u64::MAX)
    }

    fn unpark(&mut self, parked: &[Numbered]) {
        for one in parked {
            if let Some(at) = self.parked.remove(&one.place) {
                self.by_age.remove(&(at, one.place));
            }
        }
    }
}

impl State {
    /// Groups whose stream comes after another.
    pub fn page(&self, after: Option<&StreamId>) -> impl Iterator<Item = (&StreamId, &Summary)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.groups.range::<StreamId, _>((from, Bound::Unbounded))
    }
}

impl Projection for Groups {
    const NAME: &'static str = "groups";
    const VERSION: u32 = 1;
    type State = State;

    fn apply(
        state: &mut State,
        _position: Position,
        commit: &CommitView<'_>,
        event: &EventView<'_>,
    ) -> Result<(), ApplyError> {
        if !commit.stream.starts_with("group/") {
            return Ok(());
        }
        let other = || ApplyError::Stream { stream: commit.stream.to_owned() };
        let stream = StreamId::new(commit.stream).map_err(|_| other())?;
        let event = Event::from_payload(event.payload).map_err(ApplyError::Decode)?;
        if let Event::Created { settings, at } = event {
            let (checkpoint, created_at) = (settings.after, at);
            let (parked, by_age, redriven) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
            let (parked_total, dropped_total) = (0, 0);
            state.groups.entry(stream).or_insert(Summary {
                settings,
                created_at,
                checkpoint,
                parked_total,
                dropped_total,
                parked,
                by_age,
                redriven,
            });
            return Ok(());
        }
        let group = state.groups.get_mut(&stream).ok_or_else(other)?;
        match event {
            // It has just been taken.
            Event::Created { .. } => {}
            Event::Recorded { checkpoint, settled } => {
                group.checkpoint = group.checkpoint.max(checkpoint);
                for place in settled {
                    group.redriven.remove(&place);
                }
            }
            Event::Parked { delivery, at } => {
                group.redriven.remove(&delivery.place);
                group.parked.insert(delivery.place, at);
                group.by_age.insert((at, delivery.place));
                group.parked_total = group.parked_total.saturating_add(1);
            }
            Event::Redriven { parked, .. } => {
                group.unpark(&parked);
                group.redriven.extend(parked.iter().map(|one| one.place));
            }
            Event::Dropped { parked, .. } => {
                group.unpark(&parked);
                let count = u64::try_from(parked.len()).unwrap_or(u64::MAX);
                group.dropped_total = group.dropped_total.saturating_add(count);
            }
        }
        Ok(())
    }
}
