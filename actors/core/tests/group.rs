//! Consumer groups: the rules by given/when/then, and the window by random work.
//!
//! Method of the latter: streams of events, consumers that acknowledge, refuse, fall silent and go away at random, a
//! record now and then, a crash now and then that forgets what was not recorded. After each step: every event that was
//! offered is settled or on its way, of one stream at most one is, the checkpoint passes nothing that is not settled.
//! Between two crashes events of a stream are delivered first in order.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::collections::{BTreeMap, BTreeSet};

use actors_core::{
    Context, Decider, fold,
    group::{
        Group, REDRIVEN_LEN_MAX, Rejection, State,
        window::{Failed, Phase, Window},
    },
};
use events_model::{
    DecisionContext, DurationUs, Position, Stored, TimestampUs,
    group::{Command, Event, ParkedDelivery, Place, Settings},
};
use proptest::prelude::*;

const NOW: TimestampUs = TimestampUs(1_790_000_000_000_000);

fn settings() -> Settings {
    Settings {
        types: Vec::new(),
        after: Position(10),
        attempts_max: 3,
        backoff_first: DurationUs(100),
        backoff_max: DurationUs(1_000),
        answer_timeout: DurationUs(5_000),
        in_flight_max: 8,
    }
}

fn place(position: u64, index: u32) -> Place {
    Place { position: Position(position), index }
}

fn delivery(place: Place) -> ParkedDelivery {
    ParkedDelivery {
        place,
        stream: "app/acme/a".to_owned(),
        kind: "a".to_owned(),
        error: "no".to_owned(),
        attempts: 3,
        consumer_version: "1".to_owned(),
    }
}

fn decide(state: &State, command: &Command) -> Result<Vec<Event>, Rejection> {
    Group::decide(state, command, &Context { now: NOW, inputs: DecisionContext::default() })
}

/// Decides, folds what comes of it through its stored form.
fn after(state: State, command: &Command) -> State {
    let events = decide(&state, command).unwrap();
    let stored: Vec<_> = events.iter().map(|event| Event::from_payload(event.to_payload().view()).unwrap()).collect();
    assert_eq!(events, stored);
    fold::<Group>(state, &stored)
}

fn created() -> State {
    after(State::default(), &Command::Create { settings: settings() })
}

fn record(checkpoint: u64, settled: Vec<Place>, parked: Vec<ParkedDelivery>) -> Command {
    Command::Record { checkpoint: Position(checkpoint), settled, parked }
}

#[test]
fn a_group_is_created_once_and_nothing_happens_before() {
    let state = created();
    assert_eq!(decide(&state, &Command::Create { settings: settings() }), Err(Rejection::Exists));
    assert_eq!(decide(&State::default(), &record(1, vec![], vec![])), Err(Rejection::NotCreated));
    assert_eq!((state.checkpoint, state.created_at), (Position(10), NOW));
    for broken in [
        Settings { attempts_max: 0, ..settings() },
        Settings { backoff_first: DurationUs(2_000), ..settings() },
        Settings { backoff_first: DurationUs(0), ..settings() },
        Settings { answer_timeout: DurationUs::from_secs(3_601), ..settings() },
        Settings { in_flight_max: 1_001, ..settings() },
        Settings { types: vec![String::new(); 33], ..settings() },
    ] {
        let refused = decide(&State::default(), &Command::Create { settings: broken.clone() });
        assert!(matches!(refused, Err(Rejection::Invalid(_))), "{broken:?}");
    }
}

#[test]
fn a_record_moves_the_checkpoint_forth_and_never_back_and_keeps_what_lies_behind_it() {
    let state = after(created(), &record(12, vec![place(14, 0), place(15, 2)], vec![]));
    assert_eq!((state.checkpoint, state.ahead.len()), (Position(12), 2));
    assert!(state.is_settled(place(12, 9)) && state.is_settled(place(14, 0)) && !state.is_settled(place(14, 1)));
    assert_eq!(decide(&state, &record(11, vec![place(14, 0)], vec![])), Err(Rejection::NothingNew));
    let state = after(state, &record(14, vec![], vec![]));
    assert_eq!(state.ahead, BTreeSet::from([place(15, 2)]));
}

#[test]
fn a_parked_event_is_settled_parked_once_and_its_number_is_its_version() {
    let state = after(created(), &record(10, vec![], vec![delivery(place(11, 0)), delivery(place(13, 1))]));
    assert_eq!(state.parked.keys().copied().collect::<Vec<_>>(), [2, 3]);
    assert!(state.is_settled(place(13, 1)));
    assert_eq!(decide(&state, &record(10, vec![], vec![delivery(place(11, 0))])), Err(Rejection::NothingNew));
    // A record that was repeated after its first answer was lost.
    let state = after(state, &record(13, vec![], vec![delivery(place(11, 0))]));
    assert_eq!((state.parked.len(), state.parked_total, state.ahead.len()), (2, 2, 0));
}

#[test]
fn redriven_events_are_settled_or_parked_again_under_a_new_number() {
    let parked = vec![delivery(place(11, 0)), delivery(place(12, 0)), delivery(place(13, 0))];
    let state = after(created(), &record(13, vec![], parked));
    let state = after(state, &Command::Redrive { numbers: vec![4, 2, 99], limit: 10 });
    assert_eq!(state.redriven, BTreeSet::from([place(11, 0), place(13, 0)]));
    assert_eq!(decide(&state, &Command::Redrive { numbers: vec![2], limit: 10 }), Err(Rejection::NotParked));
    assert!(!state.is_settled(place(11, 0)));
    let state = after(state, &record(13, vec![place(11, 0)], vec![delivery(place(13, 0))]));
    assert!(state.redriven.is_empty() && state.ahead.is_empty());
    assert_eq!(state.parked.values().map(|parked| parked.place).collect::<Vec<_>>(), [place(12, 0), place(13, 0)]);
    let state = after(state, &Command::Redrive { numbers: vec![], limit: 1 });
    assert_eq!(state.redriven, BTreeSet::from([place(12, 0)]));
}

#[test]
fn what_is_redriven_at_once_is_bounded() {
    let mut state = created();
    for hundred in 0..12_u64 {
        let parked = (0..100).map(|one| delivery(place(11 + hundred * 100 + one, 0))).collect();
        state = after(state, &record(10, vec![], parked));
    }
    let state = after(state, &Command::Redrive { numbers: vec![], limit: 999 });
    let state = after(state, &Command::Redrive { numbers: vec![], limit: 1_000 });
    assert_eq!((state.redriven.len(), state.parked.len()), (REDRIVEN_LEN_MAX, 200));
    assert_eq!(decide(&state, &Command::Redrive { numbers: vec![], limit: 1 }), Err(Rejection::RedriveBusy));
}

#[test]
fn events_are_dropped_only_with_a_reason() {
    let state = after(created(), &record(11, vec![], vec![delivery(place(11, 0))]));
    for reason in ["", "  ", &"x".repeat(2_001)] {
        let command = Command::Drop { numbers: vec![], limit: 1, reason: reason.to_owned() };
        assert!(matches!(decide(&state, &command), Err(Rejection::Invalid(_))), "{reason:?}");
    }
    let state = after(state, &Command::Drop { numbers: vec![], limit: 1, reason: "obsolete".to_owned() });
    assert_eq!((state.parked.len(), state.dropped_total), (0, 1));
    assert!(state.is_settled(place(11, 0)));
}

#[test]
fn an_event_waits_while_an_earlier_one_of_its_stream_retries_and_other_streams_flow_on() {
    let mut window = Window::new(settings(), Position(10), BTreeSet::new());
    for (position, stream) in [(11, "a"), (12, "a"), (13, "b")] {
        window.offer(place(position, 0), stream);
    }
    window.scanned_to(Position(13));
    assert_eq!(window.next(NOW), Some(place(11, 0)));
    assert_eq!(window.deliver(place(12, 0), 1, NOW), None);
    assert_eq!(window.deliver(place(11, 0), 1, NOW), Some(1));
    assert_eq!(window.next(NOW), Some(place(13, 0)));
    assert_eq!(window.fail(place(11, 0), 1, NOW), Failed::Retry { at: NOW.after(DurationUs(100)) });
    assert_eq!(window.next(NOW), Some(place(13, 0)));
    window.deliver(place(13, 0), 1, NOW);
    assert_eq!(window.next(NOW), None);
    let later = NOW.after(DurationUs(100));
    assert_eq!(window.next(later), Some(place(11, 0)));
    assert_eq!(window.deliver(place(11, 0), 1, later), Some(2));
    assert_eq!(window.fail(place(11, 0), 1, later), Failed::Stale);
    assert!(window.acknowledge(place(13, 0)));
    assert_eq!(window.checkpoint(), Position(10));
    assert!(window.acknowledge(place(11, 0)));
    assert_eq!((window.checkpoint(), window.next(later)), (Position(11), Some(place(12, 0))));
}

#[test]
fn a_redriven_event_whose_acknowledgement_is_not_recorded_yet_is_not_offered_again() {
    let mut window = Window::new(settings(), Position(20), BTreeSet::new());
    let redriven = place(11, 0);
    window.offer_again(redriven, "a");
    window.deliver(redriven, 1, NOW);
    assert!(window.acknowledge(redriven));
    window.offer_again(redriven, "a");
    assert!(window.is_empty());
    window.recorded(redriven);
    window.offer_again(redriven, "a");
    window.deliver(redriven, 1, NOW);
    window.parked(redriven);
    window.offer_again(redriven, "a");
    assert_eq!(window.next(NOW), Some(redriven));
}

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    Offer { stream: u8, events: u32 },
    Deliver { consumer: u64 },
    Ack { which: usize },
    Nack { which: usize },
    Leave { consumer: u64 },
    Pass { us: u64 },
    Record,
    Crash,
    Redrive,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4_u8, 1..4_u32).prop_map(|(stream, events)| Step::Offer { stream, events }),
        8 => (0..3_u64).prop_map(|consumer| Step::Deliver { consumer }),
        5 => (0..8_usize).prop_map(|which| Step::Ack { which }),
        4 => (0..8_usize).prop_map(|which| Step::Nack { which }),
        1 => (0..3_u64).prop_map(|consumer| Step::Leave { consumer }),
        4 => (1..6_000_u64).prop_map(|us| Step::Pass { us }),
        2 => Just(Step::Record),
        1 => Just(Step::Crash),
        1 => Just(Step::Redrive),
    ]
}

/// A group and everything that is known of it from outside.
struct World {
    now: TimestampUs,
    log: Vec<(Place, String)>,
    state: State,
    window: Window,
    in_flight: Vec<(Place, u32)>,
    settled: BTreeSet<Place>,
    parking: Vec<ParkedDelivery>,
    delivered: BTreeMap<String, Place>,
    acknowledged: BTreeSet<Place>,
}

impl World {
    fn new() -> Self {
        let state = created();
        let window = Window::new(settings(), state.checkpoint, BTreeSet::new());
        Self {
            now: NOW,
            log: Vec::new(),
            state,
            window,
            in_flight: Vec::new(),
            settled: BTreeSet::new(),
            parking: Vec::new(),
            delivered: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
        }
    }

    fn head(&self) -> Position {
        self.log.last().map_or(Position(10), |(place, _)| place.position)
    }

    fn fail(&mut self, place: Place, attempt: u32) {
        match self.window.fail(place, attempt, self.now) {
            Failed::Park { attempts } => self.parking.push(ParkedDelivery { attempts, ..delivery(place) }),
            Failed::Retry { at } => assert!(at > self.now),
            Failed::Stale => {}
        }
    }

    fn record(&mut self) {
        let settled: Vec<_> = std::mem::take(&mut self.settled).into_iter().collect();
        let parked = std::mem::take(&mut self.parking);
        let command =
            Command::Record { checkpoint: self.window.checkpoint(), settled: settled.clone(), parked: parked.clone() };
        match decide(&self.state, &command) {
            Ok(_) => self.state = after(std::mem::take(&mut self.state), &command),
            Err(rejection) => assert_eq!(rejection, Rejection::NothingNew),
        }
        for parked in parked {
            self.window.parked(parked.place);
        }
        for place in settled {
            self.window.recorded(place);
        }
    }

    fn offer(&mut self) {
        for (place, stream) in &self.log {
            self.window.offer(*place, stream);
        }
        self.window.scanned_to(self.head());
        for place in &self.state.redriven {
            let (_, stream) = self.log.iter().find(|(known, _)| known == place).unwrap();
            self.window.offer_again(*place, stream);
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Offer { stream, events } => {
                let position = self.head().0 + 1;
                self.log.extend((0..*events).map(|index| (place(position, index), format!("s{stream}"))));
                self.offer();
            }
            Step::Deliver { consumer } => {
                let Some(place) = self.window.next(self.now) else { return };
                let again = self.window.is_redriven(place);
                let attempt = self.window.deliver(place, *consumer, self.now).unwrap();
                self.in_flight.push((place, attempt));
                assert!(!self.acknowledged.contains(&place) || !self.state.is_settled(place), "{place:?} comes again");
                let (_, stream) = self.log.iter().find(|(known, _)| *known == place).unwrap();
                if attempt == 1 && !again {
                    let before = self.delivered.insert(stream.clone(), place);
                    assert!(before.is_none_or(|before| before < place), "{place:?} after {before:?}");
                }
            }
            Step::Ack { which } if !self.in_flight.is_empty() => {
                let (place, _) = self.in_flight.remove(which % self.in_flight.len());
                if !self.parking.iter().any(|parked| parked.place == place) && self.window.acknowledge(place) {
                    self.settled.insert(place);
                    self.acknowledged.insert(place);
                }
            }
            Step::Nack { which } if !self.in_flight.is_empty() => {
                let (place, attempt) = self.in_flight.remove(which % self.in_flight.len());
                self.fail(place, attempt);
            }
            Step::Ack { .. } | Step::Nack { .. } => {}
            Step::Leave { consumer } => {
                for (place, attempt) in self.window.held_by(*consumer) {
                    self.fail(place, attempt);
                }
            }
            Step::Pass { us } => {
                self.now = self.now.after(DurationUs(*us));
                for (place, _, attempt) in self.window.overdue(self.now) {
                    self.fail(place, attempt);
                }
            }
            Step::Record => self.record(),
            Step::Crash => {
                self.window = Window::new(settings(), self.state.checkpoint, self.state.ahead.clone());
                self.in_flight.clear();
                self.settled.clear();
                self.parking.clear();
                self.delivered.clear();
                self.offer();
            }
            Step::Redrive => {
                let command = Command::Redrive { numbers: vec![], limit: 2 };
                if decide(&self.state, &command).is_ok() {
                    self.state = after(std::mem::take(&mut self.state), &command);
                    self.offer();
                }
            }
        }
    }

    fn check(&self) {
        let mut busy = BTreeMap::new();
        for (place, stream) in &self.log {
            let phase = self.window.phase(*place);
            let parked = self.state.parked.values().any(|parked| parked.place == *place);
            let is_settled = self.state.is_settled(*place) || self.settled.contains(place);
            assert!(phase.is_some() || is_settled || parked, "{place:?} is lost");
            assert!(!(parked && phase.is_some()), "{place:?} is parked and on its way");
            if let Some(Phase::InFlight { .. } | Phase::Waiting { .. }) = phase {
                assert!(busy.insert(stream.clone(), *place).is_none(), "two of {stream} are on their way");
            }
            if place.position <= self.window.checkpoint() {
                assert!(phase.is_none() || self.window.is_redriven(*place), "the checkpoint passed {place:?}");
            }
        }
        assert!(self.state.checkpoint <= self.window.checkpoint());
        for parked in &self.parking {
            assert!(matches!(self.window.phase(parked.place), Some(Phase::Waiting { .. })));
        }
    }

    /// Everything is acknowledged from here on: all of it ends settled or parked.
    fn end(&mut self) {
        for _ in 0..100_000 {
            self.record();
            if self.window.is_empty() {
                break;
            }
            self.step(&Step::Pass { us: 1_000 });
            while let Some(place) = self.window.next(self.now) {
                self.window.deliver(place, 9, self.now).unwrap();
                if !self.parking.iter().any(|parked| parked.place == place) && self.window.acknowledge(place) {
                    self.settled.insert(place);
                }
            }
        }
        self.record();
        assert!(self.window.is_empty() && self.state.redriven.is_empty());
        assert_eq!((self.state.checkpoint, self.state.ahead.len()), (self.head(), 0));
    }
}

proptest! {
    #[test]
    fn every_event_ends_acknowledged_or_parked_and_streams_keep_their_order(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
            world.check();
        }
        world.end();
    }
}
