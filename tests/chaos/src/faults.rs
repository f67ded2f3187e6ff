//! Disks that fill, turn read-only or fail, and directories that vanish, under a store that goes on running.
//!
//! What must hold: every append is answered, with the right word; nothing acknowledged is lost and nothing refused is
//! there; when the fault is over the store goes on by itself, in the same process; after a restart all is there.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    checkers::Ledger,
    child::COPY,
    dice::Dice,
    plan::{Line, Plan},
    power::{self, Image, Loss, Recorded},
    shim::{Fault, FaultSwitch, Shim},
    victim::Victim,
};

/// Most times a store is asked to append before it must have met a disk that does not grow.
const ORDERS_UNTIL_FULL_MAX: usize = 200;

/// A child, what it was told, and a switch for the faults of its disk.
#[derive(Debug)]
pub struct Scene {
    program: PathBuf,
    data: PathBuf,
    shim: Shim,
    switch: FaultSwitch,
    plan: Plan,
    ledger: Ledger,
    /// The store is a copy, which syncs behind its answers.
    is_copy: bool,
}

/// What deaths of failed syncs did.
#[derive(Debug, Default)]
pub struct Deaths {
    /// Children that died in the middle of their appends.
    pub while_appending: usize,
    /// Those of them that left commits of which nobody was told and which the next child showed.
    pub forgotten: usize,
    /// Children that died before their store was open.
    pub while_opening: usize,
    /// Commits that were acknowledged.
    pub acknowledged: usize,
}

impl Scene {
    /// A scene in an empty directory.
    ///
    /// # Errors
    /// The shim does not compile.
    pub fn new(program: &Path, dir: &Path, dice: &mut Dice) -> Result<Self> {
        let data = dir.join("data");
        fs::create_dir(&data)?;
        Ok(Self {
            program: program.to_owned(),
            shim: Shim::compile(dir)?,
            switch: FaultSwitch::new(dir),
            plan: Plan {
                life: 1,
                seed: dice.within(0..=u64::MAX),
                segment_bytes: 256 * 1024,
                run_commits: 100,
                writers: 3,
                depth: dice.within(1..=16),
                bytes_min: 50,
                bytes_max: 5_000,
            },
            data,
            ledger: Ledger::default(),
            is_copy: false,
        })
    }

    fn environment(&self) -> Result<Vec<(&'static str, OsString)>> {
        let mut environment = self.shim.environment(&self.data)?;
        environment.extend(self.wishes());
        Ok(environment)
    }

    /// What children are told beside their data directory.
    fn wishes(&self) -> Vec<(&'static str, OsString)> {
        let copy = self.is_copy.then(|| (COPY, "1".into()));
        [Some(self.switch.environment()), copy].into_iter().flatten().collect()
    }

    fn start(&mut self) -> Result<Victim> {
        self.plan.life += 1;
        let mut victim = Victim::start(&self.program, &self.data, self.plan, &self.environment()?)?;
        victim.hear_until(&mut self.ledger, |line| *line == Line::Ready)?;
        Ok(victim)
    }

    /// Lets each writer append `count` commits; gives how many were acknowledged.
    fn append(&mut self, victim: &mut Victim, count: u64) -> Result<usize> {
        let before = self.ledger.acknowledged();
        victim.order(&mut self.ledger, &format!("append {count}"))?;
        Ok(self.ledger.acknowledged() - before)
    }

    fn assert_appends_succeed(&mut self, victim: &mut Victim) -> Result<()> {
        let expected = usize::try_from(self.plan.writers * 20)?;
        let acknowledged = self.append(victim, 20)?;
        let refusals = self.ledger.refusals();
        ensure!(acknowledged == expected, "{acknowledged} of {expected} appends succeeded, refusals {refusals:?}");
        Ok(())
    }

    /// Appends until the fault is met; then all appends are refused with this word, and the health says it, too.
    fn assert_appends_fail(&mut self, victim: &mut Victim, fault: Fault, word: &str) -> Result<()> {
        let before = self.ledger.refusals().get(word).copied();
        for order in 0.. {
            let acknowledged = self.append(victim, 10)?;
            ensure!(acknowledged == 0 || fault == Fault::NoGrowth, "{acknowledged} appends succeeded under {fault:?}");
            if self.ledger.refusals().get(word).copied() != before {
                break;
            }
            ensure!(order < ORDERS_UNTIL_FULL_MAX, "no append was refused as {word:?}: {:?}", self.ledger.refusals());
        }
        ensure!(self.append(victim, 5)? == 0, "an append succeeded after the fault was met");
        let health = victim.order(&mut self.ledger, "health")?;
        ensure!(health == Line::Health(word.to_owned()), "under {fault:?} the child said: {health}");
        Ok(())
    }

    fn recover(&mut self, victim: &mut Victim) -> Result<()> {
        let health = victim.order(&mut self.ledger, "recover")?;
        ensure!(health == Line::Health("accepting".to_owned()), "after the fault the child said: {health}");
        self.assert_appends_succeed(victim)
    }

    /// Gives how many commits are there.
    fn check(&self, context: &str) -> Result<u64> {
        let findings = power::check(&self.data, self.plan, &self.ledger)?;
        findings.assert_clean(context)?;
        Ok(findings.commits)
    }

    /// What the child shows to readers.
    fn head(&mut self, victim: &mut Victim) -> Result<u64> {
        let Line::Head(head) = victim.order(&mut self.ledger, "head")? else { bail!("the child did not say its head") };
        Ok(head)
    }

    /// A fault comes and goes several times under one process, which is then killed or closed, and once more.
    ///
    /// # Errors
    /// A promise was broken.
    pub fn survives(&mut self, fault: Fault, word: &str, dice: &mut Dice) -> Result<&Ledger> {
        for life in 1..=2 {
            let mut victim = self.start()?;
            self.assert_appends_succeed(&mut victim)?;
            for time in 1..=3 {
                let context = || format!("{fault:?} for the {time}. time in life {life}, CHAOS_SEED={}", dice.seed());
                self.switch.begin(fault)?;
                self.assert_appends_fail(&mut victim, fault, word).with_context(context)?;
                self.switch.end()?;
                self.recover(&mut victim).with_context(context)?;
            }
            // Half of the lives end while the disk is still failing.
            if dice.one_in(2) {
                self.switch.begin(fault)?;
                self.append(&mut victim, 3)?;
                victim.kill(&mut self.ledger)?;
                self.switch.end()?;
            } else {
                victim.close(&mut self.ledger)?;
            }
            self.check(&format!("after life {life} with {fault:?}"))?;
        }
        Ok(&self.ledger)
    }

    /// A store that is opened while its disk fails opens or says why not, and nothing is lost either way.
    ///
    /// # Errors
    /// It crashed, or something is lost.
    pub fn opens_or_says_why_not(&mut self, fault: Fault) -> Result<String> {
        let mut victim = self.start()?;
        self.assert_appends_succeed(&mut victim)?;
        // Killed, so that the next one has a recovery to do.
        victim.kill(&mut self.ledger)?;
        self.switch.begin(fault)?;
        let answer = match self.start() {
            Ok(victim) => {
                drop(victim);
                "it opened".to_owned()
            }
            Err(error) => format!("{error:#}"),
        };
        self.switch.end()?;
        ensure!(answer == "it opened" || answer.contains("notopen"), "opening under {fault:?}: {answer}");
        self.check(&format!("after opening under {fault:?}"))?;
        Ok(answer)
    }

    /// The directory is deleted under the store: nothing is acknowledged any more, nothing is made anew.
    ///
    /// # Errors
    /// A promise was broken.
    pub fn survives_a_deleted_directory(&mut self) -> Result<()> {
        let mut victim = self.start()?;
        self.assert_appends_succeed(&mut victim)?;
        // The store may create a file between two steps of the deletion.
        while self.data.exists() {
            fs::remove_dir_all(&self.data).ok();
        }
        for _ in 0..3 {
            ensure!(self.append(&mut victim, 10)? == 0, "an append into a deleted directory was acknowledged");
        }
        ensure!(self.ledger.refusals().contains_key("removed"), "the refusals are {:?}", self.ledger.refusals());
        let health = victim.order(&mut self.ledger, "health")?;
        ensure!(health == Line::Health("removed".to_owned()), "the child said: {health}");
        ensure!(!self.data.join("log").exists(), "the store made a new log under its old state");
        victim.close(&mut self.ledger)
    }

    /// The directory is moved away and back: whatever was acknowledged meanwhile is there, and it goes on.
    ///
    /// # Errors
    /// A promise was broken.
    pub fn survives_a_moved_directory(&mut self) -> Result<()> {
        let mut victim = self.start()?;
        self.assert_appends_succeed(&mut victim)?;
        let away = self.data.with_extension("away");
        fs::rename(&self.data, &away)?;
        for _ in 0..20 {
            self.append(&mut victim, 10)?;
        }
        fs::rename(&away, &self.data)?;
        self.recover(&mut victim)?;
        victim.kill(&mut self.ledger)?;
        self.check("after the directory came back")?;
        Ok(())
    }

    /// Now and then a sync fails, and whoever asks first is told; in the end the power fails: whatever was acknowledged,
    /// also in between, was really written.
    ///
    /// # Errors
    /// A promise was broken.
    pub fn survives_flaky_syncs(&mut self, dir: &Path, dice: &mut Dice, rounds: u64) -> Result<&Ledger> {
        // Segments that are large for their contents are grown in the background while they are written to.
        self.plan.segment_bytes = 32 * 1024 * 1024;
        self.plan.bytes_max = 64 * 1024;
        for round in 1..=rounds {
            let (mut victim, image) = self.start_recorded()?;
            self.assert_appends_succeed(&mut victim)?;
            self.switch.begin(Fault::SyncFlaky)?;
            for _ in 0..dice.within(1..=8) {
                self.append(&mut victim, dice.within(1..=100))?;
                // It need not accept at this moment, but it must have got up again each time.
                victim.order(&mut self.ledger, "recover")?;
            }
            self.switch.end()?;
            self.lose_power(victim, &image, &dir.join(format!("left-{round}")), dice)?;
        }
        Ok(&self.ledger)
    }

    fn start_recorded(&mut self) -> Result<(Victim, Image)> {
        self.start_recorded_on(Image::begin(&self.data, &self.data.with_extension("image"))?)
    }

    /// Starts a child on what another one left.
    fn start_recorded_on(&mut self, image: Image) -> Result<(Victim, Image)> {
        self.plan.life += 1;
        let more = self.wishes();
        let Recorded { victim, image } =
            Recorded::start_on(image, &self.program, &self.shim, self.plan, &mut self.ledger, &more)?;
        Ok((victim, image))
    }

    /// Kills the child and goes on with what was durable; gives how many commits that is.
    fn lose_power(&mut self, victim: Victim, image: &Image, left: &Path, dice: &mut Dice) -> Result<u64> {
        victim.kill(&mut self.ledger)?;
        image.restore(left, &mut Loss::default(), dice)?;
        self.data = left.to_owned();
        self.check(&format!("in {} of CHAOS_SEED={}", left.display(), dice.seed()))
    }

    /// A sync fails and the kernel forgets what it should have written, although reads still show it; then it works
    /// again, and then the power fails: whatever was acknowledged after the failed sync must have been written anew.
    ///
    /// # Errors
    /// A promise was broken.
    pub fn survives_forgotten_pages(&mut self, dir: &Path, dice: &mut Dice, rounds: u64) -> Result<&Ledger> {
        for round in 1..=rounds {
            let context = format!("round {round} of CHAOS_SEED={}", dice.seed());
            let (mut victim, image) = self.start_recorded()?;
            self.append(&mut victim, dice.within(1..=30))?;
            self.switch.begin(Fault::SyncFails)?;
            self.assert_appends_fail(&mut victim, Fault::SyncFails, "disk").with_context(|| context.clone())?;
            self.switch.end()?;
            self.recover(&mut victim).with_context(|| context.clone())?;
            self.lose_power(victim, &image, &dir.join(format!("left-{round}")), dice)?;
        }
        Ok(&self.ledger)
    }

    /// The same with a copy, which has shown and acknowledged a group before its sync fails: it never shows less than
    /// before, and whoever waits until it accepts again has everything on the disk.
    ///
    /// # Errors
    /// A promise was broken.
    pub fn copy_survives_forgotten_pages(&mut self, dir: &Path, dice: &mut Dice, rounds: u64) -> Result<&Ledger> {
        self.is_copy = true;
        for round in 1..=rounds {
            let context = format!("round {round} of CHAOS_SEED={}", dice.seed());
            let (mut victim, image) = self.start_recorded()?;
            self.append(&mut victim, dice.within(1..=30))?;
            for _ in 0..dice.within(1..=3) {
                self.switch.begin(Fault::SyncFails)?;
                let before = self.ledger.refusals().get("disk").copied();
                // One group is acknowledged; its sync fails behind that.
                while self.ledger.refusals().get("disk").copied() == before {
                    self.append(&mut victim, dice.within(1..=20)).with_context(|| context.clone())?;
                }
                let shown = self.head(&mut victim)?;
                self.switch.end()?;
                let health = victim.order(&mut self.ledger, "recover")?;
                ensure!(health == Line::Health("accepting".to_owned()), "after the fault the child said: {health}");
                let still = self.head(&mut victim)?;
                ensure!(still >= shown, "readers were shown {shown} commits and now {still}, {context}");
            }
            self.lose_power(victim, &image, &dir.join(format!("left-{round}")), dice)?;
        }
        Ok(&self.ledger)
    }

    /// A child dies of a failed sync before it can do anything about the commits that it should have covered, so that
    /// the next one finds them in a page cache that takes them for clean; then the power fails: what any child showed
    /// or acknowledged must be there.
    ///
    /// # Errors
    /// A promise was broken.
    pub fn survives_deaths_of_failed_syncs(&mut self, dir: &Path, dice: &mut Dice, rounds: u64) -> Result<Deaths> {
        let mut deaths = Deaths::default();
        for round in 1..=rounds {
            // Where segments end often, many die of the sync of a new one, before their commits were written.
            self.plan.segment_bytes = dice.pick(&[64 * 1024, 1024 * 1024, 1024 * 1024]);
            self.plan.seed = dice.within(0..=u64::MAX);
            let left = dir.join(format!("left-{round}"));
            self.die_and_lose_power(&left, &mut deaths, dice)
                .with_context(|| format!("round {round} of CHAOS_SEED={}", dice.seed()))?;
        }
        deaths.acknowledged = self.ledger.acknowledged();
        Ok(deaths)
    }

    fn die_and_lose_power(&mut self, left: &Path, deaths: &mut Deaths, dice: &mut Dice) -> Result<()> {
        let (mut victim, mut image) = self.start_recorded()?;
        for _ in 0..dice.within(1..=3) {
            self.append(&mut victim, dice.within(0..=20))?;
            let told = self.head(&mut victim)?;
            self.switch.begin(Fault::SyncKills)?;
            victim.tell("append 1000")?;
            // One that finds no room for a new segment has nothing to sync.
            deaths.while_appending += usize::from(victim.see_killed(&mut self.ledger)?);
            if dice.one_in(3) {
                deaths.while_opening += usize::from(self.die_while_opening(&image)?);
            }
            self.switch.end()?;
            (victim, image) = self.start_recorded_on(image)?;
            let shown = self.head(&mut victim)?;
            ensure!(shown >= told, "readers were shown {told} commits and now {shown}");
            deaths.forgotten += usize::from(shown > told);
        }
        // The last child may only have been read from, or build on what it found.
        if dice.one_in(2) {
            self.append(&mut victim, dice.within(1..=20))?;
        }
        let shown = self.head(&mut victim)?;
        let stored = self.lose_power(victim, &image, left, dice)?;
        ensure!(stored >= shown, "the last child showed {shown} commits, {stored} are left");
        Ok(())
    }

    /// A child whose disk still fails is killed by the first sync of its recovery; false = all that it would sync was
    /// forgotten before, so that it lived to say that its store does not open.
    fn die_while_opening(&mut self, image: &Image) -> Result<bool> {
        self.plan.life += 1;
        let mut environment = self.environment()?;
        environment.push(image.environment());
        Victim::start(&self.program, &self.data, self.plan, &environment)?.see_killed(&mut self.ledger)
    }
}
