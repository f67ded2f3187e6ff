//! Another version of the definition under a running saga: every cursor needs a place in it.
//!
//! A saga can go on where the steps that have begun are there in both versions, with the same ids, kinds and
//! surroundings, and where each list of steps that is being run begins with the same steps up to its cursor.

use std::{collections::BTreeMap, sync::Arc};

use events_model::saga::StepPath;

use super::{
    definition::{BlockIndex, Definition, StepIndex},
    evolve::path_at,
    state::{Current, Shared, State},
};

/// Where the cursors are in the new version.
#[derive(Debug)]
pub(super) struct Places {
    steps: BTreeMap<StepIndex, StepIndex>,
    blocks: BTreeMap<BlockIndex, BlockIndex>,
}

/// The places, or `None` if a cursor has none.
pub(super) fn places(state: &State, old: &Definition, new: &Definition) -> Option<Places> {
    find(state, old, new).ok()
}

/// The places, or the step for which there is none.
pub(super) fn find(state: &State, old: &Definition, new: &Definition) -> Result<Places, StepPath> {
    let steps = common_steps(old, new);
    let mut blocks = BTreeMap::new();
    for (key, frame) in &state.frames {
        let here = || path_at(state, key, frame).unwrap_or_else(|| key.clone());
        let block = twin(frame.block, old, new, &steps).ok_or_else(here)?;
        let begun = usize::try_from(frame.next).unwrap_or(usize::MAX);
        let begun = begun.saturating_add(usize::from(!matches!(frame.current, Current::Idle)));
        let (before, after) = (old.block(frame.block), new.block(block));
        let same = before.iter().take(begun).zip(after).all(|(old, new)| steps.get(old) == Some(new));
        if !same || after.len() < begun.min(before.len()) {
            return Err(here());
        }
        blocks.insert(frame.block, block);
        if let Some(lost) = frame.rounds.iter().find(|round| !steps.contains_key(&round.step)) {
            return Err(old.step(lost.step).map_or_else(StepPath::default, |step| step.id.as_str().into()));
        }
    }
    let used = state.attempts.iter().map(|(path, flying)| (path, flying.step));
    for (path, step) in used.chain(state.done.iter().map(|done| (&done.path, done.step))) {
        if !steps.contains_key(&step) {
            return Err(path.clone());
        }
    }
    Ok(Places { steps, blocks })
}

/// Steps that are the same in both: by id, kind and what is around them.
fn common_steps(old: &Definition, new: &Definition) -> BTreeMap<StepIndex, StepIndex> {
    let mut common = BTreeMap::new();
    for (index, step) in (0_u32..).zip(&old.steps) {
        let found = (0_u32..).zip(&new.steps).find(|(_, twin)| {
            let around = step.parent.map(|(parent, branch)| (common.get(&parent).copied(), branch));
            twin.id == step.id
                && twin.kind.name() == step.kind.name()
                && twin.compensate.is_some() == step.compensate.is_some()
                && twin.parent.map(|(parent, branch)| (Some(parent), branch)) == around
        });
        if let Some((twin, _)) = found {
            common.insert(index, twin);
        }
    }
    common
}

fn twin(
    block: BlockIndex,
    old: &Definition,
    new: &Definition,
    steps: &BTreeMap<StepIndex, StepIndex>,
) -> Option<BlockIndex> {
    if block == 0 {
        return Some(0);
    }
    for (index, step) in (0_u32..).zip(&old.steps) {
        if let Some(branch) = step.kind.blocks().iter().position(|found| *found == block) {
            return new.step(*steps.get(&index)?)?.kind.blocks().get(branch).copied();
        }
    }
    None
}

impl State {
    /// Finds every cursor its place in another version of the definition; `decide` made sure that there is one.
    pub(super) fn migrate(&mut self, new: Definition) {
        let Some(old) = self.definition().cloned() else { return };
        let Some(places) = places(self, &old, &new) else { return };
        places.apply(self);
        self.definition = Some(Shared(Arc::new(new)));
    }
}

impl Places {
    /// Puts every cursor into its place.
    pub(super) fn apply(&self, state: &mut State) {
        let step = |old: &mut StepIndex| *old = self.steps.get(old).copied().unwrap_or(*old);
        for frame in state.frames.values_mut() {
            frame.block = self.blocks.get(&frame.block).copied().unwrap_or(frame.block);
            frame.rounds.iter_mut().for_each(|round| step(&mut round.step));
        }
        for flying in state.attempts.values_mut() {
            step(&mut flying.step);
            flying.rounds.iter_mut().for_each(|round| step(&mut round.step));
        }
        for done in &mut state.done {
            step(&mut done.step);
            done.rounds.iter_mut().for_each(|round| step(&mut round.step));
        }
    }
}
