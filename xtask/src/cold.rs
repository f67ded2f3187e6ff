//! `cargo xtask cold`: what a newcomer waits for. Clones the repository, builds the release binary from nothing with the
//! README's first command and prints the seconds until `dev` is ready. The last commit is what is measured.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{cargo, report::say};

/// Longest a cold start may take, seconds.
const COLD_SECONDS_MAX: u64 = 600;

/// Measures and prints.
///
/// # Errors
/// A step fails, or it takes longer than `COLD_SECONDS_MAX`.
pub(crate) fn run(root: &Path) -> Result<()> {
    let folder = cargo::target_directory(root)?.join("cold");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("clear {}", folder.display()))?;
    }
    let checkout = folder.join("checkout");
    let cloned = Command::new("git").args(["clone", "--quiet"]).args([root, &checkout]).status().context("run git")?;
    ensure!(cloned.success(), "git clone ended with {cloned}");
    let seconds = build_and_run(&checkout, &folder)?;
    fs::remove_dir_all(&folder).with_context(|| format!("clear {}", folder.display()))?;
    say(format_args!("cold: {seconds} s from clone to a running `dev` (at most {COLD_SECONDS_MAX} s)"));
    ensure!(seconds <= COLD_SECONDS_MAX, "a cold start takes too long");
    Ok(())
}

fn build_and_run(checkout: &Path, folder: &Path) -> Result<u64> {
    #[expect(clippy::disallowed_methods, reason = "a duration is what is measured")]
    let began = Instant::now();
    let mut dev = Command::new("cargo")
        .args(["run", "--release", "--", "dev", "--http-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0"])
        .arg("--data")
        .arg(folder.join("data"))
        .current_dir(checkout)
        .env("CARGO_TARGET_DIR", folder.join("target"))
        .stdout(Stdio::piped())
        .spawn()
        .context("run cargo")?;
    let output = dev.stdout.take().context("read what dev prints")?;
    let ready = BufReader::new(output).lines().map_while(Result::ok).find(|line| line.contains("is ready in"));
    let seconds = began.elapsed().as_secs();
    // `cargo run` becomes the program it runs, so this ends `dev` itself.
    dev.kill().context("end dev")?;
    dev.wait().context("wait for dev")?;
    match ready {
        Some(line) => say(format_args!("cold: {line}")),
        None => bail!("dev ended before it was ready"),
    }
    Ok(seconds)
}
