//! A decider that panics takes down nothing but its own actor's state.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::sync::Arc;

use actors_core::{Context, Decider};
use actors_shell::{Ask, LiveClock, LiveIds, Settings, Shell, Unavailable};
use events_journal::{EventLog, MemoryLog, SnapshotStore};
use events_model::{
    CommitId, DecisionContext, EpisodeId, Principal, RegionId, StreamId, TimestampUs,
    region::{Command, Event, PriceBookEntry},
};

/// Counts; panics in `decide` on an empty book and in `evolve` on a book of two.
#[derive(Debug)]
struct Fragile;

impl Decider for Fragile {
    type State = u64;
    type Command = Command;
    type Event = Event;
    type Rejection = String;
    type Effect = ();
    type View = u64;

    const VERSION: u32 = 1;

    fn decide(state: &u64, command: &Command, context: &Context) -> Result<Vec<Event>, String> {
        let Command::PublishPriceBook { entries } = command else { return Err("another command".to_owned()) };
        assert!(!entries.is_empty(), "an empty book");
        let version = u32::try_from(*state).unwrap() + 1;
        Ok(vec![Event::PriceBookPublished { version, entries: entries.clone(), at: context.now }])
    }

    fn evolve(state: u64, event: &Event) -> u64 {
        let Event::PriceBookPublished { entries, .. } = event else { return state };
        assert_ne!(entries.len(), 2, "a book of two");
        state + 1
    }

    fn react(_state: &u64, _event: &Event) -> Vec<()> {
        Vec::new()
    }

    fn view(state: &u64, _now: TimestampUs) -> u64 {
        *state
    }
}

fn book(len: usize, id: &str) -> Ask<Command> {
    let entry = PriceBookEntry {
        model: "m".to_owned(),
        upstream: "u".to_owned(),
        input_per_mtok: Default::default(),
        output_per_mtok: Default::default(),
    };
    Ask {
        command: Command::PublishPriceBook { entries: vec![entry; len] },
        commit_id: CommitId::new(id).unwrap(),
        idempotent: false,
        episode_id: EpisodeId::from_bytes([1; 16]),
        causation_id: None,
        principal: Principal::admin(),
        traceparent: String::new(),
        inputs: DecisionContext::default(),
    }
}

#[tokio::test]
async fn an_actor_that_panics_restarts_from_the_log_and_the_others_do_not_notice() {
    let log = Arc::new(MemoryLog::new());
    let shell: Shell<Fragile> = Shell::start(
        Arc::clone(&log) as Arc<dyn EventLog>,
        log as Arc<dyn SnapshotStore>,
        Arc::new(LiveClock::default()),
        Arc::new(LiveIds::new(1, 2)),
        Settings::new(RegionId::new("local").unwrap()),
    );
    let actor = |name: &str| shell.actor(&StreamId::new(name).unwrap());
    let (one, other) = (actor("region/one"), actor("region/other"));
    assert_eq!(one.ask(book(1, "a")).await.unwrap().unwrap().view, 1);
    assert_eq!(other.ask(book(1, "a")).await.unwrap().unwrap().view, 1);
    for (len, id) in [(0, "b"), (2, "c")] {
        assert!(matches!(one.ask(book(len, id)).await, Err(Unavailable::Restarted)));
        assert_eq!(other.read(|state| *state).await.unwrap(), 1);
    }
    assert_eq!(one.ask(book(1, "d")).await.unwrap().unwrap().view, 2);
    assert_eq!(shell.stats().restarts, 2);
}
