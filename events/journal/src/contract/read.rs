//! What reading promises.

use std::sync::Arc;

use events_model::{Commit, CommitId, EpisodeId, Position, StreamId, TenantId, Version};

use super::{
    durable::same_answers,
    fixture::{
        COUNTED, HAPPENED, Noise, append, bytes, call, commit, encoded, fill, positions, read_all, saga, settle, tenant,
    },
};
use crate::{
    log::{Direction, EventLog, Filter, READ_LIMIT_MAX, Recorded},
    memory::MemoryLog,
};

type Log = Arc<dyn EventLog>;

fn ids(commits: &[Recorded]) -> Vec<String> {
    commits.iter().map(|commit| commit.view().unwrap().commit_id.to_owned()).collect()
}

/// Forward holds versions from `from` on, backward from `from` down; both take the nearest first.
pub fn a_stream_is_read_in_both_directions_from_any_version(log: &Log) {
    let (acme, bell) = (tenant("acme"), tenant("bell"));
    let commits = fill(log, &acme, 20);
    fill(log, &bell, 5);
    for from in (0..=22).chain([u64::MAX]) {
        for limit in [1, 3, 20, 100] {
            let forward = log.read_stream(&acme, Version(from), Direction::Forward, limit).unwrap();
            let expected: Vec<_> = commits.iter().filter(|c| c.first_version.0 >= from).take(limit).cloned().collect();
            assert_eq!(bytes(&forward), encoded(&expected), "forward from {from}, at most {limit}");
            let backward = log.read_stream(&acme, Version(from), Direction::Backward, limit).unwrap();
            let expected: Vec<_> =
                commits.iter().rev().filter(|c| c.first_version.0 <= from).take(limit).cloned().collect();
            assert_eq!(bytes(&backward), encoded(&expected), "backward from {from}, at most {limit}");
        }
    }
}

/// A commit is atomic: a version in its middle brings all of it.
pub fn a_version_inside_a_commit_finds_the_whole_commit(log: &Log) {
    let acme = tenant("acme");
    // Versions 1 to 3, 4 to 8 and 9.
    for (version, events) in [(1, 3), (4, 5), (9, 1)] {
        append(log, commit(&acme, Version(version), &format!("c-{version}"), events, 60)).unwrap();
    }
    let forward = |from| ids(&log.read_stream(&acme, Version(from), Direction::Forward, 10).unwrap());
    let backward = |from| ids(&log.read_stream(&acme, Version(from), Direction::Backward, 10).unwrap());
    for from in 4..=8 {
        assert_eq!(forward(from), ["c-4", "c-9"], "forward from {from}");
        assert_eq!(backward(from), ["c-4", "c-1"], "backward from {from}");
    }
    assert_eq!(forward(3), ["c-1", "c-4", "c-9"]);
    assert_eq!(backward(9), ["c-9", "c-4", "c-1"]);
    assert_eq!(forward(10), [""; 0]);
    assert_eq!(backward(0), [""; 0]);
}

/// One name may begin another.
pub fn streams_with_similar_names_do_not_mix(log: &Log) {
    let streams = ["tenant/a", "tenant/a1", "tenant/a-1", "saga/a/a", "saga/a/a1", "saga/a1/a", "region/a"]
        .map(|text| StreamId::new(text).unwrap());
    let filled: Vec<_> = (1..).zip(&streams).map(|(count, stream)| fill(log, stream, count)).collect();
    for (stream, commits) in streams.iter().zip(&filled) {
        assert_eq!(log.head(stream).unwrap(), Version(commits.len() as u64), "{stream}");
        let read = log.read_stream(stream, Version(1), Direction::Forward, 100).unwrap();
        assert_eq!(bytes(&read), encoded(commits), "{stream}");
    }
    assert_eq!(log.head(&tenant("a2")).unwrap(), Version(0));
}

/// However much is asked for, and nothing when nothing is asked for.
pub fn no_read_returns_more_than_the_limit(log: &Log) {
    let acme = tenant("acme");
    let episode_id = EpisodeId::from_bytes([7; 16]);
    let count = READ_LIMIT_MAX as u64 + 1;
    let receipts: Vec<_> = (1..=count)
        .map(|version| Commit { episode_id, ..commit(&acme, Version(version), &format!("c-{version}"), 1, 1) })
        .map(|commit| call(log, commit))
        .collect();
    for receipt in receipts {
        settle(receipt).unwrap();
    }
    for (limit, most) in [(0, 0), (1, 1), (READ_LIMIT_MAX, READ_LIMIT_MAX), (usize::MAX, READ_LIMIT_MAX)] {
        let forward = log.read_stream(&acme, Version(1), Direction::Forward, limit).unwrap();
        assert_eq!(forward.len(), most);
        let backward = log.read_stream(&acme, Version(count), Direction::Backward, limit).unwrap();
        assert_eq!(positions(&backward), (1..=count).rev().take(most).collect::<Vec<_>>());
        assert_eq!(log.read_episode(episode_id, limit).unwrap().len(), most);
        let page = log.read_log(Position(1), Direction::Forward, &Filter::default(), limit).unwrap();
        assert!(page.commits.len() <= most, "{} of at most {most}", page.commits.len());
        assert_eq!(page.next, Position(1 + page.commits.len() as u64), "what was not returned was not looked at");
    }
    let read = read_all(log, Direction::Forward, &Filter::default(), READ_LIMIT_MAX);
    assert_eq!(positions(&read), (1..=count).collect::<Vec<_>>());
}

/// Pages put together are the log: nothing twice, nothing skipped.
pub fn the_log_is_read_to_both_ends_in_pages_of_any_size(log: &Log) {
    let (acme, bell) = (tenant("acme"), tenant("bell"));
    let commits = [fill(log, &acme, 60), fill(log, &bell, 41)].concat();
    let reversed: Vec<_> = commits.iter().rev().cloned().collect();
    for limit in [1, 2, 7, 100, 101, 102] {
        let forward = read_all(log, Direction::Forward, &Filter::default(), limit);
        assert_eq!(bytes(&forward), encoded(&commits), "in pages of {limit}");
        assert_eq!(positions(&forward), (1..=101).collect::<Vec<_>>());
        let backward = read_all(log, Direction::Backward, &Filter::default(), limit);
        assert_eq!(bytes(&backward), encoded(&reversed), "in pages of {limit}");
    }
    let middle = log.read_log(Position(50), Direction::Backward, &Filter::default(), 3).unwrap();
    assert_eq!((positions(&middle.commits), middle.next), (vec![50, 49, 48], Position(47)));
    let middle = log.read_log(Position(50), Direction::Forward, &Filter::default(), 3).unwrap();
    assert_eq!((positions(&middle.commits), middle.next), (vec![50, 51, 52], Position(53)));
    let start = log.read_log(Position(2), Direction::Backward, &Filter::default(), 3).unwrap();
    assert_eq!((positions(&start.commits), start.next), (vec![2, 1], Position(0)));
}

/// Position 0 is before the first commit; above the head there is nothing yet.
pub fn reading_beyond_either_end_returns_nothing(log: &Log) {
    fill(log, &tenant("acme"), 3);
    for from in [4, 5, 1_000] {
        let page = log.read_log(Position(from), Direction::Forward, &Filter::default(), 10).unwrap();
        assert_eq!((page.commits.len(), page.next), (0, Position(from)), "a reader must not be moved");
    }
    let page = log.read_log(Position(0), Direction::Backward, &Filter::default(), 10).unwrap();
    assert_eq!((page.commits.len(), page.next), (0, Position(0)));
    let page = log.read_log(Position(0), Direction::Forward, &Filter::default(), 10).unwrap();
    assert_eq!((positions(&page.commits), page.next), (vec![1, 2, 3], Position(4)));
    for from in [4, u64::MAX] {
        let page = log.read_log(Position(from), Direction::Backward, &Filter::default(), 10).unwrap();
        assert_eq!((positions(&page.commits), page.next), (vec![3, 2, 1], Position(0)));
    }
}

/// Tenant, kind of stream and type of event, alone and together, in both directions.
pub fn filters_pass_exactly_what_matches(log: &Log) {
    let streams = ["tenant/acme", "saga/acme/one", "tenant/bell", "region/local", "tenant/acme-2"];
    for n in 0..60_u64 {
        let stream = StreamId::new(streams[usize::try_from(n % 5).unwrap()]).unwrap();
        let mut commit = commit(&stream, Version(1 + n / 5 * 2), &format!("c-{n}"), 2, 40);
        if n % 3 == 0 {
            commit.events[1].payload.kind = COUNTED;
        }
        append(log, commit).unwrap();
    }
    let tenants = [None, Some("acme"), Some("bell"), Some("nobody")];
    let kinds = [None, Some("tenant"), Some("saga"), Some("region"), Some("tenan")];
    let types: [&[&str]; 5] = [&[], &[COUNTED], &[HAPPENED], &[COUNTED, HAPPENED], &["freehold.contract.v1.Count"]];
    for (tenant, kind, types) in tenants
        .iter()
        .flat_map(|tenant| kinds.iter().map(move |kind| (tenant, kind)))
        .flat_map(|(tenant, kind)| types.iter().map(move |types| (tenant, kind, types)))
    {
        let filter = Filter {
            tenant: tenant.map(|name| TenantId::new(name).unwrap()),
            stream_kind: kind.map(str::to_owned),
            event_types: types.iter().map(|name| (*name).to_owned()).collect(),
        };
        let mut expected: Vec<u64> = (0..60)
            .filter(|n| {
                let stream = streams[usize::try_from(n % 5).unwrap()];
                // The second part of a name is the tenant, but regions have none.
                let owner = stream.split('/').nth(1).filter(|_| !stream.starts_with("region/"));
                tenant.is_none_or(|tenant| owner == Some(tenant))
                    && kind.is_none_or(|kind| stream.split('/').next() == Some(kind))
                    && (types.is_empty() || types.contains(&HAPPENED) || (types.contains(&COUNTED) && n % 3 == 0))
            })
            .map(|n| n + 1)
            .collect();
        assert_eq!(positions(&read_all(log, Direction::Forward, &filter, 4)), expected, "{filter:?}");
        expected.reverse();
        assert_eq!(positions(&read_all(log, Direction::Backward, &filter, 4)), expected, "{filter:?} backward");
    }
}

/// An episode is a story told by several actors.
pub fn an_episode_is_read_in_log_order_across_streams(log: &Log) {
    let streams = ["tenant/acme", "saga/acme/one", "region/local"].map(|text| StreamId::new(text).unwrap());
    // Differ in the last byte alone.
    let episodes = [1, 2].map(|end| EpisodeId::from_bytes([9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, end]));
    for n in 0..30_u64 {
        let index = usize::try_from(n).unwrap();
        let commit = commit(&streams[index % 3], Version(1 + n / 3), &format!("c-{n}"), 1, 40);
        append(log, Commit { episode_id: episodes[index % 2], ..commit }).unwrap();
    }
    let odd: Vec<u64> = (1..=30).step_by(2).collect();
    let even: Vec<u64> = (2..=30).step_by(2).collect();
    assert_eq!(positions(&log.read_episode(episodes[0], 100).unwrap()), odd);
    assert_eq!(positions(&log.read_episode(episodes[1], 100).unwrap()), even);
    assert_eq!(positions(&log.read_episode(episodes[1], 4).unwrap()), even[..4]);
    assert!(log.read_episode(EpisodeId::from_bytes([8; 16]), 100).unwrap().is_empty());
}

/// The idempotency key finds its commit, in its own stream and nowhere else.
pub fn a_commit_is_found_by_its_id_in_its_stream_alone(log: &Log) {
    let (acme, bell) = (tenant("acme"), tenant("bell"));
    let commits = fill(log, &acme, 30);
    fill(log, &bell, 30);
    for (position, commit) in (1..).zip(&commits) {
        let found = log.find_commit(&acme, &commit.commit_id).unwrap().unwrap();
        assert_eq!((found.position, found.bytes.to_vec()), (Position(position), commit.encode()));
        assert!(log.find_commit(&bell, &commit.commit_id).unwrap().is_none());
    }
    assert!(log.find_commit(&acme, &CommitId::new("tenant/acme-").unwrap()).unwrap().is_none());
    assert!(log.find_commit(&tenant("cobb"), &commits[0].commit_id).unwrap().is_none());
}

/// Seeded appends, right and wrong, in pipelines of random lengths, give the answers of the reference, and so do
/// all reads afterwards.
pub fn random_work_of_a_tenant_gives_the_answers_of_the_memory_log(log: &Log) {
    const STREAMS: u64 = 6;
    const SEED: u64 = 20_250_719;
    let mut noise = Noise::new(&["random work"], SEED);
    let reference: Log = Arc::new(MemoryLog::new());
    for batch in 0..60 {
        let mut heads = [0; STREAMS as usize].map(Version);
        for (stream, head) in (0..STREAMS).zip(&mut heads) {
            *head = reference.head(&saga(&format!("s-{stream}"))).unwrap();
        }
        let mut receipts = Vec::new();
        for _ in 0..=noise.below(20) {
            let number = noise.below(STREAMS);
            let head = &mut heads[usize::try_from(number).unwrap()];
            // One in eight believes a wrong version; ids come from a small set, so that some come twice.
            let version = if noise.below(8) == 0 { Version(noise.below(60)).next() } else { head.next() };
            let events = 1 + usize::try_from(noise.below(4)).unwrap();
            let size = usize::try_from(noise.below(3_000)).unwrap();
            let id = format!("c-{}", noise.below(400));
            let mut commit = commit(&saga(&format!("s-{number}")), version, &id, events, size);
            commit.episode_id = EpisodeId::from_bytes([u8::try_from(noise.below(9)).unwrap(); 16]);
            *head = head.plus(Version(events as u64));
            receipts.push((call(log, commit.clone()), call(&reference, commit)));
        }
        for (ours, theirs) in receipts {
            let (ours, theirs) = (settle(ours), settle(theirs));
            assert_eq!(format!("{ours:?}"), format!("{theirs:?}"), "in batch {batch} of seed {SEED}");
        }
    }
    same_answers(log, &reference);
}
