//! Processes of this program that a benchmark starts; they end with it.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;

use crate::cli::{
    clock::Stopwatch,
    failure::{Failure, Problem},
};

/// Longest wait for a process to end after SIGTERM.
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks whether it has.
const END_POLL: Duration = Duration::from_millis(10);
/// CPU time is counted in these parts of a second.
const TICKS_PER_SECOND: f64 = 100.0;

/// A process that serves until it is stopped; killed when dropped.
#[derive(Debug)]
pub(super) struct Server(Child);

/// Opens a log in a process of its own and returns what that process says.
pub(super) fn open<T: DeserializeOwned>(directory: &Path) -> Result<T, Failure> {
    let failed = |error: &dyn std::error::Error| Problem::new("open the log in another process").because(error);
    let mut command = this_program()?;
    command.args(["bench", "open"]).arg(directory).stdout(Stdio::piped());
    let output = command.output().map_err(|error| failed(&error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Problem::new(format!("the process that opens the log ended with {}: {said}", output.status)).into());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| failed(&error).into())
}

impl Server {
    /// Starts this program with arguments; returns it with the line that it prints when it is ready.
    pub(super) fn start<T: DeserializeOwned>(arguments: &[&std::ffi::OsStr]) -> Result<(Self, T), Failure> {
        let failed = |error: &dyn std::error::Error| Problem::new(format!("start {arguments:?}")).because(error);
        let child = this_program()?.args(arguments).stdout(Stdio::piped()).spawn().map_err(|error| failed(&error))?;
        let mut server = Self(child);
        let mut line = String::new();
        if let Some(stdout) = server.0.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(|error| failed(&error))?;
        }
        let ready = serde_json::from_str(&line).map_err(|error| failed(&error))?;
        Ok((server, ready))
    }

    /// CPU time it has used, seconds; 0 = the system does not say.
    pub(super) fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap_or_default();
        // The name in parentheses may hold spaces; user and system time are the 12th and 13th field behind it.
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        fields.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND
    }

    /// Asks it to drain and waits until it has ended.
    pub(super) fn stop(mut self) -> Result<(), Failure> {
        let failed = |error: &dyn std::error::Error| Problem::new("stop a process of the benchmark").because(error);
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM).map_err(|error| failed(&error))?;
        }
        let started = Stopwatch::start();
        while started.elapsed() < END_TIMEOUT {
            if let Some(status) = self.0.try_wait().map_err(|error| failed(&error))? {
                let ended = Problem::new(format!("a process of the benchmark ended with {status}"));
                return if status.success() { Ok(()) } else { Err(ended.into()) };
            }
            std::thread::sleep(END_POLL);
        }
        Err(Problem::new("a process of the benchmark does not end").into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// This program with an empty environment, so that no variable of the operator changes what is measured.
fn this_program() -> Result<Command, Failure> {
    let program = std::env::current_exe().map_err(|error| Problem::new("find this program").because(&error))?;
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::null());
    Ok(command)
}
