//! Sagas as their owners meet them: given these steps, when this happens, then that follows.
use actors_core::{
    Decider as _,
    saga::{Effect, Phase, Rejection, Request, Saga},
};
use events_model::{DurationUs, NanoUsd, saga::Command};

use crate::story::{Story, definition, start};

/// An `http` step that can be undone.
fn done(id: &str) -> String {
    format!(
        "- id: {id}\n  http: {{url: \"http://s/{id}\"}}\n  compensate:\n    retry: {{attempts: 2}}\n    \
         http: {{url: \"http://s/undo-{id}\"}}\n"
    )
}

fn hour() -> DurationUs {
    DurationUs::from_secs(3_600)
}

#[test]
fn steps_run_one_after_another_and_know_what_came_before() {
    let steps = "- id: a\n  http: {method: PUT, url: \"http://s/${input.who}\", headers: {x: \"${1 + 1}\"}}\n\
                 - id: b\n  set: {twice: \"${steps.a.n * 2}\", text: \"n is ${steps.a.n}\"}\n";
    let text = definition("input: {who: string}\noutput: {b: \"${steps.b}\"}", steps);
    let mut story = Story::begin(start(&text, r#"{"who":"me"}"#));
    story.then(&["started", "a begins #1"]);
    let Effect::Run { idempotency_key, request, .. } = &story.effects[0] else { panic!() };
    assert_eq!(idempotency_key, "saga/acme/one/a/1");
    let Request::Http { method, url, headers, .. } = request else { panic!() };
    assert_eq!((method.as_str(), url.as_str(), headers["x"].as_str()), ("PUT", "http://s/me", "2"));
    story.succeed("a", r#"{"n": 21}"#);
    story.then(&[
        r#"a = {"n":21}"#,
        r#"b = {"text":"n is 21","twice":42}"#,
        r#"completed {"b":{"text":"n is 21","twice":42}}"#,
    ]);
    assert!(story.outstanding().is_empty());
}

#[test]
fn a_condition_skips_a_step_and_one_that_is_no_condition_fails_it() {
    let mut story = Story::of("", "- id: a\n  if: \"1 > 2\"\n  http: {url: u}\n- id: b\n  set: {x: 1}\n");
    story.then(&["started", "a skipped", r#"b = {"x":1}"#, "completed null"]);
    let mut story = Story::of("", "- id: a\n  if: saga.spent\n  http: {url: u}\n");
    story.then(&["started", "a failed expression", "unwinding StepFailed", "failed expression"]);
}

#[test]
fn a_failed_attempt_is_tried_again_later_and_kinds_that_no_attempt_cures_are_not() {
    let steps = "- id: a\n  retry: {attempts: 3, first: 10s, max: 15s, factor: 2, not: [refused]}\n  http: {url: u}\n";
    let mut story = Story::of("", steps);
    story.fail("a", "http_503").then(&["started", "a begins #1", "a #1 http_503"]);
    assert!(story.outstanding().is_empty());
    story.wake_within(DurationUs::from_secs(10)).then(&["a begins #2"]);
    assert_eq!(story.outstanding(), ["saga/acme/one/a/2"]);
    story.fail("a", "http_503").wake_within(DurationUs::from_secs(15)).then(&["a #2 http_503", "a begins #3"]);
    story.fail("a", "http_503").then(&["a failed http_503", "unwinding StepFailed", "failed http_503"]);
    let mut story = Story::of("", steps);
    story.fail("a", "refused").then(&[
        "started",
        "a begins #1",
        "a failed refused",
        "unwinding StepFailed",
        "failed refused",
    ]);
}

#[test]
fn an_attempt_without_an_answer_times_out_and_its_late_answer_is_recorded_and_ignored() {
    let mut story = Story::of("", "- id: a\n  timeout: 5s\n  retry: {attempts: 2}\n  http: {url: u}\n");
    story.wake_within(DurationUs::from_secs(5)).then(&["started", "a begins #1", "a #1 timeout"]);
    let late = Command::SucceedStep { path: "a".into(), attempt: 1, output: "1".into(), cost: NanoUsd(0) };
    story.tell(&late).unwrap();
    story.wake().then(&["ignored a #1", "a begins #2"]);
    story.tell(&late).unwrap();
    story.succeed("a", "2").then(&["ignored a #1", "a = 2", "completed null"]);
    story.tell(&late).unwrap();
    story.then(&["ignored a #1"]);
    assert!(matches!(story.state.phase, Phase::Completed { .. }));
    let unknown = Command::SucceedStep { path: "z".into(), attempt: 1, output: "1".into(), cost: NanoUsd(0) };
    assert_eq!(story.tell(&unknown), Err(Rejection::NoSuchStep("z".to_owned())));
}

#[test]
fn a_step_that_timed_out_may_have_been_done_and_is_undone() {
    let mut story = Story::of("", &done("pay"));
    story.wake().then(&["started", "pay begins #1", "pay failed timeout", "unwinding StepFailed", "undo pay #1"]);
    story.succeed("pay.compensate", "1").then(&["undone pay", "unwound timeout"]);
}

#[test]
fn waits_are_facts_with_an_end() {
    let mut story = Story::of("", "- id: w\n  wait: {for: 1h}\n- id: u\n  wait: {until: \"2026-11-21T00:00:00Z\"}\n");
    story.then(&["started", "w waits"]);
    assert_eq!(story.tell(&Command::Wake), Err(Rejection::NothingDue));
    assert_eq!(Saga::due(&story.state, story.now, 10), []);
    story.wake_within(hour()).then(&["w waited", "u waits"]);
    assert_eq!(Saga::next_deadline(&story.state).map(|at| at.0), Some(1_795_219_200_000_000));
    story.wake_within(DurationUs::from_secs(11 * 3_600)).then(&["u waited", "completed null"]);
}

#[test]
fn a_signal_is_taken_whether_it_comes_before_the_wait_or_after() {
    let steps = "- id: a\n  http: {url: u}\n- id: s\n  signal: {name: go, timeout: 1h}\n\
                 - id: t\n  signal: {name: go, timeout: 1h, on_timeout: continue}\n";
    let mut story = Story::of("", steps);
    story.signal("go", "1").succeed("a", "0");
    story.then(&["started", "a begins #1", "signal go 1", "a = 0", "s takes go", "t waits go"]);
    let other = Command::Signal { name: "other".to_owned(), payload: "5".into() };
    assert!(matches!(story.tell(&other), Err(Rejection::Invalid(_))));
    story.signal("go", "2").then(&["signal go 2", "t takes go", "completed null"]);
    assert_eq!(story.state.outputs[&"t".into()].as_str(), "2");
    let mut story = Story::of("", "- id: s\n  signal: {name: go, timeout: 1h, on_timeout: continue}\n");
    story.wake_within(hour()).then(&["started", "s waits go", "s waited", "completed null"]);
    let mut story = Story::of("", "- id: s\n  signal: {name: go, timeout: 1h}\n");
    story.wake().then(&["started", "s waits go", "s failed timeout", "unwinding StepFailed", "failed timeout"]);
}

#[test]
fn a_choice_takes_the_first_case_that_holds() {
    let steps = "- id: c\n  choice:\n    - when: input.n > 5\n      steps:\n        - id: big\n          set: {x: 1}\n    \
                 - otherwise:\n        - id: small\n          set: {x: 2}\n- id: after\n  \
                 set: {x: \"${has(steps.big)}\"}\n";
    let text = definition("input: {n: int}", steps);
    let mut story = Story::begin(start(&text, r#"{"n":7}"#));
    story.then(&[
        "started",
        "c branches [0]",
        r#"c[0].big = {"x":1}"#,
        "c[0] ends",
        r#"c = {"x":1}"#,
        r#"after = {"x":true}"#,
        "completed null",
    ]);
    let mut story = Story::begin(start(&text, r#"{"n":1}"#));
    story.then(&[
        "started",
        "c branches [1]",
        r#"c[1].small = {"x":2}"#,
        "c[1] ends",
        r#"c = {"x":2}"#,
        r#"after = {"x":false}"#,
        "completed null",
    ]);
}

const PARALLEL: &str = "- id: p\n  parallel:\n    join: JOIN\n    branches:\n      - - id: a\n          http: {url: u}\n      \
                        - - id: b\n          http: {url: u}\n          compensate: {http: {url: v}}\n";

#[test]
fn parallel_all_waits_for_every_branch() {
    let mut story = Story::of("", &PARALLEL.replace("JOIN", "all"));
    story.then(&["started", "p branches [0, 1]", "p[0].a begins #1", "p[1].b begins #1"]);
    story.succeed("p[1].b", "2").then(&["p[1].b = 2", "p[1] ends"]);
    story.succeed("p[0].a", "1").then(&["p[0].a = 1", "p[0] ends", "p = [1,2]", "completed null"]);
}

#[test]
fn parallel_any_goes_on_with_the_first_and_ends_when_the_others_are_known() {
    let steps = PARALLEL.replace("JOIN", "any") + "- id: z\n  http: {url: u}\n";
    let mut story = Story::of("", &steps);
    story.succeed("p[0].a", "1");
    story.then(&[
        "started",
        "p branches [0, 1]",
        "p[0].a begins #1",
        "p[1].b begins #1",
        "p[0].a = 1",
        "p[0] ends",
        "p = 1",
        "z begins #1",
    ]);
    // The loser did its work after all; as the saga fails, that is undone too.
    story.succeed("p[1].b", "2").fail("z", "no");
    story.then(&["p[1].b = 2", "z failed no", "unwinding StepFailed", "undo p[1].b #1"]);
    story.succeed("p[1].b.compensate", "0").then(&["undone p[1].b", "unwound no"]);
}

#[test]
fn a_failure_waits_for_what_is_in_flight_before_it_undoes() {
    let mut story = Story::of("", &PARALLEL.replace("JOIN", "all"));
    story.fail("p[0].a", "no");
    story.then(&[
        "started",
        "p branches [0, 1]",
        "p[0].a begins #1",
        "p[1].b begins #1",
        "p[0].a failed no",
        "unwinding StepFailed",
    ]);
    assert_eq!(story.outstanding(), ["saga/acme/one/p[1].b/1"]);
    story.succeed("p[1].b", "2").then(&["p[1].b = 2", "undo p[1].b #1"]);
    assert_eq!(story.outstanding(), ["saga/acme/one/p[1].b.compensate/1"]);
    story.succeed("p[1].b.compensate", "0").then(&["undone p[1].b", "unwound no"]);
}

#[test]
fn each_runs_its_items_so_many_at_a_time() {
    let steps = "- id: e\n  each:\n    items: \"[10, 20, 30]\"\n    as: n\n    in_parallel: 2\n    steps:\n      \
                 - id: x\n        http: {url: \"http://s/${n}/${index}\"}\n      - id: y\n        set: {n: \"${steps.x + n}\"}\n";
    let mut story = Story::of("output: \"${steps.e}\"", steps);
    story.then(&[
        "started",
        "e items [10,20,30]",
        "e[0] begins",
        "e[1] begins",
        "e[0].x begins #1",
        "e[1].x begins #1",
    ]);
    story.succeed("e[1].x", "1").then(&[
        "e[1].x = 1",
        r#"e[1].y = {"n":21}"#,
        "e[1] ends",
        "e[2] begins",
        "e[2].x begins #1",
    ]);
    story.succeed("e[2].x", "2").succeed("e[0].x", "0");
    assert!(
        matches!(&story.state.phase, Phase::Completed { output } if output.as_str() == r#"[{"n":10},{"n":21},{"n":32}]"#)
    );
}

#[test]
fn too_many_items_and_values_that_are_no_list_fail_the_step() {
    let step = |items: &str| {
        format!("- id: e\n  each:\n    items: {items}\n    at_most: 2\n    steps:\n      - id: x\n        set: {{}}\n")
    };
    Story::of("", &step("\"[1,2,3]\"")).then(&[
        "started",
        "e failed too_many_items",
        "unwinding StepFailed",
        "failed too_many_items",
    ]);
    Story::of("", &step("saga")).then(&["started", "e failed expression", "unwinding StepFailed", "failed expression"]);
}

#[test]
fn a_person_answers_or_does_not() {
    let step = "- id: ok\n  approve: {title: \"Pay ${1}?\", assignees: [ann], timeout: 1h, on_timeout: HOW}\n";
    let mut story = Story::of("", &step.replace("HOW", "fail"));
    let Effect::Run { request, .. } = &story.effects[0] else { panic!() };
    assert_eq!(*request, Request::Approve { title: "Pay 1?".to_owned(), assignees: vec!["ann".to_owned()] });
    story.succeed("ok", "true").then(&["started", "ok begins #1", "ok = true", "completed null"]);
    let mut story = Story::of("", &step.replace("HOW", "continue"));
    story.wake_within(hour()).then(&["started", "ok begins #1", "ok = null", "completed null"]);
    let mut story = Story::of("", &step.replace("HOW", "fail"));
    story.wake().then(&["started", "ok begins #1", "ok failed timeout", "unwinding StepFailed", "failed timeout"]);
}

#[test]
fn what_was_done_is_undone_last_first_and_a_cancel_does_the_same() {
    let steps = done("a") + &done("b") + "- id: c\n  http: {url: u}\n";
    let mut story = Story::of("", &steps);
    story.succeed("a", "1").succeed("b", "2");
    assert_eq!(Saga::view(&story.state, story.now).compensable.len(), 2);
    story.then(&["started", "a begins #1", "a = 1", "b begins #1", "b = 2", "c begins #1"]);
    story.tell(&Command::Cancel { reason: "enough".to_owned() }).unwrap();
    story.succeed("c", "3").then(&["unwinding Cancelled", "c = 3", "undo b #1"]);
    story.fail("b.compensate", "busy").wake().then(&["b.compensate #1 busy", "undo b #2"]);
    story.succeed("b.compensate", "0").succeed("a.compensate", "0");
    story.then(&["undone b", "undo a #1", "undone a", "cancelled enough"]);
    assert_eq!(story.tell(&Command::Cancel { reason: "again".to_owned() }), Err(Rejection::Ended));
}

#[test]
fn what_cannot_be_undone_needs_an_operator_who_retries_or_skips_it() {
    let steps = done("a") + &done("b") + "- id: c\n  fail: {kind: no, message: nope}\n";
    let mut story = Story::of("", &steps);
    story.succeed("a", "1").succeed("b", "2").succeed("b.compensate", "0").then(&[
        "started",
        "a begins #1",
        "a = 1",
        "b begins #1",
        "b = 2",
        "c failed no",
        "unwinding StepFailed",
        "undo b #1",
        "undone b",
        "undo a #1",
    ]);
    story.fail("a.compensate", "busy").wake().fail("a.compensate", "gone").then(&[
        "a.compensate #1 busy",
        "undo a #2",
        "undo a failed gone",
        "operator a, undone: b, left: a",
    ]);
    assert_eq!(Saga::next_deadline(&story.state), None);
    assert!(story.outstanding().is_empty());
    let skip = |path: &str, reason: &str| Command::SkipStep { path: path.into(), reason: reason.to_owned() };
    assert_eq!(story.tell(&skip("b", "why")), Err(Rejection::NotStuck("b".to_owned())));
    assert!(matches!(story.tell(&skip("a", " ")), Err(Rejection::Invalid(_))));
    // Again with new attempts, under new keys.
    story.tell(&Command::RetryStep { path: "a".into() }).unwrap();
    assert_eq!(story.outstanding(), ["saga/acme/one/a.compensate/3"]);
    story.fail("a.compensate", "busy").wake().fail("a.compensate", "gone");
    story.tell(&skip("a", "by hand")).unwrap();
    story.then(&[
        "retried a",
        "undo a #3",
        "a.compensate #3 busy",
        "undo a #4",
        "undo a failed gone",
        "operator a, undone: b, left: a",
        "undo a skipped",
        "unwound no",
    ]);
}

#[test]
fn an_operator_has_a_running_saga_undone_or_a_waiting_step_tried_at_once() {
    let steps = done("a") + "- id: w\n  wait: {for: 1d}\n";
    let mut story = Story::of("", &steps);
    story.succeed("a", "1");
    story.tell(&Command::Compensate { reason: "wrong".to_owned() }).unwrap();
    story.succeed("a.compensate", "0").then(&[
        "started",
        "a begins #1",
        "a = 1",
        "w waits",
        "unwinding Operator",
        "undo a #1",
        "undone a",
        "unwound operator",
    ]);
    let mut story = Story::of("", "- id: a\n  retry: {attempts: 2, first: 1h, max: 1h}\n  http: {url: u}\n");
    story.fail("a", "no");
    story.tell(&Command::RetryStep { path: "a".into() }).unwrap();
    story.then(&["started", "a begins #1", "a #1 no", "retried a", "a begins #2"]);
    assert_eq!(story.tell(&Command::RetryStep { path: "a".into() }), Err(Rejection::NotStuck("a".to_owned())));
}

#[test]
fn a_compensation_whose_expression_fails_needs_an_operator() {
    let steps = "- id: a\n  http: {url: u}\n  compensate: {http: {url: \"${has(steps.a) ? steps.a.gone : 0}\"}}\n- id: b\n  fail: {kind: no, message: m}\n";
    let mut story = Story::of("", steps);
    story.succeed("a", "{}");
    story.then(&[
        "started",
        "a begins #1",
        "a = {}",
        "b failed no",
        "unwinding StepFailed",
        "undo a failed expression",
        "operator a, undone: , left: a",
    ]);
}

#[test]
fn starts_are_checked() {
    let text = definition("input: {n: int, s: string?}\nbudget: $1", "- id: a\n  set: {}\n");
    let refused = |start| {
        let (state, command) = (actors_core::saga::State::default(), Command::Start(Box::new(start)));
        let context = actors_core::Context { now: tests_kit::NOON, inputs: Default::default() };
        Saga::decide(&state, &command, &context).unwrap_err()
    };
    for input in ["{}", "[]", "{", r#"{"n":"x"}"#, r#"{"n":1.5}"#, r#"{"n":1,"m":2}"#, r#"{"n":1,"s":5}"#] {
        assert!(matches!(refused(start(&text, input)), Rejection::Input(_)), "{input}");
    }
    let mut rich = start(&text, r#"{"n":1,"s":null}"#);
    rich.budget = Some(NanoUsd::from_usd(2));
    assert!(matches!(refused(rich), Rejection::Invalid(_)));
    let mut bad = start(&text, r#"{"n":1}"#);
    bad.definition = "{}".into();
    assert!(matches!(refused(bad), Rejection::Definition(_)));
    let model = definition("", "- id: m\n  model: {model: dear, max_tokens: 5, messages: []}\n");
    assert_eq!(refused(start(&model, "{}")), Rejection::NoPrice("dear".to_owned()));
}

#[test]
fn a_saga_goes_on_under_another_version_if_its_cursors_have_a_place_there() {
    let steps = done("a") + "- id: w\n  wait: {for: 1h}\n";
    let mut story = Story::of("", &steps);
    story.succeed("a", "1");
    let other = |steps: &str| start(&definition("", steps), "{}").definition;
    let longer = other(&(done("a") + "- id: w\n  wait: {for: 1h}\n- id: z\n  set: {x: 1}\n"));
    let lacking = other("- id: b\n  set: {}\n- id: w\n  wait: {for: 1h}\n");
    assert_eq!(story.tell(&Command::Migrate { definition: lacking }), Err(Rejection::NoPlace("w".to_owned())));
    story.tell(&Command::Migrate { definition: longer }).unwrap();
    story.wake().then(&[
        "started",
        "a begins #1",
        "a = 1",
        "w waits",
        "migrated",
        "w waited",
        r#"z = {"x":1}"#,
        "completed null",
    ]);
}
