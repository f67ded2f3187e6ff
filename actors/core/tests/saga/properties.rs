//! Laws that hold for every definition and every order of outcomes.

use actors_core::{
    Context, Decider, fold,
    saga::{
        Phase, Saga, State, parse,
        simulate::{Fixture, Plan, Run, run, start, unwound_in_order},
    },
};
use events_model::{DecisionContext, NanoUsd, TimestampUs, saga::Command, saga::Event};
use proptest::{collection::vec, prelude::*};

use crate::story::short;

/// A step before it has its id and its place.
#[derive(Debug, Clone)]
enum Sketch {
    Http { attempts: u32, undo: bool },
    Model,
    Wait(u32),
    Signal,
    Set,
    Fail,
    Parallel(Vec<Vec<Sketch>>, bool),
    Choice(Vec<Vec<Sketch>>),
    Each(u32, u32, Vec<Sketch>),
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let leaf = prop_oneof![
        4 => (1_u32..4, any::<bool>()).prop_map(|(attempts, undo)| Sketch::Http { attempts, undo }),
        1 => Just(Sketch::Model),
        1 => (1_u32..100).prop_map(Sketch::Wait),
        1 => Just(Sketch::Signal),
        1 => Just(Sketch::Set),
        1 => Just(Sketch::Fail),
    ];
    leaf.prop_recursive(3, 20, 3, |inner| {
        let block = || vec(inner.clone(), 1..3);
        prop_oneof![
            (vec(block(), 1..4), any::<bool>()).prop_map(|(branches, any)| Sketch::Parallel(branches, any)),
            vec(block(), 1..3).prop_map(Sketch::Choice),
            (0_u32..4, 1_u32..4, block()).prop_map(|(items, at_once, steps)| Sketch::Each(items, at_once, steps)),
        ]
    })
}

/// Writes steps as a definition's text.
fn write(steps: &[Sketch], indent: usize, next: &mut u32, out: &mut String) {
    let pad = " ".repeat(indent);
    for step in steps {
        *next += 1;
        let id = *next;
        out.push_str(&format!("{pad}- id: s{id}\n"));
        let mut line = |text: String| out.push_str(&format!("{pad}  {text}\n"));
        match step {
            Sketch::Http { attempts, undo } => {
                line(format!("http: {{url: \"http://s/{id}\", body: \"${{now}}\"}}"));
                line(format!("retry: {{attempts: {attempts}, first: 1s}}"));
                if *undo {
                    line("compensate: {http: {url: v}, retry: {attempts: 3, first: 1s}}".to_owned());
                }
            }
            Sketch::Model => {
                line("model: {model: m, max_tokens: 100, messages: [{role: user, content: hello}]}".to_owned());
                line("retry: {attempts: 2}".to_owned());
            }
            Sketch::Wait(minutes) => line(format!("wait: {{for: {minutes}m}}")),
            Sketch::Signal => line("signal: {name: go, timeout: 1h, on_timeout: continue}".to_owned()),
            Sketch::Set => line("set: {x: \"${saga.spent + size(saga.id)}\"}".to_owned()),
            Sketch::Fail => line("fail: {kind: asked, message: m}".to_owned()),
            Sketch::Parallel(branches, any) => {
                line("parallel:".to_owned());
                line(format!("  join: {}", if *any { "any" } else { "all" }));
                line("  branches:".to_owned());
                for branch in branches {
                    out.push_str(&format!("{pad}      -\n"));
                    write(branch, indent + 8, next, out);
                }
            }
            Sketch::Choice(cases) => {
                line("choice:".to_owned());
                for case in cases {
                    out.push_str(&format!("{pad}    - when: saga.spent >= {id}\n{pad}      steps:\n"));
                    write(case, indent + 8, next, out);
                }
            }
            Sketch::Each(items, at_once, inner) => {
                let items: Vec<_> = (0..*items).map(|item| item.to_string()).collect();
                line("each:".to_owned());
                line(format!("  items: \"[{}]\"", items.join(",")));
                line(format!("  in_parallel: {at_once}"));
                line("  steps:".to_owned());
                write(inner, indent + 6, next, out);
            }
        }
    }
}

fn text(steps: &[Sketch]) -> String {
    let mut out = "definition: random\nversion: 1\nbudget: $0.00001\nlimits: {steps: 80}\n\
                   degrade: [{tier: economy}, {max_tokens: 10}]\nsteps:\n"
        .to_owned();
    write(steps, 2, &mut 0, &mut out);
    out
}

fn fixture(signals: bool) -> Fixture {
    let signals = signals.then(|| ("go".to_owned(), serde_json::json!(1)));
    Fixture { signals: signals.into_iter().collect(), ..Fixture::default() }
}

/// Decides every command again and folds the log; the state at the end must be the same.
fn replayed(run: &Run, seed: u64) -> State {
    let mut state = State::default();
    for (command, now, events) in &run.log {
        let context = Context { now: *now, inputs: DecisionContext { seed, ..DecisionContext::default() } };
        assert_eq!(Saga::decide(&state, command, &context).as_ref(), Ok(events));
        state = fold::<Saga>(state, events);
        let bytes = bincode::serde::encode_to_vec(&state, bincode::config::standard()).unwrap();
        let (read, _): (State, _) = bincode::serde::decode_from_slice(&bytes, bincode::config::standard()).unwrap();
        assert_eq!(read, state, "a state differs from its snapshot");
    }
    state
}

fn nothing_begins_after_the_end(run: &Run) {
    let events: Vec<_> = run.log.iter().flat_map(|(.., events)| events).collect();
    let mut unwinding = false;
    for event in events {
        unwinding |= matches!(event, Event::UnwindingStarted { .. });
        assert!(!(unwinding && matches!(event, Event::StepStarted { .. })), "{} while unwinding", short(event));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn every_saga_ends_within_its_budget_and_undoes_what_was_done_once(
        steps in vec(sketch(), 1..5), seed in any::<u64>(), failing in 0_u64..500, signals in any::<bool>(),
        twice in any::<bool>(),
    ) {
        let text = text(&steps);
        let definition = parse(&text).unwrap_or_else(|findings| panic!("{text}\n{findings:#?}"));
        let plan = Plan { seed: Some(seed), failing_milli: failing, twice, ..Plan::default() };
        let run = run(&definition, &fixture(signals), &plan);
        let log = || run.log.iter().flat_map(|(.., events)| events).map(short).collect::<Vec<_>>().join("\n");
        prop_assert!(run.faults.is_empty(), "{:?}\n{text}\n{}", run.faults, log());
        prop_assert!(
            run.state.phase.is_end() || matches!(run.state.phase, Phase::NeedsOperator { .. }),
            "it does not end: {:?}\n{text}\n{}", run.state.phase, log()
        );
        let order = unwound_in_order(&run);
        prop_assert!(order.is_empty(), "{order:?}\n{text}\n{}", log());
        nothing_begins_after_the_end(&run);
        prop_assert_eq!(&replayed(&run, seed), &run.state);
    }

    #[test]
    fn folding_is_total_whatever_the_order_of_events(
        steps in vec(sketch(), 1..4), seed in any::<u64>(), order in vec(any::<prop::sample::Index>(), 0..200),
    ) {
        let definition = parse(&text(&steps)).unwrap();
        let plan = Plan { seed: Some(seed), failing_milli: 200, ..Plan::default() };
        let run = run(&definition, &fixture(true), &plan);
        let events: Vec<_> = run.log.iter().flat_map(|(.., events)| events.clone()).collect();
        let mut state = State::default();
        for index in order {
            state = Saga::evolve(state, index.get(&events));
            // Whatever came of it can be looked at, and asked for what is due.
            drop((Saga::view(&state, TimestampUs(0)), actors_core::saga::outstanding(&state)));
            prop_assert!(Saga::due(&state, TimestampUs(0), 1).len() <= 1);
        }
    }

    #[test]
    fn commands_of_strangers_never_panic_and_never_spend(
        steps in vec(sketch(), 1..4), asked in vec((0_u32..8, 0_u32..6, any::<i64>(), any::<u64>()), 1..40),
    ) {
        let definition = parse(&text(&steps)).unwrap();
        let begin = start(&definition, &fixture(false)).unwrap();
        let mut state = State::default();
        let mut now = TimestampUs(1_795_176_000_000_000);
        for (kind, step, cost, wait) in std::iter::once((99, 0, 0, 0)).chain(asked) {
            let (path, cost) = (format!("s{step}").as_str().into(), NanoUsd(cost));
            let reason = || "why".to_owned();
            let command = match kind {
                99 => begin.clone(),
                0 | 1 => Command::SucceedStep { path, attempt: 1, output: "1".into(), cost },
                2 => Command::FailStep { path, attempt: 1, kind: reason(), message: reason(), cost },
                3 => Command::Wake,
                4 => Command::Signal { name: "go".to_owned(), payload: "1".into() },
                5 => Command::RetryStep { path },
                6 => Command::SkipStep { path, reason: reason() },
                _ => Command::Cancel { reason: reason() },
            };
            now = now.after(events_model::DurationUs(wait % 100_000_000));
            let context = Context { now, inputs: DecisionContext::default() };
            if let Ok(events) = Saga::decide(&state, &command, &context) {
                state = fold::<Saga>(state, &events);
            }
            prop_assert!(state.spent >= NanoUsd(0) && state.spent.plus(state.reserved) <= state.budget);
        }
    }
}
