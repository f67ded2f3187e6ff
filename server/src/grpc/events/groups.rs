//! Consumer groups: create, look, consume.

use std::{pin::pin, sync::Arc, time::Duration};

use actors_core::group::State;
use events_model::{
    DurationUs, Position, StreamId, Version,
    group::{ATTEMPTS_MAX, Command, IN_FLIGHT_MAX, Place as EventPlace, Settings, TEXT_BYTES_MAX, WAIT_MAX},
};
use futures::Stream;
use proto::events::v1::{self as pb, consume_request::Message as Asked};
use tokio::{
    sync::mpsc,
    time::{interval, timeout},
};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{Answer, Answers, CHECK_EVERY, Events, access::Who, arguments, errors, status};
use crate::events::{
    group::{Consumer, Joined, Message, QUEUE_LEN},
    share::Place,
};

/// Longest wait for a consumer's first message.
const START_WAIT: Duration = Duration::from_secs(10);
/// Longest wait for a list to contain what the caller has written.
const LIST_WAIT: Duration = Duration::from_secs(2);
/// Deliveries that one message acknowledges at the most.
const ACKS_MAX: usize = 1_000;
/// Longest version of a consumer, bytes.
const CONSUMER_VERSION_BYTES_MAX: usize = 100;
/// Groups on a page when nothing is asked for, and at the most.
const PAGE_DEFAULT: u32 = 100;
const PAGE_MAX: u32 = 1_000;

const ATTEMPTS_DEFAULT: u32 = 5;
const BACKOFF_FIRST_DEFAULT_MS: u64 = 500;
const BACKOFF_MAX_DEFAULT_MS: u64 = 60_000;
const ANSWER_TIMEOUT_MIN_MS: u64 = 100;
const ANSWER_TIMEOUT_DEFAULT_MS: u64 = 30_000;
const IN_FLIGHT_DEFAULT: u32 = 256;
const CONSUMER_IN_FLIGHT_DEFAULT: u32 = 32;

fn millis(field: &str, value: u64, default: u64, least: u64) -> Result<DurationUs, Status> {
    let most = WAIT_MAX.0 / 1_000;
    match if value == 0 { default } else { value } {
        value if (least..=most).contains(&value) => Ok(DurationUs::from_millis(value)),
        _ => Err(status::invalid(field, format!("must be {least} to {most}"))),
    }
}

fn count(field: &str, value: u32, default: u32, most: u32) -> Result<u32, Status> {
    let value = if value == 0 { default } else { value };
    if value > most { Err(status::invalid(field, format!("must be 1 to {most}"))) } else { Ok(value) }
}

fn settings(request: &pb::CreateGroupRequest, head: Position) -> Result<Settings, Status> {
    arguments::types("types", &request.types, false)?;
    let after = match (request.live, request.after_position) {
        (true, 0) => head,
        (true, _) => return Err(status::invalid("after_position", "must be 0 with live")),
        (false, after) if after > head.0 => {
            return Err(status::invalid("after_position", format!("must be at most the head, {head}")));
        }
        (false, after) => Position(after),
    };
    let backoff_first = millis("backoff_first_ms", request.backoff_first_ms, BACKOFF_FIRST_DEFAULT_MS, 1)?;
    let largest = BACKOFF_MAX_DEFAULT_MS.max(request.backoff_first_ms);
    let backoff_max = millis("backoff_max_ms", request.backoff_max_ms, largest, 1)?;
    if backoff_max < backoff_first {
        return Err(status::invalid("backoff_max_ms", "must be at least backoff_first_ms"));
    }
    Ok(Settings {
        types: request.types.clone(),
        after,
        attempts_max: count("attempts_max", request.attempts_max, ATTEMPTS_DEFAULT, ATTEMPTS_MAX)?,
        backoff_first,
        backoff_max,
        answer_timeout: millis(
            "answer_timeout_ms",
            request.answer_timeout_ms,
            ANSWER_TIMEOUT_DEFAULT_MS,
            ANSWER_TIMEOUT_MIN_MS,
        )?,
        in_flight_max: count("in_flight_max", request.in_flight_max, IN_FLIGHT_DEFAULT, IN_FLIGHT_MAX)?,
    })
}

fn message(stream: &StreamId, settings: &Settings, checkpoint: Position, head: Position) -> pb::Group {
    pb::Group {
        tenant: stream.tenant_id().map_or_else(String::new, |tenant| tenant.to_string()),
        name: stream.name().to_owned(),
        types: settings.types.clone(),
        attempts_max: settings.attempts_max,
        backoff_first_ms: settings.backoff_first.0 / 1_000,
        backoff_max_ms: settings.backoff_max.0 / 1_000,
        answer_timeout_ms: settings.answer_timeout.0 / 1_000,
        in_flight_max: settings.in_flight_max,
        checkpoint: checkpoint.0,
        lag: head.0.saturating_sub(checkpoint.0),
        ..pb::Group::default()
    }
}

impl Events {
    /// The stream of a group that the caller may see.
    pub(super) fn group(&self, who: &Who, tenant: &str, name: &str, field: &str) -> Result<StreamId, Status> {
        let tenant = who.one_tenant_of(tenant)?;
        StreamId::group(&tenant, name).map_err(|error| status::invalid(field, error.to_string()))
    }

    /// The same of one that exists: an unknown one costs no actor.
    pub(super) fn known_group(&self, who: &Who, tenant: &str, name: &str, field: &str) -> Result<StreamId, Status> {
        let group = self.group(who, tenant, name, field)?;
        let head = self.app.log.head(&group).map_err(|error| errors::read(&error))?;
        if head == Version::ZERO {
            return Err(status::plain(Code::NotFound, "NO_SUCH_GROUP", format!("there is no group {name}")));
        }
        Ok(group)
    }

    pub(super) async fn create(&self, request: Request<pb::CreateGroupRequest>) -> Answer<pb::Group> {
        let (metadata, _, message) = request.into_parts();
        let who = self.who(&metadata).await?;
        let group = self.group(&who, &message.tenant, &message.name, "name")?;
        let _place = self.share(&self.appends, &who)?;
        let settings = settings(&message, self.reach(Position(message.after_position)).await?)?;
        self.must_be_active(&who, &group).await?;
        let asked = self.app.groups.ask(&group, Command::Create { settings }, who.principal()).await;
        asked.map_err(|failure| errors::group(&failure))?;
        self.show(&group).await
    }

    pub(super) async fn get(&self, request: Request<pb::GetGroupRequest>) -> Answer<pb::Group> {
        let (metadata, _, message) = request.into_parts();
        let who = self.who(&metadata).await?;
        let group = self.known_group(&who, &message.tenant, &message.name, "name")?;
        self.show(&group).await
    }

    async fn show(&self, group: &StreamId) -> Answer<pb::Group> {
        let (stream, groups, head) = (group.clone(), self.app.groups.clone(), self.app.log.head_position());
        let show = move |state: &State| {
            let checkpoint = groups.checkpoint(&stream).unwrap_or_default().max(state.checkpoint);
            let settings = state.settings.as_ref()?;
            Some(pb::Group {
                created_at_us: state.created_at.0,
                parked: u64::try_from(state.parked.len()).unwrap_or(u64::MAX),
                oldest_parked_at_us: state.oldest_parked_at().unwrap_or_default().0,
                redriven: u64::try_from(state.redriven.len()).unwrap_or(u64::MAX),
                parked_total: state.parked_total,
                dropped_total: state.dropped_total,
                ..message(&stream, settings, checkpoint, head)
            })
        };
        let shown = self.app.groups.parts().actors.actor(group).read(show).await;
        match shown.map_err(|unavailable| status::unavailable(&unavailable))? {
            Some(shown) => Ok(Response::new(shown)),
            None => Err(status::plain(Code::NotFound, "NO_SUCH_GROUP", "there is no such group")),
        }
    }

    pub(super) async fn list(&self, request: Request<pb::ListGroupsRequest>) -> Answer<pb::ListGroupsResponse> {
        let (metadata, _, asked) = request.into_parts();
        let who = self.who(&metadata).await?;
        let tenant = who.tenant_of(&asked.tenant)?;
        let limit = arguments::limit("page_size", asked.page_size, PAGE_DEFAULT, PAGE_MAX)?;
        let after = match asked.page_token.as_str() {
            "" => None,
            token => Some(StreamId::new(token).map_err(|_| status::invalid("page_token", "is not one of ours"))?),
        };
        let (readers, head) = (&self.app.projections, self.app.log.head_position());
        if let Err(late) = readers.groups.wait_for(head, LIST_WAIT).await {
            tracing::warn!(%late, "groups listed as they were");
        }
        let mut groups: Vec<_> = readers.groups.read(|state, _| {
            let all = state.page(after.as_ref());
            let own = all.filter(|(stream, _)| tenant.is_none() || stream.tenant_id() == tenant);
            own.take(limit.saturating_add(1))
                .map(|(stream, summary)| {
                    let checkpoint = self.app.groups.checkpoint(stream).unwrap_or_default().max(summary.checkpoint);
                    let group = pb::Group {
                        created_at_us: summary.created_at.0,
                        parked: summary.parked(),
                        oldest_parked_at_us: summary.oldest_parked_at().unwrap_or_default().0,
                        redriven: summary.redriven(),
                        parked_total: summary.parked_total,
                        dropped_total: summary.dropped_total,
                        ..message(stream, &summary.settings, checkpoint, head)
                    };
                    (stream.to_string(), group)
                })
                .collect()
        });
        let has_more = groups.len() > limit;
        groups.truncate(limit);
        let next_page_token = groups.last().filter(|_| has_more).map_or_else(String::new, |(stream, _)| stream.clone());
        let groups = groups.into_iter().map(|(_, group)| group).collect();
        Ok(Response::new(pb::ListGroupsResponse { groups, next_page_token }))
    }

    pub(super) async fn deliver(
        &self,
        request: Request<Streaming<pb::ConsumeRequest>>,
    ) -> Answer<Answers<pb::ConsumeResponse>> {
        let (metadata, _, mut asked) = request.into_parts();
        self.must_be_meant(&metadata)?;
        let who = self.who(&metadata).await?;
        let first = timeout(START_WAIT, asked.message()).await;
        let first = first.map_err(|_| status::plain(Code::DeadlineExceeded, "NO_START", "no first message came"))??;
        let Some(Asked::Start(start)) = first.and_then(|first| first.message) else {
            return Err(status::invalid("message", "the first one must be start"));
        };
        let group = self.group(&who, &start.tenant, &start.group, "start.group")?;
        if let Some(elsewhere) = self.elsewhere(&group, &metadata) {
            // That node knows whether the group exists; this one may not have heard of it yet.
            let place = self.share(&self.streams, &who)?;
            return self.relay(elsewhere, (group, start), &metadata, asked, place).await;
        }
        let group = self.known_group(&who, &start.tenant, &start.group, "start.group")?;
        self.must_be_active(&who, &group).await?;
        let most = count("start.in_flight_max", start.in_flight_max, CONSUMER_IN_FLIGHT_DEFAULT, IN_FLIGHT_MAX)?;
        let version = start.consumer_version;
        let is_visible = version.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        if version.len() > CONSUMER_VERSION_BYTES_MAX || !is_visible {
            let why = format!("must be at most {CONSUMER_VERSION_BYTES_MAX} visible ASCII characters");
            return Err(status::invalid("start.consumer_version", why));
        }
        let place = self.share(&self.streams, &who)?;
        let (deliveries, queue) = mpsc::channel(QUEUE_LEN);
        let in_flight_max = usize::try_from(most).unwrap_or(usize::MAX);
        let joined = self.app.groups.join(&group, Consumer { deliveries, in_flight_max, version });
        let joined = joined.map_err(errors::ended)?;
        let (wrong, faults) = mpsc::channel(1);
        let answers = Answering { events: self.clone(), who, joined: joined.clone(), wrong, _place: place };
        self.app.groups.parts().tasks.spawn(answers.run(asked));
        Ok(Response::new(Box::pin(deliveries_of(queue, faults, joined))))
    }
}

/// What a consumer is sent: deliveries, and at the end the reason, if there is one.
fn deliveries_of(
    queue: mpsc::Receiver<crate::events::group::Delivered>,
    faults: mpsc::Receiver<Status>,
    joined: Joined,
) -> impl Stream<Item = Result<pb::ConsumeResponse, Status>> {
    futures::stream::unfold(Some((queue, faults, joined)), |open| async move {
        let (mut queue, mut faults, joined) = open?;
        let delivered = tokio::select! {
            biased;
            Some(fault) = faults.recv() => return Some((Err(fault), None)),
            delivered = queue.recv() => delivered?,
        };
        if queue.len() <= QUEUE_LEN / 2 {
            joined.room.notify_one();
        }
        match delivered {
            Ok(delivery) => Some((Ok(delivery), Some((queue, faults, joined)))),
            Err(ended) => Some((Err(errors::ended(ended)), None)),
        }
    })
}

/// Takes a consumer's answers until it ends, is wrong, or its key is revoked.
struct Answering {
    events: Events,
    who: Who,
    joined: Joined,
    wrong: mpsc::Sender<Status>,
    _place: Option<Place>,
}

impl Answering {
    async fn run(self, mut asked: Streaming<pb::ConsumeRequest>) {
        let drain = Arc::clone(&self.events.app).path.parts().stop.drain.clone();
        if let Some(Err(fault)) = drain.run_until_cancelled(self.take(&mut asked)).await {
            // The stream may have ended already.
            self.wrong.send(fault).await.ok();
        }
        // A group that has ended needs no word.
        self.joined.inbox.send(Message::Leave { id: self.joined.id }).await.ok();
    }

    async fn take(&self, asked: &mut Streaming<pb::ConsumeRequest>) -> Result<(), Status> {
        let mut timer = interval(CHECK_EVERY);
        loop {
            let next = {
                // One future over all turns: half a message must not be lost.
                let mut next = pin!(asked.message());
                loop {
                    tokio::select! {
                        biased;
                        next = &mut next => break next,
                        _ = timer.tick() => self.events.still(&self.who).await?,
                        () = self.wrong.closed() => return Ok(()),
                    }
                }
            };
            // What the connection says about its end is nobody's fault.
            let Ok(Some(message)) = next else { return Ok(()) };
            let message = match message.message {
                Some(Asked::Ack(ack)) => acknowledged(&ack)?,
                Some(Asked::Nack(nack)) => refused(nack)?,
                Some(Asked::Start(_)) => return Err(status::invalid("message", "start can only be the first one")),
                None => return Err(status::invalid("message", "must be ack or nack")),
            };
            if self.joined.inbox.send(message).await.is_err() {
                return Ok(());
            }
        }
    }
}

const fn place_of(delivery: &pb::DeliveryId) -> EventPlace {
    EventPlace { position: Position(delivery.position), index: delivery.index }
}

fn acknowledged(ack: &pb::Ack) -> Result<Message, Status> {
    if ack.deliveries.is_empty() || ack.deliveries.len() > ACKS_MAX {
        return Err(status::invalid("ack.deliveries", format!("must be 1 to {ACKS_MAX}")));
    }
    Ok(Message::Ack { places: ack.deliveries.iter().map(place_of).collect() })
}

fn refused(nack: pb::Nack) -> Result<Message, Status> {
    let delivery = nack.delivery.ok_or_else(|| status::invalid("nack.delivery", "must be given"))?;
    let mut reason = nack.reason;
    reason.truncate(reason.floor_char_boundary(TEXT_BYTES_MAX));
    Ok(Message::Nack { place: place_of(&delivery), attempt: delivery.attempt, reason })
}
