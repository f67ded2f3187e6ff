//! Decides recorded commands once more with the present rules and the recorded context, and compares the events'
//! bytes with those on the log. No difference means: state, command and recorded context determine everything.
//!
//! Invariants: the state follows the *recorded* events, so a difference is named where it begins and does not hide
//! behind earlier ones; nothing is appended.

use actors_core::{Context, Decider};
use events_journal::{EventLog, Recorded};
use events_model::{CommitId, DecodeError, Payload, PayloadView, Position, Stored, StreamId, Version};

use crate::{state_at::Error, walk};

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Commits that were decided again, the differing one included.
    pub commits: u64,
    /// The first commit whose events would differ today.
    pub difference: Option<Difference>,
}

/// A commit that would be another today.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its place in the log.
    pub position: Position,
    /// Its first version in the stream.
    pub version: Version,
    /// Idempotency key of its command.
    pub commit_id: CommitId,
    /// Version of the rules that decided it.
    pub decider_version: u32,
    /// What differs.
    pub how: How,
}

/// What differs between a recorded and a repeated decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum How {
    /// The command would be rejected.
    Rejected {
        /// With these words.
        rejection: String,
    },
    /// There would be more or fewer events.
    Count {
        /// Events on the log.
        recorded: u64,
        /// Events today.
        decided: u64,
    },
    /// An event would have another type or other bytes.
    Event {
        /// Its version in the stream.
        version: Version,
        /// Full protobuf name on the log.
        recorded: String,
        /// Full protobuf name today; the same name = other bytes.
        decided: String,
    },
}

/// Verifies one stream up to its head or the first difference. Blocks as long as reading the stream does.
///
/// # Errors
/// The stream does not exist, cannot be read, or holds commands or events that do not decode.
pub fn stream<D: Decider>(log: &dyn EventLog, stream: &StreamId) -> Result<Verified, Error> {
    let read = |source| Error::Read { stream: stream.clone(), source };
    if log.head(stream).map_err(read)? == Version::ZERO {
        return Err(Error::NoSuchStream { stream: stream.clone() });
    }
    let (mut state, mut commits) = (D::State::default(), 0_u64);
    for commit in walk(log, stream) {
        let commit = commit.map_err(read)?;
        commits += 1;
        let version = Version(commit.view().map_err(read)?.first_version);
        let position = commit.position;
        let (after, difference) = decide_again::<D>(state, &commit).map_err(|fault| match fault {
            Fault::Read(source) => read(source),
            Fault::Decode(source) => Error::Decode { stream: stream.clone(), version, position, source },
        })?;
        if difference.is_some() {
            return Ok(Verified { commits, difference });
        }
        state = after;
    }
    Ok(Verified { commits, difference: None })
}

enum Fault {
    Read(events_journal::ReadError),
    Decode(DecodeError),
}

fn decide_again<D: Decider>(mut state: D::State, commit: &Recorded) -> Result<(D::State, Option<Difference>), Fault> {
    let view = commit.view().map_err(Fault::Read)?;
    let command = D::Command::from_payload(view.command).map_err(Fault::Decode)?;
    let context = Context { now: view.recorded_at(), inputs: view.context };
    let recorded = view
        .events()
        .map(|event| event.map(|event| event.payload))
        .collect::<Result<Vec<_>, _>>()
        .map_err(Fault::Decode)?;
    let how = match D::decide(&state, &command, &context) {
        Err(rejection) => Some(How::Rejected { rejection: rejection.to_string() }),
        Ok(events) => {
            compare(&recorded, &events.iter().map(Stored::to_payload).collect::<Vec<_>>(), view.first_version)
        }
    };
    if let Some(how) = how {
        let difference = Difference {
            position: commit.position,
            version: Version(view.first_version),
            commit_id: CommitId::new(view.commit_id)
                .map_err(|_| Fault::Decode(DecodeError::Value { what: "a commit id" }))?,
            decider_version: view.decider_version,
            how,
        };
        return Ok((state, Some(difference)));
    }
    for payload in recorded {
        state = D::evolve(state, &D::Event::from_payload(payload).map_err(Fault::Decode)?);
    }
    Ok((state, None))
}

fn compare(recorded: &[PayloadView<'_>], decided: &[Payload], first_version: u64) -> Option<How> {
    if recorded.len() != decided.len() {
        return Some(How::Count { recorded: recorded.len() as u64, decided: decided.len() as u64 });
    }
    let mut pairs = (first_version..).zip(recorded.iter().zip(decided));
    pairs.find(|(_, (recorded, decided))| **recorded != decided.view()).map(|(version, (recorded, decided))| {
        How::Event { version: Version(version), recorded: recorded.kind.to_owned(), decided: decided.kind.to_owned() }
    })
}
