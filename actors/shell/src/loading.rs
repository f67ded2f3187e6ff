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
    /// Id of the event of that version; zeros for version 0.
    pub(crate) last_event: [u8; 16],
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
    let snapshot = from_snapshot(snapshots, stream).filter(|loaded| loaded.version <= head);
    let ours = match snapshot {
        Some(loaded) if is_of(log, stream, &loaded)? => Some(loaded),
        Some(_) => {
            warn!(%stream, "the snapshot is of another past of this stream, the whole stream is folded");
            None
        }
        None => None,
    };
    let loaded = ours.unwrap_or_else(|| Loaded {
        state: D::State::default(),
        version: Version::ZERO,
        last_event: [0; 16],
        saved: Version::ZERO,
        recorded_at: TimestampUs::ZERO,
    });
    go_on(log, stream, loaded)
}

/// Folds every event after what is loaded.
pub(crate) fn go_on<D: Decider>(
    log: &dyn EventLog,
    stream: &StreamId,
    mut loaded: Loaded<D>,
) -> Result<Loaded<D>, ReadError> {
    loop {
        let page = log.read_stream(stream, loaded.version.next(), Direction::Forward, LOAD_PAGE_LEN)?;
        for recorded in &page {
            let commit = recorded.view()?;
            let undecodable = |source| ReadError::Decode { position: recorded.position, source };
            if commit.first_version != loaded.version.next().0 {
                return Err(gap(recorded.position));
            }
            for event in commit.events() {
                let event = event.map_err(undecodable)?;
                loaded.last_event = event.event_id;
                let event = D::Event::from_payload(event.payload).map_err(undecodable)?;
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
    let (state, last_event) = decode::<D>(&blob.bytes)?;
    let version = Version(blob.at);
    Some(Loaded { state, version, last_event, saved: version, recorded_at: TimestampUs::ZERO })
}

/// Whether the stream has the event that the snapshot ends with: a log that was restored from a backup and went on may
/// have another one of that version.
fn is_of<D: Decider>(log: &dyn EventLog, stream: &StreamId, loaded: &Loaded<D>) -> Result<bool, ReadError> {
    let page = log.read_stream(stream, loaded.version, Direction::Backward, 1)?;
    let Some(recorded) = page.first() else { return Ok(false) };
    let commit = recorded.view()?;
    let last = commit.events().last().transpose();
    let last = last.map_err(|source| ReadError::Decode { position: recorded.position, source })?;
    Ok(commit.last_version() == loaded.version && last.is_some_and(|event| event.event_id == loaded.last_event))
}

/// A snapshot's bytes: magic, header format, rules version, id of its last event, state.
pub(crate) fn encode<D: Decider>(state: &D::State, last_event: [u8; 16]) -> Option<Vec<u8>> {
    let mut bytes = SNAPSHOT_MAGIC.to_vec();
    bytes.extend_from_slice(&SNAPSHOT_FORMAT.to_le_bytes());
    bytes.extend_from_slice(&D::VERSION.to_le_bytes());
    bytes.extend_from_slice(&last_event);
    match bincode::serde::encode_into_std_write(state, &mut bytes, CODEC) {
        Ok(_) => Some(bytes),
        Err(error) => {
            warn!(%error, "state cannot be encoded, no snapshot is taken");
            None
        }
    }
}

fn decode<D: Decider>(bytes: &[u8]) -> Option<(D::State, [u8; 16])> {
    let rest = bytes.strip_prefix(&SNAPSHOT_MAGIC)?;
    let rest = rest.strip_prefix(&SNAPSHOT_FORMAT.to_le_bytes())?;
    let rest = rest.strip_prefix(&D::VERSION.to_le_bytes())?;
    let (last_event, rest) = rest.split_first_chunk::<16>()?;
    let (state, read) = bincode::serde::decode_from_slice(rest, CODEC).ok()?;
    (read == rest.len()).then_some((state, *last_event))
}
