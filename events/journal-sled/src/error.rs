//! Why a store does not open, and how failures of the file system become the port's words.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
};

use events_journal::{ReadError, Refusal};

/// Why a store does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process (or another handle of this one) has it open.
    #[error("data directory {dir} is in use by process {}", .pid.map_or_else(|| "?".to_owned(), |pid| pid.to_string()))]
    Locked {
        /// The data directory.
        dir: PathBuf,
        /// Who holds it, as written in its lock file.
        pid: Option<u32>,
    },
    /// Bytes that were acknowledged are damaged or missing; nothing was changed.
    #[error("{file} is damaged at byte {offset}: {reason}")]
    Corrupt {
        /// The file.
        file: String,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// The segment was written by a newer program.
    #[error("{file} has format version {version}, this program reads up to {}", crate::format::FORMAT_VERSION)]
    UnsupportedVersion {
        /// The file.
        file: String,
        /// What it says.
        version: u32,
    },
    /// The disk failed.
    #[error("{what}")]
    Io {
        /// What was done.
        what: String,
        /// Why it failed.
        #[source]
        source: Arc<io::Error>,
    },
}

impl From<ReadError> for OpenError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Corrupt { file, offset, reason } => Self::Corrupt { file, offset, reason },
            ReadError::Decode { position, source } => {
                Self::Corrupt { file: "log".to_owned(), offset: 0, reason: format!("position {position}: {source}") }
            }
            ReadError::Io { what, source } => Self::Io { what: format!("read {what}"), source },
        }
    }
}

impl From<OpenError> for ReadError {
    fn from(error: OpenError) -> Self {
        let text = error.to_string();
        match error {
            OpenError::Corrupt { file, offset, reason } => Self::Corrupt { file, offset, reason },
            OpenError::UnsupportedVersion { file, .. } => Self::Corrupt { file, offset: 8, reason: text },
            OpenError::Io { what, source } => Self::Io { what, source },
            OpenError::Locked { .. } => Self::Io { what: text, source: Arc::new(ErrorKind::WouldBlock.into()) },
        }
    }
}

/// Names what was done to which path.
pub(crate) fn open_io(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let what = format!("{verb} {}", path.display());
    move |source| OpenError::Io { what, source: Arc::new(source) }
}

/// Names what was read.
pub(crate) fn read_io(what: impl Into<String>) -> impl FnOnce(io::Error) -> ReadError {
    let what = what.into();
    move |source| ReadError::Io { what, source: Arc::new(source) }
}

/// Damage at a place.
pub(crate) fn corrupt(file: &Path, offset: u64, reason: impl Into<String>) -> ReadError {
    ReadError::Corrupt { file: file.display().to_string(), offset, reason: reason.into() }
}

/// What a failed write means for those who wait to append.
pub(crate) fn refusal(error: &io::Error) -> Refusal {
    use ErrorKind as Kind;
    let kind = error.kind();
    if matches!(kind, Kind::StorageFull | Kind::QuotaExceeded) {
        Refusal::DiskFull
    } else if matches!(kind, Kind::ReadOnlyFilesystem | Kind::PermissionDenied) {
        Refusal::ReadOnly
    } else if matches!(kind, Kind::NotFound | Kind::StaleNetworkFileHandle) {
        Refusal::DirectoryRemoved
    } else {
        Refusal::Disk(error.to_string())
    }
}
