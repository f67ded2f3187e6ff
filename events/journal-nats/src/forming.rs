//! A group while it is put together, published and waits for the replica, and those who wait for it.
//!
//! Invariants: every append is answered once, or `Unknown` when its ticket is dropped; whoever was judged against what
//! is on its way is answered together with it.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use events_journal::{AppendError, Appended, Entry, ReadError, Refusal, Replica};
use events_model::{CommitId, Position, StreamId, Version};
use tokio::sync::oneshot;

type Reply = oneshot::Sender<Result<Appended, AppendError>>;

/// What waits for an answer in the whole engine.
#[derive(Debug, Default)]
pub(crate) struct Load {
    pub(crate) len: AtomicUsize,
    pub(crate) bytes: AtomicUsize,
}

/// The right to answer one append; counted until it is used or dropped. Dropping it answers `Unknown`.
#[derive(Debug)]
pub(crate) struct Ticket {
    reply: Option<Reply>,
    bytes: usize,
    load: Arc<Load>,
}

impl Ticket {
    pub(crate) fn new(reply: Reply, bytes: usize, load: &Arc<Load>) -> Self {
        load.len.fetch_add(1, Ordering::Relaxed);
        load.bytes.fetch_add(bytes, Ordering::Relaxed);
        Self { reply: Some(reply), bytes, load: Arc::clone(load) }
    }

    pub(crate) fn answer(mut self, answer: Result<Appended, AppendError>) {
        if let Some(reply) = self.reply.take() {
            // The caller may have dropped the receipt.
            drop(reply.send(answer));
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.load.len.fetch_sub(1, Ordering::Relaxed);
        self.load.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// An append that waits: checked and encoded.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) entry: Entry,
    pub(crate) bytes: Vec<u8>,
    pub(crate) ticket: Ticket,
}

#[derive(Debug)]
pub(crate) enum Answer {
    /// The commit with this index in the group.
    Member(usize),
    /// A commit that is in this group or in one before it.
    Repeat(StreamId, CommitId),
    /// Judged against what is on its way.
    Conflict(AppendError),
}

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) stream: StreamId,
    pub(crate) commit_id: CommitId,
    pub(crate) last: Version,
}

/// A group that is put together, published, or waits for the replica.
#[derive(Debug, Default)]
pub(crate) struct Forming {
    pub(crate) serial: u64,
    pub(crate) commits: Vec<Vec<u8>>,
    pub(crate) bytes: usize,
    pub(crate) members: Vec<Member>,
    pub(crate) answers: Vec<(Ticket, Answer)>,
}

impl Forming {
    pub(crate) fn refuse(self, refusal: &Refusal) {
        for (ticket, answer) in self.answers {
            match answer {
                Answer::Member(_) | Answer::Conflict(_) => ticket.answer(Err(AppendError::Refused(refusal.clone()))),
                // The first append of it may have been written.
                Answer::Repeat(..) => drop(ticket),
            }
        }
    }

    pub(crate) fn fail(self, error: &Arc<io::Error>, refusal: &Refusal) {
        for (ticket, answer) in self.answers {
            ticket.answer(Err(match answer {
                Answer::Member(_) | Answer::Repeat(..) => AppendError::Unknown(Arc::clone(error)),
                Answer::Conflict(_) => AppendError::Refused(refusal.clone()),
            }));
        }
    }

    /// Answers all, now that the replica shows the group; its first commit has this position, if known.
    pub(crate) fn finish(self, replica: &dyn Replica, first: Option<Position>) {
        let place = |member: &Member| match first {
            Some(position) => Ok(Some(position)),
            None => find(replica, &member.stream, &member.commit_id).map(|first| first.map(|first| first.position)),
        };
        let first = self.members.first().map(place);
        for (ticket, answer) in self.answers {
            ticket.answer(match (answer, &first) {
                (Answer::Conflict(conflict), _) => Err(conflict),
                (Answer::Repeat(stream, commit_id), _) => found(find(replica, &stream, &commit_id)),
                (Answer::Member(index), Some(Ok(Some(first)))) => {
                    let version = self.members.get(index).map_or(Version(0), |member| member.last);
                    let position = Position(first.0.saturating_add(index as u64));
                    Ok(Appended { position, version, duplicate: false })
                }
                (Answer::Member(_), Some(Err(error))) => Err(unknown(error.clone())),
                (Answer::Member(_), Some(Ok(None)) | None) => Err(unknown(io::Error::other("the replica lacks it"))),
            });
        }
    }
}

fn unknown(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> AppendError {
    AppendError::Unknown(Arc::new(io::Error::other(error)))
}

/// The first append of a commit id, as the replica shows it.
pub(crate) fn find(
    replica: &dyn Replica,
    stream: &StreamId,
    commit_id: &CommitId,
) -> Result<Option<Appended>, ReadError> {
    let Some(recorded) = replica.find_commit(stream, commit_id)? else {
        return Ok(None);
    };
    let version = recorded.view()?.last_version();
    Ok(Some(Appended { position: recorded.position, version, duplicate: true }))
}

fn found(found: Result<Option<Appended>, ReadError>) -> Result<Appended, AppendError> {
    match found {
        Ok(Some(appended)) => Ok(appended),
        Ok(None) => Err(unknown("the replica lacks it")),
        Err(error) => Err(unknown(error)),
    }
}
