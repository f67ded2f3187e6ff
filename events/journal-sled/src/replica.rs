//! The port `Replica` on the local store: commits that were ordered elsewhere go the way of all others.

use bytes::Bytes;
use events_journal::{AppendError, Entry, Receipt, Refusal, Replica, replica::unreadable};

use crate::{queue::Pending, store::LocalStore};

impl Replica for LocalStore {
    fn append_recorded(&self, bytes: Bytes) -> Receipt {
        let Some(core) = self.handle.core() else {
            return Receipt::ready(Err(AppendError::Refused(Refusal::ReadOnly)));
        };
        let entry = match Entry::read(&bytes) {
            Ok(entry) => entry,
            Err(reason) => return unreadable(&bytes, reason),
        };
        let index = &core.library.index;
        let (reply, receipt) = Receipt::channel();
        let episode = *entry.episode_id.as_bytes();
        let keys = index.key.hash.keys(entry.stream.as_str(), entry.commit_id.as_str(), episode);
        let pending = Pending {
            keys,
            absent_below: index.absent_below(&keys),
            expected: entry.expected().0,
            last_version: entry.last().0,
            body_crc: index.key.body_crc(&bytes),
            stream: entry.stream,
            commit_id: entry.commit_id,
            commit: bytes.into(),
            reply,
        };
        core.queue.push(index, pending);
        receipt
    }
}
