//! Money and loop safety: what is reserved and settled, what becomes cheaper, what is cut.

use actors_core::{
    Decider as _,
    saga::{Effect, Rejection, Request, Saga},
};
use events_model::{
    DurationUs, NanoUsd,
    envelope::Stored as _,
    saga::{Command, Event},
};

use crate::story::{Story, definition, start};

fn model(id: &str, tokens: u32) -> String {
    format!(
        "- id: {id}\n  model:\n    model: sim-small\n    max_tokens: {tokens}\n    messages:\n      \
         - {{role: system, content: be brief}}\n      - {{role: user, content: one}}\n      \
         - {{role: assistant, content: two}}\n      - {{role: user, content: three}}\n"
    )
}

fn asked(effect: &Effect) -> (u32, String, usize) {
    let Effect::Run { request: Request::Model { max_tokens, tier, messages, .. }, .. } = effect else { panic!() };
    (*max_tokens, tier.clone(), messages.as_str().matches("role").count())
}

#[test]
fn a_model_step_reserves_its_worst_case_and_settles_what_it_cost() {
    let mut story = Story::of("budget: $1", &(model("a", 1_000) + &model("b", 1_000) + &model("c", 1_000)));
    let reserved = story.state.reserved;
    // A nano-dollar a token: the answer's thousand, and no more of the prompt than its bytes and 16 a message.
    assert!(reserved > NanoUsd(1_000) && reserved < NanoUsd(1_400), "{reserved:?}");
    story.outcome("a", Ok("{}"), NanoUsd(700));
    assert_eq!((story.state.spent, story.state.reserved), (NanoUsd(700), reserved));
    // Who bills more than was reserved bears the rest; a failure may cost something too.
    story.outcome("b", Ok("{}"), NanoUsd::from_usd(5));
    assert_eq!((story.state.spent, story.state.reserved), (NanoUsd(700).plus(reserved), reserved));
    story.outcome("c", Err("upstream"), NanoUsd::from_usd(5));
    assert_eq!((story.state.spent, story.state.reserved), (NanoUsd(700).plus(reserved).plus(reserved), NanoUsd(0)));
    assert_eq!(Saga::view(&story.state, story.now).cost, story.state.spent);
}

#[test]
fn an_attempt_without_an_answer_counts_for_all_that_was_reserved() {
    let mut story = Story::of("budget: $1", &model("a", 1_000));
    let reserved = story.state.reserved;
    story.wake().then(&["started", "a begins #1", "a failed timeout", "unwinding StepFailed", "failed timeout"]);
    assert_eq!(story.state.spent, reserved);
}

#[test]
fn money_that_does_not_fit_degrades_first_and_cuts_then() {
    let head = "budget: $0.0000015\ndegrade:\n  - {tier: economy}\n  - {max_tokens: 100, context_messages: 1}";
    let mut story = Story::of(head, &(model("a", 1_300) + &model("b", 1_300)));
    story.then(&["started", "degraded 1 spend", "degraded 2 spend", "a begins #1"]);
    assert_eq!(asked(&story.effects[0]), (100, "economy".to_owned(), 2));
    let reserved = story.state.reserved;
    story.outcome("a", Ok("{}"), reserved).outcome("b", Ok("{}"), NanoUsd(0));
    story.then(&["a = {}", "b begins #1", "b = {}", "completed null"]);
    let mut story = Story::of("budget: $0.000001", &model("a", 1_300));
    story.then(&["started", "cut spend", "unwinding Limit", "failed limit"]);
}

#[test]
fn a_start_may_lower_the_budget_and_the_limit_of_spending_does_too() {
    let mut begin = start(&definition("budget: $1\nlimits: {spend: $0.50}", "- id: w\n  wait: {for: 1h}\n"), "{}");
    begin.budget = Some(NanoUsd(5));
    assert_eq!(Story::begin(begin.clone()).state.budget, NanoUsd(5));
    begin.budget = None;
    assert_eq!(Story::begin(begin).state.budget, NanoUsd(500_000_000));
}

/// Ten items, each asked about with the same words.
fn asks(body: &str) -> String {
    let items: Vec<_> = (0..10).map(|n| n.to_string()).collect();
    format!(
        "- id: e\n  each:\n    items: \"[{}]\"\n    steps:\n      - id: x\n        http: {{url: u, body: \"{body}\"}}\n",
        items.join(",")
    )
}

/// Answers until the saga ends; returns what was cut and degraded.
fn answered(head: &str, steps: &str, mut answer: impl FnMut(usize) -> String) -> (Vec<String>, usize) {
    let mut story = Story::of(head, steps);
    let mut count = 0;
    while let Some(path) = story.state.attempts.keys().next().cloned() {
        story.succeed(path.as_str(), &answer(count));
        count += 1;
    }
    let lines = story.events.iter().map(crate::story::short);
    (lines.filter(|line| line.starts_with("cut") || line.starts_with("degraded")).collect(), count)
}

#[test]
fn too_many_steps_degrade_first_where_the_definition_allows() {
    let limits = "limits: {steps: 5}";
    let (lines, count) = answered(limits, &asks("${item}"), |n| n.to_string());
    assert_eq!((lines, count), (vec!["cut steps".to_owned()], 4));
    let head = format!("{limits}\ndegrade: [{{tier: economy}}]");
    let (lines, _) = answered(&head, &asks("${item}"), |n| n.to_string());
    assert_eq!(lines, ["degraded 1 steps", "cut steps"]);
}

#[test]
fn the_same_question_with_the_same_answer_too_often_is_cut() {
    let head = "limits: {repeats: {window: 8, same: 3}}";
    let (lines, count) = answered(head, &asks("again"), |_| "1".to_owned());
    assert_eq!((lines, count), (vec!["cut repeats".to_owned()], 3));
    let degraded = format!("{head}\ndegrade: [{{tier: economy}}]");
    // With one level, between half of the limit and the limit there is three quarters: no whole number of three.
    let (lines, _) = answered(&degraded, &asks("again"), |_| "1".to_owned());
    assert_eq!(lines, ["cut repeats"]);
    let wide = "limits: {repeats: {window: 8, same: 4}}\ndegrade: [{tier: economy}]";
    assert_eq!(answered(wide, &asks("again"), |_| "1".to_owned()).0, ["degraded 1 repeats", "cut repeats"]);
    // An oscillation is one too; other questions are none.
    let (lines, count) = answered(head, &asks("again"), |n| (n % 2).to_string());
    assert_eq!((lines, count), (vec!["cut repeats".to_owned()], 5));
    assert_eq!(answered(head, &asks("${item}"), |_| "1".to_owned()), (Vec::new(), 10));
}

#[test]
fn steps_that_bring_nothing_new_are_cut() {
    let head = "limits: {no_progress_steps: 4, repeats: {window: 64, same: 64}}";
    let (lines, count) = answered(head, &asks("again"), |n| (n % 2).to_string());
    assert_eq!((lines, count), (vec!["cut no_progress".to_owned()], 6));
    let degraded = format!("{head}\ndegrade: [{{tier: economy}}]");
    let (lines, _) = answered(&degraded, &asks("again"), |_| "1".to_owned());
    assert_eq!(lines, ["degraded 1 no_progress", "cut no_progress"]);
    // Another question is something new, whatever is answered.
    assert_eq!(answered(head, &asks("${item}"), |_| "1".to_owned()), (Vec::new(), 10));
}

#[test]
fn a_thousand_services_may_answer_the_same_within_the_limits_that_hold_where_nothing_is_said() {
    let steps =
        asks("${item}").replace("[0,1,2,3,4,5,6,7,8,9]", "input.items").replace("\"input.items\"", "input.items");
    let items: Vec<_> = (0..1_000).map(|n| n.to_string()).collect();
    let text = definition("input: {items: list}", &steps);
    let mut story = Story::begin(start(&text, &format!("{{\"items\":[{}]}}", items.join(","))));
    while let Some(path) = story.state.attempts.keys().next().cloned() {
        story.succeed(path.as_str(), "1");
    }
    assert_eq!(story.state.phase.name(), "completed");
}

#[test]
fn money_that_others_hold_is_waited_for_before_anything_is_degraded_or_cut() {
    let branch = |id: &str| {
        let step: String = model(id, 1_000).lines().map(|line| format!("          {line}\n")).collect();
        format!("      -\n{step}")
    };
    let steps = format!("- id: p\n  parallel:\n    branches:\n{}{}", branch("a"), branch("b"));
    let mut story = Story::of("budget: $0.0000015\ndegrade: [{tier: economy}]", &steps);
    assert_eq!(story.state.attempts.len(), 1);
    story.outcome("p[0].a", Ok("{}"), NanoUsd(100)).wake_within(DurationUs(0)).outcome("p[1].b", Ok("{}"), NanoUsd(0));
    let told: Vec<_> = story.events.iter().map(crate::story::short).collect();
    assert!(
        told.contains(&"p[1].b held #1".to_owned()) && !told.iter().any(|line| line.starts_with("cut")),
        "{told:?}"
    );
    assert_eq!(story.state.phase.name(), "completed", "{told:?}");
}

#[test]
fn time_is_cut_when_it_is_over_even_while_nothing_happens() {
    let steps = "- id: a\n  wait: {for: 45m}\n- id: b\n  wait: {for: 1h}\n";
    let mut story = Story::of("limits: {wall_time: 1h}\ndegrade: [{tier: economy}]", steps);
    story.wake().then(&["started", "a waits", "a waited", "degraded 1 wall_time", "b waits"]);
    story.wake_within(DurationUs::from_secs(900)).then(&["cut wall_time", "unwinding Limit", "failed limit"]);
    let mut story = Story::of("limits: {wall_time: 1h}", steps);
    story.wake().wake().then(&[
        "started",
        "a waits",
        "a waited",
        "b waits",
        "cut wall_time",
        "unwinding Limit",
        "failed limit",
    ]);
}

#[test]
fn outcomes_that_are_too_large_are_not_kept() {
    let large = |bytes: usize| format!("\"{}\"", "x".repeat(bytes));
    let steps = "- id: a\n  http: {url: u}\n  compensate: {http: {url: v}}\n";
    let mut story = Story::of("", steps);
    story.succeed("a", &large(65 * 1024)).succeed("a.compensate", "0");
    story.then(&[
        "started",
        "a begins #1",
        "a failed outcome_unusable",
        "unwinding StepFailed",
        "undo a #1",
        "undone a",
        "unwound outcome_unusable",
    ]);
    let mut story = Story::of("", steps);
    story.succeed("a", "{").succeed("a.compensate", "0");
    assert_eq!(crate::story::short(story.events.last().unwrap()), "unwound outcome_unusable");
    // Together they have a bound as well.
    let items = "- id: e\n  each:\n    items: \"[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20]\"\n    \
                 steps:\n      - id: x\n        http: {url: \"${item}\"}\n";
    let (lines, count) = answered("", items, |n| large(60_000 + n));
    assert_eq!((lines, count), (vec!["cut output_bytes".to_owned()], 18));
}

#[test]
fn decisions_are_bounded_and_what_is_left_over_is_due_at_once() {
    let steps = "- id: e\n  each:\n    items: input.items\n    steps:\n      - id: x\n        set: {n: \"${item}\"}\n";
    let text = definition("input: {items: list}\nlimits: {steps: 5000, wall_time: 1d}", steps);
    let items: Vec<_> = (0..1_000).map(|n| n.to_string()).collect();
    let mut story = Story::begin(start(&text, &format!("{{\"items\":[{}]}}", items.join(","))));
    let mut decisions = 1;
    while !story.state.phase.is_end() {
        let before = story.events.len();
        story.wake_within(DurationUs(0));
        assert!(story.events.len() - before <= actors_core::saga::EVENTS_MAX + 8);
        decisions += 1;
    }
    assert!(decisions > 10, "{decisions}");
    assert_eq!(story.tell(&Command::Wake), Err(actors_core::saga::Rejection::NothingDue));
}

/// What the last decision takes in the log, its command with it.
fn decided(command: &Command, events: &[Event]) -> usize {
    let events: usize = events.iter().map(|event| event.to_payload().bytes.len()).sum();
    command.to_payload().bytes.len() + events
}

/// What a commit holds, less what each of its events takes besides its payload.
const ROOM: usize = 1024 * 1024 - 64 * 1024;

#[test]
fn a_start_with_the_largest_definition_and_input_fits_a_commit() {
    let many: String = (0..500)
        .map(|n| format!("- id: n{n}\n  notify: {{url: u, body: \"${{input.text}}{}\"}}\n", "y".repeat(400)))
        .collect();
    let branches: String = many.lines().map(|line| format!("        {line}\n")).collect();
    let branches = format!("- id: p\n  parallel:\n    branches:\n      -\n{branches}");
    let mut begin = start(&definition("input: {text: string}", &branches), "{\"text\":\"\"}");
    begin.input = format!("{{\"text\":\"{}\"}}", "x".repeat(60_000)).into();
    let command = Command::Start(Box::new(begin.clone()));
    let mut story = Story::begin(begin);
    assert!(decided(&command, &story.events) < ROOM);
    let huge = Command::Signal { name: "go".to_owned(), payload: "1".repeat(400 * 1024).as_str().into() };
    assert!(matches!(story.tell(&huge), Err(Rejection::Invalid(_))));
}

#[test]
fn a_request_larger_than_the_log_would_take_fails_its_step() {
    let headers: Vec<_> = (0..40).map(|n| format!("h{n}: \"${{input.text}}\"")).collect();
    let steps = format!("- id: a\n  http: {{url: u, headers: {{{}}}}}\n", headers.join(", "));
    let mut begin = start(&definition("input: {text: string}", &steps), "{\"text\":\"\"}");
    begin.input = format!("{{\"text\":\"{}\"}}", "x".repeat(60_000)).into();
    Story::begin(begin).then(&[
        "started",
        "a failed request_too_large",
        "unwinding StepFailed",
        "failed request_too_large",
    ]);
}

#[test]
fn many_requests_begin_in_as_many_decisions_as_they_need() {
    let steps = "- id: e\n  each:\n    items: input.items\n    in_parallel: 64\n    steps:\n      - id: x\n        \
                 http: {url: u, body: \"${input.text}\"}\n";
    let mut begin = start(&definition("input: {items: list, text: string}", steps), "{\"items\":[],\"text\":\"\"}");
    let items = vec!["1"; 64].join(",");
    begin.input = format!("{{\"items\":[{items}],\"text\":\"{}\"}}", "x".repeat(60_000)).into();
    let mut story = Story::begin(begin);
    let mut decisions = 1;
    while story.state.attempts.len() < 64 {
        let before = story.events.len();
        story.wake_within(DurationUs(0));
        assert!(decided(&Command::Wake, &story.events[before..]) < ROOM);
        decisions += 1;
    }
    assert!(decisions > 4, "{decisions}");
}

#[test]
fn an_operator_is_told_of_some_steps_and_of_how_many_there_are() {
    let steps = "- id: e\n  each:\n    items: input.items\n    in_parallel: 64\n    steps:\n      - id: x\n        \
                 http: {url: u}\n        compensate: {retry: {attempts: 1}, http: {url: v}}\n\
                 - id: f\n  fail: {kind: no, message: no}\n";
    let items = vec!["1"; 150].join(",");
    let head = "input: {items: list}\nlimits: {repeats: {window: 2, same: 2}, no_progress_steps: 1000}";
    let mut story = Story::begin(start(&definition(head, steps), &format!("{{\"items\":[{items}]}}")));
    let mut count = 0;
    while let Some(path) = story.state.attempts.keys().next().cloned() {
        if path.as_str().ends_with("compensate") {
            break;
        }
        story.succeed(path.as_str(), &count.to_string());
        count += 1;
    }
    let path = story.state.attempts.keys().next().unwrap().clone();
    story.fail(path.as_str(), "http_500");
    let Some(Event::OperatorNeeded { remaining, message, .. }) = story.events.last() else { panic!() };
    assert_eq!((remaining.len(), message.contains("150 are left")), (100, true), "{message}");
}

#[test]
fn an_outcome_that_cannot_be_kept_of_a_branch_that_lost_does_not_fail_the_saga() {
    let steps = "- id: p\n  parallel:\n    join: any\n    branches:\n      - - id: a\n          http: {url: u}\n      \
                 - - id: b\n          http: {url: u}\n- id: c\n  http: {url: u}\n";
    let mut story = Story::of("", steps);
    story.succeed("p[0].a", "1").succeed("p[1].b", &format!("\"{}\"", "x".repeat(70_000))).succeed("c", "3");
    let told: Vec<_> = story.events.iter().map(crate::story::short).collect();
    assert!(told.ends_with(&["p[1].b failed outcome_unusable".into(), "c = 3".into(), "completed null".into()]));
}

#[test]
fn signals_that_wait_are_bounded_by_their_bytes() {
    let mut story = Story::of("", "- id: a\n  http: {url: u}\n- id: s\n  signal: {name: go, timeout: 1h}\n");
    let signal =
        Command::Signal { name: "go".to_owned(), payload: format!("\"{}\"", "x".repeat(60_000)).as_str().into() };
    (0..4).for_each(|_| story.tell(&signal).unwrap());
    assert_eq!(story.tell(&signal), Err(Rejection::TooManySignals));
    // A value can be longer in its compact form than it came.
    let longer = format!("[{}]", vec!["1e300"; 10_000].join(","));
    let signal = Command::Signal { name: "go".to_owned(), payload: longer.as_str().into() };
    let told = story.tell(&signal);
    assert!(matches!(told, Err(Rejection::Invalid(_))), "{told:?}");
}

#[test]
fn values_that_are_too_large_once_they_are_escaped_fail_their_step() {
    let quotes = format!("{{\"text\":\"{}\"}}", "\\u0001".repeat(10_000));
    let head = "input: {text: string}\noutput: \"${input.text + input.text}\"";
    Story::begin(start(&definition(head, "- id: a\n  set: {x: 1}\n"), &quotes)).then(&[
        "started",
        r#"a = {"x":1}"#,
        "unwinding StepFailed",
        "failed output_too_large",
    ]);
    let head = "input: {text: string}";
    Story::begin(start(&definition(head, "- id: a\n  set: {x: \"${input.text + input.text}\"}\n"), &quotes)).then(&[
        "started",
        "a failed output_too_large",
        "unwinding StepFailed",
        "failed output_too_large",
    ]);
}

#[test]
fn a_step_whose_expressions_take_too_much_together_fails_and_a_decision_ends_before_that() {
    // Each takes a good part of what one evaluation may.
    let heavy = "${input.l.map(x, input.l.map(y, y)).size()}";
    let input: Vec<_> = (0..100).map(|n| n.to_string()).collect();
    let input = format!("{{\"l\":[{}]}}", input.join(","));
    let of = |count: usize| {
        let values: Vec<_> = (0..count).map(|n| format!("v{n}: \"{heavy}\"")).collect();
        format!("set: {{{}}}\n", values.join(", "))
    };
    let mut story = Story::begin(start(&definition("input: {l: list}", &format!("- id: a\n  {}", of(60))), &input));
    story.wake_within(DurationUs(0));
    let told: Vec<_> = story.events.iter().map(crate::story::short).collect();
    assert_eq!(told.last().unwrap(), "failed expression", "{told:?}");
    let steps: String = (0..60).map(|n| format!("- id: a{n}\n  {}", of(1))).collect();
    let mut story = Story::begin(start(&definition("input: {l: list}", &steps), &input));
    let mut decisions = 1;
    while !story.state.phase.is_end() {
        story.wake_within(DurationUs(0));
        decisions += 1;
    }
    assert_eq!((story.state.phase.name(), decisions > 1), ("completed", true));
}
