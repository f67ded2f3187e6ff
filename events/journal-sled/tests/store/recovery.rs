//! What a crash, a flipped bit, a lost file or a lost index does to a log: everything acknowledged is there, or there
//! is an error that names the place.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use crate::kit::{append, fill, read_all, segments};
use events_journal::{Direction, EventLog, Filter};
use events_journal_sled::{LocalStore, OpenError, Options, verify};
use events_model::Position;

const TINY: Options = Options { segment_bytes: 4_096, run_commits: 5 };

/// All files below a directory.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                files.insert(path.clone(), fs::read(path).unwrap());
            }
        }
    }
    files
}

fn copy(from: &Path, to: &Path) {
    for (path, bytes) in snapshot(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::write(target, bytes).unwrap();
    }
}

/// A log as a crash leaves it: written by one store, copied while that is still open.
fn crashed(options: &Options, write: impl FnOnce(&LocalStore)) -> tempfile::TempDir {
    let (live, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = LocalStore::open(live.path(), options.clone()).unwrap();
    write(&store);
    copy(&live.path().join("log"), &image.path().join("log"));
    image
}

/// Where the bytes that are not zero end.
fn used(path: &Path) -> usize {
    fs::read(path).unwrap().iter().rposition(|byte| *byte != 0).unwrap() + 1
}

#[test]
fn a_clean_reopening_replays_and_cuts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    fill(&LocalStore::open(dir.path(), TINY).unwrap(), 40, 100);
    let store = LocalStore::open(dir.path(), TINY).unwrap();
    assert_eq!((store.opening().commits, store.opening().replayed), (40, 0));
    assert_eq!(store.opening().cut, None);
    assert_eq!(store.stat().unwrap().events, 40);
    drop(store);
    let verified = verify(dir.path(), &mut |_, _| {}).unwrap();
    assert_eq!((verified.commits, verified.events, verified.closed, verified.tail_bytes), (40, 40, true, 0));
}

#[test]
fn a_torn_last_group_is_cut_at_every_length() {
    let image = crashed(&Options::default(), |store| fill(store, 3, 40));
    let path = segments(image.path()).pop().unwrap();
    let whole = fs::read(&path).unwrap();
    let end = used(&path);
    let before = {
        let image = crashed(&Options::default(), |store| fill(store, 2, 40));
        used(&segments(image.path()).pop().unwrap())
    };
    assert!(end - before > 100);
    for kept in before..end {
        let mut torn = whole.clone();
        torn[kept..].fill(0);
        fs::write(&path, &torn).unwrap();
        let store = LocalStore::open(image.path(), Options::default()).unwrap();
        assert_eq!(store.opening().commits, 2, "cut at {kept}");
        assert_eq!(store.opening().cut.is_some(), kept > before, "cut at {kept}");
        drop(store);
        // It goes on where it was cut.
        let store = LocalStore::open(image.path(), Options::default()).unwrap();
        assert_eq!(store.opening().cut, None);
        append(&store, "b", 1, "again", 10).unwrap();
        assert_eq!(read_all(&store).len(), 3);
        drop(store);
        fs::remove_dir_all(image.path().join("index")).unwrap();
    }
}

#[test]
fn a_torn_group_whose_first_bytes_are_missing_is_cut_too() {
    let image = crashed(&Options::default(), |store| {
        fill(store, 2, 40);
        append(store, "big", 1, "torn", 9_000).unwrap();
    });
    let path = segments(image.path()).pop().unwrap();
    let mut torn = fs::read(&path).unwrap();
    let begin = used(&path) - 9_000;
    torn[begin - 100..begin + 4_000].fill(0);
    fs::write(&path, &torn).unwrap();
    // What is left of the group must not confuse the groups that are written over it.
    for n in 0..3 {
        let store = LocalStore::open(image.path(), Options::default()).unwrap();
        assert_eq!(store.opening().cut.is_some(), n == 0, "{n}");
        append(&store, "later", n + 1, &format!("later-{n}"), 10).unwrap();
        assert_eq!(read_all(&store).len() as u64, 3 + n);
    }
}

/// What a reader of a damaged log is told: an error, or a cut that is reported and costs no commit.
fn detected(dir: &Path, commits: usize) -> bool {
    if verify(dir, &mut |_, _| {}).is_ok_and(|verified| verified.tail_bytes == 0 && verified.closed) {
        return false;
    }
    match LocalStore::open(dir, TINY) {
        Err(_) => true,
        Ok(store) => {
            let page = store.read_log(Position(1), Direction::Forward, &Filter::default(), 1_000);
            store.opening().cut.is_some() && page.is_ok_and(|page| page.commits.len() == commits)
        }
    }
}

#[test]
fn every_single_byte_flip_in_a_closed_log_is_detected() {
    let dir = tempfile::tempdir().unwrap();
    fill(&LocalStore::open(dir.path(), TINY).unwrap(), 12, 300);
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let files = segments(dir.path());
    assert!(files.len() > 1);
    for path in &files {
        let good = fs::read(path).unwrap();
        // Flips in the zeros behind the last group are all alike: a few of them are enough.
        let dense = used(path) + 40;
        for at in (0..good.len()).filter(|at| *at < dense || at % 97 == 0 || at + 3 > good.len()) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(path, &bad).unwrap();
            let damaged = verify(dir.path(), &mut |_, _| {});
            let reported = damaged.is_ok_and(|verified| verified.tail_bytes == 0 && verified.closed);
            assert!(!reported, "verify: {} at {at}", path.display());
            if at % 13 == 0 || (at >= dense - 75 && at < dense - 30) {
                assert!(detected(dir.path(), 12), "open: {} at {at}", path.display());
                for stale in segments(dir.path()).iter().filter(|path| !files.contains(path)) {
                    fs::remove_file(stale).unwrap();
                }
                if dir.path().join("index").exists() {
                    fs::remove_dir_all(dir.path().join("index")).unwrap();
                }
            }
            fs::write(path, &good).unwrap();
        }
    }
}

#[test]
fn a_flip_in_what_the_index_covers_is_seen_by_whoever_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    fill(&LocalStore::open(dir.path(), TINY).unwrap(), 30, 300);
    let path = segments(dir.path()).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    bytes[400] ^= 1;
    fs::write(&path, bytes).unwrap();
    let store = LocalStore::open(dir.path(), TINY).unwrap();
    let error = store.read_log(Position(1), Direction::Forward, &Filter::default(), 1_000).unwrap_err().to_string();
    assert!(error.contains(".seg is damaged at byte 96"), "{error}");
}

#[test]
fn a_damaged_middle_is_refused_with_its_place_and_changes_nothing() {
    let image = crashed(&Options::default(), |store| fill(store, 5, 40));
    let path = segments(image.path()).pop().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[120] ^= 4;
    fs::write(&path, &bytes).unwrap();
    for _ in 0..2 {
        let error = LocalStore::open(image.path(), Options::default()).unwrap_err();
        let OpenError::Corrupt { file, offset, reason } = &error else { panic!("{error}") };
        assert!(file.ends_with("00000000000000000001.seg"), "{file}");
        assert_eq!(*offset, 64);
        assert!(reason.contains("a good group follows at byte"), "{reason}");
    }
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert!(LocalStore::open_read_only(image.path()).is_err());
}

#[test]
fn a_damaged_last_group_is_refused_if_the_index_proves_it() {
    let dir = tempfile::tempdir().unwrap();
    fill(&LocalStore::open(dir.path(), TINY).unwrap(), 10, 40);
    let path = segments(dir.path()).pop().unwrap();
    // As if the machine had lost the end of the segment, trailer and all.
    let mut bytes = fs::read(&path).unwrap();
    let end = used(&path);
    bytes[end - 60..].fill(0);
    fs::write(&path, &bytes).unwrap();
    let error = LocalStore::open(dir.path(), TINY).unwrap_err().to_string();
    assert!(error.contains("positions up to 10 were acknowledged"), "{error}");
}

#[test]
fn lost_segments_are_missed() {
    for lost in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        fill(&LocalStore::open(dir.path(), TINY).unwrap(), 40, 300);
        let files = segments(dir.path());
        let lost = [0, files.len() / 2, files.len() - 1][lost];
        fs::remove_file(&files[lost]).unwrap();
        let error = LocalStore::open(dir.path(), TINY).unwrap_err();
        assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
        if lost + 1 < files.len() {
            // Even without the index, unless it is the end that is missing.
            fs::remove_dir_all(dir.path().join("index")).unwrap();
            let error = LocalStore::open(dir.path(), TINY).unwrap_err();
            assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    fill(&LocalStore::open(dir.path(), TINY).unwrap(), 40, 300);
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    let error = LocalStore::open(dir.path(), TINY).unwrap_err().to_string();
    assert!(error.contains("all segments are missing"), "{error}");
}

#[test]
fn a_damaged_index_changes_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    fill(&LocalStore::open(dir.path(), TINY).unwrap(), 60, 100);
    let expected = crate::kit::answers(&LocalStore::open_read_only(dir.path()).unwrap());
    let good = snapshot(&dir.path().join("index"));
    // Flip bytes all over sled's files; some hit its structure, some our values, some nothing.
    for round in 0..8_usize {
        for (path, bytes) in &good {
            let mut bytes = bytes.clone();
            for at in (round * 331..bytes.len()).step_by(4_007) {
                bytes[at] ^= 0x55;
            }
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let store = LocalStore::open(dir.path(), TINY).unwrap();
        assert_eq!(crate::kit::answers(&store), expected, "round {round}");
        drop(store);
        fs::remove_dir_all(dir.path().join("index")).unwrap();
    }
}

#[test]
fn an_older_index_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let older = tempfile::tempdir().unwrap();
    fill(&LocalStore::open(dir.path(), TINY).unwrap(), 20, 100);
    copy(&dir.path().join("index"), older.path());
    let store = LocalStore::open(dir.path(), TINY).unwrap();
    for n in 21..=50 {
        append(&store, "later", n - 20, &format!("later-{n}"), 50).unwrap();
    }
    drop(store);
    let expected = crate::kit::answers(&LocalStore::open_read_only(dir.path()).unwrap());
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    copy(older.path(), &dir.path().join("index"));
    let store = LocalStore::open(dir.path(), TINY).unwrap();
    assert_eq!((store.opening().commits, store.opening().replayed), (50, 30));
    assert_eq!(crate::kit::answers(&store), expected);
}

#[test]
fn an_index_of_another_log_is_not_believed() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fill(&LocalStore::open(dir.path(), TINY).unwrap(), 20, 100);
    fill(&LocalStore::open(other.path(), TINY).unwrap(), 30, 100);
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    copy(&other.path().join("index"), &dir.path().join("index"));
    let store = LocalStore::open(dir.path(), TINY).unwrap();
    assert_eq!((store.opening().commits, store.opening().replayed), (20, 20));
}

#[test]
fn a_segment_of_another_log_is_refused() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fill(&LocalStore::open(dir.path(), TINY).unwrap(), 30, 300);
    fill(&LocalStore::open(other.path(), TINY).unwrap(), 30, 300);
    let (ours, theirs) = (segments(dir.path()), segments(other.path()));
    let shared = ours.iter().find(|path| theirs.iter().any(|other| other.file_name() == path.file_name())).unwrap();
    fs::copy(other.path().join("log").join(shared.file_name().unwrap()), shared).unwrap();
    let error = LocalStore::open(dir.path(), TINY).unwrap_err();
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
}

#[test]
fn a_newer_format_is_named_not_called_damage() {
    let dir = tempfile::tempdir().unwrap();
    drop(LocalStore::open(dir.path(), TINY).unwrap());
    let path = segments(dir.path()).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 9;
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let error = LocalStore::open(dir.path(), TINY).unwrap_err();
    assert!(matches!(error, OpenError::UnsupportedVersion { version: 9, .. }), "{error}");
}
