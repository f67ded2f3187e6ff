//! A read model folded from the start of the log, without checkpoints. Blocks.
//!
//! Invariant: the same log and code give the same fold as the live one has, once that one has carried out what was
//! decided about parked events; what was given up before the end is in it nowhere.

use std::collections::BTreeSet;

use events_journal::{Direction, EventLog, Filter, ReadError};
use events_model::{Position, group::Place};

use crate::{
    parked::Parked,
    projection::{BATCH_LEN_MAX, Fold, Projection},
};

/// Recomputes a read model from the start of the log to a position (the head, if that comes first).
///
/// # Errors
/// As `EventLog::read_log`.
pub fn fold_to<P: Projection>(log: &dyn EventLog, upto: Position) -> Result<Fold<P::State>, ReadError> {
    // Without anybody who stops it there is always one.
    let rebuilt = rebuild::<P>(log, upto, BTreeSet::new(), || false);
    rebuilt.map(Option::unwrap_or_default).map_err(|unread| unread.source)
}

/// A part of the log that cannot be read.
#[derive(Debug)]
pub(crate) struct Unread {
    /// Where the read began.
    pub(crate) from: Position,
    /// Why.
    pub(crate) source: ReadError,
}

/// The same, with what is known to be given up; `None` = it was stopped.
pub(crate) fn rebuild<P: Projection>(
    log: &dyn EventLog,
    upto: Position,
    mut dropped: BTreeSet<Place>,
    is_stopped: impl Fn() -> bool,
) -> Result<Option<Fold<P::State>>, Unread> {
    loop {
        let parked = Parked::without(dropped);
        let mut fold = Fold { state: P::State::default(), position: Position::ZERO, parked };
        if !fold_on::<P>(log, &mut fold, upto, &is_stopped)? {
            return Ok(None);
        }
        fold.parked.tried();
        // Given up behind the place where it was applied: once more, and now it is known.
        if fold.parked.is_settled() {
            return Ok(Some(fold));
        }
        dropped = fold.parked.into_dropped();
    }
}

/// Folds on to a position; whether it got there.
pub(crate) fn fold_on<P: Projection>(
    log: &dyn EventLog,
    fold: &mut Fold<P::State>,
    upto: Position,
    is_stopped: &impl Fn() -> bool,
) -> Result<bool, Unread> {
    let upto = upto.min(log.head_position());
    let mut next = fold.position.next();
    while next <= upto {
        if is_stopped() {
            return Ok(false);
        }
        let page = log.read_log(next, Direction::Forward, &Filter::default(), BATCH_LEN_MAX);
        let page = page.map_err(|source| Unread { from: next, source })?;
        for commit in page.commits.iter().take_while(|commit| commit.position <= upto) {
            fold.apply::<P>(commit);
        }
        if page.next <= next {
            break;
        }
        next = page.next;
    }
    Ok(true)
}
