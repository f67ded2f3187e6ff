//! The state of an actor as it was at a version or at a time, folded from its first event, never from a snapshot.
//!
//! Invariant: the same log, stream and moment give the same state for ever.

use actors_core::{Decider, region::Region, tenant::Tenant};
use events_journal::{EventLog, ReadError};
use events_model::{DecodeError, Position, Stored, StreamId, TimestampUs, Version};
use serde::Serialize;

use crate::walk;

/// Which moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Right after this version; 0 = before the first event.
    Version(Version),
    /// After everything recorded until then, inclusive.
    Time(TimestampUs),
    /// Now.
    Newest,
}

/// A state and the version it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateAt<S> {
    /// The last version it contains; 0 = none.
    pub version: Version,
    /// When that was recorded; 0 = before the first event.
    pub recorded_at: TimestampUs,
    /// The state.
    pub state: S,
}

/// Why there is no such state.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream does not exist.
    #[error("there is no stream {stream}")]
    NoSuchStream {
        /// The stream.
        stream: StreamId,
    },
    /// The stream has not come so far.
    #[error("stream {stream} has no version {version}, it is at {head}")]
    BeyondHead {
        /// The stream.
        stream: StreamId,
        /// What was asked for.
        version: Version,
        /// The newest there is.
        head: Version,
    },
    /// No actor of this program has streams of this kind.
    #[error("streams of kind {:?} have no state that this program can rebuild", .stream.kind())]
    Kind {
        /// The stream.
        stream: StreamId,
    },
    /// Versions are missing: the log is damaged.
    #[error("stream {stream} goes on with version {found} after {after}")]
    Gap {
        /// The stream.
        stream: StreamId,
        /// The last version before the gap.
        after: Version,
        /// The first version behind it.
        found: Version,
    },
    /// An event does not decode.
    #[error("version {version} of {stream} at position {position} does not decode")]
    Decode {
        /// The stream.
        stream: StreamId,
        /// The event.
        version: Version,
        /// Place of its commit.
        position: Position,
        /// Why.
        #[source]
        source: DecodeError,
    },
    /// The log cannot be read.
    #[error("read stream {stream}")]
    Read {
        /// The stream.
        stream: StreamId,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// The state has no JSON.
    #[error("write the state of {stream} as JSON")]
    Json {
        /// The stream.
        stream: StreamId,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl<S: Serialize> StateAt<S> {
    /// The state as JSON.
    ///
    /// # Errors
    /// The state has no JSON form.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(&self.state)
    }
}

/// Rebuilds a tenant's state.
///
/// # Errors
/// As [`rebuild`].
pub fn tenant_at(log: &dyn EventLog, stream: &StreamId, at: At) -> Result<StateAt<actors_core::tenant::State>, Error> {
    rebuild::<Tenant>(log, stream, at)
}

/// Rebuilds a region's state.
///
/// # Errors
/// As [`rebuild`].
pub fn region_at(log: &dyn EventLog, stream: &StreamId, at: At) -> Result<StateAt<actors_core::region::State>, Error> {
    rebuild::<Region>(log, stream, at)
}

/// Rebuilds the state of any actor as JSON.
///
/// # Errors
/// As [`rebuild`]; and `Kind` for a stream whose actor this program does not have.
pub fn json_at(log: &dyn EventLog, stream: &StreamId, at: At) -> Result<StateAt<String>, Error> {
    match stream.kind() {
        "tenant" => to_json(stream, tenant_at(log, stream, at)?),
        "region" => to_json(stream, region_at(log, stream, at)?),
        _ => Err(Error::Kind { stream: stream.clone() }),
    }
}

fn to_json<S: Serialize>(stream: &StreamId, state: StateAt<S>) -> Result<StateAt<String>, Error> {
    let json = state.json().map_err(|source| Error::Json { stream: stream.clone(), source })?;
    Ok(StateAt { version: state.version, recorded_at: state.recorded_at, state: json })
}

/// Rebuilds the state of the actor with these rules. Blocks as long as reading the stream does.
///
/// # Errors
/// - `NoSuchStream`: it has no event at all;
/// - `BeyondHead`: the version does not exist (yet);
/// - `Gap`, `Decode`, `Read`: the log cannot be read; nothing is skipped.
pub fn rebuild<D: Decider>(log: &dyn EventLog, stream: &StreamId, at: At) -> Result<StateAt<D::State>, Error> {
    let read = |source| Error::Read { stream: stream.clone(), source };
    let head = log.head(stream).map_err(read)?;
    if head == Version::ZERO {
        return Err(Error::NoSuchStream { stream: stream.clone() });
    }
    let (last, until) = match at {
        At::Version(version) if version > head => {
            return Err(Error::BeyondHead { stream: stream.clone(), version, head });
        }
        At::Version(version) => (version, TimestampUs(u64::MAX)),
        At::Time(until) => (head, until),
        At::Newest => (head, TimestampUs(u64::MAX)),
    };
    let mut rebuilt = StateAt { version: Version::ZERO, recorded_at: TimestampUs::ZERO, state: D::State::default() };
    if last == Version::ZERO {
        return Ok(rebuilt);
    }
    for commit in walk(log, stream) {
        let commit = commit.map_err(read)?;
        let view = commit.view().map_err(read)?;
        if view.recorded_at() > until {
            break;
        }
        let found = Version(view.first_version);
        if found != rebuilt.version.next() {
            return Err(Error::Gap { stream: stream.clone(), after: rebuilt.version, found });
        }
        for event in view.events() {
            let version = rebuilt.version.next();
            let event = event.and_then(|event| D::Event::from_payload(event.payload)).map_err(|source| {
                Error::Decode { stream: stream.clone(), version, position: commit.position, source }
            })?;
            rebuilt.state = D::evolve(rebuilt.state, &event);
            rebuilt.version = version;
            rebuilt.recorded_at = view.recorded_at();
            if version == last {
                return Ok(rebuilt);
            }
        }
    }
    Ok(rebuilt)
}
