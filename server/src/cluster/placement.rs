//! Which streams are decided here, and the way to the nodes that decide the others.

use std::time::Duration;

use actors_shell::{
    Placement,
    remote::{self, Forwarded},
};
use bytes::Bytes;
use events_journal_nats::{NoReply, lease::Owner};
use events_model::StreamId;

use super::Cluster;

/// How often a node that waits for another one's reply looks whether a third has taken over.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Placement for Cluster {
    fn epoch(&self, stream: &StreamId) -> Option<u64> {
        self.taking(self.shard_of(stream))
    }

    fn forward<'a>(&'a self, stream: &'a StreamId, question: &'a [u8], wait_max: Duration) -> Forwarded<'a> {
        Box::pin(async move {
            let shard = self.shard_of(stream);
            let Some(owner) = self.leases.owner_of(shard).filter(|owner| owner.node != self.node) else {
                return Err(remote::NoReply::Nobody);
            };
            let asking = self.requests.ask(&owner.node, Bytes::copy_from_slice(question), wait_max);
            let moved = async {
                let mut look = tokio::time::interval(LOOK_EVERY);
                let same = |now: Option<Owner>| {
                    now.is_none_or(|now| (now.node, now.epoch) == (owner.node.clone(), owner.epoch))
                };
                while same(self.leases.owner_of(shard)) {
                    look.tick().await;
                }
            };
            let reply = tokio::select! {
                reply = asking => reply,
                // A node that stands still answers nothing; whoever took over can be asked at once.
                () = moved => Err(NoReply::Late),
            };
            reply.map(Vec::from).map_err(|error| match error {
                NoReply::Nobody => remote::NoReply::Nobody,
                NoReply::Late => remote::NoReply::Late,
            })
        })
    }
}
