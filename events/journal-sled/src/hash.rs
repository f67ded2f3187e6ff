//! Keyed hashes of the names in a log.
//!
//! Invariants: the key comes from the log's random id, so whoever chooses names (commit ids are chosen by clients)
//! cannot aim for collisions; the function is part of the index format: changing it means a new index version.
//! Not a cryptographic hash: 128 bits of it identify a stream, 64 bits only find candidates that are compared.

use std::hash::{BuildHasher, Hasher};

const SALT: u64 = 0x9E37_79B9_7F4A_7C15;
const OTHER_SALT: u64 = 0xD6E8_FEB8_6659_FD93;

/// Where a commit can be found: by stream, by idempotency key, by episode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Keys {
    /// Identity of the stream.
    pub(crate) stream: (u64, u64),
    /// Of stream and commit id; candidates must be compared.
    pub(crate) commit: u64,
    /// The episode id itself.
    pub(crate) episode: (u64, u64),
}

/// The log's own seeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HashKey {
    low: u64,
    high: u64,
}

impl HashKey {
    pub(crate) fn new(log_id: [u8; 16]) -> Self {
        let id = u128::from_le_bytes(log_id);
        let (low, high) = (id as u64, (id >> 64) as u64);
        Self { low: mix(low ^ SALT, high | 1), high: mix(high ^ OTHER_SALT, low.rotate_left(23) | 1) }
    }

    pub(crate) fn stream(&self, stream: &str) -> (u64, u64) {
        (hash(self.low, stream.as_bytes()), hash(self.high, stream.as_bytes()))
    }

    pub(crate) fn commit(&self, stream: (u64, u64), commit_id: &str) -> u64 {
        hash(stream.0 ^ self.high.rotate_left(32), commit_id.as_bytes())
    }

    pub(crate) fn keys(&self, stream: &str, commit_id: &str, episode: [u8; 16]) -> Keys {
        let stream = self.stream(stream);
        Keys { stream, commit: self.commit(stream, commit_id), episode: episode_key(episode) }
    }

    /// Spreads a key over a bloom filter.
    pub(crate) fn spread(&self, key: u64) -> u64 {
        mix(key ^ self.low, SALT ^ self.high)
    }
}

/// An episode id as it is indexed.
pub(crate) fn episode_key(episode: [u8; 16]) -> (u64, u64) {
    let id = u128::from_be_bytes(episode);
    ((id >> 64) as u64, id as u64)
}

/// Multiplies to 128 bits and folds.
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let mut state = seed ^ SALT;
    let mut chunks = bytes.chunks_exact(16);
    for chunk in &mut chunks {
        state = absorb(state, chunk);
    }
    let rest = chunks.remainder();
    let mut last = [0; 16];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    state = absorb(state, &last);
    mix(state ^ seed, SALT ^ bytes.len() as u64)
}

fn absorb(state: u64, chunk: &[u8]) -> u64 {
    let (low, high) = chunk.split_at(8);
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    mix(state ^ word(low), word(high) ^ OTHER_SALT ^ state.rotate_left(29))
}

/// Hashes keys that are keyed hashes or ids already: one multiplication a word.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seeded(pub(crate) u64);

impl Seeded {
    pub(crate) const fn new(key: HashKey) -> Self {
        Self(key.low | 1)
    }
}

#[derive(Debug)]
pub(crate) struct SeededHasher(u64);

impl BuildHasher for Seeded {
    type Hasher = SeededHasher;
    fn build_hasher(&self) -> SeededHasher {
        SeededHasher(self.0)
    }
}

impl Hasher for SeededHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, word: u64) {
        self.0 = mix(self.0 ^ word, SALT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_part_of_the_index_format_and_stay_as_they_are() {
        let key = HashKey::new([7; 16]);
        let names = [key.stream("tenant/acme"), key.stream("saga/acme/a-longer-name"), (key.commit((1, 2), "c-1"), 0)];
        assert_eq!(
            format!("{names:x?}"),
            "[(f74dfc8784a79c42, 9306a9f5a8f8819a), (6b08ba320fd80275, 5e8374599b677a5e), (eba8de0d1631be2f, 0)]"
        );
    }

    #[test]
    fn names_that_differ_in_length_or_one_byte_differ_in_hash() {
        let key = HashKey::new([7; 16]);
        let mut seen = std::collections::BTreeSet::new();
        for n in 0..40 {
            assert!(seen.insert(key.stream(&"\0".repeat(n))));
            assert!(seen.insert(key.stream(&format!("{}a", "\0".repeat(n)))));
        }
    }
}
