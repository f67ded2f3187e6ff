//! Each shipped configuration of NATS is started and does what its README says: publishing works, Freehold's user can
//! create its streams and cannot remove anything, a cluster survives its servers, and a region gives away one zone.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod client;

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use client::Client;
use serde_json::{Value, json};
use tests_kit::nats::{NatsCluster, NatsRegions, NatsServer, PASSWORD, READY_WITHIN, USER};

/// What the shipped configurations allow in one message.
const PAYLOAD_BYTES_MAX: usize = 8 << 20;
/// Messages of each zone that regions write; together large enough for flow control between them.
const GROUPS: u64 = 100;
/// About 64 KiB in each.
const GROUP_REPEATS: usize = 2_500;

fn connect(server: &NatsServer) -> Client {
    Client::connect(server.port(), USER, PASSWORD).unwrap()
}

fn log_stream(region: &str, replicas: u64) -> Value {
    json!({
        "name": format!("FH_LOG_{}", region.to_uppercase()), "subjects": [format!("fh.log.{region}.>")],
        "storage": "file", "retention": "limits", "discard": "new", "num_replicas": replicas,
        "deny_delete": true, "deny_purge": true, "allow_direct": false,
    })
}

fn create(client: &mut Client, stream: &Value) -> Value {
    client.ask(&format!("$JS.API.STREAM.CREATE.{}", stream["name"].as_str().unwrap()), stream.to_string().as_bytes())
}

fn messages(client: &mut Client, stream: &str) -> u64 {
    client.ask(&format!("$JS.API.STREAM.INFO.{stream}"), b"")["state"]["messages"].as_u64().unwrap_or_default()
}

#[expect(clippy::disallowed_methods, reason = "the servers run by the real clock")]
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(begin.elapsed() < READY_WITHIN, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// What the engine does, and what nobody with Freehold's password may do.
fn serves_freehold_and_protects_its_log(server: &NatsServer, region: &str, replicas: u64) {
    let mut client = connect(server);
    assert_eq!(client.info["max_payload"], PAYLOAD_BYTES_MAX);
    assert_eq!(server.look("/jsz").unwrap()["config"]["sync_always"], true);

    let stream = format!("FH_LOG_{}", region.to_uppercase());
    let created = create(&mut client, &log_stream(region, replicas));
    assert_eq!(created["config"]["num_replicas"], replicas, "{created}");
    let subject = format!("fh.log.{region}.{region}.7");
    assert_eq!(client.ask(&subject, b"first")["seq"], 1);
    assert_eq!(client.ask(&subject, &vec![b'x'; PAYLOAD_BYTES_MAX])["seq"], 2);
    let last = client.ask(&format!("$JS.API.STREAM.MSG.GET.{stream}"), br#"{"seq": 1}"#);
    assert_eq!(last["message"]["data"], "Zmlyc3Q=", "{last}");

    // A follower.
    let consumer = json!({ "stream_name": stream, "config": { "name": "follower", "ack_policy": "none" } });
    let create_consumer = format!("$JS.API.CONSUMER.CREATE.{stream}.follower");
    assert_eq!(client.ask(&create_consumer, consumer.to_string().as_bytes())["num_pending"], 2);
    let next = client.request_heard(&format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.follower"), b"").unwrap();
    assert_eq!(next, b"first");

    // Leases.
    let region_upper = region.to_uppercase();
    let bucket = json!({
        "name": format!("KV_FH_LEASES_{region_upper}"), "subjects": [format!("$KV.FH_LEASES_{region_upper}.>")],
        "storage": "file", "num_replicas": replicas, "max_msgs_per_subject": 1, "allow_rollup_hdrs": true,
        "discard": "new", "deny_delete": true, "allow_direct": true,
    });
    assert!(create(&mut client, &bucket)["error"].is_null());
    assert_eq!(client.ask(&format!("$KV.FH_LEASES_{region_upper}.7"), b"node a")["seq"], 1);
    let read =
        client.request_heard(&format!("$JS.API.DIRECT.GET.KV_FH_LEASES_{region_upper}"), br#"{"seq": 1}"#).unwrap();
    assert_eq!(read, b"node a");

    // A command to the owner of a shard, which is another connection of the same user.
    let mut owner = connect(server);
    let command = format!("fh.cmd.{region}.7");
    owner.subscribe(&command).unwrap();
    let asked = thread::scope(|scope| {
        scope.spawn(|| owner.answer(b"done").unwrap());
        client.request_heard(&command, b"do it")
    });
    assert_eq!(asked.unwrap(), b"done");

    for (operation, body) in [
        ("STREAM.DELETE", ""),
        ("STREAM.PURGE", ""),
        ("STREAM.MSG.DELETE", r#"{"seq": 1}"#),
        ("STREAM.UPDATE", r#"{"max_msgs": 1}"#),
        ("STREAM.RESTORE", ""),
        ("STREAM.LEADER.STEPDOWN", ""),
    ] {
        let refusal = client.request(&format!("$JS.API.{operation}.{stream}"), body.as_bytes()).unwrap_err();
        assert!(refusal.to_string().contains("Permissions Violation for Publish"), "{operation}: {refusal}");
    }
    // Somebody else's streams are out of reach, as subjects and by subscription.
    for subject in ["foreign.subject", "$SYS.REQ.SERVER.PING"] {
        let refusal = client.request(subject, b"").unwrap_err();
        assert!(refusal.to_string().contains("Permissions Violation for Publish"), "{subject}: {refusal}");
    }
    let refusal = client.subscribe(">").unwrap_err();
    assert!(refusal.to_string().contains("Permissions Violation for Subscription"), "{refusal}");
    assert_eq!(messages(&mut client, &stream), 2);
}

#[test]
fn the_single_server_serves_freehold_and_protects_its_log() {
    let mut server = NatsServer::start().unwrap();
    serves_freehold_and_protects_its_log(&server, "local", 1);

    // A crash and a restart on the same ports and directory.
    let url = server.url();
    server.kill().unwrap();
    assert!(server.look("/jsz").is_none());
    server.restart().unwrap();
    server.wait_healthy(READY_WITHIN).unwrap();
    assert_eq!(server.url(), url);
    assert_eq!(messages(&mut connect(&server), "FH_LOG_LOCAL"), 2);
}

#[test]
fn a_wrong_password_and_no_password_are_refused() {
    let server = NatsServer::start().unwrap();
    for password in ["", "wrong", "$FREEHOLD_NATS_PASSWORD"] {
        let refusal = Client::connect(server.port(), USER, password).unwrap_err();
        assert!(refusal.to_string().contains("Authorization Violation"), "{refusal}");
    }
    connect(&server);
}

#[test]
fn another_configuration_can_be_tested_and_a_broken_one_is_told() {
    let shipped = NatsServer::configuration().unwrap();
    let server = NatsServer::start_with(&shipped.replace("max_payload: 8MB", "max_payload: 64KB")).unwrap();
    assert_eq!(connect(&server).info["max_payload"], 64 << 10);

    let error = NatsServer::start_with("no such setting: 1").unwrap_err().to_string();
    assert!(error.contains("nats-server single ended"), "{error}");
    // No password in the environment is no password in the file: it does not start open.
    let error = NatsServer::start_with(&shipped.replace("$FREEHOLD_NATS_PASSWORD", "$FREEHOLD_NATS_UNSET"));
    assert!(error.unwrap_err().to_string().contains("FREEHOLD_NATS_UNSET"));
}

#[test]
fn a_stopped_server_is_silent_until_it_goes_on() {
    let mut server = NatsServer::start().unwrap();
    server.stop_signal().unwrap();
    assert!(server.look("/healthz").is_none());
    server.continue_signal().unwrap();
    server.wait_healthy(READY_WITHIN).unwrap();
    // A stopped one is killed and reaped like any other, and then there is nobody to signal.
    server.stop_signal().unwrap();
    server.kill().unwrap();
    let error = server.continue_signal().unwrap_err();
    assert_eq!(error.to_string(), "nats-server single is not running");
}

#[test]
fn the_cluster_serves_freehold_and_goes_on_without_any_of_its_servers() {
    let mut cluster = NatsCluster::start(3).unwrap();
    serves_freehold_and_protects_its_log(&cluster.nodes[1], "local", 3);
    let mut stored = 2;
    for round in 0..2 {
        let leader = cluster.wait_stream_leader("FH_LOG_LOCAL").unwrap();
        // The first is killed and comes back, the second is stopped and goes on.
        if round == 0 {
            cluster.nodes[leader].kill().unwrap()
        } else {
            cluster.nodes[leader].stop_signal().unwrap()
        }
        let survivor = (leader + 1) % cluster.nodes.len();
        let next =
            eventually("another server leads", || cluster.stream_leader("FH_LOG_LOCAL").filter(|&next| next != leader));
        assert_ne!(next, leader);
        // A publish may meet the end of the election, so it is repeated; sequences only grow.
        let publish =
            || connect(&cluster.nodes[survivor]).ask_once("fh.log.local.local.7", b"after a loss")["seq"].as_u64();
        stored += 1;
        let place = eventually("a publish is acknowledged", publish);
        assert!(place >= stored, "{place}");
        stored = place;
        if round == 0 {
            cluster.nodes[leader].restart().unwrap()
        } else {
            cluster.nodes[leader].continue_signal().unwrap()
        }
        cluster.nodes[leader].wait_healthy(READY_WITHIN).unwrap();
    }
    for node in &cluster.nodes {
        eventually("every server has every message", || {
            let report = node.look("/jsz?accounts=true&streams=true")?;
            let streams = report["account_details"][0]["stream_detail"].as_array()?;
            let log = streams.iter().find(|stream| stream["name"] == "FH_LOG_LOCAL")?;
            (log["state"]["messages"].as_u64()? == stored).then_some(())
        });
    }
}

#[test]
fn a_cluster_too_small_for_a_majority_after_a_loss_is_refused() {
    assert_eq!(NatsCluster::start(2).unwrap_err().to_string(), "a cluster of 2 servers; from 3 to 5 are possible");
}

/// Goal: the zone of a commit decides whether it leaves its region, by the configuration alone.
/// Method: both zones are written in both regions, each sources all it is given; then the disk is searched.
#[test]
fn regions_source_the_global_zone_of_each_other_and_nothing_else() {
    let regions = NatsRegions::start().unwrap();
    let pairs = [("eu", &regions.eu, "us", &regions.us), ("us", &regions.us, "eu", &regions.eu)];
    for (region, server, ..) in pairs {
        serves_freehold_and_protects_its_log(server, region, 1);
    }
    for (region, server, peer, peer_server) in pairs {
        let (mut home, mut abroad) = (connect(server), connect(peer_server));
        let mirror = |name: &str, filter: &str| {
            json!({ "name": name, "storage": "file", "sources": [{
                "name": format!("FH_LOG_{}", region.to_uppercase()), "filter_subject": filter,
                "external": { "api": format!("fh.mirror.{region}.api"), "deliver": format!("fh.mirror.{peer}") },
            }]})
        };
        // The second asks for more than it may have.
        create(&mut abroad, &mirror("FH_MIRROR", &format!("fh.log.{region}.global.>")));
        create(&mut abroad, &mirror("GREEDY", &format!("fh.log.{region}.>")));
        for number in 0..GROUPS {
            let secret = format!("stays at home {number} in {region} ").repeat(GROUP_REPEATS);
            assert!(home.ask(&format!("fh.log.{region}.{region}.1"), secret.as_bytes())["seq"].is_u64());
            let open = format!("may travel {number} from {region} ").repeat(GROUP_REPEATS);
            assert!(home.ask(&format!("fh.log.{region}.global.1"), open.as_bytes())["seq"].is_u64());
        }
        eventually("the mirror has all it may have", || (messages(&mut abroad, "FH_MIRROR") == GROUPS).then_some(()));
        assert_eq!(messages(&mut abroad, "GREEDY"), 0);
        let (secret, open) = (format!("stays at home 0 in {region}"), format!("may travel 0 from {region}"));
        assert_eq!(count(&peer_server.store(), &secret), 0);
        assert!(count(&peer_server.store(), &open) >= 1);
        assert!(count(&server.store(), &secret) >= 1);

        // By hand: the subject with the zone is what is exported, and a body that asks for another is refused.
        let log = format!("FH_LOG_{}", region.to_uppercase());
        let ask = |zone: &str, wish: &str| {
            let body = json!({ "stream_name": log, "config": {
                "name": "byhand", "ack_policy": "none", "deliver_subject": format!("fh.mirror.{peer}.byhand"),
                "filter_subject": format!("fh.log.{region}.{wish}.1"),
            }});
            (format!("fh.mirror.{region}.api.CONSUMER.CREATE.{log}.byhand.fh.log.{region}.{zone}.1"), body.to_string())
        };
        let (subject, body) = ask(region, region);
        let refusal = abroad.request(&subject, body.as_bytes()).unwrap_err().to_string();
        assert!(refusal.contains("503"), "{refusal}");
        let (subject, body) = ask("global", region);
        let answer = abroad.ask(&subject, body.as_bytes());
        assert_eq!(answer["error"]["err_code"], 10_131, "{answer}");
        let (subject, body) = ask("global", "global");
        assert!(abroad.ask(&subject, body.as_bytes())["error"].is_null());
    }
}

#[test]
fn a_region_writes_while_the_other_is_gone_and_the_mirror_catches_up() {
    let mut regions = NatsRegions::start().unwrap();
    let mut eu = connect(&regions.eu);
    create(&mut eu, &log_stream("eu", 1));
    let mirror = json!({ "name": "FH_MIRROR", "storage": "file", "sources": [{
        "name": "FH_LOG_EU", "filter_subject": "fh.log.eu.global.>",
        "external": { "api": "fh.mirror.eu.api", "deliver": "fh.mirror.us" },
    }]});
    create(&mut connect(&regions.us), &mirror);
    for number in 1..=3 {
        assert_eq!(eu.ask("fh.log.eu.global.1", b"together")["seq"], number);
    }
    let mut us = connect(&regions.us);
    eventually("the mirror follows", || (messages(&mut us, "FH_MIRROR") == 3).then_some(()));
    regions.us.kill().unwrap();
    for number in 4..=6 {
        assert_eq!(eu.ask("fh.log.eu.global.1", b"alone")["seq"], number);
    }
    regions.us.restart().unwrap();
    regions.us.wait_healthy(READY_WITHIN).unwrap();
    regions.wait_connected().unwrap();
    let mut us = connect(&regions.us);
    eventually("the mirror catches up", || (messages(&mut us, "FH_MIRROR") == 6).then_some(()));
}

/// How many files below a folder hold a text.
fn count(folder: &Path, text: &str) -> usize {
    let mut found = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found += count(&path, text);
        } else if let Ok(bytes) = fs::read(&path) {
            found += usize::from(bytes.windows(text.len()).any(|window| window == text.as_bytes()));
        }
    }
    found
}
