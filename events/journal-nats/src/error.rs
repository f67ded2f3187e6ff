//! Why the engine does not open, and why a node stops following. Each says what an operator can do about it.

use std::path::PathBuf;

use events_journal::{AppendError, ReadError};

use crate::limit::{MAX_PAYLOAD_BYTES_MIN, SERVER_VERSION_MIN};

/// Why a request to the JetStream API failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    /// Nobody answers: there is no JetStream, or the stream has no leader at the moment.
    #[error("nobody answers requests to {subject}")]
    NoResponders {
        /// Where the request went.
        subject: String,
    },
    /// No answer in time, or the connection is lost.
    #[error("no answer from {subject} in time")]
    TimedOut {
        /// Where the request went.
        subject: String,
    },
    /// The server refused.
    #[error("the server refused {subject}: {description} (code {code})")]
    Refused {
        /// Where the request went.
        subject: String,
        /// The JetStream error code.
        code: u64,
        /// The server's words.
        description: String,
    },
    /// The request could not be sent or the answer not be read.
    #[error("{subject}: {reason}")]
    Broken {
        /// Where the request went.
        subject: String,
        /// Why.
        reason: String,
    },
}

impl ApiError {
    /// Whether asking again may help: nobody answered, or the servers have no leader at the moment.
    pub(crate) const fn is_passing(&self) -> bool {
        match self {
            Self::NoResponders { .. } | Self::TimedOut { .. } | Self::Broken { .. } => true,
            Self::Refused { code, .. } => matches!(*code, 503 | 10004 | 10007 | 10008 | 10009),
        }
    }

    /// The JetStream error code, if the server answered.
    pub(crate) const fn code(&self) -> Option<u64> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::NoResponders { .. } | Self::TimedOut { .. } | Self::Broken { .. } => None,
        }
    }
}

/// A field of a stream's configuration that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The field, as the servers call it.
    pub field: &'static str,
    /// What it must be.
    pub expected: String,
    /// What it is.
    pub actual: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is {}, not {}", self.field, self.actual, self.expected)
    }
}

fn list(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Why the engine does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No server can be reached.
    #[error("no NATS server answers at {servers}")]
    Unreachable {
        /// The addresses.
        servers: String,
        /// Why the last one failed.
        #[source]
        source: async_nats::ConnectError,
    },
    /// The server does not accept who we are.
    #[error("the NATS server at {servers} refuses the credentials")]
    Credentials {
        /// The addresses.
        servers: String,
        /// Its words.
        #[source]
        source: async_nats::ConnectError,
    },
    /// The credentials file cannot be read.
    #[error("read the credentials file {}", path.display())]
    CredentialsFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The server's series is too old to be safe.
    #[error(
        "NATS server {server} is version {version}, at least {}.{} is needed: older ones let several writers win the \
         same expected sequence",
        SERVER_VERSION_MIN.0,
        SERVER_VERSION_MIN.1
    )]
    ServerTooOld {
        /// Its name.
        server: String,
        /// Its version.
        version: String,
    },
    /// The server, or our account on it, has no JetStream.
    #[error("JetStream is not enabled on NATS server {server}")]
    NoJetStream {
        /// Its name.
        server: String,
        /// The answer.
        #[source]
        source: ApiError,
    },
    /// The server's `max_payload` cannot carry every commit.
    #[error("max_payload of NATS server {server} is {bytes} bytes, at least {MAX_PAYLOAD_BYTES_MIN} are needed")]
    PayloadTooSmall {
        /// Its name.
        server: String,
        /// Its `max_payload`.
        bytes: usize,
    },
    /// A stream of that name has another configuration.
    #[error("stream {stream} is not one of Freehold's: {}", list(differences))]
    ForeignStream {
        /// The stream.
        stream: String,
        /// Each field that differs.
        differences: Vec<Difference>,
    },
    /// The servers cannot hold that many replicas.
    #[error("the NATS servers cannot hold {replicas} replicas of stream {stream}")]
    TooFewServers {
        /// The stream.
        stream: String,
        /// What was asked for.
        replicas: usize,
        /// The server's words.
        #[source]
        source: ApiError,
    },
    /// An option is out of its range.
    #[error("{option} is {value}, {allowed} is allowed")]
    Option {
        /// Which.
        option: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// The servers do not answer as they should.
    #[error("ask the NATS servers for stream {stream}")]
    Api {
        /// The stream.
        stream: String,
        /// Why.
        #[source]
        source: ApiError,
    },
    /// The replica of this node does not fit the stream.
    #[error("find where the replica ends in stream {stream}")]
    Replica {
        /// The stream.
        stream: String,
        /// Why.
        #[source]
        source: FollowError,
    },
}

impl OpenError {
    /// What an operator can do.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "start the NATS servers, or correct their addresses",
            Self::Credentials { .. } => "correct user and password, token or credentials file; see deploy/nats",
            Self::CredentialsFile { .. } => "name a credentials file that this user can read",
            Self::ServerTooOld { .. } => "install NATS server 2.12 or newer on every server of the cluster",
            Self::NoJetStream { .. } => "enable JetStream in the server's configuration and for the account",
            Self::PayloadTooSmall { .. } => "set max_payload to 8MB in the configuration of every server",
            Self::ForeignStream { .. } => {
                "choose another region name, or correct the stream with the nats tool if it is Freehold's"
            }
            Self::TooFewServers { .. } => "start as many servers as replicas, or ask for one replica",
            Self::Option { .. } => "correct the option",
            Self::Api { .. } => "look at the servers' logs: the stream may have no leader or the user no permission",
            Self::Replica { source, .. } => source.advice(),
        }
    }
}

/// Why a node stopped following the stream. Nothing was skipped: the replica holds what came before.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FollowError {
    /// A message that must be there is not.
    #[error("message {sequence} of the stream is missing")]
    Gap {
        /// Its sequence.
        sequence: u64,
    },
    /// A message is no group.
    #[error("message {sequence} on {subject} is no group: {reason}")]
    Unreadable {
        /// Its sequence.
        sequence: u64,
        /// Its subject.
        subject: String,
        /// Why.
        reason: String,
    },
    /// A group does not continue the one before.
    #[error("the chain of {subject} breaks at message {sequence}: {reason}")]
    Chain {
        /// The subject.
        subject: String,
        /// Where.
        sequence: u64,
        /// How.
        reason: String,
    },
    /// The replica holds other bytes, or the same ones elsewhere.
    #[error("the replica differs from message {sequence} on {subject}: {reason}")]
    Diverged {
        /// The message.
        sequence: u64,
        /// Its subject.
        subject: String,
        /// How.
        reason: String,
    },
    /// The replica does not take a commit of the stream.
    #[error("the replica refuses a commit of message {sequence} on {subject}")]
    Refused {
        /// The message.
        sequence: u64,
        /// Its subject.
        subject: String,
        /// Its words.
        #[source]
        source: AppendError,
    },
    /// The replica holds a log, but not this one.
    #[error("the replica holds {commits} commits, of which the stream knows nothing")]
    ForeignReplica {
        /// How many.
        commits: u64,
    },
    /// The replica cannot be read.
    #[error("read the replica")]
    Replica(#[source] ReadError),
    /// The leader cannot be asked.
    #[error("read the stream from its leader")]
    Api(#[source] ApiError),
}

impl FollowError {
    /// What an operator can do.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::Gap { .. } | Self::Unreadable { .. } | Self::Chain { .. } => {
                "the stream was changed or lost messages: compare the nodes' logs and restore the stream from the best"
            }
            Self::Diverged { .. } | Self::Refused { .. } => {
                "this node's data directory differs from the stream: move it away and let it be rebuilt"
            }
            Self::ForeignReplica { .. } => {
                "this data directory belongs to another log, or the stream was lost: check region and servers"
            }
            Self::Replica(_) => "check this node's disk",
            Self::Api(_) => "look at the servers' logs: the stream may have no leader",
        }
    }
}

/// Why a shard could not be taken.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TakeError {
    /// There is no such shard.
    #[error("there is no shard {shard}, there are {shards}")]
    NoSuchShard {
        /// What was asked for.
        shard: u32,
        /// How many there are.
        shards: u32,
    },
    /// It was given back, or another node took it, before it was this node's.
    #[error("shard {shard} was given back before it was taken")]
    Released {
        /// The shard.
        shard: u32,
    },
    /// This node does not follow the stream any more.
    #[error("this node's replica stopped")]
    Stopped,
}
