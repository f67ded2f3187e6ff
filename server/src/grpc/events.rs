//! `freehold.events.v1.Events`: applications' events.
//!
//! Invariants: who asks is decided first, what is asked is checked next, field by field; an API key sees the streams
//! `app/<tenant>/...` of its tenant and nothing else, and a subscription ends soon after its key was revoked.

mod access;
mod arguments;
mod errors;
mod groups;
mod models;
mod parked;
mod relay;

use std::{pin::Pin, sync::Arc, time::Duration};

use events_journal::EventLog;
use events_model::{Commit, EventRecord, Position, Stored as _, Version, application::Command};
use futures::Stream;
use proto::events::v1 as pb;
use tokio::time::{Interval, interval};
use tonic::{Request, Response, Status, Streaming};

use self::access::Who;
use super::{App, status};
use crate::{
    events::{
        read, remote,
        share::{Place, Shares},
        tail::{Step, Tail},
    },
    model_path::traceparent,
};

/// Most appends of one tenant that wait for the log.
const APPENDS_MAX: usize = 256;
/// Most subscriptions and consumers of one tenant.
const STREAMS_MAX: usize = 64;
/// How often the key behind an open stream is checked again.
const CHECK_EVERY: Duration = Duration::from_secs(2);

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct Events {
    app: Arc<App>,
    appends: Shares,
    streams: Shares,
}

impl Events {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self { app, appends: Shares::new(APPENDS_MAX), streams: Shares::new(STREAMS_MAX) }
    }

    /// Looks at the log on a thread that may block.
    async fn look<R: Send + 'static>(
        &self,
        look: impl FnOnce(&dyn EventLog) -> Result<R, events_journal::ReadError> + Send + 'static,
    ) -> Result<R, Status> {
        let log = Arc::clone(&self.app.log);
        match tokio::task::spawn_blocking(move || look(&*log)).await {
            Ok(read) => read.map_err(|error| errors::read(&error)),
            Err(error) => Err(errors::broken(&error)),
        }
    }

    /// Waits a little for a position that the caller may have from another node; returns the head.
    async fn reach(&self, at: Position) -> Result<Position, Status> {
        let head = self.app.log.head_position();
        match &self.app.cluster {
            Some(cluster) if head < at && !cluster.reach_head().await => Err(errors::behind()),
            // What no node has shown is judged by what there is.
            Some(_) | None => Ok(self.app.log.head_position()),
        }
    }

    async fn append_checked(&self, who: &Who, new: arguments::Append, trace: String) -> Answer<pb::AppendResponse> {
        let app = &self.app;
        let now = app.clock.now();
        let record = |event: &events_model::application::Event| EventRecord {
            event_id: app.ids.event(now),
            payload: event.to_payload(),
        };
        let commit = Commit {
            commit_id: new.commit_id.clone(),
            stream: new.stream.clone(),
            first_version: Version(1),
            command: Command::Append { expected: new.expected }.to_payload(),
            events: new.events.iter().map(record).collect(),
            episode_id: new.episode.unwrap_or_else(|| app.ids.episode(now)),
            causation_id: new.causation,
            tenant: new.stream.tenant_id(),
            region: app.region.clone(),
            epoch: 1,
            principal: who.principal(),
            recorded_at: now,
            traceparent: trace,
            decider_version: 1,
            key_id: String::new(),
            context: app.inputs,
        };
        arguments::check_size(&commit)?;
        let placement = app.groups.parts().placement.as_deref();
        let count = u64::try_from(commit.events.len()).unwrap_or(u64::MAX);
        let appended = remote::append_anywhere(placement, &*app.log, new.expected, commit).await;
        let appended = appended.map_err(|failure| errors::append(&failure, new.expected))?;
        let mut first_version = appended.version.0.saturating_sub(count).saturating_add(1);
        if appended.duplicate {
            let found = app.log.find_commit(&new.stream, &new.commit_id).map_err(|error| errors::read(&error))?;
            if let Some(found) = found {
                first_version = found.view().map_err(|error| errors::read(&error))?.first_version;
            }
        }
        Ok(Response::new(pb::AppendResponse {
            position: appended.position.0,
            first_version,
            last_version: appended.version.0,
            duplicate: appended.duplicate,
        }))
    }
}

#[tonic::async_trait]
impl pb::events_server::Events for Events {
    async fn append(&self, request: Request<pb::AppendRequest>) -> Answer<pb::AppendResponse> {
        let (metadata, _, message) = request.into_parts();
        let who = self.who(&metadata).await?;
        let new = arguments::append(message)?;
        who.must_see(&new.stream, "stream")?;
        let _place = self.share(&self.appends, &who)?;
        self.must_be_active(&who, &new.stream).await?;
        let trace = metadata.get("traceparent").and_then(|value| value.to_str().ok()).and_then(traceparent::parse);
        self.append_checked(&who, new, trace.unwrap_or_default()).await
    }

    async fn read_stream(&self, request: Request<pb::ReadStreamRequest>) -> Answer<pb::ReadStreamResponse> {
        let (metadata, _, message) = request.into_parts();
        let who = self.who(&metadata).await?;
        let pb::ReadStreamRequest { stream, from_version, direction, limit, filter } = message;
        let stream = arguments::stream("stream", &stream)?;
        who.must_see(&stream, "stream")?;
        let direction = arguments::direction(direction)?;
        let limit = arguments::limit("limit", limit, read::LIMIT_DEFAULT, read::LIMIT_MAX)?;
        let selection = arguments::filter(filter, &who)?;
        let from = Version(from_version);
        let page = self
            .look(move |log| {
                if log.head(&stream)? == Version::ZERO {
                    return Ok(Err(errors::no_such_stream(&stream)));
                }
                read::stream(log, &stream, from, direction, limit, &selection).map(Ok)
            })
            .await??;
        Ok(Response::new(pb::ReadStreamResponse { commits: page.commits, next_version: page.next, end: page.end }))
    }

    async fn read_log(&self, request: Request<pb::ReadLogRequest>) -> Answer<pb::ReadLogResponse> {
        let (metadata, _, message) = request.into_parts();
        let who = self.who(&metadata).await?;
        let pb::ReadLogRequest { from_position, direction, limit, filter } = message;
        let direction = arguments::direction(direction)?;
        let limit = arguments::limit("limit", limit, read::LIMIT_DEFAULT, read::LIMIT_MAX)?;
        let selection = arguments::filter(filter, &who)?;
        let page = self.look(move |log| read::log(log, Position(from_position), direction, limit, &selection)).await?;
        Ok(Response::new(pb::ReadLogResponse { commits: page.commits, next_position: page.next, end: page.end }))
    }

    type SubscribeStream = Answers<pb::SubscribeResponse>;

    async fn subscribe(&self, request: Request<pb::SubscribeRequest>) -> Answer<Self::SubscribeStream> {
        let (metadata, _, message) = request.into_parts();
        let who = self.who(&metadata).await?;
        let pb::SubscribeRequest { from_position, live, filter } = message;
        let selection = arguments::filter(filter, &who)?;
        let place = self.share(&self.streams, &who)?;
        let from = match (live, from_position) {
            (true, 0) => self.app.log.head_position().next(),
            (true, _) => return Err(status::invalid("from_position", "must be 0 with live")),
            (false, from) => arguments::start(from, self.reach(Position(from.saturating_sub(1))).await?)?,
        };
        let tail = Tail::new(Arc::clone(&self.app.log), from, selection);
        let timer = interval(CHECK_EVERY);
        let subscriber = Subscriber { events: self.clone(), who, tail, timer, _place: place };
        Ok(Response::new(Box::pin(futures::stream::unfold(Some(subscriber), |subscriber| async move {
            let mut subscriber = subscriber?;
            match subscriber.next().await {
                Ok(message) => Some((Ok(message), Some(subscriber))),
                Err(status) => Some((Err(status), None)),
            }
        }))))
    }

    async fn create_group(&self, request: Request<pb::CreateGroupRequest>) -> Answer<pb::Group> {
        self.create(request).await
    }

    async fn get_group(&self, request: Request<pb::GetGroupRequest>) -> Answer<pb::Group> {
        self.get(request).await
    }

    async fn list_groups(&self, request: Request<pb::ListGroupsRequest>) -> Answer<pb::ListGroupsResponse> {
        self.list(request).await
    }

    type ConsumeStream = Answers<pb::ConsumeResponse>;

    async fn consume(&self, request: Request<Streaming<pb::ConsumeRequest>>) -> Answer<Self::ConsumeStream> {
        self.deliver(request).await
    }

    async fn list_parked(&self, request: Request<pb::ListParkedRequest>) -> Answer<pb::ListParkedResponse> {
        self.list_dead(request).await
    }

    async fn get_parked(&self, request: Request<pb::GetParkedRequest>) -> Answer<pb::GetParkedResponse> {
        self.get_dead(request).await
    }

    async fn replay_parked(&self, request: Request<pb::ReplayParkedRequest>) -> Answer<pb::ReplayParkedResponse> {
        self.redrive(request).await
    }

    async fn drop_parked(&self, request: Request<pb::DropParkedRequest>) -> Answer<pb::DropParkedResponse> {
        self.give_up(request).await
    }
}

/// An open subscription. It is asked for the next message when the connection has room for it.
struct Subscriber {
    events: Events,
    who: Who,
    tail: Tail,
    timer: Interval,
    _place: Option<Place>,
}

impl Subscriber {
    async fn next(&mut self) -> Result<pb::SubscribeResponse, Status> {
        use pb::subscribe_response::Message;
        let drain = &self.events.app.path.parts().stop.drain;
        let step = {
            // One future over all turns: a page that is being read must not be given up.
            let mut step = std::pin::pin!(self.tail.step());
            loop {
                tokio::select! {
                    biased;
                    () = drain.cancelled() => return Err(errors::shutting_down()),
                    _ = self.timer.tick() => self.events.still(&self.who).await?,
                    step = &mut step => break step,
                }
            }
        };
        let message = match step.map_err(|error| errors::tail(&error))? {
            Step::Commit(commit) => Message::Commit(*commit),
            Step::CaughtUp(position) => Message::CaughtUp(pb::CaughtUp { position: position.0 }),
            Step::Closed => return Err(errors::shutting_down()),
        };
        Ok(pb::SubscribeResponse { message: Some(message) })
    }
}
