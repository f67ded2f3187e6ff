//! Whether all nodes hold the same log, and each stream of it was decided by one owner at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use events_journal::{Direction, EventLog as _, Filter, Recorded};
use events_journal_sled::LocalStore;
use events_model::Position;
use sha2::{Digest as _, Sha256};

/// Commits that are compared at a time.
const PAGE: usize = 1_000;
/// Type of the event that says that a request was admitted.
const ADMITTED: &str = "freehold.log.v1.RequestAdmitted";
/// Hexadecimal digits of a SHA-256.
const DIGEST_LEN: usize = 64;

/// What all replicas hold.
#[derive(Debug, Default)]
pub struct Compared {
    /// Commits that all have.
    pub commits: u64,
    /// SHA-256 over position, length and bytes of each of them, by replica.
    pub digests: Vec<String>,
    /// How often each commit id is there, by stream.
    ids: BTreeMap<(String, String), usize>,
    /// Episodes of the requests that were admitted under an idempotency key, by the key's digest.
    admitted: BTreeMap<String, Vec<[u8; 16]>>,
    /// Episodes of admissions that were made void: nobody was told of them, and their upstreams were never called.
    void: BTreeSet<[u8; 16]>,
    /// The last version of each stream.
    versions: BTreeMap<String, u64>,
}

impl Compared {
    /// Streams that are in the log.
    pub fn streams(&self) -> usize {
        self.versions.len()
    }

    /// Every commit is there once; no idempotency key has admitted two requests, and that of every acknowledged one has
    /// admitted one.
    ///
    /// # Errors
    /// One is missing, or there is one twice.
    pub fn holds_once(&self, acknowledged: &BTreeSet<String>) -> Result<()> {
        let twice: Vec<_> = self.ids.iter().filter(|(_, count)| **count != 1).take(5).collect();
        ensure!(twice.is_empty(), "there more than once: {twice:?}");
        let valid = |digest: &str| {
            let episodes = self.admitted.get(digest).into_iter().flatten();
            episodes.filter(|episode| !self.void.contains(*episode)).count()
        };
        let twice: Vec<_> = self.admitted.keys().filter(|digest| valid(digest) > 1).take(5).collect();
        ensure!(twice.is_empty(), "admitted more than once: {twice:?}");
        let is_missing = |key: &&String| valid(&hex(&Sha256::digest(key.as_bytes()))) == 0;
        let missing: Vec<_> = acknowledged.iter().filter(is_missing).take(5).collect();
        ensure!(missing.is_empty(), "acknowledged and not in the log: {missing:?}");
        Ok(())
    }

    /// Versions go on without a gap and without a second one: two nodes that decided for a stream at the same time
    /// would both have written the version behind the last one that they knew.
    fn follow_on(&mut self, recorded: &Recorded) -> Result<()> {
        let commit = recorded.view()?;
        let version = self.versions.entry(commit.stream.to_owned()).or_default();
        let (stream, first) = (commit.stream, commit.first_version);
        ensure!(first > *version, "two owners decided version {first} of {stream}, at {}", recorded.position);
        ensure!(first == *version + 1, "{stream} goes from version {version} to {first} at {}", recorded.position);
        *version = commit.last_version().0;
        *self.ids.entry((commit.stream.to_owned(), commit.commit_id.to_owned())).or_default() += 1;
        self.commits += 1;
        let key = commit.commit_id.strip_prefix("admit/idem-").and_then(|rest| rest.get(..DIGEST_LEN));
        let kind = commit.events().next().transpose()?.map(|event| event.payload.kind);
        if let Some(key) = key.filter(|_| kind == Some(ADMITTED)) {
            self.admitted.entry(key.to_owned()).or_default().push(commit.episode_id);
        }
        if commit.commit_id.starts_with("void/") {
            self.void.insert(commit.episode_id);
        }
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// Reads all replicas side by side: the same bytes at the same positions, versions of each stream one by one.
///
/// # Errors
/// They differ, or one cannot be read.
pub fn compare(replicas: &[PathBuf]) -> Result<Compared> {
    let stores = replicas.iter().map(|path| LocalStore::open_read_only(path)).collect::<Result<Vec<_>, _>>()?;
    let head = stores.iter().map(|store| store.head_position().0).min().unwrap_or(0);
    let mut found = Compared::default();
    let mut hashers: Vec<_> = stores.iter().map(|_| Sha256::new()).collect();
    let mut from = Position(1);
    while from.0 <= head {
        let read = |store: &LocalStore| store.read_log(from, Direction::Forward, &Filter::default(), PAGE);
        let mut pages = stores.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let len = pages.iter().map(|page| page.commits.len()).min().unwrap_or(0);
        ensure!(len > 0, "a replica ends before position {from}");
        for (page, hasher) in pages.iter_mut().zip(&mut hashers) {
            page.commits.truncate(len);
            page.commits.iter().for_each(|recorded| digest(hasher, recorded));
        }
        let (first, others) = pages.split_first().context("there are no replicas")?;
        for (index, recorded) in first.commits.iter().enumerate() {
            let same = others.iter().all(|page| page.commits.get(index) == Some(recorded));
            ensure!(same, "replicas differ at position {}", recorded.position);
            found.follow_on(recorded)?;
        }
        from = Position(from.0 + len as u64);
    }
    found.digests = hashers.into_iter().map(|hasher| hex(&hasher.finalize())).collect();
    ensure!(found.digests.windows(2).all(|pair| pair.first() == pair.last()), "replicas differ: {:?}", found.digests);
    Ok(found)
}

fn digest(hasher: &mut Sha256, recorded: &Recorded) {
    hasher.update(recorded.position.0.to_le_bytes());
    hasher.update((recorded.bytes.len() as u64).to_le_bytes());
    hasher.update(&recorded.bytes);
}

#[cfg(test)]
mod tests {
    use events_journal::contract::{self, fixture::tenant};
    use events_model::Version;

    use super::*;

    fn recorded(position: u64, version: u64, id: &str) -> Recorded {
        let commit = contract::commit(&tenant("acme"), Version(version), id, 1, 20);
        Recorded { position: Position(position), bytes: commit.encode().into() }
    }

    #[test]
    fn a_version_that_two_owners_decided_and_one_that_nobody_did_are_found() {
        let mut found = Compared::default();
        found.follow_on(&recorded(1, 1, "a")).unwrap();
        found.follow_on(&recorded(2, 2, "b")).unwrap();
        let twice = found.follow_on(&recorded(3, 2, "c")).unwrap_err().to_string();
        assert!(twice.contains("two owners decided version 2"), "{twice}");
        assert!(found.follow_on(&recorded(3, 4, "c")).is_err());
    }

    /// An admission under an idempotency key, in an episode of its own.
    fn admitted(position: u64, number: u32) -> Recorded {
        let id = format!("admit/idem-{}-{number}", hex(&Sha256::digest(b"key")));
        let mut commit = contract::commit(&tenant("acme"), Version(position), &id, 1, 20);
        commit.events[0].payload.kind = ADMITTED;
        Recorded { position: Position(position), bytes: commit.encode().into() }
    }

    #[test]
    fn a_request_that_is_missing_one_that_is_admitted_twice_and_a_commit_that_is_there_twice_are_found() {
        let acknowledged = BTreeSet::from(["key".to_owned()]);
        let mut found = Compared::default();
        assert!(found.holds_once(&acknowledged).is_err());
        let first = admitted(1, 1);
        found.follow_on(&first).unwrap();
        found.holds_once(&acknowledged).unwrap();
        found.follow_on(&admitted(2, 2)).unwrap();
        assert!(found.holds_once(&acknowledged).is_err());
        // One that was made void does not count.
        found.void.insert(first.view().unwrap().episode_id);
        found.holds_once(&acknowledged).unwrap();
        found.follow_on(&admitted(3, 2)).unwrap();
        assert!(found.holds_once(&acknowledged).is_err());
    }
}
