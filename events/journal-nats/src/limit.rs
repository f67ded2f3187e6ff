//! Every bound of the engine, with its unit.

use std::time::Duration;

use events_model::envelope::COMMIT_BYTES_MAX;

/// Shards of a region, unless chosen otherwise when its stream is made.
pub const SHARDS_DEFAULT: u32 = 256;
/// Most shards of a region: each costs a subject on the servers and a little memory on every node.
pub const SHARDS_MAX: u32 = 4_096;
/// Oldest server series that is accepted: before it, several writers could win the same expected sequence.
pub const SERVER_VERSION_MIN: (u64, u64) = (2, 12);
/// What a message takes beside its commits, bytes: headers, and the group's own fields.
pub(crate) const GROUP_OVERHEAD_BYTES: usize = 1_024;
/// What a commit takes in a group beside its own bytes.
pub(crate) const MEMBER_OVERHEAD_BYTES: usize = 8;
/// Smallest `max_payload` of a server that can carry every commit, bytes.
pub const MAX_PAYLOAD_BYTES_MIN: usize = COMMIT_BYTES_MAX + GROUP_OVERHEAD_BYTES + MEMBER_OVERHEAD_BYTES;
/// Largest group, bytes, whatever the server would take: larger ones gain nothing and delay the other shards.
pub(crate) const GROUP_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Most bytes of encoded commits that may wait for an answer.
pub(crate) const APPEND_QUEUE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Longest time in which a group is published again before its outcome is called unknown, unless chosen otherwise, and
/// in which the leader is asked while there is none. The election of a new leader takes the servers 4 to 8 seconds.
pub const RESOLVE_MAX: Duration = Duration::from_secs(30);
/// First and longest wait for the answer to one publish; doubled each time.
pub(crate) const PUBLISH_WAIT_FIRST: Duration = Duration::from_secs(1);
pub(crate) const PUBLISH_WAIT_MAX: Duration = Duration::from_secs(4);
/// First and longest pause between attempts.
pub(crate) const RETRY_FIRST: Duration = Duration::from_millis(20);
pub(crate) const RETRY_MAX: Duration = Duration::from_millis(500);
/// Wait for the answer to a read from the leader.
pub(crate) const READ_WAIT: Duration = Duration::from_secs(2);
/// The same where appends wait for it: so much of an outage may be added to what the servers need for an election.
pub(crate) const LOOK_WAIT: Duration = Duration::from_millis(500);
/// How often a node asks whether a stream has a leader again, while something waits for it.
pub(crate) const PROBE_EVERY: Duration = Duration::from_millis(50);
/// Most of these questions that wait for their answers at once: as many as are asked in the time of one.
pub(crate) const PROBES_MAX: usize = 40;
/// Wait for the answer to a request that makes something on the servers.
pub(crate) const MAKE_WAIT: Duration = Duration::from_secs(10);
/// Wait for one server while connecting.
pub(crate) const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// How often a server that says nothing is asked whether it is there; after three times without an answer another one
/// is connected to.
pub(crate) const PING_EVERY: Duration = Duration::from_secs(2);
/// Longest pause before connecting again.
pub(crate) const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Messages and bytes that one pull of the follower asks for.
pub(crate) const PULL_MESSAGES: usize = 512;
pub(crate) const PULL_BYTES: usize = 32 * 1024 * 1024;
/// How long a pull waits on the server, and how often the server shows that it still knows it.
pub(crate) const PULL_EXPIRES: Duration = Duration::from_secs(30);
pub(crate) const PULL_HEARTBEAT: Duration = Duration::from_secs(1);
/// Wait until a consumer is made.
pub(crate) const CONSUMER_WAIT: Duration = Duration::from_secs(1);
/// A follower that has no consumer after this time reads message by message from the stream's leader.
pub(crate) const READ_ON_AFTER: Duration = Duration::from_millis(100);
/// Messages that it asks for at once, of those known to be there.
pub(crate) const READ_ON_MESSAGES: u64 = 16;
/// Pause before it asks again where there was none.
pub(crate) const READ_ON_EVERY: Duration = Duration::from_millis(20);
/// How long the servers keep the consumer of a node that is gone.
pub(crate) const CONSUMER_IDLE_MAX: Duration = Duration::from_secs(60);
/// Commits and bytes that the replica may have to answer for before the follower takes more.
pub(crate) const AHEAD_COMMITS_MAX: usize = 16_384;
pub(crate) const AHEAD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of own messages that may wait for one before them; more are brought by the consumer.
pub(crate) const EARLY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Most commits of an own message that its writer hands to the replica itself.
pub(crate) const OFFER_INLINE_COMMITS_MAX: usize = 16;
/// How often the leader is asked where the stream ends.
pub(crate) const HEAD_EVERY: Duration = Duration::from_secs(1);
/// After this time without a message that must be there, the consumer is made again.
pub(crate) const STALL: Duration = Duration::from_millis(500);
/// Messages after which the follower's position is saved.
pub(crate) const CHECKPOINT_MESSAGES: u64 = 1_024;
/// Longest wait for what is under way when the engine is closed.
pub(crate) const CLOSE_WAIT_MAX: Duration = Duration::from_secs(10);

const _: () = assert!(COMMIT_BYTES_MAX + MEMBER_OVERHEAD_BYTES <= GROUP_BYTES_MAX);
const _: () = assert!(AHEAD_COMMITS_MAX * 4 <= events_journal::log::APPEND_QUEUE_LEN_MAX);
const _: () = assert!(GROUP_BYTES_MAX * READ_ON_MESSAGES as usize <= PULL_BYTES, "no more at once than a pull");
const _: () = assert!(GROUP_BYTES_MAX + GROUP_OVERHEAD_BYTES < PULL_BYTES);
const _: () = assert!(PROBES_MAX as u128 * PROBE_EVERY.as_millis() == READ_WAIT.as_millis());
