//! Goal: a server whose disk fills, turns read-only or fails answers 503 and says so, loses nothing it acknowledged, and
//! goes on by itself, in the same process, when the fault is over.
//!
//! Method: the shipped binary over a library that injects faults of the disk; real clients before, during and after.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use tests_chaos::{
    clients::{Behaviour, Fate, Http},
    money,
    shim::{Fault, FaultSwitch, Shim},
    system::{LOOK_AGAIN, System},
};

/// Longest wait for the server to notice that a fault is there or over.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(20);

async fn until_status(http: Http, path: &str, wanted: u16) -> Result<()> {
    let wait = async {
        while !http.get(path).await.is_ok_and(|(status, _)| status == wanted) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::time::timeout(NOTICE_TIMEOUT, wait).await.with_context(|| format!("wait for {path} to answer {wanted}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_a_faulty_disk_refuses_loses_nothing_and_goes_on_by_itself() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("data");
    fs::create_dir(&data)?;
    let shim = Shim::compile(folder.path())?;
    let switch = FaultSwitch::new(folder.path());
    let mut environment = shim.environment(&data)?;
    environment.push(switch.environment());
    let mut system = System::start_in(folder.path(), &[], environment).await?;
    system.operator(&["tenant", "create", "acme", "--plan", "enterprise"])?;
    let key = system.operator(&["key", "create", "acme"])?;
    let key = key["secret"].as_str().context("find the key's secret")?.to_owned();
    let http = Http::new(system.server.http);
    let request = Behaviour { key, streaming: false, max_tokens: 8, prompt_words: 3, leaves_after: None };

    for fault in [Fault::DiskFull, Fault::ReadOnly, Fault::SyncFails] {
        ensure!(http.chat(&request).await == Fate::Answered(200), "before {fault:?}");
        switch.begin(fault)?;
        // The first one may be what meets the fault; from then on the server knows.
        let first = http.chat(&request).await;
        ensure!(first == Fate::Answered(503), "{fault:?}: {first:?}");
        until_status(http, "/readyz", 503).await?;
        let (_, reason) = http.get("/readyz").await?;
        eprintln!("{fault:?}: {}", String::from_utf8_lossy(&reason).trim());
        ensure!(http.chat(&request).await == Fate::Answered(503), "during {fault:?}");
        ensure!(http.get("/healthz").await?.0 == 200, "the process is alive during {fault:?}");
        switch.end()?;
        until_status(http, "/readyz", 200).await?;
        ensure!(http.chat(&request).await == Fate::Answered(200), "after {fault:?}");
    }
    money::all_settled(&system).await?;
    let before = money::books_agree(&system).await?;
    system.server.kill()?;
    system.restart().await?;
    let after = money::books_agree(&system).await?;
    ensure!(after.settled >= 6 && after.settled == before.settled, "{before:?} {after:?}");
    Ok(())
}
