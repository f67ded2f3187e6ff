//! A group: what it holds, and who is answered when it is durable.
//!
//! Invariants: versions are checked against the durable heads and all groups that are not durable yet; whoever is
//! answered on the strength of the group (its own commits, repetitions of them, conflicts with them) is answered after
//! it is durable. Its tables are reused: forming a group allocates nothing per commit.

use std::collections::{HashMap, VecDeque};

use events_journal::{AppendError, Appended, ReadError, Refusal};
use events_model::{CommitId, Position, StreamId, Version};
use parking_lot::RwLockReadGuard;

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
pub(crate) struct Answers {
    answers: Vec<(Reply, Answer)>,
    /// Freed where the answers are sent, not where the next group waits.
    members: Vec<Member>,
}

impl Answers {
    pub(crate) const fn len(&self) -> usize {
        self.answers.len()
    }

    pub(crate) fn send(self) {
        for (reply, answer) in self.answers {
            let answer = match answer {
                Answer::Durable(appended) => Ok(appended),
                Answer::Known(known) => known,
                Answer::Conflict(conflict) => Err(conflict),
            };
            // The caller may have dropped the receipt.
            drop(reply.send(answer));
        }
        drop(self.members);
    }

    /// Answers all, now that the group has failed.
    pub(crate) fn fail(self, error: &AppendError, refusal: &Refusal) {
        for (reply, answer) in self.answers {
            let answer = match answer {
                Answer::Durable(_) => Err(error.clone()),
                Answer::Known(known) => known,
                Answer::Conflict(_) => Err(AppendError::Refused(refusal.clone())),
            };
            // The caller may have dropped the receipt.
            drop(reply.send(answer));
        }
    }
}

/// What a group that is not durable yet makes of the streams in it.
#[derive(Debug)]
pub(crate) struct Tables {
    heads: HashMap<(u64, u64), u64, Seeded>,
    ids: HashMap<u64, (), Seeded>,
}

impl Default for Tables {
    fn default() -> Self {
        // Groups are short-lived: the seed of their tables need not be the log's.
        let seed = Seeded(0x5851_F42D_4C95_7F2D);
        Self { heads: HashMap::with_hasher(seed), ids: HashMap::with_hasher(seed) }
    }
}

impl Tables {
    pub(crate) fn clear(&mut self) {
        self.heads.clear();
        self.ids.clear();
    }

    pub(crate) fn may_hold(&self, commit: u64) -> bool {
        self.ids.contains_key(&commit)
    }

    pub(crate) fn head(&self, stream: (u64, u64)) -> Option<u64> {
        self.heads.get(&stream).copied()
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Group {
    /// Of its first commit.
    first_position: u64,
    bytes: Vec<u8>,
    members: Vec<Member>,
    answers: Vec<(Reply, Answer)>,
    pub(crate) tables: Tables,
}

impl Group {
    pub(crate) fn new(first_position: u64) -> Self {
        Self {
            first_position,
            bytes: vec![0; GROUP_HEADER_BYTES],
            members: Vec::new(),
            answers: Vec::new(),
            tables: Tables::default(),
        }
    }

    /// Makes it an empty one whose first commit gets this position.
    pub(crate) fn begin(&mut self, first_position: u64) {
        self.first_position = first_position;
        self.bytes.truncate(GROUP_HEADER_BYTES);
        self.members.clear();
        self.answers.clear();
        self.tables.clear();
    }

    /// How many are answered on the strength of it.
    pub(crate) const fn len(&self) -> usize {
        self.answers.len()
    }

    /// Position of the first commit behind it.
    pub(crate) const fn next_position(&self) -> u64 {
        self.first_position + self.members.len() as u64
    }

    pub(crate) const fn has_room(&self, commit_bytes: usize) -> bool {
        self.bytes.len() + FRAME_HEADER_BYTES + commit_bytes <= GROUP_HEADER_BYTES + GROUP_BYTES_MAX
    }

    /// Takes from what waited until it is full.
    pub(crate) fn judge_all(&mut self, library: &Library, waited: &mut VecDeque<Pending>) {
        let mut live = library.index.live.read();
        while waited.front().is_some_and(|pending| self.has_room(pending.commit.len())) {
            let Some(pending) = waited.pop_front() else {
                break;
            };
            match self.judge(library, &mut live, &pending) {
                Some(answer) => self.answers.push((pending.reply, answer)),
                None => self.add(pending),
            }
        }
    }

    /// The answer to an append that adds nothing.
    fn judge(&self, library: &Library, live: &mut RwLockReadGuard<'_, Live>, pending: &Pending) -> Option<Answer> {
        let keys = &pending.keys;
        if self.tables.may_hold(keys.commit) {
            let same = |member: &&Member| member.stream == pending.stream && member.commit_id == pending.commit_id;
            if let Some(member) = self.members.iter().find(same) {
                return Some(Answer::Durable(Appended { duplicate: true, ..member.appended }));
            }
        }
        let durable = live.head(keys.stream);
        if durable > 0 && !live.is_still_absent(keys.commit, pending.absent_below) {
            // Reads from the disk, so without the lock; only this thread makes commits durable.
            match RwLockReadGuard::unlocked(live, || find(library, pending)) {
                Ok(None) => {}
                Ok(Some(appended)) => return Some(Answer::Known(Ok(appended))),
                Err(error) => {
                    let refusal = Refusal::Disk(error.to_string());
                    return Some(Answer::Known(Err(AppendError::Refused(refusal))));
                }
            }
        }
        let actual = self.tables.head(keys.stream).unwrap_or(durable);
        (pending.expected != actual).then(|| {
            Answer::Conflict(AppendError::Conflict {
                stream: pending.stream.clone(),
                expected: Version(pending.expected),
                actual: Version(actual),
            })
        })
    }

    /// Adds a commit that was found to be new, of the version its stream expects, and small enough.
    pub(crate) fn add(&mut self, pending: Pending) {
        let position = self.next_position();
        let commit_bytes = u32::try_from(pending.commit.len()).unwrap_or(u32::MAX);
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(&FrameHeader::encode(commit_bytes, position, pending.body_crc));
        self.bytes.extend_from_slice(&pending.commit);
        let version = pending.last_version;
        let appended = Appended { position: Position(position), version: Version(version), duplicate: false };
        self.tables.heads.insert(pending.keys.stream, version);
        self.tables.ids.insert(pending.keys.commit, ());
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
        let (answers, members) = (Vec::with_capacity(self.answers.len()), Vec::with_capacity(self.members.len()));
        Answers {
            answers: std::mem::replace(&mut self.answers, answers),
            members: std::mem::replace(&mut self.members, members),
        }
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
