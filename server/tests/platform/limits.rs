//! What a tenant may not: budgets, rates, keys, suspension, repetition.

use proto::tenant::v1 as pb;
use serde_json::json;
use server::simulate::Options;

use crate::world::{TENANT, World, chat, streamed};

async fn set_budget(world: &World, limit: i64) {
    let request = pb::SetBudgetRequest {
        tenant_id: TENANT.to_owned(),
        period: pb::Period::Day.into(),
        limit_nano_usd: Some(limit),
    };
    world.tenants().set_budget(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exhausted_budget_is_402_and_calls_nobody() {
    let world = World::new().await;
    set_budget(&world, 1_000).await;
    for body in [chat(50), streamed(50, true)] {
        let reply = world.chat(&body).await;
        assert_eq!(reply.status.as_u16(), 402);
        let error = reply.error();
        assert_eq!((&error["code"], &error["type"]), (&json!("insufficient_quota"), &json!("insufficient_quota")));
        assert!(reply.headers.contains_key("x-ratelimit-limit-requests"));
    }
    assert_eq!(world.simulator.stats().requests, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_requests_that_race_for_the_last_of_a_budget_one_wins() {
    let wait = 300;
    let options = Options { ttft_p50_ms: wait, ttft_p90_ms: wait, ttft_p99_ms: wait, ..Options::default() };
    let world = World::with(options).await;
    let reply = world.chat(&chat(64)).await;
    let first = world.assert_settled(reply.request_id(), "completed").await;
    let worst = first.entries[0].reserved_nano_usd.unwrap();
    // Room for one worst case and a half.
    set_budget(&world, first.cost_nano_usd + worst + worst / 2).await;
    let body = chat(64);
    let (one, other) = tokio::join!(world.chat(&body), world.chat(&body));
    let mut statuses = [one.status.as_u16(), other.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 402]);
    let budget = world.tenant().await.budgets.into_iter().find(|budget| budget.limit_nano_usd.is_some()).unwrap();
    assert!(budget.settled_nano_usd + budget.reserved_nano_usd <= budget.limit_nano_usd.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_requests_are_429_with_the_time_to_come_back() {
    let world = World::configured(Options::default(), "free", |_| {}).await;
    let mut refused = None;
    for _ in 0..20 {
        let reply = world.chat(&chat(5)).await;
        if reply.status.as_u16() == 429 {
            refused = Some(reply);
            break;
        }
        assert_eq!(reply.status.as_u16(), 200);
    }
    let reply = refused.unwrap();
    let error = reply.error();
    assert_eq!((&error["code"], &error["type"]), (&json!("rate_limit_exceeded"), &json!("requests")));
    assert_eq!(reply.header("retry-after"), "1");
    assert_eq!(reply.header("x-ratelimit-remaining-requests"), "0");
    assert_eq!(reply.header("x-ratelimit-limit-requests"), "5");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_keys_and_strangers_are_401() {
    let mut world = World::new().await;
    let request = pb::RevokeApiKeyRequest {
        tenant_id: TENANT.to_owned(),
        key_id: world.key_id.clone(),
        reason: "lost".to_owned(),
    };
    assert!(world.tenants().revoke_api_key(request).await.unwrap().into_inner().revoked);
    let secret = "a".repeat(43);
    let head = world.platform.head_position();
    let revoked = world.key.clone();
    for key in [revoked, format!("fhk_{TENANT}_{secret}"), format!("fhk_nobody_{secret}"), "sk-1".to_owned()] {
        world.key = key;
        let reply = world.chat(&chat(5)).await;
        assert_eq!((reply.status.as_u16(), &reply.error()["code"]), (401, &json!("invalid_api_key")));
        assert_eq!(world.get("/v1/models").await.status.as_u16(), 401);
    }
    assert_eq!(world.platform.head_position(), head, "nothing is recorded");
    let metrics = String::from_utf8(world.get("/metrics").await.body.to_vec()).unwrap();
    assert!(metrics.contains(r#"freehold_actors_live{kind="tenant"} 1"#), "a stranger starts no actor");
    (world.key, _) = world.issue_key().await;
    assert_eq!(world.chat(&chat(5)).await.status.as_u16(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_tenant_is_403_until_it_is_resumed() {
    let world = World::new().await;
    let tenant_id = TENANT.to_owned();
    let request = pb::SuspendTenantRequest { tenant_id: tenant_id.clone(), reason: "unpaid".to_owned() };
    world.tenants().suspend_tenant(request).await.unwrap();
    let reply = world.chat(&chat(5)).await;
    assert_eq!((reply.status.as_u16(), &reply.error()["code"]), (403, &json!("tenant_suspended")));
    world.tenants().resume_tenant(pb::ResumeTenantRequest { tenant_id }).await.unwrap();
    assert_eq!(world.chat(&chat(5)).await.status.as_u16(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_idempotency_key_names_the_first_request_and_calls_nobody() {
    let world = World::new().await;
    let send = || async {
        let mut request = world.post(chat(5).to_string());
        request.headers_mut().insert("idempotency-key", "order-7".parse().unwrap());
        world.send(request).await
    };
    let first = send().await;
    assert_eq!(first.status.as_u16(), 200);
    world.assert_settled(first.request_id(), "completed").await;
    let second = send().await;
    assert_eq!((second.status.as_u16(), &second.error()["code"]), (409, &json!("duplicate_request")));
    assert_eq!(second.header("x-should-retry"), "false");
    assert!(second.error()["message"].as_str().unwrap().contains(first.request_id()));
    assert_eq!(world.simulator.stats().requests, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_handles_as_many_as_it_can_says_so() {
    let options =
        Options { tokens_per_second: 20, completion_tokens_min: 900, completion_tokens_max: 900, ..Options::default() };
    let world = World::configured(options, "pro", |config| config.requests.in_flight_max = 1).await;
    let held = world.open(&streamed(900, true)).await;
    let reply = world.chat(&chat(5)).await;
    assert_eq!((reply.status.as_u16(), reply.header("retry-after")), (503, "1"));
    assert!(reply.error()["message"].as_str().unwrap().contains("as many requests as it can"));
    assert_eq!(world.simulator.stats().requests, 1);
    drop(held);
}
