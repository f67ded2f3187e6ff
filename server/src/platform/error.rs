//! Why the platform does not start, with the number of its page in `docs/errors`.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use actors_core::region::Rejection;
use actors_shell::Unavailable;
use chrono::{DateTime, SecondsFormat};
use events_journal::ReadError;
use events_journal_sled::OpenError;
use events_model::TimestampUs;
use gateway::upstream::SettingsError;

use crate::{auth, config, readiness::refusal_code};

/// Why it does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log does not open.
    #[error("open the log")]
    Open(#[source] OpenError),
    /// The log cannot be read.
    #[error("read the log")]
    Read(#[source] ReadError),
    /// The machine's clock is behind the log's last time.
    #[error(
        "the log ends at {}, {} s ahead of this machine's clock, which says {}; log.clock_ahead_max allows {}",
        time(*.recorded_at), .ahead.as_secs(), time(*.wall), config::unit::show_duration(*.allowed)
    )]
    ClockBehind {
        /// When the last commit was recorded.
        recorded_at: TimestampUs,
        /// What the machine's clock says.
        wall: TimestampUs,
        /// The span between them.
        ahead: Duration,
        /// The longest that is allowed.
        allowed: Duration,
    },
    /// The operator's token cannot be used.
    #[error("load the admin token")]
    AdminToken(#[source] auth::secret_file::Error),
    /// The operator's token that the environment holds cannot be used.
    #[error("FREEHOLD_ADMIN_TOKEN is not {}", auth::secret_file::ADMIN_TOKEN_FORM)]
    AdminTokenVariable,
    /// The pepper of API keys cannot be used.
    #[error("load the pepper of API keys")]
    KeyPepper(#[source] auth::secret_file::Error),
    /// The system gives no randomness.
    #[error("seed the ids")]
    NoEntropy(#[source] auth::NoEntropy),
    /// A listener cannot be bound.
    #[error("listen for {surface} at {address}")]
    Listen {
        /// `HTTP` or `gRPC`.
        surface: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An upstream's key is missing.
    #[error("read the key of an upstream")]
    UpstreamKey(#[source] config::KeyError),
    /// An upstream's certificates cannot be read.
    #[error("read the certificates {} of upstream {upstream}", .path.display())]
    Certificates {
        /// The upstream.
        upstream: String,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An upstream's settings cannot be used.
    #[error("set up an upstream")]
    Upstream(#[source] SettingsError),
    /// The price book cannot be recorded.
    #[error("record the price book")]
    PriceBook(#[source] Unavailable),
    /// The price book breaks a rule.
    #[error("the price book was refused")]
    PriceBookRefused(#[source] Rejection),
    /// The process cannot be a node of its cluster.
    #[error("join the cluster")]
    Cluster(#[source] crate::cluster::Error),
    /// Two metrics have one name: a mistake in this build.
    #[error("register metrics")]
    Metrics(#[source] prometheus::Error),
    /// A task of the start panicked: a mistake in this build.
    #[error("a task of the start ended")]
    Task(#[source] tokio::task::JoinError),
}

impl StartError {
    /// The number of its page in `docs/errors`, if it has one.
    pub fn code(&self) -> Option<&'static str> {
        match self {
            Self::Open(OpenError::Locked { .. }) => Some("E0001"),
            Self::Open(OpenError::Corrupt { .. }) => Some("E0002"),
            Self::Open(OpenError::UnsupportedVersion { .. }) => Some("E0011"),
            Self::Open(OpenError::Io { source, .. }) => io_code(source),
            Self::Read(error) => read_code(error),
            Self::ClockBehind { .. } => Some("E0012"),
            Self::Cluster(error) => error.code(),
            Self::AdminTokenVariable | Self::AdminToken(auth::secret_file::Error::Malformed { .. }) => Some("E0009"),
            Self::AdminToken(auth::secret_file::Error::Io { source, .. })
            | Self::KeyPepper(auth::secret_file::Error::Io { source, .. }) => io_code(source),
            Self::Listen { .. } => Some("E0007"),
            Self::UpstreamKey(_) => Some(config::KeyError::CODE),
            Self::Certificates { .. } | Self::Upstream(_) | Self::PriceBookRefused(_) => Some(config::Error::CODE),
            Self::PriceBook(Unavailable::Refusing(refusal)) => refusal_code(refusal),
            Self::PriceBook(Unavailable::Storage(error)) => read_code(error),
            Self::PriceBook(
                Unavailable::Overloaded { .. }
                | Unavailable::Aborted(_)
                | Unavailable::Restarted
                | Unavailable::Closed
                | Unavailable::Elsewhere
                | Unavailable::Unreachable,
            )
            | Self::AdminToken(auth::secret_file::Error::NoEntropy(_))
            | Self::KeyPepper(auth::secret_file::Error::Malformed { .. } | auth::secret_file::Error::NoEntropy(_))
            | Self::NoEntropy(_)
            | Self::Metrics(_)
            | Self::Task(_) => None,
        }
    }
}

/// A moment for people; beyond the calendar its number.
fn time(at: TimestampUs) -> String {
    let moment = i64::try_from(at.0).ok().and_then(DateTime::from_timestamp_micros);
    moment.map_or_else(|| format!("{} us", at.0), |moment| moment.to_rfc3339_opts(SecondsFormat::Secs, true))
}

const fn read_code(error: &ReadError) -> Option<&'static str> {
    match error {
        ReadError::Corrupt { .. } | ReadError::Decode { .. } => Some("E0002"),
        ReadError::Io { .. } => None,
    }
}

pub(crate) fn io_code(error: &io::Error) -> Option<&'static str> {
    let kind = error.kind();
    if matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return Some("E0003");
    }
    matches!(kind, io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied).then_some("E0004")
}
