//! Questions from node to node: those of others are answered, those for others are brought to them.
//!
//! Invariants: so many are answered at once, no more; a question is given up when another node has taken over. What is in
//! them is known to those who decide.

use std::{sync::Arc, time::Duration};

use actors_shell::{
    Placement,
    remote::{self, Forwarded},
};
use bytes::Bytes;
use events_journal_nats::{Inbox, Incoming, NoReply, lease::Owner};
use events_model::StreamId;

use super::{Cluster, DRAIN_QUESTION, Shells};

/// Questions of other nodes that are answered at once.
const QUESTIONS_MAX: usize = 4_096;
/// How often a node that waits for another one's reply looks whether a third has taken over.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Answers other nodes until the connection is closed.
pub(super) async fn answer_all(cluster: Arc<Cluster>, mut inbox: Inbox, shells: Shells) {
    let slots = Arc::new(tokio::sync::Semaphore::new(QUESTIONS_MAX));
    while let Some(incoming) = inbox.next().await {
        // Without a slot the question waits here, and at last its caller asks again.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let (cluster, shells) = (Arc::clone(&cluster), shells.clone());
        cluster.tasks.clone().spawn(async move {
            answer(&cluster, incoming, &shells).await;
            drop(slot);
        });
    }
}

async fn answer(cluster: &Cluster, incoming: Incoming, shells: &Shells) {
    if incoming.question == DRAIN_QUESTION {
        let left = cluster.drain().await;
        return incoming.reply(Bytes::copy_from_slice(&left.to_le_bytes())).await;
    }
    let kind = remote::stream_of(&incoming.question).map(|stream| stream.kind().to_owned());
    let reply = match kind.as_deref() {
        Some("region") => shells.region.answer(&incoming.question).await,
        Some("group") => shells.groups.answer(&incoming.question).await,
        Some("app") => crate::events::remote::answer(&cluster.log, &incoming.question).await,
        // What is no question for a tenant is answered so.
        Some(_) | None => shells.tenants.answer(&incoming.question).await,
    };
    incoming.reply(reply.into()).await;
}

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
