//! Folds every tenant over the whole log in one pass: the measure of how fast Freehold can rebuild everything.
//!
//! Invariants: every event of every tenant's stream is decoded and folded by the actor's own rules, none is sampled
//! or skipped; commits of other streams are only looked at. One pass, one thread, one page of the log in memory.

use std::collections::HashMap;

use actors_core::tenant::{self, State};
use events_journal::{Direction, EventLog, Filter, ReadError, Recorded, log::READ_LIMIT_MAX};
use events_model::{DecodeError, Position, Stored, Version, envelope::StreamView, tenant::Event};

/// All tenants after a pass.
#[derive(Debug, Default)]
pub struct Scan {
    /// Commits looked at.
    pub commits: u64,
    /// Events folded.
    pub events: u64,
    /// The last commit that is contained.
    pub position: Position,
    /// Where a stream's state lies: one lookup a commit, no key made.
    places: HashMap<Box<str>, usize, foldhash::fast::RandomState>,
    states: Vec<State>,
}

/// Why a pass ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log cannot be read.
    #[error("read the log at position {position}")]
    Read {
        /// Where the read began.
        position: Position,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// An event does not decode.
    #[error("version {version} of {stream} at position {position} does not decode")]
    Decode {
        /// Its stream.
        stream: String,
        /// Its version.
        version: Version,
        /// Place of its commit.
        position: Position,
        /// Why.
        #[source]
        source: DecodeError,
    },
}

impl Scan {
    /// The state of a tenant by its stream: `tenant/acme`.
    pub fn state(&self, stream: &str) -> Option<&State> {
        self.at(*self.places.get(stream)?)
    }

    /// All tenants' streams and states, in no order.
    pub fn states(&self) -> impl Iterator<Item = (&str, &State)> {
        self.places.iter().filter_map(|(stream, place)| Some((&**stream, self.at(*place)?)))
    }

    fn at(&self, place: usize) -> Option<&State> {
        self.states.get(place)
    }

    fn place(&mut self, stream: &str) -> usize {
        if let Some(place) = self.places.get(stream) {
            return *place;
        }
        let place = self.states.len();
        self.states.push(State::default());
        self.places.insert(stream.into(), place);
        place
    }

    /// Folds one commit.
    ///
    /// # Errors
    /// Its envelope or one of its events does not decode; the tenant is as before that event.
    pub fn apply(&mut self, commit: &Recorded) -> Result<(), Error> {
        let position = commit.position;
        let view = StreamView::parse(&commit.bytes)
            .map_err(|source| Error::Read { position, source: ReadError::Decode { position, source } })?;
        self.commits += 1;
        self.position = position;
        if !view.stream.starts_with("tenant/") {
            return Ok(());
        }
        let place = self.place(view.stream);
        let Some(state) = self.states.get_mut(place) else { return Ok(()) };
        let mut result = Ok(());
        for (version, event) in (view.first_version..).zip(view.events()) {
            match event.and_then(|event| Event::from_payload(event.payload)) {
                Ok(event) => {
                    tenant::apply(state, &event);
                    self.events += 1;
                }
                Err(source) => {
                    let (stream, version) = (view.stream.to_owned(), Version(version));
                    result = Err(Error::Decode { stream, version, position, source });
                    break;
                }
            }
        }
        result
    }
}

/// Folds all tenants over the whole log up to the head at the call. Blocks; `progress` is told the position after
/// each page.
///
/// # Errors
/// The log cannot be read or an event does not decode; nothing is skipped.
pub fn all_tenants(log: &dyn EventLog, mut progress: impl FnMut(Position)) -> Result<Scan, Error> {
    let mut scan = Scan::default();
    let head = log.head_position();
    let mut next = Position::ZERO.next();
    while next <= head {
        let page = log
            .read_log(next, Direction::Forward, &Filter::default(), READ_LIMIT_MAX)
            .map_err(|source| Error::Read { position: next, source })?;
        for commit in &page.commits {
            scan.apply(commit)?;
        }
        progress(scan.position);
        if page.next <= next {
            break;
        }
        next = page.next;
    }
    Ok(scan)
}
