//! SIGKILL at random moments, again and again on the same directory.
//!
//! What a killed process wrote stays in the page cache, so that this shows the order of writing and acknowledging and
//! the recovery, not the barriers: those are `power`'s.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use events_journal_sled::LocalStore;

use crate::{
    checkers::Ledger,
    child,
    dice::Dice,
    plan::{Line, Plan},
    victim::Victim,
};

/// What the rounds did.
#[derive(Debug, Default)]
pub struct Report {
    /// Commits that were acknowledged in all rounds.
    pub acknowledged: usize,
    /// Commits that are there at the end, acknowledged or not.
    pub stored: u64,
    /// Rounds that ended before the store was open.
    pub killed_while_opening: u64,
    /// Segment files at the end.
    pub segments: usize,
}

/// Runs the rounds in an empty directory.
///
/// # Errors
/// A promise was broken; the text says the round.
pub fn run(program: &Path, dir: &Path, dice: &mut Dice, rounds: u64) -> Result<Report> {
    let (mut ledger, mut report) = (Ledger::default(), Report::default());
    for round in 1..=rounds {
        let plan = Plan {
            life: round,
            seed: dice.within(0..=u64::MAX),
            segment_bytes: 128 * 1024,
            run_commits: 200,
            writers: dice.within(1..=4),
            depth: dice.within(1..=32),
            bytes_min: 10,
            bytes_max: 2_000,
        };
        let context = format!("round {round} of CHAOS_SEED={}", dice.seed());
        let was_open = one_round(program, dir, dice, plan, &mut ledger).with_context(|| context.clone())?;
        report.killed_while_opening += u64::from(!was_open);
        report.stored = check(dir, dice, plan, &ledger, &context)?;
    }
    report.acknowledged = ledger.acknowledged();
    report.segments = std::fs::read_dir(dir.join("log"))?.count();
    Ok(report)
}

/// Lets a child work and kills it; false = it was killed before its store was open.
fn one_round(program: &Path, dir: &Path, dice: &mut Dice, plan: Plan, ledger: &mut Ledger) -> Result<bool> {
    let mut victim = Victim::start(program, dir, plan, &[])?;
    // One in five dies early, perhaps in the middle of the recovery from the death before.
    if dice.one_in(5) {
        let line = victim.hear(ledger, Duration::from_micros(dice.within(0..=30_000)))?;
        victim.kill(ledger)?;
        // Retries are acknowledged before it says that it is ready.
        return Ok(matches!(line, Some(Line::Ready | Line::Acknowledged { .. })));
    }
    victim.hear_until(ledger, |line| *line == Line::Ready)?;
    victim.work_and_kill(ledger, plan, dice.skewed(1..=1_000), dice.one_in(3))?;
    Ok(true)
}

/// Half of the checks only look, so that the next child recovers from the crash itself; the others recover here.
fn check(dir: &Path, dice: &mut Dice, plan: Plan, ledger: &Ledger, context: &str) -> Result<u64> {
    let findings = if dice.one_in(2) {
        // A child that was killed while it made the directory leaves nothing to look at.
        if !dir.join("log").exists() {
            return Ok(0);
        }
        ledger.check(&LocalStore::open_read_only(dir).with_context(|| format!("{context}: open to read"))?)
    } else {
        ledger.check(child::open(dir, &plan).with_context(|| format!("{context}: open"))?.as_ref())
    }?;
    findings.assert_clean(context)?;
    Ok(findings.commits)
}
