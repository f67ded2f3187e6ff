//! What nodes learn from the servers beside leases: secrets that all of a region share (the first node's are kept there,
//! the others take them), and what time it is.

use std::{collections::BTreeMap, time::Duration};

use async_nats::Client;
use bytes::Bytes;
use events_model::RegionId;

use super::{
    bucket::{Bucket, meta},
    error::Error,
    record::{Key, NodeRecord},
    rules::Value,
};
use crate::limit::READ_WAIT;

/// Keeps `mine` under a name if nothing is there yet; returns what is there. The servers hold it as it is.
///
/// # Errors
/// - `ForeignBucket`: nothing was changed.
/// - `Api`: the servers do not answer, or refuse.
pub async fn share(
    client: &Client,
    (region, replicas): (&RegionId, usize),
    name: &str,
    mine: &[u8],
) -> Result<Vec<u8>, Error> {
    let bucket = Bucket::new(client, region, READ_WAIT);
    bucket.ensure(replicas).await?;
    bucket.share(&format!("secret.{name}"), Bytes::copy_from_slice(mine)).await
}

/// A look at a region's bucket that changes nothing.
#[derive(Debug)]
pub(crate) struct Look(Bucket);

impl Look {
    pub(crate) fn new(client: &Client, region: &RegionId) -> Self {
        Self(Bucket::new(client, region, READ_WAIT))
    }

    /// Whether it is there and fits.
    pub(crate) async fn check(
        &self,
        replicas: usize,
        (region, shards, ttl): (&RegionId, u32, Duration),
    ) -> Result<bool, Error> {
        self.0.look(replicas, &meta(region, shards, ttl)).await
    }

    /// The nodes as the bucket shows them, by name; those that have left are among them.
    ///
    /// # Errors
    /// `Api`: nobody answers, or something in it cannot be read.
    pub(crate) async fn nodes(&self) -> Result<BTreeMap<String, (u64, NodeRecord)>, Error> {
        let mut nodes = BTreeMap::new();
        let mut after = 0;
        while let Some(found) = self.0.poll(after, 1).await.map_err(|_| self.0.unread())?.pop() {
            after = found.revision;
            if let (Key::Node(name), Some(Value::Node(record))) = (found.key, found.value) {
                nodes.insert(name, (found.revision, record));
            }
        }
        Ok(nodes)
    }

    /// Name of its stream.
    pub(crate) fn stream(&self) -> &str {
        self.0.stream()
    }

    /// A subject of it.
    pub(crate) fn subject(&self) -> String {
        self.0.meta_subject()
    }
}

/// Makes the bucket of a region if it is not there; checks it if it is.
///
/// # Errors
/// - `ForeignBucket`: nothing was changed.
/// - `Api`: the servers do not answer, or refuse.
pub async fn ensure(client: &Client, (region, replicas): (&RegionId, usize)) -> Result<(), Error> {
    Bucket::new(client, region, READ_WAIT).ensure(replicas).await
}

/// The time at the servers, RFC 3339: they stamp a message in the region's bucket, and it is read back.
///
/// # Errors
/// `Api`: the servers do not answer, or refuse; there is no bucket.
pub async fn server_time(client: &Client, region: &RegionId, node: &str) -> Result<String, Error> {
    Bucket::new(client, region, READ_WAIT).stamp(&format!("clock.{node}")).await
}
