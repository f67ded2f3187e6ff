//! `cargo xtask setup`: installs what tests need and cargo does not bring: the real `openai` client, in a virtual
//! environment below the target directory. Done once for each pinned version; nothing outside of it is touched.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::{cargo, report::say};

/// The version the end-to-end test is written against.
const OPENAI_REQUIREMENT: &str = "openai==3.51.0";
/// Below the target directory; `tests` find the interpreter in its `bin`.
const ENVIRONMENT: &str = "tools/openai-venv";
/// Holds the requirement that was installed; written last, so that a broken installation is done again.
const STAMP: &str = "freehold-stamp";

/// Makes the environment if it is not there.
///
/// # Errors
/// Python or its `venv` module is missing, or the package cannot be installed.
pub(crate) fn run(root: &Path) -> Result<()> {
    let environment = cargo::target_directory(root)?.join(ENVIRONMENT);
    let python = environment.join("bin/python");
    let stamp = environment.join(STAMP);
    // A virtual environment links to the interpreter it was made with, which may have gone.
    if python.exists() && fs::read_to_string(&stamp).is_ok_and(|installed| installed == OPENAI_REQUIREMENT) {
        say(format_args!("setup: {OPENAI_REQUIREMENT} is in {}", environment.display()));
        return Ok(());
    }
    if environment.exists() {
        fs::remove_dir_all(&environment).with_context(|| format!("clear {}", environment.display()))?;
    }
    say(format_args!("setup: making a virtual environment in {}", environment.display()));
    call(
        Command::new("python3").args(["-m", "venv"]).arg(&environment),
        "python3 with its venv module is needed (Debian and Ubuntu: apt-get install python3-venv)",
    )?;
    say(format_args!("setup: installing {OPENAI_REQUIREMENT}"));
    call(
        Command::new(&python).args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            OPENAI_REQUIREMENT,
        ]),
        "the package comes from the Python package index: is it reachable, or is PIP_INDEX_URL to be set?",
    )?;
    fs::write(&stamp, OPENAI_REQUIREMENT).with_context(|| format!("write {}", stamp.display()))
}

fn call(command: &mut Command, hint: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("run {program}; {hint}"))?;
    if !status.success() {
        bail!("{program} ended with {status}; {hint}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_and_a_failing_one_are_told_with_the_hint() {
        for mut command in [Command::new("freehold-no-such-program"), Command::new("false")] {
            let error = format!("{:#}", call(&mut command, "install it").unwrap_err());
            assert!(error.contains("install it"), "{error}");
        }
        assert!(call(&mut Command::new("true"), "").is_ok());
    }
}
