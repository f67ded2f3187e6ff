//! Goal: whatever goes wrong, the bill is right. After 2,000 concurrent requests with upstream failures, cut streams,
//! stalls, rate limits and clients that go away, the tokens settled in the log are exactly those the upstream billed,
//! nothing stays reserved and no budget was exceeded at any commit; then the server is killed in the middle of
//! another 2,000, restarts, and the same holds.
//!
//! Method: the shipped binary as two processes; clients over real sockets. `CHAOS_SEED` repeats the choices,
//! `CHAOS_REQUESTS` makes the waves larger.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::Result;
use futures::{StreamExt, stream::FuturesUnordered};
use tests_chaos::{
    clients::{Behaviour, Fate, Http},
    dice::{Dice, requests},
    money,
    system::System,
};

/// Budget of the tenant that runs out of money, nano-USD: enough for some of its requests.
const TIGHT_BUDGET_USD: &str = "0.002";

fn faults(dice: &mut Dice) -> Vec<String> {
    [
        ("--seed", dice.within(0..=1_000_000).to_string()),
        ("--ttft-p50-ms", "5".to_owned()),
        ("--ttft-p90-ms", "40".to_owned()),
        ("--ttft-p99-ms", "200".to_owned()),
        ("--tokens-per-second", "400".to_owned()),
        ("--error-500-rate", "0.03".to_owned()),
        ("--error-503-rate", "0.02".to_owned()),
        ("--cut-rate", "0.06".to_owned()),
        ("--stall-rate", "0.03".to_owned()),
        ("--stall-ms", "300".to_owned()),
        ("--malformed-rate", "0.01".to_owned()),
        ("--overrun-rate", "0.03".to_owned()),
        ("--rate-limit-every-ms", "1500".to_owned()),
        ("--rate-limit-for-ms", "60".to_owned()),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value])
    .collect()
}

/// Four tenants, the last one with a budget that runs out; their keys.
fn tenants(system: &System) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    for name in ["ample-1", "ample-2", "ample-3", "tight"] {
        system.operator(&["tenant", "create", name, "--plan", "enterprise"])?;
        let key = system.operator(&["key", "create", name])?;
        keys.push(key["secret"].as_str().unwrap().to_owned());
    }
    system.operator(&["tenant", "set-budget", "tight", "--period", "day", "--limit", TIGHT_BUDGET_USD])?;
    Ok(keys)
}

/// Runs a wave of clients; the server may be killed once half of them have ended.
async fn wave(
    system: &mut System,
    dice: &mut Dice,
    keys: &[String],
    kill_halfway: bool,
) -> Result<BTreeMap<Fate, u64>> {
    let http = Http::new(system.server.http);
    let count = requests(2_000);
    let clients: Vec<_> = (0..count).map(|_| Behaviour::draw(dice, keys)).collect();
    let ended = AtomicU64::new(0);
    let mut running: FuturesUnordered<_> = clients
        .iter()
        .map(|client| async {
            let fate = http.chat(client).await;
            ended.fetch_add(1, Ordering::Relaxed);
            fate
        })
        .collect();
    let mut fates = BTreeMap::new();
    let mut killed = false;
    while let Some(fate) = running.next().await {
        *fates.entry(fate).or_default() += 1;
        if kill_halfway && !killed && ended.load(Ordering::Relaxed) >= count / 2 {
            killed = true;
            system.server.kill()?;
        }
    }
    Ok(fates)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bill_is_right_whatever_goes_wrong() -> Result<()> {
    let mut dice = Dice::for_test("load");
    let folder = tempfile::tempdir()?;
    let mut system = System::start(folder.path(), &faults(&mut dice)).await?;
    let keys = tenants(&system)?;

    let fates = wave(&mut system, &mut dice, &keys, false).await?;
    money::all_settled(&system).await?;
    let account = money::books_agree(&system).await?;
    eprintln!(
        "faults: {fates:?}; admitted {}, settled {}, expired {}, refused {}, tokens {} + {}, cost {}",
        account.admitted,
        account.settled,
        account.expired,
        account.refused,
        account.prompt_tokens,
        account.completion_tokens,
        account.cost
    );
    assert!(fates.get(&Fate::Answered(200)).is_some_and(|count| *count > 0));
    assert!(fates.get(&Fate::Answered(402)).is_some_and(|count| *count > 0), "the tight budget ran out");
    assert!(fates.get(&Fate::Left).is_some_and(|count| *count > 0));
    assert_eq!(account.expired, 0, "every request settled");
    assert!(account.admitted >= requests(2_000) / 2, "most requests reached their upstream");

    let fates = wave(&mut system, &mut dice, &keys, true).await?;
    tokio::time::timeout(Duration::from_secs(60), system.restart()).await??;
    money::all_settled(&system).await?;
    let after = money::books_agree(&system).await?;
    eprintln!(
        "kill -9: {fates:?}; admitted {}, settled {}, recovered {}, expired {}, tokens {} + {}, cost {}",
        after.admitted,
        after.settled,
        after.recovered,
        after.expired,
        after.prompt_tokens,
        after.completion_tokens,
        after.cost
    );
    assert!(fates.get(&Fate::Broken).is_some_and(|count| *count > 0), "the kill hit requests in flight");
    assert!(after.recovered >= requests(2_000) / 50, "requests were in flight when the server was killed");
    assert!(after.settled > account.settled);
    Ok(())
}
