//! What a read model is: a pure fold over events, and what becomes of an event that it cannot take.
//!
//! Invariants: state depends on the commits up to `position` and their order alone, never on how they were batched;
//! an event that does not apply changes nothing, is parked (`parked`), and the fold goes on behind it.

use std::{error::Error as _, fmt::Write as _};

use events_journal::Recorded;
use events_model::{
    CommitView, DecodeError, EventView, Position, RequestId, TenantId, TimestampUs, Version, group::Place,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    kind::{DROPPED_FROM_READ_MODEL, READ_MODEL_REDRIVEN},
    parked::{Parked, ParkedEvent, WHOLE_COMMIT},
};

/// Longest error of a parked event that is remembered, bytes.
const ERROR_BYTES_MAX: usize = 500;
/// Most commits folded between two reads of the log.
pub const BATCH_LEN_MAX: usize = 512;

/// A read model: a pure fold.
///
/// Laws, held by tests: `apply` depends on its arguments alone; when it fails, the state is as before.
pub trait Projection: Send + Sync + 'static {
    /// Name under which its checkpoint is saved; never changed.
    const NAME: &'static str;
    /// Raised whenever the state's form or the fold changes: older checkpoints are then rebuilt.
    const VERSION: u32;
    /// What it holds.
    type State: Default + Clone + Send + Sync + Serialize + DeserializeOwned + 'static;

    /// Folds one event into the state. Decides by the event's type first and decodes only what it is about.
    ///
    /// # Errors
    /// The event does not decode or contradicts the state; the state is unchanged.
    fn apply(
        state: &mut Self::State,
        position: Position,
        commit: &CommitView<'_>,
        event: &EventView<'_>,
    ) -> Result<(), ApplyError>;
}

/// Why an event does not apply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The envelope or the payload does not decode.
    #[error("the event does not decode")]
    Decode(#[source] DecodeError),
    /// An event of the tenant actor lies in a stream of another kind.
    #[error("{stream:?} is not the stream of a tenant")]
    Stream {
        /// The stream.
        stream: String,
    },
    /// A tenant that was never registered.
    #[error("tenant {tenant} is not registered")]
    NotRegistered {
        /// The tenant.
        tenant: TenantId,
    },
    /// A request that has no open reservation.
    #[error("request {request_id} has no open reservation")]
    NotOpen {
        /// The request.
        request_id: RequestId,
    },
    /// A request that has an open reservation already.
    #[error("request {request_id} has an open reservation already")]
    Open {
        /// The request.
        request_id: RequestId,
    },
}

/// A read model at a position of the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fold<S> {
    /// What the projection holds.
    pub state: S,
    /// The last commit it contains.
    pub position: Position,
    /// What did not apply up to there.
    pub parked: Parked,
}

impl<S> Fold<S> {
    /// Folds one commit: every event of it is applied or parked. A commit that it contains already changes nothing.
    pub fn apply<P: Projection<State = S>>(&mut self, commit: &Recorded) {
        let position = commit.position;
        if position <= self.position {
            return;
        }
        self.position = position;
        let view = match CommitView::parse(&commit.bytes) {
            Ok(view) => view,
            Err(source) => {
                let place = Place { position, index: WHOLE_COMMIT };
                return self.park(place, None, "", &ApplyError::Decode(source));
            }
        };
        for (index, event) in (0..).zip(view.events()) {
            let place = Place { position, index };
            match event {
                Err(source) => self.park(place, Some(&view), "", &ApplyError::Decode(source)),
                Ok(event) => {
                    let applied = match event.payload.kind {
                        DROPPED_FROM_READ_MODEL | READ_MODEL_REDRIVEN => self.parked.decide(P::NAME, event.payload),
                        _ if self.parked.is_dropped(place) => Ok(()),
                        _ => P::apply(&mut self.state, position, &view, &event),
                    };
                    if let Err(error) = applied {
                        self.park(place, Some(&view), event.payload.kind, &error);
                    }
                }
            }
        }
    }

    fn park(&mut self, place: Place, commit: Option<&CommitView<'_>>, kind: &str, error: &ApplyError) {
        let version = |commit: &CommitView<'_>| commit.first_version.saturating_add(place.index.into());
        self.parked.add(ParkedEvent {
            position: place.position,
            index: place.index,
            stream: commit.map_or_else(String::new, |commit| commit.stream.to_owned()),
            version: commit.map_or(Version::ZERO, |commit| Version(version(commit))),
            kind: kind.to_owned(),
            error: chain(error),
            attempts: 1,
            recorded_at: commit.map_or(TimestampUs(0), CommitView::recorded_at),
        });
    }
}

/// An error with its causes, cut to what is remembered of it.
fn chain(error: &ApplyError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Writing to a text cannot fail.
        write!(text, ": {cause}").ok();
        source = cause.source();
    }
    text.truncate(text.floor_char_boundary(ERROR_BYTES_MAX));
    text
}
