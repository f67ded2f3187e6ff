//! Start-up and full replay of a generated log, in processes of their own so that memory is theirs alone.

use std::{fs, path::Path};

use events_journal_sled::{LocalStore, Options};
use serde::{Deserialize, Serialize};

use super::{
    child,
    figure::{median, rate, show_rate},
    generate::{self, TENANTS, Tenants},
    scratch::Scratch,
};
use crate::cli::{
    arguments::BenchLog,
    clock::Stopwatch,
    failure::{Failure, Problem},
    output::{Column, Output, note},
    show,
};

/// Folds over the log; the median counts.
const SCANS: usize = 3;

/// What one process measured.
#[derive(Debug, Serialize, Deserialize)]
struct Opened {
    /// Until the log could be read and written, microseconds.
    open_us: u64,
    /// Commits that the index did not know.
    replayed: u64,
    /// Resident memory right after, bytes.
    rss_open_bytes: u64,
    commits: u64,
    events: u64,
    /// Events decoded and folded a second, on one core.
    events_per_second: f64,
    /// Requests settled, over all tenants.
    settled: u64,
    /// Resident memory after the fold, bytes.
    rss_scan_bytes: u64,
}

/// Both ways of opening.
#[derive(Debug, Serialize)]
pub(super) struct Replayed {
    commits: u64,
    log_bytes: u64,
    with_index: Opened,
    without_index: Opened,
}

/// Generates, measures, checks and prints.
pub(super) fn run(options: &BenchLog, scratch: &Scratch, output: &mut Output) -> Result<Replayed, Failure> {
    let directory = scratch.path("replay");
    note(format_args!("replay: generating {} commits", show::count(options.commits)));
    let store = LocalStore::open(&directory, Options::default())?;
    generate::fill(&store, &mut Tenants::new(TENANTS)?, options.commits)?;
    let log_bytes = store.stat()?.log_bytes;
    store.close();
    note("replay: opening with the index");
    let with_index = child::open(&directory)?;
    check(&with_index, options.commits)?;
    let removed = fs::remove_dir_all(directory.join("index"));
    removed.map_err(|error| Problem::new("remove the index").because(&error))?;
    note("replay: opening without the index");
    let without_index = child::open(&directory)?;
    check(&without_index, options.commits)?;
    let replayed = Replayed { commits: options.commits, log_bytes, with_index, without_index };
    print(&replayed, output)?;
    Ok(replayed)
}

fn check(opened: &Opened, commits: u64) -> Result<(), Failure> {
    let settled = commits.saturating_sub(2 * TENANTS) / 2;
    if opened.commits == commits && opened.events == commits && opened.settled == settled {
        return Ok(());
    }
    let Opened { commits: found, events, settled: seen, .. } = opened;
    Err(Problem::new(format!(
        "{commits} commits with one event each and {settled} settlements were written, {found}, {events} and {seen} found"
    ))
    .into())
}

/// What the child process does.
pub(super) fn open(directory: &Path, output: &mut Output) -> Result<(), Failure> {
    let started = Stopwatch::start();
    let store = LocalStore::open(directory, Options::default())?;
    let open_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    let rss_open_bytes = resident_bytes();
    let (mut rates, mut last) = (Vec::new(), None);
    for _ in 0..SCANS {
        let started = Stopwatch::start();
        let scan = replay::scan::all_tenants(&store, |_| {}).map_err(|error| Problem::of(&error))?;
        rates.push(rate(scan.events, started.elapsed()));
        last = Some(scan);
    }
    let rss_scan_bytes = resident_bytes();
    let scan = last.unwrap_or_default();
    let settled = scan.states().map(|(_, state)| state.totals.settled).sum();
    output.json_line(&Opened {
        open_us,
        replayed: store.opening().replayed,
        rss_open_bytes,
        commits: scan.commits,
        events: scan.events,
        events_per_second: median(rates),
        settled,
        rss_scan_bytes,
    })
}

/// Memory of this process that is resident; 0 = the system does not say.
fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1_024
}

fn print(replayed: &Replayed, output: &mut Output) -> Result<(), Failure> {
    if output.json() {
        return Ok(());
    }
    output.line("")?;
    output.line(format_args!(
        "start-up and full replay of {} commits of {TENANTS} tenants ({}), each in a fresh process",
        show::count(replayed.commits),
        show::size(replayed.log_bytes)
    ))?;
    output.line("")?;
    let columns = [
        Column::Left("opened"),
        Column::Right("ms"),
        Column::Right("replayed"),
        Column::Right("memory"),
        Column::Right("events/s decoded and folded"),
        Column::Right("memory then"),
    ];
    let row = |name: &str, opened: &Opened| {
        vec![
            name.to_owned(),
            (opened.open_us / 1_000).to_string(),
            show::count(opened.replayed),
            show::size(opened.rss_open_bytes),
            show_rate(opened.events_per_second),
            show::size(opened.rss_scan_bytes),
        ]
    };
    let rows = [row("with index", &replayed.with_index), row("without", &replayed.without_index)];
    output.table(&columns, rows)?;
    output.line("checked: every commit, every event and every settlement was found again")
}
