//! The power fails at random moments: only what fsync covered is left, and perhaps more than that.
//!
//! The child runs under the recorder of `shim.c`. After its death the durable image is put together as a new data
//! directory, and the next round goes on from there, so that one loss is built on another. Three kinds of loss take
//! turns: exactly what was synced; also some of the pages that were not, since a disk writes when it likes; also names
//! that were not.
//!
//! A restart may come between the death and the loss: what the killed child wrote and did not sync is then still in the
//! page cache, and the next child must not tell anybody of it before it is durable. For such rounds the image is carried
//! from child to child.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    checkers::{Findings, Ledger},
    child,
    dice::Dice,
    plan::{Line, Plan},
    shim::Shim,
    victim::Victim,
};

/// What the rounds did.
#[derive(Debug, Default)]
pub struct Report {
    /// Commits that were acknowledged in all rounds.
    pub acknowledged: usize,
    /// Commits that are there at the end, acknowledged or not.
    pub stored: u64,
    /// Units of 512 to 4,096 bytes that were not synced and reached an image all the same.
    pub stray_units: u64,
}

/// The durable state of a data directory, as the recorder keeps it.
#[derive(Debug)]
pub struct Image {
    data: PathBuf,
    dir: PathBuf,
}

/// What a power loss leaves besides what was synced.
#[derive(Debug, Default)]
pub struct Loss {
    /// Size of the units that a disk writes at once, bytes, and how many in a hundred unsynced ones it wrote.
    pub stray: Option<(usize, u64)>,
    /// Whether directories may be as they were seen last instead of as they were synced.
    pub stray_names: bool,
    /// Stray units so far.
    pub stray_units: u64,
}

enum Entry {
    File { object: PathBuf, current: Option<PathBuf> },
    Dir { inode: u64 },
}

impl Image {
    /// Begins an image: all that the directory holds now is durable.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn begin(data: &Path, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir.join("objects"))?;
        fs::create_dir_all(dir.join("names"))?;
        fs::create_dir_all(dir.join("forgotten"))?;
        let image = Self { data: data.to_owned(), dir: dir.to_owned() };
        image.take(data)?;
        Ok(image)
    }

    fn take(&self, dir: &Path) -> Result<()> {
        let mut listing = String::new();
        for (name, path, metadata) in entries(dir)? {
            let inode = metadata.ino();
            if metadata.is_dir() {
                listing.push_str(&format!("d {inode} {name}\n"));
                self.take(&path)?;
            } else {
                listing.push_str(&format!("f {inode} 0 {name}\n"));
                fs::copy(&path, self.object(inode, 0))?;
            }
        }
        fs::write(self.names(fs::metadata(dir)?.ino()), listing).context("write an image")
    }

    /// What tells the recorder about the image.
    pub fn environment(&self) -> (&'static str, OsString) {
        ("CHAOS_IMAGE", self.dir.clone().into())
    }

    fn object(&self, inode: u64, generation: u64) -> PathBuf {
        self.dir.join("objects").join(format!("{inode}.{generation}"))
    }

    fn names(&self, inode: u64) -> PathBuf {
        self.dir.join("names").join(inode.to_string())
    }

    /// The newest generation of an inode.
    fn newest(&self, inode: u64) -> Option<u64> {
        (0..).take_while(|generation| self.object(inode, *generation).exists()).last()
    }

    /// Makes a directory of what the power loss left. The program must have ended.
    ///
    /// # Errors
    /// The image is not one, or a file cannot be written.
    pub fn restore(&self, into: &Path, loss: &mut Loss, dice: &mut Dice) -> Result<()> {
        let mut current = HashMap::new();
        collect(&self.data, &mut current)?;
        self.restore_dir(fs::metadata(&self.data)?.ino(), into, &current, loss, dice)
    }

    fn restore_dir(
        &self,
        inode: u64,
        into: &Path,
        current: &HashMap<u64, PathBuf>,
        loss: &mut Loss,
        dice: &mut Dice,
    ) -> Result<()> {
        fs::create_dir(into).with_context(|| format!("create {}", into.display()))?;
        let seen = current.get(&inode).filter(|_| loss.stray_names && dice.one_in(2));
        let listing = match seen {
            Some(path) => self.listing_as_seen(path)?,
            None => self.listing_as_synced(inode, current)?,
        };
        for (name, entry) in listing {
            let path = into.join(name);
            match entry {
                Entry::Dir { inode } => self.restore_dir(inode, &path, current, loss, dice)?,
                Entry::File { object, current } => {
                    // A file that the recorder never met has no durable bytes.
                    let mut bytes = if object.exists() { fs::read(object)? } else { Vec::new() };
                    if let (Some((unit, percent)), Some(current)) = (loss.stray, current) {
                        loss.stray_units += stray(&mut bytes, &fs::read(current)?, unit, percent, dice);
                    }
                    fs::write(path, bytes)?;
                }
            }
        }
        Ok(())
    }

    fn listing_as_synced(&self, inode: u64, current: &HashMap<u64, PathBuf>) -> Result<Vec<(String, Entry)>> {
        let path = self.names(inode);
        // A directory that was never synced is durable without its names.
        let text = if path.exists() { fs::read_to_string(&path)? } else { String::new() };
        text.lines()
            .map(|line| {
                Ok(match line.splitn(4, ' ').collect::<Vec<_>>().as_slice() {
                    ["d", inode, name] => ((*name).to_owned(), Entry::Dir { inode: inode.parse()? }),
                    ["f", inode, generation, name] => {
                        let (inode, generation) = (inode.parse()?, generation.parse()?);
                        // The file that has the inode now is this one only if it is of the same generation.
                        let current = current.get(&inode).filter(|_| self.newest(inode) == Some(generation));
                        let (object, current) = (self.object(inode, generation), current.cloned());
                        ((*name).to_owned(), Entry::File { object, current })
                    }
                    _ => bail!("{} has the line {line:?}", path.display()),
                })
            })
            .collect()
    }

    fn listing_as_seen(&self, path: &Path) -> Result<Vec<(String, Entry)>> {
        let listing = entries(path)?.into_iter().map(|(name, path, metadata)| {
            let inode = metadata.ino();
            let object = self.object(inode, self.newest(inode).unwrap_or(0));
            let entry =
                if metadata.is_dir() { Entry::Dir { inode } } else { Entry::File { object, current: Some(path) } };
            (name, entry)
        });
        Ok(listing.collect())
    }
}

/// Name, path and metadata of what a directory holds, by name, so that the dice fall the same way each time.
fn entries(dir: &Path) -> Result<Vec<(String, PathBuf, fs::Metadata)>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name().into_string().ok().context("a name is not UTF-8")?;
        entries.push((name, entry.path(), entry.metadata()?));
    }
    entries.sort_by(|(one, ..), (other, ..)| one.cmp(other));
    Ok(entries)
}

fn collect(dir: &Path, paths: &mut HashMap<u64, PathBuf>) -> Result<()> {
    paths.insert(fs::metadata(dir)?.ino(), dir.to_owned());
    for (_, path, metadata) in entries(dir)? {
        if metadata.is_dir() {
            collect(&path, paths)?;
        } else {
            paths.insert(metadata.ino(), path);
        }
    }
    Ok(())
}

/// Lets some of the units in which the durable bytes differ from the current ones be as they are now.
fn stray(durable: &mut Vec<u8>, current: &[u8], unit: usize, percent: u64, dice: &mut Dice) -> u64 {
    let mut count = 0;
    for (index, now) in current.chunks(unit).enumerate() {
        let from = index * unit;
        let is_same = durable.get(from..from + now.len()) == Some(now);
        if !is_same && dice.within(1..=100) <= percent {
            if durable.len() < from + now.len() {
                durable.resize(from + now.len(), 0);
            }
            if let Some(place) = durable.get_mut(from..from + now.len()) {
                place.copy_from_slice(now);
            }
            count += 1;
        }
    }
    count
}

/// A child under the recorder, its data and the image of them.
#[derive(Debug)]
pub struct Recorded {
    /// The child.
    pub victim: Victim,
    /// What is durable.
    pub image: Image,
}

impl Recorded {
    /// Starts a child on a data directory with more variables than the recorder needs.
    ///
    /// # Errors
    /// It does not start, or its store does not open.
    pub fn start(
        program: &Path,
        shim: &Shim,
        data: &Path,
        plan: Plan,
        ledger: &mut Ledger,
        more: &[(&'static str, OsString)],
    ) -> Result<Self> {
        let image = Image::begin(data, &data.with_extension("image"))?;
        Self::start_on(image, program, shim, plan, ledger, more)
    }

    /// Starts a child on the data of an image that another child left: nothing becomes durable by that.
    ///
    /// # Errors
    /// As `start`.
    pub fn start_on(
        image: Image,
        program: &Path,
        shim: &Shim,
        plan: Plan,
        ledger: &mut Ledger,
        more: &[(&'static str, OsString)],
    ) -> Result<Self> {
        let data = &image.data;
        let mut environment = shim.environment(data)?;
        environment.push(image.environment());
        environment.extend_from_slice(more);
        let mut victim = Victim::start(program, data, plan, &environment)?;
        victim.hear_until(ledger, |line| *line == Line::Ready)?;
        Ok(Self { victim, image })
    }
}

/// How the children of these rounds work.
pub fn plan(life: u64, dice: &mut Dice) -> Plan {
    Plan {
        life,
        seed: dice.within(0..=u64::MAX),
        segment_bytes: 1024 * 1024,
        run_commits: 60,
        writers: dice.within(1..=4),
        depth: dice.within(1..=16),
        bytes_min: 100,
        bytes_max: 64 * 1024,
    }
}

/// Runs the rounds in an empty directory.
///
/// # Errors
/// A promise was broken; the text says the round.
pub fn run(program: &Path, dir: &Path, dice: &mut Dice, rounds: u64) -> Result<Report> {
    let shim = Shim::compile(dir)?;
    let (mut ledger, mut report) = (Ledger::default(), Report::default());
    let mut data = dir.join("0");
    fs::create_dir(&data)?;
    for round in 1..=rounds {
        let mut loss = match round % 3 {
            0 => Loss::default(),
            _ => Loss {
                stray: Some((dice.pick(&[512, 1_024, 4_096]), dice.pick(&[10, 50, 90]))),
                stray_names: round % 3 == 1,
                stray_units: 0,
            },
        };
        let context = format!("round {round} of CHAOS_SEED={} with {loss:?}", dice.seed());
        let plan = plan(round, dice);
        let left = dir.join(round.to_string());
        let findings = Recorded::start(program, &shim, &data, plan, &mut ledger, &[])
            .and_then(|Recorded { victim, image }| {
                victim.work_and_kill(&mut ledger, plan, dice.skewed(1..=200), dice.one_in(2))?;
                image.restore(&left, &mut loss, dice)?;
                check(&left, plan, &ledger)
            })
            .with_context(|| context.clone())?;
        findings.assert_clean(&context)?;
        fs::remove_dir_all(&data)?;
        fs::remove_dir_all(data.with_extension("image"))?;
        data = left;
        report.stray_units += loss.stray_units;
        report.stored = findings.commits;
    }
    report.acknowledged = ledger.acknowledged();
    Ok(report)
}

/// How the children of rounds with a restart work: small segments, so that new names are often on the way, too.
fn small_plan(life: u64, dice: &mut Dice) -> Plan {
    Plan { segment_bytes: 64 * 1024, bytes_max: 4 * 1024, ..plan(life, dice) }
}

/// Runs rounds in an empty directory: a child is killed in the middle of its appends, a second one goes on with what
/// the page cache holds, and then the power fails.
///
/// # Errors
/// Something that either child was told of or showed is gone; the text says the round.
pub fn run_with_restarts(program: &Path, dir: &Path, dice: &mut Dice, rounds: u64) -> Result<Report> {
    let shim = Shim::compile(dir)?;
    let (mut ledger, mut report) = (Ledger::default(), Report::default());
    let mut data = dir.join("0");
    fs::create_dir(&data)?;
    for round in 1..=rounds {
        let left = dir.join(round.to_string());
        let context = format!("round {round} of CHAOS_SEED={}", dice.seed());
        report.stored = restart_and_lose((program, &shim), &data, &left, (round, &mut ledger), dice)
            .with_context(|| context.clone())?;
        fs::remove_dir_all(&data)?;
        fs::remove_dir_all(data.with_extension("image"))?;
        data = left;
    }
    report.acknowledged = ledger.acknowledged();
    Ok(report)
}

fn restart_and_lose(
    (program, shim): (&Path, &Shim),
    data: &Path,
    left: &Path,
    (round, ledger): (u64, &mut Ledger),
    dice: &mut Dice,
) -> Result<u64> {
    let plan = small_plan(2 * round, dice);
    let Recorded { victim, image } = Recorded::start(program, shim, data, plan, ledger, &[])?;
    victim.work_and_kill(ledger, plan, dice.skewed(1..=50), false)?;
    let plan = small_plan(2 * round + 1, dice);
    let Recorded { mut victim, image } = Recorded::start_on(image, program, shim, plan, ledger, &[])?;
    let Line::Head(head) = victim.order(ledger, "head")? else { bail!("the child did not say its head") };
    if dice.one_in(2) {
        victim.kill(ledger)?;
    } else {
        victim.work_and_kill(ledger, plan, dice.skewed(1..=50), dice.one_in(2))?;
    }
    image.restore(left, &mut Loss::default(), dice)?;
    let findings = check(left, plan, ledger)?;
    findings.assert_clean("after a restart")?;
    ensure!(findings.commits >= head, "the second child showed {head} commits, {} are left", findings.commits);
    Ok(findings.commits)
}

/// Opens what is left as any program would, and compares.
///
/// # Errors
/// It does not open, or a read fails.
pub fn check(dir: &Path, plan: Plan, ledger: &Ledger) -> Result<Findings> {
    ledger.check(child::open(dir, &plan).context("open what the power loss left")?.as_ref())
}

/// What a disk that lies about its syncs lost.
#[derive(Debug)]
pub struct Lie {
    /// Commits that were acknowledged.
    pub acknowledged: usize,
    /// Those of them that are not there.
    pub missing: usize,
}

/// The same with a disk that ignores all syncs but the first few.
///
/// # Errors
/// The lie was not noticed.
pub fn lose_with_a_lying_disk(program: &Path, dir: &Path, dice: &mut Dice) -> Result<Lie> {
    let shim = Shim::compile(dir)?;
    let (data, left) = (dir.join("data"), dir.join("left"));
    fs::create_dir(&data)?;
    let mut ledger = Ledger::default();
    // One segment is enough for all, so that what is left opens, and only facts are missing. Groups are so small that
    // the honest syncs, which begin with those of opening, end long before the appends do.
    let plan = Plan { segment_bytes: 64 * 1024 * 1024, writers: 2, depth: 4, ..plan(1, dice) };
    let lie = ("CHAOS_LIE_AFTER", OsString::from("40"));
    let Recorded { victim, image } = Recorded::start(program, &shim, &data, plan, &mut ledger, &[lie])?;
    victim.work_and_kill(&mut ledger, plan, 600, true)?;
    image.restore(&left, &mut Loss::default(), dice)?;
    let findings = check(&left, plan, &ledger)?;
    ensure!(findings.wrong.is_empty(), "more is wrong than missing commits: {:?}", findings.wrong);
    ensure!(!findings.missing.is_empty(), "a disk that forgot its syncs lost none of {}", ledger.acknowledged());
    Ok(Lie { acknowledged: ledger.acknowledged(), missing: findings.missing.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_an_untouched_directory_is_that_directory() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir_all(data.join("log")).unwrap();
        fs::write(data.join("log/one two"), b"bytes").unwrap();
        let image = Image::begin(&data, &dir.path().join("image")).unwrap();
        // What changes without the recorder is not durable.
        fs::write(data.join("log/one two"), b"other").unwrap();
        fs::write(data.join("log/new"), b"new").unwrap();
        let (left, mut dice) = (dir.path().join("left"), Dice::new(1));
        image.restore(&left, &mut Loss::default(), &mut dice).unwrap();
        assert_eq!(fs::read(left.join("log/one two")).unwrap(), b"bytes");
        assert!(!left.join("log/new").exists());
    }

    #[test]
    fn stray_units_make_the_bytes_a_mixture_of_both() {
        let (mut dice, current) = (Dice::new(3), vec![1; 100_000]);
        let mut durable = vec![0; 50_000];
        let count = stray(&mut durable, &current, 512, 50, &mut dice);
        assert!((50..150).contains(&count), "{count}");
        assert!(durable.len() > 90_000 && durable.contains(&0) && durable.contains(&1));
        assert!(durable.chunks(512).all(|unit| unit.iter().all(|byte| Some(byte) == unit.first())));
    }
}
