//! What parent and child agree on: how the child works, how a commit is built, and the lines the child prints.
//!
//! A commit's id says everything about its contents, so that the parent can build it again and compare every byte.
//! A line is written in one piece and is shorter than what a pipe takes at once, so that a killed child leaves whole
//! lines.

use std::{fmt, str::FromStr};

use anyhow::{Context as _, Result, bail, ensure};
use events_journal::{AppendError, Refusal, contract};
use events_model::{Commit, StreamId, Version};

/// How a child works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Number of the child's life; part of every commit id, so that no id comes twice.
    pub life: u64,
    /// Seed of its choices.
    pub seed: u64,
    /// Size of a segment file, bytes.
    pub segment_bytes: u64,
    /// Commits after which the newest part of the index becomes a run.
    pub run_commits: u64,
    /// Threads that append.
    pub writers: u64,
    /// Appends each of them has on the way at once.
    pub depth: u64,
    /// Smallest payload of a commit, bytes.
    pub bytes_min: u64,
    /// Largest payload of a commit, bytes.
    pub bytes_max: u64,
}

impl Plan {
    /// As arguments of a program.
    pub fn to_arguments(self) -> [String; 8] {
        let Self { life, seed, segment_bytes, run_commits, writers, depth, bytes_min, bytes_max } = self;
        [life, seed, segment_bytes, run_commits, writers, depth, bytes_min, bytes_max].map(|number| number.to_string())
    }

    /// From arguments of a program.
    ///
    /// # Errors
    /// They are not eight numbers.
    pub fn from_arguments(arguments: impl Iterator<Item = String>) -> Result<Self> {
        let numbers: Vec<u64> =
            arguments.map(|text| text.parse()).collect::<Result<_, _>>().context("read the plan")?;
        let [life, seed, segment_bytes, run_commits, writers, depth, bytes_min, bytes_max] = *numbers else {
            bail!("a plan has eight numbers, not {}", numbers.len());
        };
        Ok(Self { life, seed, segment_bytes, run_commits, writers, depth, bytes_min, bytes_max })
    }
}

/// What a commit is made of besides its stream and version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// The life of the child.
    pub life: u64,
    /// The thread.
    pub writer: u64,
    /// Which append of the thread it was; failed ones count.
    pub attempt: u64,
    /// Events.
    pub events: u64,
    /// Payload bytes of all events.
    pub bytes: u64,
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { life, writer, attempt, events, bytes } = self;
        write!(f, "{life}/{writer}/{attempt}/{events}/{bytes}")
    }
}

impl FromStr for Shape {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers: Vec<u64> = text.split('/').map(str::parse).collect::<Result<_, _>>().context("read a shape")?;
        let [life, writer, attempt, events, bytes] = *numbers else { bail!("{text:?} is not a shape") };
        Ok(Self { life, writer, attempt, events, bytes })
    }
}

impl Shape {
    /// Builds the commit.
    ///
    /// # Errors
    /// A number does not fit this machine.
    pub fn build(&self, stream: &StreamId, version: Version) -> Result<Commit> {
        let (events, bytes) = (usize::try_from(self.events)?, usize::try_from(self.bytes)?);
        Ok(contract::commit(stream, version, &self.to_string(), events, bytes))
    }
}

/// What a child says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// The store is open.
    Ready,
    /// A commit is durable.
    Acknowledged {
        /// Its stream.
        stream: String,
        /// Version of its first event.
        version: u64,
        /// Its id.
        id: String,
        /// Where it lies.
        position: u64,
    },
    /// A commit is certainly not written.
    NotWritten {
        /// Its stream.
        stream: String,
        /// Its id.
        id: String,
        /// Why: one word.
        why: String,
    },
    /// A commit may be written.
    Unknown {
        /// Its stream.
        stream: String,
        /// Its id.
        id: String,
    },
    /// A command is done.
    Done,
    /// The last position that readers are shown.
    Head(u64),
    /// Whether appends are accepted: `accepting` or why not, one word.
    Health(String),
    /// The store does not open.
    NotOpen(String),
    /// The child found a promise broken.
    Broken(String),
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ready"),
            Self::Acknowledged { stream, version, id, position } => write!(f, "ack {stream} {version} {id} {position}"),
            Self::NotWritten { stream, id, why } => write!(f, "not {stream} {id} {why}"),
            Self::Unknown { stream, id } => write!(f, "may {stream} {id}"),
            Self::Done => f.write_str("done"),
            Self::Head(position) => write!(f, "head {position}"),
            Self::Health(word) => write!(f, "health {word}"),
            Self::NotOpen(text) => write!(f, "notopen {text}"),
            Self::Broken(text) => write!(f, "broken {text}"),
        }
    }
}

impl FromStr for Line {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        let parts: Vec<&str> = rest.split(' ').collect();
        Ok(match (word, parts.as_slice()) {
            ("ready", _) => Self::Ready,
            ("done", _) => Self::Done,
            ("ack", [stream, version, id, position]) => Self::Acknowledged {
                stream: (*stream).to_owned(),
                version: version.parse()?,
                id: (*id).to_owned(),
                position: position.parse()?,
            },
            ("not", [stream, id, why]) => {
                Self::NotWritten { stream: (*stream).to_owned(), id: (*id).to_owned(), why: (*why).to_owned() }
            }
            ("may", [stream, id]) => Self::Unknown { stream: (*stream).to_owned(), id: (*id).to_owned() },
            ("head", [position]) => Self::Head(position.parse()?),
            ("health", [word]) => Self::Health((*word).to_owned()),
            ("notopen", _) => Self::NotOpen(rest.to_owned()),
            ("broken", _) => Self::Broken(rest.to_owned()),
            _ => bail!("a child said {text:?}"),
        })
    }
}

impl Line {
    /// The line for a failed append of a commit.
    pub fn failed(stream: &StreamId, shape: &Shape, error: &AppendError) -> Self {
        let (stream, id) = (stream.to_string(), shape.to_string());
        let why = match error {
            AppendError::Conflict { .. } => "conflict",
            AppendError::Invalid { .. } => "invalid",
            AppendError::Busy { .. } => "busy",
            AppendError::Refused(refusal) => word(refusal),
            AppendError::Unknown(_) => return Self::Unknown { stream, id },
        };
        Self::NotWritten { stream, id, why: why.to_owned() }
    }

    /// The line as bytes, with its end.
    ///
    /// # Errors
    /// It is longer than a pipe takes in one piece.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        const PIPE_BYTES_MAX: usize = 4_096;
        let mut text = self.to_string().replace('\n', " ");
        ensure!(text.len() < PIPE_BYTES_MAX, "a line of {} bytes", text.len());
        text.push('\n');
        Ok(text.into_bytes())
    }
}

/// A refusal as one word.
pub const fn word(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::DiskFull => "full",
        Refusal::ReadOnly => "readonly",
        Refusal::DirectoryRemoved => "removed",
        Refusal::Disk(_) => "disk",
        Refusal::Closed => "closed",
        Refusal::Fenced => "fenced",
        Refusal::Unreachable => "unreachable",
        Refusal::Stopped(_) => "stopped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_shapes_and_plans_survive_being_text() {
        let text = String::from;
        for line in [
            Line::Ready,
            Line::Done,
            Line::Acknowledged { stream: text("tenant/a"), version: 7, id: text("1/2/3/4/5"), position: 9 },
            Line::NotWritten { stream: text("tenant/a"), id: text("1/2/3/4/5"), why: text("full") },
            Line::Unknown { stream: text("tenant/a"), id: text("1/2/3/4/5") },
            Line::Head(12),
            Line::Health(text("accepting")),
            Line::NotOpen(text("a b c")),
            Line::Broken(text("x y")),
        ] {
            assert_eq!(line.to_string().parse::<Line>().unwrap(), line);
        }
        let shape = Shape { life: 1, writer: 2, attempt: 3, events: 4, bytes: 5 };
        assert_eq!(shape.to_string().parse::<Shape>().unwrap(), shape);
        let plan = Plan {
            life: 1,
            seed: 2,
            segment_bytes: 3,
            run_commits: 4,
            writers: 5,
            depth: 6,
            bytes_min: 7,
            bytes_max: 8,
        };
        assert_eq!(Plan::from_arguments(plan.to_arguments().into_iter()).unwrap(), plan);
        assert!("ack a b".parse::<Line>().is_err());
    }
}
