//! The rim: what turns a runner into an actix actor. Nothing else in Freehold touches actix.
//!
//! A runner receives a closed set of messages and says afterwards whether it goes on; the framework could be
//! replaced by changing this file and `shell`.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use actix::{Actor, AsyncContext, Context, Handler, Message};

/// Whether an actor goes on after a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Continue,
    Stop,
}

/// Receives messages one at a time.
pub(crate) trait Receive<M>: 'static {
    /// Handles a message.
    fn receive(&mut self, message: M) -> Next;
}

/// What a closed mailbox has in place of a count; no bound is that large.
const CLOSED: usize = usize::MAX;

/// Whether a message may enter a mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entrance {
    Open,
    /// All places are taken, which is counted.
    Full,
    /// The actor is being put away; the next one of its stream takes the message.
    Closed,
}

/// Counts what waits for one actor, so that a full mailbox is seen before anything enters it.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    waiting: AtomicUsize,
    turned_away: AtomicU64,
}

impl Mailbox {
    /// Takes a place.
    pub(crate) fn enter(&self, len_max: usize) -> Entrance {
        let next = |waiting: usize| (waiting < len_max).then(|| waiting.saturating_add(1));
        match self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, next) {
            Ok(_) => Entrance::Open,
            Err(CLOSED) => Entrance::Closed,
            Err(_) => {
                self.turned_away.fetch_add(1, Ordering::AcqRel);
                Entrance::Full
            }
        }
    }

    /// Lets nobody enter any more, if nobody is in: nothing that entered is then lost when the actor ends.
    pub(crate) fn close_if_empty(&self) -> bool {
        self.waiting.compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Gives a place back.
    pub(crate) fn leave(&self) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
    }

    /// How many were turned away since the last call.
    pub(crate) fn take_turned_away(&self) -> u64 {
        self.turned_away.swap(0, Ordering::AcqRel)
    }
}

/// Wraps our message for actix.
pub(crate) struct Envelope<M>(pub(crate) M);

impl<M: 'static> Message for Envelope<M> {
    type Result = ();
}

/// Wraps a receiver for actix.
pub(crate) struct Rim<R> {
    /// Boxed, so that states need not be `Unpin`.
    pub(crate) receiver: Box<R>,
    pub(crate) idle_check: Duration,
}

impl<R: IdleCheck + 'static> Actor for Rim<R> {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        // The bound is `Mailbox`'s: actix gives every sender a place of its own, so its capacity bounds nothing
        // where each caller has a sender.
        context.set_mailbox_capacity(0);
        // An interval does not fire while the mailbox is busy, which is exactly when an actor is not idle.
        context.run_interval(self.idle_check, |rim, context| {
            if rim.receiver.idle_now() {
                actix::ActorContext::stop(context);
            }
        });
    }
}

/// Is asked now and then whether nothing is left to do, so that the actor may end.
pub(crate) trait IdleCheck {
    fn idle_now(&mut self) -> bool;
}

impl<M: Send + 'static, R: Receive<M> + IdleCheck> Handler<Envelope<M>> for Rim<R> {
    type Result = ();

    fn handle(&mut self, message: Envelope<M>, context: &mut Self::Context) {
        if self.receiver.receive(message.0) == Next::Stop {
            actix::ActorContext::stop(context);
        }
    }
}
