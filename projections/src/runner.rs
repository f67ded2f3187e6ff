//! Keeps one read model at the head of the log: catch up from the checkpoint, then follow, saving now and then.
//!
//! Invariants: readers see state and position of one moment; folding and saving happen on blocking threads, in
//! batches of at most `BATCH_LEN_MAX` commits, so that neither the runtime nor a reader waits long; a checkpoint
//! that cannot be used is discarded with a WARN and costs a rebuild, never a wrong number. Parked events are tried again
//! at every start, and when an operator wants it, by folding the log anew beside the live fold, which is then replaced:
//! so an event counts where it lies, not where it was repaired. If that fails, the live fold goes on as it is, and the
//! next decision or start tries again. What is not here: telling what is shown (the projections
//! do) and restarting (a failed run ends with its error; its owner decides).

use std::{fmt, future::pending, marker::PhantomData, sync::Arc, time::Duration};

use events_journal::{Direction, EventLog, Filter, ReadError, SnapshotStore};
use events_model::Position;
use parking_lot::RwLock;
use tokio::{
    sync::watch,
    task::{JoinError, JoinHandle, spawn_blocking},
    time::{MissedTickBehavior, interval, timeout},
};
use tracing::{info, warn};

use crate::{
    checkpoint,
    parked::Parked,
    projection::{BATCH_LEN_MAX, Fold, Projection},
    rebuild::{Unread, fold_on, rebuild},
};

/// When checkpoints are saved, besides at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Save after this many commits.
    pub checkpoint_commits: u64,
    /// Save this often, if there was anything new.
    pub checkpoint_every: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { checkpoint_commits: 100_000, checkpoint_every: Duration::from_secs(10) }
    }
}

/// How far the first catch-up is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The last commit that was folded.
    pub position: Position,
    /// The log's head at this moment.
    pub head: Position,
}

/// Why a run ended early. The state stays readable as it was.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The log cannot be read on.
    #[error("read the log from position {position}")]
    Read {
        /// Where the read began.
        position: Position,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// The log says it has more and gives nothing.
    #[error("the log ends at position {position}, before its head {head}")]
    Stuck {
        /// The last commit that was folded.
        position: Position,
        /// What the log says.
        head: Position,
    },
    /// The fold panicked; nothing of it was saved.
    #[error("the fold behind position {position} panicked")]
    Panicked {
        /// The last commit that was certainly folded.
        position: Position,
        /// What happened to the thread.
        #[source]
        source: JoinError,
    },
}

/// Why a position was not reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// Not in time.
    #[error("position {wanted} was not reached in time, only {reached}")]
    TimedOut {
        /// What was waited for.
        wanted: Position,
        /// Where the read model is.
        reached: Position,
    },
    /// The runner has ended.
    #[error("the projection stopped at position {reached}, before {wanted}")]
    Stopped {
        /// What was waited for.
        wanted: Position,
        /// Where the read model is.
        reached: Position,
    },
    /// The log could not be folded anew; the next decision or start tries again.
    #[error("the log could not be folded anew, the read model at position {reached} stays as it is")]
    NotRebuilt {
        /// Where the read model is.
        reached: Position,
    },
}

/// Reads a read model while its runner keeps it up to date. Cheap to clone.
pub struct Reader<P: Projection> {
    fold: Arc<RwLock<Fold<P::State>>>,
    reached: watch::Receiver<Position>,
}

impl<P: Projection> Clone for Reader<P> {
    fn clone(&self) -> Self {
        Self { fold: Arc::clone(&self.fold), reached: self.reached.clone() }
    }
}

impl<P: Projection> fmt::Debug for Reader<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("projection", &P::NAME).field("position", &self.position()).finish()
    }
}

impl<P: Projection> Reader<P> {
    /// Looks at the state and the last position it contains. Folding waits meanwhile: look, copy, leave.
    pub fn read<R>(&self, look: impl FnOnce(&P::State, Position) -> R) -> R {
        let fold = self.fold.read();
        look(&fold.state, fold.position)
    }

    /// The last position the state contains.
    pub fn position(&self) -> Position {
        self.fold.read().position
    }

    /// What did not apply.
    pub fn parked(&self) -> Parked {
        self.look_at_parked(Parked::clone)
    }

    /// Looks at what did not apply. Folding waits meanwhile: look, copy, leave.
    pub fn look_at_parked<R>(&self, look: impl FnOnce(&Parked) -> R) -> R {
        look(&self.fold.read().parked)
    }

    /// Waits until what was decided about parked events, up to the position that the state contains, is carried out.
    ///
    /// # Errors
    /// It was not in time, or failed, or the runner has ended before.
    ///
    /// # Cancel safety
    /// Safe: nothing changes.
    pub async fn wait_rebuilt(&self, at_most: Duration) -> Result<(), WaitError> {
        self.wait_while(Parked::is_pending, at_most).await
    }

    /// Waits until the state lacks what was given up, up to the position that it contains. Nothing has to be folded anew
    /// for what it had parked.
    ///
    /// # Errors
    /// It was not in time, or failed, or the runner has ended before.
    ///
    /// # Cancel safety
    /// Safe: nothing changes.
    pub async fn wait_given_up(&self, at_most: Duration) -> Result<(), WaitError> {
        self.wait_while(Parked::shows_given_up, at_most).await
    }

    async fn wait_while(&self, open: fn(&Parked) -> bool, at_most: Duration) -> Result<(), WaitError> {
        let mut reached = self.reached.clone();
        let wanted = self.position();
        match timeout(at_most, reached.wait_for(|_| !self.look_at_parked(open))).await {
            Ok(Ok(_)) if self.look_at_parked(Parked::has_failed) => {
                Err(WaitError::NotRebuilt { reached: self.position() })
            }
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(WaitError::Stopped { wanted, reached: self.position() }),
            Err(_) => Err(WaitError::TimedOut { wanted, reached: self.position() }),
        }
    }

    /// Waits until the state contains a position: an append's own position gives read-your-writes.
    ///
    /// # Errors
    /// It did not in time, or the runner has ended before.
    ///
    /// # Cancel safety
    /// Safe: nothing changes.
    pub async fn wait_for(&self, wanted: Position, at_most: Duration) -> Result<(), WaitError> {
        let mut reached = self.reached.clone();
        match timeout(at_most, reached.wait_for(|reached| *reached >= wanted)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(WaitError::Stopped { wanted, reached: self.position() }),
            Err(_) => Err(WaitError::TimedOut { wanted, reached: self.position() }),
        }
    }
}

/// Keeps one read model up to date.
pub struct Runner<P: Projection> {
    log: Arc<dyn EventLog>,
    store: Arc<dyn SnapshotStore>,
    options: Options,
    fold: Arc<RwLock<Fold<P::State>>>,
    reached: watch::Sender<Position>,
    projection: PhantomData<P>,
}

impl<P: Projection> fmt::Debug for Runner<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner").field("projection", &P::NAME).field("reached", &*self.reached.borrow()).finish()
    }
}

impl<P: Projection> Runner<P> {
    /// Loads the checkpoint (blocks as long as that takes) and hands out the way to read the state.
    pub fn open(log: Arc<dyn EventLog>, store: Arc<dyn SnapshotStore>, options: Options) -> (Self, Reader<P>) {
        let mut fold = load::<P>(&*log, &*store).unwrap_or_default();
        // This process may be the one that can apply them.
        fold.parked.redrive();
        let (reached, reader) = watch::channel(fold.position);
        let fold = Arc::new(RwLock::new(fold));
        let reader = Reader { fold: Arc::clone(&fold), reached: reader };
        (Self { log, store, options, fold, reached, projection: PhantomData }, reader)
    }

    /// Folds until `stop` becomes true (or its sender is gone) or the log is closed, then saves a checkpoint.
    /// `progress` is told of each batch of the first catch-up, and at once when there is nothing to catch up with.
    ///
    /// # Errors
    /// The log cannot be read on, or the projection panicked: no checkpoint is saved, readers keep what there is.
    ///
    /// # Cancel safety
    /// Dropping it loses at most the work since the last checkpoint.
    pub async fn run(
        self,
        mut stop: watch::Receiver<bool>,
        mut progress: impl FnMut(Progress) + Send,
    ) -> Result<(), RunError> {
        let mut head = self.log.watch_head();
        let mut timer = interval(self.options.checkpoint_every);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut position = *self.reached.borrow();
        let (mut saved, mut attempted) = (position, position);
        let (mut catching_up, mut told) = (true, None);
        // The log may never stand still: a fold that has come to where it ended is no longer behind.
        let begun = *head.borrow();
        let mut rebuilding = None;
        loop {
            let target = *head.borrow_and_update();
            if catching_up && told != Some(position) {
                progress(Progress { position, head: target });
                told = Some(position);
                catching_up = position < target;
            }
            let is_behind = position < target;
            if position >= begun && rebuilding.is_none() && self.fold.read().parked.wants_rebuild() {
                rebuilding = Some(self.rebuild(position, stop.clone()));
            }
            tokio::select! {
                biased;
                () = async { drop(stop.wait_for(|stop| *stop).await) } => break,
                _ = timer.tick() => self.save_new(&mut saved, position).await,
                rebuilt = rebuilt(&mut rebuilding) => {
                    if self.take(rebuilt, position).await {
                        // What is saved has been replaced.
                        saved = Position::ZERO;
                        self.save_new(&mut saved, position).await;
                    }
                }
                more = async { if is_behind { Ok(()) } else { head.changed().await } } => {
                    if more.is_err() {
                        break;
                    }
                    if is_behind {
                        position = self.fold_batch(position, target).await?;
                        if position.0.saturating_sub(attempted.0) >= self.options.checkpoint_commits {
                            attempted = position;
                            self.save_new(&mut saved, position).await;
                        }
                    }
                }
            }
        }
        self.save_new(&mut saved, position).await;
        Ok(())
    }

    async fn fold_batch(&self, position: Position, head: Position) -> Result<Position, RunError> {
        let (log, fold) = (Arc::clone(&self.log), Arc::clone(&self.fold));
        let from = position.next();
        let batch = move || -> Result<Position, ReadError> {
            let page = log.read_log(from, Direction::Forward, &Filter::default(), BATCH_LEN_MAX)?;
            let mut fold = fold.write();
            let parked = fold.parked.count;
            for commit in &page.commits {
                fold.apply::<P>(commit);
            }
            if fold.parked.count > parked {
                warn_of_parked(P::NAME, &fold.parked, parked);
            }
            Ok(fold.position)
        };
        let reached = ended(position, spawn_blocking(batch).await)?;
        if reached <= position {
            return Err(RunError::Stuck { position, head });
        }
        self.reached.send_replace(reached);
        Ok(reached)
    }

    /// Begins to fold the log anew, as far as the live fold is.
    fn rebuild(&self, upto: Position, stop: watch::Receiver<bool>) -> Rebuilding<P::State> {
        let log = Arc::clone(&self.log);
        let (dropped, count) = {
            let fold = self.fold.read();
            (fold.parked.dropped(), fold.parked.count)
        };
        info!(projection = P::NAME, %upto, parked = count, "folding the log anew for parked events");
        let is_stopped = move || *stop.borrow() || stop.has_changed().is_err();
        spawn_blocking(move || rebuild::<P>(&*log, upto, dropped, is_stopped))
    }

    /// Puts a fold that was made anew in the place of the live one; whether it did. If there is none, or it does not
    /// come as far, the live one goes on: a damaged part of the log that it has behind it is no reason to stop it.
    async fn take(&self, rebuilt: Rebuilt<P::State>, position: Position) -> bool {
        let replaced = match rebuilt {
            Ok(Ok(Some(fold))) => self.replace(fold, position).await,
            // It was stopped, and so is this.
            Ok(Ok(None)) => return false,
            Ok(Err(unread)) => Ok(Err(unread)),
            Err(panicked) => Err(panicked),
        };
        let is_replaced = match replaced {
            Ok(Ok(left)) => {
                info!(projection = P::NAME, %position, parked = left, "read model folded anew");
                true
            }
            Ok(Err(Unread { from, source })) => {
                let error = &source as &dyn std::error::Error;
                warn!(projection = P::NAME, %from, error, "log not readable, the read model stays as it is");
                false
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                warn!(projection = P::NAME, error, "folding the log anew panicked, the read model stays as it is");
                false
            }
        };
        if !is_replaced {
            self.fold.write().parked.failed();
        }
        // Whoever waits for it looks again.
        self.reached.send_modify(|_| {});
        is_replaced
    }

    /// Brings a fold that was made anew to where the live one is, and puts it in its place; gives what is parked then.
    async fn replace(&self, mut new: Fold<P::State>, position: Position) -> Result<Result<u64, Unread>, JoinError> {
        let (log, fold) = (Arc::clone(&self.log), Arc::clone(&self.fold));
        let replace = move || -> Result<u64, Unread> {
            // The live fold waits, so there is little of it and nothing to stop.
            fold_on::<P>(&*log, &mut new, position, &|| false)?;
            let mut fold = fold.write();
            new.parked.tried_after(&fold.parked);
            let left = new.parked.count;
            *fold = new;
            Ok(left)
        };
        spawn_blocking(replace).await
    }

    /// Saves a checkpoint if there is anything new. One that cannot be saved is tried again at the next occasion.
    async fn save_new(&self, saved: &mut Position, position: Position) {
        if position == *saved {
            return;
        }
        let (log, store, fold) = (Arc::clone(&self.log), Arc::clone(&self.store), Arc::clone(&self.fold));
        let save = move || {
            // Only this runner writes, so readers are not kept out, and the lock is not held during the write.
            let blob = checkpoint::encode::<P>(&*log, &fold.read());
            match blob {
                Ok(blob) => store.save_checkpoint(P::NAME, &blob).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            }
        };
        match spawn_blocking(save).await.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(()) => *saved = position,
            Err(error) => warn!(projection = P::NAME, %position, error, "checkpoint not saved"),
        }
    }
}

/// A fold of the whole log on its way.
type Rebuilding<S> = JoinHandle<Result<Option<Fold<S>>, Unread>>;
/// What became of it.
type Rebuilt<S> = Result<Result<Option<Fold<S>>, Unread>, JoinError>;

/// Waits for a fold that is being made anew; for ever, if there is none.
async fn rebuilt<S>(rebuilding: &mut Option<Rebuilding<S>>) -> Rebuilt<S> {
    let Some(running) = rebuilding else { return pending().await };
    let done = running.await;
    *rebuilding = None;
    done
}

/// What a thread that folds behind a position came to.
fn ended<T>(position: Position, result: Result<Result<T, ReadError>, JoinError>) -> Result<T, RunError> {
    result
        .map_err(|source| RunError::Panicked { position, source })?
        .map_err(|source| RunError::Read { position: position.next(), source })
}

fn warn_of_parked(projection: &'static str, parked: &Parked, before: u64) {
    let newest = parked.events.last();
    let (position, error) = newest.map_or((Position::ZERO, ""), |event| (event.position, event.error.as_str()));
    warn!(projection, added = parked.count.saturating_sub(before), %position, error, "events parked");
}

fn load<P: Projection>(log: &dyn EventLog, store: &dyn SnapshotStore) -> Option<Fold<P::State>> {
    let blob = match store.load_checkpoint(P::NAME) {
        Ok(blob) => blob?,
        Err(error) => {
            warn!(projection = P::NAME, %error, "checkpoint not readable, rebuilding");
            return None;
        }
    };
    let head = log.head_position();
    if blob.at > head.0 {
        warn!(projection = P::NAME, at = blob.at, %head, "checkpoint ahead of the log discarded, rebuilding");
        return None;
    }
    match checkpoint::decode::<P>(log, &blob) {
        Ok(fold) => Some(fold),
        Err(checkpoint::Error::Version { found, expected }) => {
            info!(projection = P::NAME, found, expected, "checkpoint of another version discarded, rebuilding");
            None
        }
        Err(error) => {
            warn!(projection = P::NAME, error = &error as &dyn std::error::Error, "checkpoint discarded, rebuilding");
            None
        }
    }
}
