//! Servers and streams that are not fit for a log: each is a typed error that says what to do.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    thread,
};

use async_nats::jetstream::stream::Config;
use events_journal_nats::{Credentials, OpenError, Options, subject::stream_name};
use tests_kit::nats::NatsServer;

use crate::kit::World;

fn assert_advice(error: &OpenError) {
    assert!(!error.advice().is_empty());
    println!("{error}: {}", error.advice());
}

#[test]
fn wrong_credentials_are_refused() {
    let server = NatsServer::start().unwrap();
    let world = World::of_one(&server);
    let wrong = Credentials::Password { user: "freehold".to_owned(), password: "wrong".to_owned() };
    for credentials in [wrong, Credentials::None, Credentials::Token("x".to_owned())] {
        let error = world.refused(&Options { credentials, ..world.fresh() });
        assert!(matches!(error, OpenError::Credentials { .. }), "{error:?}");
        assert_advice(&error);
    }
    let missing = Credentials::File("/no/such/file.creds".into());
    let error = world.refused(&Options { credentials: missing, ..world.fresh() });
    assert!(matches!(error, OpenError::CredentialsFile { .. }), "{error:?}");
}

#[test]
fn a_place_without_a_server_is_unreachable() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = World::new(vec![url], 1).refused(&Options::default());
    let servers = Options { servers: vec!["nats://127.0.0.1:1".to_owned()], ..Options::default() };
    let other = World::new(Vec::new(), 1).refused(&servers);
    for error in [error, other] {
        assert!(matches!(error, OpenError::Unreachable { .. }), "{error:?}");
        assert_advice(&error);
    }
}

#[test]
fn a_server_without_jetstream_is_refused() {
    let text = "server_name: plain\nmax_payload: 8MB\n\
                accounts { F { users: [ { user: freehold, password: $FREEHOLD_NATS_PASSWORD } ] } }";
    let server = NatsServer::start_with(text).unwrap();
    let world = World::of_one(&server);
    let error = world.refused(&world.fresh());
    assert!(matches!(error, OpenError::NoJetStream { .. }), "{error:?}");
    assert_advice(&error);
}

#[test]
fn a_max_payload_that_cannot_carry_every_commit_is_refused() {
    let text = NatsServer::configuration().unwrap().replace("max_payload: 8MB", "max_payload: 1MB");
    let server = NatsServer::start_with(&text).unwrap();
    let world = World::of_one(&server);
    let error = world.refused(&world.fresh());
    assert!(matches!(error, OpenError::PayloadTooSmall { bytes: 1_048_576, .. }), "{error:?}");
    assert_advice(&error);
}

#[test]
fn a_foreign_stream_is_refused_with_each_field_that_differs() {
    let server = NatsServer::start().unwrap();
    let world = World::of_one(&server);
    let options = world.fresh();
    let config = Config {
        name: stream_name(&options.region),
        subjects: vec![format!("fh.log.{}.>", options.region)],
        max_messages: 1_000,
        ..Config::default()
    };
    world.runtime.block_on(world.context().create_stream(config)).unwrap();
    let error = world.refused(&options);
    assert_advice(&error);
    let OpenError::ForeignStream { differences, .. } = error else { panic!("{error:?}") };
    let fields: Vec<_> = differences.iter().map(|one| one.field).collect();
    assert_eq!(fields, ["discard", "deny_delete", "deny_purge", "max_msgs", "freehold_shards", "freehold_format"]);
}

#[test]
fn the_number_of_shards_is_fixed_when_the_stream_is_made() {
    let server = NatsServer::start().unwrap();
    let world = World::of_one(&server);
    let options = world.fresh();
    world.close(&world.open_memory(&options));
    world.close(&world.open_memory(&options));
    let error = world.refused(&Options { shards: 2, ..options });
    assert!(error.to_string().contains("freehold_shards is 1, not 2"), "{error}");
}

#[test]
fn more_replicas_than_servers_are_refused() {
    let server = NatsServer::start().unwrap();
    let world = World::of_one(&server);
    let error = world.refused(&Options { replicas: 3, ..world.fresh() });
    assert!(matches!(error, OpenError::TooFewServers { replicas: 3, .. }), "{error:?}");
    assert_advice(&error);
}

#[test]
fn a_server_that_is_too_old_is_refused_with_the_reason() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    // As much of the protocol as a client needs to be connected.
    let old = thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let info =
            r#"INFO {"server_id":"x","server_name":"old","version":"2.11.9","max_payload":8388608,"headers":true}"#;
        client.write_all(format!("{info}\r\n").as_bytes()).unwrap();
        let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
        while let Some(Ok(line)) = lines.next() {
            if line.starts_with("PING") {
                client.write_all(b"PONG\r\n").unwrap();
            }
        }
    });
    let world = World::new(vec![format!("nats://{address}")], 1);
    let error = world.refused(&world.fresh());
    assert!(matches!(&error, OpenError::ServerTooOld { version, .. } if version == "2.11.9"), "{error:?}");
    assert!(error.to_string().contains("several writers"), "{error}");
    assert_advice(&error);
    drop(world);
    old.join().unwrap();
}
