//! How fast a node with an empty directory has the whole stream, next to reading the stream and doing nothing with it.

use std::sync::Arc;

use events_journal::{Direction, EventLog as _, Filter, log::READ_LIMIT_MAX};
use events_journal_nats::{JetStreamLog, Options, bench};
use events_journal_sled::LocalStore;
use events_model::Position;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::{
    runtime::{Handle, Runtime},
    task::JoinSet,
};

use super::{
    super::scratch::Scratch,
    appends::{call, compare},
    servers::Servers,
};
use crate::{
    bench::figure::{Spread, median, rate, show_rate},
    cli::{
        arguments::BenchNats,
        clock::Stopwatch,
        failure::{Failure, Problem},
        output::{Column, Output, note},
        show,
    },
};

/// Who fills the stream: so many at once, each in a stream of its own.
const CALLERS: usize = 512;

/// Both sides.
#[derive(Debug, Serialize)]
pub(super) struct CaughtUp {
    events: u64,
    messages: u64,
    /// Events a second until the replica had all.
    follower: f64,
    /// Events a second of a consumer that drops them.
    read: f64,
    /// Follower by reading.
    ratio: Spread,
}

async fn open(options: &Options, store: &LocalStore) -> Result<JetStreamLog, Failure> {
    let (replica, checkpoints) = (Arc::new(store.clone()), Arc::new(store.clone()));
    let opened = JetStreamLog::open(options.clone(), replica, checkpoints, Handle::current()).await;
    opened.map_err(|error| Problem::new("open the log on NATS").because(&error).into())
}

/// Measures and checks.
pub(super) fn run(
    options: &BenchNats,
    servers: &Servers,
    scratch: &Scratch,
    runtime: &Runtime,
) -> Result<CaughtUp, Failure> {
    let region = Options { shards: options.shards.into(), ..servers.region("catch-up")? };
    runtime.block_on(async {
        note(format_args!("catching up: filling the stream with {} events", show::count(options.events)));
        let store = LocalStore::open_copy(&scratch.path("filled"), events_journal_sled::Options::default())?;
        let log = Arc::new(open(&region, &store).await?);
        fill(&log, options.events).await?;
        log.close().await;
        let filled = digest(&store)?;
        store.close();
        let (mut follower, mut reader, mut ratios, mut messages) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for round in 1..=options.rounds {
            note(format_args!("catching up: round {round} of {}", options.rounds));
            let (traffic, elapsed) = bench::read(&region).await.map_err(|error| Problem::of(&error))?;
            compare("the stream", traffic.commits, options.events)?;
            messages = traffic.messages;
            let read = rate(traffic.commits, elapsed);
            let store = LocalStore::open_copy(
                &scratch.path(&format!("empty-{round}")),
                events_journal_sled::Options::default(),
            )?;
            let started = Stopwatch::start();
            let log = open(&region, &store).await?;
            let end = log.progress().head;
            // The log lives as long as this.
            log.watch_applied().wait_for(|applied| *applied >= end).await.ok();
            let followed = rate(options.events, started.elapsed());
            log.close().await;
            if digest(&store)? != filled {
                return Err(Problem::new("the node that caught up holds other bytes than the one that wrote").into());
            }
            store.close();
            follower.push(followed);
            reader.push(read);
            ratios.push(followed / read);
        }
        bench::remove(&region).await.map_err(|error| Problem::of(&error))?;
        let (follower, read) = (median(follower), median(reader));
        Ok(CaughtUp { events: options.events, messages, follower, read, ratio: Spread::of(ratios) })
    })
}

async fn fill(log: &Arc<JetStreamLog>, events: u64) -> Result<(), Failure> {
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let log = Arc::clone(log);
        let share = events / CALLERS as u64 + u64::from((caller as u64) < events % CALLERS as u64);
        callers.spawn(async move { call(&*log, caller, |version| version < share).await });
    }
    while let Some(ended) = callers.join_next().await {
        ended.map_err(|error| Problem::new("a caller ended").because(&error))??;
    }
    Ok(())
}

/// Of everything that a store holds, and where.
fn digest(store: &LocalStore) -> Result<(u64, [u8; 32]), Failure> {
    let (mut digest, mut commits, mut next) = (Sha256::new(), 0, Position(1));
    while next <= store.head_position() {
        let page = store.read_log(next, Direction::Forward, &Filter::default(), READ_LIMIT_MAX);
        let page = page.map_err(|error| Problem::of(&error))?;
        for recorded in &page.commits {
            digest.update(recorded.position.0.to_le_bytes());
            digest.update(&recorded.bytes);
        }
        commits += page.commits.len() as u64;
        next = page.next;
    }
    Ok((commits, digest.finalize().into()))
}

/// The table.
pub(super) fn print(caught_up: &CaughtUp, output: &mut Output) -> Result<(), Failure> {
    output.line("")?;
    output.line(format_args!(
        "a node with an empty directory follows {} events in {} messages of one server",
        show::count(caught_up.events),
        show::count(caught_up.messages)
    ))?;
    output.line("")?;
    let columns = [Column::Right("follower, events/s"), Column::Right("plain read, events/s"), Column::Right("ratio")];
    let row = vec![show_rate(caught_up.follower), show_rate(caught_up.read), caught_up.ratio.show()];
    output.table(&columns, [row])?;
    output.line("checked: it holds the same bytes at the same positions as the node that wrote them")
}
