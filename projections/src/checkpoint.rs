//! The bytes of a checkpoint: a header (magic, version of this form, version of the projection, CRC-32C of the state,
//! CRC-32C of the last commit it contains) and the state with its parked events in bincode.
//!
//! Invariant: what decodes is what was saved, by this version of the projection, of a log that holds the same commit
//! at the same position; anything else is an error, and the runner rebuilds. Every commit holds random ids, so a commit
//! of another log, or of another past of this one (it was restored from a backup and went on), is another one.
//! Checkpoints are disposable, so the form may change at any time; older forms are not read.

use bincode::config;
use events_journal::{Blob, Direction, EventLog, Filter, ReadError, snapshot::BLOB_BYTES_MAX};
use events_model::Position;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    parked::Parked,
    projection::{Fold, Projection},
};

const MAGIC: [u8; 4] = *b"FHCP";
const FORM: u32 = 4;
/// Magic, form, version of the projection, checksum of the state, checksum of the last commit.
const HEADER_BYTES: usize = 20;

/// Why a checkpoint cannot be used (or made).
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the bytes are no checkpoint of form {FORM}")]
    Form,
    #[error("it was saved by version {found} of the projection, this is {expected}")]
    Version { found: u32, expected: u32 },
    #[error("its checksum is wrong")]
    Checksum,
    #[error("the log holds another commit at position {at}, it is of another log or another past of this one")]
    OtherLog { at: Position },
    #[error("the log cannot be read where it ends")]
    Read(#[source] ReadError),
    #[error("its state does not decode")]
    Decode(#[source] bincode::error::DecodeError),
    #[error("{bytes} bytes follow its state")]
    Tail { bytes: usize },
    #[error("the state does not encode")]
    Encode(#[source] bincode::error::EncodeError),
}

pub(crate) fn encode<P: Projection>(log: &dyn EventLog, fold: &Fold<P::State>) -> Result<Blob, Error> {
    let last = checksum_at(log, fold.position)?;
    let body = to_bytes(&(&fold.state, &fold.parked))?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES.saturating_add(body.len()));
    bytes.extend(MAGIC);
    bytes.extend(FORM.to_le_bytes());
    bytes.extend(P::VERSION.to_le_bytes());
    bytes.extend(crc32c::crc32c(&body).to_le_bytes());
    bytes.extend(last.to_le_bytes());
    bytes.extend(body);
    Ok(Blob { at: fold.position.0, bytes })
}

/// The checksum of the commit at a position.
fn checksum_at(log: &dyn EventLog, at: Position) -> Result<u32, Error> {
    let page = log.read_log(at, Direction::Forward, &Filter::default(), 1).map_err(Error::Read)?;
    let commit = page.commits.first().filter(|commit| commit.position == at).ok_or(Error::OtherLog { at })?;
    Ok(crc32c::crc32c(&commit.bytes))
}

fn to_bytes(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    bincode::serde::encode_to_vec(value, config::standard()).map_err(Error::Encode)
}

pub(crate) fn decode<P: Projection>(log: &dyn EventLog, blob: &Blob) -> Result<Fold<P::State>, Error> {
    let (header, body) = blob.bytes.split_first_chunk::<HEADER_BYTES>().ok_or(Error::Form)?;
    let (words, _) = header.as_chunks::<4>();
    let &[magic, form, found, checksum, last] = words else { return Err(Error::Form) };
    let [form, found, checksum, last] = [form, found, checksum, last].map(u32::from_le_bytes);
    if magic != MAGIC || form != FORM {
        return Err(Error::Form);
    }
    if found != P::VERSION {
        return Err(Error::Version { found, expected: P::VERSION });
    }
    if crc32c::crc32c(body) != checksum {
        return Err(Error::Checksum);
    }
    let position = Position(blob.at);
    if checksum_at(log, position)? != last {
        return Err(Error::OtherLog { at: position });
    }
    let (state, parked) = from_bytes::<(P::State, Parked)>(body)?;
    Ok(Fold { state, position, parked })
}

fn from_bytes<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    // The limit bounds what a wrong length can make us allocate.
    let config = config::standard().with_limit::<BLOB_BYTES_MAX>();
    let (value, read) = bincode::serde::decode_from_slice(body, config).map_err(Error::Decode)?;
    match body.len().saturating_sub(read) {
        0 => Ok(value),
        bytes => Err(Error::Tail { bytes }),
    }
}
