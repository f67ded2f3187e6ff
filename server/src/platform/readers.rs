//! The ways to read what the runners of the read models keep up to date.

use std::{collections::BTreeSet, time::Duration};

use events_model::{Position, TimestampUs, group::Place};
use projections::{
    Parked, Projection, Reader, WaitError, billing::Billing, groups::Groups, parked::ParkedEvent, tenants::Tenants,
};

/// The read models.
#[derive(Debug, Clone)]
pub struct Readers {
    /// All tenants at a glance.
    pub tenants: Reader<Tenants>,
    /// What each tenant pays.
    pub billing: Reader<Billing>,
    /// All consumer groups at a glance.
    pub groups: Reader<Groups>,
}

/// The read model of one of the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Model {
    Tenants,
    Billing,
    Groups,
}

/// What operators decide about parked events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    Redrive,
    Drop,
}

impl Model {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Tenants, Self::Billing, Self::Groups];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Tenants => Tenants::NAME,
            Self::Billing => Billing::NAME,
            Self::Groups => Groups::NAME,
        }
    }

    /// Version of its fold.
    pub(crate) const fn version(self) -> u32 {
        match self {
            Self::Tenants => Tenants::VERSION,
            Self::Billing => Billing::VERSION,
            Self::Groups => Groups::VERSION,
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|model| model.name() == name)
    }
}

impl Readers {
    /// How far each is.
    pub fn positions(&self) -> [(&'static str, Position); 3] {
        [
            (Tenants::NAME, self.tenants.position()),
            (Billing::NAME, self.billing.position()),
            (Groups::NAME, self.groups.position()),
        ]
    }

    /// How many events each could not apply, and since when it lacks the oldest.
    pub fn parked(&self) -> [(&'static str, u64, Option<TimestampUs>); 3] {
        let figures = |parked: &Parked| (parked.count, parked.oldest_at());
        Model::ALL.map(|model| {
            let (count, oldest) = self.look_at_parked(model, figures);
            (model.name(), count, oldest)
        })
    }

    /// One that holds what was given up, if there is any.
    pub(crate) fn showing_given_up(&self) -> Option<&'static str> {
        let shows = |model: &Model| self.look_at_parked(*model, Parked::shows_given_up);
        Model::ALL.into_iter().find(shows).map(Model::name)
    }

    /// Looks at what one could not apply: look, copy, leave.
    pub(crate) fn look_at_parked<R>(&self, model: Model, look: impl FnOnce(&Parked) -> R) -> R {
        match model {
            Model::Tenants => self.tenants.look_at_parked(look),
            Model::Billing => self.billing.look_at_parked(look),
            Model::Groups => self.groups.look_at_parked(look),
        }
    }

    /// Those parked events of one that are wanted, at most so many, and how many there are in all.
    pub(crate) fn parked_of(
        &self,
        model: Model,
        most: usize,
        wanted: impl Fn(&ParkedEvent) -> bool,
    ) -> (Vec<ParkedEvent>, u64) {
        self.look_at_parked(model, |parked| {
            (parked.events.iter().filter(|event| wanted(event)).take(most).cloned().collect(), parked.count)
        })
    }

    /// Where what one could not apply lies: at these positions, or, if there are none, the first so many anywhere; and how
    /// many there are in all. A position may have nothing.
    pub(crate) fn places_of(&self, model: Model, positions: &BTreeSet<u64>, first: usize) -> (Vec<Place>, u64) {
        self.look_at_parked(model, |parked| {
            let places = if positions.is_empty() {
                parked.places().take(first).collect()
            } else {
                positions.iter().flat_map(|position| parked.places_at(Position(*position))).collect()
            };
            (places, parked.count)
        })
    }

    /// Waits until one has carried out what was decided about it at a position.
    pub(crate) async fn wait_decided(
        &self,
        (model, decision): (Model, Decision),
        at: Position,
        at_most: Duration,
    ) -> Result<(), WaitError> {
        async fn wait<P: Projection>(
            reader: &Reader<P>,
            decision: Decision,
            at: Position,
            at_most: Duration,
        ) -> Result<(), WaitError> {
            reader.wait_for(at, at_most).await?;
            match decision {
                Decision::Redrive => reader.wait_rebuilt(at_most).await,
                Decision::Drop => reader.wait_given_up(at_most).await,
            }
        }
        match model {
            Model::Tenants => wait(&self.tenants, decision, at, at_most).await,
            Model::Billing => wait(&self.billing, decision, at, at_most).await,
            Model::Groups => wait(&self.groups, decision, at, at_most).await,
        }
    }
}
