//! Consumers of groups that another node decides for: their stream goes on to that node.
//!
//! Invariants: the deciding node finds out itself who asks, by the caller's own credential, and never relays again; a
//! relay says which run of which node is meant, and whoever else is reached at its address answers nothing; a relay holds no more than the two connections' windows, so the client's pace is the pace of the deliveries; however it
//! ends, the client hears of it, and when to come back. Each consumer has a connection of its own, so that a slow one
//! fills nobody else's window. Deliberately absent: going on by itself when the group moves to another node. What the
//! consumer holds then belongs to the node that is gone, and only the consumer knows how far it is with it.

use std::{future::ready, pin::pin, sync::Arc, time::Duration};

use events_journal_nats::lease::Owner;
use events_model::StreamId;
use futures::{StreamExt as _, stream};
use proto::events::v1::{self as pb, consume_request::Message as Asked, events_client::EventsClient};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};
use tonic::{
    Request, Response, Status, Streaming,
    metadata::{AsciiMetadataValue, MetadataMap},
    transport::Endpoint,
};

use super::{Answer, Answers, Events, errors};
use crate::{cluster::Cluster, events::share::Place};

/// Says that another node has relayed the call already, and which run of which node it means.
const RELAYED: &str = "freehold-relayed";
/// Longest wait for a connection to another node.
const CONNECT_WAIT: Duration = Duration::from_secs(2);
/// Longest wait for its answer.
const ANSWER_WAIT: Duration = Duration::from_secs(15);
/// How often a silent connection is probed, and how long the probe's answer may take.
const PROBE: Duration = Duration::from_secs(5);
/// What a relay may hold of deliveries, bytes.
const WINDOW_BYTES: u32 = 64 * 1024;
/// How often it is looked whether another node decides by now: one that stands still does not say so.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The node that decides, where a consumer may be relayed to.
#[derive(Debug)]
pub(super) struct Elsewhere {
    cluster: Arc<Cluster>,
    owner: Owner,
    /// Its run, as that one calls itself.
    run: AsciiMetadataValue,
}

impl Events {
    /// Refuses what was relayed to another node than this one: its address leads here.
    pub(super) fn must_be_meant(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let Some(meant) = metadata.get(RELAYED) else { return Ok(()) };
        let this = self.app.cluster.as_ref().map(|cluster| cluster.served_by()).unwrap_or_default();
        if meant.as_encoded_bytes() == this.as_bytes() {
            return Ok(());
        }
        let meant = meant.to_str().unwrap_or_default();
        tracing::warn!(meant, this, "a consumer of another node was relayed here, look at grpc.advertise of both");
        let (node, _) = meant.split_once('/').unwrap_or((meant, ""));
        Err(errors::unreachable(node))
    }

    /// The other node that decides for a group; `None` = this one does, or at the moment nobody.
    pub(super) fn elsewhere(&self, group: &StreamId, metadata: &MetadataMap) -> Option<Elsewhere> {
        let cluster = self.app.cluster.clone()?;
        if self.app.groups.is_here(group) || metadata.contains_key(RELAYED) {
            return None;
        }
        let owner = cluster.owner_of(group).filter(|owner| owner.node != cluster.node())?;
        let node = cluster.nodes().into_iter().find(|node| node.name == owner.node)?;
        let run = AsciiMetadataValue::try_from(format!("{}/{}", node.name, node.incarnation)).ok()?;
        Some(Elsewhere { cluster, owner, run })
    }

    /// Consumes at the node that decides, for a caller who is connected to this one.
    pub(super) async fn relay(
        &self,
        to: Elsewhere,
        (group, start): (StreamId, pb::Start),
        metadata: &MetadataMap,
        asked: Streaming<pb::ConsumeRequest>,
        place: Option<Place>,
    ) -> Answer<Answers<pb::ConsumeResponse>> {
        let unreachable = || errors::unreachable(&to.owner.node);
        let endpoint = Endpoint::from_shared(format!("http://{}", to.owner.address)).map_err(|_| unreachable())?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_WAIT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PROBE)
            .keep_alive_timeout(PROBE)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES);
        let channel = endpoint.connect().await.map_err(|error| {
            tracing::warn!(node = to.owner.node, address = to.owner.address, %error, "node not reached for a consumer");
            unreachable()
        })?;
        let first = pb::ConsumeRequest { message: Some(Asked::Start(start)) };
        // What the client's connection says about its end is nobody's fault: the consumer leaves.
        let rest = stream::unfold(asked, |mut asked| async { Some((asked.message().await.ok()??, asked)) });
        let mut request = Request::new(stream::once(ready(first)).chain(rest));
        if let Some(credential) = metadata.get("authorization") {
            request.metadata_mut().insert("authorization", credential.clone());
        }
        request.metadata_mut().insert(RELAYED, to.run.clone());
        let mut client = EventsClient::new(channel);
        let answered = timeout(ANSWER_WAIT, client.consume(request)).await.map_err(|_| unreachable())?;
        let deliveries = answered.map_err(|status| said(&status, &to.owner.node))?.into_inner();
        let mut timer = interval(LOOK_EVERY);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let relay = Relay { events: self.clone(), to, group, deliveries, timer, _place: place };
        Ok(Response::new(Box::pin(stream::unfold(Some(relay), |relay| async move {
            let mut relay = relay?;
            match relay.next().await {
                Ok(delivery) => Some((Ok(delivery?), Some(relay))),
                Err(status) => Some((Err(status), None)),
            }
        }))))
    }
}

/// What the other node said; what it did not say itself is the connection's end.
fn said(status: &Status, node: &str) -> Status {
    if status.details().is_empty() {
        return errors::unreachable(node);
    }
    Status::with_details(status.code(), status.message(), status.details().to_vec().into())
}

/// An open relay. It is asked for the next message when the client's connection has room for it.
struct Relay {
    events: Events,
    to: Elsewhere,
    group: StreamId,
    deliveries: Streaming<pb::ConsumeResponse>,
    timer: Interval,
    _place: Option<Place>,
}

impl Relay {
    async fn next(&mut self) -> Result<Option<pb::ConsumeResponse>, Status> {
        let drain = &self.events.app.path.parts().stop.drain;
        let Elsewhere { cluster, owner, .. } = &self.to;
        // One future over all turns: half a message must not be lost.
        let mut next = pin!(self.deliveries.message());
        loop {
            tokio::select! {
                biased;
                () = drain.cancelled() => return Err(errors::shutting_down()),
                next = &mut next => return next.map_err(|status| said(&status, &owner.node)),
                _ = self.timer.tick() => {
                    let now = cluster.owner_of(&self.group);
                    if now.is_none_or(|now| (&now.node, now.epoch) != (&owner.node, owner.epoch)) {
                        return Err(errors::moved());
                    }
                }
            }
        }
    }
}
