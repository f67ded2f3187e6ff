//! The group that is being formed: what it holds, and who is answered when it is durable.
//!
//! Invariants: versions are checked against the durable heads and what is in the group already; whoever is answered on
//! the strength of the group (its own commits, repetitions of them, conflicts with them) is answered after it is durable.
//! Its tables are reused: forming a group allocates nothing per commit.

use std::collections::{HashMap, VecDeque};

use events_journal::{AppendError, Appended, ReadError, Refusal};
use events_model::{CommitId, Position, StreamId, Version};

use crate::{
    format::{FRAME_HEADER_BYTES, FrameHeader, GROUP_HEADER_BYTES},
    hash::Seeded,
    index::Live,
    limit::GROUP_BYTES_MAX,
    memtable::Added,
    queue::{Pending, Reply},
    read::Library,
    scan::Place,
    segment::Location,
};

/// A commit in the group.
#[derive(Debug)]
struct Member {
    stream: StreamId,
    commit_id: CommitId,
    added: Added,
    /// Where its frame begins in the group.
    offset: usize,
    appended: Appended,
}

/// Who waits, and what for.
#[derive(Debug)]
enum Answer {
    /// Depends on the group.
    Durable(Appended),
    /// True whatever becomes of the group.
    Known(Result<Appended, AppendError>),
    /// Judged against what the group holds.
    Conflict(AppendError),
}

/// The answers of a durable group.
#[derive(Debug)]
pub(crate) struct Answers(Vec<(Reply, Answer)>);

impl Answers {
    pub(crate) const fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn send(self) {
        for (reply, answer) in self.0 {
            let answer = match answer {
                Answer::Durable(appended) => Ok(appended),
                Answer::Known(known) => known,
                Answer::Conflict(conflict) => Err(conflict),
            };
            // The caller may have dropped the receipt.
            drop(reply.send(answer));
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Group {
    bytes: Vec<u8>,
    members: Vec<Member>,
    answers: Vec<(Reply, Answer)>,
    heads: HashMap<(u64, u64), u64, Seeded>,
    ids: HashMap<u64, (), Seeded>,
}

impl Default for Group {
    fn default() -> Self {
        // Groups are short-lived: the seed of their tables need not be the log's.
        let seed = Seeded(0x5851_F42D_4C95_7F2D);
        Self {
            bytes: vec![0; GROUP_HEADER_BYTES],
            members: Vec::new(),
            answers: Vec::new(),
            heads: HashMap::with_hasher(seed),
            ids: HashMap::with_hasher(seed),
        }
    }
}

impl Group {
    /// Takes from the batch until the group is full.
    pub(crate) fn form(&mut self, library: &Library, first_position: u64, batch: &mut VecDeque<Pending>) {
        self.clear();
        while let Some(pending) = batch.front() {
            let bytes = self.bytes.len() + FRAME_HEADER_BYTES + pending.commit.len();
            if bytes > GROUP_HEADER_BYTES + GROUP_BYTES_MAX {
                break;
            }
            let Some(pending) = batch.pop_front() else {
                break;
            };
            match self.judge(library, &pending) {
                Some(answer) => self.answers.push((pending.reply, answer)),
                None => self.add(first_position, pending),
            }
        }
    }

    fn clear(&mut self) {
        self.bytes.truncate(GROUP_HEADER_BYTES);
        self.members.clear();
        self.answers.clear();
        self.heads.clear();
        self.ids.clear();
    }

    /// The answer to an append that adds nothing.
    fn judge(&self, library: &Library, pending: &Pending) -> Option<Answer> {
        let keys = &pending.keys;
        if self.ids.contains_key(&keys.commit) {
            let same = |member: &&Member| member.stream == pending.stream && member.commit_id == pending.commit_id;
            if let Some(member) = self.members.iter().find(same) {
                return Some(Answer::Durable(Appended { duplicate: true, ..member.appended }));
            }
        }
        let durable = library.index.live.read().head(keys.stream);
        if durable > 0 {
            match find(library, pending) {
                Ok(None) => {}
                Ok(Some(appended)) => return Some(Answer::Known(Ok(appended))),
                Err(error) => {
                    let refusal = Refusal::Disk(error.to_string());
                    return Some(Answer::Known(Err(AppendError::Refused(refusal))));
                }
            }
        }
        let actual = self.heads.get(&keys.stream).copied().unwrap_or(durable);
        (pending.expected != actual).then(|| {
            Answer::Conflict(AppendError::Conflict {
                stream: pending.stream.clone(),
                expected: Version(pending.expected),
                actual: Version(actual),
            })
        })
    }

    fn add(&mut self, first_position: u64, pending: Pending) {
        let position = first_position + self.members.len() as u64;
        let commit_bytes = u32::try_from(pending.commit.len()).unwrap_or(u32::MAX);
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(&FrameHeader::encode(commit_bytes, position, pending.body_crc));
        self.bytes.extend_from_slice(&pending.commit);
        let version = pending.last_version;
        let appended = Appended { position: Position(position), version: Version(version), duplicate: false };
        self.heads.insert(pending.keys.stream, version);
        self.ids.insert(pending.keys.commit, ());
        self.members.push(Member {
            stream: pending.stream,
            commit_id: pending.commit_id,
            added: Added { keys: pending.keys, last_version: version, location: Location::new(0, 0) },
            offset,
            appended,
        });
        self.answers.push((pending.reply, Answer::Durable(appended)));
    }

    pub(crate) fn commits(&self) -> u32 {
        u32::try_from(self.members.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn payload(&self) -> &[u8] {
        self.bytes.get(GROUP_HEADER_BYTES..).unwrap_or_default()
    }

    /// All bytes to be written.
    pub(crate) fn bytes(&mut self, head: [u8; GROUP_HEADER_BYTES]) -> &[u8] {
        if let Some(place) = self.bytes.first_chunk_mut() {
            *place = head;
        }
        &self.bytes
    }

    /// Shows the group's commits to readers.
    pub(crate) fn publish(&self, live: &mut Live, place: Place) {
        let mut first_of_segment = place.last_group == 0;
        for member in &self.members {
            let location = Location::new(place.ordinal, place.offset + member.offset as u64);
            live.push(member.appended.position.0, first_of_segment, Added { location, ..member.added });
            first_of_segment = false;
        }
    }

    /// Those to be answered, now that the group is durable.
    pub(crate) fn take_answers(&mut self) -> Answers {
        let room = Vec::with_capacity(self.answers.len());
        Answers(std::mem::replace(&mut self.answers, room))
    }

    /// Answers all, now that the group has failed; returns how large it was, bytes.
    pub(crate) fn fail(&mut self, error: &AppendError, refusal: &Refusal) -> u64 {
        for (reply, answer) in self.answers.drain(..) {
            let answer = match answer {
                Answer::Durable(_) => Err(error.clone()),
                Answer::Known(known) => known,
                Answer::Conflict(_) => Err(AppendError::Refused(refusal.clone())),
            };
            // The caller may have dropped the receipt.
            drop(reply.send(answer));
        }
        self.bytes.len() as u64
    }
}

/// The first append of this commit id to this stream, if there was one.
fn find(library: &Library, pending: &Pending) -> Result<Option<Appended>, ReadError> {
    let found = library.find(pending.stream.as_str(), pending.commit_id.as_str(), pending.keys.commit)?;
    let Some(recorded) = found else {
        return Ok(None);
    };
    let version = recorded.view()?.last_version();
    Ok(Some(Appended { position: recorded.position, version, duplicate: true }))
}
