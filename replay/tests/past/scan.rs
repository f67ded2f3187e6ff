//! Folding everything: every tenant ends as its actor left it; and how fast that goes.

use std::time::{Duration, Instant};

use events_journal::{Direction, EventLog, Filter, Recorded, log::READ_LIMIT_MAX};
use events_model::{Payload, Position, Version};
use replay::{
    At, scan,
    scan::{Scan, all_tenants},
    state_at::tenant_at,
};

use crate::desk::{Desk, admit, issue_key, register, settle, stream};

/// Tenants of the large log.
const TENANTS: u64 = 64;
/// Requests of each, two events a request: enough for a figure when optimised, quick when not.
const REQUESTS: u64 = if cfg!(debug_assertions) { 150 } else { 8_000 };
/// Passes that are timed.
const PASSES: u32 = if cfg!(debug_assertions) { 1 } else { 7 };

#[test]
fn every_tenant_ends_as_its_actor_left_it_and_the_speed_is_printed() {
    let mut desk = Desk::new();
    desk.publish("sim-small");
    let names: Vec<_> = (0..TENANTS).map(|number| format!("tenant-{number}")).collect();
    for name in &names {
        desk.tell(name, 1, &register());
        desk.tell(name, 2, &issue_key());
    }
    // Eight requests are open in each tenant at any time.
    let number = |request: u64, tenant: usize| request * TENANTS + tenant as u64 + 10;
    for request in 0..REQUESTS + 8 {
        for (tenant, name) in names.iter().enumerate() {
            if request < REQUESTS {
                let new = number(request, tenant);
                desk.tell(name, new, &admit(new, 96, 64, desk.now));
            }
            if request >= 8 {
                let old = number(request - 8, tenant);
                desk.tell(name, old, &settle(old, 20, 30));
            }
        }
    }
    let mut seen = Vec::new();
    let scan = all_tenants(&desk.log, |position| seen.push(position)).unwrap();
    let events = TENANTS * (2 + 2 * REQUESTS);
    assert_eq!((scan.commits, scan.events), (events + 1, events));
    assert_eq!(seen.last(), Some(&desk.log.head_position()));
    assert_eq!(scan.states().count() as u64, TENANTS);
    for name in &names {
        assert_eq!(scan.state(stream(name).as_str()), Some(desk.state(name)));
    }
    let first = &names[0];
    assert_eq!(&tenant_at(&desk.log, &stream(first), At::Newest).unwrap().state, desk.state(first));
    print_speed(&desk, events);
}

/// Prints the best of some passes: with the reads of the memory log, and without.
#[expect(clippy::print_stdout, reason = "the figure is what a benchmark is for")]
fn print_speed(desk: &Desk, events: u64) {
    let commits = read_everything(&desk.log);
    let mut best = [Duration::MAX; 2];
    for _ in 0..PASSES {
        let whole = time(|| all_tenants(&desk.log, |_| {}).unwrap().events);
        let fold = time(|| {
            let mut scan = Scan::default();
            commits.iter().for_each(|commit| scan.apply(commit).unwrap());
            scan.events
        });
        for (best, (elapsed, folded)) in best.iter_mut().zip([whole, fold]) {
            assert_eq!(folded, events);
            *best = elapsed.min(*best);
        }
    }
    let rate = |elapsed: Duration| format!("{:.0} events/s", events as f64 / elapsed.as_secs_f64());
    let [whole, fold] = best.map(rate);
    println!("{events} events, best of {PASSES}: decode and fold {fold}; with reads of the memory log {whole}");
}

fn read_everything(log: &dyn EventLog) -> Vec<Recorded> {
    let (mut commits, mut next) = (Vec::new(), Position(1));
    while next <= log.head_position() {
        let page = log.read_log(next, Direction::Forward, &Filter::default(), READ_LIMIT_MAX).unwrap();
        commits.extend(page.commits);
        next = page.next;
    }
    commits
}

fn time<R>(work: impl FnOnce() -> R) -> (Duration, R) {
    #[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
    let begin = Instant::now();
    let result = work();
    (begin.elapsed(), result)
}

#[test]
fn an_event_that_does_not_decode_ends_the_pass_with_its_place() {
    let mut desk = Desk::with_acme();
    let payload = Payload { kind: "a.Unheard", schema_version: 1, bytes: Vec::new() };
    desk.append(&stream("acme"), 9, payload.clone(), vec![payload]);
    let error = all_tenants(&desk.log, |_| {}).unwrap_err();
    let scan::Error::Decode { stream, version, position, .. } = error else { unreachable!("{error}") };
    assert_eq!((stream.as_str(), version, position), ("tenant/acme", Version(3), Position(3)));
}
