//! `cargo xtask test`: everything CI runs, one step after the other, each timed; the first failure ends it and says how
//! to repeat that step alone.
//!
//! When all went well the very last line is `N passed, 0 failed`, summed over all test binaries and doctests.

use std::{
    fmt,
    io::{self, Read, Write},
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{cargo, codegen, layers, report::say, setup, tidy};

/// Bytes passed on at a time; small enough that a line appears when it is written.
const CHUNK_BYTES: usize = 8 * 1024;
/// Longest line that is examined for a test result; the rest of a longer one is passed on unread.
const LINE_BYTES_MAX: usize = 4 * 1024;

/// What to run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// Only format, layers, tidy and clippy.
    pub(crate) quick: bool,
    /// Only these packages are linted, tested and documented; empty means all.
    pub(crate) packages: Vec<String>,
}

/// Tests that ran.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
}

impl fmt::Display for Count {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// What a step does.
enum Action {
    /// In this process.
    Task(fn(&Path) -> Result<()>),
    /// Cargo with these arguments and variables.
    Cargo(Vec<String>, Option<(&'static str, &'static str)>),
    /// Cargo, counting test results.
    Tests(Vec<String>),
    /// Cargo with a subcommand that may not be installed.
    Optional(&'static str, Vec<String>),
}

struct Step {
    name: &'static str,
    action: Action,
}

enum Outcome {
    Done,
    /// Why nothing was done.
    Skipped(String),
    Failed(anyhow::Error),
}

/// Runs the steps and says whether all went well; what went wrong is printed.
pub(crate) fn run(root: &Path, options: &Options) -> ExitCode {
    let mut count = Count::default();
    let mut summary = Vec::new();
    let mut failure = None;
    let started = now();
    for step in steps(options) {
        say(format_args!("\n==> {}: {}", step.name, repeat(&step.action, step.name)));
        let began = now();
        let outcome = perform(root, &step.action, &mut count);
        let took = began.elapsed();
        let verdict = match &outcome {
            Outcome::Done => "ok".to_owned(),
            Outcome::Skipped(why) => format!("SKIPPED: {why}"),
            Outcome::Failed(_) => "FAILED".to_owned(),
        };
        say(format_args!("==> {} {verdict} ({:.1} s)", step.name, took.as_secs_f64()));
        summary.push((step.name, took, verdict));
        if let Outcome::Failed(error) = outcome {
            failure = Some((step, error));
            break;
        }
    }
    say(format_args!("\n{}", table(&summary, started.elapsed())));
    if let Some((step, error)) = &failure {
        say(format_args!("{} failed: {error:#}\nto repeat it: {}\n", step.name, repeat(&step.action, step.name)));
        // Without the step, a failure before the first test would read like a success.
        say(format_args!("{count}, step {} failed", step.name));
        return ExitCode::FAILURE;
    }
    if !options.quick {
        say(count);
    }
    ExitCode::SUCCESS
}

fn steps(options: &Options) -> Vec<Step> {
    let scope = || -> Vec<String> {
        if options.packages.is_empty() {
            return vec!["--workspace".to_owned()];
        }
        options.packages.iter().flat_map(|package| ["--package".to_owned(), package.clone()]).collect()
    };
    let scoped = |head: &[&str], tail: &[&str]| -> Vec<String> {
        head.iter().map(|&one| one.to_owned()).chain(scope()).chain(tail.iter().map(|&one| one.to_owned())).collect()
    };
    let words = |all: &[&str]| all.iter().map(|&one| one.to_owned()).collect::<Vec<_>>();
    let mut steps = vec![
        // Generated code needs no exclusion: `include!` hides it from rustfmt.
        Step { name: "fmt", action: Action::Cargo(words(&["fmt", "--all", "--check"]), None) },
        Step { name: "layers", action: Action::Task(layers::run) },
        Step { name: "tidy", action: Action::Task(tidy::run) },
        Step {
            name: "clippy",
            action: Action::Cargo(
                scoped(&["clippy"], &["--all-targets", "--all-features", "--", "-D", "warnings"]),
                None,
            ),
        },
    ];
    if options.quick {
        return steps;
    }
    steps.insert(0, Step { name: "codegen", action: Action::Task(|root| codegen::run(root, true)) });
    steps.extend([
        Step { name: "build", action: Action::Cargo(words(&["build", "--workspace", "--bins"]), None) },
        Step { name: "setup", action: Action::Task(setup::run) },
        Step { name: "test", action: Action::Tests(scoped(&["test", "--no-fail-fast"], &["--all-features"])) },
        Step {
            name: "doc",
            action: Action::Cargo(scoped(&["doc", "--no-deps"], &[]), Some(("RUSTDOCFLAGS", "-D warnings"))),
        },
        Step { name: "deny", action: Action::Optional("deny", words(&["deny", "check"])) },
    ]);
    steps
}

/// The command that runs the step by itself.
fn repeat(action: &Action, name: &str) -> String {
    match action {
        Action::Task(_) if name == "codegen" => "cargo xtask codegen --check".to_owned(),
        Action::Task(_) => format!("cargo xtask {name}"),
        Action::Cargo(arguments, Some((key, value))) => format!("{key}='{value}' cargo {}", arguments.join(" ")),
        Action::Cargo(arguments, None) | Action::Tests(arguments) | Action::Optional(_, arguments) => {
            format!("cargo {}", arguments.join(" "))
        }
    }
}

fn perform(root: &Path, action: &Action, count: &mut Count) -> Outcome {
    let result = match action {
        Action::Task(task) => task(root),
        Action::Cargo(arguments, variable) => call(cargo::command(root).args(arguments).envs(*variable)),
        Action::Tests(arguments) => test(cargo::command(root).args(arguments), count),
        Action::Optional(subcommand, arguments) => {
            let probe = cargo::command(root).args([subcommand, "--version"]).output();
            if !probe.is_ok_and(|output| output.status.success()) {
                return Outcome::Skipped(format!("cargo-{subcommand} is not installed"));
            }
            call(cargo::command(root).args(arguments))
        }
    };
    result.map_or_else(Outcome::Failed, |()| Outcome::Done)
}

fn call(command: &mut Command) -> Result<()> {
    let status = command.status().context("run cargo")?;
    if !status.success() {
        bail!("cargo ended with {status}");
    }
    Ok(())
}

/// Runs tests, passing their output on as it comes.
fn test(command: &mut Command, count: &mut Count) -> Result<()> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("run cargo")?;
    if let Some(output) = child.stdout.take() {
        pass_on(output, io::stdout().lock(), count).context("pass on the output of the tests")?;
    }
    let status = child.wait().context("wait for cargo")?;
    if !status.success() {
        bail!("cargo ended with {status}, {count}");
    }
    if count.failed > 0 {
        bail!("{count}");
    }
    Ok(())
}

/// Copies everything at once and adds up the results that go by.
fn pass_on(mut from: impl Read, mut to: impl Write, count: &mut Count) -> io::Result<()> {
    let mut chunk = [0; CHUNK_BYTES];
    let mut line = Vec::new();
    loop {
        let read = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => chunk.get(..read).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(read)?;
        to.flush()?;
        for &byte in read {
            if byte == b'\n' {
                add(&line, count);
                line.clear();
            } else if line.len() < LINE_BYTES_MAX {
                line.push(byte);
            }
        }
    }
    add(&line, count);
    Ok(())
}

/// Reads `test result: ok. 5 passed; 0 failed; 0 ignored; ...`.
fn add(line: &[u8], count: &mut Count) {
    let line = String::from_utf8_lossy(line);
    let Some((_, numbers)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else { return };
    for part in numbers.split(';') {
        match part.trim().split_once(' ').map(|(number, what)| (number.parse::<u64>(), what)) {
            Some((Ok(number), "passed")) => count.passed += number,
            Some((Ok(number), "failed")) => count.failed += number,
            _ => {}
        }
    }
}

fn table(summary: &[(&str, Duration, String)], total: Duration) -> String {
    let mut lines = vec![format!("{:<8} {:>9}", "step", "seconds")];
    lines.extend(
        summary.iter().map(|(name, took, verdict)| format!("{name:<8} {:>9.1}  {verdict}", took.as_secs_f64())),
    );
    lines.push(format!("{:<8} {:>9.1}", "total", total.as_secs_f64()));
    lines.join("\n")
}

#[expect(clippy::disallowed_methods, reason = "steps are timed for people; nothing is decided by it")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "running 2 tests\ntest a ... ok\n\n\
        test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.00s\n\n\
        test result: FAILED. 40 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s\n\
        a line about test result: ok. 9 passed; 9 failed;\n   Doc-tests x\n\
        test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s";

    /// Gives `step` bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let (now, later) = self.0.split_at(self.1.min(self.0.len()).min(buffer.len()));
            buffer[..now.len()].copy_from_slice(now);
            self.0 = later;
            Ok(now.len())
        }
    }

    #[test]
    fn results_are_added_up_and_output_is_passed_on_unchanged_however_it_arrives() {
        for step in [1, 7, 100_000] {
            let (mut copy, mut count) = (Vec::new(), Count::default());
            pass_on(Slow(OUTPUT.as_bytes(), step), &mut copy, &mut count).unwrap();
            assert_eq!(copy, OUTPUT.as_bytes());
            assert_eq!(count, Count { passed: 43, failed: 3 });
        }
    }

    #[test]
    fn a_line_without_end_does_not_fill_the_memory() {
        let long = format!("test result: ok. {}; 5 passed; 0 failed\n", "x".repeat(LINE_BYTES_MAX));
        let (mut copy, mut count) = (Vec::new(), Count::default());
        pass_on(long.as_bytes(), &mut copy, &mut count).unwrap();
        assert_eq!((copy.len(), count), (long.len(), Count::default()));
    }

    #[test]
    fn the_last_line_has_the_form_ci_reads() {
        assert_eq!(Count { passed: 12, failed: 0 }.to_string(), "12 passed, 0 failed");
    }

    #[test]
    fn quick_runs_the_checks_and_no_tests() {
        let names = |options: &Options| steps(options).iter().map(|step| step.name).collect::<Vec<_>>();
        let quick = Options { quick: true, ..Options::default() };
        assert_eq!(names(&quick), ["fmt", "layers", "tidy", "clippy"]);
        let all = names(&Options::default());
        assert_eq!(all, ["codegen", "fmt", "layers", "tidy", "clippy", "build", "setup", "test", "doc", "deny"]);
    }

    #[test]
    fn packages_narrow_what_is_tested() {
        let command = |options: &Options| {
            let test = steps(options).into_iter().find(|step| step.name == "test").unwrap();
            repeat(&test.action, test.name)
        };
        assert_eq!(command(&Options::default()), "cargo test --no-fail-fast --workspace --all-features");
        let packages = vec!["gateway".to_owned(), "replay".to_owned()];
        let narrowed = command(&Options { packages, ..Options::default() });
        assert_eq!(narrowed, "cargo test --no-fail-fast --package gateway --package replay --all-features");
    }

    #[test]
    fn each_step_says_how_to_repeat_it() {
        let all = steps(&Options::default());
        let commands: Vec<_> = all.iter().map(|step| repeat(&step.action, step.name)).collect();
        for expected in ["cargo xtask codegen --check", "RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --workspace"] {
            assert!(commands.iter().any(|command| command == expected), "{commands:?}");
        }
    }

    #[test]
    fn a_missing_tool_is_skipped_and_a_failing_step_fails() {
        let root = crate::root();
        let count = &mut Count::default();
        let missing = Action::Optional("freehold-no-such-tool", vec!["check".to_owned()]);
        assert!(matches!(perform(&root, &missing, count), Outcome::Skipped(_)));
        let failing = Action::Task(|_| bail!("no"));
        assert!(matches!(perform(&root, &failing, count), Outcome::Failed(_)));
    }
}
