//! `freehold events`, `group` and `dlq` against a running server, as people and programs use them.

use std::process::Output;

use serde_json::Value;

use crate::{
    events_world::{Consumer, own, text},
    world::{World, eventually},
};

/// Runs the program with the world's server and token.
pub(crate) async fn freehold(world: &World, arguments: &[&str]) -> Output {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_freehold"))
        .args(arguments)
        .args(["--server", &format!("http://{}", world.platform.grpc_address())])
        .env("FREEHOLD_ADMIN_TOKEN", world.platform.admin_token())
        .output()
        .await
        .unwrap()
}

/// What it prints for people.
pub(crate) async fn table(world: &World, arguments: &[&str]) -> String {
    let output = freehold(world, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What it prints for programs.
pub(crate) async fn json(world: &World, arguments: &[&str]) -> Value {
    serde_json::from_str(&table(world, &[arguments, &["--json"]].concat()).await).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_appended_read_and_followed_from_the_command_line() {
    let world = World::new().await;
    let append = ["events", "append", "app/acme/order-1", "--type", "order.placed", "--payload", "{\"n\":1}"];
    let first = json(&world, &[&append[..], &["--expect", "none", "--commit-id", "c1"]].concat()).await;
    assert_eq!((&first["last_version"], &first["duplicate"]), (&1.into(), &false.into()));
    assert!(table(&world, &append).await.contains("app/acme/order-1 is at version 2; appended at position"));
    let refused = freehold(&world, &[&append[..], &["--expect", "7"]].concat()).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("at version 2"));
    let bad = freehold(&world, &["events", "append", "app/acme/a", "--type", "freehold.x", "--payload", "x"]).await;
    assert_eq!(bad.status.code(), Some(2));
    let file = world.directory.path().join("large");
    std::fs::write(&file, vec![b'x'; 512 * 1024 + 1]).unwrap();
    let from_file = ["events", "append", "app/acme/a", "--type", "a", "--file", file.to_str().unwrap()];
    let large = freehold(&world, &from_file).await;
    assert_eq!(large.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&large.stderr).contains("is more than 524288 bytes"), "{large:?}");
    std::fs::write(&file, vec![b'x'; 512 * 1024]).unwrap();
    assert!(table(&world, &from_file).await.contains("is at version 1"));
    let beyond = freehold(&world, &["events", "subscribe", "--from", "1000000"]).await;
    assert_eq!(beyond.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&beyond.stderr).contains("one behind the head"), "{beyond:?}");
    for wrong in [["events", "read", "--limit=-1"], ["group", "create", "acme/G"], ["dlq", "list", "acme/a/b"]] {
        assert_eq!(freehold(&world, &wrong).await.status.code(), Some(2), "{wrong:?}");
    }
    let read = json(&world, &["events", "read", "app/acme/order-1", "--limit", "1", "--backward"]).await;
    assert_eq!((&read["events"][0]["version"], &read["events"][0]["data"]), (&2.into(), &"{\"n\":1}".into()));
    let log = table(&world, &["events", "read", "--type", "freehold.log.v1.TenantRegistered"]).await;
    assert!(log.contains("tenant/acme@1  freehold.log.v1.TenantRegistered"), "{log}");
    let followed = table(&world, &["events", "subscribe", "--until-caught-up", "--type", "order.placed"]).await;
    assert_eq!(followed.lines().count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_listed_shown_redriven_and_dropped_from_the_command_line() {
    let world = World::new().await;
    let created = json(&world, &["group", "create", "acme/mail", "--type", "a", "--attempts", "1"]).await;
    assert_eq!((&created["name"], &created["attempts_max"]), (&"mail".into(), &1.into()));
    for number in 0..3 {
        let data = number.to_string();
        table(&world, &["events", "append", "app/acme/s", "--type", "a", "--payload", &data]).await;
    }
    let mut consumer = Consumer::join(&mut own(&world), "mail", 8).await;
    for _ in 0..3 {
        let delivery = consumer.next().await;
        consumer.nack(&delivery, "cannot \u{1b}[2Jdo it").await;
    }
    let list = eventually("three are parked", || async {
        let list = json(&world, &["dlq", "list", "acme/mail"]).await;
        (list["count"] == 3).then_some(list)
    })
    .await;
    let number = list["parked"][1]["number"].to_string();
    let shown = table(&world, &["dlq", "show", "acme/mail", &number]).await;
    assert!(shown.contains("cannot \\u{1b}[2Jdo it") && shown.contains("app/acme/s@2  a  1"), "{shown}");
    assert!(table(&world, &["dlq", "list", "acme/mail", "--limit", "1"]).await.contains("app/acme/s"));
    assert_eq!(freehold(&world, &["dlq", "drop", "acme/mail", &number]).await.status.code(), Some(2));
    let dropped = json(&world, &["dlq", "drop", "acme/mail", &number, "--reason", "obsolete"]).await;
    assert_eq!((&dropped["dropped"], &dropped["parked"]), (&1.into(), &2.into()));
    assert_eq!(freehold(&world, &["dlq", "redrive", "acme/mail", &number]).await.status.code(), Some(1));
    let redriven = table(&world, &["dlq", "redrive", "acme/mail", "--all"]).await;
    assert_eq!(redriven, "redriven 2 events, 0 still parked\n");
    for expected in ["0", "2"] {
        let delivery = consumer.next().await;
        assert_eq!(text(&delivery), expected);
        consumer.ack(&delivery).await;
    }
    let groups = table(&world, &["group", "list"]).await;
    assert!(groups.contains("acme/mail"), "{groups}");
    assert!(table(&world, &["group", "show", "acme/mail"]).await.contains("0 of 3 ever"));
    let models = json(&world, &["dlq", "list", "tenants"]).await;
    assert_eq!(models["count"], 0);
}
