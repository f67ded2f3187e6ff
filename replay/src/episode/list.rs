//! A tenant's episodes, newest first by when they began.
//!
//! An episode stands where its first commit in the tenant's stream stands, so pages neither repeat nor miss one,
//! whatever is appended in between; the page token is therefore just a version.

use events_journal::{Direction, EventLog, ReadError};
use events_model::{CommitView, EpisodeId, StreamId, TenantId, Version};

use super::Summary;
use crate::{PAGE_LEN_MAX, fact::Fact};

/// Size of a page when none is asked for.
pub const PAGE_SIZE_DEFAULT: u32 = 20;
/// Largest page; more is cut to this.
pub const PAGE_SIZE_MAX: u32 = 1_000;
/// Most commits of the stream that one page looks at; a page can so be short, or empty, and still have a next one.
const SCAN_COMMITS_MAX: usize = 16_384;
/// Most commits of one episode that its summary looks at.
const EPISODE_COMMITS_MAX: usize = 256;
/// Tells our tokens from other texts, and this form from a later one.
const TOKEN_PREFIX: &str = "e1-";

/// Some episodes of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Newest first.
    pub episodes: Vec<Summary>,
    /// Gives the next page; empty = this is the last.
    pub next_page_token: String,
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The token was not made here.
    #[error("{token:?} is not a page token")]
    PageToken {
        /// The token, cut to 80 characters.
        token: String,
    },
    /// Nobody registered the tenant.
    #[error("there is no tenant {tenant}")]
    NoSuchTenant {
        /// The tenant.
        tenant: TenantId,
    },
    /// The log cannot be read.
    #[error("read the episodes of {tenant}")]
    Read {
        /// The tenant.
        tenant: TenantId,
        /// Why.
        #[source]
        source: ReadError,
    },
}

/// Lists a tenant's episodes, newest first. `page_size` 0 = `PAGE_SIZE_DEFAULT`; an empty `page_token` = from the
/// newest. Blocks: each episode costs a few short reads.
///
/// # Errors
/// - `PageToken`: the token was not made here;
/// - `NoSuchTenant`: the tenant has no stream;
/// - `Read`: the log cannot be read.
pub fn list(log: &dyn EventLog, tenant: &TenantId, page_size: u32, page_token: &str) -> Result<Page, ListError> {
    let stream = StreamId::tenant(tenant);
    let failed = |source| ListError::Read { tenant: tenant.clone(), source };
    let head = log.head(&stream).map_err(failed)?;
    if head == Version::ZERO {
        return Err(ListError::NoSuchTenant { tenant: tenant.clone() });
    }
    let from = if page_token.is_empty() { head } else { from_token(page_token)? };
    let size = match page_size {
        0 => PAGE_SIZE_DEFAULT,
        wanted => wanted.min(PAGE_SIZE_MAX),
    };
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    let (episodes, next) = read_page(log, &stream, from, size).map_err(failed)?;
    Ok(Page { episodes, next_page_token: next.map(to_token).unwrap_or_default() })
}

fn to_token(version: Version) -> String {
    format!("{TOKEN_PREFIX}{:x}", version.0)
}

fn from_token(token: &str) -> Result<Version, ListError> {
    token
        .strip_prefix(TOKEN_PREFIX)
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .map(Version)
        .filter(|version| *version > Version::ZERO && to_token(*version) == token)
        .ok_or_else(|| ListError::PageToken { token: token.chars().take(80).collect() })
}

/// The episodes that began at or before a version, and where the next page begins.
fn read_page(
    log: &dyn EventLog,
    stream: &StreamId,
    mut from: Version,
    size: usize,
) -> Result<(Vec<Summary>, Option<Version>), ReadError> {
    let mut episodes = Vec::new();
    let mut scanned = 0;
    while scanned < SCAN_COMMITS_MAX {
        // An episode of a request is two commits: twice the page is usually enough.
        let limit = size.saturating_mul(2).clamp(1, PAGE_LEN_MAX);
        let commits = log.read_stream(stream, from, Direction::Backward, limit)?;
        if commits.is_empty() {
            return Ok((episodes, None));
        }
        for commit in &commits {
            let view = commit.view()?;
            if !ends_a_request(&view)
                && let Some(summary) = summary_of_first(log, view.episode(), &view)?
            {
                episodes.push(summary);
            }
            from = Version(view.first_version.saturating_sub(1));
            if from == Version::ZERO {
                return Ok((episodes, None));
            }
            if episodes.len() >= size {
                return Ok((episodes, Some(from)));
            }
        }
        scanned += commits.len();
    }
    Ok((episodes, Some(from)))
}

/// Such a commit never begins an episode; knowing it by name saves a read.
fn ends_a_request(commit: &CommitView<'_>) -> bool {
    matches!(commit.command.short_kind(), "SettleRequest" | "ExpireReservation")
}

/// The summary of an episode if this commit is its first in the stream.
fn summary_of_first(
    log: &dyn EventLog,
    episode: EpisodeId,
    commit: &CommitView<'_>,
) -> Result<Option<Summary>, ReadError> {
    let commits = log.read_episode(episode, EPISODE_COMMITS_MAX)?;
    let views = commits.iter().map(|recorded| recorded.view()).collect::<Result<Vec<_>, _>>()?;
    let first_here = views.iter().find(|view| view.stream == commit.stream);
    if first_here.is_none_or(|first| first.first_version != commit.first_version) {
        return Ok(None);
    }
    let Some(mut summary) = views.first().map(Summary::begin) else { return Ok(None) };
    for (view, recorded) in views.iter().zip(&commits) {
        summary.commit(view);
        for event in view.events() {
            let event = event.map_err(|source| ReadError::Decode { position: recorded.position, source })?;
            // What this program cannot read adds nothing to the totals; `show` says so.
            if let Ok(fact) = Fact::decode(view.stream, event.payload) {
                summary.fact(&fact);
            }
        }
    }
    Ok(Some(summary))
}
