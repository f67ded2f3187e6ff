//! An actor's state from its snapshot and the tail of its stream; and the snapshot's bytes.

use actors_core::Decider;
use bincode::config::Configuration;
use events_journal::{Direction, EventLog, ReadError, SnapshotStore};
use events_model::{DecodeError, Position, Stored, StreamId, TimestampUs, Version};
use tracing::warn;

use crate::{
    limits::LOAD_PAGE_LEN,
    names::{SNAPSHOT_FORMAT, SNAPSHOT_MAGIC},
};

const CODEC: Configuration = bincode::config::standard();

/// A state and where it stands.
#[derive(Debug)]
pub(crate) struct Loaded<D: Decider> {
    pub(crate) state: D::State,
    pub(crate) version: Version,
    /// Version of the newest snapshot.
    pub(crate) saved: Version,
    /// Time of the newest commit that was read.
    pub(crate) recorded_at: TimestampUs,
}

/// Loads a state: snapshot if there is a usable one, then every event after it.
pub(crate) fn load<D: Decider>(
    log: &dyn EventLog,
    snapshots: &dyn SnapshotStore,
    stream: &StreamId,
) -> Result<Loaded<D>, ReadError> {
    let head = log.head(stream)?;
    let mut loaded =
        from_snapshot(snapshots, stream).filter(|loaded| loaded.version <= head).unwrap_or_else(|| Loaded {
            state: D::State::default(),
            version: Version::ZERO,
            saved: Version::ZERO,
            recorded_at: TimestampUs::ZERO,
        });
    loop {
        let page = log.read_stream(stream, loaded.version.next(), Direction::Forward, LOAD_PAGE_LEN)?;
        for recorded in &page {
            let commit = recorded.view()?;
            let undecodable = |source| ReadError::Decode { position: recorded.position, source };
            if commit.first_version != loaded.version.next().0 {
                return Err(gap(recorded.position));
            }
            for event in commit.events() {
                let event = D::Event::from_payload(event.map_err(undecodable)?.payload).map_err(undecodable)?;
                loaded.state = D::evolve(std::mem::take(&mut loaded.state), &event);
            }
            loaded.version = commit.last_version();
            loaded.recorded_at = commit.recorded_at();
        }
        if page.len() < LOAD_PAGE_LEN {
            return Ok(loaded);
        }
    }
}

const fn gap(position: Position) -> ReadError {
    ReadError::Decode { position, source: DecodeError::Value { what: "the version of the commit" } }
}

fn from_snapshot<D: Decider>(snapshots: &dyn SnapshotStore, stream: &StreamId) -> Option<Loaded<D>> {
    let blob = match snapshots.load_snapshot(stream) {
        Ok(blob) => blob?,
        Err(error) => {
            warn!(%stream, %error, "snapshot cannot be read, the whole stream is folded");
            return None;
        }
    };
    // An older format is not worth a word: snapshots are disposable.
    let state = decode::<D>(&blob.bytes)?;
    let version = Version(blob.at);
    Some(Loaded { state, version, saved: version, recorded_at: TimestampUs::ZERO })
}

/// A snapshot's bytes: magic, header format, rules version, state.
pub(crate) fn encode<D: Decider>(state: &D::State) -> Option<Vec<u8>> {
    let mut bytes = SNAPSHOT_MAGIC.to_vec();
    bytes.extend_from_slice(&SNAPSHOT_FORMAT.to_le_bytes());
    bytes.extend_from_slice(&D::VERSION.to_le_bytes());
    match bincode::serde::encode_into_std_write(state, &mut bytes, CODEC) {
        Ok(_) => Some(bytes),
        Err(error) => {
            warn!(%error, "state cannot be encoded, no snapshot is taken");
            None
        }
    }
}

fn decode<D: Decider>(bytes: &[u8]) -> Option<D::State> {
    let rest = bytes.strip_prefix(&SNAPSHOT_MAGIC)?;
    let rest = rest.strip_prefix(&SNAPSHOT_FORMAT.to_le_bytes())?;
    let rest = rest.strip_prefix(&D::VERSION.to_le_bytes())?;
    let (state, read) = bincode::serde::decode_from_slice(rest, CODEC).ok()?;
    (read == rest.len()).then_some(state)
}
