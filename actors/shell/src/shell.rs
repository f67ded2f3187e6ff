//! The shell: finds or starts the actor of a stream, watches deadlines, drains.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

use actix::{Actor, Addr, ArbiterHandle, prelude::SendError};
use actors_core::Decider;
use events_journal::{EventLog, SnapshotStore};
use events_model::StreamId;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::{
    acknowledge::{Acknowledger, Answer},
    ask::{Ask, Unavailable},
    clock::{Clock, Ids},
    deadlines::Deadlines,
    limits::{DRAIN_TIMEOUT, OVERLOAD_RETRY_AFTER, Settings, micros},
    messaging::{Entrance, Envelope, Mailbox, Rim},
    runner::{Environment, Message, Read, Runner},
    saver::Saver,
};

/// Counts of a shell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Actors in memory.
    pub live: usize,
    /// States loaded from the log.
    pub loads: u64,
    /// Actors restarted after a panic.
    pub restarts: u64,
    /// Snapshots taken.
    pub snapshots: u64,
}

struct Entry<D: Decider> {
    address: Addr<Rim<Runner<D>>>,
    mailbox: Arc<Mailbox>,
    number: u64,
}

impl<D: Decider> Clone for Entry<D> {
    fn clone(&self) -> Self {
        Self { address: self.address.clone(), mailbox: Arc::clone(&self.mailbox), number: self.number }
    }
}

struct Inner<D: Decider> {
    environment: Arc<Environment>,
    entries: RwLock<HashMap<StreamId, Entry<D>>>,
    arbiters: Vec<ArbiterHandle>,
    started: AtomicU64,
    closing: AtomicBool,
    /// Ends the actors' threads.
    stop: Mutex<Option<oneshot::Sender<()>>>,
}

/// Runs the actors of one kind. Cheap to clone; the actors end when it is drained.
pub struct Shell<D: Decider> {
    inner: Arc<Inner<D>>,
}

impl<D: Decider> Clone for Shell<D> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<D: Decider> std::fmt::Debug for Shell<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shell").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl<D: Decider> Shell<D> {
    /// Starts the actors' threads and the watch over deadlines; no actor yet.
    pub fn start(
        log: Arc<dyn EventLog>,
        snapshots: Arc<dyn SnapshotStore>,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn Ids>,
        settings: Settings,
    ) -> Self {
        let count = match settings.arbiters {
            0 => thread::available_parallelism().map_or(1, usize::from),
            count => count,
        };
        let environment = Arc::new(Environment {
            saver: Saver::start(Arc::clone(&snapshots)),
            health: log.watch_health(),
            started_at: clock.now(),
            log,
            snapshots,
            clock,
            ids,
            settings,
            deadlines: Arc::new(Deadlines::default()),
            loads: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
            snapshots_taken: AtomicU64::new(0),
        });
        let (stop, stopped) = oneshot::channel();
        let (ready, arbiters) = std::sync::mpsc::channel();
        let system = move || {
            let system = actix::System::new();
            system.block_on(async move {
                let arbiters: Vec<_> = (0..count).map(|_| actix::Arbiter::new()).collect();
                let handles: Vec<_> = arbiters.iter().map(actix::Arbiter::handle).collect();
                // The starter waits for it; without a starter there is nothing to run.
                let _gone = ready.send(handles);
                // Either word or a dropped shell ends the threads.
                let _ended = stopped.await;
                for arbiter in arbiters {
                    arbiter.stop();
                }
            });
        };
        if let Err(error) = thread::Builder::new().name("actors".to_owned()).spawn(system) {
            warn!(%error, "actors' thread not started");
        }
        let inner = Arc::new(Inner {
            environment,
            entries: RwLock::new(HashMap::new()),
            arbiters: arbiters.recv().unwrap_or_default(),
            started: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            stop: Mutex::new(Some(stop)),
        });
        let shell = Self { inner };
        shell.watch_deadlines();
        shell
    }

    /// The actor of a stream; it starts with its first message.
    pub fn actor(&self, stream: &StreamId) -> Handle<D> {
        Handle { shell: self.clone(), stream: stream.clone() }
    }

    /// Loads an actor so that its deadlines are watched.
    pub fn wake(&self, stream: &StreamId) {
        // An actor that has just ended is forgotten and the next one woken.
        for _ in 0..2 {
            let Some(entry) = self.entry(stream) else { return };
            match entry.address.try_send(Envelope(Message::Tick)) {
                Ok(()) => return,
                Err(SendError::Full(_) | SendError::Closed(_)) => self.forget(stream, &entry),
            }
        }
    }

    /// Counts.
    pub fn stats(&self) -> Stats {
        let environment = &self.inner.environment;
        Stats {
            live: self.inner.entries.read().len(),
            loads: environment.loads.load(Ordering::Relaxed),
            restarts: environment.restarts.load(Ordering::Relaxed),
            snapshots: environment.snapshots_taken.load(Ordering::Relaxed),
        }
    }

    /// Ends all actors: nothing new is decided, what is in flight is answered, snapshots are saved.
    pub async fn drain(&self) {
        let entries: Vec<_> = {
            let entries = self.inner.entries.write();
            self.inner.closing.store(true, Ordering::Release);
            entries.values().cloned().collect()
        };
        let mut ends = Vec::with_capacity(entries.len());
        for entry in entries {
            let (done, end) = oneshot::channel();
            entry.address.do_send(Envelope(Message::Stop { done }));
            ends.push(end);
        }
        self.inner.environment.deadlines.close();
        let all = async {
            futures::future::join_all(ends).await;
            self.inner.environment.saver.flush().await;
        };
        if tokio::time::timeout(DRAIN_TIMEOUT, all).await.is_err() {
            warn!("actors did not end in time, their callers must ask again");
        }
        if let Some(stop) = self.inner.stop.lock().take() {
            // The threads may have ended already.
            let _gone = stop.send(());
        }
    }

    fn entry(&self, stream: &StreamId) -> Option<Entry<D>> {
        if let Some(entry) = self.inner.entries.read().get(stream) {
            return Some(entry.clone());
        }
        let mut entries = self.inner.entries.write();
        if let Some(entry) = entries.get(stream) {
            return Some(entry.clone());
        }
        // Under the lock: an actor is either seen by the drain or not started.
        if self.inner.closing.load(Ordering::Acquire) {
            return None;
        }
        let entry = self.start_actor(stream)?;
        entries.insert(stream.clone(), entry.clone());
        Some(entry)
    }

    /// Takes an actor that has ended out of the registry, if it is still there.
    fn forget(&self, stream: &StreamId, ended: &Entry<D>) {
        let mut entries = self.inner.entries.write();
        if entries.get(stream).is_some_and(|entry| entry.number == ended.number) {
            entries.remove(stream);
        }
    }

    fn start_actor(&self, stream: &StreamId) -> Option<Entry<D>> {
        let number = self.inner.started.fetch_add(1, Ordering::Relaxed);
        let count = u64::try_from(self.inner.arbiters.len()).unwrap_or(1).max(1);
        let arbiter = self.inner.arbiters.get(usize::try_from(number % count).unwrap_or(0))?;
        let environment = Arc::clone(&self.inner.environment);
        let mailbox = Arc::new(Mailbox::default());
        let (stream, shared) = (stream.clone(), Arc::clone(&mailbox));
        let registry = Arc::downgrade(&self.inner);
        let leave_stream = stream.clone();
        let leave = Box::new(move || {
            if let Some(inner) = registry.upgrade() {
                let mut entries = inner.entries.write();
                if entries.get(&leave_stream).is_some_and(|entry| entry.number == number) {
                    entries.remove(&leave_stream);
                }
            }
        });
        let address = Rim::start_in_arbiter(arbiter, move |context| {
            let (pending, queue) = mpsc::unbounded_channel();
            let in_flight = Arc::new(AtomicUsize::new(0));
            let voided = Arc::new(AtomicU64::new(0));
            let address = actix::AsyncContext::address(context).downgrade();
            let acknowledger = Acknowledger {
                stream: stream.clone(),
                log: Arc::clone(&environment.log),
                saver: environment.saver.clone(),
                queue,
                in_flight: Arc::clone(&in_flight),
                voided: Arc::clone(&voided),
                void: Box::new(move |generation| {
                    if let Some(address) = address.upgrade() {
                        address.do_send(Envelope(Message::Void { generation }));
                    }
                }),
            };
            actix::spawn(acknowledger.run());
            let idle_check = environment.settings.idle_after / 2;
            let receiver = Box::new(Runner::new(stream, environment, pending, (in_flight, voided), shared, leave));
            Rim { receiver, idle_check }
        });
        Some(Entry { address, mailbox, number })
    }

    /// Wakes actors whose deadline has come, until the shell is gone. The thread owns no shell, so it does not
    /// keep one alive.
    fn watch_deadlines(&self) {
        let inner = Arc::downgrade(&self.inner);
        let environment = &self.inner.environment;
        let (deadlines, clock) = (Arc::clone(&environment.deadlines), Arc::clone(&environment.clock));
        let watch = move || {
            while let Some(due) = deadlines.wait_due(&*clock)
                && let Some(inner) = inner.upgrade()
            {
                let shell = Self { inner };
                for stream in due {
                    shell.wake(&stream);
                }
            }
        };
        if let Err(error) = thread::Builder::new().name("deadlines".to_owned()).spawn(watch) {
            warn!(%error, "deadlines' thread not started");
        }
    }
}

impl<D: Decider> Drop for Inner<D> {
    fn drop(&mut self) {
        self.environment.deadlines.close();
    }
}

/// The way to one actor. Cheap to clone.
pub struct Handle<D: Decider> {
    shell: Shell<D>,
    stream: StreamId,
}

impl<D: Decider> Clone for Handle<D> {
    fn clone(&self) -> Self {
        Self { shell: self.shell.clone(), stream: self.stream.clone() }
    }
}

impl<D: Decider> std::fmt::Debug for Handle<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl<D: Decider> Handle<D> {
    /// Asks the actor to decide a command; answers when the decision is durable.
    ///
    /// # Errors
    /// No decision came; ask again with the same commit id. A broken rule is not an error but the inner `Err`.
    ///
    /// # Cancel safety
    /// The command may be decided although nobody waits for the answer.
    pub async fn ask(&self, ask: Ask<D::Command>) -> Answer<D> {
        match &self.shell.inner.environment.settings.placement {
            Some(placement) if !placement.is_here(&self.stream) => self.ask_elsewhere(&**placement, ask).await,
            _ => self.ask_here(ask).await,
        }
    }

    /// Asks the actor in this process.
    pub(crate) async fn ask_here(&self, ask: Ask<D::Command>) -> Answer<D> {
        let message = |reply| Message::Ask { ask: Box::new(ask), reply };
        self.send(message).await?
    }

    pub(crate) const fn stream(&self) -> &StreamId {
        &self.stream
    }

    pub(crate) fn log(&self) -> &dyn EventLog {
        self.shell.inner.environment.log.as_ref()
    }

    /// Looks at the newest state; answers when all that it shows is durable.
    ///
    /// # Errors
    /// The state cannot be loaded, or what it shows did not become durable.
    pub async fn read<R: Send + 'static>(
        &self,
        read: impl FnOnce(&D::State) -> R + Send + 'static,
    ) -> Result<R, Unavailable> {
        self.look(true, read).await
    }

    /// Looks at the newest state and answers at once, durable or not.
    ///
    /// # Errors
    /// The state cannot be loaded.
    pub async fn peek<R: Send + 'static>(
        &self,
        read: impl FnOnce(&D::State) -> R + Send + 'static,
    ) -> Result<R, Unavailable> {
        self.look(false, read).await
    }

    async fn look<R: Send + 'static>(
        &self,
        durable: bool,
        read: impl FnOnce(&D::State) -> R + Send + 'static,
    ) -> Result<R, Unavailable> {
        self.send(|reply| Message::Read { durable, read: Box::new(Look { read, reply }) }).await?
    }

    /// Sends a message that carries the way to its answer.
    async fn send<A>(&self, message: impl FnOnce(oneshot::Sender<A>) -> Message<D>) -> Result<A, Unavailable> {
        if self.shell.inner.closing.load(Ordering::Acquire) {
            return Err(Unavailable::Closed);
        }
        let (reply, answer) = oneshot::channel();
        let mut message = Envelope(message(reply));
        // An actor that is being put away refuses the message and gives it back: the next one takes it.
        for _ in 0..3 {
            let Some(entry) = self.shell.entry(&self.stream) else { return Err(Unavailable::Closed) };
            match entry.mailbox.enter(self.shell.inner.environment.settings.mailbox_len_max) {
                Entrance::Open => {}
                Entrance::Full => {
                    return Err(Unavailable::Overloaded { retry_after: micros(OVERLOAD_RETRY_AFTER) });
                }
                Entrance::Closed => {
                    self.shell.forget(&self.stream, &entry);
                    continue;
                }
            }
            match entry.address.try_send(message) {
                Ok(()) => return answer.await.map_err(|_| Unavailable::Restarted),
                Err(SendError::Full(_)) => {
                    entry.mailbox.leave();
                    return Err(Unavailable::Overloaded { retry_after: micros(OVERLOAD_RETRY_AFTER) });
                }
                Err(SendError::Closed(back)) => {
                    self.shell.forget(&self.stream, &entry);
                    message = back;
                }
            }
        }
        Err(Unavailable::Restarted)
    }
}

/// A look at a state and who waits for it.
struct Look<F, R> {
    read: F,
    reply: oneshot::Sender<Result<R, Unavailable>>,
}

impl<D, F, R> Read<D> for Look<F, R>
where
    D: Decider,
    R: Send + 'static,
    F: FnOnce(&D::State) -> R + Send + 'static,
{
    fn look(self: Box<Self>, state: Result<&D::State, Unavailable>) -> Box<dyn FnOnce(Result<(), Unavailable>) + Send> {
        let Self { read, reply } = *self;
        let seen = state.map(read);
        Box::new(move |durable| {
            // A caller that has gone away does not need its answer.
            let _gone = reply.send(durable.and(seen));
        })
    }
}
