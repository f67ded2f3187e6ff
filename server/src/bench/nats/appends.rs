//! Durable appends with some numbers of callers at once, all sides in turn.

use std::{sync::Arc, time::Duration};

use events_journal::EventLog;
use events_journal_nats::{
    JetStreamLog, OpenError, Options,
    bench::{self, Grouping, Published},
};
use events_journal_sled::{LocalStore, Options as StoreOptions};
use events_model::{CommitId, Version};
use serde::Serialize;
use tokio::{runtime::Runtime, task::JoinSet};

use super::{super::scratch::Scratch, servers::Servers};
use crate::{
    bench::{
        figure::{Figure, Spread, micros, rate, show_ms, show_rate},
        generate,
    },
    cli::{
        arguments::BenchNats,
        clock::Stopwatch,
        failure::{Failure, Problem},
        output::{Column, Output, note},
    },
};

/// An encoded commit, bytes.
const COMMIT_BYTES: usize = 512;

/// All sides with one number of servers and of callers.
#[derive(Debug, Serialize)]
pub(super) struct Compared {
    servers: usize,
    callers: usize,
    /// The local store alone.
    embedded: Figure,
    engine: Figure,
    /// Commits in a message, as the callers made them.
    commits_a_message: f64,
    /// Raw publishing of the engine's messages.
    same: Figure,
    /// Raw publishing of one message a commit.
    single: Figure,
    /// Engine by raw publishing of the same messages, of commits a second.
    ratio: Spread,
    /// Engine by one message a commit.
    ratio_single: Spread,
}

/// One round.
struct Round {
    embedded: Figure,
    engine: Figure,
    commits_a_message: f64,
    same: Figure,
    single: Figure,
}

fn raw(error: &OpenError) -> Failure {
    Problem::new("publish to NATS").because(error).into()
}

/// Measures and checks.
pub(super) fn run(
    options: &BenchNats,
    servers: &Servers,
    scratch: &Scratch,
    runtime: &Runtime,
) -> Result<Vec<Compared>, Failure> {
    let mut results = Vec::new();
    for callers in options.callers.iter().copied().map(usize::from) {
        let mut rounds = Vec::new();
        for number in 1..=options.rounds {
            let count = servers.count();
            note(format_args!("{count} servers, {callers} callers, round {number} of {}", options.rounds));
            let name = format!("{count}-{callers}-{number}");
            rounds.push(runtime.block_on(round(options, servers, scratch, (&name, callers)))?);
        }
        let figure = |of: fn(&Round) -> Figure| Figure::median(&rounds.iter().map(of).collect::<Vec<_>>());
        let spread = |of: fn(&Round) -> f64| Spread::of(rounds.iter().map(of).collect());
        results.push(Compared {
            servers: servers.count(),
            callers,
            embedded: figure(|round| round.embedded),
            engine: figure(|round| round.engine),
            commits_a_message: spread(|round| round.commits_a_message).median,
            same: figure(|round| round.same),
            single: figure(|round| round.single),
            ratio: spread(|round| round.engine.per_second / round.same.per_second),
            ratio_single: spread(|round| round.engine.per_second / round.single.per_second),
        });
    }
    Ok(results)
}

async fn round(
    options: &BenchNats,
    servers: &Servers,
    scratch: &Scratch,
    (name, callers): (&str, usize),
) -> Result<Round, Failure> {
    let length = Duration::from_secs_f64(options.seconds);
    let directory = |kind: &str| scratch.path(&format!("{kind}-{name}"));
    let embedded = {
        let store = Arc::new(LocalStore::open(&directory("embedded"), StoreOptions::default())?);
        let (figure, appended) = measure(&store, callers, length).await?;
        compare("the embedded log", store.head_position().0, appended)?;
        store.close();
        figure
    };
    let region = |kind: &str| {
        let region = servers.region(&format!("{kind}-{name}"))?;
        Ok::<_, Failure>(Options { shards: options.shards.into(), ..region })
    };
    let own = region("engine")?;
    let store = LocalStore::open_copy(&directory("engine"), StoreOptions::default())?;
    let (replica, checkpoints) = (Arc::new(store.clone()), Arc::new(store.clone()));
    let opened = JetStreamLog::open(own.clone(), replica, checkpoints, tokio::runtime::Handle::current()).await;
    let log = Arc::new(opened.map_err(|error| Problem::new("open the log on NATS").because(&error))?);
    let (engine, appended) = measure(&log, callers, length).await?;
    log.close().await;
    compare("the replica", store.head_position().0, appended)?;
    store.close();
    let (traffic, _) = bench::read(&own).await.map_err(|error| raw(&error))?;
    compare("the stream", traffic.commits, appended)?;
    bench::remove(&own).await.map_err(|error| raw(&error))?;
    let publish = async |kind: &str, grouping| {
        let options = region(kind)?;
        let published = bench::publish(&options, &traffic, grouping).await.map_err(|error| raw(&error))?;
        bench::remove(&options).await.map_err(|error| raw(&error))?;
        Ok::<_, Failure>(published)
    };
    let same = publish("same", Grouping::Same).await?;
    compare("the stream of raw messages", same.commits, appended)?;
    let single = publish("single", Grouping::Single(callers, length)).await?;
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let commits_a_message = traffic.commits as f64 / traffic.messages as f64;
    Ok(Round { embedded, engine, commits_a_message, same: figure(&same), single: figure(&single) })
}

fn figure(published: &Published) -> Figure {
    let latencies = published.latencies.iter().copied().map(micros).collect();
    let per_second = rate(published.commits, published.elapsed);
    Figure { per_second, ..Figure::of(latencies, published.elapsed) }
}

/// What was acknowledged must be there, once.
pub(super) fn compare(what: &str, found: u64, acknowledged: u64) -> Result<(), Failure> {
    if found == acknowledged {
        return Ok(());
    }
    Err(Problem::new(format!("{acknowledged} commits were acknowledged, {what} has {found}")).into())
}

/// Appends with so many callers; returns how many commits were acknowledged.
async fn measure<L: EventLog>(log: &Arc<L>, callers: usize, length: Duration) -> Result<(Figure, u64), Failure> {
    let mut tasks = JoinSet::new();
    let started = Stopwatch::start();
    for caller in 0..callers {
        let log = Arc::clone(log);
        tasks.spawn(async move { call(&*log, caller, |_| started.elapsed() < length).await });
    }
    let mut all = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        all.extend(ended.map_err(|error| Problem::new("a caller ended").because(&error))??);
    }
    let count = all.len() as u64;
    Ok((Figure::of(all, started.elapsed()), count))
}

/// Appends to a stream of the caller's own for as long as it is told to go on; returns what each took.
pub(super) async fn call(
    log: &dyn EventLog,
    caller: usize,
    goes_on: impl Fn(u64) -> bool,
) -> Result<Vec<u32>, Failure> {
    let template = generate::sized(caller, COMMIT_BYTES)?;
    let mut latencies = Vec::new();
    let mut version = 0;
    while goes_on(version) {
        version += 1;
        let mut commit = template.clone();
        commit.first_version = Version(version);
        // The same length for every version, so that the commit keeps its size.
        commit.commit_id = CommitId::new(&format!("bench/{version:010}")).map_err(|error| Problem::of(&error))?;
        let asked = Stopwatch::start();
        let appended = log.append(Version(version - 1), commit).await;
        appended.map_err(|error| Problem::new("append").because(&error))?;
        latencies.push(micros(asked.elapsed()));
    }
    Ok(latencies)
}

/// The table.
pub(super) fn print(options: &BenchNats, results: &[Compared], output: &mut Output) -> Result<(), Failure> {
    output.line(format_args!(
        "durable appends of {COMMIT_BYTES}-byte commits to {} shards, medians of commits/s, p50 / p99 in ms",
        options.shards
    ))?;
    output
        .line("embedded = the local store alone; raw = async-nats publishing the engine's messages again; single =")?;
    output.line("one message a commit; ratio = engine by raw, median and spread of the rounds; all on this machine")?;
    output.line("")?;
    let columns = [
        Column::Right("servers"),
        Column::Right("callers"),
        Column::Right("embedded/s"),
        Column::Right("ms"),
        Column::Right("engine/s"),
        Column::Right("ms"),
        Column::Right("commits/message"),
        Column::Right("raw/s"),
        Column::Right("ms"),
        Column::Right("ratio"),
        Column::Right("single/s"),
        Column::Right("ratio"),
    ];
    let ms = |figure: &Figure| format!("{} / {}", show_ms(figure.p50_us), show_ms(figure.p99_us));
    let rows = results.iter().map(|row| {
        vec![
            row.servers.to_string(),
            row.callers.to_string(),
            show_rate(row.embedded.per_second),
            ms(&row.embedded),
            show_rate(row.engine.per_second),
            ms(&row.engine),
            format!("{:.1}", row.commits_a_message),
            show_rate(row.same.per_second),
            ms(&row.same),
            row.ratio.show(),
            show_rate(row.single.per_second),
            format!("{:.2}", row.ratio_single.median),
        ]
    });
    output.table(&columns, rows)?;
    output.line("checked: the stream and the replica hold every acknowledged commit, once")
}
