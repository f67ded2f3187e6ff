//! Every bound of the leases, with its unit.

use std::time::Duration;

/// How long a lease lasts unless chosen otherwise when the bucket is made.
pub const TTL_DEFAULT: Duration = Duration::from_secs(9);
/// Shortest and longest lease: shorter ones run out between two answers of a busy server, longer ones help nobody.
pub const TTL_MIN: Duration = Duration::from_millis(500);
/// See `TTL_MIN`.
pub const TTL_MAX: Duration = Duration::from_secs(60);
/// A lease is renewed this many times while it lasts.
pub(crate) const RENEWALS_PER_TTL: u64 = 3;
/// A node stops deciding this part of a lease before its end: so much faster may another node's clock run.
pub(crate) const MARGIN_PART: u64 = 6;
/// Part of a lease after which an unanswered request is given up and made again. Its length takes nothing from safety,
/// for a lease counts from the moment before its renewal was sent, whenever the answer comes. It is chosen so that a
/// renewal that is lost and the one after it have about as long, 9/36 and 8/36 of a lease, before the node stops
/// deciding: servers that answer later than that cannot be lived with at this length of a lease.
pub(crate) const WAIT_PART: u32 = 4;
/// Part of a lease after which a node looks again for changes nobody told it of, and within which bounds.
pub(crate) const POLL_PART: u32 = 18;
pub(crate) const POLL_MAX: Duration = Duration::from_secs(1);
/// Part of a lease between two looks at the clock.
pub(crate) const TICK_PART: u32 = 36;
/// Messages that are asked for at once.
pub(crate) const QUESTIONS_MAX: u64 = 64;
/// Part of a lease before a failed request is made again.
pub(crate) const RETRY_PART: u64 = 36;
/// Nodes that a region can have, because every node reads every renewal.
pub const NODES_MAX: usize = 64;
/// Longest name of a node, bytes.
pub const NODE_NAME_BYTES_MAX: usize = 64;
/// Longest address and version that a node shows, bytes.
pub const NODE_TEXT_BYTES_MAX: usize = 256;
/// How long the servers keep the last word of a node that is gone. A lease that is not there any more was not renewed
/// for this long, so the servers' clocks may be wrong by nearly as much.
pub(crate) const GONE_KEPT: Duration = Duration::from_secs(600);
/// Shards that are taken, and that are handed over, at the same time.
pub(crate) const TAKES_MAX: usize = 64;
/// See `TAKES_MAX`.
pub(crate) const RELEASES_MAX: usize = 16;
/// Shortest time between two calls to the other nodes to look for changes, unless nothing more is under way.
pub(crate) const HINT_EVERY: Duration = Duration::from_millis(20);
/// Commands to the task that wait.
pub(crate) const COMMANDS_MAX: usize = 16;
/// Times that the settings of the bucket are written or read before its servers count as away.
pub(crate) const META_ATTEMPTS_MAX: usize = 5;
/// Leases that a node waits for its own at a start, beside the time for the first answers.
pub(crate) const START_TTLS_MAX: u32 = 2;
/// Time for the first answers, which may need an election among the servers.
pub(crate) const START_WAIT: Duration = Duration::from_secs(15);

const _: () = assert!(WAIT_PART as u64 > RENEWALS_PER_TTL, "a renewal is given up before the next one would be due");
const _: () = assert!(TTL_MAX.as_secs() * 2 < GONE_KEPT.as_secs());
const _: () = assert!(RENEWALS_PER_TTL * 2 <= MARGIN_PART, "half of a lease is left when a renewal is late by one");
