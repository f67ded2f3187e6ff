//! A whole region under load: three servers, three nodes, 64 clients, and everything that may happen to one machine.
#![expect(clippy::unwrap_used, reason = "tests may panic, and print what they measured")]

use tests_chaos::{
    dice::{Dice, rounds},
    load::Load,
    money::books_agree_in,
    region::{Fault, Region},
    replicas::compare,
};

const CLIENTS: usize = 64;
const TENANTS: usize = 16;
const NAME: &str = "whatever_happens_to_one_machine_nothing_is_lost_and_nothing_is_done_twice";

/// What happens in a round, in an order of this seed. Both streams have leaders: their turns come one after the other, as
/// an election takes seconds.
fn shuffled(round: u64, dice: &mut Dice) -> Vec<Fault> {
    let later = if round.is_multiple_of(2) { Fault::LeasesLeaderKilled } else { Fault::LeaderKilled };
    let mut left: Vec<_> = Fault::ALL.into_iter().filter(|fault| *fault != later).collect();
    let mut order = Vec::new();
    while !left.is_empty() {
        let index = dice.within(0..=left.len() as u64 - 1);
        order.push(left.swap_remove(usize::try_from(index).unwrap()));
    }
    order
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_to_one_machine_nothing_is_lost_and_nothing_is_done_twice() {
    let mut dice = Dice::for_test(NAME);
    let mut region = Region::start().await.unwrap();
    let keys: Vec<_> = (0..TENANTS).map(|number| region.nodes.tenant(&format!("tenant-{number}")).unwrap()).collect();
    let targets: Vec<_> = region.nodes.nodes.iter().map(|node| node.http).collect();
    let load = Load::start(CLIENTS, &keys, &targets);
    load.more(300).await.unwrap();
    for round in 0..rounds(1) {
        for fault in shuffled(round, &mut dice) {
            let felt = region.suffer(fault, &mut dice, &load).await.unwrap();
            eprintln!("{felt}");
        }
    }
    let (acknowledged, lost, retries) = load.end().await;
    region.nodes.all_settled().await.unwrap();
    let replicas = region.end().unwrap();
    let account = books_agree_in(&replicas[0], region.nodes.upstream.http).await.unwrap();
    eprintln!("admitted {}, recovered {}, expired {}", account.admitted, account.recovered, account.expired);
    let found = compare(&replicas).unwrap();
    found.holds_once(&acknowledged).unwrap();
    eprintln!(
        "{} requests acknowledged, {retries} retries, {} commits in {} streams on each node",
        acknowledged.len(),
        found.commits,
        found.streams()
    );
    for (node, digest) in region.nodes.nodes.iter().zip(&found.digests) {
        eprintln!("{}: sha256 {digest}", node.name);
    }
    assert_eq!(lost, 0);
}
