//! One episode, event by event.

use events_model::{
    DurationUs, EpisodeId, NanoUsd, Payload, RequestId, StreamId, Tokens,
    tenant::{Command, Outcome, SettleRequest, Usage, UsageSource},
};
use replay::episode::{EndState, Episode, show};
use tests_kit::tenant as kit;

use crate::desk::{Desk, admit, id, settle, stream};

fn shown(desk: &Desk, number: u64) -> Episode {
    show(&desk.log, EpisodeId::from_bytes(id(number))).unwrap().unwrap()
}

fn summaries(desk: &Desk, number: u64) -> Vec<String> {
    shown(desk, number).entries.into_iter().map(|entry| entry.summary).collect()
}

#[test]
fn a_request_shows_its_timeline_its_money_and_its_end() {
    let mut desk = Desk::with_acme();
    desk.tell("acme", 5, &admit(5, 96, 64, desk.now));
    assert_eq!(shown(&desk, 5).summary.end_state, EndState::Open);
    desk.tell("acme", 6, &admit(6, 1, 1, desk.now));
    desk.tell("acme", 5, &settle(5, 20, 10));
    let episode = shown(&desk, 5);
    let [admitted, settled] = episode.entries.as_slice() else { unreachable!("two events") };
    assert_eq!(
        admitted.summary,
        "admitted sim-small via sim: at most 96 prompt + 64 completion tokens, holds $0.000000224"
    );
    assert_eq!(
        settled.summary,
        "completed: 20 prompt + 10 completion tokens (reported by the upstream), costs $0.00000004, \
         releases $0.000000184"
    );
    assert_eq!((admitted.reserved, admitted.cost, admitted.released), (Some(NanoUsd(224)), None, None));
    assert_eq!((settled.reserved, settled.cost, settled.released), (None, Some(NanoUsd(40)), Some(NanoUsd(184))));
    assert_eq!((settled.position, settled.version, settled.event.as_str()), (5, 5, "RequestSettled"));
    assert_eq!(settled.since_start, DurationUs::from_millis(2));
    assert_eq!((settled.command.as_str(), settled.commit_id.as_str()), ("SettleRequest", "c-5"));
    assert_eq!((settled.stream.as_str(), settled.principal.as_str()), ("tenant/acme", "admin"));
    let summary = &episode.summary;
    assert_eq!((summary.tenant.as_str(), summary.model.as_str()), ("acme", "sim-small"));
    assert_eq!((summary.prompt_tokens, summary.completion_tokens, summary.cost), (Tokens(20), Tokens(10), NanoUsd(40)));
    assert_eq!((summary.end_state.name(), summary.duration), ("completed", DurationUs::from_millis(2)));
    assert!(!episode.is_truncated);
}

#[test]
fn payloads_and_commands_are_json_of_their_fields() {
    let mut desk = Desk::with_acme();
    desk.tell("acme", 5, &Command::Suspend { reason: "test".to_owned() });
    desk.tell("acme", 5, &Command::Resume);
    let entries = shown(&desk, 5).entries;
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(json(&entries[0].payload_json)["reason"], "test");
    assert_eq!(json(&entries[0].payload_json)["at"], desk.now.0 - 1_000);
    assert_eq!(entries[0].command_json, r#"{"reason":"test"}"#);
    assert_eq!((entries[1].command.as_str(), entries[1].command_json.as_str()), ("ResumeTenant", "{}"));
    desk.tell("acme", 6, &admit(6, 1, 1, desk.now));
    let entries = shown(&desk, 6).entries;
    assert_eq!(json(&entries[0].payload_json)["request"]["model"], "sim-small");
    assert_eq!(json(&entries[0].command_json)["model"], "sim-small");
    assert_eq!(json(&entries[0].payload_json)["reserved"], 3);
}

#[test]
fn an_overrun_a_failure_and_an_expiry_are_said_in_words() {
    let mut desk = Desk::with_acme();
    desk.tell("acme", 1, &admit(1, 10, 10, desk.now));
    desk.tell("acme", 1, &settle(1, 10, 15));
    assert!(
        summaries(&desk, 1)[1]
            .ends_with("costs $0.00000003, releases $0.00; $0.00000001 beyond the reservation is not charged")
    );
    desk.tell("acme", 2, &admit(2, 10, 10, desk.now));
    let usage = Usage { prompt_tokens: Tokens(0), completion_tokens: Tokens(0), source: UsageSource::None };
    let failed = SettleRequest {
        request_id: RequestId::from_bytes(id(2)),
        outcome: Outcome::UpstreamFailed,
        usage,
        upstream_status: 503,
        detail: "no\u{1b}[31m room\n".to_owned(),
        ..kit::settlement(1, 0, 0)
    };
    desk.tell("acme", 2, &Command::SettleRequest(failed));
    assert_eq!(
        summaries(&desk, 2)[1],
        "upstream-failed: 0 prompt + 0 completion tokens (nothing used), costs $0.00, releases $0.00000003; \
         upstream status 503: no\u{fffd}[31m room\u{fffd}"
    );
    desk.tell("acme", 3, &admit(3, 10, 10, desk.now));
    desk.now = desk.now.after(DurationUs::from_secs(61));
    desk.tell("acme", 3, &Command::ExpireReservation { request_id: RequestId::from_bytes(id(3)) });
    assert_eq!(summaries(&desk, 3)[1], "expired: nobody settled it in time; releases $0.00000003");
    assert_eq!(shown(&desk, 3).summary.end_state, EndState::Expired);
}

#[test]
fn administration_is_told_in_words() {
    let mut desk = Desk::with_acme();
    desk.publish("sim-small");
    assert_eq!(
        summaries(&desk, 1_001),
        ["registered \"Acme\", zone local, plan enterprise: 1000 requests/s (burst 5000), 100000000 tokens/min, \
          1000 at once, at most $100.00 a request"]
    );
    assert_eq!(summaries(&desk, 1_002), ["issued key main (fhk_acme_abcd...) for \"main\""]);
    assert_eq!(summaries(&desk, 2_000), ["price book 1 is in force: 1 price"]);
    assert_eq!(shown(&desk, 2_000).summary.end_state.name(), "administration");
    assert_eq!(shown(&desk, 2_000).summary.tenant, "");
}

#[test]
fn what_this_program_cannot_read_is_shown_as_such_among_the_rest() {
    let mut desk = Desk::with_acme();
    let payload = |kind, schema_version| Payload { kind, schema_version, bytes: vec![0xff; 3] };
    let events = vec![
        payload("freehold.log.v1.RequestSettled", 1),
        payload("freehold.log.v1.RequestSettled", 9),
        payload("freehold.log.v2.Unheard", 1),
    ];
    desk.append(&stream("acme"), 5, payload("freehold.log.v2.Hear", 1), events);
    let saga = StreamId::new("saga/acme/one").unwrap();
    desk.append(&saga, 5, payload("a.Begin", 1), vec![payload("a.Begun", 1)]);
    let entries = shown(&desk, 5).entries;
    assert_eq!(entries.len(), 4);
    for entry in &entries {
        assert!(entry.summary.starts_with("cannot be read by this program: "), "{}", entry.summary);
        assert!(entry.payload_json.starts_with("{\"undecoded\":"), "{}", entry.payload_json);
    }
    assert_eq!((entries[3].event.as_str(), entries[3].stream.as_str()), ("Begun", "saga/acme/one"));
}

#[test]
fn an_episode_that_never_was_is_none() {
    let desk = Desk::with_acme();
    assert_eq!(show(&desk.log, EpisodeId::from_bytes(id(77))).unwrap(), None);
}
