//! What an actor does without being asked: what has fallen due, and the sums of its refusals.

use actors_core::Decider;
use events_model::{CommitId, DecisionContext, DurationUs, EpisodeId, Principal, TimestampUs, tenant::RefusalReason};
use tracing::warn;

use super::{Refused, Runner};
use crate::{
    acknowledge::Pending,
    ask::Ask,
    limits::{DUE_PER_TICK_MAX, RETRY_AFTER, micros},
    names::{DEADLINE, REFUSALS},
};

impl<D: Decider> Runner<D> {
    /// Gives the actor a command of its own; false = it could not be decided, try again later.
    fn ask_self(&mut self, command: D::Command, commit_id: CommitId, episode: EpisodeId, who: &'static str) -> bool {
        let ask = Ask {
            command,
            commit_id,
            idempotent: false,
            episode_id: episode,
            causation_id: None,
            principal: Principal::system(who),
            traceparent: String::new(),
            inputs: DecisionContext::default(),
        };
        match self.decide(&ask) {
            Ok(Ok((receipt, decided))) => {
                let (commit_id, decided) = (ask.commit_id, Box::new(decided));
                self.push(Pending::Commit { receipt, commit_id, decided, reply: None });
                true
            }
            Ok(Err(Refused::Rejected(rejected))) => {
                warn!(stream = %self.stream, rejection = %rejected.rejection, who, "own command refused");
                // A deadline that its own rules refuse is still there: it must not be found due again at once.
                who != DEADLINE
            }
            Ok(Err(Refused::Repeated(_))) => true,
            // The caller tries again later.
            Err(_) => false,
        }
    }

    /// How long what falls due waits. Where other nodes are, one of them may have died at any time, and those who can
    /// find out what it did must have come first.
    fn grace(&self) -> DurationUs {
        let settings = &self.environment.settings;
        if settings.placement.is_some() { micros(settings.overdue_grace) } else { DurationUs(0) }
    }

    /// Does what has fallen due and sums up refusals; false = it could not, try again later.
    pub(super) fn catch_up(&mut self) -> bool {
        let now = self.environment.clock.now();
        let epoch = self.epoch();
        if self.environment.settings.placement.is_some() && epoch != self.epoch {
            // It came here, or went. For a while nobody may have decided, and others may know more first.
            self.due_from = now.after(micros(self.environment.settings.overdue_grace));
            self.epoch = epoch;
        }
        if epoch.is_none() {
            // Whoever decides for the stream does it.
            return true;
        }
        let mut fine = true;
        let overdue = TimestampUs(now.0.saturating_sub(self.grace().0));
        if let Some(loaded) = &self.loaded
            && now >= self.due_from
            && D::next_deadline(&loaded.state).is_some_and(|deadline| deadline <= overdue)
        {
            for due in D::due(&loaded.state, overdue, DUE_PER_TICK_MAX) {
                fine &= self.ask_self(due.command, due.commit_id, due.episode_id, DEADLINE);
            }
        }
        fine & self.sum_up_refusals(now, now.0 / 1_000_000)
    }

    /// Records the refusals of every second before `until`.
    pub(super) fn sum_up_refusals(&mut self, now: TimestampUs, until: u64) -> bool {
        let overloaded = self.mailbox.take_turned_away();
        if overloaded > 0 {
            *self.refused.entry((now.0 / 1_000_000, RefusalReason::Overload)).or_default() += overloaded;
        }
        let mut fine = true;
        while let Some(entry) = self.refused.first_entry() {
            let (second, reason) = *entry.key();
            if second >= until {
                break;
            }
            let count = entry.remove();
            let Some(command) = D::record_refusals(reason, second, count) else { continue };
            let episode = self.environment.ids.episode(now);
            // Always a valid id: a UUID behind a short ASCII word.
            let Ok(commit_id) = CommitId::new(&format!("refused/{episode}")) else { continue };
            if !self.ask_self(command, commit_id, episode, REFUSALS) {
                *self.refused.entry((second, reason)).or_default() += count;
                fine = false;
                break;
            }
        }
        fine
    }

    /// Sees to it that the actor is woken when it next has something to do.
    pub(super) fn watch_deadline(&mut self, fine: bool) {
        let deadline = self.loaded.as_ref().and_then(|loaded| D::next_deadline(&loaded.state));
        let deadline = deadline.map(|deadline| deadline.after(self.grace()).max(self.due_from));
        let refusals = self.refused.keys().next().map(|(second, _)| TimestampUs((second + 1) * 1_000_000));
        let mut next = [deadline, refusals].into_iter().flatten().min().filter(|_| self.is_here());
        if !fine {
            let retry = self.environment.clock.now().after(micros(RETRY_AFTER));
            next = Some(next.map_or(retry, |next| next.max(retry)));
        }
        self.environment.deadlines.replace(&self.stream, self.watched, next);
        self.watched = next;
    }
}
