//! A group's task: look ahead in the log, deliver, take answers, record.
//!
//! One turn: take what the log has while the window has room, deliver while a consumer has room, record what is worth
//! it, then wait for the next thing to happen. All rules are the window's and the actor's.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use actors_core::group::{
    Rejection, State,
    window::{ConsumerId, Failed, Phase, Window},
};
use actors_shell::Unavailable;
use events_journal::{Direction, ReadError};
use events_model::{
    Position, Principal, StreamId, TimestampUs, Version,
    group::{ParkedDelivery, Place, Settings},
};
use proto::events::v1 as pb;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::spawn_blocking,
    time::{Sleep, sleep},
};
use tracing::{error, warn};

use super::{
    CONSUMERS_MAX, Consumer, Ended, Failure, Groups, Message, RECORD_EVERY, RECORD_RETRY,
    record::{Record, Unrecorded},
    waiting::{Recorded, Recording, over, recorded, until},
};
use crate::{
    events::{convert, select::Selection},
    model_path::chain,
};

/// Commits looked at in one turn.
const LOOK_LEN: usize = 128;
/// How often it is looked who decides for the group, if nothing else happens.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Answers taken in one turn.
const ANSWERS_PER_TURN: usize = 256;

/// A consumer and how much it has.
#[derive(Debug)]
struct Seat {
    consumer: Consumer,
    in_flight: usize,
}

/// The task.
pub(super) struct Running {
    groups: Groups,
    group: StreamId,
    inbox: mpsc::Receiver<Message>,
    room: Arc<Notify>,
    shown: Arc<AtomicU64>,
    seats: BTreeMap<ConsumerId, Seat>,
    turn: ConsumerId,
}

/// The task while the group's state is known.
struct Work {
    window: Window,
    selection: Arc<Selection>,
    unrecorded: Unrecorded,
    /// The version of the group's stream up to which all facts are this task's own, or were looked at.
    seen: Version,
    recording: Option<Recording>,
    /// Recording waits: to take more with it, or after a failure.
    pause: Option<Pin<Box<Sleep>>>,
    /// The wait is after a failure: nothing is recorded before it is over.
    is_held_up: bool,
    /// The wait is over.
    is_due: bool,
    head: watch::Receiver<Position>,
}

/// Why the work ends.
enum End {
    /// The last consumer left.
    Idle,
    Told(Ended),
}

impl Running {
    pub(super) fn new(
        groups: Groups,
        group: StreamId,
        inbox: mpsc::Receiver<Message>,
        room: Arc<Notify>,
        shown: Arc<AtomicU64>,
    ) -> Self {
        Self { groups, group, inbox, room, shown, seats: BTreeMap::new(), turn: 0 }
    }

    /// Runs until nobody consumes.
    pub(super) async fn run(mut self) {
        let mut next = None;
        loop {
            let end = match self.load().await {
                Ok(mut work) => {
                    let end = self.work(&mut work, next.take()).await;
                    self.finish(&mut work).await;
                    end
                }
                Err(ended) => {
                    self.take_waiting(next.take());
                    End::Told(ended)
                }
            };
            if let End::Told(ended) = end {
                self.take_waiting(None);
                for seat in std::mem::take(&mut self.seats).into_values() {
                    // One place of the queue is kept for this.
                    seat.consumer.deliveries.try_send(Err(ended)).ok();
                }
            }
            next = self.groups.leave(&self.group, &mut self.inbox);
            if next.is_none() {
                return;
            }
        }
    }

    /// Seats those who have joined meanwhile, so that they hear the reason of the end.
    fn take_waiting(&mut self, first: Option<Message>) {
        let mut next = first;
        while let Some(message) = next.take().or_else(|| self.inbox.try_recv().ok()) {
            if let Message::Join { id, consumer } = message {
                self.seats.insert(id, Seat { consumer, in_flight: 0 });
            }
        }
    }

    async fn load(&self) -> Result<Work, Ended> {
        let read = |state: &State| {
            let redriven: Vec<Place> = state.redriven.iter().copied().collect();
            (state.settings.clone(), state.checkpoint, state.ahead.clone(), (redriven, state.version))
        };
        let parts = self.groups.parts();
        let loaded = parts.actors.actor(&self.group).read(read).await;
        let (settings, checkpoint, ahead, (redriven, seen)) =
            loaded.map_err(|unavailable| self.unavailable(&unavailable))?;
        let settings: Settings = settings.ok_or(Ended::Broken)?;
        let selection = Selection::of_types(settings.types.clone()).of_tenant(self.group.tenant_id()).of_applications();
        let mut work = Work {
            window: Window::new(settings, checkpoint, ahead),
            selection: Arc::new(selection),
            unrecorded: Unrecorded::new(checkpoint),
            seen: Version(seen),
            recording: None,
            pause: None,
            is_held_up: false,
            is_due: false,
            head: parts.log.watch_head(),
        };
        self.offer_again(&mut work, redriven)?;
        Ok(work)
    }

    fn unavailable(&self, unavailable: &Unavailable) -> Ended {
        warn!(group = %self.group, error = chain(unavailable, 2_048), "group's state not loaded");
        Ended::Broken
    }

    fn broken(&self, failure: &ReadError) -> Ended {
        error!(group = %self.group, error = chain(failure, 2_048), "log not readable for a group");
        Ended::Broken
    }

    async fn work(&mut self, work: &mut Work, first: Option<Message>) -> End {
        let drain = self.groups.parts().drain.clone();
        let mut message = first;
        loop {
            if let Some(message) = message.take()
                && let Err(ended) = self.take(work, message).await
            {
                return End::Told(ended);
            }
            for _ in 0..ANSWERS_PER_TURN {
                let Ok(message) = self.inbox.try_recv() else { break };
                if let Err(ended) = self.take(work, message).await {
                    return End::Told(ended);
                }
            }
            if self.seats.is_empty() {
                return End::Idle;
            }
            if !self.groups.is_here(&self.group) {
                return End::Told(Ended::Elsewhere);
            }
            let now = self.groups.parts().clock.now();
            self.give_up_overdue(work, now);
            if let Err(ended) = self.notice(work).await {
                return End::Told(ended);
            }
            let looked = match self.look_ahead(work).await {
                Ok(looked) => looked,
                Err(ended) => return End::Told(ended),
            };
            if let Err(ended) = self.deliver(work) {
                return End::Told(ended);
            }
            self.record(work);
            self.shown.store(work.window.checkpoint().0, Ordering::Release);
            if looked {
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                biased;
                () = drain.cancelled() => return End::Told(Ended::ShuttingDown),
                recorded = recorded(&mut work.recording) => self.recorded(work, recorded),
                // The registry holds a sender as long as this task is in it.
                received = self.inbox.recv() => message = received,
                () = self.room.notified() => {}
                () = over(&mut work.pause) => (work.is_held_up, work.is_due) = (false, true),
                changed = work.head.changed(), if work.window.has_room() => {
                    if changed.is_err() {
                        return End::Told(Ended::ShuttingDown);
                    }
                }
                () = until(work.window.next_time(now), now) => {}
                // Another node may decide for the group by now.
                () = sleep(LOOK_EVERY), if self.groups.parts().placement.is_some() => {}
            }
        }
    }

    /// Takes one message.
    async fn take(&mut self, work: &mut Work, message: Message) -> Result<(), Ended> {
        match message {
            Message::Join { consumer, .. } if self.seats.len() >= CONSUMERS_MAX => {
                consumer.deliveries.try_send(Err(Ended::TooManyConsumers)).ok();
            }
            Message::Join { id, consumer } => {
                self.seats.insert(id, Seat { consumer, in_flight: 0 });
            }
            Message::Ack { places } => {
                for place in places {
                    let (phase, redriven) = (work.window.phase(place), work.window.is_redriven(place));
                    if !work.unrecorded.is_parking(place) && work.window.acknowledge(place) {
                        self.free(phase);
                        work.unrecorded.settle(place, redriven);
                    }
                }
            }
            Message::Nack { place, attempt, reason } => {
                let now = self.groups.parts().clock.now();
                self.fail(work, (place, attempt), now, &reason)?;
            }
            Message::Leave { id } => {
                let now = self.groups.parts().clock.now();
                for held in work.window.held_by(id) {
                    self.fail(work, held, now, "the consumer went away without an answer")?;
                }
                self.seats.remove(&id);
            }
        }
        Ok(())
    }

    /// Looks for events that were redriven, at whichever node that was asked, if there are facts of others.
    async fn notice(&self, work: &mut Work) -> Result<(), Ended> {
        let parts = self.groups.parts();
        let head = parts.log.head(&self.group).map_err(|failure| self.broken(&failure))?;
        // While a record is on its way, it cannot be told whose the facts are.
        if head <= work.seen || work.recording.is_some() {
            return Ok(());
        }
        let read = |state: &State| (state.redriven.iter().copied().collect::<Vec<_>>(), state.version);
        let looked = parts.actors.actor(&self.group).read(read).await;
        let (redriven, seen) = looked.map_err(|unavailable| self.unavailable(&unavailable))?;
        work.seen = Version(seen);
        self.offer_again(work, redriven)
    }

    fn free(&mut self, phase: Option<Phase>) {
        if let Some(Phase::InFlight { consumer, .. }) = phase
            && let Some(seat) = self.seats.get_mut(&consumer)
        {
            seat.in_flight = seat.in_flight.saturating_sub(1);
        }
    }

    fn give_up_overdue(&mut self, work: &mut Work, now: TimestampUs) {
        for (place, _, attempt) in work.window.overdue(now) {
            // A log that cannot be read is met again at the next delivery.
            self.fail(work, (place, attempt), now, "no answer came in time").ok();
        }
    }

    /// An attempt failed: another one later, or the event is parked.
    fn fail(
        &mut self,
        work: &mut Work,
        (place, attempt): (Place, u32),
        now: TimestampUs,
        reason: &str,
    ) -> Result<(), Ended> {
        let phase = work.window.phase(place);
        match work.window.fail(place, attempt, now) {
            Failed::Stale => {}
            Failed::Retry { .. } => self.free(phase),
            Failed::Park { attempts } => {
                let consumer_version = match phase {
                    Some(Phase::InFlight { consumer, .. }) => {
                        self.seats.get(&consumer).map_or_else(String::new, |seat| seat.consumer.version.clone())
                    }
                    Some(Phase::Queued | Phase::Waiting { .. }) | None => String::new(),
                };
                self.free(phase);
                let Some(commit) = self.read(place)? else { return Ok(()) };
                let kind = commit.events.into_iter().next().map_or_else(String::new, |event| event.r#type);
                let error = reason.to_owned();
                let stream = commit.stream;
                work.unrecorded.park(ParkedDelivery { place, stream, kind, error, attempts, consumer_version });
            }
        }
        Ok(())
    }

    fn read(&self, place: Place) -> Result<Option<pb::Commit>, Ended> {
        convert::event_at(&*self.groups.parts().log, place).map_err(|failure| self.broken(&failure))
    }

    /// Puts redriven events into the window.
    fn offer_again(&self, work: &mut Work, redriven: Vec<Place>) -> Result<(), Ended> {
        for place in redriven {
            if work.window.phase(place).is_none()
                && let Some(commit) = self.read(place)?
            {
                work.window.offer_again(place, &commit.stream);
            }
        }
        Ok(())
    }

    /// Takes some commits of the log into the window; whether there may be more.
    async fn look_ahead(&self, work: &mut Work) -> Result<bool, Ended> {
        let head = *work.head.borrow_and_update();
        if !work.window.has_room() || work.window.scanned() >= head {
            return Ok(false);
        }
        let (log, selection) = (Arc::clone(&self.groups.parts().log), Arc::clone(&work.selection));
        let from = work.window.scanned().next();
        let read = move || {
            let page = log.read_log(from, Direction::Forward, selection.log(), LOOK_LEN)?;
            let mut found = Vec::with_capacity(page.commits.len());
            for commit in &page.commits {
                let view = commit.view()?;
                let mut wanted = Vec::new();
                for (index, event) in (0..).zip(view.events()) {
                    let undecodable = |source| ReadError::Decode { position: commit.position, source };
                    if selection.keeps_event(&event.map_err(undecodable)?) {
                        wanted.push(Place { position: commit.position, index });
                    }
                }
                found.push((commit.position, view.stream.to_owned(), wanted));
            }
            Ok::<_, ReadError>((page.next, found))
        };
        let read = spawn_blocking(read).await.map_err(|failure| {
            error!(group = %self.group, error = %failure, "a group's reading thread ended");
            Ended::Broken
        })?;
        let (next, found) = read.map_err(|failure| self.broken(&failure))?;
        for (position, stream, wanted) in found {
            if !work.window.has_room() {
                return Ok(false);
            }
            for place in wanted {
                work.window.offer(place, &stream);
            }
            work.window.scanned_to(position);
        }
        work.window.scanned_to(Position(next.0.saturating_sub(1)));
        Ok(true)
    }

    /// Delivers while a consumer has room.
    fn deliver(&mut self, work: &mut Work) -> Result<(), Ended> {
        loop {
            let now = self.groups.parts().clock.now();
            let Some(place) = work.window.next(now) else { return Ok(()) };
            let has_room = |seat: &Seat| {
                // One place of the queue is kept for the reason of an end.
                seat.in_flight < seat.consumer.in_flight_max && seat.consumer.deliveries.capacity() > 1
            };
            let after = self.seats.range(self.turn.saturating_add(1)..).chain(self.seats.range(..=self.turn));
            let Some(id) = after.filter(|(_, seat)| has_room(seat)).map(|(id, _)| *id).next() else { return Ok(()) };
            let redriven = work.window.is_redriven(place);
            let commit = self.read(place)?;
            let (Some(attempt), Some(commit)) = (work.window.deliver(place, id, now), commit) else {
                error!(group = %self.group, position = %place.position, "an event of the log is gone");
                return Err(Ended::Broken);
            };
            self.turn = id;
            let delivery = pb::DeliveryId { position: place.position.0, index: place.index, attempt };
            let delivery = pb::Delivery { id: Some(delivery), commit: Some(commit), redriven };
            if let Some(seat) = self.seats.get_mut(&id) {
                seat.in_flight = seat.in_flight.saturating_add(1);
                // A consumer that is gone says so by leaving.
                seat.consumer.deliveries.try_send(Ok(pb::ConsumeResponse { delivery: Some(delivery) })).ok();
            }
        }
    }

    /// Begins a record, if one is worth it; else sees to it that one is made in time.
    fn record(&self, work: &mut Work) {
        if work.recording.is_some() || work.is_held_up {
            return;
        }
        let checkpoint = work.window.checkpoint();
        if work.is_due || work.unrecorded.is_urgent(checkpoint) {
            (work.pause, work.is_due) = (None, false);
            work.recording = work.unrecorded.take(checkpoint).map(|record| self.recording(record));
        } else if work.unrecorded.has_settled() && work.pause.is_none() {
            work.pause = Some(Box::pin(sleep(RECORD_EVERY)));
        }
    }

    fn recording(&self, record: Record) -> Recording {
        let (groups, group) = (self.groups.clone(), self.group.clone());
        Box::pin(async move {
            let asked = groups.ask(&group, record.command(), Principal::system("groups")).await;
            let facts = |events: &[_]| u64::try_from(events.len()).unwrap_or(u64::MAX);
            (record, asked.map(|decided| (decided.version, facts(&decided.events))))
        })
    }

    fn recorded(&self, work: &mut Work, (record, result): Recorded) {
        let now = self.groups.parts().clock.now();
        if let Ok((version, facts)) = result
            && version.0.checked_sub(facts) == Some(work.seen.0)
        {
            work.seen = version;
        }
        match result {
            Ok(_) | Err(Failure::Rejected(Rejection::NothingNew)) => {
                for parked in &record.parked {
                    work.window.parked(parked.place);
                }
                for place in record.redriven() {
                    work.window.recorded(place);
                }
                work.unrecorded.done(&record);
            }
            Err(failure) => {
                warn!(group = %self.group, error = chain(&failure, 2_048), "consumption not recorded, will retry");
                let is_full = matches!(failure, Failure::Rejected(Rejection::TooManyParked));
                if is_full {
                    for parked in &record.parked {
                        work.window.postpone(parked.place, now);
                    }
                }
                work.unrecorded.put_back(record, !is_full);
                work.is_held_up = true;
                work.pause = Some(Box::pin(sleep(RECORD_RETRY)));
            }
        }
    }

    /// Records what is left, as far as that goes.
    async fn finish(&self, work: &mut Work) {
        loop {
            if let Some(recording) = work.recording.take() {
                let (record, result) = recording.await;
                let failed = result.is_err();
                self.recorded(work, (record, result));
                if failed {
                    return;
                }
            }
            let checkpoint = work.window.checkpoint();
            match work.unrecorded.take(checkpoint) {
                Some(record) => work.recording = Some(self.recording(record)),
                None => return,
            }
        }
    }
}
