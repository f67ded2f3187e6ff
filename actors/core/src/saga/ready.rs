//! What can happen without the world: the first thing, in the order of the paths.

use std::collections::BTreeMap;

use events_model::saga::{Json, StepPath};

use super::{
    definition::{Kind, StepIndex},
    evolve::path_at,
    state::{Attempt, Current, State, step_path},
};

impl State {
    /// A saga that a step started and does not wait for any more, as long as it does not know that.
    pub(super) fn dropped_child(&self) -> Option<(&StepPath, &Attempt)> {
        self.attempts.iter().find(|(_, flying)| flying.abandoned && flying.child.is_some() && !flying.is_ending)
    }

    /// Whether all steps have ended.
    pub(super) fn is_at_end(&self) -> bool {
        let root = self.frames.get(&StepPath::default());
        self.frames.len() == 1 && root.is_some_and(|root| root.current == Current::Idle && self.at(root).is_none())
    }

    /// Whether something can happen without the world.
    pub(super) fn is_ready(&self) -> bool {
        self.dropped_child().is_some() || self.ready().is_some()
    }

    /// The first frame that can go on, in the order of the paths.
    pub(super) fn ready(&self) -> Option<(StepPath, Ready)> {
        for (key, frame) in &self.frames {
            let at = self.at(frame);
            let ready = match (&frame.current, at) {
                (Current::Idle, Some(step)) => Some(Ready::Begin(step)),
                // The last word is spoken when nothing is in flight: money, and what may have to be undone.
                (Current::Idle, None) if key.as_str().is_empty() && !self.attempts.is_empty() => None,
                (Current::Idle, None) => Some(Ready::FrameEnd),
                (Current::Branches { count, ended }, Some(step)) => {
                    let kind = self.definition().and_then(|read| read.step(step)).map(|step| &step.kind);
                    let output = kind.and_then(|kind| self.joined(kind, *count, ended));
                    output.and_then(|output| Some(Ready::Join(path_at(self, key, frame)?, output)))
                }
                (Current::Items { items, begun, ended }, Some(step)) => self.items(key, step, items, *begun, ended),
                (Current::Running | Current::Held { .. } | Current::Backoff { .. } | Current::Waiting { .. }, _)
                | (Current::Branches { .. } | Current::Items { .. }, None) => None,
            };
            if let Some(ready) = ready {
                return Some((key.clone(), ready));
            }
        }
        None
    }

    fn items(
        &self,
        key: &StepPath,
        step: StepIndex,
        items: &[Json],
        begun: u32,
        ended: &BTreeMap<u32, Json>,
    ) -> Option<Ready> {
        let step = self.definition()?.step(step)?;
        let Kind::Each { in_parallel, .. } = &step.kind else { return None };
        let path = step_path(key, &step.id);
        let count = u32::try_from(items.len()).unwrap_or(u32::MAX);
        if let Some(output) = self.joined(&step.kind, count, ended) {
            return Some(Ready::Join(path, output));
        }
        let running = begun.saturating_sub(u32::try_from(ended.len()).unwrap_or(u32::MAX));
        (begun < count && running < *in_parallel).then_some(Ready::Item(path, begun))
    }
}

/// What a frame can do.
pub(super) enum Ready {
    /// Its next step begins.
    Begin(StepIndex),
    /// It has come to its end.
    FrameEnd,
    /// Its step has come to its end, with this outcome.
    Join(StepPath, Json),
    /// The next item of its step begins.
    Item(StepPath, u32),
}
