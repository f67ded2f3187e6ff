//! Applications' events through real gRPC: append, read, subscribe, and who may see what.

use std::time::Duration;

use futures::StreamExt as _;
use proto::{events::v1 as pb, tenant::v1 as tenant_pb};
use tonic::{Code, Streaming};
use tonic_types::StatusExt as _;

use crate::{
    events_world::{admin, any, assert_field, client, data, event, neighbour, own, reason},
    world::{PATIENCE, TENANT, World, eventually},
};

fn exact(version: u64, commit_id: &str) -> pb::AppendRequest {
    pb::AppendRequest { expected: pb::Expected::Exact.into(), version, ..any("a", commit_id, commit_id) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_meets_what_it_expects_and_a_repeated_one_answers_the_first_place() {
    let world = World::new().await;
    let mut events = own(&world);
    let exists = pb::AppendRequest { expected: pb::Expected::Exists.into(), ..any("a", "c0", "x") };
    let missing = events.append(exists.clone()).await.unwrap_err();
    assert_eq!((missing.code(), reason(&missing).as_str()), (Code::Aborted, "VERSION_CONFLICT"));
    let none = pb::AppendRequest {
        expected: pb::Expected::None.into(),
        events: vec![event("order.placed", "1"), event("order.paid", "2")],
        ..any("a", "c1", "")
    };
    let first = events.append(none.clone()).await.unwrap().into_inner();
    assert_eq!((first.first_version, first.last_version, first.duplicate), (1, 2, false));
    let again = events.append(pb::AppendRequest { events: vec![event("other", "")], ..none }).await.unwrap();
    assert_eq!(again.into_inner(), pb::AppendResponse { duplicate: true, ..first });
    let conflict = events.append(exact(1, "c2")).await.unwrap_err();
    let details = conflict.get_error_details();
    let metadata = &details.error_info().unwrap().metadata;
    assert_eq!((metadata["expected"].as_str(), metadata["actual"].as_str()), ("1", "2"));
    let other = pb::AppendRequest { expected: pb::Expected::None.into(), ..any("a", "c3", "x") };
    assert_eq!(reason(&events.append(other).await.unwrap_err()), "VERSION_CONFLICT");
    assert_eq!(events.append(exact(2, "c4")).await.unwrap().into_inner().first_version, 3);
    assert_eq!(events.append(exists).await.unwrap().into_inner().first_version, 4);
    assert_eq!(events.append(any("a", "c5", "x")).await.unwrap().into_inner().last_version, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_appends_to_one_stream_that_fit_any_version_all_succeed() {
    let world = World::new().await;
    let appends = (0..64).map(|number| {
        let mut events = own(&world);
        async move { events.append(any("hot", &format!("c{number}"), "x")).await.unwrap().into_inner().last_version }
    });
    let mut versions = futures::future::join_all(appends).await;
    versions.sort_unstable();
    assert_eq!(versions, (1..=64).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_read_both_ways_in_pages_and_by_filter() {
    let world = World::new().await;
    let mut events = own(&world);
    for number in 0..7 {
        let pair = vec![event("even", &format!("{number}a")), event("odd", &format!("{number}b"))];
        events.append(pb::AppendRequest { events: pair, ..any("a", &format!("c{number}"), "") }).await.unwrap();
    }
    let mut read = async |from_version, backward: bool, limit, types: &[&str]| {
        let filter =
            pb::Filter { types: types.iter().map(|kind| (*kind).to_owned()).collect(), ..pb::Filter::default() };
        let direction = if backward { pb::Direction::Backward } else { pb::Direction::Forward };
        let request = pb::ReadStreamRequest {
            stream: format!("app/{TENANT}/a"),
            from_version,
            direction: direction.into(),
            limit,
            filter: Some(filter),
        };
        let page = events.read_stream(request).await.unwrap().into_inner();
        let texts: Vec<_> = page.commits.iter().flat_map(data).collect();
        (texts.join(" "), page.next_version, page.end)
    };
    assert_eq!(read(0, false, 3, &[]).await, ("0a 0b 1a 1b 2a 2b".to_owned(), 7, false));
    assert_eq!(read(8, false, 3, &[]).await, ("3b 4a 4b 5a 5b".to_owned(), 13, false));
    assert_eq!(read(13, false, 3, &["odd"]).await, ("6b".to_owned(), 15, true));
    assert_eq!(read(0, true, 2, &["even"]).await, ("6a 5a".to_owned(), 10, false));
    assert_eq!(read(3, true, 9, &[]).await, ("1a 0a 0b".to_owned(), 0, true));
    assert_eq!(read(99, false, 3, &[]).await, (String::new(), 99, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_read_both_ways_by_type_tenant_episode_and_time() {
    let world = World::new().await;
    let key = neighbour(&world, "other").await;
    let episode = "0192f3a4-0000-7000-8000-000000000001".to_owned();
    let mut events = own(&world);
    for (number, stream) in ["a", "b", "a", "c"].iter().enumerate() {
        let request = any(stream, &format!("c{number}"), &number.to_string());
        let episode_id = if number % 2 == 0 { episode.clone() } else { String::new() };
        events.append(pb::AppendRequest { episode_id, ..request }).await.unwrap();
    }
    let theirs = pb::AppendRequest { stream: "app/other/a".to_owned(), ..any("a", "c9", "theirs") };
    client(&world, &key).append(theirs).await.unwrap();
    let read = async |filter: pb::Filter, backward: bool, limit, from_position, admin_reads: bool| {
        let direction = if backward { pb::Direction::Backward } else { pb::Direction::Unspecified };
        let request = pb::ReadLogRequest { from_position, direction: direction.into(), limit, filter: Some(filter) };
        let mut events = if admin_reads { admin(&world) } else { own(&world) };
        events.read_log(request).await.unwrap().into_inner()
    };
    let texts = |page: &pb::ReadLogResponse| page.commits.iter().flat_map(data).collect::<Vec<_>>().join(" ");
    let all = pb::Filter::default;
    let page = read(all(), false, 0, 0, false).await;
    assert_eq!((texts(&page).as_str(), page.end), ("0 1 2 3", true));
    assert!(page.commits.iter().all(|commit| commit.tenant == TENANT && commit.principal.starts_with("key/")));
    let (second, at) = (&page.commits[1], page.commits[2].recorded_at_us);
    assert_eq!(texts(&read(all(), true, 0, second.position, false).await), "1 0");
    let of_episode = pb::Filter { episode_id: episode.clone(), ..all() };
    assert_eq!(texts(&read(of_episode.clone(), false, 0, 0, false).await), "0 2");
    let first = read(of_episode.clone(), true, 1, 0, true).await;
    assert_eq!((texts(&first).as_str(), first.end), ("2", false));
    assert_eq!(texts(&read(of_episode, true, 1, first.next_position, true).await), "0");
    assert_eq!(texts(&read(pb::Filter { recorded_from_us: at, ..all() }, false, 0, 0, false).await), "2 3");
    assert_eq!(texts(&read(pb::Filter { recorded_before_us: at, ..all() }, true, 0, 0, false).await), "1 0");
    let theirs = pb::Filter { tenant: "other".to_owned(), types: vec!["order.placed".to_owned()], ..all() };
    assert_eq!(texts(&read(theirs, false, 0, 0, true).await), "theirs");
    let ours = pb::Filter { types: vec!["freehold.log.v1.TenantRegistered".to_owned()], ..all() };
    let page = read(ours.clone(), false, 0, 0, true).await;
    assert_eq!(page.commits.len(), 2);
    assert_eq!(page.commits[0].events[0].content_type, "application/x-protobuf");
    assert!(read(ours, false, 0, 0, false).await.commits.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_ends_before_it_is_too_large_for_a_client() {
    let world = World::new().await;
    let mut events = own(&world);
    let large = "x".repeat(500_000);
    for number in 0..9 {
        events.append(any("a", &format!("c{number}"), &large)).await.unwrap();
    }
    let (mut from_position, mut commits, mut pages) = (0, 0, 0);
    loop {
        let request = pb::ReadLogRequest { from_position, limit: 1_000, ..pb::ReadLogRequest::default() };
        let page = events.read_log(request).await.unwrap().into_inner();
        (commits, pages, from_position) = (commits + page.commits.len(), pages + 1, page.next_position);
        if page.end {
            break;
        }
    }
    assert_eq!((commits, pages), (9, 2));
}

async fn next(stream: &mut Streaming<pb::SubscribeResponse>) -> pb::subscribe_response::Message {
    let next = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap().unwrap();
    next.unwrap().message.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_catches_up_says_so_and_goes_on_live_and_resumes_without_gap_or_repetition() {
    use pb::subscribe_response::Message;
    let world = World::new().await;
    let mut events = own(&world);
    for number in 0..40 {
        events.append(any("a", &format!("c{number}"), &number.to_string())).await.unwrap();
    }
    let mut stream = events.subscribe(pb::SubscribeRequest::default()).await.unwrap().into_inner();
    let mut last = 0;
    for number in 0..40 {
        let Message::Commit(commit) = next(&mut stream).await else { panic!("caught up before {number}") };
        assert_eq!(data(&commit), [number.to_string()]);
        last = commit.position;
    }
    let Message::CaughtUp(caught_up) = next(&mut stream).await else { panic!("not caught up") };
    assert_eq!(caught_up.position, last);
    events.append(any("a", "c40", "40")).await.unwrap();
    let Message::Commit(live) = next(&mut stream).await else { panic!("no commit") };
    assert_eq!(data(&live), ["40"]);
    drop(stream);
    events.append(any("b", "c41", "41")).await.unwrap();
    let resume = pb::SubscribeRequest { from_position: live.position + 1, ..pb::SubscribeRequest::default() };
    let mut stream = events.subscribe(resume).await.unwrap().into_inner();
    let Message::Commit(resumed) = next(&mut stream).await else { panic!("no commit") };
    assert_eq!(data(&resumed), ["41"]);
    let live = pb::SubscribeRequest { live: true, ..pb::SubscribeRequest::default() };
    let mut stream = events.subscribe(live).await.unwrap().into_inner();
    assert!(matches!(next(&mut stream).await, Message::CaughtUp(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_whose_filter_rarely_passes_hears_how_far_it_is() {
    use pb::subscribe_response::Message;
    let world = World::new().await;
    let mut events = own(&world);
    let filter = pb::Filter { types: vec!["never".to_owned()], ..pb::Filter::default() };
    let request = pb::SubscribeRequest { filter: Some(filter), ..pb::SubscribeRequest::default() };
    let mut stream = events.subscribe(request).await.unwrap().into_inner();
    let Message::CaughtUp(first) = next(&mut stream).await else { panic!("not caught up") };
    let appended = events.append(any("a", "c", "x")).await.unwrap().into_inner();
    assert!(appended.position > first.position);
    let Message::CaughtUp(second) = next(&mut stream).await else { panic!("not caught up") };
    assert_eq!(second.position, appended.position);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_read_holds_nobody_up_and_gets_everything_later() {
    let world = World::new().await;
    let mut events = own(&world);
    let mut stream = events.subscribe(pb::SubscribeRequest::default()).await.unwrap().into_inner();
    let large = "x".repeat(100_000);
    for number in 0..100 {
        events.append(any("a", &format!("c{number}"), &large)).await.unwrap();
    }
    let mut seen = 0;
    while seen < 100 {
        if let pb::subscribe_response::Message::Commit(commit) = next(&mut stream).await {
            seen += commit.events.len();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_ends_with_its_key_and_with_the_server() {
    let world = World::new().await;
    let (key, key_id) = world.issue_key().await;
    let mut stream = client(&world, &key).subscribe(pb::SubscribeRequest::default()).await.unwrap().into_inner();
    next(&mut stream).await;
    let request = tenant_pb::RevokeApiKeyRequest { tenant_id: TENANT.to_owned(), key_id, reason: "test".to_owned() };
    world.tenants().revoke_api_key(request).await.unwrap();
    let end = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!((end.code(), reason(&end).as_str()), (Code::Unauthenticated, "API_KEY_INVALID"));
    let mut stream = own(&world).subscribe(pb::SubscribeRequest::default()).await.unwrap().into_inner();
    next(&mut stream).await;
    let (end, ()) = tokio::join!(stream.next(), world.platform.shutdown());
    let end = end.unwrap().unwrap_err();
    assert_eq!((end.code(), reason(&end).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_tenants_streams_are_invisible_and_cannot_be_appended_to() {
    let world = World::new().await;
    let key = neighbour(&world, "other").await;
    own(&world).append(any("a", "c", "secret")).await.unwrap();
    let mut other = client(&world, &key);
    let append = other.append(any("a", "c2", "x")).await.unwrap_err();
    assert_eq!((append.code(), reason(&append).as_str()), (Code::PermissionDenied, "NOT_YOURS"));
    for stream in ["app/acme/a", "app/acme/missing", "tenant/acme", "tenant/other", "region/local", "group/other/g"] {
        let request = pb::ReadStreamRequest { stream: stream.to_owned(), ..pb::ReadStreamRequest::default() };
        let status = other.read_stream(request).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "NOT_YOURS"), "{stream}");
    }
    let page = other.read_log(pb::ReadLogRequest::default()).await.unwrap().into_inner();
    assert!(page.commits.is_empty() && page.end);
    let filter = Some(pb::Filter { tenant: TENANT.to_owned(), ..pb::Filter::default() });
    let status = other.read_log(pb::ReadLogRequest { filter, ..pb::ReadLogRequest::default() }).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let mut stream = other.subscribe(pb::SubscribeRequest::default()).await.unwrap().into_inner();
    assert!(matches!(next(&mut stream).await, pb::subscribe_response::Message::CaughtUp(_)));
    let group = pb::GetGroupRequest { tenant: TENANT.to_owned(), name: "g".to_owned() };
    assert_eq!(other.get_group(group).await.unwrap_err().code(), Code::PermissionDenied);
    let all = admin(&world).read_log(pb::ReadLogRequest::default()).await.unwrap().into_inner();
    assert!(all.commits.iter().any(|commit| commit.stream == "tenant/other"));
    for token in ["", "fhk_acme_nonsense", "x"] {
        let status = client(&world, token).read_log(pb::ReadLogRequest::default()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{token}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_tenant_reads_and_does_not_append_and_an_unknown_one_has_no_streams() {
    let world = World::new().await;
    own(&world).append(any("a", "c", "x")).await.unwrap();
    let request = tenant_pb::SuspendTenantRequest { tenant_id: TENANT.to_owned(), reason: "unpaid".to_owned() };
    world.tenants().suspend_tenant(request).await.unwrap();
    let refused = own(&world).append(any("a", "c2", "x")).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "SUSPENDED"));
    let page = own(&world).read_log(pb::ReadLogRequest::default()).await.unwrap().into_inner();
    assert_eq!(page.commits.len(), 1);
    let nobody = pb::AppendRequest { stream: "app/nobody/a".to_owned(), ..any("a", "c", "x") };
    let status = admin(&world).append(nobody).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "NOT_REGISTERED"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_field_of_an_append_is_checked_by_name() {
    let world = World::new().await;
    let mut events = own(&world);
    let good = || any("a", "c", "x");
    let with = |change: &dyn Fn(&mut pb::AppendRequest)| {
        let mut request = good();
        change(&mut request);
        request
    };
    for (field, request) in [
        ("stream", with(&|request| request.stream = String::new())),
        ("stream", with(&|request| request.stream = "app/acme".to_owned())),
        ("stream", with(&|request| request.stream = "app/acme/A B".to_owned())),
        ("stream", with(&|request| request.stream = "tenant/acme".to_owned())),
        ("expected", with(&|request| request.expected = 0)),
        ("expected", with(&|request| request.expected = 99)),
        ("version", with(&|request| request.version = 1)),
        ("commit_id", with(&|request| request.commit_id = String::new())),
        ("commit_id", with(&|request| request.commit_id = "x".repeat(129))),
        ("commit_id", with(&|request| request.commit_id = "a\nb".to_owned())),
        ("events", with(&|request| request.events.clear())),
        ("events", with(&|request| request.events = vec![event("a", ""); 257])),
        ("events", with(&|request| request.events = vec![event("a", &"x".repeat(500_000)); 3])),
        ("events[0].type", with(&|request| request.events[0].r#type = String::new())),
        ("events[0].type", with(&|request| request.events[0].r#type = "freehold.log.v1.BudgetSet".to_owned())),
        ("events[0].type", with(&|request| request.events[0].r#type = "a b".to_owned())),
        (
            "events[1].content_type",
            with(&|request| {
                request.events.push(pb::NewEvent { content_type: String::new(), ..event("a", "") });
            }),
        ),
        ("events[0].content_type", with(&|request| request.events[0].content_type = "ü".to_owned())),
        ("events[0].data", with(&|request| request.events[0].data = vec![0; 512 * 1024 + 1])),
        ("episode_id", with(&|request| request.episode_id = "x".to_owned())),
        ("causation_id", with(&|request| request.causation_id = "a b".to_owned())),
    ] {
        assert_field(events.append(request).await, field);
    }
    events.append(good()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_field_of_a_read_and_a_subscription_is_checked_by_name() {
    let world = World::new().await;
    let mut events = own(&world);
    let filters = [
        ("filter.types", pb::Filter { types: vec!["a".to_owned(); 33], ..pb::Filter::default() }),
        ("filter.types[0]", pb::Filter { types: vec![String::new()], ..pb::Filter::default() }),
        ("tenant", pb::Filter { tenant: "A".to_owned(), ..pb::Filter::default() }),
        ("episode_id", pb::Filter { episode_id: "x".to_owned(), ..pb::Filter::default() }),
        (
            "filter.recorded_before_us",
            pb::Filter { recorded_from_us: 2, recorded_before_us: 2, ..pb::Filter::default() },
        ),
    ];
    let stream = || pb::ReadStreamRequest { stream: "app/acme/a".to_owned(), ..pb::ReadStreamRequest::default() };
    for (field, filter) in filters {
        let filter = Some(filter);
        let request = pb::ReadLogRequest { filter: filter.clone(), ..pb::ReadLogRequest::default() };
        assert_field(events.read_log(request).await, field);
        assert_field(events.read_stream(pb::ReadStreamRequest { filter: filter.clone(), ..stream() }).await, field);
        let request = pb::SubscribeRequest { filter, ..pb::SubscribeRequest::default() };
        assert_field(events.subscribe(request).await.map(|_| ()), field);
    }
    assert_field(events.read_log(pb::ReadLogRequest { limit: 1_001, ..Default::default() }).await, "limit");
    assert_field(events.read_log(pb::ReadLogRequest { direction: 7, ..Default::default() }).await, "direction");
    assert_field(events.read_stream(pb::ReadStreamRequest { limit: 1_001, ..stream() }).await, "limit");
    assert_field(events.read_stream(pb::ReadStreamRequest { direction: 7, ..stream() }).await, "direction");
    assert_field(events.read_stream(pb::ReadStreamRequest { stream: "x".to_owned(), ..stream() }).await, "stream");
    let missing = events.read_stream(stream()).await.unwrap_err();
    assert_eq!((missing.code(), reason(&missing).as_str()), (Code::NotFound, "NO_SUCH_STREAM"));
    let ahead = pb::SubscribeRequest { from_position: 1_000, ..Default::default() };
    assert_field(events.subscribe(ahead).await.map(|_| ()), "from_position");
    let both = pb::SubscribeRequest { from_position: 1, live: true, ..Default::default() };
    assert_field(events.subscribe(both).await.map(|_| ()), "from_position");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_has_so_many_subscriptions_and_no_more_and_gets_them_back() {
    let world = World::new().await;
    let mut open = Vec::new();
    let mut channels = own(&world);
    for _ in 0..64 {
        open.push(channels.subscribe(pb::SubscribeRequest::default()).await.unwrap());
    }
    let full = channels.subscribe(pb::SubscribeRequest::default()).await.unwrap_err();
    assert_eq!((full.code(), reason(&full).as_str()), (Code::ResourceExhausted, "TOO_MANY_STREAMS"));
    open.clear();
    eventually("a place comes back", || async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        own(&world).subscribe(pb::SubscribeRequest::default()).await.ok()
    })
    .await;
}
