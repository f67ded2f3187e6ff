//! A tenant's episodes, newest first.

use events_model::{EpisodeId, TenantId};
use proptest::prelude::*;
use replay::episode::{EndState, ListError, Summary, list};

use crate::desk::{Desk, admit, issue_key, register, settle};

fn acme() -> TenantId {
    TenantId::new("acme").unwrap()
}

fn numbers(episodes: &[Summary]) -> Vec<u64> {
    let number = |episode: &EpisodeId| u128::from_be_bytes(*episode.as_bytes()) as u64;
    episodes.iter().map(|summary| number(&summary.episode_id)).collect()
}

#[test]
fn the_newest_comes_first_with_its_end_state_and_cost() {
    let mut desk = Desk::with_acme();
    desk.tell("other", 9, &register());
    desk.tell("acme", 5, &admit(5, 10, 10, desk.now));
    desk.tell("acme", 6, &admit(6, 10, 10, desk.now));
    desk.tell("acme", 5, &settle(5, 4, 3));
    let page = list(&desk.log, &acme(), 0, "").unwrap();
    assert_eq!(numbers(&page.episodes), [6, 5, 1_002, 1_001]);
    assert_eq!(page.next_page_token, "");
    assert_eq!(page.episodes[0].end_state, EndState::Open);
    let settled = &page.episodes[1];
    assert_eq!((settled.end_state.name(), settled.cost.0, settled.duration.0), ("completed", 10, 2_000));
    assert_eq!(page.episodes[3].end_state, EndState::Administration);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Pages of any size, with requests beginning and ending between them, list each episode once.
    #[test]
    fn pages_neither_repeat_nor_miss_an_episode(
        ends in prop::collection::vec(any::<bool>(), 0..40),
        size in 1..7_u32,
    ) {
        let mut desk = Desk::with_acme();
        let mut open = Vec::new();
        for (number, closes) in (1_u64..).zip(&ends) {
            desk.tell("acme", number, &admit(number, 1, 1, desk.now));
            open.push(number);
            if *closes {
                let oldest = open.remove(0);
                desk.tell("acme", oldest, &settle(oldest, 1, 1));
            }
        }
        let expected: Vec<_> = (1..=ends.len() as u64).rev().chain([1_002, 1_001]).collect();
        let (mut found, mut token, mut later) = (Vec::new(), String::new(), 10_000);
        loop {
            let page = list(&desk.log, &acme(), size, &token).unwrap();
            prop_assert!(page.episodes.len() <= size as usize);
            found.extend(numbers(&page.episodes));
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
            // What begins or ends meanwhile moves nothing.
            later += 1;
            desk.tell("acme", later, &admit(later, 1, 1, desk.now));
            if let Some(number) = open.pop() {
                desk.tell("acme", number, &settle(number, 1, 1));
            }
        }
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn an_episode_of_several_commits_stands_where_it_began() {
    let mut desk = Desk::new();
    desk.tell("acme", 1, &register());
    desk.tell("acme", 2, &issue_key());
    desk.tell("acme", 1, &events_model::tenant::Command::Suspend { reason: String::new() });
    assert_eq!(numbers(&list(&desk.log, &acme(), 10, "").unwrap().episodes), [2, 1]);
}

#[test]
fn tokens_that_were_not_made_here_and_unknown_tenants_are_refused() {
    let desk = Desk::with_acme();
    for token in ["x", "e1-", "e1-0", "e1-zz", "e1-+1", "e1-01", "e1-A", "e2-1", " e1-1", "e1-1ffffffffffffffff"] {
        let error = list(&desk.log, &acme(), 1, token).unwrap_err();
        assert!(matches!(error, ListError::PageToken { .. }), "{token:?}: {error}");
    }
    // A version that the stream never had lists from the newest.
    assert_eq!(list(&desk.log, &acme(), 9, "e1-ffffffffffffffff").unwrap().episodes.len(), 2);
    let nobody = TenantId::new("nobody").unwrap();
    assert!(matches!(list(&desk.log, &nobody, 1, "").unwrap_err(), ListError::NoSuchTenant { .. }));
    assert_eq!(list(&desk.log, &acme(), u32::MAX, "").unwrap().episodes.len(), 2);
    assert_eq!(numbers(&list(&desk.log, &acme(), 1, "").unwrap().episodes), [1_002]);
}
