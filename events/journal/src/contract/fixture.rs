//! Commits to append and ways to wait, for the contract and for tests above it.
//!
//! A commit depends on its arguments alone, so that whoever knows them can build it again and compare bytes.

use std::{
    pin::pin,
    sync::{Arc, mpsc},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use events_model::{
    Commit, CommitId, DecisionContext, EpisodeId, EventId, EventRecord, Payload, Position, Principal, RegionId,
    StreamId, TenantId, TimestampUs, Version,
};

use crate::{
    error::AppendError,
    log::{Appended, Direction, EventLog, Filter, Receipt, Recorded},
};

/// Longest wait for an answer before a test fails.
pub const WAIT_MAX: Duration = Duration::from_secs(30);
/// Type of the events of `commit`.
pub const HAPPENED: &str = "freehold.contract.v1.Happened";
/// Another type of event.
pub const COUNTED: &str = "freehold.contract.v1.Counted";

/// Builds a commit whose first event has version `version`, with `events` events that share `bytes` payload bytes.
pub fn commit(stream: &StreamId, version: Version, id: &str, events: usize, bytes: usize) -> Commit {
    let mut noise = Noise::new(&[stream.as_str(), id], version.0);
    let episode_id = EpisodeId::from_bytes(noise.sixteen());
    let share = bytes.checked_div(events).unwrap_or(0);
    let events = (0..events).map(|index| EventRecord {
        event_id: EventId::from_bytes(noise.sixteen()),
        payload: Payload {
            kind: HAPPENED,
            schema_version: 1,
            // The first event takes what cannot be shared evenly.
            bytes: noise.bytes(if index == 0 { bytes - share * (events - 1) } else { share }),
        },
    });
    Commit {
        commit_id: CommitId::new(id).unwrap(),
        stream: stream.clone(),
        first_version: version,
        command: Payload { kind: "freehold.contract.v1.Happen", schema_version: 1, bytes: id.as_bytes().to_vec() },
        events: events.collect(),
        episode_id,
        causation_id: None,
        tenant: stream.tenant_id(),
        region: RegionId::new("local").unwrap(),
        epoch: 1,
        principal: Principal::admin(),
        recorded_at: TimestampUs(1_790_000_000_000_000 + version.0),
        traceparent: String::new(),
        decider_version: 1,
        key_id: String::new(),
        context: DecisionContext { seed: version.0, ..DecisionContext::default() },
    }
}

/// The stream of a tenant of this name.
pub fn tenant(name: &str) -> StreamId {
    StreamId::tenant(&TenantId::new(name).unwrap())
}

/// One of the streams of the tenant `acme`, all of which lie in one shard.
pub fn saga(name: &str) -> StreamId {
    StreamId::new(&format!("saga/acme/{name}")).unwrap()
}

/// Waits for a future on this thread, at most `WAIT_MAX` between two wake-ups; needs no runtime.
pub fn settle<F: Future>(future: F) -> F::Output {
    struct Bell(mpsc::Sender<()>);
    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            // A bell that nobody waits for any more need not ring.
            self.0.send(()).ok();
        }
    }
    let (sender, rings) = mpsc::channel();
    let waker = Waker::from(Arc::new(Bell(sender)));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        assert!(rings.recv_timeout(WAIT_MAX).is_ok(), "no answer within {WAIT_MAX:?}");
    }
}

/// Appends after the version before the commit's first and waits for the answer.
///
/// # Errors
/// As `EventLog::append`.
pub fn append(log: &Arc<dyn EventLog>, commit: Commit) -> Result<Appended, AppendError> {
    settle(call(log, commit))
}

/// Appends after the version before the commit's first and does not wait.
pub fn call(log: &Arc<dyn EventLog>, commit: Commit) -> Receipt {
    log.append(commit.first_version.minus(Version(1)), commit)
}

/// Appends `count` commits of one small event each to a stream that does not exist.
pub fn fill(log: &Arc<dyn EventLog>, stream: &StreamId, count: u64) -> Vec<Commit> {
    let commits: Vec<_> =
        (1..=count).map(|version| commit(stream, Version(version), &format!("{stream}-{version}"), 1, 20)).collect();
    let receipts: Vec<_> = commits.iter().map(|commit| call(log, commit.clone())).collect();
    for receipt in receipts {
        settle(receipt).unwrap();
    }
    commits
}

/// Reads the log to its end in pages, in one direction from its beginning there.
pub fn read_all(log: &Arc<dyn EventLog>, direction: Direction, filter: &Filter, limit: usize) -> Vec<Recorded> {
    let mut commits = Vec::new();
    let head = log.head_position();
    let mut next = match direction {
        Direction::Forward => Position(1),
        Direction::Backward => head,
    };
    while (Position(1)..=head).contains(&next) {
        let page = log.read_log(next, direction, filter, limit).unwrap();
        assert!(page.commits.len() <= limit, "a page of {} when {limit} were asked for", page.commits.len());
        let has_moved = match direction {
            Direction::Forward => page.next > next,
            Direction::Backward => page.next < next,
        };
        assert!(has_moved, "reading from {next} goes on from {}", page.next);
        commits.extend(page.commits);
        next = page.next;
    }
    commits
}

/// The encoded forms of what was read.
pub fn bytes(commits: &[Recorded]) -> Vec<Vec<u8>> {
    commits.iter().map(|commit| commit.bytes.to_vec()).collect()
}

/// The encoded forms of what was built.
pub fn encoded(commits: &[Commit]) -> Vec<Vec<u8>> {
    commits.iter().map(Commit::encode).collect()
}

/// The positions of what was read.
pub fn positions(commits: &[Recorded]) -> Vec<u64> {
    commits.iter().map(|commit| commit.position.0).collect()
}

/// Numbers that look random and depend on the seed alone.
#[derive(Debug)]
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(texts: &[&str], number: u64) -> Self {
        let bytes = texts.iter().flat_map(|text| text.bytes()).chain(number.to_le_bytes());
        // FNV-1a: different arguments give different payloads, which is all that is needed.
        Self(
            bytes
                .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)),
        )
    }

    /// SplitMix64.
    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) const fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }

    fn sixteen(&mut self) -> [u8; 16] {
        (u128::from(self.next()) << 64 | u128::from(self.next())).to_le_bytes()
    }
}
