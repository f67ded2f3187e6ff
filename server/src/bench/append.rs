//! Durable appends a second with 1, 16 and 256 writers at once (or as asked): the local store next to two
//! bare loops.
//!
//! A writer appends one commit, waits until it is durable, and appends the next. All sides get the same bytes.

use std::{sync::Arc, time::Duration};

use events_journal::EventLog as _;
use events_journal_sled::{LocalStore, Options};
use events_model::{Commit, CommitId, Version};
use serde::Serialize;
use tokio::{runtime::Runtime, task::JoinSet};

use super::{
    bare::{Bare, Place},
    figure::{Figure, micros, show_ms, show_rate},
    generate,
    scratch::Scratch,
};
use crate::cli::{
    arguments::BenchLog,
    clock::Stopwatch,
    failure::{Failure, Problem},
    output::{Column, Output, note},
};

/// An encoded commit, bytes.
const COMMIT_BYTES: usize = 512;

/// All sides with one number of writers.
#[derive(Debug, Serialize)]
pub(super) struct Appends {
    writers: usize,
    store: Figure,
    /// The bare loop on a log of segments.
    bare_log: Figure,
    /// The bare loop that overwrites one file.
    overwrite: Figure,
    /// Store by bare log.
    ratio: f64,
    /// Store by overwriting.
    ratio_overwrite: f64,
}

/// One side: takes a commit and answers when it is durable.
trait Target: Send + Sync + 'static {
    fn append(&self, commit: Commit) -> impl Future<Output = Result<(), Failure>> + Send;
}

struct Store(LocalStore);

impl Target for Store {
    async fn append(&self, commit: Commit) -> Result<(), Failure> {
        let expected = Version(commit.first_version.0.saturating_sub(1));
        let appended = self.0.append(expected, commit).await;
        appended.map(drop).map_err(|error| Problem::new("append").because(&error).into())
    }
}

impl Target for Bare {
    async fn append(&self, commit: Commit) -> Result<(), Failure> {
        let durable = Self::append(self, commit.encode()).await;
        durable.map_err(|error| Problem::new("append to the reference").because(&error).into())
    }
}

/// Measures, checks and prints.
pub(super) fn run(options: &BenchLog, scratch: &Scratch, output: &mut Output) -> Result<Vec<Appends>, Failure> {
    let directory = scratch.path("append");
    let start = |place| Bare::start(place).map_err(|error| Problem::new("write").because(&error));
    let bare_log = Arc::new(start(Place::Segments(scratch.path("bare-log")))?);
    let overwrite = Arc::new(start(Place::Ring(scratch.path("overwrite")))?);
    let store = Arc::new(Store(LocalStore::open(&directory, Options::default())?));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Problem::new("start the runtime").because(&error))?;
    let length = Duration::from_secs_f64(options.seconds);
    let most = options.writers.iter().copied().max().map_or(0, usize::from);
    let mut versions = [vec![0; most], vec![0; most], vec![0; most]];
    let mut results = Vec::new();
    for writers in options.writers.iter().copied().map(usize::from) {
        let mut rounds = [Vec::new(), Vec::new(), Vec::new()];
        for round in 1..=options.rounds {
            note(format_args!("append: {writers} writers, round {round} of {}", options.rounds));
            rounds[0].push(measure(&runtime, &store, &mut versions[0], writers, length)?);
            rounds[1].push(measure(&runtime, &bare_log, &mut versions[1], writers, length)?);
            rounds[2].push(measure(&runtime, &overwrite, &mut versions[2], writers, length)?);
        }
        let [store, bare_log, overwrite] = rounds.map(|figures| Figure::median(&figures));
        let ratio = store.per_second / bare_log.per_second;
        let ratio_overwrite = store.per_second / overwrite.per_second;
        results.push(Appends { writers, store, bare_log, overwrite, ratio, ratio_overwrite });
    }
    drop(runtime);
    for (bare, versions) in [(bare_log, &versions[1]), (overwrite, &versions[2])] {
        let bare = Arc::into_inner(bare).ok_or_else(|| Problem::new("the reference is still in use"))?;
        let written = bare.close().map_err(|error| Problem::new("write").because(&error))?;
        compare("the reference", written, versions)?;
    }
    let store = Arc::into_inner(store).ok_or_else(|| Problem::new("the store is still in use"))?;
    store.0.close();
    drop(store);
    let store = LocalStore::open(&directory, Options::default())?;
    compare("the reopened store", store.head_position().0, &versions[0])?;
    print(&results, output)?;
    Ok(results)
}

/// What was acknowledged must be there, once.
fn compare(what: &str, found: u64, versions: &[u64]) -> Result<(), Failure> {
    let acknowledged: u64 = versions.iter().sum();
    if found == acknowledged {
        return Ok(());
    }
    Err(Problem::new(format!("{acknowledged} commits were acknowledged, {what} has {found}")).into())
}

fn measure<T: Target>(
    runtime: &Runtime,
    target: &Arc<T>,
    versions: &mut [u64],
    writers: usize,
    length: Duration,
) -> Result<Figure, Failure> {
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        let started = Stopwatch::start();
        for (writer, version) in versions.iter().copied().enumerate().take(writers) {
            tasks.spawn(write(Arc::clone(target), writer, version, started, length));
        }
        let mut all = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            let (writer, latencies) = ended.map_err(|error| Problem::new("a writer ended").because(&error))??;
            if let Some(version) = versions.get_mut(writer) {
                *version += latencies.len() as u64;
            }
            all.extend(latencies);
        }
        Ok(Figure::of(all, started.elapsed()))
    })
}

async fn write<T: Target>(
    target: Arc<T>,
    writer: usize,
    mut version: u64,
    started: Stopwatch,
    length: Duration,
) -> Result<(usize, Vec<u32>), Failure> {
    let template = generate::sized(writer, COMMIT_BYTES)?;
    let mut latencies = Vec::new();
    while started.elapsed() < length {
        version += 1;
        let mut commit = template.clone();
        commit.first_version = Version(version);
        // The same length for every version, so that the commit keeps its size.
        commit.commit_id = CommitId::new(&format!("bench/{version:010}")).map_err(|error| Problem::of(&error))?;
        let asked = Stopwatch::start();
        target.append(commit).await?;
        latencies.push(micros(asked.elapsed()));
    }
    Ok((writer, latencies))
}

fn print(results: &[Appends], output: &mut Output) -> Result<(), Failure> {
    if output.json() {
        return Ok(());
    }
    output.line(format_args!("durable appends of {COMMIT_BYTES}-byte commits, medians, p50 / p99 in ms"))?;
    output.line("bare log = queue, write to allocated segments, fdatasync; overwrite = the same into one used file")?;
    output.line("")?;
    let columns = [
        Column::Right("writers"),
        Column::Right("store/s"),
        Column::Right("ms"),
        Column::Right("bare log/s"),
        Column::Right("ms"),
        Column::Right("ratio"),
        Column::Right("overwrite/s"),
        Column::Right("ms"),
        Column::Right("ratio"),
    ];
    let ms = |figure: &Figure| format!("{} / {}", show_ms(figure.p50_us), show_ms(figure.p99_us));
    let rows = results.iter().map(|row| {
        vec![
            row.writers.to_string(),
            show_rate(row.store.per_second),
            ms(&row.store),
            show_rate(row.bare_log.per_second),
            ms(&row.bare_log),
            format!("{:.2}", row.ratio),
            show_rate(row.overwrite.per_second),
            ms(&row.overwrite),
            format!("{:.2}", row.ratio_overwrite),
        ]
    });
    output.table(&columns, rows)?;
    output.line("checked: the reopened store holds every acknowledged commit, once")
}
