//! The port `SnapshotStore` on sled: saved states in pieces, with a header that proves they belong together.
//!
//! Invariants: two places a name, used in turns, so that an interrupted save leaves the older state readable; a state is
//! returned only if its length and checksum are those its header names, it is of this log, and it does not run ahead
//! of it. Nothing is synced: a state that is lost is rebuilt.

use events_journal::{Blob, ReadError, SnapshotStore, snapshot::BLOB_BYTES_MAX};
use events_model::{StreamId, Version};

use crate::{
    error::read_io,
    limit::BLOB_CHUNK_BYTES,
    run_store::{RunStore, StoreFault, seal, unseal},
    store::LocalStore,
};

const SNAPSHOT: u8 = b's';
const CHECKPOINT: u8 = b'c';
/// A header may be replaced while its pieces are read; then the new one is read.
const LOAD_ATTEMPTS_MAX: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    log_id: [u8; 16],
    at: u64,
    bytes: u64,
    crc: u32,
    slot: u8,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.log_id.to_vec();
        bytes.extend_from_slice(&self.at.to_le_bytes());
        bytes.extend_from_slice(&self.bytes.to_le_bytes());
        bytes.extend_from_slice(&self.crc.to_le_bytes());
        bytes.push(self.slot);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (log_id, bytes) = bytes.split_first_chunk::<16>()?;
        let (at, bytes) = bytes.split_first_chunk::<8>()?;
        let (len, bytes) = bytes.split_first_chunk::<8>()?;
        let (crc, bytes) = bytes.split_first_chunk::<4>()?;
        let [slot] = bytes else {
            return None;
        };
        Some(Self {
            log_id: *log_id,
            at: u64::from_le_bytes(*at),
            bytes: u64::from_le_bytes(*len),
            crc: u32::from_le_bytes(*crc),
            slot: *slot,
        })
    }

    fn chunks(&self) -> u32 {
        u32::try_from(self.bytes.div_ceil(BLOB_CHUNK_BYTES as u64)).unwrap_or(u32::MAX)
    }
}

/// Names never hold a zero byte, so no name's keys lie between another's.
fn header_key(kind: u8, name: &str) -> Vec<u8> {
    let mut key = vec![kind];
    key.extend_from_slice(name.as_bytes());
    key.push(0);
    key
}

fn chunk_key(kind: u8, name: &str, slot: u8, index: u32) -> Vec<u8> {
    let mut key = header_key(kind, name);
    key.push(slot);
    key.extend_from_slice(&index.to_be_bytes());
    key
}

fn read_header(store: &RunStore, kind: u8, name: &str) -> Result<Option<Header>, StoreFault> {
    let key = header_key(kind, name);
    let value = store.with(|trees| trees.blobs.get(&key))?;
    Ok(value.and_then(|value| Header::decode(unseal(&key, &value).ok()?)))
}

fn save(store: &RunStore, log_id: [u8; 16], kind: u8, name: &str, blob: (u64, &[u8])) -> Result<(), StoreFault> {
    let (at, bytes) = blob;
    let old = read_header(store, kind, name)?;
    let slot = old.map_or(0, |old| old.slot ^ 1) & 1;
    for (index, chunk) in (0_u32..).zip(bytes.chunks(BLOB_CHUNK_BYTES)) {
        store.with(|trees| trees.blobs.insert(chunk_key(kind, name, slot, index), chunk))?;
    }
    let header = Header { log_id, at, bytes: bytes.len() as u64, crc: crc32c::crc32c(bytes), slot };
    let key = header_key(kind, name);
    let value = seal(&key, header.encode());
    store.with(|trees| trees.blobs.insert(key, value))?;
    for index in 0..old.map_or(0, |old| old.chunks()) {
        store.with(|trees| trees.blobs.remove(chunk_key(kind, name, slot ^ 1, index)))?;
    }
    Ok(())
}

fn load(store: &RunStore, log_id: [u8; 16], kind: u8, name: &str) -> Result<Option<Blob>, StoreFault> {
    for _ in 0..LOAD_ATTEMPTS_MAX {
        let Some(header) = read_header(store, kind, name)? else {
            return Ok(None);
        };
        if header.log_id != log_id || header.bytes > BLOB_BYTES_MAX as u64 {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(header.bytes).unwrap_or(0));
        for index in 0..header.chunks() {
            if let Some(chunk) = store.with(|trees| trees.blobs.get(chunk_key(kind, name, header.slot, index)))? {
                bytes.extend_from_slice(&chunk);
            }
        }
        if bytes.len() as u64 == header.bytes && crc32c::crc32c(&bytes) == header.crc {
            return Ok(Some(Blob { at: header.at, bytes }));
        }
    }
    Ok(None)
}

impl LocalStore {
    fn save_blob(&self, kind: u8, name: &str, at: u64, bytes: &[u8]) -> Result<(), ReadError> {
        let what = || format!("to save the state of {name}");
        if bytes.len() > BLOB_BYTES_MAX || name.contains('\0') {
            let error = std::io::Error::new(std::io::ErrorKind::InvalidInput, "too large, or not a name");
            return Err(read_io(what())(error));
        }
        let index = &self.library().index;
        let _one_at_a_time = self.handle.saving.lock();
        save(&index.store, index.key.id, kind, name, (at, bytes)).map_err(|fault| read_io(what())(fault.into_io()))
    }

    fn load_blob(&self, kind: u8, name: &str) -> Result<Option<Blob>, ReadError> {
        let index = &self.library().index;
        match load(&index.store, index.key.id, kind, name) {
            // A reader beside a writer has no index, and a closed one has none any more.
            Err(StoreFault::Closed) => Ok(None),
            loaded => loaded.map_err(|fault| read_io(format!("the state of {name}"))(fault.into_io())),
        }
    }
}

impl SnapshotStore for LocalStore {
    fn save_snapshot(&self, stream: &StreamId, version: Version, bytes: &[u8]) -> Result<(), ReadError> {
        self.save_blob(SNAPSHOT, stream.as_str(), version.0, bytes)
    }

    fn load_snapshot(&self, stream: &StreamId) -> Result<Option<Blob>, ReadError> {
        let index = &self.library().index;
        let head = index.live.read().head(index.key.hash.stream(stream.as_str()));
        Ok(self.load_blob(SNAPSHOT, stream.as_str())?.filter(|blob| blob.at <= head))
    }

    fn save_checkpoint(&self, projection: &str, blob: &Blob) -> Result<(), ReadError> {
        self.save_blob(CHECKPOINT, projection, blob.at, &blob.bytes)
    }

    fn load_checkpoint(&self, projection: &str) -> Result<Option<Blob>, ReadError> {
        let head = self.library().index.live.read().end.position - 1;
        Ok(self.load_blob(CHECKPOINT, projection)?.filter(|blob| blob.at <= head))
    }
}
