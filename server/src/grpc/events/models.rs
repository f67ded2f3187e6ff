//! Dead letters of read models: what this node's folds could not apply. They are the operator's.
//!
//! Invariants: a decision (try again, give up) is a fact on the region's stream, so every node's fold carries it out at
//! the same place; a parked event's number is the position of its commit, the same on every node.

use std::{collections::BTreeSet, time::Duration};

use actors_core::region::Region;
use actors_shell::{Ask, Decided};
use events_journal::ReadError;
use events_model::{CommitId, Position, StreamId, envelope::EVENTS_PER_COMMIT_MAX, group::Place, region::Command};
use projections::ParkedEvent;
use proto::events::v1 as pb;
use tonic::{Code, Response, Status};

use super::{Answer, Events, access::Who, errors, status};
use crate::{
    events::convert,
    platform::{Decision, Model},
};

/// Longest wait for a decision to be carried out by this node.
const DECIDED_WAIT: Duration = Duration::from_secs(20);

/// The read model that a request is about; `None` = it is about a group.
pub(super) fn model(who: &Who, name: &str, of_group: &[&str]) -> Result<Option<Model>, Status> {
    if name.is_empty() {
        return Ok(None);
    }
    if who.tenant().is_some() {
        let why = "read models are the operator's: show the admin token";
        return Err(status::plain(Code::PermissionDenied, "NOT_YOURS", why));
    }
    if of_group.iter().any(|text| !text.is_empty()) {
        return Err(status::invalid("projection", "must be empty with a group or a tenant"));
    }
    let known = || Model::ALL.map(Model::name).join(", ");
    let model = Model::named(name).ok_or_else(|| status::invalid("projection", format!("must be one of {}", known())));
    model.map(Some)
}

/// `<position>.<index>` of the last event of a page.
fn after(token: &str) -> Option<Place> {
    let (position, index) = token.split_once('.')?;
    Some(Place { position: Position(position.parse().ok()?), index: index.parse().ok()? })
}

impl Events {
    pub(super) fn list_of_model(&self, model: Model, token: &str, limit: usize) -> Answer<pb::ListParkedResponse> {
        let after = match token {
            "" => None,
            token => Some(after(token).ok_or_else(|| status::invalid("page_token", "is not one of ours"))?),
        };
        let is_behind = |event: &ParkedEvent| after.is_none_or(|after| event.place() > after);
        let (mut page, count) = self.app.projections.parked_of(model, limit.saturating_add(1), is_behind);
        let has_more = page.len() > limit;
        page.truncate(limit);
        let last = page.last().filter(|_| has_more);
        let next_page_token = last.map_or_else(String::new, |last| format!("{}.{}", last.position, last.index));
        let parked = page.iter().map(|event| message(model, event)).collect();
        Ok(Response::new(pb::ListParkedResponse { parked, next_page_token, count }))
    }

    pub(super) async fn show_of_model(&self, model: Model, number: u64) -> Answer<pb::GetParkedResponse> {
        let at = Position(number);
        let (found, _) = self.app.projections.parked_of(model, usize::MAX, |event| event.position == at);
        let first = found.first().ok_or_else(|| errors::not_parked("no event is parked under this number"))?;
        let parked = Some(message(model, first));
        let indexes: Vec<_> = found.iter().map(|event| event.index).collect();
        let read = move |log: &dyn events_journal::EventLog| match convert::events_at(log, at, &indexes) {
            // That may be why it is parked.
            Err(ReadError::Decode { .. }) => Ok(None),
            read => read,
        };
        let commit = self.look(read).await?;
        Ok(Response::new(pb::GetParkedResponse { parked, commit }))
    }

    pub(super) async fn redrive_model(
        &self,
        model: Model,
        who: &Who,
        numbers: Vec<u64>,
    ) -> Answer<pb::ReplayParkedResponse> {
        let wanted: BTreeSet<u64> = numbers.into_iter().collect();
        let projections = &self.app.projections;
        let (before, count) = projections.places_of(model, &wanted, 1);
        must_all_be_parked(&wanted, &before, count)?;
        let decided = self.decide(who, Command::RedriveReadModel { read_model: model.name().to_owned() }).await?;
        let waited = projections.wait_decided((model, Decision::Redrive), decided.position, DECIDED_WAIT).await;
        waited.map_err(|why| errors::not_carried_out(&why))?;
        let (after, parked) = projections.places_of(model, &wanted, 1);
        let redriven = if wanted.is_empty() {
            count.saturating_sub(parked)
        } else {
            let left: BTreeSet<_> = after.into_iter().collect();
            before.iter().filter(|place| !left.contains(place)).count() as u64
        };
        let redriven = u32::try_from(redriven).unwrap_or(u32::MAX);
        Ok(Response::new(pb::ReplayParkedResponse { redriven, parked }))
    }

    pub(super) async fn drop_of_model(
        &self,
        model: Model,
        who: &Who,
        (numbers, limit): (Vec<u64>, u32),
        reason: String,
    ) -> Answer<pb::DropParkedResponse> {
        let wanted: BTreeSet<u64> = numbers.into_iter().collect();
        let most = usize::try_from(limit).unwrap_or(usize::MAX);
        // A commit that the limit would cut is seen whole.
        let first = most.saturating_add(EVENTS_PER_COMMIT_MAX);
        let (found, count) = self.app.projections.places_of(model, &wanted, first);
        must_all_be_parked(&wanted, &found, count)?;
        let (all, places) = (found.len(), batch(found, most));
        if !wanted.is_empty() && places.len() < all {
            let why = format!("they name {all} parked events, more than the {most} of a batch: name fewer");
            return Err(status::invalid("numbers", why));
        }
        let dropped = u32::try_from(places.len()).unwrap_or(u32::MAX);
        let command = Command::DropFromReadModel { read_model: model.name().to_owned(), places, reason };
        let decided = self.decide(who, command).await?;
        let waited = self.app.projections.wait_decided((model, Decision::Drop), decided.position, DECIDED_WAIT).await;
        waited.map_err(|why| errors::not_carried_out(&why))?;
        let (_, parked) = self.app.projections.parked_of(model, 0, |_| false);
        Ok(Response::new(pb::DropParkedResponse { dropped, parked }))
    }

    /// Has the region's actor record a decision.
    async fn decide(&self, who: &Who, command: Command) -> Result<Decided<Region>, Status> {
        let app = &self.app;
        let episode_id = app.ids.episode(app.clock.now());
        let commit_id = CommitId::new(&format!("read-model/{episode_id}")).map_err(|error| errors::broken(&error))?;
        let ask = Ask {
            command,
            commit_id,
            idempotent: false,
            episode_id,
            causation_id: None,
            principal: who.principal(),
            traceparent: String::new(),
            inputs: app.inputs,
        };
        match app.regions.actor(&StreamId::region(&app.region)).ask(ask).await {
            Ok(Ok(decided)) => Ok(decided),
            Ok(Err(rejected)) => Err(status::plain(Code::InvalidArgument, "INVALID", rejected.rejection.to_string())),
            Err(unavailable) => Err(status::unavailable(&unavailable)),
        }
    }
}

/// Every number names something that is parked; without numbers there is something at all.
fn must_all_be_parked(wanted: &BTreeSet<u64>, found: &[Place], count: u64) -> Result<(), Status> {
    let found: BTreeSet<u64> = found.iter().map(|place| place.position.0).collect();
    match wanted.difference(&found).next() {
        Some(number) => Err(errors::not_parked(&format!("no event is parked under the number {number}"))),
        // There are more than places are known of, and all of those were given up.
        None if found.is_empty() && count > 0 => Err(errors::rebuilding("the next ones are being looked for")),
        None if found.is_empty() => Err(errors::not_parked("nothing is parked")),
        None => Ok(()),
    }
}

/// The first places, of whole commits: at most so many, but always the first commit.
fn batch(mut places: Vec<Place>, most: usize) -> Vec<Place> {
    let of = |place: Option<&Place>| place.map(|place| place.position);
    if let Some(cut) = of(places.get(most)) {
        let is_first = of(places.first()) == Some(cut);
        places.retain(|place| if is_first { place.position == cut } else { place.position < cut });
    }
    places
}

fn message(model: Model, event: &ParkedEvent) -> pb::Parked {
    pb::Parked {
        number: event.position.0,
        position: event.position.0,
        index: event.index,
        stream: event.stream.clone(),
        r#type: event.kind.clone(),
        error: event.error.clone(),
        attempts: event.attempts,
        consumer_version: model.version().to_string(),
        parked_at_us: event.recorded_at.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_cuts_no_commit_and_takes_the_first_one_whole() {
        let place = |(position, index)| Place { position: Position(position), index };
        let places = [(1, 0), (1, 3), (1, 4), (2, 0), (3, 0), (3, 1)].map(place).to_vec();
        for (most, taken) in [(1, 3), (2, 3), (3, 3), (4, 4), (5, 4), (6, 6), (7, 6)] {
            assert_eq!(batch(places.clone(), most), places[..taken], "{most}");
        }
    }
}
