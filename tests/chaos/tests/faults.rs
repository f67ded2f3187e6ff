//! A failing disk stops the store with a clear word and loses nothing; when it is well again the store goes on.
#![expect(clippy::print_stderr, reason = "tests print what they did")]

use std::path::Path;

use tests_chaos::{dice, dice::Dice, faults::Scene, shim::Fault};

const CHILD: &str = env!("CARGO_BIN_EXE_chaos-child");

fn within(name: &str, act: impl FnOnce(&mut Scene, &Path, &mut Dice) -> anyhow::Result<String>) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut dice = Dice::for_test(name);
    let mut scene = Scene::new(Path::new(CHILD), dir.path(), &mut dice)?;
    let said = act(&mut scene, dir.path(), &mut dice)?;
    eprintln!("{name}: {said}");
    Ok(())
}

fn survives(name: &str, fault: Fault, word: &str) -> anyhow::Result<()> {
    within(name, |scene, _, dice| {
        let ledger = scene.survives(fault, word, dice)?;
        Ok(format!("{} acknowledged, {} unknown, {:?}", ledger.acknowledged(), ledger.unknown(), ledger.refusals()))
    })
}

#[test]
fn a_full_disk_refuses_appends_until_there_is_room() -> anyhow::Result<()> {
    survives("full disk", Fault::DiskFull, "full")
}

#[test]
fn a_disk_without_room_for_new_files_refuses_appends_when_the_allocated_room_ends() -> anyhow::Result<()> {
    survives("no growth", Fault::NoGrowth, "full")
}

#[test]
fn a_read_only_disk_refuses_appends_until_it_is_writable() -> anyhow::Result<()> {
    survives("read-only disk", Fault::ReadOnly, "readonly")
}

#[test]
fn a_failing_sync_refuses_appends_until_it_works() -> anyhow::Result<()> {
    survives("failing sync", Fault::SyncFails, "disk")
}

#[test]
fn what_a_failed_sync_forgot_is_written_again_before_it_is_acknowledged() -> anyhow::Result<()> {
    within("forgotten pages", |scene, dir, dice| {
        let ledger = scene.survives_forgotten_pages(dir, dice, 5)?;
        Ok(format!("{} acknowledged, {} unknown, {:?}", ledger.acknowledged(), ledger.unknown(), ledger.refusals()))
    })
}

#[test]
fn what_a_copy_showed_before_its_sync_failed_is_written_again_before_it_accepts_more() -> anyhow::Result<()> {
    within("forgotten pages of a copy", |scene, dir, dice| {
        let ledger = scene.copy_survives_forgotten_pages(dir, dice, 5)?;
        Ok(format!("{} acknowledged, {} unknown, {:?}", ledger.acknowledged(), ledger.unknown(), ledger.refusals()))
    })
}

/// Goal: what a program that died of a failed sync left in the page cache reaches the disk before the next one shows it.
/// Method: the failing sync itself kills the child; the image remembers what was forgotten from child to child.
#[test]
fn what_a_dead_program_could_not_sync_is_written_again_before_anybody_is_told_of_it() -> anyhow::Result<()> {
    within("death of a failed sync", |scene, dir, dice| {
        let rounds = dice::rounds(15);
        let deaths = scene.survives_deaths_of_failed_syncs(dir, dice, rounds)?;
        // Some die of the sync of a new segment or of the index instead.
        anyhow::ensure!(3 * deaths.forgotten > deaths.while_appending, "{deaths:?} shows too little");
        Ok(format!("{rounds} rounds, {deaths:?}"))
    })
}

#[test]
fn syncs_that_fail_now_and_then_lose_nothing_that_was_acknowledged() -> anyhow::Result<()> {
    within("flaky syncs", |scene, dir, dice| {
        let ledger = scene.survives_flaky_syncs(dir, dice, 8)?;
        Ok(format!("{} acknowledged, {} unknown, {:?}", ledger.acknowledged(), ledger.unknown(), ledger.refusals()))
    })
}

#[test]
fn opening_on_a_failing_disk_loses_nothing() -> anyhow::Result<()> {
    for fault in [Fault::DiskFull, Fault::NoGrowth, Fault::ReadOnly, Fault::SyncFails] {
        within(&format!("open under {fault:?}"), |scene, _, _| scene.opens_or_says_why_not(fault))?;
    }
    Ok(())
}

#[test]
fn a_deleted_directory_refuses_appends_and_is_not_made_anew() -> anyhow::Result<()> {
    within("deleted directory", |scene, _, _| scene.survives_a_deleted_directory().map(|()| "refused".to_owned()))
}

#[test]
fn a_directory_that_was_moved_away_and_back_has_everything() -> anyhow::Result<()> {
    within("moved directory", |scene, _, _| scene.survives_a_moved_directory().map(|()| "kept".to_owned()))
}
