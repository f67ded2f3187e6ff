//! Other processes and other handles: the lock, readers beside a writer, a directory that goes away.

use std::{
    fs,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use crate::kit::{append, fill, read_all};
use events_journal::{AppendError, EventLog, Health, Outcome, Refusal};
use events_journal_sled::{LocalStore, OpenError, Options, verify};

const TINY: Options = Options { segment_bytes: 4_096, run_commits: 5 };
const CHILD: &str = "FREEHOLD_LOCK_CHILD";
const WAIT_MAX: Duration = Duration::from_secs(20);

#[expect(clippy::disallowed_methods, reason = "measures how long a test waits")]
fn now() -> Instant {
    Instant::now()
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = now();
    while !condition() {
        assert!(start.elapsed() < WAIT_MAX, "waited {WAIT_MAX:?} for {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_second_opening_is_refused_and_names_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path(), TINY).unwrap();
    let error = LocalStore::open(dir.path(), TINY).unwrap_err();
    assert!(matches!(error, OpenError::Locked { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
    store.close();
    assert!(LocalStore::open(dir.path(), TINY).is_ok());
}

/// Not a test of its own: what the child of the next one does.
#[test]
fn child_that_tries_to_open() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let error = LocalStore::open(dir.as_ref(), TINY).unwrap_err();
    println!("{error}");
}

#[test]
fn another_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _store = LocalStore::open(dir.path(), TINY).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "beside::child_that_tries_to_open", "--nocapture"])
        .env(CHILD, dir.path())
        .stdout(Stdio::piped())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(said.contains(&format!("in use by process {}", std::process::id())), "{said}");
}

#[test]
fn a_reader_beside_a_writer_sees_a_whole_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path(), Options { segment_bytes: 64 * 1024, run_commits: 50 }).unwrap();
    fill(&store, 3, 10);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut version = 0;
            while !stop.load(Ordering::Relaxed) {
                version += 1;
                append(&store, "busy", version, &format!("busy-{version}"), 3_000).unwrap();
            }
            version
        });
        for _ in 0..15 {
            let acknowledged = store.head_position().0;
            let reader = LocalStore::open_read_only(dir.path()).unwrap();
            let all = read_all(&reader);
            assert!(all.len() as u64 >= acknowledged);
            assert!(all.iter().zip(1..).all(|(recorded, position)| recorded.position.0 == position));
            let verified = verify(dir.path(), &mut |_, _| {}).unwrap();
            assert!(verified.commits >= acknowledged);
            let refused = append(&reader, "x", 1, "x", 1).unwrap_err();
            assert!(matches!(refused, AppendError::Refused(Refusal::ReadOnly)), "{refused}");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(writer.join().unwrap() > 0);
    });
}

#[test]
fn a_removed_directory_is_named_and_nothing_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path(), Options::default()).unwrap();
    fill(&store, 5, 100);
    fs::remove_dir_all(dir.path()).unwrap();
    let error = append(&store, "s0", 3, "lost", 10).unwrap_err();
    assert!(matches!(error, AppendError::Refused(Refusal::DirectoryRemoved)), "{error}");
    assert_eq!(error.outcome(), Outcome::NotWritten);
    assert_eq!(*store.watch_health().borrow(), Health::Refusing(Refusal::DirectoryRemoved));
    // Nothing is made anew under a running state, and what was acknowledged is still the truth.
    let again = append(&store, "s0", 3, "lost-too", 10).unwrap_err();
    assert!(matches!(again, AppendError::Refused(Refusal::DirectoryRemoved)), "{again}");
    assert_eq!(store.head_position().0, 5);
    assert!(!dir.path().join("log").exists());
    store.close();
    assert!(!dir.path().exists());
}

#[test]
fn a_directory_that_comes_back_is_used_again() {
    let (dir, aside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = LocalStore::open(dir.path(), TINY).unwrap();
    fill(&store, 20, 300);
    // A copy, so that it is another file that comes back.
    fs::create_dir(aside.path().join("log")).unwrap();
    for path in crate::kit::segments(dir.path()) {
        fs::copy(&path, aside.path().join("log").join(path.file_name().unwrap())).unwrap();
    }
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    let error = append(&store, "s0", 8, "lost", 10).unwrap_err();
    assert!(matches!(error, AppendError::Refused(Refusal::DirectoryRemoved)), "{error}");
    fs::rename(aside.path().join("log"), dir.path().join("log")).unwrap();
    until("the log to go on", || *store.watch_health().borrow() == Health::Accepting);
    append(&store, "s2", 7, "after", 300).unwrap();
    let expected = read_all(&store);
    assert_eq!(expected.len(), 21);
    drop(store);
    assert_eq!(read_all(&LocalStore::open(dir.path(), TINY).unwrap()), expected);
}

#[test]
fn a_copy_that_lacks_acknowledged_commits_is_not_taken() {
    let (dir, aside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = LocalStore::open(dir.path(), Options::default()).unwrap();
    fill(&store, 3, 100);
    fs::create_dir(aside.path().join("log")).unwrap();
    let path = crate::kit::segments(dir.path()).remove(0);
    fs::copy(&path, aside.path().join("log").join(path.file_name().unwrap())).unwrap();
    append(&store, "s0", 2, "newer", 100).unwrap();
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    append(&store, "s0", 3, "lost", 10).unwrap_err();
    fs::rename(aside.path().join("log"), dir.path().join("log")).unwrap();
    let health = store.watch_health();
    let start = now();
    while start.elapsed() < Duration::from_millis(400) {
        assert_ne!(*health.borrow(), Health::Accepting);
        std::thread::yield_now();
    }
}

#[test]
fn a_closed_store_refuses_and_still_reads() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path(), TINY).unwrap();
    fill(&store, 30, 50);
    let expected = crate::kit::answers(&store);
    store.close();
    store.close();
    let error = append(&store, "s0", 11, "late", 1).unwrap_err();
    assert!(matches!(error, AppendError::Refused(Refusal::Closed)), "{error}");
    assert_eq!(crate::kit::answers(&store), expected);
    assert!(store.watch_head().has_changed().is_err(), "subscriptions end");
}
