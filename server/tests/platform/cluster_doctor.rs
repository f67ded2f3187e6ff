//! `freehold doctor` looks at the NATS servers as a node would meet them, and changes nothing there.

use std::{fs, path::Path};

use server::simulate::Options;
use tests_kit::nats::{NatsServer, PASSWORD};
use tokio::process::Command;

use crate::{
    cluster::{SHARDS, join},
    world::World,
};

/// What it says, and whether it found no problem.
async fn doctor(folder: &Path, server: &str, password: &str) -> (String, bool) {
    doctor_of("two", folder, server, password).await
}

async fn doctor_of(node: &str, folder: &Path, server: &str, password: &str) -> (String, bool) {
    let output = Command::new(env!("CARGO_BIN_EXE_freehold"))
        .args(["doctor", "--nats", server, "--node", node, "--region", "local", "--config"])
        .arg(folder.join("freehold.toml"))
        .arg("--data")
        .arg(folder.join("data"))
        .env("FREEHOLD_NATS_PASSWORD", password)
        .output()
        .await
        .unwrap();
    (String::from_utf8(output.stdout).unwrap(), output.status.success())
}

fn configure(folder: &Path, shards: u32) {
    let listen = "[http]\nlisten = \"127.0.0.1:0\"\n[grpc]\nlisten = \"127.0.0.1:0\"\n";
    fs::write(folder.join("freehold.toml"), format!("{listen}[cluster]\nshards = {shards}\n")).unwrap();
}

fn assert_says(told: &str, lines: &[&str]) {
    for line in lines {
        assert!(told.lines().any(|told| told.starts_with(line)), "{line:?} is not in\n{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_says_what_a_node_would_meet_and_changes_nothing() {
    let server = NatsServer::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    configure(folder.path(), SHARDS);
    let (told, is_fine) = doctor(folder.path(), &server.url(), PASSWORD).await;
    assert!(is_fine, "{told}");
    let absent = [
        "ok      NATS servers    freehold-nats answers and accepts the credentials",
        "ok      NATS version    2.",
        "ok      JetStream       enabled",
        "ok      max_payload     8388608 bytes",
        "ok      stream          does not exist, a start makes it",
        "ok      leases          does not exist, a start makes it",
        "note    permissions     cannot be tried before a start has made",
        "note    clock           cannot be compared",
    ];
    assert_says(&told, &absent);
    assert_eq!(server.look("/jsz").unwrap()["streams"], 0);

    let (told, is_fine) = doctor(folder.path(), &server.url(), "wrong").await;
    assert!(!is_fine, "{told}");
    assert_says(&told, &["problem credentials     [E0014] open the log on NATS; because: the NATS server at"]);
    let (told, is_fine) = doctor(folder.path(), "nats://127.0.0.1:1", PASSWORD).await;
    assert!(!is_fine, "{told}");
    assert_says(&told, &["problem NATS servers    [E0013]"]);

    let world = World::configured(Options::default(), "pro", |config| join(config, server.url(), "one")).await;
    let messages = || server.look("/jsz").unwrap()["messages"].as_u64().unwrap();
    let (told, is_fine) = doctor(folder.path(), &server.url(), PASSWORD).await;
    assert!(is_fine, "{told}");
    let there = [
        "ok      stream          as expected",
        "ok      leases          as expected",
        "ok      permissions     the user may publish",
        "ok      nodes           1 other has a lease, none has this name",
        "ok      clock           within ",
    ];
    assert_says(&told, &there);
    let (told, is_fine) = doctor_of("one", folder.path(), &server.url(), PASSWORD).await;
    assert!(!is_fine, "{told}");
    let taken = format!("because: a node named one is alive at {}", world.platform.grpc_address());
    assert!(told.contains("problem nodes           [E0019]") && told.contains(&taken), "{told}");
    configure(folder.path(), 2 * SHARDS);
    let (told, is_fine) = doctor(folder.path(), &server.url(), PASSWORD).await;
    assert!(!is_fine, "{told}");
    let others = "because: stream FH_LOG_LOCAL is not one of Freehold's: freehold_shards is 16, not 32";
    assert!(told.contains("problem stream          [E0019]") && told.contains(others), "{told}");
    assert_says(&told, &["note    permissions     cannot be tried while the stream or the leases are not as expected"]);
    assert!(told.contains("problem leases          [E0019]") && told.contains("shards of this node is 32"), "{told}");

    world.platform.shutdown().await;
    let before = messages();
    configure(folder.path(), SHARDS);
    doctor(folder.path(), &server.url(), PASSWORD).await;
    assert_eq!(messages(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_names_the_subjects_that_a_user_may_not_publish_to() {
    let limited = r#"}, {
            user: limited
            password: $FREEHOLD_NATS_PASSWORD
            permissions {
                publish { allow: ["$JS.API.>", "_INBOX.>", "fh.>"] }
                subscribe { allow: ["fh.>", "_INBOX.>"] }
            }
        } ]"#;
    let text = NatsServer::configuration().unwrap();
    let server = NatsServer::start_with(&text.replacen("} ]", limited, 1)).unwrap();
    let world = World::configured(Options::default(), "pro", |config| join(config, server.url(), "one")).await;
    let folder = tempfile::tempdir().unwrap();
    configure(folder.path(), SHARDS);
    let file = folder.path().join("freehold.toml");
    let configured = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{configured}user = \"limited\"\n")).unwrap();
    let (told, is_fine) = doctor(folder.path(), &server.url(), PASSWORD).await;
    assert!(!is_fine, "{told}");
    let denied = "problem permissions     [E0014] the user may not publish to $KV.FH_LEASES_LOCAL.";
    assert_says(&told, &[denied]);
    assert_eq!(told.matches("permissions ").count(), 1, "{told}");
    world.platform.shutdown().await;
}
