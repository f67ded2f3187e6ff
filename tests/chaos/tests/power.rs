//! A power loss takes nothing that was acknowledged.

use std::path::Path;

use tests_chaos::{dice, dice::Dice, power};

const CHILD: &str = env!("CARGO_BIN_EXE_chaos-child");

/// Goal: an acknowledgement means fsync, of bytes and of names. Method: a recorder under the child keeps only what was
/// synced; what it kept is opened as the data directory, compared, and used by the next round.
#[test]
fn what_fsync_covered_holds_everything_that_was_acknowledged() -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let (mut dice, rounds) = (Dice::for_test("power"), dice::rounds(20));
    let report = power::run(Path::new(CHILD), dir.path(), &mut dice, rounds)?;
    eprintln!("power: {rounds} rounds, {report:?}");
    assert!(report.acknowledged > 0, "{report:?} shows too little");
    Ok(())
}

/// Goal: what was written and not synced by a program that was killed is told to nobody before it is durable. Method:
/// one image over a kill, a restart that shows its head, answers retries and perhaps appends, and a loss of power.
#[test]
fn what_a_restarted_program_shows_survives_a_power_loss() -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let (mut dice, rounds) = (Dice::for_test("power after a restart"), dice::rounds(20));
    let report = power::run_with_restarts(Path::new(CHILD), dir.path(), &mut dice, rounds)?;
    eprintln!("power after a restart: {rounds} rounds, {report:?}");
    assert!(report.acknowledged > 0, "{report:?} shows too little");
    Ok(())
}

/// The negative control: when syncs do not reach the image, the same check finds commits missing.
#[test]
fn a_disk_that_ignores_fsync_is_seen_to_lose_commits() -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut dice = Dice::for_test("lying disk");
    let lie = power::lose_with_a_lying_disk(Path::new(CHILD), dir.path(), &mut dice)?;
    eprintln!("lying disk: {lie:?}, as it should be");
    Ok(())
}
