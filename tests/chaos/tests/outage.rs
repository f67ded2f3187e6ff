//! Goal: an outage longer than every reservation lasts writes nothing off. The server is killed with requests in flight
//! and starts again when all their deadlines are long past; each one is still settled for what its upstream billed, and
//! nothing stays reserved.
//!
//! Method: the shipped binary as two processes; after the kill, the server is started under a clock that is hours ahead
//! (`clock.c`), so that nobody has to wait for the deadlines.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use tests_chaos::{
    clients::{Behaviour, Fate, Http},
    money, shim,
    system::{LOOK_AGAIN, System},
};

/// Requests that are in flight when the server is killed.
const REQUESTS: u64 = 40;
/// How long the server is away; a reservation lasts less than a minute under the configuration of `System`.
const OUTAGE: Duration = Duration::from_secs(3 * 3_600);
/// Longest wait for all requests to be in flight.
const ARRIVE_TIMEOUT: Duration = Duration::from_secs(30);

/// Kills the server once all requests are in flight at the upstream.
async fn kill_in_flight(system: &mut System) -> Result<()> {
    let wait = async {
        while money::number(&money::stats(system).await?, "in_flight")? < REQUESTS {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(ARRIVE_TIMEOUT, wait).await.context("wait for the requests to be in flight")??;
    system.server.kill()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_longer_than_the_deadlines_writes_nothing_off() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // Ten seconds an answer: none ends before the kill.
    let slow = ["--tokens-per-second", "20", "--completion-tokens-min", "200", "--completion-tokens-max", "200"];
    let mut system = System::start(folder.path(), &slow.map(str::to_owned)).await?;
    system.operator(&["tenant", "create", "acme", "--plan", "enterprise"])?;
    let key = system.operator(&["key", "create", "acme"])?;
    let key = key["secret"].as_str().context("find the key's secret")?.to_owned();

    let http = Http::new(system.server.http);
    let client =
        |streaming| Behaviour { key: key.clone(), streaming, max_tokens: 200, prompt_words: 5, leaves_after: None };
    let clients: Vec<_> = (0..REQUESTS).map(|number| client(number % 2 == 0)).collect();
    let (fates, killed) =
        tokio::join!(join_all(clients.iter().map(|client| http.chat(client))), kill_in_flight(&mut system));
    killed?;
    ensure!(fates.iter().all(|fate| *fate == Fate::Broken), "{fates:?}");

    system.restart_in(shim::clock_ahead(folder.path(), OUTAGE)?).await?;
    money::all_settled(&system).await?;
    let account = money::books_agree(&system).await?;
    eprintln!(
        "after the outage: admitted {}, recovered {}, of these overdue {}, expired {}, tokens {} + {}, cost {}",
        account.admitted,
        account.recovered,
        account.overdue,
        account.expired,
        account.prompt_tokens,
        account.completion_tokens,
        account.cost
    );
    ensure!(account.admitted == REQUESTS && account.recovered == REQUESTS, "{account:?}");
    ensure!(account.overdue == REQUESTS, "every deadline was past: {account:?}");
    ensure!(account.expired == 0 && account.open == 0, "{account:?}");
    ensure!(account.prompt_tokens.0 > 0 && account.completion_tokens.0 > 0, "something was billed: {account:?}");
    Ok(())
}
