//! Dead letters: what no consumer of a group could handle. Those of read models are in `models`.

use events_journal::{Direction, EventLog, ReadError};
use events_model::{
    Stored as _, StreamId, Version,
    group::{BATCH_LEN_MAX, Command, Event, Numbered, ParkedDelivery, Place, TEXT_BYTES_MAX},
};
use proto::events::v1 as pb;
use tonic::{Request, Response, Status};

use super::{Answer, Events, arguments, errors, models::model, status};
use crate::events::convert;

/// Parked events on a page when nothing is asked for, and at the most.
const PAGE_DEFAULT: u32 = 100;
const PAGE_MAX: u32 = 1_000;

/// A parked event as the group's actor holds it.
#[derive(Debug, Clone, Copy)]
struct Held {
    number: u64,
    place: Place,
    at_us: u64,
}

impl Events {
    pub(super) async fn list_dead(&self, request: Request<pb::ListParkedRequest>) -> Answer<pb::ListParkedResponse> {
        let (metadata, _, asked) = request.into_parts();
        let who = self.who(&metadata).await?;
        let limit = arguments::limit("page_size", asked.page_size, PAGE_DEFAULT, PAGE_MAX)?;
        if let Some(model) = model(&who, &asked.projection, &[&asked.group, &asked.tenant])? {
            return self.list_of_model(model, &asked.page_token, limit);
        }
        let after = match asked.page_token.as_str() {
            "" => 0,
            token => token.parse().map_err(|_| status::invalid("page_token", "is not one of ours"))?,
        };
        let group = self.known_group(&who, &asked.tenant, &asked.group, "group")?;
        let (mut held, count) = self.held(&group, after, limit.saturating_add(1)).await?;
        let has_more = held.len() > limit;
        held.truncate(limit);
        let next_page_token = held.last().filter(|_| has_more).map_or_else(String::new, |held| held.number.to_string());
        let parked = self.look(move |log| describe(log, &group, &held)).await?;
        Ok(Response::new(pb::ListParkedResponse { parked, next_page_token, count }))
    }

    /// So many parked events of a group behind a number, and how many there are.
    async fn held(&self, group: &StreamId, after: u64, limit: usize) -> Result<(Vec<Held>, u64), Status> {
        let read = move |state: &actors_core::group::State| {
            let page = state.parked.range(after.saturating_add(1)..).take(limit);
            let held = |(number, parked): (&u64, &actors_core::group::Parked)| Held {
                number: *number,
                place: parked.place,
                at_us: parked.at.0,
            };
            (page.map(held).collect(), u64::try_from(state.parked.len()).unwrap_or(u64::MAX))
        };
        let read = self.app.groups.parts().actors.actor(group).read(read).await;
        read.map_err(|unavailable| status::unavailable(&unavailable))
    }

    pub(super) async fn get_dead(&self, request: Request<pb::GetParkedRequest>) -> Answer<pb::GetParkedResponse> {
        let (metadata, _, asked) = request.into_parts();
        let who = self.who(&metadata).await?;
        if let Some(model) = model(&who, &asked.projection, &[&asked.group, &asked.tenant])? {
            return self.show_of_model(model, asked.number).await;
        }
        let group = self.known_group(&who, &asked.tenant, &asked.group, "group")?;
        let before = asked.number.checked_sub(1).ok_or_else(|| status::invalid("number", "must be at least 1"))?;
        let (held, _) = self.held(&group, before, 1).await?;
        let Some(held) = held.into_iter().find(|held| held.number == asked.number) else {
            return Err(errors::not_parked("no event is parked under this number"));
        };
        let shown =
            self.look(move |log| Ok((describe(log, &group, &[held])?, convert::event_at(log, held.place)?))).await?;
        let (parked, commit) = (shown.0.into_iter().next(), shown.1);
        Ok(Response::new(pb::GetParkedResponse { parked, commit }))
    }

    pub(super) async fn redrive(&self, request: Request<pb::ReplayParkedRequest>) -> Answer<pb::ReplayParkedResponse> {
        let (metadata, _, asked) = request.into_parts();
        let who = self.who(&metadata).await?;
        let limit = batch(&asked.numbers, asked.limit)?;
        if let Some(model) = model(&who, &asked.projection, &[&asked.group, &asked.tenant])? {
            return self.redrive_model(model, &who, asked.numbers).await;
        }
        let group = self.known_group(&who, &asked.tenant, &asked.group, "group")?;
        let command = Command::Redrive { numbers: asked.numbers, limit };
        let decided = self.app.groups.ask(&group, command, who.principal()).await;
        let decided = decided.map_err(|failure| errors::group(&failure))?;
        Ok(Response::new(pb::ReplayParkedResponse { redriven: moved(&decided.events), parked: decided.view.parked }))
    }

    pub(super) async fn give_up(&self, request: Request<pb::DropParkedRequest>) -> Answer<pb::DropParkedResponse> {
        let (metadata, _, asked) = request.into_parts();
        let who = self.who(&metadata).await?;
        let limit = batch(&asked.numbers, asked.limit)?;
        let reason = asked.reason;
        if reason.trim().is_empty() || reason.len() > TEXT_BYTES_MAX {
            return Err(status::invalid("reason", format!("must be given, at most {TEXT_BYTES_MAX} bytes")));
        }
        if let Some(model) = model(&who, &asked.projection, &[&asked.group, &asked.tenant])? {
            return self.drop_of_model(model, &who, (asked.numbers, limit), reason).await;
        }
        let group = self.known_group(&who, &asked.tenant, &asked.group, "group")?;
        let command = Command::Drop { numbers: asked.numbers, limit, reason };
        let decided = self.app.groups.ask(&group, command, who.principal()).await;
        let decided = decided.map_err(|failure| errors::group(&failure))?;
        Ok(Response::new(pb::DropParkedResponse { dropped: moved(&decided.events), parked: decided.view.parked }))
    }
}

fn batch(numbers: &[u64], limit: u32) -> Result<u32, Status> {
    if numbers.len() > usize::try_from(BATCH_LEN_MAX).unwrap_or(usize::MAX) {
        return Err(status::invalid("numbers", format!("must be at most {BATCH_LEN_MAX}")));
    }
    match limit {
        0 => Ok(BATCH_LEN_MAX),
        limit if limit <= BATCH_LEN_MAX => Ok(limit),
        _ => Err(status::invalid("limit", format!("must be at most {BATCH_LEN_MAX}"))),
    }
}

/// How many events a batch has moved.
fn moved(events: &[Event]) -> u32 {
    let count = |parked: &Vec<Numbered>| u32::try_from(parked.len()).unwrap_or(u32::MAX);
    events
        .iter()
        .map(|event| match event {
            Event::Redriven { parked, .. } | Event::Dropped { parked, .. } => count(parked),
            Event::Created { .. } | Event::Recorded { .. } | Event::Parked { .. } => 0,
        })
        .sum()
}

/// Reads why events were parked from the group's stream; those of one commit are read together.
fn describe(log: &dyn EventLog, group: &StreamId, held: &[Held]) -> Result<Vec<pb::Parked>, ReadError> {
    let mut parked = Vec::with_capacity(held.len());
    let mut rest = held.iter().peekable();
    while let Some(first) = rest.peek() {
        let found = log.read_stream(group, Version(first.number), Direction::Forward, 1)?;
        let Some(recorded) = found.first() else { break };
        let view = recorded.view()?;
        let last = view.last_version().0;
        for (version, event) in (view.first_version..).zip(view.events()) {
            let undecodable = |source| ReadError::Decode { position: recorded.position, source };
            let Some(held) = rest.next_if(|held| held.number == version) else { continue };
            let event = Event::from_payload(event.map_err(undecodable)?.payload).map_err(undecodable)?;
            if let Event::Parked { delivery, .. } = event {
                parked.push(of_group(delivery, held));
            }
        }
        // A number that the commit does not hold is one of a damaged state: it is passed over.
        while rest.next_if(|held| held.number <= last).is_some() {}
    }
    Ok(parked)
}

fn of_group(delivery: ParkedDelivery, held: &Held) -> pb::Parked {
    let ParkedDelivery { place, stream, kind, error, attempts, consumer_version } = delivery;
    pb::Parked {
        number: held.number,
        position: place.position.0,
        index: place.index,
        stream,
        r#type: kind,
        error,
        attempts,
        consumer_version,
        parked_at_us: held.at_us,
    }
}
