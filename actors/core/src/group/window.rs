//! What a group is delivering: a bounded window of the log behind its checkpoint.
//!
//! Invariants: of one stream at most one event is in flight or waits for its next attempt, and it is the earliest that
//! is not settled and was offered by then; every offered event is queued, in flight, waiting or settled; the checkpoint
//! never passes one that is not settled. Pure: time comes in, decisions go out. It holds places, no payloads.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use events_model::{
    DurationUs, Position, TimestampUs,
    group::{Place, Settings, WAIT_MAX},
};

/// Most events of the window, settled ones behind the checkpoint included.
pub const WINDOW_LEN_MAX: usize = 4_096;

/// Who consumes; numbers are never used again.
pub type ConsumerId = u64;

/// Where an event is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It has not been delivered, or waits behind another of its stream.
    Queued,
    /// A consumer has it.
    InFlight {
        /// Which.
        consumer: ConsumerId,
        /// When the answer must be here.
        until: TimestampUs,
    },
    /// An attempt failed; the next one comes later.
    Waiting {
        /// When.
        until: TimestampUs,
    },
}

/// What a failed attempt leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// Another attempt.
    Retry {
        /// When.
        at: TimestampUs,
    },
    /// None: the event is to be parked, and is settled by `parked` when it is.
    Park {
        /// How many there were.
        attempts: u32,
    },
    /// The answer is to no delivery that is open.
    Stale,
}

#[derive(Debug, Clone)]
struct Tracked {
    stream: Arc<str>,
    phase: Phase,
    attempts: u32,
    redriven: bool,
}

#[derive(Debug, Default)]
struct Lane {
    queued: BTreeSet<Place>,
    /// In flight or waiting.
    busy: Option<Place>,
}

/// The window.
#[derive(Debug)]
pub struct Window {
    settings: Settings,
    checkpoint: Position,
    scanned: Position,
    tracked: BTreeMap<Place, Tracked>,
    /// Those of `tracked` that hold the checkpoint back.
    open: BTreeSet<Place>,
    settled: BTreeSet<Place>,
    /// Redriven events that were acknowledged, until that is recorded: they must not be offered again meanwhile.
    answered: BTreeSet<Place>,
    lanes: BTreeMap<Arc<str>, Lane>,
    ready: BTreeSet<Place>,
    timed: BTreeSet<(TimestampUs, Place)>,
    in_flight: usize,
}

impl Window {
    /// Begins behind a checkpoint, with events behind it that are settled already.
    pub fn new(settings: Settings, checkpoint: Position, ahead: BTreeSet<Place>) -> Self {
        Self {
            settings,
            checkpoint,
            scanned: checkpoint,
            tracked: BTreeMap::new(),
            open: BTreeSet::new(),
            settled: ahead,
            answered: BTreeSet::new(),
            lanes: BTreeMap::new(),
            ready: BTreeSet::new(),
            timed: BTreeSet::new(),
            in_flight: 0,
        }
    }

    /// Whether more commits may be offered.
    pub fn has_room(&self) -> bool {
        self.tracked.len().saturating_add(self.settled.len()) < WINDOW_LEN_MAX
    }

    /// Up to where commits were offered.
    pub const fn scanned(&self) -> Position {
        self.scanned
    }

    /// Offers an event of the log; one that is settled or known already is left alone.
    pub fn offer(&mut self, place: Place, stream: &str) {
        if place.position > self.checkpoint && !self.settled.contains(&place) {
            self.track(place, stream, false);
        }
    }

    /// Offers an event that had been parked.
    pub fn offer_again(&mut self, place: Place, stream: &str) {
        if !self.answered.contains(&place) {
            self.track(place, stream, true);
        }
    }

    /// Says that all wanted events of the commits up to here were offered.
    pub fn scanned_to(&mut self, position: Position) {
        self.scanned = self.scanned.max(position);
        self.advance();
    }

    fn track(&mut self, place: Place, stream: &str, redriven: bool) {
        if self.tracked.contains_key(&place) {
            return;
        }
        let stream: Arc<str> = match self.lanes.get_key_value(stream) {
            Some((stream, _)) => Arc::clone(stream),
            None => stream.into(),
        };
        self.lanes.entry(Arc::clone(&stream)).or_default().queued.insert(place);
        let tracked = Tracked { stream: Arc::clone(&stream), phase: Phase::Queued, attempts: 0, redriven };
        self.tracked.insert(place, tracked);
        if !redriven {
            self.open.insert(place);
        }
        self.prepare(&stream);
    }

    /// Makes the earliest event of a stream ready, and no other one, if none is on its way.
    fn prepare(&mut self, stream: &Arc<str>) {
        let Some(lane) = self.lanes.get(stream) else { return };
        let mut earliest = lane.queued.iter();
        if lane.busy.is_none()
            && let Some(first) = earliest.next()
        {
            self.ready.insert(*first);
        }
        // At most the one that was the earliest before can be among the rest.
        if let Some(second) = earliest.next() {
            self.ready.remove(second);
        }
    }

    /// What can be delivered now: the earliest first, while the group has room for another one in flight.
    pub fn next(&self, now: TimestampUs) -> Option<Place> {
        if self.in_flight >= usize::try_from(self.settings.in_flight_max).unwrap_or(usize::MAX) {
            return None;
        }
        let due = self.timed.iter().take_while(|(at, _)| *at <= now).map(|(_, place)| *place);
        let waits = |place: &Place| {
            self.tracked.get(place).is_some_and(|tracked| matches!(tracked.phase, Phase::Waiting { .. }))
        };
        due.filter(waits).chain(self.ready.first().copied()).min()
    }

    /// Notes a delivery and counts it; `None` = it cannot be delivered now.
    pub fn deliver(&mut self, place: Place, consumer: ConsumerId, now: TimestampUs) -> Option<u32> {
        let until = now.after(self.settings.answer_timeout);
        let tracked = self.tracked.get_mut(&place)?;
        match tracked.phase {
            Phase::Queued if self.ready.remove(&place) => {}
            Phase::Waiting { until } if until <= now => {
                self.timed.remove(&(until, place));
            }
            Phase::Queued | Phase::Waiting { .. } | Phase::InFlight { .. } => return None,
        }
        tracked.attempts = tracked.attempts.saturating_add(1);
        tracked.phase = Phase::InFlight { consumer, until };
        let (stream, attempts) = (Arc::clone(&tracked.stream), tracked.attempts);
        if let Some(lane) = self.lanes.get_mut(&stream) {
            lane.queued.remove(&place);
            lane.busy = Some(place);
        }
        self.timed.insert((until, place));
        self.in_flight = self.in_flight.saturating_add(1);
        Some(attempts)
    }

    /// Settles an event that was delivered: a consumer has handled it. Whether it was open.
    pub fn acknowledge(&mut self, place: Place) -> bool {
        let redriven = self.is_redriven(place);
        let was_open = self.settle(place);
        if was_open && redriven {
            self.answered.insert(place);
        }
        was_open
    }

    /// Notes that an acknowledgement is recorded.
    pub fn recorded(&mut self, place: Place) {
        self.answered.remove(&place);
    }

    /// Settles an event that is durably parked; it may be offered again when it is redriven.
    pub fn parked(&mut self, place: Place) {
        self.settle(place);
    }

    fn settle(&mut self, place: Place) -> bool {
        let is_delivered = |tracked: &&Tracked| tracked.attempts > 0;
        let Some(tracked) = self.tracked.get(&place).filter(is_delivered).cloned() else { return false };
        self.leave_phase(place, tracked.phase);
        self.tracked.remove(&place);
        self.open.remove(&place);
        if !tracked.redriven {
            self.settled.insert(place);
        }
        if let Some(lane) = self.lanes.get_mut(&tracked.stream) {
            lane.queued.remove(&place);
            lane.busy = lane.busy.filter(|busy| *busy != place);
            if lane.queued.is_empty() && lane.busy.is_none() {
                self.lanes.remove(&tracked.stream);
            } else {
                self.prepare(&tracked.stream);
            }
        }
        self.advance();
        true
    }

    /// Notes that an attempt failed.
    pub fn fail(&mut self, place: Place, attempt: u32, now: TimestampUs) -> Failed {
        let Some(tracked) = self.tracked.get(&place) else { return Failed::Stale };
        let phase = tracked.phase;
        if tracked.attempts != attempt || !matches!(phase, Phase::InFlight { .. }) {
            return Failed::Stale;
        }
        if attempt >= self.settings.attempts_max {
            // It is held until it is durably parked, which settles it, or cannot be, which puts it off.
            self.wait(place, phase, now.after(WAIT_MAX));
            return Failed::Park { attempts: attempt };
        }
        let at = now.after(self.settings.backoff(attempt));
        self.wait(place, phase, at);
        Failed::Retry { at }
    }

    /// Puts off an event that could not be parked.
    pub fn postpone(&mut self, place: Place, now: TimestampUs) {
        if let Some(phase) = self.tracked.get(&place).map(|tracked| tracked.phase) {
            self.wait(place, phase, now.after(self.settings.backoff_max));
        }
    }

    fn wait(&mut self, place: Place, phase: Phase, until: TimestampUs) {
        self.leave_phase(place, phase);
        if let Some(tracked) = self.tracked.get_mut(&place) {
            tracked.phase = Phase::Waiting { until };
            self.timed.insert((until, place));
        }
    }

    fn leave_phase(&mut self, place: Place, phase: Phase) {
        match phase {
            Phase::Queued => {
                self.ready.remove(&place);
            }
            Phase::InFlight { until, .. } => {
                self.in_flight = self.in_flight.saturating_sub(1);
                self.timed.remove(&(until, place));
            }
            Phase::Waiting { until } => {
                self.timed.remove(&(until, place));
            }
        }
    }

    /// What a consumer has, with the numbers of the attempts.
    pub fn held_by(&self, consumer: ConsumerId) -> Vec<(Place, u32)> {
        let held = |tracked: &Tracked| matches!(tracked.phase, Phase::InFlight { consumer: by, .. } if by == consumer);
        let all = self.tracked.iter().filter(|(_, tracked)| held(tracked));
        all.map(|(place, tracked)| (*place, tracked.attempts)).collect()
    }

    /// Deliveries whose answer did not come in time: which, to whom, and the numbers of the attempts.
    pub fn overdue(&self, now: TimestampUs) -> Vec<(Place, ConsumerId, u32)> {
        let due = self.timed.iter().take_while(|(at, _)| *at <= now);
        due.filter_map(|(_, place)| match self.tracked.get(place)? {
            Tracked { phase: Phase::InFlight { consumer, .. }, attempts, .. } => Some((*place, *consumer, *attempts)),
            Tracked { phase: Phase::Queued | Phase::Waiting { .. }, .. } => None,
        })
        .collect()
    }

    /// Where an event is; `None` = it is settled or was never offered.
    pub fn phase(&self, place: Place) -> Option<Phase> {
        self.tracked.get(&place).map(|tracked| tracked.phase)
    }

    /// Whether an event had been parked before.
    pub fn is_redriven(&self, place: Place) -> bool {
        self.tracked.get(&place).is_some_and(|tracked| tracked.redriven)
    }

    /// When, after this moment, something happens by itself: an attempt falls due or an answer is too late.
    pub fn next_time(&self, now: TimestampUs) -> Option<TimestampUs> {
        let first = Place { position: Position::ZERO, index: 0 };
        self.timed.range((now.after(DurationUs(1)), first)..).next().map(|(at, _)| *at)
    }

    /// Up to where every event of every commit is settled.
    pub const fn checkpoint(&self) -> Position {
        self.checkpoint
    }

    /// Events that are not settled.
    pub fn len(&self) -> usize {
        self.tracked.len()
    }

    /// Whether every event that was offered is settled.
    pub fn is_empty(&self) -> bool {
        self.tracked.is_empty()
    }

    /// Deliveries without an answer.
    pub const fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn advance(&mut self) {
        let bound = self.open.first().map(|place| Position(place.position.0.saturating_sub(1)));
        let reached = bound.map_or(self.scanned, |bound| bound.min(self.scanned));
        if reached > self.checkpoint {
            self.checkpoint = reached;
            self.settled = self.settled.split_off(&Place { position: reached.next(), index: 0 });
        }
    }
}
