//! Which runs of nodes are over, read once for many questions.

use std::collections::HashMap;

use events_journal_nats::lease::Node;

/// The runs of all nodes, as they were known here at one moment: what is read of the others may be a little old.
#[derive(Debug)]
pub(crate) struct Runs(HashMap<String, Run>);

#[derive(Debug)]
struct Run {
    incarnation: String,
    is_gone: bool,
}

impl Runs {
    pub(super) fn of(nodes: Vec<Node>) -> Self {
        let run = |node: Node| {
            let run = Run { incarnation: node.incarnation.to_string(), is_gone: node.state.is_gone() };
            (node.name, run)
        };
        Self(nodes.into_iter().map(run).collect())
    }

    /// Whether a run that an admission recorded is over. One that nobody remembers is left to its requests' deadlines.
    pub(crate) fn is_gone(&self, served_by: &str) -> bool {
        let Some((name, incarnation)) = served_by.split_once('/') else { return false };
        self.0.get(name).is_some_and(|run| run.is_gone || run.incarnation != incarnation)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use events_journal_nats::lease::{Incarnation, NodeState};
    use events_model::TimestampUs;

    use super::*;

    #[test]
    fn a_run_is_gone_when_its_node_left_or_runs_anew_and_not_when_nobody_knows_it() {
        let node = |name: &str, state| Node {
            name: name.to_owned(),
            incarnation: Incarnation(7),
            state,
            address: String::new(),
            version: String::new(),
            started_at: TimestampUs(0),
            shards: 0,
            last_seen: Duration::ZERO,
        };
        let runs = Runs::of(vec![node("one", NodeState::Live), node("two", NodeState::Left)]);
        let run = |name, number| format!("{name}/{}", Incarnation(number));
        assert!(!runs.is_gone(&run("one", 7)));
        assert!(runs.is_gone(&run("one", 6)));
        assert!(runs.is_gone(&run("two", 7)));
        assert!(!runs.is_gone(&run("three", 7)));
        assert!(!runs.is_gone(""));
    }
}
