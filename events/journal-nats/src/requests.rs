//! Questions from node to node, by NATS request and reply.
//!
//! Invariants: `Nobody` means that no node got the question; `Late` that one may have, or may still get it. What is in a
//! question is not known here.

use std::time::Duration;

use async_nats::{Client, Request, RequestErrorKind, Subject, Subscriber};
use bytes::Bytes;
use events_model::RegionId;
use futures::StreamExt as _;
use tracing::debug;

use crate::{engine::JetStreamLog, error::ApiError, limit::READ_WAIT};

/// Why there is no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoReply {
    /// No node of that name listens.
    #[error("no such node listens")]
    Nobody,
    /// It may have got the question.
    #[error("no reply in time")]
    Late,
}

/// One region's way from node to node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Requests {
    client: Client,
    region: RegionId,
}

/// Questions that come in for one node.
#[derive(Debug)]
pub struct Inbox {
    client: Client,
    subscriber: Subscriber,
}

/// A question and the way back.
#[derive(Debug)]
pub struct Incoming {
    /// What was asked.
    pub question: Bytes,
    client: Client,
    reply: Option<Subject>,
}

/// Where a node listens.
fn subject(region: &RegionId, node: &str) -> String {
    format!("fh.cmd.{region}.{node}")
}

impl JetStreamLog {
    /// The way to the other nodes of the region.
    pub fn requests(&self) -> Requests {
        Requests::new(self.client(), self.options().region.clone())
    }
}

impl Requests {
    pub(crate) const fn new(client: Client, region: RegionId) -> Self {
        Self { client, region }
    }

    /// Asks a node.
    ///
    /// # Errors
    /// See `NoReply`.
    pub async fn ask(&self, node: &str, question: Bytes, wait_max: Duration) -> Result<Bytes, NoReply> {
        let request = Request::new().payload(question).timeout(Some(wait_max));
        let asking = self.client.send_request(subject(&self.region, node), request);
        // The client's own bound begins when there is room in its queue, which nobody empties while it is cut off.
        let reply = tokio::time::timeout(wait_max, asking).await.map_err(|_elapsed| NoReply::Late)?;
        reply.map(|message| message.payload).map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders
            | RequestErrorKind::InvalidSubject
            | RequestErrorKind::MaxPayloadExceeded => NoReply::Nobody,
            RequestErrorKind::TimedOut | RequestErrorKind::Other => NoReply::Late,
        })
    }

    /// Listens as a node.
    ///
    /// # Errors
    /// `Broken`: the connection was closed.
    pub async fn listen(&self, node: &str) -> Result<Inbox, ApiError> {
        let subject = subject(&self.region, node);
        let subscriber = self.client.subscribe(subject.clone()).await;
        let subscriber =
            subscriber.map_err(|error| ApiError::Broken { subject: subject.clone(), reason: error.to_string() })?;
        // The servers know of it when they answer this.
        let flushed = self.client.flush().await;
        flushed.map_err(|error| ApiError::Broken { subject, reason: error.to_string() })?;
        Ok(Inbox { client: self.client.clone(), subscriber })
    }
}

impl Inbox {
    /// The next question; none when the connection was closed.
    ///
    /// # Cancel safety
    /// Safe: a question is taken only when it is returned.
    pub async fn next(&mut self) -> Option<Incoming> {
        let message = self.subscriber.next().await?;
        Some(Incoming { question: message.payload, client: self.client.clone(), reply: message.reply })
    }
}

impl Incoming {
    /// Replies.
    pub async fn reply(self, reply: Bytes) {
        let Some(subject) = self.reply else { return };
        // Whoever asked takes it for late; while this node is cut off nobody empties the client's queue.
        match tokio::time::timeout(READ_WAIT, self.client.publish(subject, reply)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "reply not sent"),
            Err(elapsed) => debug!(%elapsed, "reply not sent"),
        }
    }
}
