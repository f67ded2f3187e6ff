//! A log that is ahead of the machine's clock: refused with a number, unless it is accepted in so many words.

use std::{path::Path, time::Duration};

use actors_shell::LiveClock;
use events_journal::EventLog as _;
use events_journal_sled::{LocalStore, Options};
use events_model::{
    Commit, CommitId, DecisionContext, DurationUs, EpisodeId, EventId, EventRecord, Principal, RegionId, Stored as _,
    StreamId, TimestampUs, Version,
    region::{Command, Event},
};
use server::platform::{Platform, StartError};

use crate::world::{World, chat, config};

/// Records something at a time, as a process with another clock would have.
fn record(data: &Path, at: TimestampUs) {
    let store = LocalStore::open(data, Options::default()).unwrap();
    let region = RegionId::new("elsewhere").unwrap();
    let event = Event::PriceBookPublished { version: 1, entries: Vec::new(), at };
    let commit = Commit {
        commit_id: CommitId::new("c-1").unwrap(),
        stream: StreamId::region(&region),
        first_version: Version(1),
        command: Command::PublishPriceBook { entries: Vec::new() }.to_payload(),
        events: vec![EventRecord { event_id: EventId::from_bytes([1; 16]), payload: event.to_payload() }],
        episode_id: EpisodeId::from_bytes([1; 16]),
        causation_id: None,
        tenant: None,
        region,
        epoch: 1,
        principal: Principal::system("test"),
        recorded_at: at,
        traceparent: String::new(),
        decider_version: 1,
        key_id: String::new(),
        context: DecisionContext::default(),
    };
    store.append(Version::ZERO, commit).wait().unwrap();
    store.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_far_ahead_of_the_clock_is_refused_and_one_that_is_a_little_ahead_is_not() {
    for (ahead, refused) in [(DurationUs::from_secs(290), false), (DurationUs::from_secs(3_600), true)] {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().to_owned();
        let at = LiveClock::wall().after(ahead);
        tokio::task::spawn_blocking(move || record(&data, at)).await.unwrap();
        let started = Platform::start(config(directory.path(), ([127, 0, 0, 1], 9).into())).await;
        match started {
            Ok(platform) => {
                assert!(!refused);
                platform.shutdown().await;
            }
            Err(error) => {
                assert!(refused && error.code() == Some("E0012"), "{error:?}");
                assert!(matches!(error, StartError::ClockBehind { recorded_at, .. } if recorded_at == at));
                assert!(error.to_string().contains("log.clock_ahead_max allows 5m"), "{error}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_ahead_of_the_clock_that_is_accepted_goes_on_behind_its_last_time() {
    let world = World::new().await;
    let World { directory, simulator, mut config, platform, key, key_id, client, channel } = world;
    drop(channel);
    platform.shutdown().await;
    let (data, at) = (directory.path().to_owned(), LiveClock::wall().after(DurationUs::from_secs(3_600)));
    tokio::task::spawn_blocking(move || record(&data, at)).await.unwrap();
    assert_eq!(Platform::start(config.clone()).await.unwrap_err().code(), Some("E0012"));
    config.log.clock_ahead_max = Duration::from_secs(2 * 3_600);
    let platform = Platform::start(config.clone()).await.unwrap();
    let channel = crate::world::channel(&platform);
    let world = World { directory, simulator, config, platform, key, key_id, client, channel };
    let reply = world.chat(&chat(10)).await;
    assert_eq!(reply.status, 200, "{:?}", reply.body);
    let episode = world.assert_settled(reply.request_id(), "completed").await;
    assert!(episode.entries[0].recorded_at_us > at.0, "{episode:?}");
}
