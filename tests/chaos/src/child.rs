//! The program that suffers: opens a store, appends from several threads in pipelines, and says what it was told.
//!
//! Commands on standard input: `run` (append until killed), `append <n>` (each thread appends n commits, then `done`),
//! `head`, `health`, `recover` (wait until appends are accepted), `close`. Its end of input is `close`.

use std::{
    collections::VecDeque,
    io::{BufRead, Write},
    path::Path,
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result, bail};
use events_journal::{Appended, Direction, EventLog, Health, Receipt, contract::settle};
use events_journal_sled::{LocalStore, Options};
use events_model::{StreamId, TenantId, Version};

use crate::{
    dice::Dice,
    plan::{Line, Plan, Shape, word},
};

const STREAMS_PER_WRITER: u64 = 2;
const EVENTS_MAX: u64 = 4;

/// Tells the program by being there that its store is a copy of another log.
pub const COPY: &str = "CHAOS_COPY";

/// Opens a store as the plan says.
///
/// # Errors
/// It does not open.
pub fn open(dir: &Path, plan: &Plan) -> Result<Arc<dyn EventLog>> {
    let run_commits = usize::try_from(plan.run_commits)?;
    let options = Options { segment_bytes: plan.segment_bytes, run_commits };
    let is_copy = std::env::var_os(COPY).is_some();
    Ok(Arc::new(if is_copy { LocalStore::open_copy(dir, options)? } else { LocalStore::open(dir, options)? }))
}

/// Runs the program until `close`.
///
/// # Errors
/// A command is unknown, a read fails, or a promise was broken. A store that does not open is said as a line, no error.
pub fn run(dir: &Path, plan: Plan) -> Result<()> {
    let log = match open(dir, &plan) {
        Ok(log) => log,
        Err(error) => {
            return say(&Line::NotOpen(format!("{error:#}")));
        }
    };
    let mut writers: Vec<_> = (0..plan.writers).map(|number| Writer::new(number, plan)).collect();
    for writer in &writers {
        writer.retry_newest(&log)?;
    }
    say(&Line::Ready)?;
    for command in std::io::stdin().lock().lines() {
        let command = command?;
        match command.split_once(' ').unwrap_or((&command, "")) {
            ("run", _) => append_all(&mut writers, &log, u64::MAX)?,
            ("append", count) => append_all(&mut writers, &log, count.parse().context("read a count")?)?,
            ("head", _) => say(&Line::Head(log.head_position().0))?,
            ("health", _) => say(&Line::Health(health(&log.watch_health().borrow())))?,
            ("recover", _) => {
                let mut health = log.watch_health();
                settle(health.wait_for(|health| *health == Health::Accepting)).context("watch the health")?;
                say(&Line::Health("accepting".to_owned()))?;
            }
            ("close", _) => return Ok(()),
            _ => bail!("unknown command {command:?}"),
        }
    }
    Ok(())
}

fn append_all(writers: &mut [Writer], log: &Arc<dyn EventLog>, count: u64) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = writers.iter_mut().map(|writer| scope.spawn(move || writer.append(log, count))).collect();
        for thread in threads {
            match thread.join() {
                Ok(result) => result?,
                Err(_) => bail!("a writer panicked"),
            }
        }
        Ok(())
    })?;
    say(&Line::Done)
}

fn health(health: &Health) -> String {
    match health {
        Health::Accepting => "accepting".to_owned(),
        Health::Refusing(refusal) => word(refusal).to_owned(),
    }
}

fn say(line: &Line) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(&line.to_bytes()?).and_then(|()| out.flush()).context("write to the parent")
}

/// One thread: it alone appends to its streams, always on top of what is not durable yet.
#[derive(Debug)]
struct Writer {
    number: u64,
    plan: Plan,
    dice: Dice,
    attempts: u64,
}

struct Sent {
    stream: StreamId,
    version: Version,
    shape: Shape,
    receipt: Receipt,
}

impl Writer {
    fn new(number: u64, plan: Plan) -> Self {
        Self { number, plan, dice: Dice::new(plan.seed ^ (number + 1)), attempts: 0 }
    }

    fn stream(&self, index: u64) -> Result<StreamId> {
        Ok(StreamId::tenant(&TenantId::new(&format!("w-{}-{index}", self.number))?))
    }

    /// A client that lost its answer asks again: the newest commit of each stream must be known at its place.
    fn retry_newest(&self, log: &Arc<dyn EventLog>) -> Result<()> {
        for index in 0..STREAMS_PER_WRITER {
            let stream = self.stream(index)?;
            let Some(newest) = log.read_stream(&stream, Version(u64::MAX), Direction::Backward, 1)?.pop() else {
                continue;
            };
            let view = newest.view()?;
            let commit = view.commit_id.parse::<Shape>()?.build(&stream, Version(view.first_version))?;
            let expected = Appended { position: newest.position, version: view.last_version(), duplicate: true };
            let answer = settle(log.append(Version(view.first_version - 1), commit));
            if answer.as_ref().ok() != Some(&expected) {
                let text =
                    format!("a retry of {} of {stream} was answered {answer:?}, not {expected:?}", view.commit_id);
                say(&Line::Broken(text.clone()))?;
                bail!(text);
            }
            let (stream, version, id) = (stream.to_string(), view.first_version, view.commit_id.to_owned());
            say(&Line::Acknowledged { stream, version, id, position: newest.position.0 })?;
        }
        Ok(())
    }

    fn heads(&self, log: &Arc<dyn EventLog>) -> Result<Vec<(StreamId, Version)>> {
        (0..STREAMS_PER_WRITER)
            .map(|index| {
                let stream = self.stream(index)?;
                let head = log.head(&stream)?;
                Ok((stream, head))
            })
            .collect()
    }

    fn append(&mut self, log: &Arc<dyn EventLog>, count: u64) -> Result<()> {
        let mut pipeline = VecDeque::new();
        let mut heads = self.heads(log)?;
        for _ in 0..count {
            let index = usize::try_from(self.dice.within(0..=STREAMS_PER_WRITER - 1))?;
            let shape = self.shape();
            if let Some((stream, head)) = heads.get_mut(index) {
                let (stream, version) = (stream.clone(), head.next());
                let receipt = log.append(*head, shape.build(&stream, version)?);
                *head = head.plus(Version(shape.events));
                pipeline.push_back(Sent { stream, version, shape, receipt });
            }
            let mut failed = false;
            // After a failure nothing new is built on what is on the way: all of it is answered, then re-read.
            while pipeline.len() as u64 >= self.plan.depth || (failed && !pipeline.is_empty()) {
                failed |= !answer(pipeline.pop_front())?;
            }
            if failed {
                heads = self.heads(log)?;
            }
        }
        while !pipeline.is_empty() {
            answer(pipeline.pop_front())?;
        }
        Ok(())
    }

    fn shape(&mut self) -> Shape {
        self.attempts += 1;
        Shape {
            life: self.plan.life,
            writer: self.number,
            attempt: self.attempts,
            events: self.dice.within(1..=EVENTS_MAX),
            bytes: self.dice.skewed(self.plan.bytes_min..=self.plan.bytes_max),
        }
    }
}

/// Waits for an answer and passes it on; false = the append failed.
fn answer(sent: Option<Sent>) -> Result<bool> {
    let Some(Sent { stream, version, shape, receipt }) = sent else { return Ok(true) };
    match settle(receipt) {
        Ok(Appended { position, duplicate: false, .. }) => {
            let (stream, id) = (stream.to_string(), shape.to_string());
            say(&Line::Acknowledged { stream, version: version.0, id, position: position.0 })?;
            Ok(true)
        }
        Ok(Appended { duplicate: true, .. }) => {
            say(&Line::Broken(format!("{shape} of {stream} is new and was called a duplicate")))?;
            Ok(true)
        }
        Err(error) => {
            say(&Line::failed(&stream, &shape, &error))?;
            Ok(false)
        }
    }
}
