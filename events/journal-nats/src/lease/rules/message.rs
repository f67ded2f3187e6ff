//! What goes into the rules and what comes out.

use super::super::{
    record::{Incarnation, Key, NodeRecord, ShardRecord},
    table::Nanos,
};

/// What a node is and how it behaves.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    pub(crate) node: String,
    pub(crate) incarnation: Incarnation,
    pub(crate) address: String,
    pub(crate) version: String,
    pub(crate) started_at_us: u64,
    pub(crate) shards: u32,
    pub(crate) ttl: Nanos,
    pub(crate) poll_every: Nanos,
}

/// Why a write is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Takes or renews this node's lease.
    Lease { sent_at: Nanos },
    /// Ends the lease of a node that was silent for too long.
    Bury { node: String },
    /// Takes a shard.
    Take { shard: u32 },
    /// Gives a shard back.
    Release { shard: u32 },
}

/// A value on its way to the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Node(NodeRecord),
    Shard(ShardRecord),
}

/// A write that succeeds only if the key's last revision is the expected one (0: there is none).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) purpose: Purpose,
    pub(crate) key: Key,
    pub(crate) expected: u64,
    pub(crate) value: Value,
}

/// Why a write or read was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Certainly not: the key has another revision.
    Revision,
    /// Perhaps: nobody answered, or not in time.
    Unknown,
}

/// One message of the bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) revision: u64,
    pub(crate) key: Key,
    pub(crate) value: Option<Value>,
}

/// Puts the answers to the questions of one `Poll` together, in the order of the questions; none = it is the end.
///
/// The bucket may hear the questions in any order, with writes in between. Nothing is skipped all the same: each finds
/// the first message behind a sequence, so every one between the two had been replaced by then, and what replaced it
/// lies further on. Only the first question tells of the end: one behind it may have been heard before it, and what was
/// replaced between the two is in no answer.
pub(crate) fn together(
    answers: impl IntoIterator<Item = Result<Option<Found>, Failure>>,
) -> Result<Vec<Found>, Failure> {
    let mut all: Vec<Found> = Vec::new();
    for answer in answers {
        match answer {
            Ok(Some(found)) => {
                if all.last().is_none_or(|last| last.revision < found.revision) {
                    all.push(found);
                }
            }
            Err(failure) if all.is_empty() => return Err(failure),
            // What lies there is asked for again.
            Ok(None) | Err(Failure::Revision | Failure::Unknown) => break,
        }
    }
    Ok(all)
}

/// What happens to a node.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// Time has passed.
    Tick,
    /// Another node says that something changed.
    Hint,
    /// What lies behind the asked position, in order; nothing if it is the end.
    Polled(Result<Vec<Found>, Failure>),
    /// What became of a write: its revision.
    Wrote(Write, Result<u64, Failure>),
    /// Nobody decides for a lost shard any more.
    Acknowledged { shard: u32 },
    /// Everything shall be handed over.
    Drain,
    /// Shards shall be taken again.
    Resume,
    /// Everything shall be handed over, and the lease ended.
    Leave,
}

/// What a node does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Asks the leader so many questions at once, each for the next message: the first behind a position, each other
    /// one behind the sequence after that of the one before; answered by them `together`.
    Poll { after: u64, questions: u64 },
    /// Writes.
    Write(Write),
    /// Tells the other nodes to look.
    Hint,
    /// A shard is this node's.
    Taken { shard: u32, epoch: u64 },
    /// A shard is not this node's any more; answered by `Acknowledged`.
    Lost { shard: u32, epoch: u64 },
}

/// How it stands with a node's own lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It has none yet, or lost it and tries again.
    Waiting,
    /// It has one.
    Held,
    /// A live process has the same name.
    NameTaken { address: String },
    /// There are too many nodes.
    TooManyNodes { nodes: usize },
    /// It left.
    Left,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(revision: u64) -> Found {
        Found { revision, key: Key::Other, value: None }
    }

    fn revisions(answers: Vec<Result<Option<Found>, Failure>>) -> Result<Vec<u64>, Failure> {
        together(answers).map(|all| all.iter().map(|found| found.revision).collect())
    }

    #[test]
    fn several_questions_find_each_message_once_and_in_order() {
        let answers = [5, 5, 9, 9, 12].map(|revision| Ok(Some(found(revision))));
        assert_eq!(revisions(answers.to_vec()), Ok(vec![5, 9, 12]));
        // The first was heard last, when what the second found had been replaced.
        let answers = [9, 5, 12].map(|revision| Ok(Some(found(revision))));
        assert_eq!(revisions(answers.to_vec()), Ok(vec![9, 12]));
    }

    #[test]
    fn nothing_is_believed_of_what_lies_behind_a_question_without_an_answer() {
        let unknown = Err(Failure::Unknown);
        assert_eq!(revisions(vec![Ok(Some(found(5))), unknown.clone(), Ok(Some(found(7)))]), Ok(vec![5]));
        assert_eq!(revisions(vec![unknown, Ok(Some(found(7)))]), Err(Failure::Unknown));
    }

    #[test]
    fn only_the_first_question_tells_of_the_end() {
        assert_eq!(revisions(vec![Ok(None), Ok(None)]), Ok(vec![]));
        // Written after the first was heard: at that moment it was the end.
        assert_eq!(revisions(vec![Ok(None), Ok(Some(found(5)))]), Ok(vec![]));
        assert_eq!(revisions(vec![Ok(Some(found(5))), Ok(None), Ok(Some(found(7)))]), Ok(vec![5]));
    }
}
