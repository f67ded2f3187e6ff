//! Goal: whatever nodes, network and servers do, no two nodes decide for one shard, and in quiet times every shard has
//! the owner it should have.
//!
//! Method: the rules of `core` on a simulated bucket, with requests and answers that are late, lost or both, nodes that
//! stand still, are killed, leave, come back, and clocks that run at different speeds. One seed decides everything.

use std::{
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::Arc,
};

use parking_lot::RwLock;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    super::{
        assign::desired_owner,
        limit::WAIT_PART,
        record::{Incarnation, Key, NodeState},
        table::{Mine, Nanos, View},
    },
    Action, Core, Failure, Found, Input, Profile, Standing, Value, Write, together,
};

const MS: Nanos = 1_000_000;
pub(super) const TTL: Nanos = 900 * MS;
/// How long a node waits for an answer.
const WAIT: Nanos = TTL / WAIT_PART as Nanos;
pub(super) const SHARDS: u32 = 16;
const SEEDS: u64 = 300;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// The bucket as its leader sees it.
#[derive(Default)]
struct Bucket {
    last: u64,
    keys: BTreeMap<String, (u64, Found)>,
}

impl Bucket {
    fn write(&mut self, write: &Write) -> Result<u64, Failure> {
        let key = write.key.to_string();
        if self.keys.get(&key).map_or(0, |(revision, _)| *revision) != write.expected {
            return Err(Failure::Revision);
        }
        self.last += 1;
        let found = Found { revision: self.last, key: write.key.clone(), value: Some(write.value.clone()) };
        self.keys.insert(key, (self.last, found));
        Ok(self.last)
    }

    fn after(&self, position: u64) -> Option<Found> {
        let later = self.keys.values().filter(|(revision, _)| *revision > position);
        later.min_by_key(|(revision, _)| *revision).map(|(_, found)| found.clone())
    }
}

/// What happens at a moment.
#[derive(Debug, Clone)]
enum Event {
    Input(usize, Input),
    /// A write reaches the bucket; the second is when its answer reaches the node, if it does.
    Request(usize, Write, Option<Nanos>),
    /// One of the questions of a poll reaches the bucket: for what lies behind a sequence.
    Question(u64, usize, u64),
    /// All answers to the questions of a poll have reached the node, or are waited for no longer.
    Answers(usize, u64),
    Fault,
}

struct Timed(Nanos, u64, Event);

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Timed {}
impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.0, other.1).cmp(&(self.0, self.1))
    }
}

pub(super) struct Node {
    name: &'static str,
    pub(super) core: Core,
    pub(super) mine: Arc<Mine>,
    view: Arc<RwLock<View>>,
    /// How fast its clock runs, parts of 10,000, and where it began.
    speed: u64,
    offset: Nanos,
    /// It stands still until then.
    stalled_until: Nanos,
    alive: bool,
}

impl Node {
    pub(super) fn clock(&self, now: Nanos) -> Nanos {
        self.offset + now / 10_000 * self.speed
    }
}

pub(super) struct World {
    rng: StdRng,
    now: Nanos,
    count: u64,
    events: BinaryHeap<Timed>,
    bucket: Bucket,
    pub(super) nodes: Vec<Node>,
    /// Chance in 100 that a request or an answer is lost, or late by up to three leases.
    trouble: u32,
    /// What the questions of each poll found so far.
    polls: BTreeMap<u64, Vec<Result<Option<Found>, Failure>>>,
    /// No request reaches the bucket until then.
    away_until: Nanos,
    pub(super) faults: bool,
    takes: u64,
    /// Most questions that a node asked at once.
    asked: u64,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let trouble = [0, 1, 5, 20][rng.random_range(0..4)];
        let bucket = Bucket::default();
        let (now, count, events, nodes, polls) = (0, 0, BinaryHeap::new(), Vec::new(), BTreeMap::new());
        Self { rng, now, count, events, bucket, nodes, trouble, polls, away_until: 0, faults: true, takes: 0, asked: 0 }
    }

    fn at(&mut self, time: Nanos, event: Event) {
        self.count += 1;
        self.events.push(Timed(time, self.count, event));
    }

    pub(super) fn join(&mut self, name: &'static str) {
        let profile = Profile {
            node: name.to_owned(),
            incarnation: Incarnation(self.rng.random()),
            address: String::new(),
            version: String::new(),
            started_at_us: 0,
            shards: SHARDS,
            ttl: TTL,
            poll_every: TTL / 9,
        };
        let (mine, view) = (Arc::new(Mine::new(SHARDS)), Arc::new(RwLock::new(View::new(SHARDS))));
        self.nodes.push(Node {
            name,
            core: Core::new(profile, Arc::clone(&mine), Arc::clone(&view)),
            mine,
            view,
            speed: self.rng.random_range(9_700..=10_300),
            offset: self.rng.random_range(0..3_600_000 * MS),
            stalled_until: 0,
            alive: true,
        });
        self.at(self.now, Event::Input(self.nodes.len() - 1, Input::Tick));
    }

    fn alive(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|index| self.nodes[*index].alive).collect()
    }

    fn fault(&mut self) {
        let alive = self.alive();
        let names: BTreeSet<_> = alive.iter().map(|index| self.nodes[*index].name).collect();
        let some = |rng: &mut StdRng| alive.get(rng.random_range(0..alive.len().max(1))).copied();
        match (self.rng.random_range(0..10), some(&mut self.rng)) {
            (0..=2, _) => {
                let name = NAMES[self.rng.random_range(0..NAMES.len())];
                if !names.contains(name) {
                    self.join(name);
                }
            }
            (3 | 4, Some(index)) => self.nodes[index].alive = false,
            (5 | 6, Some(index)) => self.nodes[index].stalled_until = self.now + self.rng.random_range(0..3 * TTL),
            (7, Some(index)) => {
                self.at(self.now, Event::Input(index, Input::Drain));
                if self.rng.random_bool(0.5) {
                    let back = self.now + self.rng.random_range(0..2 * TTL);
                    self.at(back, Event::Input(index, Input::Resume));
                }
            }
            (8, Some(index)) => self.at(self.now, Event::Input(index, Input::Leave)),
            _ => self.away_until = self.now + self.rng.random_range(0..2 * TTL),
        }
        let next = self.now + self.rng.random_range(0..2 * TTL);
        self.at(next, Event::Fault);
    }

    fn delay(&mut self) -> Option<Nanos> {
        if !self.faults {
            return Some(MS);
        }
        if self.rng.random_range(0..100) < self.trouble {
            let late = self.rng.random_range(0..3 * TTL);
            return self.rng.random_bool(0.5).then_some(late);
        }
        Some(self.rng.random_range(MS / 10..5 * MS))
    }

    fn perform(&mut self, index: usize, action: Action) {
        match action {
            Action::Poll { after, questions } => {
                let (poll, mut last) = (self.count, self.now);
                self.asked = self.asked.max(questions);
                self.polls.insert(poll, vec![Err(Failure::Unknown); usize::try_from(questions).unwrap()]);
                for (number, behind) in (after..after + questions).enumerate() {
                    let (there, answered) = self.trip();
                    if let Some(at) = there.filter(|_| answered.is_some()) {
                        self.at(at, Event::Question(poll, number, behind));
                    }
                    last = last.max(answered.unwrap_or(self.now + WAIT));
                }
                self.at(last, Event::Answers(index, poll));
            }
            Action::Write(write) => {
                let (there, answered) = self.trip();
                if let Some(at) = there {
                    self.at(at, Event::Request(index, write.clone(), answered));
                }
                if answered.is_none() {
                    let unknown = Input::Wrote(write, Err(Failure::Unknown));
                    self.at(self.now + WAIT, Event::Input(index, unknown));
                }
            }
            Action::Hint => {
                for other in 0..self.nodes.len() {
                    if let Some(delay) = self.delay() {
                        self.at(self.now + delay, Event::Input(other, Input::Hint));
                    }
                }
            }
            Action::Taken { .. } => self.takes += 1,
            Action::Lost { shard, .. } => {
                let busy = self.rng.random_range(0..20 * MS);
                self.at(self.now + busy, Event::Input(index, Input::Acknowledged { shard }));
            }
        }
    }

    /// When a request reaches the bucket, and when the node has its answer, if they do and that is in time.
    fn trip(&mut self) -> (Option<Nanos>, Option<Nanos>) {
        let (there, back) = (self.delay(), self.delay());
        let there = there.map(|there| self.now + there);
        let answered = there.zip(back).map(|(there, back)| there + back);
        (there, answered.filter(|at| *at < self.now + WAIT))
    }

    fn request(&mut self, index: usize, write: Write, answered: Option<Nanos>) {
        let away = self.now < self.away_until;
        let result = if away { Err(Failure::Unknown) } else { self.bucket.write(&write) };
        if let Some(at) = answered {
            self.at(at, Event::Input(index, Input::Wrote(write, result)));
        }
    }

    fn question(&mut self, poll: u64, number: usize, behind: u64) {
        if self.now >= self.away_until {
            self.polls.get_mut(&poll).unwrap()[number] = Ok(self.bucket.after(behind));
        }
    }

    fn input(&mut self, index: usize, input: Input) {
        let node = &mut self.nodes[index];
        if !node.alive {
            return;
        }
        if self.now < node.stalled_until {
            let later = node.stalled_until;
            return self.at(later, Event::Input(index, input));
        }
        if matches!(input, Input::Tick) {
            self.at(self.now + TTL / 36, Event::Input(index, Input::Tick));
        }
        let node = &mut self.nodes[index];
        let (clock, mut actions) = (node.clock(self.now), Vec::new());
        node.core.handle(clock, input, &mut actions);
        if *node.core.standing() == Standing::Left {
            node.alive = false;
        }
        actions.into_iter().for_each(|action| self.perform(index, action));
    }

    /// Also nodes that stand still, were killed or left count: somebody may still ask them.
    fn owners(&self, shard: u32) -> Vec<usize> {
        let mine = |index: &usize| {
            let node = &self.nodes[*index];
            node.mine.epoch(shard, || node.clock(self.now)).is_some()
        };
        (0..self.nodes.len()).filter(mine).collect()
    }

    fn check(&self, seed: u64) {
        for shard in 0..SHARDS {
            let owners = self.owners(shard);
            let names: Vec<_> = owners.iter().map(|index| (index, self.nodes[*index].name)).collect();
            assert!(names.len() <= 1, "seed {seed}: shard {shard} has owners {names:?} at {} ms", self.now / MS);
        }
    }

    fn run(&mut self, until: Nanos, seed: u64) {
        while let Some(Timed(time, _, event)) = self.events.pop() {
            if time > until {
                self.events.push(Timed(time, 0, event));
                break;
            }
            self.now = time;
            match event {
                Event::Input(index, input) => self.input(index, input),
                Event::Request(index, write, answered) => self.request(index, write, answered),
                Event::Question(poll, number, behind) => self.question(poll, number, behind),
                Event::Answers(index, poll) => {
                    let answers = self.polls.remove(&poll).unwrap();
                    self.input(index, Input::Polled(together(answers)));
                }
                Event::Fault if self.faults => self.fault(),
                Event::Fault => {}
            }
            self.check(seed);
        }
        self.now = until;
    }
}

/// Runs one world through its faults and a quiet time after them; the number of takes, and of questions at once.
fn live_through(seed: u64) -> (u64, u64) {
    let mut world = World::new(seed);
    world.join("a");
    world.join("b");
    world.at(TTL, Event::Fault);
    world.run(20 * TTL, seed);
    world.faults = false;
    world.away_until = 0;
    for node in &mut world.nodes {
        node.stalled_until = 0;
    }
    world.run(32 * TTL, seed);
    if world.alive().is_empty() {
        world.join("a");
        world.run(38 * TTL, seed);
    }
    let live: Vec<_> = world.nodes[world.alive()[0]].view.read().live().map(str::to_owned).collect();
    let draining = |index: &usize| {
        let view = world.nodes[*index].view.read();
        view.nodes[world.nodes[*index].name].record.state == NodeState::Draining
    };
    let deciding: Vec<_> = world.alive().into_iter().filter(|index| !draining(index)).collect();
    assert_eq!(live.len(), deciding.len(), "seed {seed}: live {live:?}");
    for shard in 0..SHARDS {
        let owners: Vec<_> = world.owners(shard).into_iter().map(|index| world.nodes[index].name).collect();
        let desired: Vec<_> = desired_owner(shard, live.iter().map(String::as_str)).into_iter().collect();
        assert_eq!(owners, desired, "seed {seed}: shard {shard}");
    }
    (world.takes, world.asked)
}

#[test]
fn no_two_nodes_decide_for_a_shard_and_every_shard_gets_its_owner() {
    let (mut takes, mut asked) = (0, 0);
    for seed in 0..SEEDS {
        let (taken, questions) = live_through(seed);
        (takes, asked) = (takes + taken, asked.max(questions));
    }
    assert!(asked >= 8, "no node asked more than {asked} questions at once");
    // The worlds are not idle.
    assert!(takes > SEEDS * 2 * u64::from(SHARDS), "only {takes} takes");
}

#[test]
fn the_same_seed_gives_the_same_world() {
    let end = |seed| {
        let mut world = World::new(seed);
        world.join("a");
        world.at(TTL, Event::Fault);
        world.run(20 * TTL, seed);
        let values: Vec<_> = world.bucket.keys.values().map(|(revision, found)| (*revision, found.clone())).collect();
        (world.bucket.last, values)
    };
    assert_eq!(end(7), end(7));
    assert_ne!(end(7), end(8));
}

#[test]
fn a_second_process_of_a_name_is_told_and_one_after_it_waits_its_turn() {
    let mut world = World::new(0);
    world.faults = false;
    world.join("a");
    world.run(TTL, 0);
    world.join("a");
    world.run(3 * TTL, 0);
    assert!(matches!(world.nodes[1].core.standing(), Standing::NameTaken { .. }));
    assert_eq!(world.owners(0), [0]);
    world.nodes[0].alive = false;
    world.run(6 * TTL, 0);
    assert_eq!(*world.nodes[1].core.standing(), Standing::Held);
    assert_eq!(world.owners(0), [1]);
}

#[test]
fn a_node_that_leaves_owns_nothing_and_its_lease_is_ended() {
    let mut world = World::new(0);
    world.faults = false;
    world.join("a");
    world.join("b");
    world.run(3 * TTL, 0);
    world.at(world.now, Event::Input(0, Input::Leave));
    world.run(world.now + TTL / 2, 0);
    assert_eq!(*world.nodes[0].core.standing(), Standing::Left);
    let Some((_, Found { value: Some(Value::Node(record)), .. })) =
        world.bucket.keys.get(&Key::Node("a".to_owned()).to_string())
    else {
        panic!("no lease");
    };
    assert_eq!(record.state, NodeState::Left);
    assert!((0..SHARDS).all(|shard| world.owners(shard) == [1]));
}

#[test]
fn a_node_that_comes_back_from_a_drain_has_its_shards_again() {
    let mut world = World::new(0);
    world.faults = false;
    world.join("a");
    world.join("b");
    world.run(3 * TTL, 0);
    let before: Vec<_> = (0..SHARDS).map(|shard| world.owners(shard)).collect();
    assert!(before.iter().any(|owners| *owners == [0]));
    world.at(world.now, Event::Input(0, Input::Drain));
    world.run(world.now + 3 * TTL, 0);
    assert!((0..SHARDS).all(|shard| world.owners(shard) == [1]));
    world.at(world.now, Event::Input(0, Input::Resume));
    world.run(world.now + 3 * TTL, 0);
    let after: Vec<_> = (0..SHARDS).map(|shard| world.owners(shard)).collect();
    assert_eq!(after, before);
}

#[test]
fn a_bucket_that_was_made_anew_is_filled_again_without_two_owners() {
    let mut world = World::new(0);
    world.faults = false;
    world.join("a");
    world.join("b");
    world.run(3 * TTL, 0);
    world.bucket = Bucket::default();
    world.run(10 * TTL, 0);
    for shard in 0..SHARDS {
        let owners: Vec<_> = world.owners(shard).into_iter().map(|index| world.nodes[index].name).collect();
        assert_eq!(owners, desired_owner(shard, ["a", "b"]).into_iter().collect::<Vec<_>>());
    }
}
