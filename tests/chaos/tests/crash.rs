//! A process that is killed loses nothing that it acknowledged.

use std::path::Path;

use tests_chaos::{crash, dice, dice::Dice};

const CHILD: &str = env!("CARGO_BIN_EXE_chaos-child");

/// Goal: whatever instruction a SIGKILL hits, every acknowledged commit is there once, in order, with its bytes.
/// Method: a child with four pipelined writers and small segments is killed again and again on one directory; it says
/// over a pipe what was acknowledged, and after each death the whole log is compared with that.
#[test]
fn sigkill_at_any_moment_loses_nothing_that_was_acknowledged() -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let (mut dice, rounds) = (Dice::for_test("crash"), dice::rounds(50));
    let report = crash::run(Path::new(CHILD), &dir.path().join("data"), &mut dice, rounds)?;
    eprintln!("crash: {rounds} rounds, {report:?}");
    assert!(report.acknowledged > 0 && report.segments > 2, "{report:?} shows too little");
    Ok(())
}
