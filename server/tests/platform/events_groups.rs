//! Consumer groups through real gRPC: delivery in order, retries, poison, restarts.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt as _;
use prost::Message as _;
use proto::{
    events::v1::{self as pb, consume_request::Message},
    log::v1::ConsumptionRecorded,
};
use server::platform::Platform;
use tonic::Code;

use crate::{
    events_world::{Consumer, admin, any, assert_field, client, event, group, neighbour, of, own, reason, text},
    world::{PATIENCE, TENANT, World, eventually},
};

fn named(name: &str) -> pb::GetGroupRequest {
    pb::GetGroupRequest { tenant: String::new(), name: name.to_owned() }
}

async fn show(world: &World, name: &str) -> pb::Group {
    own(world).get_group(named(name)).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_delivers_the_wanted_events_in_order_and_its_checkpoint_follows() {
    let world = World::new().await;
    let mut events = own(&world);
    events.append(any("a", "before", "before")).await.unwrap();
    let live = pb::CreateGroupRequest { types: vec!["order.placed".to_owned()], live: true, ..group("mail") };
    let created = events.create_group(live).await.unwrap().into_inner();
    assert_eq!((created.attempts_max, created.in_flight_max, created.answer_timeout_ms), (2, 256, 30_000));
    for number in 0..10 {
        let pair = vec![event("order.placed", &number.to_string()), event("order.paid", "no")];
        events.append(pb::AppendRequest { events: pair, ..any("a", &format!("c{number}"), "") }).await.unwrap();
    }
    let mut consumer = Consumer::join(&mut events, "mail", 4).await;
    for number in 0..10 {
        let delivery = consumer.next().await;
        assert_eq!((text(&delivery), delivery.id.unwrap().attempt), (number.to_string(), 1));
        consumer.ack(&delivery).await;
    }
    let head = world.platform.head_position().0;
    eventually("everything is settled", || async { (show(&world, "mail").await.lag < 3).then_some(()) }).await;
    assert!(show(&world, "mail").await.checkpoint >= head);
    let listed = events.list_groups(pb::ListGroupsRequest::default()).await.unwrap().into_inner().groups;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].name.as_str(), listed[0].parked), ("mail", 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_flight_is_bounded_and_one_stream_is_delivered_one_at_a_time() {
    let world = World::new().await;
    let mut events = own(&world);
    events.create_group(group("g")).await.unwrap();
    for number in 0..8 {
        events.append(any(&format!("s{}", number % 4), &format!("c{number}"), &number.to_string())).await.unwrap();
    }
    let mut consumer = Consumer::join(&mut events, "g", 3).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(consumer.next().await);
    }
    assert!(consumer.is_quiet(100).await);
    let streams: BTreeSet<_> = held.iter().map(|held| held.commit.as_ref().unwrap().stream.clone()).collect();
    assert_eq!(streams.len(), 3);
    let mut other = Consumer::join(&mut events, "g", 8).await;
    let fourth = other.next().await;
    assert_eq!(text(&fourth), "3");
    assert!(other.is_quiet(100).await);
    // Whoever goes away leaves what it had to the others.
    drop(consumer);
    let mut texts = BTreeSet::new();
    for _ in 0..3 {
        let delivery = other.next().await;
        assert_eq!(delivery.id.unwrap().attempt, 2);
        texts.insert(text(&delivery));
    }
    assert_eq!(texts, ["0", "1", "2"].map(str::to_owned).into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_event_is_parked_with_its_error_while_other_streams_flow_and_redrive_works_after_the_fix() {
    let world = World::new().await;
    let key = neighbour(&world, "other").await;
    let mut events = own(&world);
    events.create_group(group("g")).await.unwrap();
    client(&world, &key).create_group(group("g")).await.unwrap();
    for number in 0..3 {
        events.append(any("poisoned", &format!("p{number}"), &format!("p{number}"))).await.unwrap();
        events.append(any("healthy", &format!("h{number}"), &format!("h{number}"))).await.unwrap();
        let stream = "app/other/a".to_owned();
        let theirs = pb::AppendRequest { stream, ..any("a", &format!("o{number}"), &format!("o{number}")) };
        client(&world, &key).append(theirs).await.unwrap();
    }
    let mut consumer = Consumer::join(&mut events, "g", 8).await;
    let mut neighbours = Consumer::join(&mut client(&world, &key), "g", 8).await;
    let (mut seen, mut attempts) = (Vec::new(), 0);
    while seen.len() < 5 {
        let delivery = consumer.next().await;
        match text(&delivery).as_str() {
            "p0" => {
                attempts += 1;
                assert_eq!(delivery.id.unwrap().attempt, attempts);
                consumer.nack(&delivery, "no such customer").await;
            }
            text => {
                assert!(!text.starts_with('p') || attempts == 2, "{text} overtook p0");
                consumer.ack(&delivery).await;
                seen.push(text.to_owned());
            }
        }
    }
    for number in 0..3 {
        let delivery = neighbours.next().await;
        assert_eq!(text(&delivery), format!("o{number}"));
        neighbours.ack(&delivery).await;
    }
    let request = pb::ListParkedRequest { group: "g".to_owned(), ..Default::default() };
    let page = events.list_parked(request).await.unwrap().into_inner();
    let parked = &page.parked[0];
    assert_eq!((page.count, page.parked.len(), parked.attempts), (1, 1, 2));
    assert_eq!((parked.error.as_str(), parked.consumer_version.as_str()), ("no such customer", "test 1"));
    assert_eq!((parked.stream.as_str(), parked.r#type.as_str()), ("app/acme/poisoned", "order.placed"));
    let get = pb::GetParkedRequest { group: "g".to_owned(), number: parked.number, ..Default::default() };
    let shown = events.get_parked(get.clone()).await.unwrap().into_inner();
    assert_eq!(shown.parked.as_ref(), Some(parked));
    assert_eq!(shown.commit.unwrap().events[0].data, b"p0");
    assert!(show(&world, "g").await.oldest_parked_at_us > 0);
    let replay = pb::ReplayParkedRequest { group: "g".to_owned(), ..Default::default() };
    let replayed = events.replay_parked(replay.clone()).await.unwrap().into_inner();
    assert_eq!((replayed.redriven, replayed.parked), (1, 0));
    let again = consumer.next().await;
    assert_eq!((text(&again).as_str(), again.redriven), ("p0", true));
    consumer.ack(&again).await;
    eventually("it is settled", || async { (show(&world, "g").await.redriven == 0).then_some(()) }).await;
    assert_eq!(show(&world, "g").await.parked_total, 1);
    assert_eq!(reason(&events.get_parked(get).await.unwrap_err()), "NOT_PARKED");
    assert_eq!(reason(&events.replay_parked(replay).await.unwrap_err()), "NOT_PARKED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_does_not_come_counts_as_a_failed_attempt() {
    let world = World::new().await;
    let mut events = own(&world);
    let hasty = pb::CreateGroupRequest { answer_timeout_ms: 100, ..group("g") };
    events.create_group(hasty).await.unwrap();
    events.append(any("a", "c", "x")).await.unwrap();
    let mut consumer = Consumer::join(&mut events, "g", 8).await;
    assert_eq!(consumer.next().await.id.unwrap().attempt, 1);
    assert_eq!(consumer.next().await.id.unwrap().attempt, 2);
    let request = pb::ListParkedRequest { group: "g".to_owned(), ..Default::default() };
    let parked = eventually("it is parked", || async {
        own(&world).list_parked(request.clone()).await.unwrap().into_inner().parked.pop()
    })
    .await;
    assert_eq!((parked.error.as_str(), parked.attempts), ("no answer came in time", 2));
}

/// Ends the platform as a crash would, nothing is recorded or saved any more, and starts it again.
async fn crash(world: World) -> World {
    let World { directory, simulator, config, platform, key, key_id, client, channel } = world;
    drop((channel, platform));
    let platform =
        eventually("the data directory is free", || async { Platform::start(config.clone()).await.ok() }).await;
    let channel = crate::world::channel(&platform);
    World { directory, simulator, config, platform, key, key_id, client, channel }
}

/// How many events behind a checkpoint were recorded as settled.
async fn recorded_apart(world: &World) -> usize {
    let types = vec!["freehold.log.v1.ConsumptionRecorded".to_owned()];
    let filter = Some(pb::Filter { types, ..pb::Filter::default() });
    let page = admin(world).read_log(pb::ReadLogRequest { filter, ..Default::default() }).await.unwrap();
    let events = page.into_inner().commits.into_iter().flat_map(|commit| commit.events);
    events.map(|event| ConsumptionRecorded::decode(&*event.data).unwrap().settled.len()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_behind_an_open_event_does_not_come_again_after_a_crash() {
    let world = World::new().await;
    let mut events = own(&world);
    events.create_group(group("g")).await.unwrap();
    for number in 0..20 {
        events.append(any(&format!("s{number}"), "c", &number.to_string())).await.unwrap();
    }
    let mut consumer = Consumer::join(&mut events, "g", 20).await;
    for number in 0..20 {
        let delivery = consumer.next().await;
        assert_eq!(text(&delivery), number.to_string());
        if number > 0 {
            consumer.ack(&delivery).await;
        }
    }
    eventually("the others are recorded", || async { (recorded_apart(&world).await == 19).then_some(()) }).await;
    drop((events, consumer));
    let world = crash(world).await;
    let mut consumer = Consumer::join(&mut own(&world), "g", 20).await;
    assert_eq!(text(&consumer.next().await), "0");
    assert!(consumer.is_quiet(200).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_nothing_is_missing_and_little_comes_again() {
    const EVENTS: usize = 2_000;
    let world = World::new().await;
    let mut events = own(&world);
    events.create_group(group("g")).await.unwrap();
    for batch in 0..EVENTS / 200 {
        let batch_of = (0..200).map(|number| event("n", &(batch * 200 + number).to_string())).collect();
        let stream = format!("app/{TENANT}/s{batch}");
        let request = pb::AppendRequest { stream, events: batch_of, ..any("", &format!("c{batch}"), "") };
        events.append(request).await.unwrap();
    }
    let mut count = BTreeMap::<String, u32>::new();
    let mut order = BTreeMap::<String, u64>::new();
    let mut consumer = Consumer::join(&mut events, "g", 256).await;
    for _ in 0..EVENTS * 3 / 4 {
        let delivery = consumer.next().await;
        *count.entry(text(&delivery)).or_default() += 1;
        consumer.ack(&delivery).await;
    }
    drop((events, consumer));
    let world = crash(world).await;
    let mut consumer = Consumer::join(&mut own(&world), "g", 256).await;
    let mut again = 0_u32;
    while count.len() < EVENTS {
        let delivery = consumer.next().await;
        let commit = delivery.commit.as_ref().unwrap();
        let before = order.insert(commit.stream.clone(), commit.events[0].version);
        assert!(before.is_none_or(|before| before < commit.events[0].version));
        let seen = count.entry(text(&delivery)).or_default();
        again += *seen;
        *seen += 1;
        consumer.ack(&delivery).await;
    }
    println!("delivered again after the crash: {again} of {EVENTS}");
    // What one record holds, and what was in flight.
    assert!(again <= 512 + 256, "{again}");
    eventually("everything is settled", || async { (show(&world, "g").await.lag < 5).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_hear_that_the_server_ends_and_what_they_acknowledged_is_recorded() {
    let world = World::new().await;
    let mut events = own(&world);
    events.create_group(group("g")).await.unwrap();
    for number in 0..20 {
        events.append(any(&format!("s{number}"), "c", "x")).await.unwrap();
    }
    let mut consumer = Consumer::join(&mut events, "g", 20).await;
    for _ in 0..20 {
        let delivery = consumer.next().await;
        consumer.ack(&delivery).await;
    }
    eventually("all are settled", || async { (show(&world, "g").await.lag < 3).then_some(()) }).await;
    let shutdown = async {
        let end = tokio::time::timeout(PATIENCE, consumer.deliveries.next()).await.unwrap().unwrap().unwrap_err();
        assert_eq!((end.code(), reason(&end).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    };
    let (world, ()) = tokio::join!(world.restart(|_| {}), shutdown);
    let mut consumer = Consumer::join(&mut own(&world), "g", 20).await;
    assert!(consumer.is_quiet(200).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_field_of_a_group_and_of_its_consumers_is_checked_by_name() {
    let world = World::new().await;
    let mut events = own(&world);
    for (field, request) in [
        ("name", group("")),
        ("name", group("A b")),
        ("tenant", pb::CreateGroupRequest { tenant: "A".to_owned(), ..group("g") }),
        ("types", pb::CreateGroupRequest { types: vec!["a".to_owned(); 33], ..group("g") }),
        ("types[0]", pb::CreateGroupRequest { types: vec!["freehold.log.v1.X".to_owned()], ..group("g") }),
        ("after_position", pb::CreateGroupRequest { after_position: 1_000, ..group("g") }),
        ("after_position", pb::CreateGroupRequest { live: true, after_position: 1, ..group("g") }),
        ("attempts_max", pb::CreateGroupRequest { attempts_max: 101, ..group("g") }),
        ("backoff_first_ms", pb::CreateGroupRequest { backoff_first_ms: 3_600_001, ..group("g") }),
        ("backoff_max_ms", pb::CreateGroupRequest { backoff_first_ms: 10, backoff_max_ms: 9, ..group("g") }),
        ("answer_timeout_ms", pb::CreateGroupRequest { answer_timeout_ms: 99, ..group("g") }),
        ("in_flight_max", pb::CreateGroupRequest { in_flight_max: 1_001, ..group("g") }),
    ] {
        assert_field(events.create_group(request).await, field);
    }
    assert_field(admin(&world).create_group(group("g")).await, "tenant");
    events.create_group(group("g")).await.unwrap();
    let exists = events.create_group(group("g")).await.unwrap_err();
    assert_eq!((exists.code(), reason(&exists).as_str()), (Code::AlreadyExists, "GROUP_EXISTS"));
    let missing = events.get_group(named("missing")).await.unwrap_err();
    assert_eq!((missing.code(), reason(&missing).as_str()), (Code::NotFound, "NO_SUCH_GROUP"));
    let start = || pb::Start { group: "g".to_owned(), ..pb::Start::default() };
    for (field, start) in [
        ("start.group", pb::Start { group: String::new(), ..start() }),
        ("start.in_flight_max", pb::Start { in_flight_max: 1_001, ..start() }),
        ("start.consumer_version", pb::Start { consumer_version: "ü".to_owned(), ..start() }),
        ("tenant", pb::Start { tenant: "A".to_owned(), ..start() }),
    ] {
        assert_field(Consumer::start(&mut events, start).await, field);
    }
    let missing = pb::Start { group: "missing".to_owned(), ..start() };
    assert_eq!(reason(&Consumer::start(&mut events, missing).await.unwrap_err()), "NO_SUCH_GROUP");
    for (field, message) in [
        ("message", Message::Start(start())),
        ("ack.deliveries", Message::Ack(pb::Ack::default())),
        ("nack.delivery", Message::Nack(pb::Nack::default())),
    ] {
        let mut consumer = Consumer::start(&mut events, start()).await.unwrap();
        consumer.asks.send(of(message)).await.unwrap();
        let end = tokio::time::timeout(PATIENCE, consumer.deliveries.next()).await.unwrap().unwrap();
        assert_field(end, field);
    }
    let stream = futures::stream::iter([pb::ConsumeRequest { message: None }]);
    assert_field(events.consume(stream).await.map(|_| ()), "message");
    // Answers to what was never delivered change nothing.
    let consumer = Consumer::join(&mut events, "g", 1).await;
    consumer.ack_all(vec![pb::DeliveryId { position: 99, index: 7, attempt: 1 }]).await;
    events.append(any("a", "c", "x")).await.unwrap();
    let mut consumer = consumer;
    assert_eq!(text(&consumer.next().await), "x");
}
