//! How far this node's replica is: watched while it catches up and ever after, and left in the data directory for
//! commands beside the process.
//!
//! Deliberately no truth: where following goes on is found in the replica itself.

use std::{
    collections::VecDeque,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use events_journal::EventLog as _;
use events_journal_nats::{JetStreamLog, OpenError};
use events_model::TimestampUs;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info};

use super::{Error, LAG_GROUPS_MAX};

/// The file in the data directory.
pub(crate) const FILE: &str = "follower.json";
/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Looks over which the speed is measured, and between which the file is written at the most.
const LOOKS_OF_SPEED: usize = 8;
const LOOKS_PER_SAVE: u64 = 4;
/// How often a log line tells how far a node is that catches up.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// How far the replica is, at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Following {
    /// The region whose log it is.
    pub region: String,
    /// Groups of the stream that the replica shows.
    pub applied: u64,
    /// Groups that the stream's leader has, as far as is known here.
    pub head: u64,
    /// Commits in the replica.
    pub commits: u64,
    /// Commits that it got a second, lately.
    pub commits_per_s: u64,
    /// When this was so, microseconds since 1970.
    pub at_us: u64,
}

impl Following {
    /// Groups that the replica lacks.
    pub const fn behind(&self) -> u64 {
        self.head.saturating_sub(self.applied)
    }

    /// Why a node that is so far should not be sent requests.
    pub(crate) fn obstacle(&self) -> Option<String> {
        let (behind, Self { applied, head, commits_per_s, .. }) = (self.behind(), self);
        (behind > LAG_GROUPS_MAX).then(|| {
            format!(
                "this node is {behind} groups behind the log ({applied} of {head} groups, {commits_per_s} commits/s)"
            )
        })
    }

    /// What the process that used this data directory left, if it was a node.
    ///
    /// # Errors
    /// The file cannot be read, or is not one of these.
    pub(crate) fn load(data: &Path) -> io::Result<Option<Self>> {
        match fs::read(data.join(FILE)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the file in one step. Not synced: it only shows.
    fn save(&self, path: &Path) -> io::Result<()> {
        let written = path.with_extension("json.new");
        fs::write(&written, serde_json::to_vec(self)?)?;
        fs::rename(written, path)
    }
}

/// The speed of the last looks.
#[derive(Debug, Default)]
struct Speed(VecDeque<(Instant, u64)>);

impl Speed {
    /// Commits a second, with this look.
    fn with(&mut self, at: Instant, commits: u64) -> u64 {
        if self.0.len() > LOOKS_OF_SPEED {
            self.0.pop_front();
        }
        self.0.push_back((at, commits));
        let Some((from, first)) = self.0.front() else { return 0 };
        let (millis, more) = ((at - *from).as_millis(), u128::from(commits.saturating_sub(*first)));
        u64::try_from((more * 1_000).checked_div(millis).unwrap_or(0)).unwrap_or(u64::MAX)
    }
}

/// Watches a log that follows a stream, until it is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    log: JetStreamLog,
    path: PathBuf,
    wall: fn() -> TimestampUs,
    shown: watch::Receiver<Following>,
    _stop: DropGuard,
}

impl Watch {
    pub(super) fn start(log: JetStreamLog, data: &Path, wall: fn() -> TimestampUs) -> Self {
        let (tell, shown) = watch::channel(look(&log, &mut Speed::default(), wall));
        let (stop, path) = (CancellationToken::new(), data.join(FILE));
        spawn(stop.clone(), keep_looking(log.clone(), path.clone(), wall, tell));
        Self { log, path, wall, shown, _stop: stop.drop_guard() }
    }

    /// Leaves the last word, after which the process ends.
    pub(super) async fn finish(&self) {
        save(look(&self.log, &mut Speed::default(), self.wall), self.path.clone()).await;
    }

    pub(super) fn now(&self) -> Following {
        self.shown.borrow().clone()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Following> {
        self.shown.clone()
    }
}

#[expect(clippy::disallowed_methods, reason = "ends with its token")]
fn spawn(stop: CancellationToken, watching: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(stop.run_until_cancelled_owned(watching));
}

async fn save(following: Following, path: PathBuf) {
    if let Ok(Err(error)) = spawn_blocking(move || following.save(&path)).await {
        debug!(%error, "how far the replica is was not written down");
    }
}

fn look(log: &JetStreamLog, speed: &mut Speed, wall: fn() -> TimestampUs) -> Following {
    let (progress, commits) = (log.progress(), log.head_position().0);
    Following {
        region: log.options().region.to_string(),
        applied: progress.applied,
        head: progress.head,
        commits,
        commits_per_s: speed.with(now(), commits),
        at_us: wall().0,
    }
}

#[expect(clippy::disallowed_methods, reason = "a speed that is shown is no input of a decision")]
fn now() -> Instant {
    Instant::now()
}

async fn keep_looking(log: JetStreamLog, path: PathBuf, wall: fn() -> TimestampUs, tell: watch::Sender<Following>) {
    let mut every = interval(LOOK_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut speed, mut saved) = (Speed::default(), (0, 0));
    for number in 0_u64.. {
        every.tick().await;
        let following = look(&log, &mut speed, wall);
        tell.send_replace(following.clone());
        let state = (following.applied, following.head);
        if number.is_multiple_of(LOOKS_PER_SAVE) && state != saved {
            saved = state;
            save(following, path.clone()).await;
        }
    }
}

/// A moment of catching up.
#[derive(Debug, Clone, Copy)]
pub struct CatchUp<'a> {
    /// How far it is.
    pub following: &'a Following,
    /// Nothing more is shown after this.
    pub is_over: bool,
}

/// Shows how a node catches up; called a few times a second, and not at all if there is nothing to catch up with.
pub type Show<'a> = dyn Fn(CatchUp<'_>) + Sync + 'a;

/// Shows it as log lines.
pub(crate) fn as_lines() -> impl Fn(CatchUp<'_>) + Sync {
    let last = Mutex::new(None);
    move |CatchUp { following, is_over }| {
        let mut last = last.lock();
        if is_over || last.is_some_and(|last: Instant| last.elapsed() < LINE_EVERY) {
            return;
        }
        *last = Some(now());
        let Following { applied, head, commits_per_s, .. } = following;
        info!(applied, head, behind = following.behind(), commits_per_s, "catching up with the log");
    }
}

/// Waits until the replica has what the stream had when it was opened, and is near its end.
pub(super) async fn catch_up(log: &JetStreamLog, watch: &Watch, show: &Show<'_>) -> Result<(), Error> {
    let (mut shown, started) = (watch.subscribe(), now());
    let begun = shown.borrow_and_update().clone();
    let mut following = begun.clone();
    let mut was_shown = false;
    loop {
        if let Some(failure) = log.failure() {
            let source = (*failure).clone();
            return Err(Error::Log(OpenError::Replica { stream: format!("of region {}", following.region), source }));
        }
        let is_over = following.applied >= begun.head && following.behind() <= LAG_GROUPS_MAX;
        if is_over && !was_shown {
            return Ok(());
        }
        was_shown = true;
        show(CatchUp { following: &following, is_over });
        if is_over {
            let commits = following.commits.saturating_sub(begun.commits);
            info!(groups = following.applied, commits, ms = started.elapsed().as_millis(), "caught up with the log");
            return Ok(());
        }
        // The sender lives as long as the watch.
        drop(shown.changed().await);
        following = shown.borrow_and_update().clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_is_that_of_the_last_looks() {
        let (mut speed, start) = (Speed::default(), now());
        assert_eq!(speed.with(start, 500), 0);
        assert_eq!(speed.with(start + Duration::from_millis(500), 1_000), 1_000);
        // Long after the first looks it does not move any more.
        let later = (0..20).map(|number| speed.with(start + Duration::from_secs(10 + number), 1_000));
        assert_eq!(later.last(), Some(0));
    }

    #[test]
    fn what_a_process_left_is_read_and_nothing_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Following::load(folder.path()).unwrap(), None);
        let following = Following { region: "eu".to_owned(), applied: 7, head: 9, commits: 70, ..Default::default() };
        following.save(&folder.path().join(FILE)).unwrap();
        assert_eq!(Following::load(folder.path()).unwrap(), Some(following));
        fs::write(folder.path().join(FILE), "{").unwrap();
        Following::load(folder.path()).unwrap_err();
    }

    #[test]
    fn a_node_is_ready_when_it_is_near_the_head_and_says_how_far_it_is_before() {
        let at = |applied| Following { applied, head: 10_000, commits_per_s: 250, ..Default::default() };
        assert_eq!(at(10_000 - LAG_GROUPS_MAX).obstacle(), None);
        let text = at(4_000).obstacle().unwrap();
        assert!(text.contains("6000 groups behind the log (4000 of 10000 groups, 250 commits/s)"), "{text}");
    }
}
