//! The hand that holds a child: starts it, tells it what to do, hears what it says, kills it.
//!
//! Every line is noted in the ledger, also those that a child wrote in the instant before its death.

use std::{
    ffi::OsString,
    io::{BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    checkers::Ledger,
    plan::{Line, Plan},
};

/// Longest silence of a child that has something to say.
pub const SILENCE_MAX: Duration = Duration::from_secs(40);

/// A running child; killed when dropped.
#[derive(Debug)]
pub struct Victim {
    child: Child,
    commands: Option<ChildStdin>,
    lines: Receiver<Result<Line>>,
}

impl Victim {
    /// Starts the program with a plan on a data directory, with these environment variables.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(program: &Path, dir: &Path, plan: Plan, environment: &[(&str, OsString)]) -> Result<Self> {
        let mut child = Command::new(program)
            .arg(dir)
            .args(plan.to_arguments())
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let commands = child.stdin.take();
        let output = child.stdout.take().context("the child has no standard output")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let line = line.context("read from a child").and_then(|text| text.parse());
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, commands, lines })
    }

    /// Sends a command.
    ///
    /// # Errors
    /// The child is gone.
    pub fn tell(&mut self, command: &str) -> Result<()> {
        let commands = self.commands.as_mut().context("the child was closed")?;
        writeln!(commands, "{command}").with_context(|| format!("tell the child to {command}"))
    }

    /// Hears the next line within a time and notes it; `None` = the time is over.
    ///
    /// # Errors
    /// The child ended or said that something is broken.
    pub fn hear(&mut self, ledger: &mut Ledger, wait: Duration) -> Result<Option<Line>> {
        let line = match self.lines.recv_timeout(wait) {
            Ok(line) => line?,
            Err(RecvTimeoutError::Timeout) => return Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("the child ended: {:?}", self.child.wait()),
        };
        ledger.note(&line);
        ensure!(!matches!(line, Line::Broken(_) | Line::NotOpen(_)), "the child said: {line}");
        Ok(Some(line))
    }

    /// Hears lines until one satisfies; gives that one.
    ///
    /// # Errors
    /// As `hear`, or the child is silent for `SILENCE_MAX`.
    pub fn hear_until(&mut self, ledger: &mut Ledger, mut enough: impl FnMut(&Line) -> bool) -> Result<Line> {
        loop {
            let line = self.hear(ledger, SILENCE_MAX)?.with_context(|| format!("silence for {SILENCE_MAX:?}"))?;
            if enough(&line) {
                return Ok(line);
            }
        }
    }

    /// Sends a command and hears its answers up to `done`, the head or the health.
    ///
    /// # Errors
    /// As `hear_until`.
    pub fn order(&mut self, ledger: &mut Ledger, command: &str) -> Result<Line> {
        self.tell(command)?;
        self.hear_until(ledger, |line| matches!(line, Line::Done | Line::Head(_) | Line::Health(_)))
    }

    /// Lets it append and kills it: when it was told of `count` commits and is in the middle of more, or in the silence
    /// after the last of about as many, when nothing that came later can have covered up for it.
    ///
    /// # Errors
    /// As `hear_until` and `kill`.
    pub fn work_and_kill(mut self, ledger: &mut Ledger, plan: Plan, count: u64, in_silence: bool) -> Result<()> {
        if in_silence {
            self.order(ledger, &format!("append {}", count.div_ceil(plan.writers)))?;
        } else {
            let mut left = count;
            self.tell("run")?;
            self.hear_until(ledger, |line| {
                left -= u64::from(matches!(line, Line::Acknowledged { .. }));
                left == 0
            })?;
        }
        self.kill(ledger)
    }

    /// Kills it with SIGKILL and notes what it had said.
    ///
    /// # Errors
    /// It said that something is broken, or it cannot be killed.
    pub fn kill(mut self, ledger: &mut Ledger) -> Result<()> {
        self.child.kill().context("kill the child")?;
        self.child.wait().context("wait for the child")?;
        self.drain(ledger)
    }

    /// Lets it close its store and end, and notes what it says.
    ///
    /// # Errors
    /// It ends in another way than it should.
    pub fn close(mut self, ledger: &mut Ledger) -> Result<()> {
        self.commands = None;
        self.drain(ledger)?;
        let status = self.child.wait().context("wait for the child")?;
        ensure!(status.success(), "the child ended with {status}");
        Ok(())
    }

    /// Waits for its end under a fault that kills it, and notes what it says; false = it did not have to be killed.
    ///
    /// # Errors
    /// It ends in another way than by SIGKILL or as it should.
    pub fn see_killed(mut self, ledger: &mut Ledger) -> Result<bool> {
        const SIGKILL: i32 = 9;
        // If it survives, this ends it.
        self.commands = None;
        self.drain(ledger)?;
        let status = self.child.wait().context("wait for the child")?;
        let was_killed = status.signal() == Some(SIGKILL);
        ensure!(was_killed || status.success(), "the child ended with {status}");
        Ok(was_killed)
    }

    fn drain(&mut self, ledger: &mut Ledger) -> Result<()> {
        while let Ok(line) = self.lines.recv_timeout(SILENCE_MAX) {
            let line = line?;
            ledger.note(&line);
            ensure!(!matches!(line, Line::Broken(_)), "the child said: {line}");
        }
        Ok(())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // It may have ended already, and then there is nothing to do.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
