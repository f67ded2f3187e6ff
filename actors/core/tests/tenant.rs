//! The tenant's rules: given a past, when a command, then these events.

use actors_core::{
    Context, Decider, fold,
    tenant::{KEYS_REVOKED_MAX, Rejection, Tenant},
};
use events_model::{
    DecisionContext, DurationUs, NanoUsd, TimestampUs, Tokens,
    tenant::{Command, Event, Period, RefusalReason},
};
use tests_kit::{
    NOON, given,
    tenant::{admission, admitted, budget_set, key, plan, registered, request, settlement},
};

const MINUTE: DurationUs = DurationUs::from_secs(60);

fn admit(number: u8, prompt: u64, completion: u64) -> Command {
    Command::AdmitRequest(admission(number, prompt, completion))
}

fn past(more: impl IntoIterator<Item = Event>) -> Vec<Event> {
    registered(plan("pro")).into_iter().chain(more).collect()
}

#[test]
fn an_admitted_request_holds_its_worst_case() {
    let state = given::<Tenant>(past([budget_set(Period::Day, 1_000)]))
        .when(&admit(1, 100, 450))
        .then([admitted(1, 100, 450, NOON)]);
    assert_eq!(state.windows[0].reserved, NanoUsd(1_000));
}

#[test]
fn a_request_that_may_cost_one_nano_dollar_too_much_is_refused() {
    given::<Tenant>(past([budget_set(Period::Day, 999)])).when(&admit(1, 100, 450)).rejected(
        &Rejection::BudgetExhausted {
            period: Period::Day,
            needed: NanoUsd(1_000),
            available: NanoUsd(999),
            resets_at: NOON.after(DurationUs::from_secs(12 * 3_600)),
        },
    );
}

#[test]
fn every_period_has_its_own_ceiling() {
    for period in Period::ALL {
        let events = past([budget_set(period, 1_000), admitted(1, 0, 300, NOON)]);
        let (_, _) = given::<Tenant>(events.clone()).when(&admit(2, 400, 0)).accepted();
        let decided = given::<Tenant>(events).when(&admit(2, 401, 0));
        assert!(format!("{decided:?}").contains("BudgetExhausted"), "{period:?}");
    }
}

#[test]
fn a_settlement_frees_what_was_not_used_and_charges_what_was() {
    let state = given::<Tenant>(past([budget_set(Period::Day, 1_000), admitted(1, 100, 450, NOON)]))
        .when(&Command::SettleRequest(settlement(1, 90, 10)))
        .then([Event::RequestSettled {
            settlement: settlement(1, 90, 10),
            cost: NanoUsd(110),
            released: NanoUsd(890),
            overrun: NanoUsd(0),
            at: NOON,
        }]);
    assert_eq!((state.windows[0].settled, state.windows[0].reserved), (NanoUsd(110), NanoUsd(0)));
    assert!(state.reservations.is_empty());
}

#[test]
fn an_upstream_that_uses_more_than_was_held_costs_the_tenant_no_more_than_was_held() {
    let (events, state) = given::<Tenant>(past([admitted(1, 100, 100, NOON)]))
        .when(&Command::SettleRequest(settlement(1, 100, 5_000)))
        .accepted();
    let Event::RequestSettled { cost, overrun, .. } = &events[0] else { unreachable!() };
    assert_eq!((*cost, *overrun), (NanoUsd(300), NanoUsd(9_800)));
    assert_eq!(state.totals.overrun, NanoUsd(9_800));
}

#[test]
fn a_request_settles_once() {
    let (events, _) =
        given::<Tenant>(past([admitted(1, 1, 1, NOON)])).when(&Command::SettleRequest(settlement(1, 1, 1))).accepted();
    given::<Tenant>(past([admitted(1, 1, 1, NOON)]).into_iter().chain(events))
        .when(&Command::SettleRequest(settlement(1, 1, 1)))
        .rejected(&Rejection::NotOpen { request_id: request(1) });
}

#[test]
fn a_reservation_expires_at_its_deadline_and_not_before() {
    let command = Command::ExpireReservation { request_id: request(1) };
    let past = past([admitted(1, 100, 100, NOON)]);
    let early = TimestampUs(NOON.after(MINUTE).0 - 1);
    given::<Tenant>(past.clone()).at(early).when(&command).rejected(&Rejection::NotDue);
    let at = NOON.after(MINUTE);
    let state = given::<Tenant>(past).at(at).when(&command).then([Event::ReservationExpired {
        request_id: request(1),
        released: NanoUsd(300),
        at,
    }]);
    assert_eq!((state.windows[0].settled, state.windows[0].reserved), (NanoUsd(0), NanoUsd(0)));
}

#[test]
fn a_new_day_has_its_whole_budget_and_old_reservations_do_not_weigh_on_it() {
    let tomorrow = NOON.after(DurationUs::from_secs(24 * 3_600));
    let mut next = admission(2, 1_000, 0);
    next.deadline = tomorrow.after(MINUTE);
    let past = past([budget_set(Period::Day, 1_000), admitted(1, 1_000, 0, NOON)]);
    let (events, state) = given::<Tenant>(past.clone()).at(tomorrow).when(&Command::AdmitRequest(next)).accepted();
    assert_eq!(state.windows[0].reserved, NanoUsd(1_000));
    // The old request settles late: into the day it was admitted in, which is over.
    let (_, state) = given::<Tenant>(past.into_iter().chain(events))
        .at(tomorrow)
        .when(&Command::SettleRequest(settlement(1, 1_000, 0)))
        .accepted();
    assert_eq!((state.windows[0].settled, state.windows[0].reserved), (NanoUsd(0), NanoUsd(1_000)));
    assert_eq!(state.totals.cost, NanoUsd(1_000));
}

#[test]
fn a_budget_cannot_be_set_below_what_is_committed() {
    let command = |limit| Command::SetBudget { period: Period::Month, limit: Some(NanoUsd(limit)) };
    let past = past([admitted(1, 100, 100, NOON)]);
    given::<Tenant>(past.clone())
        .when(&command(299))
        .rejected(&Rejection::BudgetBelowCommitted { period: Period::Month, committed: NanoUsd(300) });
    given::<Tenant>(past).when(&command(300)).accepted();
}

#[test]
fn a_ceiling_that_a_plan_brought_goes_with_the_plan_and_the_operators_own_stays() {
    let built_in = |name: &str| actors_core::plan::built_in(name).unwrap();
    let day = |state: &actors_core::tenant::State| (state.windows[0].limit, state.windows[2].limit);
    let to = |name: &str| Command::SetPlan { plan: built_in(name) };
    let free = registered(built_in("free"));
    let (_, state) = given::<Tenant>(free.clone()).when(&to("pro")).accepted();
    assert_eq!(day(&state), (None, Some(NanoUsd::from_usd(500))));
    let own = free.into_iter().chain([budget_set(Period::Day, 7), budget_set(Period::Week, 8)]);
    let (_, state) = given::<Tenant>(own).when(&to("pro")).accepted();
    assert_eq!(day(&state), (Some(NanoUsd(7)), Some(NanoUsd::from_usd(500))));
    assert_eq!(state.windows[1].limit, Some(NanoUsd(8)));
}

#[test]
fn an_admission_dated_before_the_present_period_leaves_no_trace_in_it() {
    let tomorrow = NOON.after(DurationUs::from_secs(24 * 3_600));
    let past = past([admitted(1, 100, 0, tomorrow), admitted(2, 100, 0, NOON)]);
    let (_, state) = given::<Tenant>(past).at(tomorrow).when(&Command::SettleRequest(settlement(2, 100, 0))).accepted();
    assert_eq!((state.windows[0].settled, state.windows[0].reserved), (NanoUsd(0), NanoUsd(100)));
}

#[test]
fn the_request_bucket_refills_with_time() {
    let burst = registered(plan("free")).into_iter().chain((1..=3).map(|n| admitted(n, 1, 1, NOON)));
    let mut emptied: Vec<_> = burst.collect();
    for number in 1..=3 {
        let (events, _) =
            given::<Tenant>(emptied.clone()).when(&Command::SettleRequest(settlement(number, 1, 1))).accepted();
        emptied.extend(events);
    }
    emptied.extend([admitted(4, 1, 1, NOON), admitted(5, 1, 1, NOON)]);
    given::<Tenant>(emptied.clone())
        .when(&admit(6, 1, 1))
        .rejected(&Rejection::RequestRate { retry_after: DurationUs::from_secs(1) });
    given::<Tenant>(emptied).at(NOON.after(DurationUs::from_secs(1))).when(&admit(6, 1, 1)).accepted();
}

#[test]
fn tokens_that_were_held_and_not_used_flow_back() {
    let past: Vec<_> = registered(plan("free")).into_iter().chain([admitted(1, 0, 39_000, NOON)]).collect();
    let refused = given::<Tenant>(past.clone()).when(&admit(2, 2_000, 0));
    refused.rejected(&Rejection::TokenRate { retry_after: Some(DurationUs(1_500_000)), needed: Tokens(2_000) });
    let (settled, _) = given::<Tenant>(past.clone()).when(&Command::SettleRequest(settlement(1, 0, 10))).accepted();
    given::<Tenant>(past.into_iter().chain(settled)).when(&admit(2, 2_000, 0)).accepted();
}

#[test]
fn a_request_larger_than_the_token_bucket_is_told_that_waiting_does_not_help() {
    given::<Tenant>(registered(plan("free")))
        .when(&admit(1, 40_001, 0))
        .rejected(&Rejection::TokenRate { retry_after: None, needed: Tokens(40_001) });
}

#[test]
fn concurrency_is_bounded_by_the_plan() {
    let open = (1..=4).map(|n| admitted(n, 1, 1, NOON));
    given::<Tenant>(registered(plan("free")).into_iter().chain(open))
        .when(&admit(5, 1, 1))
        .rejected(&Rejection::Concurrency { open: 4 });
}

#[test]
fn a_suspended_tenant_admits_nothing_until_it_resumes() {
    let suspended = Event::TenantSuspended { reason: "unpaid".to_owned(), at: NOON };
    given::<Tenant>(past([suspended.clone()]))
        .when(&admit(1, 1, 1))
        .rejected(&Rejection::Suspended { reason: "unpaid".to_owned() });
    given::<Tenant>(past([suspended, Event::TenantResumed { at: NOON }])).when(&admit(1, 1, 1)).accepted();
}

#[test]
fn a_revoked_key_opens_nothing() {
    let revoked = Event::ApiKeyRevoked { key_id: key("main"), reason: "lost".to_owned(), at: NOON };
    given::<Tenant>(past([revoked])).when(&admit(1, 1, 1)).rejected(&Rejection::UnknownKey);
}

#[test]
fn keys_can_be_changed_for_ever() {
    let mut state = given::<Tenant>(past([])).state().clone();
    for number in 0..1_000 {
        let key_id = key(&format!("k-{number}"));
        let issue =
            Command::IssueApiKey { key_id: key_id.clone(), prefix: String::new(), hash: [1; 32], label: String::new() };
        for command in [issue, Command::RevokeApiKey { key_id, reason: String::new() }] {
            let context = Context { now: NOON.after(DurationUs(number)), inputs: DecisionContext::default() };
            let events = Tenant::decide(&state, &command, &context).unwrap();
            state = fold::<Tenant>(state, &events);
        }
    }
    assert_eq!(state.keys.len(), 1 + KEYS_REVOKED_MAX);
    assert!(state.keys.contains_key(&key("k-999")) && state.keys.contains_key(&key("main")));
}

#[test]
fn control_characters_do_not_enter_the_texts_of_operators() {
    let reason = "\u{1b}[2Jgone".to_owned();
    given::<Tenant>(past([]))
        .when(&Command::Suspend { reason })
        .rejected(&Rejection::Invalid("a text has control characters".into()));
}

#[test]
fn an_unregistered_tenant_refuses_all_but_its_registration() {
    for command in [
        Command::Resume,
        admit(1, 1, 1),
        Command::RecordRefusals { reason: RefusalReason::Key, second: 1, count: 1 },
        Command::ExpireReservation { request_id: request(1) },
    ] {
        given::<Tenant>([]).when(&command).rejected(&Rejection::NotRegistered);
    }
}

#[test]
fn absurd_numbers_are_refused_without_overflow() {
    let mut request = admission(1, u64::MAX, u64::MAX);
    given::<Tenant>(past([]))
        .when(&Command::AdmitRequest(request.clone()))
        .rejected(&Rejection::Invalid("a request may need at most 100,000,000 tokens".into()));
    request.prompt_tokens_max = Tokens(100_000_000);
    request.completion_tokens_max = Tokens(0);
    request.price.input_per_mtok = NanoUsd(i64::MAX);
    let decided = given::<Tenant>(past([])).when(&Command::AdmitRequest(request));
    assert!(format!("{decided:?}").contains("RequestTooDear"));
    let state = given::<Tenant>(past([admitted(1, u64::MAX / 4, 1, TimestampUs(u64::MAX))]));
    assert!(serde_json::to_string(state.state()).is_ok_and(|text| !text.is_empty()));
}
