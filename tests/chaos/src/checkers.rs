//! What children were told, and whether a log keeps it.
//!
//! The rules, in the words of the log's contract: what was acknowledged is there, once, at its position, with its
//! bytes; what was certainly not written is not there; versions of a stream have no gap; positions have no gap; what
//! is there but was never answered is a whole commit, too; the lookups know what the scan knows.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Result, ensure};
use events_journal::{Direction, EventLog, Filter, Recorded};
use events_model::{CommitId, Position, StreamId, Version};

use crate::plan::{Line, Shape};

/// Most findings of one kind that are described.
const DESCRIBED_MAX: usize = 5;

/// Everything that children were told about their appends.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// Position and first version of what was acknowledged.
    acknowledged: BTreeMap<(String, String), (u64, u64)>,
    not_written: HashSet<(String, String)>,
    unknown: u64,
    refusals: BTreeMap<String, u64>,
}

/// What a check found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Commits in the log.
    pub commits: u64,
    /// Acknowledged commits that are not there.
    pub missing: Vec<String>,
    /// Everything else that is wrong.
    pub wrong: Vec<String>,
}

impl Findings {
    /// Fails with a description if anything is missing or wrong.
    ///
    /// # Errors
    /// Something is.
    pub fn assert_clean(&self, context: &str) -> Result<()> {
        let describe =
            |findings: &[String]| findings.iter().take(DESCRIBED_MAX).cloned().collect::<Vec<_>>().join("; ");
        ensure!(
            self.missing.is_empty() && self.wrong.is_empty(),
            "{context}: {} acknowledged commits are missing ({}); {} other violations ({})",
            self.missing.len(),
            describe(&self.missing),
            self.wrong.len(),
            describe(&self.wrong),
        );
        Ok(())
    }
}

impl Ledger {
    /// Takes note of a line; those that say nothing about an append are passed over.
    pub fn note(&mut self, line: &Line) {
        match line {
            Line::Acknowledged { stream, version, id, position } => {
                // A retry is acknowledged once more, and what was said first must hold.
                self.acknowledged.entry((stream.clone(), id.clone())).or_insert((*position, *version));
            }
            Line::NotWritten { stream, id, why } => {
                self.not_written.insert((stream.clone(), id.clone()));
                *self.refusals.entry(why.clone()).or_default() += 1;
            }
            Line::Unknown { .. } => self.unknown += 1,
            Line::Ready | Line::Done | Line::Head(_) | Line::Health(_) | Line::NotOpen(_) | Line::Broken(_) => (),
        }
    }

    /// Commits that were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    /// Appends that may have happened.
    pub const fn unknown(&self) -> u64 {
        self.unknown
    }

    /// Appends that were certainly not written, by the word that said why.
    pub const fn refusals(&self) -> &BTreeMap<String, u64> {
        &self.refusals
    }

    /// Compares a log with all that was told.
    ///
    /// # Errors
    /// A read fails; a broken promise is a finding.
    pub fn check(&self, log: &dyn EventLog) -> Result<Findings> {
        let mut scan = Scan::default();
        let mut next = Position(1);
        while next <= log.head_position() {
            let page = log.read_log(next, Direction::Forward, &Filter::default(), 1_000)?;
            ensure!(page.next > next, "reading from {next} goes on from {}", page.next);
            for recorded in &page.commits {
                scan.look_at(self, recorded)?;
            }
            next = page.next;
        }
        let mut findings = scan.findings;
        for (key, (position, version)) in &self.acknowledged {
            match scan.seen.get(key) {
                Some(place) if *place == (*position, *version) => (),
                Some(place) => {
                    findings.wrong.push(format!("{key:?} is at {place:?}, not at {:?}", (position, version)))
                }
                None => findings.missing.push(format!("{} of {} at {position}", key.1, key.0)),
            }
        }
        check_lookups(log, &scan.heads, &scan.seen, &mut findings)?;
        Ok(findings)
    }
}

#[derive(Debug, Default)]
struct Scan {
    seen: HashMap<(String, String), (u64, u64)>,
    heads: BTreeMap<String, u64>,
    findings: Findings,
}

impl Scan {
    fn look_at(&mut self, ledger: &Ledger, recorded: &Recorded) -> Result<()> {
        let view = recorded.view()?;
        let key = (view.stream.to_owned(), view.commit_id.to_owned());
        self.findings.commits += 1;
        let wrong = &mut self.findings.wrong;
        if recorded.position.0 != self.findings.commits {
            wrong.push(format!("{key:?} has position {}, not {}", recorded.position, self.findings.commits));
        }
        let head = self.heads.entry(key.0.clone()).or_default();
        if view.first_version != *head + 1 {
            wrong.push(format!("{key:?} has version {} after {head}", view.first_version));
        }
        *head = view.last_version().0;
        let built = key.1.parse::<Shape>()?.build(&StreamId::new(view.stream)?, Version(view.first_version))?;
        if built.encode() != recorded.bytes {
            wrong.push(format!("{key:?} has other bytes than were appended"));
        }
        if ledger.not_written.contains(&key) {
            wrong.push(format!("{key:?} is there although its append was refused"));
        }
        if let Some(place) = self.seen.insert(key.clone(), (recorded.position.0, view.first_version)) {
            wrong.push(format!("{key:?} is there twice, first at {place:?}"));
        }
        Ok(())
    }
}

/// The index must know what the scan saw: every head, and a spread of the commits.
fn check_lookups(
    log: &dyn EventLog,
    heads: &BTreeMap<String, u64>,
    seen: &HashMap<(String, String), (u64, u64)>,
    findings: &mut Findings,
) -> Result<()> {
    const LOOKUPS_MAX: usize = 200;
    for (stream, version) in heads {
        let stream = StreamId::new(stream)?;
        let head = log.head(&stream)?;
        let newest = log.read_stream(&stream, Version(u64::MAX), Direction::Backward, 1)?;
        let newest = newest.first().map(|recorded| recorded.view().map(|view| view.last_version())).transpose()?;
        if head.0 != *version || newest != Some(head) {
            findings.wrong.push(format!("{stream} has head {head} and ends at {newest:?}, but holds {version}"));
        }
    }
    for ((stream, id), (position, _)) in seen.iter().step_by(seen.len() / LOOKUPS_MAX + 1) {
        let found = log.find_commit(&StreamId::new(stream)?, &CommitId::new(id)?)?.map(|recorded| recorded.position.0);
        if found != Some(*position) {
            findings.wrong.push(format!("{id} of {stream} is at {position} but found at {found:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use events_journal::{
        MemoryLog,
        contract::{fixture::tenant, settle},
    };

    use super::*;

    fn log_of(shapes: &[Shape]) -> (MemoryLog, Ledger) {
        let (log, mut ledger, stream) = (MemoryLog::new(), Ledger::default(), tenant("acme"));
        for shape in shapes {
            let version = log.head(&stream).unwrap().next();
            let commit = shape.build(&stream, version).unwrap();
            let answer = settle(log.append(Version(version.0 - 1), commit)).unwrap();
            ledger.note(&Line::Acknowledged {
                stream: stream.to_string(),
                version: version.0,
                id: shape.to_string(),
                position: answer.position.0,
            });
        }
        (log, ledger)
    }

    fn shapes(count: u64) -> Vec<Shape> {
        (0..count).map(|attempt| Shape { life: 1, writer: 1, attempt, events: 2, bytes: 50 }).collect()
    }

    #[test]
    fn a_log_that_keeps_everything_is_clean() {
        let (log, ledger) = log_of(&shapes(20));
        ledger.check(&log).unwrap().assert_clean("").unwrap();
    }

    #[test]
    fn a_lost_commit_is_missing_and_one_elsewhere_is_wrong() {
        let (_, ledger) = log_of(&shapes(20));
        let (shorter, _) = log_of(&shapes(18));
        let findings = ledger.check(&shorter).unwrap();
        assert_eq!((findings.missing.len(), findings.wrong.len()), (2, 0));
        assert!(findings.assert_clean("").is_err());

        let mut swapped = shapes(20);
        swapped.swap(3, 4);
        let findings = ledger.check(&log_of(&swapped).0).unwrap();
        assert_eq!((findings.missing.len(), findings.wrong.len()), (0, 2));
    }

    #[test]
    fn a_refused_commit_that_is_there_is_wrong() {
        let (log, mut ledger) = log_of(&shapes(3));
        let (stream, id) = ("tenant/acme".to_owned(), shapes(3)[1].to_string());
        ledger.note(&Line::NotWritten { stream, id, why: "full".to_owned() });
        assert_eq!(ledger.check(&log).unwrap().wrong.len(), 1);
    }

    #[test]
    fn other_bytes_are_wrong() {
        let (log, ledger) = log_of(&shapes(2));
        let stream = tenant("acme");
        let mut commit = Shape { attempt: 7, ..shapes(1)[0] }.build(&stream, Version(5)).unwrap();
        commit.events[1].payload.bytes[3] ^= 1;
        settle(log.append(Version(4), commit)).unwrap();
        assert_eq!(ledger.check(&log).unwrap().wrong.len(), 1);
    }
}
