//! Random work with tiny segments and runs, random reopening and a vanishing index, against the memory log.

use std::sync::Arc;

use events_journal::{EventLog, MemoryLog, contract};
use events_journal_sled::{LocalStore, Options, verify};
use events_model::{EpisodeId, StreamId, Version};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    /// Stream, events, bytes, episode; `stale` expects a version too low, `again` repeats an old commit id.
    Append {
        stream: u8,
        events: usize,
        bytes: usize,
        episode: u8,
        stale: bool,
        again: Option<u8>,
    },
    Reopen,
    ReopenWithoutIndex,
}

fn step() -> impl Strategy<Value = Step> {
    let append = (
        0..5_u8,
        1..4_usize,
        0..900_usize,
        0..6_u8,
        prop::bool::weighted(0.1),
        prop::option::weighted(0.15, any::<u8>()),
    )
        .prop_map(|(stream, events, bytes, episode, stale, again)| Step::Append {
            stream,
            events,
            bytes,
            episode,
            stale,
            again,
        });
    prop_oneof![60 => append, 1 => Just(Step::Reopen), 1 => Just(Step::ReopenWithoutIndex)]
}

fn run(steps: Vec<Step>, options: &Options) {
    let dir = tempfile::tempdir().unwrap();
    let reference: Arc<dyn EventLog> = Arc::new(MemoryLog::new());
    let mut store = LocalStore::open(dir.path(), options.clone()).unwrap();
    let mut receipts = Vec::new();
    for (number, step) in steps.into_iter().enumerate() {
        match step {
            Step::Append { stream, events, bytes, episode, stale, again } => {
                let name = ["tenant/a", "tenant/b", "saga/a/one", "saga/a/two", "region/local"][usize::from(stream)];
                let stream = StreamId::new(name).unwrap();
                let head = reference.head(&stream).unwrap();
                let expected = if stale { head.minus(Version(1)) } else { head };
                let id = format!("c-{}", again.map_or(number, |old| usize::from(old) % (number + 1)));
                let mut commit = contract::commit(&stream, expected.next(), &id, events, bytes);
                commit.episode_id = EpisodeId::from_bytes([episode; 16]);
                let answer = contract::settle(reference.append(expected, commit.clone()));
                receipts.push((store.append(expected, commit), answer));
            }
            Step::Reopen | Step::ReopenWithoutIndex => {
                drop(store);
                if matches!(step, Step::ReopenWithoutIndex) {
                    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
                }
                store = LocalStore::open(dir.path(), options.clone()).unwrap();
                assert_eq!(store.opening().cut, None);
            }
        }
    }
    for (receipt, answer) in receipts {
        let ours = contract::settle(receipt);
        assert_eq!(ours.as_ref().ok(), answer.as_ref().ok());
        assert_eq!(ours.map_err(|error| error.to_string()), answer.map_err(|error| error.to_string()));
    }
    let log: Arc<dyn EventLog> = Arc::new(store.clone());
    contract::same_answers(&log, &reference);
    drop(log);
    store.close();
    let verified = verify(dir.path(), &mut |_, _| {}).unwrap();
    assert_eq!(verified.commits, reference.head_position().0);
    // Read-only builds its index from the segments alone.
    let reader: Arc<dyn EventLog> = Arc::new(LocalStore::open_read_only(dir.path()).unwrap());
    contract::same_answers(&reader, &reference);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_work_gives_the_answers_of_the_memory_log(steps in prop::collection::vec(step(), 1..160)) {
        run(steps, &Options { segment_bytes: 4_096, run_commits: 3 });
    }
}

#[test]
fn many_runs_merge_and_find_everything() {
    // 900 commits at 2 a run are several levels of merges.
    let appends = (0..900_usize).map(|n| Step::Append {
        stream: u8::try_from(n % 5).unwrap(),
        events: 1 + n % 3,
        bytes: n % 50,
        episode: u8::try_from(n % 11).unwrap(),
        stale: false,
        again: (n % 10 == 7).then(|| u8::try_from(n % 250).unwrap()),
    });
    run(appends.collect(), &Options { segment_bytes: 16 * 1024, run_commits: 2 });
}
