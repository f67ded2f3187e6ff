//! The limits of configuration values; both ends are allowed.

use std::{ops::RangeInclusive, time::Duration};

/// `http.body_bytes_max`, bytes.
pub const BODY_BYTES: RangeInclusive<u64> = 1_024..=64 * 1024 * 1024;
/// `http.connections_max`.
pub const CONNECTIONS: RangeInclusive<u64> = 1..=1_000_000;
/// `http.header_timeout`.
pub const HEADER_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(600);
/// `log.segment_bytes`, bytes.
pub const SEGMENT_BYTES: RangeInclusive<u64> = 4 * 1024 * 1024..=1024 * 1024 * 1024;
/// `log.clock_ahead_max`.
pub const CLOCK_AHEAD: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(100 * 366 * 86_400);
/// `cluster.shards`.
pub const SHARDS: RangeInclusive<u64> = 1..=4_096;
/// `cluster.lease`.
pub const LEASE: RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(60);
/// `actors.mailbox_len_max`, messages.
pub const MAILBOX_LEN: RangeInclusive<u64> = 1..=1_000_000;
/// `actors.idle_after`.
pub const IDLE_AFTER: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7 * 86_400);
/// `actors.snapshot_every`, events.
pub const SNAPSHOT_EVERY: RangeInclusive<u64> = 1..=1_000_000;
/// `actors.arbiters`, threads.
pub const ARBITERS: RangeInclusive<u64> = 0..=1_024;
/// `requests.in_flight_max`.
pub const IN_FLIGHT: RangeInclusive<u64> = 1..=1_000_000;
/// `requests.reservation_grace`.
pub const RESERVATION_GRACE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(86_400);
/// `requests.drain_timeout`.
pub const DRAIN_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3_600);
/// Each timeout of an upstream.
pub const UPSTREAM_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(86_400);
/// Bounds on an answer, tokens.
pub const COMPLETION_TOKENS: RangeInclusive<u64> = 1..=10_000_000;
/// Dearest price: nano-USD per million tokens.
pub const PRICE_NANO_USD_MAX: i64 = 1_000_000_000_000_000;
/// Most upstreams.
pub const UPSTREAMS_MAX: usize = 64;
/// Longest name of a model, bytes.
pub const MODEL_NAME_BYTES_MAX: usize = 128;
/// Largest configuration file, bytes.
pub const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// What `max_tokens_parameter` may be.
pub const MAX_TOKENS_PARAMETERS: [&str; 2] = ["max_tokens", "max_completion_tokens"];
/// What `usage_lookup_path` must contain.
pub const REQUEST_ID_MARK: &str = "{request_id}";
