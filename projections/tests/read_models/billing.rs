//! Bills: exact, and the same bytes however the log was batched.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use events_journal::{Direction, EventLog, Filter};
use events_model::{DurationUs, NanoUsd, Position, TenantId, TimestampUs, Tokens, tenant::Event};
use projections::{
    Fold, Options, Parked, Runner,
    billing::{Billing, Line, State, UtcDay},
    fold_to,
    tenants::Tenants,
};
use proptest::prelude::*;
use tests_kit::NOON;
use tokio::sync::watch;

use crate::book::{Book, DAY, admitted, bytes, expired, registered, settled, tenant};

/// A line of the plain sums that the read models are compared with.
type Key = (TenantId, UtcDay, String);

/// What random steps made, and the sums they should give.
#[derive(Debug, Default)]
struct Story {
    events: Vec<(TenantId, Event)>,
    open: Vec<(u64, Key)>,
    sums: BTreeMap<Key, Line>,
}

/// One step: which tenant, model and day, which of the open requests to close, how, and with what usage.
type Step = (u8, u8, u64, usize, u8, u64, u64);

impl Story {
    fn tell(steps: &[Step]) -> Self {
        let mut story = Self::default();
        for name in 0..3 {
            story.events.push((tenant(&format!("t{name}")), registered("pro")));
        }
        for (number, step) in (1_u64..).zip(steps) {
            story.step(number, step);
        }
        story
    }

    fn step(&mut self, number: u64, (who, model, days, which, what, prompt, completion): &Step) {
        let at = TimestampUs(NOON.0 + days * DAY.0);
        if *what < 2 || self.open.is_empty() {
            let (tenant, model) = (tenant(&format!("t{who}")), format!("m{model}"));
            self.events.push((tenant.clone(), admitted(number, &model, at)));
            self.open.push((number, (tenant, UtcDay::of(at), model)));
            return;
        }
        let (closed, key) = self.open.swap_remove(which % self.open.len());
        // Settled on a later day than it was admitted: the bill must not move.
        let later = at.after(DAY);
        if *what == 2 {
            self.events.push((key.0, expired(closed, later)));
        } else {
            let cost = (prompt + 2 * completion).cast_signed();
            self.events.push((key.0.clone(), settled(closed, *prompt, *completion, cost, later)));
            let (prompt_tokens, completion_tokens) = (Tokens(*prompt), Tokens(*completion));
            let line = Line { requests: 1, prompt_tokens, completion_tokens, cost: NanoUsd(cost) };
            let sum = self.sums.entry(key).or_default();
            *sum = sum.plus(line);
        }
    }

    /// Puts the events on a log, as many of the same tenant in one commit as `sizes` says.
    fn write(&self, sizes: &[usize]) -> Book {
        let mut book = Book::default();
        let mut sizes = sizes.iter().copied().cycle();
        let mut rest = self.events.as_slice();
        while let Some((tenant, _)) = rest.first() {
            let same = rest.iter().take_while(|(other, _)| other == tenant).count();
            let (commit, after) = rest.split_at(same.min(sizes.next().unwrap()));
            book.write(tenant, &commit.iter().map(|(_, event)| event.clone()).collect::<Vec<_>>());
            rest = after;
        }
        book
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((0..3_u8, 0..3_u8, 0..3_u64, any::<usize>(), 0..6_u8, 0..1_000_u64, 0..1_000_u64), 1..120)
}

/// Lets a runner start, catch up and stop.
fn run_once(book: &Book) -> Fold<State> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (runner, reader) = Runner::<Billing>::open(book.port(), Arc::clone(&book.log) as _, Options::default());
    let (stop, stopped) = watch::channel(false);
    runtime.block_on(async {
        let drive = async {
            reader.wait_for(book.log.head_position(), Duration::from_secs(30)).await.unwrap();
            stop.send_replace(true);
        };
        tokio::join!(async { runner.run(stopped, |_| {}).await.unwrap() }, drive);
    });
    let (state, position) = reader.read(|state, position| (state.clone(), position));
    Fold { state, position, parked: reader.parked() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn bills_are_the_plain_sums_and_the_tenants_totals(steps in steps()) {
        let story = Story::tell(&steps);
        let book = story.write(&[1]);
        let bills = fold_to::<Billing>(&*book.log, Position(u64::MAX)).unwrap();
        let mut found = BTreeMap::new();
        for (tenant, bill) in &bills.state.tenants {
            for (day, lines) in &bill.days {
                found.extend(lines.iter().map(|(model, line)| ((tenant.clone(), *day, model.clone()), *line)));
            }
        }
        prop_assert_eq!(&found, &story.sums);
        let tenants = fold_to::<Tenants>(&*book.log, Position(u64::MAX)).unwrap();
        prop_assert_eq!((bills.parked.count, tenants.parked.count), (0, 0));
        for (tenant, bill) in &bills.state.tenants {
            let (line, summary) = (bill.total(), &tenants.state.tenants[tenant]);
            prop_assert_eq!((line.requests, line.cost), (summary.requests_settled, summary.cost));
            prop_assert_eq!(line.completion_tokens, summary.completion_tokens);
            let open = story.open.iter().filter(|(_, key)| key.0 == *tenant).count();
            prop_assert_eq!(summary.open_reservations() as usize, open);
        }
    }

    #[test]
    fn a_fold_to_any_position_gives_the_same_bytes_however_commits_were_batched(
        steps in steps(),
        sizes in prop::collection::vec(1..9_usize, 1..20),
        cut in any::<u64>(),
        stop_at in any::<prop::sample::Index>(),
    ) {
        let story = Story::tell(&steps);
        let book = story.write(&[1]);
        let upto = Position(1 + cut % book.log.head_position().0);
        let reference = fold_to::<Billing>(&*book.log, upto).unwrap();

        // Read in other pages.
        let mut fold = Fold { state: State::default(), position: Position(0), parked: Parked::default() };
        let mut sizes_read = sizes.iter().copied().cycle();
        while fold.position < upto {
            let limit = sizes_read.next().unwrap().min(usize::try_from(upto.0 - fold.position.0).unwrap());
            let page = book.log.read_log(fold.position.next(), Direction::Forward, &Filter::default(), limit).unwrap();
            // Whatever is delivered twice counts once.
            for commit in page.commits.iter().chain(&page.commits) {
                fold.apply::<Billing>(commit);
            }
        }
        prop_assert_eq!(bytes(&fold.state), bytes(&reference.state));

        // Committed in other groups.
        let whole = bytes(&fold_to::<Billing>(&*book.log, Position(u64::MAX)).unwrap().state);
        let grouped = fold_to::<Billing>(&*story.write(&sizes).log, Position(u64::MAX)).unwrap();
        prop_assert_eq!(&bytes(&grouped.state), &whole);

        // Stopped and started again in between, through the checkpoint.
        let half = Story { events: story.events[..stop_at.index(story.events.len())].to_vec(), ..Story::default() };
        let mut resumed = half.write(&[1]);
        run_once(&resumed);
        for (tenant, event) in &story.events[half.events.len()..] {
            resumed.write(tenant, std::slice::from_ref(event));
        }
        prop_assert_eq!(&bytes(&run_once(&resumed).state), &whole);
    }
}

#[test]
fn a_request_is_billed_to_the_day_it_was_admitted_which_is_then_final() {
    let mut book = Book::default();
    let acme = tenant("acme");
    let late = TimestampUs(NOON.0 + DAY.0 / 2 - 1);
    let day = UtcDay::of(late);
    book.write(&acme, &[registered("pro"), admitted(1, "a", late), admitted(2, "b", late)]);
    book.write(&acme, &[settled(1, 3, 4, 11, late.after(DurationUs::from_secs(5)))]);
    let bill = |book: &Book| fold_to::<Billing>(&*book.log, Position(u64::MAX)).unwrap().state.tenants[&acme].clone();
    assert_eq!(bill(&book).days[&day]["a"].cost, NanoUsd(11));
    assert!(!bill(&book).is_final(day));
    book.write(&acme, &[expired(2, late.after(DAY))]);
    assert!(bill(&book).is_final(day));
    assert_eq!(bill(&book).total().requests, 1);
    assert_eq!(day.to_string(), "2026-11-20");
    assert_eq!(UtcDay(u64::MAX).to_string(), u64::MAX.to_string());
}

#[test]
fn days_sum_by_model() {
    let mut book = Book::default();
    let acme = tenant("acme");
    book.write(&acme, &[registered("pro")]);
    for (number, model, days) in [(1, "a", 0), (2, "a", 1), (3, "b", 1), (4, "a", 2)] {
        let at = TimestampUs(NOON.0 + days * DAY.0);
        book.write(&acme, &[admitted(number, model, at), settled(number, 1, 1, 10, at)]);
    }
    let bills = fold_to::<Billing>(&*book.log, Position(u64::MAX)).unwrap().state;
    let bill = &bills.tenants[&acme];
    let first = UtcDay::of(NOON);
    let sums = bill.by_model(first..=UtcDay(first.0 + 1));
    let shown: Vec<_> = sums.iter().map(|(model, line)| (*model, line.requests, line.cost.0)).collect();
    assert_eq!(shown, [("a", 2, 20), ("b", 1, 10)]);
    assert!(bill.by_model(UtcDay(first.0 + 1)..=first).is_empty());
}
