//! Puts the configured prices in force.

use std::time::Duration;

use actors_core::region::{Region, Rejection, State as RegionState};
use actors_shell::{Ask, Shell, Unavailable};
use events_model::{CommitId, DecisionContext, Principal, StreamId, region::Command};
use tokio::time::sleep;
use tracing::info;

use super::{POLICY_VERSION, StartError, ground::Ground, upstreams};
use crate::config::Config;

/// Longest wait for prices that another node has just put in force.
const BOOK_WAIT: Duration = Duration::from_secs(10);

/// Puts the configured prices in force, if they are not.
pub(super) async fn publish(
    region: &Shell<Region>,
    config: &Config,
    ground: &Ground,
) -> Result<RegionState, StartError> {
    let entries = upstreams::price_book(&config.upstreams);
    let actor = region.actor(&StreamId::region(&config.region));
    let present = actor.read(RegionState::clone).await.map_err(StartError::PriceBook)?;
    // Without prices there is nothing to sell, and nothing to record.
    if present.entries == entries {
        return Ok(present);
    }
    let episode_id = ground.ids.episode(ground.clock.now());
    // Always a valid id: a UUID behind two short words.
    let Ok(commit_id) = CommitId::new(&format!("price-book/{episode_id}")) else { return Ok(present) };
    let ask = Ask {
        command: Command::PublishPriceBook { entries: entries.clone() },
        commit_id,
        idempotent: false,
        episode_id,
        causation_id: None,
        principal: Principal::system("config"),
        traceparent: String::new(),
        inputs: DecisionContext { policy_version: POLICY_VERSION, ..DecisionContext::default() },
    };
    match actor.ask(ask).await.map_err(StartError::PriceBook)? {
        Ok(decided) => info!(version = decided.view, "price book in force"),
        // Another node was first, and its decision is on its way to this one's log.
        Err(rejected) if rejected.rejection == Rejection::Unchanged => {
            let mut head = ground.log.watch_head();
            // One bound on all of the wait, for other commits come in, too.
            let late = sleep(BOOK_WAIT);
            tokio::pin!(late);
            while actor.read(RegionState::clone).await.map_err(StartError::PriceBook)?.entries != entries {
                let changed = tokio::select! {
                    changed = head.changed() => changed.is_ok(),
                    () = &mut late => false,
                };
                if !changed {
                    return Err(StartError::PriceBook(Unavailable::Unreachable));
                }
            }
        }
        Err(rejected) => return Err(StartError::PriceBookRefused(rejected.rejection)),
    }
    actor.read(RegionState::clone).await.map_err(StartError::PriceBook)
}
