//! What a read model is: a pure fold over events, and what becomes of an event that it cannot take.
//!
//! Invariants: state depends on the commits up to `position` and their order alone, never on how they were batched;
//! an event that does not apply changes nothing, is counted and remembered, and the fold goes on behind it.

use std::{error::Error as _, fmt::Write as _};

use events_journal::{Direction, EventLog, Filter, ReadError, Recorded};
use events_model::{CommitView, DecodeError, EventView, Position, RequestId, TenantId, Version};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Most parked events that are remembered with their error; all are counted.
pub const PARKED_LEN_MAX: usize = 1_000;
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

/// An event that did not apply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedEvent {
    /// Place of its commit.
    pub position: Position,
    /// Its stream; empty = the commit's envelope does not decode.
    pub stream: String,
    /// Its version in the stream; 0 = unknown.
    pub version: Version,
    /// Its full protobuf name; empty = unknown.
    pub kind: String,
    /// Why it did not apply, with all causes.
    pub error: String,
}

/// All events that did not apply.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parked {
    /// How many.
    pub count: u64,
    /// The first `PARKED_LEN_MAX` of them.
    pub events: Vec<ParkedEvent>,
}

impl Parked {
    fn add(&mut self, event: ParkedEvent) {
        self.count = self.count.saturating_add(1);
        if self.events.len() < PARKED_LEN_MAX {
            self.events.push(event);
        }
    }
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
            Err(source) => return self.park(position, None, Version::ZERO, "", &ApplyError::Decode(source)),
        };
        let mut version = Version(view.first_version);
        for event in view.events() {
            match event {
                Err(source) => self.park(position, Some(&view), version, "", &ApplyError::Decode(source)),
                Ok(event) => {
                    if let Err(error) = P::apply(&mut self.state, position, &view, &event) {
                        self.park(position, Some(&view), version, event.payload.kind, &error);
                    }
                }
            }
            version = version.next();
        }
    }

    fn park(
        &mut self,
        position: Position,
        commit: Option<&CommitView<'_>>,
        version: Version,
        kind: &str,
        error: &ApplyError,
    ) {
        let stream = commit.map_or_else(String::new, |commit| commit.stream.to_owned());
        self.parked.add(ParkedEvent { position, stream, version, kind: kind.to_owned(), error: chain(error) });
    }
}

fn chain(error: &ApplyError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Writing to a text cannot fail.
        write!(text, ": {cause}").ok();
        source = cause.source();
    }
    text
}

/// Recomputes a read model from the start of the log to a position (the head, if that comes first), without
/// checkpoints. Blocks.
///
/// # Errors
/// As `EventLog::read_log`.
pub fn fold_to<P: Projection>(log: &dyn EventLog, upto: Position) -> Result<Fold<P::State>, ReadError> {
    let mut fold = Fold { state: P::State::default(), position: Position::ZERO, parked: Parked::default() };
    let upto = upto.min(log.head_position());
    let mut next = Position::ZERO.next();
    while next <= upto {
        let page = log.read_log(next, Direction::Forward, &Filter::default(), BATCH_LEN_MAX)?;
        for commit in page.commits.iter().take_while(|commit| commit.position <= upto) {
            fold.apply::<P>(commit);
        }
        if page.next <= next {
            break;
        }
        next = page.next;
    }
    Ok(fold)
}
