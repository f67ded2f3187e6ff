//! The plans Freehold comes with, as data, and what a plan must satisfy.

use events_model::{
    NanoUsd,
    tenant::{BUDGETS_PER_PLAN_MAX, Budget, Period, Plan},
};

/// Most thousandths of a request per second.
pub const REQUESTS_PER_SECOND_MILLI_MAX: u64 = 1_000_000_000;
/// Largest request bucket.
pub const REQUEST_BURST_MAX: u32 = 1_000_000;
/// Most tokens per minute.
pub const TOKENS_PER_MINUTE_MAX: u64 = 100_000_000_000;
/// Most requests at once.
pub const CONCURRENCY_MAX: u32 = 100_000;
/// Largest weight.
pub const WEIGHT_MAX: u32 = 1_000;
/// Dearest ceiling of a plan or budget.
pub const LIMIT_MAX: NanoUsd = NanoUsd::from_usd(1_000_000_000);

/// The built-in plans by name.
pub fn built_in(name: &str) -> Option<Plan> {
    let plan = |rps_milli, burst, tpm, concurrency, weight, cost_max, budget| Plan {
        name: name.to_owned(),
        requests_per_second_milli: rps_milli,
        request_burst: burst,
        tokens_per_minute: tpm,
        concurrency_max: concurrency,
        weight,
        request_cost_max: cost_max,
        budgets: vec![budget],
    };
    let budget = |period, usd| Budget { period, limit: NanoUsd::from_usd(usd) };
    match name {
        "free" => Some(plan(1_000, 5, 40_000, 4, 1, NanoUsd(100_000_000), budget(Period::Day, 1))),
        "pro" => Some(plan(50_000, 200, 2_000_000, 64, 3, NanoUsd::from_usd(5), budget(Period::Month, 500))),
        "enterprise" => {
            Some(plan(1_000_000, 5_000, 100_000_000, 1_000, 10, NanoUsd::from_usd(100), budget(Period::Month, 100_000)))
        }
        _ => None,
    }
}

/// Names of the built-in plans, smallest first.
pub const BUILT_IN: [&str; 3] = ["free", "pro", "enterprise"];

/// Says what is wrong with a plan, if anything is.
pub fn fault(plan: &Plan) -> Option<&'static str> {
    let too_dear = |limit: NanoUsd| limit < NanoUsd::ZERO || limit > LIMIT_MAX;
    let mut periods: Vec<_> = plan.budgets.iter().map(|budget| budget.period).collect();
    periods.sort_unstable();
    periods.dedup();
    let rules = [
        (plan.name.is_empty() || plan.name.len() > 63, "the name must be 1 to 63 bytes"),
        (
            plan.requests_per_second_milli == 0 || plan.requests_per_second_milli > REQUESTS_PER_SECOND_MILLI_MAX,
            "requests per second must be 0.001 to 1,000,000",
        ),
        (plan.request_burst == 0 || plan.request_burst > REQUEST_BURST_MAX, "burst must be 1 to 1,000,000"),
        (
            plan.tokens_per_minute == 0 || plan.tokens_per_minute > TOKENS_PER_MINUTE_MAX,
            "tokens per minute must be 1 to 100,000,000,000",
        ),
        (plan.concurrency_max == 0 || plan.concurrency_max > CONCURRENCY_MAX, "concurrency must be 1 to 100,000"),
        (plan.weight == 0 || plan.weight > WEIGHT_MAX, "weight must be 1 to 1,000"),
        (too_dear(plan.request_cost_max), "the request cost limit must be $0 to $1,000,000,000"),
        (plan.budgets.iter().any(|budget| too_dear(budget.limit)), "a budget must be $0 to $1,000,000,000"),
        (
            periods.len() != plan.budgets.len() || plan.budgets.len() > BUDGETS_PER_PLAN_MAX,
            "a plan has at most one budget per period",
        ),
    ];
    rules.iter().find(|(broken, _)| *broken).map(|(_, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_plans_are_sound_and_weigh_1_3_and_10() {
        let plans: Vec<_> = BUILT_IN.iter().filter_map(|name| built_in(name)).collect();
        assert!(plans.iter().all(|plan| fault(plan).is_none()));
        assert_eq!(plans.iter().map(|plan| plan.weight).collect::<Vec<_>>(), [1, 3, 10]);
    }
}
