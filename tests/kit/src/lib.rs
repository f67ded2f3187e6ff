//! Given a past, when a command, then these events: tests of deciders speak the domain. Also fixtures, real NATS
//! servers, and a network to break between them and who uses them.
//!
//! A dev-dependency only; it panics where a test should fail.

pub mod nats;
pub mod proxy;
pub mod tenant;

use actors_core::{Context, Decider, fold};
use events_model::{DecisionContext, TimestampUs};

/// The moment at which tests take place unless they say otherwise: 2026-11-20T12:00:00Z.
pub const NOON: TimestampUs = TimestampUs(1_795_176_000_000_000);

/// A past and a moment.
#[derive(Debug)]
pub struct Given<D: Decider> {
    state: D::State,
    now: TimestampUs,
}

/// Begins with what has happened.
pub fn given<D: Decider>(past: impl IntoIterator<Item = D::Event>) -> Given<D> {
    let state = past.into_iter().fold(D::State::default(), |state, event| D::evolve(state, &event));
    Given { state, now: NOON }
}

impl<D: Decider> Given<D> {
    /// Sets the moment of the decision.
    #[must_use]
    pub fn at(mut self, now: TimestampUs) -> Self {
        self.now = now;
        self
    }

    /// Decides.
    pub fn when(self, command: &D::Command) -> Decided<D> {
        let context = Context { now: self.now, inputs: DecisionContext::default() };
        let result = D::decide(&self.state, command, &context);
        Decided { state: self.state, result }
    }

    /// The state.
    pub fn state(&self) -> &D::State {
        &self.state
    }
}

/// What came of a command.
#[derive(Debug)]
pub struct Decided<D: Decider> {
    state: D::State,
    result: Result<Vec<D::Event>, D::Rejection>,
}

impl<D: Decider> Decided<D> {
    /// Demands these events and returns the state after them.
    ///
    /// # Panics
    /// Others, or a rejection, came.
    #[track_caller]
    pub fn then(self, events: impl IntoIterator<Item = D::Event>) -> D::State {
        let expected: Vec<_> = events.into_iter().collect();
        assert_eq!(self.result, Ok(expected.clone()));
        fold::<D>(self.state, &expected)
    }

    /// Demands this rejection.
    ///
    /// # Panics
    /// Events, or another rejection, came.
    #[track_caller]
    pub fn rejected(self, rejection: &D::Rejection) {
        assert_eq!(self.result.as_ref(), Err(rejection));
    }

    /// Demands events, whichever, and returns them with the state after them.
    ///
    /// # Panics
    /// A rejection came.
    #[expect(clippy::panic, reason = "a test helper fails its test")]
    #[track_caller]
    pub fn accepted(self) -> (Vec<D::Event>, D::State) {
        match self.result {
            Ok(events) => {
                let state = fold::<D>(self.state, &events);
                (events, state)
            }
            Err(rejection) => panic!("rejected: {rejection}"),
        }
    }
}
