//! `cargo xtask setup`: brings what tests need and cargo does not: the real `openai` client and a real `nats-server`,
//! both below `tools` in the target directory. Done once for each pinned version; nothing outside of it is touched.

mod nats;
mod openai;

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::cargo;

/// Below the target directory.
const TOOLS: &str = "tools";

/// Installs what is missing.
///
/// # Errors
/// Something can be had from nowhere; the text says what was tried and what a person can do.
pub(crate) fn run(root: &Path) -> Result<()> {
    let tools = cargo::target_directory(root)?.join(TOOLS);
    let python = openai::run(&tools)?;
    nats::run(&tools, &python)
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
