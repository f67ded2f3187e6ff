//! A node that cannot decide well gives its shards to others, and takes part again when it can.
//!
//! Three reasons: its replica does not follow any more (for good), its own disk refuses, or its clock differs from the
//! servers'. For its clock alone it stays away only while another node is there to decide: were the servers' clock the
//! wrong one, no node would be left. An operator's drain outlasts all of them.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use events_journal::{EventLog as _, Health, Refusal};
use events_journal_nats::lease::NodeState;
use events_model::TimestampUs;
use parking_lot::Mutex;
use tokio::time::sleep;
use tracing::{debug, error, info, warn};

use super::{
    Cluster, HANDOVER_WAIT,
    clock::{self, SKEW_MAX, Skew},
};
use crate::{auth::entropy, readiness::refusal_code};

/// How often the clock is compared, in looks, and how far looks are apart: at least this, and at most twice as much, so
/// that two nodes do not look at each other at the same time.
const LOOKS_PER_QUESTION: u32 = 4;
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// Why a node is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    Disk,
    Clock,
}

/// Whether this node takes part. What is decided here is sent to the leases under the same lock, so that the leases hear
/// of it in the order in which it was decided.
#[derive(Debug, Default)]
pub(super) struct Away(Mutex<Absence>);

#[derive(Debug, Default)]
struct Absence {
    why: BTreeMap<Cause, String>,
    /// An operator or the end of the process wants it so.
    stays: bool,
}

impl Away {
    /// Why it does not, for people.
    pub(super) fn reasons(&self) -> Vec<String> {
        self.0.lock().why.values().cloned().collect()
    }

    /// It comes back no more.
    pub(super) fn stay<T>(&self, send: impl FnOnce() -> T) -> T {
        let mut absence = self.0.lock();
        absence.stays = true;
        send()
    }

    /// Notes a reason; sends if it is the first.
    fn go<T>(&self, cause: Cause, why: String, send: impl FnOnce() -> T) -> Option<T> {
        let mut absence = self.0.lock();
        let was_here = absence.why.is_empty();
        absence.why.insert(cause, why);
        was_here.then(send)
    }

    /// A reason is gone; sends if the node may take part again.
    fn come_back<T>(&self, cause: Cause, send: impl FnOnce() -> T) -> Option<T> {
        let mut absence = self.0.lock();
        let may = absence.why.remove(&cause).is_some() && absence.why.is_empty() && !absence.stays;
        may.then(send)
    }
}

/// Why a disk does not take part, if this is about the disk.
fn disk(health: &Health) -> Option<String> {
    let Health::Refusing(refusal) = health else { return None };
    match refusal {
        Refusal::DiskFull | Refusal::ReadOnly | Refusal::DirectoryRemoved | Refusal::Disk(_) => {
            let code = refusal_code(refusal).map(|code| format!("[{code}] ")).unwrap_or_default();
            Some(format!("{code}this node's disk refuses, other nodes decide meanwhile: {refusal}"))
        }
        Refusal::Closed | Refusal::Fenced | Refusal::Unreachable | Refusal::Stopped(_) => None,
    }
}

/// What a node does whose clock was compared.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Agrees,
    /// Others can decide.
    Goes(String),
    /// It does not agree, and nobody else is there.
    Alone(String),
}

fn judge(skew: Option<&Skew>, others: usize) -> Verdict {
    let Some(skew) = skew.filter(|skew| skew.by > SKEW_MAX) else { return Verdict::Agrees };
    let direction = if skew.is_ahead { "ahead of" } else { "behind" };
    let text = format!(
        "[E0021] this machine's clock is {} s {direction} that of the NATS servers ({}); {} s are allowed",
        skew.by.as_secs(),
        skew.theirs,
        SKEW_MAX.as_secs()
    );
    if others > 0 { Verdict::Goes(text) } else { Verdict::Alone(text) }
}

impl Cluster {
    async fn go(&self, cause: Cause, why: String) {
        // Closed: the process ends.
        let Ok(turn) = self.leases.turn().await else { return };
        if let Some(draining) = self.away.go(cause, why.clone(), || turn.drain()) {
            error!(why, "this node gives its shards to others");
            let left = self.leases.handed_over(draining, HANDOVER_WAIT).await;
            info!(left, "shards given to others");
        }
    }

    async fn come_back(&self, cause: Cause) {
        // Closed: the process ends.
        let Ok(turn) = self.leases.turn().await else { return };
        if self.away.come_back(cause, || turn.resume()).is_some() {
            info!("this node takes part again");
        }
    }

    /// Leaves the shards to other nodes while this one's disk refuses, and for good when it does not follow the log any
    /// more.
    pub(super) async fn watch_log(&self) {
        let mut health = self.log.watch_health();
        while self.log.failure().is_none() {
            let now = health.borrow_and_update().clone();
            let moved = async {
                match disk(&now) {
                    Some(why) => self.go(Cause::Disk, why).await,
                    None if now == Health::Accepting => self.come_back(Cause::Disk).await,
                    // Nothing about the disk.
                    None => {}
                }
                std::future::pending::<()>().await;
            };
            // A disk that works again ends the wait for others to take over.
            let changed = tokio::select! {
                changed = health.changed() => changed,
                () = moved => Ok(()),
            };
            if changed.is_err() {
                return;
            }
        }
        error!("this node does not follow the log any more and leaves its shards to others");
        self.leases.close(HANDOVER_WAIT).await;
    }

    /// Other nodes that decide.
    fn others(&self) -> usize {
        let live = |node: &&super::Node| node.name != self.node && node.state == NodeState::Live;
        self.nodes().iter().filter(live).count()
    }

    /// Compares the clock now and then, and acts on it.
    pub(super) async fn watch_clock(self: Arc<Self>, wall: fn() -> TimestampUs) {
        let random = entropy::<2>().map_or(0, u16::from_le_bytes);
        let every = LOOK_EVERY + LOOK_EVERY * u32::from(random) / u32::from(u16::MAX);
        let mut last: Option<Skew> = None;
        let mut is_told = false;
        for look in 1_u32.. {
            sleep(every).await;
            if look.is_multiple_of(LOOKS_PER_QUESTION) {
                match clock::compare(&self.log, wall).await {
                    Ok(Some(skew)) => {
                        self.skew_us.store(skew.signed_us(), Ordering::Relaxed);
                        last = Some(skew);
                    }
                    // What was known stays.
                    Ok(None) => {}
                    Err(error) => debug!(%error, "clock not compared"),
                }
            }
            let verdict = judge(last.as_ref(), self.others());
            let was_told = std::mem::replace(&mut is_told, verdict != Verdict::Agrees);
            match verdict {
                Verdict::Agrees => {
                    if was_told {
                        info!("the clock agrees with the servers' again");
                    }
                    self.come_back(Cause::Clock).await;
                }
                Verdict::Goes(why) => self.go(Cause::Clock, why).await,
                Verdict::Alone(why) => {
                    if !was_told {
                        warn!(why, "no other node is there, so this one goes on deciding");
                    }
                    self.come_back(Cause::Clock).await;
                }
            }
        }
    }

    /// By how many microseconds this node's clock is ahead of the servers', when it was compared last.
    pub(crate) fn clock_skew_us(&self) -> i64 {
        self.skew_us.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skew(by_s: u64) -> Skew {
        Skew { by: Duration::from_secs(by_s), is_ahead: true, theirs: "noon".to_owned() }
    }

    #[test]
    fn a_clock_that_differs_matters_only_while_somebody_else_can_decide() {
        assert_eq!(judge(None, 2), Verdict::Agrees);
        assert_eq!(judge(Some(&skew(5)), 2), Verdict::Agrees);
        let Verdict::Goes(text) = judge(Some(&skew(6)), 1) else { panic!("it stays") };
        assert!(text.starts_with("[E0021] this machine's clock is 6 s ahead of"), "{text}");
        assert_eq!(judge(Some(&skew(6)), 0), Verdict::Alone(text));
    }

    #[test]
    fn a_node_comes_back_when_its_last_reason_is_gone_unless_an_operator_wants_it_away() {
        let away = Away::default();
        let go = |cause, why: &str| away.go(cause, why.to_owned(), || ()).is_some();
        let comes_back = |cause| away.come_back(cause, || ()).is_some();
        assert!(!comes_back(Cause::Disk));
        assert!(go(Cause::Disk, "full"));
        assert!(!go(Cause::Clock, "late"));
        assert_eq!(away.reasons(), ["full", "late"]);
        assert!(!comes_back(Cause::Disk));
        assert!(comes_back(Cause::Clock));
        away.stay(|| ());
        assert!(go(Cause::Disk, "full"));
        assert!(!comes_back(Cause::Disk));
    }

    #[test]
    fn an_operators_drain_is_never_sent_before_a_return_that_was_decided_earlier() {
        for round in 0..1_000 {
            let (away, sent) = (Away::default(), Mutex::new(Vec::new()));
            away.go(Cause::Disk, "full".to_owned(), || ());
            std::thread::scope(|scope| {
                scope.spawn(|| away.come_back(Cause::Disk, || sent.lock().push("resume")));
                scope.spawn(|| away.stay(|| sent.lock().push("drain")));
            });
            assert_eq!(sent.lock().last(), Some(&"drain"), "round {round}");
        }
    }

    #[test]
    fn only_a_disk_that_refuses_gives_shards_away() {
        let why = |refusal| disk(&Health::Refusing(refusal));
        assert!(why(Refusal::DiskFull).unwrap().starts_with("[E0003] this node's disk refuses"));
        assert!(why(Refusal::Disk("broken".to_owned())).is_some());
        assert_eq!(why(Refusal::Unreachable), None);
        assert_eq!(disk(&Health::Accepting), None);
    }
}
