//! Durable appends a second with 1, 16 and 256 writers: the local store next to the bare loop.
//!
//! A writer appends one commit, waits until it is durable, and appends the next. Both sides get the same bytes.

use std::{sync::Arc, time::Duration};

use events_journal::EventLog as _;
use events_journal_sled::{LocalStore, Options};
use events_model::{Commit, CommitId, Version};
use serde::Serialize;
use tokio::{runtime::Runtime, task::JoinSet};

use super::{
    bare::Bare,
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

/// Writers at once.
const WRITERS: [usize; 3] = [1, 16, 256];
/// An encoded commit, bytes.
const COMMIT_BYTES: usize = 512;

/// Both sides with one number of writers.
#[derive(Debug, Serialize)]
pub(super) struct Appends {
    writers: usize,
    store: Figure,
    bare: Figure,
    /// Store by bare loop.
    ratio: f64,
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
    let bare = Bare::start(&scratch.path("bare")).map_err(|error| Problem::new("write").because(&error))?;
    let (store, bare) = (Arc::new(Store(LocalStore::open(&directory, Options::default())?)), Arc::new(bare));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Problem::new("start the runtime").because(&error))?;
    let length = Duration::from_secs_f64(options.seconds);
    let (mut versions, mut bare_versions) = (vec![0; 256], vec![0; 256]);
    let mut results = Vec::new();
    for writers in WRITERS {
        let (mut of_store, mut of_bare) = (Vec::new(), Vec::new());
        for round in 1..=options.rounds {
            note(format_args!("append: {writers} writers, round {round} of {}", options.rounds));
            of_store.push(measure(&runtime, &store, &mut versions, writers, length)?);
            of_bare.push(measure(&runtime, &bare, &mut bare_versions, writers, length)?);
        }
        let (store, bare) = (Figure::median(&of_store), Figure::median(&of_bare));
        results.push(Appends { writers, store, bare, ratio: store.per_second / bare.per_second });
    }
    drop(runtime);
    let bare = Arc::into_inner(bare).ok_or_else(|| Problem::new("the reference is still in use"))?;
    let written = bare.close().map_err(|error| Problem::new("write").because(&error))?;
    compare("the reference", written, &bare_versions)?;
    let store = Arc::into_inner(store).ok_or_else(|| Problem::new("the store is still in use"))?;
    store.0.close();
    drop(store);
    let store = LocalStore::open(&directory, Options::default())?;
    compare("the reopened store", store.head_position().0, &versions)?;
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
    output.line(format_args!(
        "durable appends of {COMMIT_BYTES}-byte commits, medians; bare = queue, write, fdatasync"
    ))?;
    output.line("")?;
    let columns = [
        Column::Right("writers"),
        Column::Right("store/s"),
        Column::Right("p50 ms"),
        Column::Right("p99 ms"),
        Column::Right("bare/s"),
        Column::Right("p50 ms"),
        Column::Right("p99 ms"),
        Column::Right("ratio"),
    ];
    let rows = results.iter().map(|Appends { writers, store, bare, ratio }| {
        vec![
            writers.to_string(),
            show_rate(store.per_second),
            show_ms(store.p50_us),
            show_ms(store.p99_us),
            show_rate(bare.per_second),
            show_ms(bare.p50_us),
            show_ms(bare.p99_us),
            format!("{ratio:.2}"),
        ]
    });
    output.table(&columns, rows)?;
    output.line("checked: the reopened store holds every acknowledged commit, once")
}
