//! `freehold.cluster.v1.Cluster`: the nodes of the region and their shards, for operators.

use std::sync::Arc;

use events_journal_nats::{NoReply, lease::NodeState};
use proto::cluster::v1 as pb;
use tonic::{Code, Request, Response, Status};

use super::{App, status};
use crate::cluster::Cluster as Node;

/// The service.
#[derive(Debug)]
pub(super) struct Cluster(pub(super) Arc<App>);

type Answer<T> = Result<Response<T>, Status>;

const fn name(state: NodeState) -> &'static str {
    match state {
        NodeState::Live => "live",
        NodeState::Draining => "draining",
        NodeState::Left => "left",
        NodeState::Expired => "expired",
    }
}

impl Cluster {
    fn node(&self) -> Result<&Node, Status> {
        let alone = "this process is not part of a cluster: it was started without --nats";
        self.0.cluster.as_deref().ok_or_else(|| status::plain(Code::FailedPrecondition, "NO_CLUSTER", alone))
    }
}

#[tonic::async_trait]
impl pb::cluster_server::Cluster for Cluster {
    async fn list_nodes(&self, _: Request<pb::ListNodesRequest>) -> Answer<pb::ListNodesResponse> {
        let cluster = self.node()?;
        let nodes = cluster.nodes().into_iter().map(|node| pb::Node {
            is_this: node.name == cluster.node(),
            name: node.name,
            state: name(node.state).to_owned(),
            address: node.address,
            version: node.version,
            started_at_us: node.started_at.0,
            shards: node.shards,
            last_seen_us: u64::try_from(node.last_seen.as_micros()).unwrap_or(u64::MAX),
        });
        Ok(Response::new(pb::ListNodesResponse { nodes: nodes.collect() }))
    }

    async fn list_shards(&self, _: Request<pb::ListShardsRequest>) -> Answer<pb::ListShardsResponse> {
        let cluster = self.node()?;
        let shard = |(number, owner): (usize, Option<events_journal_nats::lease::Owner>)| {
            let (owner, epoch) = owner.map(|owner| (owner.node, owner.epoch)).unwrap_or_default();
            pb::Shard { number: u32::try_from(number).unwrap_or(u32::MAX), owner, epoch }
        };
        let following = cluster.following();
        let shards = cluster.owners().into_iter().enumerate().map(shard).collect();
        Ok(Response::new(pb::ListShardsResponse { shards, applied: following.applied, head: following.head }))
    }

    async fn drain_node(&self, request: Request<pb::DrainNodeRequest>) -> Answer<pb::DrainNodeResponse> {
        let cluster = self.node()?;
        let node = request.into_inner().name;
        if !cluster.nodes().iter().any(|known| known.name == node && !known.state.is_gone()) {
            let message = format!("there is no live node {node:?}; `freehold cluster nodes` lists them");
            return Err(status::plain(Code::NotFound, "NO_SUCH_NODE", message));
        }
        match cluster.drain_node(&node).await {
            Ok(left) => Ok(Response::new(pb::DrainNodeResponse { left })),
            Err(error @ (NoReply::Nobody | NoReply::Late)) => {
                let message = format!("node {node} was asked to drain: {error}");
                Err(status::plain(Code::Unavailable, "NODE_UNREACHABLE", message))
            }
        }
    }
}
