//! The contract of `EventLog` as tests that any engine runs: every property is a function that is given a fresh
//! log and panics where the engine breaks its promise.
//!
//! Calls are ordered within a tenant alone: a log may keep tenants in several shards, which are written side by side.
//!
//! What needs a failing disk (`Unknown`, refusals, going on afterwards) and what needs a killed process is shown
//! for the local store by `tests-chaos`; nothing here depends on time or on how an engine works.
#![expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "this is a test suite that lives in a library: a broken promise panics"
)]

pub mod append;
pub mod concurrent;
pub mod durable;
pub mod fixture;
pub mod read;
pub mod replica;
pub mod snapshot;

use std::sync::Arc;

pub use durable::{Reopen, run_durable, same_answers};
pub use fixture::{COUNTED, HAPPENED, commit, settle};
pub use replica::run_replica;
pub use snapshot::run_snapshots;

use crate::log::EventLog;

type Property = fn(&Arc<dyn EventLog>);

/// Runs every property, each on a fresh and empty log of its own.
pub fn run_all(open: &mut dyn FnMut() -> Arc<dyn EventLog>) {
    for property in PROPERTIES {
        property(&open());
    }
}

const PROPERTIES: &[Property] = &[
    append::the_first_commit_has_position_one_and_later_ones_follow,
    append::an_acknowledged_append_is_seen_by_every_read_at_once,
    append::a_wrong_expected_version_is_a_conflict_and_writes_nothing,
    append::the_same_commit_id_answers_the_first_place_whatever_is_expected,
    append::the_same_commit_id_in_another_stream_is_another_commit,
    append::appends_of_a_tenant_that_do_not_wait_are_ordered_by_their_calls,
    append::what_was_built_on_a_failed_append_conflicts,
    append::a_first_version_that_does_not_follow_is_invalid,
    append::a_commit_without_events_is_invalid,
    append::the_largest_commits_are_accepted_and_one_beyond_is_invalid,
    append::the_longest_identifiers_are_kept,
    append::a_duplicate_in_a_pipeline_answers_the_first_place,
    append::dropping_a_receipt_does_not_undo_the_append,
    append::a_new_log_is_empty_and_accepts,
    read::a_stream_is_read_in_both_directions_from_any_version,
    read::a_version_inside_a_commit_finds_the_whole_commit,
    read::streams_with_similar_names_do_not_mix,
    read::no_read_returns_more_than_the_limit,
    read::the_log_is_read_to_both_ends_in_pages_of_any_size,
    read::reading_beyond_either_end_returns_nothing,
    read::filters_pass_exactly_what_matches,
    read::an_episode_is_read_in_log_order_across_streams,
    read::a_commit_is_found_by_its_id_in_its_stream_alone,
    read::random_work_of_a_tenant_gives_the_answers_of_the_memory_log,
    concurrent::many_threads_keep_every_stream_contiguous,
    concurrent::racing_retries_are_written_once,
    concurrent::the_watched_head_only_rises_and_is_always_readable,
    concurrent::a_subscription_goes_from_catching_up_to_live_without_gap_or_duplicate,
    concurrent::a_filtered_subscription_skips_what_does_not_match,
    concurrent::a_subscription_waits_for_a_position_that_does_not_exist,
];
