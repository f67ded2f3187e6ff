//! Stored definitions: what the first form means, and what becomes of a saga whose form nobody can read.

use actors_core::{
    Decider as _, fold,
    saga::{
        Rejection, Saga, State, TIMEOUT_DEFAULT,
        definition::{Join, Kind, Limits, OnTimeout, Retry},
        load,
    },
};
use events_model::{
    DurationUs, NanoUsd,
    saga::{Command, Event},
};

use crate::story::Story;

/// A definition that says as little as it can, as it was stored by the first form.
const FROZEN: &str = r#"{"definition":"old","form":1,"steps":[{"compensate":{"notify":{"url":"u"}},"http":{"url":"u"},"id":"h"},{"id":"r","notify":{"url":"u"},"retry":{}},{"approve":{"timeout":"366d","title":"t"},"id":"p"},{"id":"s","signal":{"name":"go","timeout":"1s"}},{"id":"both","parallel":{"branches":[[{"id":"x","set":{}}]]}},{"each":{"items":"[]","steps":[{"id":"y","set":{}}]},"id":"e"},{"id":"c","saga":{"definition":"child","version":1}},{"append":{"payload":1,"stream":"a","type":"t"},"id":"m","retry":{"attempts":100,"factor":10,"first":"366d","max":"366d"},"timeout":"1h"},{"each":{"at_most":1000,"in_parallel":64,"items":"[]","steps":[{"id":"z","set":{}}]},"id":"f"}],"version":1}"#;

#[test]
fn a_stored_definition_keeps_its_meaning() {
    let read = load(&FROZEN.into()).unwrap();
    assert_eq!(read.canonical.as_str(), FROZEN);
    let (day, second) = (DurationUs::from_secs(86_400), DurationUs::from_secs(1));
    let limits = Limits {
        steps: 5_000,
        wall_time: DurationUs(day.0 * 30),
        spend: NanoUsd::from_usd(1_000_000),
        window: 64,
        same: 16,
        no_progress_steps: 200,
    };
    assert_eq!((read.limits, read.budget, read.degrade.len()), (limits, NanoUsd(0), 0));
    let (first, max, not) = (second, DurationUs::from_secs(60), Vec::new());
    let once = Retry { attempts: 1, first, max, factor: 2, not };
    let patient = Retry { attempts: 8, ..once.clone() };
    let step = |id: &str| read.steps.iter().find(|step| step.id == id).unwrap();
    assert_eq!((&step("h").retry, step("h").timeout, step("h").result.as_str()), (&once, None, "h"));
    assert_eq!(TIMEOUT_DEFAULT, DurationUs::from_secs(60));
    let undo = step("h").compensate.as_ref().unwrap();
    assert_eq!((&undo.retry, undo.timeout, &step("r").retry), (&patient, None, &patient));
    let Kind::Http { method, headers: None, body: None, ok, .. } = &step("h").kind else { panic!() };
    assert_eq!((method.as_str(), ok.as_slice()), ("POST", &[(200, 299)][..]));
    assert!(matches!(step("p").kind, Kind::Approve { on_timeout: OnTimeout::Fail, .. }));
    assert!(matches!(step("s").kind, Kind::Signal { on_timeout: OnTimeout::Fail, .. }));
    assert!(matches!(step("both").kind, Kind::Parallel { join: Join::All, .. }));
    let Kind::Each { variable, at_most: 1_000, in_parallel: 1, .. } = &step("e").kind else { panic!() };
    assert_eq!(variable, "item");
    assert!(matches!(step("c").kind, Kind::Saga { budget: NanoUsd(0), .. }));
    assert!(load(&FROZEN.replace("\"form\":1,", "").into()).is_err());
}

#[test]
fn a_saga_whose_definition_cannot_be_read_stands_still_for_an_operator() {
    let begun = Story::of("", "- id: a\n  http: {url: u}\n");
    let mut strange = begun.events.clone();
    let Event::Started { definition, .. } = &mut strange[0] else { panic!() };
    *definition = definition.as_str().replace("\"form\":1", "\"form\":2").into();
    let mut story = begun;
    story.state = fold::<Saga>(State::default(), &strange);
    let view = Saga::view(&story.state, story.now);
    assert_eq!((view.state.as_str(), view.error.unwrap().kind.as_str()), ("needs_operator", "definition"));
    assert_eq!((Saga::next_deadline(&story.state), story.outstanding().len()), (None, 0));
    let retry = Command::RetryStep { path: "".into() };
    assert!(matches!(story.tell(&retry), Err(Rejection::NotStuck(_))));
    assert_eq!(story.state.version, u64::try_from(strange.len()).unwrap());
}
