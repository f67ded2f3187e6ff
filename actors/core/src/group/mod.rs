//! The rules of a persistent consumer group: how far it has come, what is parked, what is being delivered again.
//!
//! Invariants: every event up to the checkpoint, and every one in `ahead`, is settled: acknowledged or parked once; a
//! parked event is parked, being redriven, or gone with a recorded reason. The state is bounded: `ahead`, `parked` and
//! `redriven` have limits. Deliberately absent: who consumes at the moment, and attempts (`window` has them, in memory).

pub mod window;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use events_model::{
    Position, TimestampUs,
    group::{
        ATTEMPTS_MAX, BATCH_LEN_MAX, Command, Event, IN_FLIGHT_MAX, Numbered, PARKED_PER_RECORD_MAX, ParkedDelivery,
        Place, SETTLED_LEN_MAX, Settings, TEXT_BYTES_MAX, TYPES_LEN_MAX, WAIT_MAX,
    },
};
use serde::{Deserialize, Serialize};

use crate::{Context, Decider};

/// Most parked events of one group; then it delivers what it cannot park again and again.
pub const PARKED_LEN_MAX: usize = 1_000_000;
/// Most redriven events that are not settled yet.
pub const REDRIVEN_LEN_MAX: usize = 1_000;
/// Most settled events behind the checkpoint.
pub const AHEAD_LEN_MAX: usize = 2 * SETTLED_LEN_MAX;

/// The rules.
#[derive(Debug)]
pub struct Group;

/// A parked event; what else is known of it lies in the log, at the version that is its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parked {
    /// Which event.
    pub place: Place,
    /// Since when.
    pub at: TimestampUs,
}

/// What the rules depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Events folded: the version of the stream.
    pub version: u64,
    /// How it delivers; `None` = nobody created it.
    pub settings: Option<Settings>,
    /// Since when it exists.
    pub created_at: TimestampUs,
    /// Every event of every commit up to here is settled.
    pub checkpoint: Position,
    /// Settled events behind it.
    pub ahead: BTreeSet<Place>,
    /// Parked events by number.
    pub parked: BTreeMap<u64, Parked>,
    /// Parked once, to be delivered again.
    pub redriven: BTreeSet<Place>,
    /// How many were parked, ever.
    pub parked_total: u64,
    /// How many were given up, ever.
    pub dropped_total: u64,
}

/// What a caller sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Events that are parked.
    pub parked: u64,
}

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    /// There is one of that name already.
    #[error("the group exists already")]
    Exists,
    /// There is none.
    #[error("the group does not exist")]
    NotCreated,
    /// A field is not what it must be.
    #[error("{0}")]
    Invalid(Cow<'static, str>),
    /// All of it was recorded before.
    #[error("there is nothing new in it")]
    NothingNew,
    /// No event can be parked any more.
    #[error("{PARKED_LEN_MAX} events are parked already")]
    TooManyParked,
    /// None of them is parked.
    #[error("nothing of it is parked")]
    NotParked,
    /// The ones redriven before have to be settled first.
    #[error("{REDRIVEN_LEN_MAX} redriven events are not settled yet")]
    RedriveBusy,
}

impl State {
    /// Whether an event needs no delivery any more.
    pub fn is_settled(&self, place: Place) -> bool {
        !self.redriven.contains(&place) && (place.position <= self.checkpoint || self.ahead.contains(&place))
    }

    /// When the oldest parked event was parked.
    pub fn oldest_parked_at(&self) -> Option<TimestampUs> {
        self.parked.first_key_value().map(|(_, parked)| parked.at)
    }

    /// Those of the numbers that are parked; the oldest, if there are no numbers.
    fn chosen(&self, numbers: &[u64], limit: usize) -> Vec<Numbered> {
        let numbered = |(number, parked): (u64, &Parked)| Numbered { number, place: parked.place };
        if numbers.is_empty() {
            return self.parked.iter().take(limit).map(|(number, parked)| numbered((*number, parked))).collect();
        }
        let wanted: BTreeSet<u64> = numbers.iter().copied().collect();
        let found = wanted.into_iter().filter_map(|number| self.parked.get(&number).map(|parked| (number, parked)));
        found.take(limit).map(numbered).collect()
    }

    fn record(
        &self,
        checkpoint: Position,
        settled: &[Place],
        parked: &[ParkedDelivery],
        now: TimestampUs,
    ) -> Result<Vec<Event>, Rejection> {
        if settled.len() > SETTLED_LEN_MAX || parked.len() > PARKED_PER_RECORD_MAX {
            return Err(Rejection::Invalid("too much in one record".into()));
        }
        if parked.iter().any(|parked| parked.error.len() > TEXT_BYTES_MAX) {
            return Err(Rejection::Invalid("an error is too long".into()));
        }
        let parked: Vec<_> = parked.iter().filter(|parked| !self.is_settled(parked.place)).collect();
        if self.parked.len().saturating_add(parked.len()) > PARKED_LEN_MAX {
            return Err(Rejection::TooManyParked);
        }
        let settled: Vec<_> = settled.iter().copied().filter(|place| !self.is_settled(*place)).collect();
        let checkpoint = checkpoint.max(self.checkpoint);
        let behind = settled.iter().filter(|place| place.position > checkpoint).count();
        if self.ahead.len().saturating_add(behind) > AHEAD_LEN_MAX {
            return Err(Rejection::Invalid("too many settled events behind the checkpoint".into()));
        }
        // First what is parked: by the checkpoint that follows it is settled.
        let mut events: Vec<_> =
            parked.into_iter().map(|delivery| Event::Parked { delivery: delivery.clone(), at: now }).collect();
        if checkpoint > self.checkpoint || !settled.is_empty() {
            events.push(Event::Recorded { checkpoint, settled });
        }
        if events.is_empty() { Err(Rejection::NothingNew) } else { Ok(events) }
    }
}

fn check(settings: &Settings) -> Result<(), Rejection> {
    let in_order = settings.backoff_first.0 > 0 && settings.backoff_first <= settings.backoff_max;
    let fault = if settings.types.len() > TYPES_LEN_MAX {
        "too many types"
    } else if !(1..=ATTEMPTS_MAX).contains(&settings.attempts_max) {
        "attempts_max must be 1 to 100"
    } else if !in_order || settings.backoff_max > WAIT_MAX {
        "the backoff must be more than nothing, first at most the largest, at most an hour"
    } else if settings.answer_timeout.0 == 0 || settings.answer_timeout > WAIT_MAX {
        "the answer timeout must be more than nothing and at most an hour"
    } else if !(1..=IN_FLIGHT_MAX).contains(&settings.in_flight_max) {
        "in_flight_max must be 1 to 1000"
    } else {
        return Ok(());
    };
    Err(Rejection::Invalid(fault.into()))
}

fn check_batch(numbers: &[u64], limit: u32) -> Result<usize, Rejection> {
    let most = usize::try_from(BATCH_LEN_MAX).unwrap_or(usize::MAX);
    if numbers.len() > most || !(1..=BATCH_LEN_MAX).contains(&limit) {
        return Err(Rejection::Invalid("a batch must be 1 to 1000".into()));
    }
    Ok(usize::try_from(limit).unwrap_or(most))
}

impl Decider for Group {
    type State = State;
    type Command = Command;
    type Event = Event;
    type Rejection = Rejection;
    type Effect = ();
    type View = View;

    const VERSION: u32 = 1;

    fn decide(state: &State, command: &Command, context: &Context) -> Result<Vec<Event>, Rejection> {
        let at = context.now;
        if let Command::Create { settings } = command {
            check(settings)?;
            return match &state.settings {
                Some(_) => Err(Rejection::Exists),
                None => Ok(vec![Event::Created { settings: settings.clone(), at }]),
            };
        }
        if state.settings.is_none() {
            return Err(Rejection::NotCreated);
        }
        match command {
            Command::Create { .. } => Err(Rejection::Exists),
            Command::Record { checkpoint, settled, parked } => state.record(*checkpoint, settled, parked, at),
            Command::Redrive { numbers, limit } => {
                let limit = check_batch(numbers, *limit)?;
                let room = REDRIVEN_LEN_MAX.saturating_sub(state.redriven.len());
                match state.chosen(numbers, limit.min(room)) {
                    parked if !parked.is_empty() => Ok(vec![Event::Redriven { parked, at }]),
                    _ if room == 0 => Err(Rejection::RedriveBusy),
                    _ => Err(Rejection::NotParked),
                }
            }
            Command::Drop { numbers, limit, reason } => {
                let limit = check_batch(numbers, *limit)?;
                if reason.trim().is_empty() || reason.len() > TEXT_BYTES_MAX {
                    return Err(Rejection::Invalid("a reason must be given, of at most 2,000 bytes".into()));
                }
                match state.chosen(numbers, limit) {
                    parked if !parked.is_empty() => Ok(vec![Event::Dropped { parked, reason: reason.clone(), at }]),
                    _ => Err(Rejection::NotParked),
                }
            }
        }
    }

    fn evolve(mut state: State, event: &Event) -> State {
        state.version = state.version.saturating_add(1);
        match event {
            Event::Created { settings, at } => {
                state.checkpoint = settings.after;
                state.created_at = *at;
                state.settings = Some(settings.clone());
            }
            Event::Recorded { checkpoint, settled } => {
                for place in settled {
                    state.redriven.remove(place);
                }
                state.checkpoint = state.checkpoint.max(*checkpoint);
                state.ahead.extend(settled.iter().filter(|place| place.position > *checkpoint));
                // What lies up to the checkpoint need not be told apart any more.
                let first = Place { position: state.checkpoint.next(), index: 0 };
                state.ahead = state.ahead.split_off(&first);
            }
            Event::Parked { delivery, at } => {
                let place = delivery.place;
                state.redriven.remove(&place);
                state.parked.insert(state.version, Parked { place, at: *at });
                state.parked_total = state.parked_total.saturating_add(1);
                if place.position > state.checkpoint {
                    state.ahead.insert(place);
                }
            }
            Event::Redriven { parked, .. } => {
                for one in parked {
                    state.parked.remove(&one.number);
                    state.redriven.insert(one.place);
                }
            }
            Event::Dropped { parked, .. } => {
                for one in parked {
                    state.parked.remove(&one.number);
                    state.dropped_total = state.dropped_total.saturating_add(1);
                }
            }
        }
        state
    }

    fn react(_state: &State, _event: &Event) -> Vec<()> {
        Vec::new()
    }

    fn view(state: &State, _now: TimestampUs) -> View {
        View { parked: u64::try_from(state.parked.len()).unwrap_or(u64::MAX) }
    }
}
