//! Brings something to the node that decides for its stream, again and again, until there is an answer or the time is up.
//!
//! Invariants: it goes to whoever decides at that moment, be it this node; what a later attempt refuses does not deny what
//! an earlier one may have done. That it happens once in all is the errand's affair: it carries an idempotency key.

use events_journal::{EventLog, Health};
use events_model::{Position, StreamId};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

use crate::{
    limits::{FORWARD_RETRY_FIRST, FORWARD_RETRY_MAX, FORWARD_WAIT_MAX},
    remote::{NoReply, Placement},
};

/// What one attempt came to.
#[derive(Debug)]
pub enum Attempt<T> {
    /// The answer.
    Done(T),
    /// This attempt did nothing: the answer, unless an earlier one may have done it.
    Refused(T),
    /// The same, and another attempt would be told the same.
    Denied(T),
    /// Certainly nothing was done, and another attempt may do it.
    Nothing,
    /// It may have been done.
    Perhaps,
}

/// What is to be done where a stream is decided.
pub trait Errand: Send {
    /// Its answer.
    type Answer: Send;

    /// Does it here, if this process still decides.
    fn here(&mut self) -> impl Future<Output = Attempt<Self::Answer>> + Send;

    /// Reads another node's reply; waits no longer than until the deadline.
    fn replied(&mut self, reply: &[u8], deadline: Instant) -> impl Future<Output = Attempt<Self::Answer>> + Send;
}

/// For waits alone; nothing that is recorded depends on it.
#[expect(clippy::disallowed_methods, reason = "how long to wait for another node is no input of a decision")]
fn now() -> Instant {
    Instant::now()
}

/// Brings an errand, which `question` puts in words, to the node that decides for a stream.
///
/// # Errors
/// `Nobody`: it was not done. `Late`: it may have been.
pub async fn bring<E: Errand>(
    placement: &dyn Placement,
    stream: &StreamId,
    question: &[u8],
    errand: &mut E,
) -> Result<E::Answer, NoReply> {
    let deadline = now() + FORWARD_WAIT_MAX;
    let mut pause = FORWARD_RETRY_FIRST;
    let mut perhaps = false;
    loop {
        let attempt = if placement.is_here(stream) {
            errand.here().await
        } else {
            let left = deadline.saturating_duration_since(now());
            match placement.forward(stream, question, left).await {
                Ok(reply) => errand.replied(&reply, deadline).await,
                Err(NoReply::Nobody) => Attempt::Nothing,
                Err(NoReply::Late) => Attempt::Perhaps,
            }
        };
        match attempt {
            Attempt::Done(answer) => return Ok(answer),
            Attempt::Refused(answer) | Attempt::Denied(answer) if !perhaps => return Ok(answer),
            // What an earlier attempt may yet do cannot be waited for: whoever got it may stand still for any time.
            Attempt::Denied(_) => return Err(NoReply::Late),
            Attempt::Refused(_) => debug!(%stream, "asked again, for an earlier attempt may have done it"),
            Attempt::Nothing => {}
            Attempt::Perhaps => perhaps = true,
        }
        if now() + pause >= deadline {
            return Err(if perhaps { NoReply::Late } else { NoReply::Nobody });
        }
        sleep(pause).await;
        pause = (pause * 2).min(FORWARD_RETRY_MAX);
    }
}

/// Waits until this node's own log shows a position, so that the caller reads what it was told. In vain at the most until
/// the deadline, and not at all while nothing gets into this node's log: what was done stands all the same.
pub async fn until_here(log: &dyn EventLog, position: Position, deadline: Instant) {
    let (mut head, mut health) = (log.watch_head(), log.watch_health());
    let shown = async {
        tokio::select! {
            _shown = head.wait_for(|head| *head >= position) => {}
            _refuses = health.wait_for(|health| *health != Health::Accepting) => {}
        }
    };
    // Late or closed: nothing more can be done for the caller.
    let _late = timeout_at(deadline, shown).await;
}
