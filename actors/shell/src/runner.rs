//! One actor's logic: decide, hand to the log, go on. Knows no framework.
//!
//! Invariants: the state in memory is what the events up to `version` give, durable or in flight; when one of
//! those in flight fails, the state is dropped and loaded again, never mended; what has fallen due is done before
//! the message that found it so.

mod due;

use std::{
    any::Any,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use actors_core::{Context, Decider};
use events_journal::{EventLog, Health, SnapshotStore};
use events_model::{Commit, EventRecord, Position, Stored, StreamId, TimestampUs, tenant::RefusalReason};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::error;

use crate::{
    acknowledge::{Answer, Pending, first_answer},
    ask::{Ask, Decided, Rejected, Unavailable},
    clock::{Clock, Ids},
    deadlines::Deadlines,
    limits::{OVERLOAD_RETRY_AFTER, PIPELINE_LEN_MAX, Settings, micros},
    loading::{self, Loaded},
    messaging::{IdleCheck, Mailbox, Next, Receive},
    saver::{Place, Saver},
};

/// What all actors of a shell share.
#[derive(Debug)]
pub(crate) struct Environment {
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) health: watch::Receiver<Health>,
    pub(crate) snapshots: Arc<dyn SnapshotStore>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ids: Arc<dyn Ids>,
    pub(crate) settings: Settings,
    pub(crate) started_at: TimestampUs,
    pub(crate) saver: Saver,
    pub(crate) deadlines: Arc<Deadlines>,
    pub(crate) loads: AtomicU64,
    pub(crate) restarts: AtomicU64,
    pub(crate) snapshots_taken: AtomicU64,
}

/// Everything an actor reacts to.
pub(crate) enum Message<D: Decider> {
    /// Decide a command.
    Ask { ask: Box<Ask<D::Command>>, reply: oneshot::Sender<Answer<D>> },
    /// Look at the state; `durable` = answer when all it shows is durable.
    Read { durable: bool, read: Box<dyn Read<D>> },
    /// Something may have fallen due.
    Tick,
    /// A commit of this generation failed: the state is void.
    Void { generation: u64 },
    /// End: save what is worth saving, then answer.
    Stop { done: oneshot::Sender<()> },
}

/// A look at the state and the way to answer it.
pub(crate) trait Read<D: Decider>: Send {
    /// Looks; the result is the way to answer once it may be answered.
    fn look(self: Box<Self>, state: Result<&D::State, Unavailable>) -> Box<dyn FnOnce(Result<(), Unavailable>) + Send>;
}

/// One actor.
pub(crate) struct Runner<D: Decider> {
    pub(crate) stream: StreamId,
    pub(crate) environment: Arc<Environment>,
    pub(crate) pending: mpsc::UnboundedSender<(u64, Pending<D>)>,
    pub(crate) in_flight: Arc<AtomicUsize>,
    /// Generations of the state below this are void.
    voided: Arc<AtomicU64>,
    mailbox: Arc<Mailbox>,
    /// Takes the actor out of the registry; called once, before it ends.
    pub(crate) leave: Option<Box<dyn FnOnce() + Send>>,
    loaded: Option<Loaded<D>>,
    generation: u64,
    watched: Option<TimestampUs>,
    /// Nothing falls due before this: see `Settings::overdue_grace`.
    due_from: TimestampUs,
    /// The time in which this process decides that `due_from` was last set for.
    epoch: Option<u64>,
    refused: BTreeMap<(u64, RefusalReason), u64>,
    last_message: TimestampUs,
}

impl<D: Decider> Runner<D> {
    pub(crate) fn new(
        stream: StreamId,
        environment: Arc<Environment>,
        pending: mpsc::UnboundedSender<(u64, Pending<D>)>,
        (in_flight, voided): (Arc<AtomicUsize>, Arc<AtomicU64>),
        mailbox: Arc<Mailbox>,
        leave: Box<dyn FnOnce() + Send>,
    ) -> Self {
        let last_message = environment.clock.now();
        // With other nodes about, the stream may have been without any for a while.
        let began = if environment.settings.placement.is_some() { last_message } else { environment.started_at };
        let due_from = began.after(micros(environment.settings.overdue_grace));
        Self {
            stream,
            environment,
            pending,
            in_flight,
            voided,
            mailbox,
            leave: Some(leave),
            loaded: None,
            generation: 0,
            watched: None,
            due_from,
            epoch: None,
            refused: BTreeMap::new(),
            last_message,
        }
    }

    fn push(&self, pending: Pending<D>) {
        // The acknowledger lives as long as this sender: it cannot be gone.
        let _gone = self.pending.send((self.generation, pending));
    }

    fn ask(&mut self, ask: Ask<D::Command>, reply: oneshot::Sender<Answer<D>>) {
        match self.decide(&ask) {
            Ok(Ok((receipt, decided))) => {
                let (commit_id, decided) = (ask.commit_id, Box::new(decided));
                self.push(Pending::Commit { receipt, commit_id, decided, reply: Some(reply) });
                self.snapshot_if_due();
            }
            Ok(Err(Refused::Rejected(rejected))) => {
                let reason = D::refusal(&rejected.rejection);
                if let Some(reason) = reason {
                    let second = self.environment.clock.now().0 / 1_000_000;
                    *self.refused.entry((second, reason)).or_default() += 1;
                }
                if reason.is_some_and(is_want_of_room) {
                    // It may rest on what is not durable yet; at worst the caller is told to try again needlessly.
                    let _gone = reply.send(Ok(Err(rejected)));
                } else {
                    self.push(Pending::Barrier(Box::new(move |durable| {
                        let _gone = reply.send(durable.map(|()| Err(rejected)));
                    })));
                }
            }
            Ok(Err(Refused::Repeated(decided))) => {
                let answer = first_answer(self.environment.log.as_ref(), &self.stream, &ask.commit_id, decided);
                let _gone = reply.send(answer);
            }
            Err(unavailable) => {
                let _gone = reply.send(Err(unavailable));
            }
        }
    }

    /// The time in which this process decides for the stream, if it does.
    fn epoch(&self) -> Option<u64> {
        self.environment.settings.placement.as_ref().map_or(Some(0), |placement| placement.epoch(&self.stream))
    }

    /// Whether this process decides for the stream.
    fn is_here(&self) -> bool {
        self.epoch().is_some()
    }

    /// Decides a command on the newest state and hands the commit to the log.
    fn decide(&mut self, ask: &Ask<D::Command>) -> Result<Result<Accepted<D>, Refused<D>>, Unavailable> {
        if !self.is_here() {
            return Err(Unavailable::Elsewhere);
        }
        if let Health::Refusing(refusal) = &*self.environment.health.borrow() {
            let grace = micros(self.environment.settings.overdue_grace);
            self.due_from = self.environment.clock.now().after(grace);
            return Err(Unavailable::Refusing(refusal.clone()));
        }
        if self.in_flight.load(Ordering::Acquire) >= PIPELINE_LEN_MAX {
            return Err(Unavailable::Overloaded { retry_after: micros(OVERLOAD_RETRY_AFTER) });
        }
        self.load()?;
        let now = self.environment.clock.now();
        let context = Context { now, inputs: ask.inputs };
        if ask.idempotent {
            let found = self.environment.log.find_commit(&self.stream, &ask.commit_id);
            if found.map_err(Unavailable::Storage)?.is_some() {
                return Ok(Err(Refused::Repeated(self.nothing_decided(now))));
            }
        }
        // Taken out: if the rules panic, no half-changed state is left behind.
        let Some(loaded) = self.loaded.take() else { return Err(Unavailable::Restarted) };
        match catch_unwind(AssertUnwindSafe(|| self.apply(loaded, ask, &context))) {
            Ok(result) => Ok(result),
            Err(panic) => {
                self.restart(panic.as_ref());
                Err(Unavailable::Restarted)
            }
        }
    }

    /// Decides, folds and appends; may panic, in the rules alone.
    fn apply(
        &mut self,
        mut loaded: Loaded<D>,
        ask: &Ask<D::Command>,
        context: &Context,
    ) -> Result<Accepted<D>, Refused<D>> {
        let now = context.now;
        let events = match D::decide(&loaded.state, &ask.command, context) {
            Ok(events) => events,
            Err(rejection) => {
                let view = D::view(&loaded.state, now);
                self.loaded = Some(loaded);
                return Err(Refused::Rejected(Rejected { rejection, view }));
            }
        };
        let mut effects = Vec::new();
        for event in &events {
            loaded.state = D::evolve(loaded.state, event);
            effects.extend(D::react(&loaded.state, event));
        }
        let view = D::view(&loaded.state, now);
        let commit = self.commit(ask, &events, &loaded, now);
        let (expected, version) = (loaded.version, commit.last_version());
        loaded.version = version;
        loaded.last_event = commit.events.last().map_or(loaded.last_event, |event| *event.event_id.as_bytes());
        self.loaded = Some(loaded);
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        let receipt = self.environment.log.append(expected, commit);
        let position = Position::ZERO;
        let decided = Decided { events, effects, position, version, recorded_at: now, view, duplicate: false };
        Ok((receipt, decided))
    }

    fn commit(&self, ask: &Ask<D::Command>, events: &[D::Event], loaded: &Loaded<D>, now: TimestampUs) -> Commit {
        let record =
            |event: &D::Event| EventRecord { event_id: self.environment.ids.event(now), payload: event.to_payload() };
        Commit {
            commit_id: ask.commit_id.clone(),
            stream: self.stream.clone(),
            first_version: loaded.version.next(),
            command: ask.command.to_payload(),
            events: events.iter().map(record).collect(),
            episode_id: ask.episode_id,
            causation_id: ask.causation_id.clone(),
            tenant: self.stream.tenant_id(),
            region: self.environment.settings.region.clone(),
            epoch: 1,
            principal: ask.principal.clone(),
            recorded_at: now,
            traceparent: ask.traceparent.clone(),
            decider_version: D::VERSION,
            key_id: String::new(),
            context: ask.inputs,
        }
    }

    fn nothing_decided(&self, now: TimestampUs) -> Decided<D> {
        let view = match &self.loaded {
            Some(loaded) => D::view(&loaded.state, now),
            None => D::view(&D::State::default(), now),
        };
        Decided {
            events: Vec::new(),
            effects: Vec::new(),
            position: Position::ZERO,
            version: self.loaded.as_ref().map_or(events_model::Version::ZERO, |loaded| loaded.version),
            recorded_at: now,
            view,
            duplicate: true,
        }
    }

    /// Makes the state be there. While commits of a void state are still in flight, what is durable is not known,
    /// so nothing is loaded then.
    fn load(&mut self) -> Result<(), Unavailable> {
        let in_flight = self.in_flight.load(Ordering::Acquire) > 0;
        if self.voided.load(Ordering::Acquire) > self.generation {
            // The word of it waits behind other messages.
            self.drop_state();
        }
        if let Some(loaded) = &self.loaded {
            // Where other nodes decide, too, the stream may have gone on without this actor.
            let alone = self.environment.settings.placement.is_none() || in_flight;
            if alone || self.environment.log.head(&self.stream).map_err(Unavailable::Storage)? == loaded.version {
                return Ok(());
            }
        }
        if in_flight {
            return Err(Unavailable::Restarted);
        }
        let environment = &self.environment;
        let old = self.loaded.take();
        let load = || match old {
            Some(loaded) => loading::go_on(environment.log.as_ref(), &self.stream, loaded),
            None => loading::load(environment.log.as_ref(), environment.snapshots.as_ref(), &self.stream),
        };
        match catch_unwind(AssertUnwindSafe(load)) {
            Ok(Ok(loaded)) => {
                environment.clock.observe(loaded.recorded_at);
                environment.loads.fetch_add(1, Ordering::Relaxed);
                self.loaded = Some(loaded);
                Ok(())
            }
            Ok(Err(error)) => {
                error!(stream = %self.stream, %error, "state cannot be loaded");
                Err(Unavailable::Storage(error))
            }
            Err(panic) => {
                self.restart(panic.as_ref());
                Err(Unavailable::Restarted)
            }
        }
    }

    fn restart(&mut self, panic: &(dyn Any + Send)) {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let reason = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        error!(stream = %self.stream, reason, "actor panicked, it restarts from the log");
        self.environment.restarts.fetch_add(1, Ordering::Relaxed);
        self.drop_state();
    }

    fn drop_state(&mut self) {
        self.loaded = None;
        self.generation += 1;
    }

    fn snapshot_if_due(&mut self) {
        let Some(loaded) = &self.loaded else { return };
        let is_due = loaded.version.0 - loaded.saved.0 >= self.environment.settings.snapshot_every;
        // Without a place it is tried again after the next command.
        if is_due && let Some(place) = self.environment.saver.place() {
            self.snapshot(Some(place));
        }
    }

    fn snapshot(&mut self, place: Option<Place>) {
        let Some(loaded) = &mut self.loaded else { return };
        if loaded.version == loaded.saved {
            return;
        }
        if let Some(bytes) = loading::encode::<D>(&loaded.state, loaded.last_event) {
            loaded.saved = loaded.version;
            let version = loaded.version;
            self.environment.snapshots_taken.fetch_add(1, Ordering::Relaxed);
            self.push(Pending::Snapshot { version, bytes, place });
        }
    }

    fn read(&mut self, durable: bool, read: Box<dyn Read<D>>) {
        let loaded = self.load();
        let state =
            loaded.and_then(|()| self.loaded.as_ref().map(|loaded| &loaded.state).ok_or(Unavailable::Restarted));
        let failed = state.is_err();
        let answer = read.look(state);
        if durable && !failed { self.push(Pending::Barrier(answer)) } else { answer(Ok(())) }
    }

    fn leave(&mut self) {
        self.environment.deadlines.replace(&self.stream, self.watched, None);
        self.watched = None;
        if let Some(leave) = self.leave.take() {
            leave();
        }
    }
}

/// Whether a refusal says that there is no room at the moment, under load the usual one: it is answered at once. All
/// other refusals are answered when what they rest on is durable.
const fn is_want_of_room(reason: RefusalReason) -> bool {
    match reason {
        RefusalReason::RequestRate
        | RefusalReason::TokenRate
        | RefusalReason::Concurrency
        | RefusalReason::Budget
        | RefusalReason::Overload => true,
        RefusalReason::RequestCost | RefusalReason::Suspended | RefusalReason::Key => false,
    }
}

/// What an accepted command leads to: the log's receipt and the answer once it is durable.
type Accepted<D> = (events_journal::Receipt, Decided<D>);

/// Why nothing was appended.
enum Refused<D: Decider> {
    Rejected(Rejected<D>),
    Repeated(Decided<D>),
}

impl<D: Decider> Receive<Message<D>> for Runner<D> {
    fn receive(&mut self, message: Message<D>) -> Next {
        // `decide` and `load` are guarded closer, so that their callers get an answer; this guards the rest.
        match catch_unwind(AssertUnwindSafe(|| self.handle(message))) {
            Ok(next) => next,
            Err(panic) => {
                self.restart(panic.as_ref());
                self.watch_deadline(false);
                Next::Continue
            }
        }
    }
}

impl<D: Decider> Runner<D> {
    fn handle(&mut self, message: Message<D>) -> Next {
        let mut fine = true;
        match message {
            Message::Ask { ask, reply } => {
                self.mailbox.leave();
                self.last_message = self.environment.clock.now();
                fine = self.catch_up();
                self.ask(*ask, reply);
            }
            Message::Read { durable, read } => {
                self.mailbox.leave();
                self.last_message = self.environment.clock.now();
                self.read(durable, read);
            }
            Message::Tick => {
                // The deadline was taken out of the order when it came due.
                self.watched = None;
                fine = self.load().is_ok() && self.catch_up();
            }
            Message::Void { generation } => {
                if generation == self.generation {
                    self.drop_state();
                }
                // Deadlines are watched again once the state is back.
                fine = false;
            }
            Message::Stop { done } => {
                self.catch_up();
                self.sum_up_refusals(self.environment.clock.now(), u64::MAX);
                self.snapshot(None);
                self.leave();
                self.push(Pending::Barrier(Box::new(move |_| {
                    let _gone = done.send(());
                })));
                return Next::Stop;
            }
        }
        // Without a state it is not known what falls due: look again soon.
        self.watch_deadline(fine && self.loaded.is_some());
        Next::Continue
    }
}

impl<D: Decider> IdleCheck for Runner<D> {
    fn idle_now(&mut self) -> bool {
        let idle_for = self.environment.clock.now().since(self.last_message);
        let idle = u128::from(idle_for.0) >= self.environment.settings.idle_after.as_micros();
        let busy = self.watched.is_some() || self.in_flight.load(Ordering::Acquire) > 0;
        if !idle || busy {
            return false;
        }
        let unsaved = self.loaded.as_ref().is_some_and(|loaded| loaded.version != loaded.saved);
        let place = unsaved.then(|| self.environment.saver.place());
        // Without a place it stays a little longer: states that wait to be written are bounded.
        if matches!(place, Some(None)) || !self.mailbox.close_if_empty() {
            return false;
        }
        self.snapshot(place.flatten());
        self.leave();
        true
    }
}
