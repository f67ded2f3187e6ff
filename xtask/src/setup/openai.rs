//! The real `openai` client in a virtual environment of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::call;
use crate::report::say;

/// The version the end-to-end test is written against.
const REQUIREMENT: &str = "openai==3.51.0";
/// Below the tools; `tests` find the interpreter in its `bin`.
const ENVIRONMENT: &str = "openai-venv";
/// Holds the requirement that was installed; written last, so that a broken installation is done again.
const STAMP: &str = "freehold-stamp";

/// Makes the environment if it is not there, and returns its interpreter.
///
/// # Errors
/// Python or its `venv` module is missing, or the package cannot be installed.
pub(super) fn run(tools: &Path) -> Result<PathBuf> {
    let environment = tools.join(ENVIRONMENT);
    let python = environment.join("bin/python");
    let stamp = environment.join(STAMP);
    // A virtual environment links to the interpreter it was made with, which may have gone.
    if python.exists() && fs::read_to_string(&stamp).is_ok_and(|installed| installed == REQUIREMENT) {
        say(format_args!("setup: {REQUIREMENT} is in {}", environment.display()));
        return Ok(python);
    }
    if environment.exists() {
        fs::remove_dir_all(&environment).with_context(|| format!("clear {}", environment.display()))?;
    }
    say(format_args!("setup: making a virtual environment in {}", environment.display()));
    call(
        Command::new("python3").args(["-m", "venv"]).arg(&environment),
        "python3 with its venv module is needed (Debian and Ubuntu: apt-get install python3-venv)",
    )?;
    say(format_args!("setup: installing {REQUIREMENT}"));
    call(
        Command::new(&python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", REQUIREMENT]),
        "the package comes from the Python package index: is it reachable, or is PIP_INDEX_URL to be set?",
    )?;
    fs::write(&stamp, REQUIREMENT).with_context(|| format!("write {}", stamp.display()))?;
    Ok(python)
}
