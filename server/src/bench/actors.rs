//! How long an actor takes from its first message to its first answer when it is not in memory: through the shell and
//! the local store, without a snapshot and with one, next to folding the same stream without any actor.
//!
//! Caches are as they are after the log was written.

use std::sync::Arc;

use actors_core::tenant::{State, Tenant};
use actors_shell::{LiveClock, LiveIds, Settings, Shell};
use events_journal::{MemoryLog, SnapshotStore};
use events_journal_sled::{LocalStore, Options};
use events_model::{RegionId, StreamId};
use replay::state_at::{At, tenant_at};
use serde::Serialize;
use tokio::runtime::Runtime;

use super::{
    figure::{Figure, Spread, micros, show_ms},
    generate::{self, Tenants},
    scratch::Scratch,
};
use crate::cli::{
    arguments::BenchActors,
    clock::Stopwatch,
    failure::{Failure, Problem},
    output::{Column, Output, note},
    show,
};

/// Of the ids that an actor would give to what it decides; nothing is decided here.
const SEED: u64 = 7;

/// One size of actor.
#[derive(Debug, Serialize)]
struct Rehydrated {
    events: u64,
    actors: u64,
    folded: Figure,
    without_snapshot: Figure,
    with_snapshot: Figure,
    /// The fold's median time by the actor's without a snapshot.
    ratio: Spread,
}

/// Measures, checks and prints.
pub(super) fn run(options: &BenchActors, scratch: &Scratch, output: &mut Output) -> Result<(), Failure> {
    let runtime = Runtime::new().map_err(|error| Problem::new("start the runtime").because(&error))?;
    let mut results = Vec::new();
    for events in options.events.iter().copied().map(u64::from) {
        let actors = (u64::from(options.commits) / events).max(1);
        note(format_args!("actors: generating {} of {} events", show::count(actors), show::count(events)));
        let store = LocalStore::open(&scratch.path(&format!("actors-{events}")), Options::default())?;
        let mut tenants = Tenants::new(actors)?;
        generate::fill(&store, &mut tenants, actors * events)?;
        let store = Arc::new(store);
        let rehydrated = runtime.block_on(measure(options, &store, &tenants, events))?;
        results.push(rehydrated);
        store.close();
    }
    if output.json() {
        return output.document(&results);
    }
    print(&results, output)
}

async fn measure(
    options: &BenchActors,
    store: &Arc<LocalStore>,
    tenants: &Tenants,
    events: u64,
) -> Result<Rehydrated, Failure> {
    let actors = tenants.states().count() as u64;
    // The first to see each actor leaves a snapshot of it.
    let saved = load_all(store, Arc::<LocalStore>::clone(store), tenants).await?;
    let mut rounds: [Vec<Figure>; 3] = Default::default();
    for round in 1..=options.rounds {
        note(format_args!("actors: {} events, round {round} of {}", show::count(events), options.rounds));
        rounds[0].push(fold_all(store, tenants)?);
        let nothing = Arc::new(MemoryLog::new());
        rounds[1].push(load_all(store, nothing, tenants).await?.figure);
        rounds[2].push(load_all(store, Arc::<LocalStore>::clone(store), tenants).await?.figure);
    }
    if saved.snapshots != actors {
        return Err(Problem::new(format!("{actors} actors left {} snapshots", saved.snapshots)).into());
    }
    let ratios =
        rounds[0].iter().zip(&rounds[1]).map(|(folded, actor)| f64::from(folded.p50_us) / f64::from(actor.p50_us));
    let ratio = Spread::of(ratios.collect());
    let [folded, without_snapshot, with_snapshot] = rounds.map(|figures| Figure::median(&figures));
    Ok(Rehydrated { events, actors, folded, without_snapshot, with_snapshot, ratio })
}

/// What a shell did.
struct Loaded {
    figure: Figure,
    snapshots: u64,
}

/// One actor after the other in a fresh shell, each asked once.
async fn load_all(
    store: &Arc<LocalStore>,
    snapshots: Arc<dyn SnapshotStore>,
    tenants: &Tenants,
) -> Result<Loaded, Failure> {
    let region = RegionId::new("local").map_err(|error| Problem::of(&error))?;
    let (log, clock, ids) =
        (Arc::<LocalStore>::clone(store), Arc::new(LiveClock::default()), Arc::new(LiveIds::new(SEED, SEED)));
    let shell = Shell::<Tenant>::start(log, snapshots, clock, ids, Settings::new(region));
    let mut latencies = Vec::new();
    let started = Stopwatch::start();
    for (stream, expected) in tenants.states() {
        let asked = Stopwatch::start();
        let actor = shell.actor(stream);
        let settled = actor.read(|state| state.totals.settled).await;
        latencies.push(micros(asked.elapsed()));
        let unavailable = |error| Problem::new(format!("load {stream}")).because(&error);
        let state = actor.read(State::clone).await.map_err(unavailable)?;
        check(stream, settled.is_ok_and(|settled| settled == expected.totals.settled) && state == *expected)?;
    }
    let figure = Figure::of(latencies, started.elapsed());
    shell.drain().await;
    Ok(Loaded { figure, snapshots: shell.stats().snapshots })
}

fn fold_all(store: &LocalStore, tenants: &Tenants) -> Result<Figure, Failure> {
    let mut latencies = Vec::new();
    let started = Stopwatch::start();
    for (stream, expected) in tenants.states() {
        let asked = Stopwatch::start();
        let folded = tenant_at(store, stream, At::Newest).map_err(|error| Problem::of(&error))?;
        latencies.push(micros(asked.elapsed()));
        check(stream, folded.state == *expected)?;
    }
    Ok(Figure::of(latencies, started.elapsed()))
}

fn check(stream: &StreamId, is_equal: bool) -> Result<(), Failure> {
    if is_equal { Ok(()) } else { Err(Problem::new(format!("{stream} came back in another state")).into()) }
}

fn print(results: &[Rehydrated], output: &mut Output) -> Result<(), Failure> {
    output
        .line("from an actor's first message to its answer, one after the other, medians of rounds, p50 / p99 in ms")?;
    output.line("fold = reading and folding the stream without an actor; ratio = fold by actor without a snapshot")?;
    output.line("")?;
    let columns = [
        Column::Right("events"),
        Column::Right("actors"),
        Column::Right("fold"),
        Column::Right("without snapshot"),
        Column::Right("ratio"),
        Column::Right("with snapshot"),
    ];
    let ms = |figure: &Figure| format!("{} / {}", show_ms(figure.p50_us), show_ms(figure.p99_us));
    let rows = results.iter().map(|row| {
        vec![
            show::count(row.events),
            show::count(row.actors),
            ms(&row.folded),
            ms(&row.without_snapshot),
            row.ratio.show(),
            ms(&row.with_snapshot),
        ]
    });
    output.table(&columns, rows)?;
    output.line("checked: every actor came back in the state that its events were decided from")
}
