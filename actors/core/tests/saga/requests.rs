//! What a saga asks of the world: other sagas, requests as services get them, and answers that come late.

use actors_core::{
    Decider as _,
    saga::{Effect, Request, Saga},
};
use events_model::{
    DurationUs, NanoUsd, StreamId,
    saga::{Command, Parent},
};

use crate::story::{Story, definition, start};

fn hour() -> DurationUs {
    DurationUs::from_secs(3_600)
}

#[test]
fn a_saga_starts_another_and_hears_of_its_end() {
    let mut story =
        Story::of("budget: $2", "- id: child\n  saga: {definition: other, version: 3, input: {n: 1}, budget: $1.50}\n");
    let Effect::Run { request: Request::Saga { stream, version, budget, input, .. }, .. } = story.effects[0].clone()
    else {
        panic!()
    };
    assert_eq!((version, budget, input.as_str()), (3, NanoUsd(1_500_000_000), r#"{"n":1}"#));
    assert_eq!((stream.kind(), stream.tenant_id()), ("saga", story.state.stream.as_ref().unwrap().tenant_id()));
    assert_eq!(story.state.reserved, NanoUsd(1_500_000_000));
    story.outcome("child", Ok("5"), NanoUsd::from_usd(1));
    assert_eq!((story.state.reserved, story.state.spent), (NanoUsd(0), NanoUsd::from_usd(1)));
    story.then(&["started", "child begins #1", "child = 5", "completed null"]);

    let mut story = Story::of("budget: $2", "- id: child\n  saga: {definition: other, version: 3}\n");
    story.tell(&Command::Cancel { reason: "enough".to_owned() }).unwrap();
    let Some(Effect::CancelChild { .. }) = story.effects.last() else { panic!() };
    assert_eq!(story.outstanding().len(), 2);
    story.fail("child", "cancelled").then(&[
        "started",
        "child begins #1",
        "unwinding Cancelled",
        "child is told to end",
        "child failed cancelled",
        "cancelled enough",
    ]);
}

#[test]
fn a_saga_that_takes_too_long_is_told_to_end_and_its_last_word_is_waited_for() {
    let steps = "- id: c\n  timeout: 5s\n  retry: {attempts: 2}\n  saga: {definition: other, version: 1}\n";
    let mut story = Story::of("", steps);
    story.wake_within(DurationUs::from_secs(5)).then(&["started", "c begins #1", "c is told to end"]);
    assert_eq!(story.outstanding().len(), 2);
    assert!(story.outstanding()[1].starts_with("cancel saga/acme/child-"));
    // Nothing begins beside it, however long it takes.
    assert_eq!(Saga::next_deadline(&story.state), Some(story.state.deadline));
    story.fail("c", "cancelled").wake().then(&["c #1 cancelled", "c begins #2"]);
    story.wake_within(DurationUs::from_secs(5)).succeed("c", "1");
    story.then(&["c is told to end", "c = 1", "completed null"]);
    // So it is when the whole saga has no more time.
    let mut story = Story::of("limits: {wall_time: 1h}", "- id: c\n  saga: {definition: other, version: 1}\n");
    story.wake().then(&["started", "c begins #1", "cut wall_time", "unwinding Limit", "c is told to end"]);
    assert_eq!((story.outstanding().len(), Saga::next_deadline(&story.state)), (2, None));
    story.fail("c", "cancelled").then(&["c failed cancelled", "failed limit"]);
}

#[test]
fn a_saga_that_undoes_a_step_has_the_time_it_takes_and_no_second_beside_it() {
    let undo = |timeout: &str| {
        format!("- id: a\n  http: {{url: u}}\n  compensate: {{{timeout}saga: {{definition: undo, version: 1}}}}\n")
    };
    let failing = |timeout: &str| undo(timeout) + "- id: b\n  http: {url: u}\n";
    let mut story = Story::of("", &failing(""));
    story.succeed("a", "1").fail("b", "no");
    assert!(Saga::next_deadline(&story.state).unwrap() > story.now.after(DurationUs::from_secs(300 * 86_400)));
    let mut story = Story::of("", &failing("timeout: 2h, "));
    story.succeed("a", "1").fail("b", "no").wake().fail("a.compensate", "cancelled").wake_within(hour());
    story.then(&[
        "started",
        "a begins #1",
        "a = 1",
        "b begins #1",
        "b failed no",
        "unwinding StepFailed",
        "undo a #1",
        "a.compensate is told to end",
        "a.compensate #1 cancelled",
        "undo a #2",
    ]);
}

#[test]
fn a_race_that_is_won_is_not_cut_because_of_its_loser() {
    let steps = "- id: p\n  parallel:\n    join: any\n    branches:\n      - - id: a\n          http: {url: u}\n          \
                 compensate: {http: {url: v}}\n      - - id: b\n          saga: {definition: other, version: 1}\n";
    let mut story = Story::of("limits: {wall_time: 1h}", steps);
    story.succeed("p[0].a", "1").then(&[
        "started",
        "p branches [0, 1]",
        "p[0].a begins #1",
        "p[1].b begins #1",
        "p[0].a = 1",
        "p[0] ends",
        "p = 1",
        "p[1].b is told to end",
    ]);
    story.wake_within(hour()).then(&["p[1].b failed timeout", "completed null"]);
}

#[test]
fn the_one_that_waits_is_told_how_it_ended() {
    let mut start = start(&definition("", "- id: a\n  set: {}\n"), "{}");
    let stream = StreamId::new("saga/acme/parent").unwrap();
    start.parent = Some(Parent { stream, path: "p".into(), attempt: 2, depth: 1 });
    let story = Story::begin(start);
    assert!(
        matches!(&story.effects[..], [Effect::TellParent { outcome: Ok(output), .. }] if output.as_str() == "null")
    );
    assert_eq!(story.outstanding(), ["tell saga/acme/parent"]);
}

#[test]
fn values_in_a_url_stay_where_they_are_put() {
    let url = |input: &str| {
        let text = definition(
            "input: {s: string, v: any}",
            "- id: a\n  http: {url: \"${input.s}/a/${input.v}?q=${input.v}\"}\n",
        );
        let mut story = Story::begin(start(&text, input));
        match story.effects.pop() {
            Some(Effect::Run { request: Request::Http { url, .. }, .. }) => url,
            _ => crate::story::short(story.events.last().unwrap()),
        }
    };
    assert_eq!(url(r#"{"s":"http://s","v":"x-1.~_"}"#), "http://s/a/x-1.~_?q=x-1.~_");
    assert_eq!(
        url(r#"{"s":"http://s","v":"x/../y?z&ä #"}"#),
        "http://s/a/x%2F..%2Fy%3Fz%26%C3%A4%20%23?q=x%2F..%2Fy%3Fz%26%C3%A4%20%23"
    );
    assert_eq!(url(r#"{"s":"http://s","v":7}"#), "http://s/a/7?q=7");
    assert_eq!(url(r#"{"s":"http://s","v":".."}"#), "failed expression");
    assert_eq!(url(r#"{"s":"http://s\r\nx","v":1}"#), "failed expression");
}

#[test]
fn a_header_is_one_line() {
    let text = definition("input: {v: string}", "- id: a\n  http: {url: u, headers: {x-a: \"${input.v}\"}}\n");
    Story::begin(start(&text, r#"{"v":"a\tb"}"#)).then(&["started", "a begins #1"]);
    let mut story = Story::begin(start(&text, r#"{"v":"a\r\nset-cookie: b"}"#));
    story.then(&["started", "a failed expression", "unwinding StepFailed", "failed expression"]);
}

#[test]
fn a_late_answer_is_kept_for_what_undoes_its_step() {
    let steps = "- id: a\n  http: {url: u}\n  compensate:\n    http: {url: \"v/${has(steps.a) ? steps.a.id : 'none'}\"}\n\
                 - id: b\n  http: {url: u}\n";
    let asked = |effect: Option<&Effect>| match effect {
        Some(Effect::Run { request: Request::Http { url, .. }, .. }) => url.clone(),
        _ => panic!("{effect:?}"),
    };
    let mut story =
        Story::of("", &steps.replace("  http: {url: u}\n  comp", "  retry: {attempts: 2}\n  http: {url: u}\n  comp"));
    story.wake();
    let late = Command::SucceedStep { path: "a".into(), attempt: 1, output: r#"{"id":7}"#.into(), cost: NanoUsd(0) };
    story.tell(&late).unwrap();
    story.wake().fail("a", "no");
    assert_eq!(asked(story.effects.last()), "v/7");
    let mut story = Story::of("", steps);
    story.wake();
    assert_eq!(asked(story.effects.last()), "v/none");
}

#[test]
fn values_that_nest_too_deeply_fail_their_step_instead_of_reading_as_nothing() {
    let deep = format!("{}1{}", "[".repeat(120), "]".repeat(120));
    let text = definition("input: {v: any}", "- id: a\n  set: {x: [[[[[[[[[\"${input.v}\"]]]]]]]]]}\n");
    let mut story = Story::begin(start(&text, &format!("{{\"v\":{deep}}}")));
    story.then(&["started", "a failed output_too_deep", "unwinding StepFailed", "failed output_too_deep"]);
}

#[test]
fn what_an_operator_leaves_done_is_not_told_as_undone_and_the_first_failure_stays_the_reason() {
    let steps =
        "- id: a\n  http: {url: u}\n  compensate: {retry: {attempts: 1}, http: {url: v}}\n- id: b\n  http: {url: u}\n";
    let mut story = Story::of("", &format!("- id: z\n  http: {{url: u}}\n  compensate: {{http: {{url: v}}}}\n{steps}"));
    story.succeed("z", "0").succeed("a", "1").fail("b", "no").fail("a.compensate", "down");
    story.tell(&Command::SkipStep { path: "a".into(), reason: "by hand".to_owned() }).unwrap();
    let view = Saga::view(&story.state, story.now);
    assert_eq!((view.compensated.len(), view.error.unwrap().path.as_str()), (0, "b"));
    story.succeed("z.compensate", "1");
    assert_eq!(story.state.phase.name(), "compensated");
}
