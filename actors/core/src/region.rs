//! The region actor's rules: it keeps the price book, so that every price ever charged is a fact on the log, and records
//! what operators decide about read models. Deliberately absent: what a read model has parked; every node's fold knows.

use std::borrow::Cow;

use events_model::{
    TimestampUs,
    envelope::EVENTS_PER_COMMIT_MAX,
    group::TEXT_BYTES_MAX,
    id::NAME_BYTES_MAX,
    region::{Command, Event, PRICE_BOOK_LEN_MAX, PriceBookEntry},
};
use serde::{Deserialize, Serialize};

use crate::{Context, Decider};

/// The rules.
#[derive(Debug)]
pub struct Region;

/// What the rules depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Version of the price book in force; 0 = none yet.
    pub price_book_version: u32,
    /// The price book in force.
    pub entries: Vec<PriceBookEntry>,
    /// Since when.
    pub published_at: TimestampUs,
}

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Rejection {
    /// The same book is in force already.
    #[error("this price book is in force already")]
    Unchanged,
    /// Prices cannot be negative, entries not double, the book not longer than `PRICE_BOOK_LEN_MAX`.
    #[error("the price book is not valid: {0}")]
    Invalid(Cow<'static, str>),
    /// A name or reason is missing or too long, or there are no events, or too many.
    #[error("the decision about a read model is not valid: {0}")]
    ReadModel(Cow<'static, str>),
}

fn check_model(read_model: &str) -> Result<(), Rejection> {
    if (1..=NAME_BYTES_MAX).contains(&read_model.len()) {
        return Ok(());
    }
    Err(Rejection::ReadModel("its name must be 1 to 63 bytes".into()))
}

impl Decider for Region {
    type State = State;
    type Command = Command;
    type Event = Event;
    type Rejection = Rejection;
    type Effect = ();
    type View = u32;

    const VERSION: u32 = 1;

    fn decide(state: &State, command: &Command, context: &Context) -> Result<Vec<Event>, Rejection> {
        match command {
            Command::PublishPriceBook { entries } => {
                let key = |entry: &PriceBookEntry| (entry.model.clone(), entry.upstream.clone());
                if entries.len() > PRICE_BOOK_LEN_MAX {
                    return Err(Rejection::Invalid("too many entries".into()));
                }
                if entries.iter().zip(entries.iter().skip(1)).any(|(one, next)| key(one) >= key(next)) {
                    return Err(Rejection::Invalid("entries are not in order or double".into()));
                }
                if entries.iter().any(|entry| entry.input_per_mtok.0 < 0 || entry.output_per_mtok.0 < 0) {
                    return Err(Rejection::Invalid("a price is negative".into()));
                }
                if state.price_book_version > 0 && state.entries == *entries {
                    return Err(Rejection::Unchanged);
                }
                let version = state.price_book_version.saturating_add(1);
                Ok(vec![Event::PriceBookPublished { version, entries: entries.clone(), at: context.now }])
            }
            Command::DropFromReadModel { read_model, places, reason } => {
                check_model(read_model)?;
                // The parked events of one commit are given up together.
                if places.is_empty() || places.len() > EVENTS_PER_COMMIT_MAX {
                    return Err(Rejection::ReadModel("a batch must be 1 to 1024".into()));
                }
                if reason.trim().is_empty() || reason.len() > TEXT_BYTES_MAX {
                    return Err(Rejection::ReadModel("a reason must be given, of at most 2,000 bytes".into()));
                }
                let (read_model, places, reason) = (read_model.clone(), places.clone(), reason.clone());
                Ok(vec![Event::DroppedFromReadModel { read_model, places, reason, at: context.now }])
            }
            Command::RedriveReadModel { read_model } => {
                check_model(read_model)?;
                Ok(vec![Event::ReadModelRedriven { read_model: read_model.clone(), at: context.now }])
            }
        }
    }

    fn evolve(state: State, event: &Event) -> State {
        match event {
            Event::PriceBookPublished { version, entries, at } => {
                State { price_book_version: *version, entries: entries.clone(), published_at: *at }
            }
            Event::DroppedFromReadModel { .. } | Event::ReadModelRedriven { .. } => state,
        }
    }

    fn react(_state: &State, _event: &Event) -> Vec<()> {
        Vec::new()
    }

    fn view(state: &State, _now: TimestampUs) -> u32 {
        state.price_book_version
    }
}
