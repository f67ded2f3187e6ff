//! T-1: whatever the order in which requests are admitted, settled and expired, and budgets and plans change, no
//! period's settled and reserved sum exceeds its budget.
//!
//! Method: random commands against one tenant; after each accepted one the invariants are checked, and the state
//! is compared with one rebuilt from the stored form of all events.

use actors_core::{Context, Decider, fold, invariant, tenant::Tenant};
use events_model::{
    DecisionContext, DurationUs, NanoUsd, Stored, TimestampUs,
    tenant::{Command, Event, Period},
};
use proptest::prelude::*;
use tests_kit::{
    NOON,
    tenant::{admission, plan, registered, request, settlement},
};

#[derive(Debug, Clone)]
enum Step {
    Admit { number: u8, prompt: u64, completion: u64, lifetime_s: u64 },
    Settle { number: u8, prompt: u64, completion: u64 },
    Expire { number: u8 },
    Budget { period: Period, limit: Option<i64> },
    Plan { name: &'static str },
    Pass { seconds: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let period = prop::sample::select(Period::ALL.to_vec());
    prop_oneof![
        6 => (0..24_u8, 0..400_u64, 0..400_u64, 1..200_000_u64).prop_map(|(number, prompt, completion, lifetime_s)| {
            Step::Admit { number, prompt, completion, lifetime_s }
        }),
        4 => (0..24_u8, 0..800_u64, 0..800_u64)
            .prop_map(|(number, prompt, completion)| Step::Settle { number, prompt, completion }),
        2 => (0..24_u8).prop_map(|number| Step::Expire { number }),
        1 => (period, prop::option::of(0..5_000_i64)).prop_map(|(period, limit)| Step::Budget { period, limit }),
        1 => prop::sample::select(vec!["free", "pro", "enterprise"]).prop_map(|name| Step::Plan { name }),
        3 => (0..200_000_u64).prop_map(|seconds| Step::Pass { seconds }),
    ]
}

fn command(step: &Step, now: TimestampUs) -> Option<Command> {
    Some(match step {
        Step::Admit { number, prompt, completion, lifetime_s } => {
            let mut admission = admission(*number, *prompt, *completion);
            admission.deadline = now.after(DurationUs::from_secs(*lifetime_s));
            Command::AdmitRequest(admission)
        }
        Step::Settle { number, prompt, completion } => {
            Command::SettleRequest(settlement(*number, *prompt, *completion))
        }
        Step::Expire { number } => Command::ExpireReservation { request_id: request(*number) },
        Step::Budget { period, limit } => Command::SetBudget { period: *period, limit: limit.map(NanoUsd) },
        Step::Plan { name } => Command::SetPlan { plan: plan(name) },
        Step::Pass { .. } => return None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn no_interleaving_overshoots_a_budget(steps in prop::collection::vec(step(), 1..120)) {
        let mut now = NOON;
        let mut log: Vec<Event> = registered(plan("pro"));
        let mut state = fold::<Tenant>(<Tenant as Decider>::State::default(), &log);
        for step in &steps {
            if let Step::Pass { seconds } = step {
                now = now.after(DurationUs::from_secs(*seconds));
            }
            let Some(command) = command(step, now) else { continue };
            let context = Context { now, inputs: DecisionContext::default() };
            let Ok(events) = Tenant::decide(&state, &command, &context) else { continue };
            prop_assert_eq!(Command::from_payload(command.to_payload().view()).unwrap(), command);
            state = fold::<Tenant>(state, &events);
            log.extend(events);
            if let Some(broken) = invariant::broken(&state, now) {
                prop_assert!(false, "{} ({broken:?}) is broken after {step:?}", broken.id());
            }
        }
        let stored = log.iter().map(|event| Event::from_payload(event.to_payload().view()).unwrap());
        prop_assert_eq!(stored.fold(<Tenant as Decider>::State::default(), |s, e| Tenant::evolve(s, &e)), state);
    }
}
