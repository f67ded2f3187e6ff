//! Many requests at once, with every fault an upstream has and clients that go away: in the end the books agree.

use futures::StreamExt as _;
use server::simulate::Options;

use crate::world::{World, chat, eventually, read_events, streamed};

const REQUESTS: u64 = 400;
const AT_ONCE: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_with_faults_settles_for_exactly_what_was_billed() {
    let options = Options {
        seed: 7,
        tokens_per_second: 400,
        completion_tokens_min: 20,
        completion_tokens_max: 60,
        error_500_rate: 0.05,
        error_503_rate: 0.05,
        cut_rate: 0.1,
        malformed_rate: 0.05,
        overrun_rate: 0.1,
        ..Options::default()
    };
    let world = World::configured(options, "enterprise", |_| {}).await;
    let statuses: Vec<u16> =
        futures::stream::iter(0..REQUESTS).map(|number| one(&world, number)).buffer_unordered(AT_ONCE).collect().await;
    assert!(statuses.iter().all(|status| [200, 502, 503].contains(status)), "{statuses:?}");
    assert!(statuses.iter().filter(|status| **status == 200).count() > 200);
    let tenant = eventually("every request settles", || async {
        let tenant = world.tenant().await;
        (tenant.open_reservations == 0 && tenant.requests_settled == REQUESTS).then_some(tenant)
    })
    .await;
    let stats = world.simulator.stats();
    assert_eq!((stats.requests, stats.in_flight), (REQUESTS, 0));
    assert!(stats.cut > 0 && stats.malformed > 0 && stats.overrun > 0 && stats.client_gone > 0, "{stats:?}");
    assert_eq!((tenant.prompt_tokens, tenant.completion_tokens), (stats.prompt_tokens, stats.completion_tokens));
    // The bill, folded from the log by itself, says the same.
    let readers = world.platform.readers();
    readers.billing.wait_for(world.platform.head_position(), crate::world::PATIENCE).await.unwrap();
    let metrics = String::from_utf8(world.get("/metrics").await.body.to_vec()).unwrap();
    let cost = format!("freehold_model_cost_nano_usd_total {}", tenant.cost_nano_usd);
    assert!(metrics.lines().any(|line| line == cost), "{cost}\n{metrics}");
}

/// Plain, streamed, or streamed and left in the middle.
async fn one(world: &World, number: u64) -> u16 {
    match number % 4 {
        0 => world.chat(&chat(40)).await.status.as_u16(),
        1 | 2 => world.chat(&streamed(40, number.is_multiple_of(2))).await.status.as_u16(),
        _ => {
            let mut response = world.open(&streamed(40, true)).await;
            let status = response.status().as_u16();
            if status == 200 {
                read_events(response.body_mut(), 1).await;
            }
            status
        }
    }
}
