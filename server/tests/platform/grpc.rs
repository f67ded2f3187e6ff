//! The gRPC surface: model requests, administration, the past, reflection, health, and errors that programs read.

use futures::StreamExt as _;
use proto::{
    episode::v1 as episode_pb,
    gateway::v1::{self as gateway_pb, gateway_client::GatewayClient},
    tenant::v1 as pb,
};
use server::simulate::Options;
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

use crate::world::{TENANT, World, chat};

fn question(world: &World, max_tokens: u32) -> Request<gateway_pb::CompleteRequest> {
    let message = gateway_pb::Message {
        role: "user".to_owned(),
        content: "What does a freeholder hold?".to_owned(),
        ..gateway_pb::Message::default()
    };
    let mut request = Request::new(gateway_pb::CompleteRequest {
        model: "sim-small".to_owned(),
        messages: vec![message],
        max_tokens: Some(max_tokens),
        ..gateway_pb::CompleteRequest::default()
    });
    request.metadata_mut().insert("authorization", format!("Bearer {}", world.key).parse().unwrap());
    request
}

fn gateway(world: &World) -> GatewayClient<tonic::transport::Channel> {
    GatewayClient::new(world.channel.clone())
}

fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "freehold");
    info.reason.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_call_answers_and_settles() {
    let world = World::new().await;
    let response = gateway(&world).complete(question(&world, 20)).await.unwrap();
    let id = response.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned();
    let answer = response.into_inner();
    assert_eq!((answer.request_id.as_str(), answer.model.as_str()), (id.as_str(), "sim-small"));
    assert!(answer.content.len() > 5 && !answer.finish_reason.is_empty());
    let episode = world.assert_settled(&id, "completed").await;
    let usage = answer.usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (episode.prompt_tokens, episode.completion_tokens));
    assert_eq!(usage.cost_nano_usd, episode.cost_nano_usd);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streamed_call_says_the_text_and_ends_with_usage() {
    let world = World::new().await;
    let mut stream = gateway(&world).stream_complete(question(&world, 20)).await.unwrap().into_inner();
    let mut text = String::new();
    let mut last = None;
    while let Some(message) = stream.next().await {
        let message = message.unwrap();
        text.push_str(&message.delta);
        assert!(last.is_none(), "nothing comes after the end");
        last = message.usage.is_some().then_some(message);
    }
    let last = last.unwrap();
    assert_eq!((last.delta.as_str(), last.finish_reason.is_empty()), ("", false));
    let episode = world.assert_settled(&last.request_id, "completed").await;
    assert_eq!(text.split_whitespace().count() as u64, episode.completion_tokens);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streamed_call_that_is_dropped_settles_what_was_used() {
    let options = Options {
        tokens_per_second: 100,
        completion_tokens_min: 900,
        completion_tokens_max: 900,
        ..Options::default()
    };
    let world = World::with(options).await;
    let mut stream = gateway(&world).stream_complete(question(&world, 900)).await.unwrap().into_inner();
    let id = stream.next().await.unwrap().unwrap().request_id;
    drop(stream);
    world.assert_settled(&id, "client-gone").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_of_the_gateway_carry_reasons_retry_times_and_fields() {
    let world = World::configured(Options::default(), "free", |_| {}).await;
    let mut stranger = question(&world, 5);
    stranger.metadata_mut().remove("authorization");
    let status = gateway(&world).complete(stranger).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, "API_KEY_INVALID"));

    for bad in [f64::NAN, -1.0, 2.5] {
        let mut request = question(&world, 5);
        request.get_mut().temperature = Some(bad);
        let status = gateway(&world).complete(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{bad}");
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "temperature");
    }
    let mut request = question(&world, 5);
    "gpt-0".clone_into(&mut request.get_mut().model);
    let status = gateway(&world).complete(request).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "MODEL_NOT_FOUND"));
    let mut request = question(&world, 5);
    request.get_mut().messages.clear();
    assert_eq!(gateway(&world).complete(request).await.unwrap_err().code(), Code::InvalidArgument);

    let mut refused = None;
    for _ in 0..20 {
        if let Err(status) = gateway(&world).complete(question(&world, 5)).await {
            refused = Some(status);
            break;
        }
    }
    let status = refused.unwrap();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "REQUEST_RATE"));
    assert!(status.get_error_details().retry_info().unwrap().retry_delay.is_some());
    assert!(status.metadata().contains_key("x-request-id"));

    let request = pb::SetBudgetRequest {
        tenant_id: TENANT.to_owned(),
        period: pb::Period::Day.into(),
        limit_nano_usd: Some(100_000),
    };
    world.tenants().set_budget(request).await.unwrap();
    let status = gateway(&world).complete(question(&world, 900)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "BUDGET_EXHAUSTED"));
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().metadata["period"], "day");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn administration_needs_the_admin_token() {
    let world = World::new().await;
    let mut tenants = pb::tenants_client::TenantsClient::new(world.channel.clone());
    let mut episodes = episode_pb::episodes_client::EpisodesClient::new(world.channel.clone());
    let wrong = format!("Bearer {}", "a".repeat(43));
    for token in [None, Some(wrong), Some(format!("Bearer {}", world.key))] {
        let mut list = Request::new(pb::ListTenantsRequest::default());
        let mut show = Request::new(episode_pb::ListEpisodesRequest::default());
        if let Some(token) = token {
            list.metadata_mut().insert("authorization", token.parse().unwrap());
            show.metadata_mut().insert("authorization", token.parse().unwrap());
        }
        let status = tenants.list_tenants(list).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, "ADMIN_TOKEN_INVALID"));
        assert_eq!(episodes.list_episodes(show).await.unwrap_err().code(), Code::Unauthenticated);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_are_created_changed_shown_and_listed() {
    let world = World::new().await;
    let mut tenants = world.tenants();
    for (name, plan) in [("beta", ""), ("alpha", "enterprise")] {
        let request =
            pb::CreateTenantRequest { tenant_id: name.to_owned(), display_name: String::new(), plan: plan.to_owned() };
        let tenant = tenants.create_tenant(request.clone()).await.unwrap().into_inner();
        assert_eq!((tenant.status(), tenant.version), (pb::TenantStatus::Active, 1));
        assert_eq!(tenant.display_name, name);
        let status = tenants.create_tenant(request).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::AlreadyExists, "ALREADY_REGISTERED"));
    }
    // What was just written is in the list.
    let page = |page_token: String| pb::ListTenantsRequest { page_size: 2, page_token };
    let first = tenants.list_tenants(page(String::new())).await.unwrap().into_inner();
    let ids = |page: &pb::ListTenantsResponse| page.tenants.iter().map(|t| t.tenant_id.clone()).collect::<Vec<_>>();
    assert_eq!(
        (ids(&first), first.position),
        (vec![TENANT.to_owned(), "alpha".to_owned()], world.platform.head_position().0)
    );
    let second = tenants.list_tenants(page(first.next_page_token)).await.unwrap().into_inner();
    assert_eq!((ids(&second), second.next_page_token.as_str()), (vec!["beta".to_owned()], ""));
    assert_eq!(second.tenants[0].plan, "free");

    let request = pb::SetPlanRequest { tenant_id: "beta".to_owned(), plan: "pro".to_owned() };
    let tenant = tenants.set_plan(request).await.unwrap().into_inner();
    assert_eq!((tenant.plan.unwrap().name.as_str(), tenant.version), ("pro", 2));
    let request = pb::SuspendTenantRequest { tenant_id: "beta".to_owned(), reason: "unpaid".to_owned() };
    let tenant = tenants.suspend_tenant(request.clone()).await.unwrap().into_inner();
    assert_eq!(tenant.status(), pb::TenantStatus::Suspended);
    let status = tenants.suspend_tenant(request).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "SUSPENDED"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_arguments_of_administration_name_their_field_and_record_nothing() {
    let world = World::new().await;
    let head = world.platform.head_position();
    let mut tenants = world.tenants();
    let field = |status: Status| {
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        status.get_error_details().bad_request().unwrap().field_violations[0].field.clone()
    };
    for id in ["", "A", "a b", "a\r\nx: y", &"a".repeat(64)] {
        let request = pb::CreateTenantRequest { tenant_id: id.to_owned(), ..pb::CreateTenantRequest::default() };
        assert_eq!(field(tenants.create_tenant(request).await.unwrap_err()), "tenant_id");
    }
    let request = pb::CreateTenantRequest {
        tenant_id: "gamma".to_owned(),
        plan: "gold".to_owned(),
        ..pb::CreateTenantRequest::default()
    };
    assert_eq!(field(tenants.create_tenant(request).await.unwrap_err()), "plan");
    let request = pb::SetBudgetRequest { tenant_id: TENANT.to_owned(), period: 9, limit_nano_usd: None };
    assert_eq!(field(tenants.set_budget(request).await.unwrap_err()), "period");
    let request = pb::ListTenantsRequest { page_size: 1_001, page_token: String::new() };
    assert_eq!(field(tenants.list_tenants(request).await.unwrap_err()), "page_size");
    let request = pb::GetTenantRequest { tenant_id: "nobody".to_owned() };
    assert_eq!(tenants.get_tenant(request).await.unwrap_err().code(), Code::NotFound);
    let request = pb::IssueApiKeyRequest { tenant_id: TENANT.to_owned(), label: "l".repeat(600) };
    assert_eq!(tenants.issue_api_key(request).await.unwrap_err().code(), Code::InvalidArgument);
    let mut episodes = world.episodes();
    let request = episode_pb::GetEpisodeRequest { episode_id: "a\r\nb".to_owned() };
    assert_eq!(field(episodes.get_episode(request).await.unwrap_err()), "episode_id");
    let request = episode_pb::GetStateRequest { stream: "tenant/../x".to_owned(), at: None };
    assert_eq!(field(episodes.get_state(request).await.unwrap_err()), "stream");
    assert_eq!(world.platform.head_position(), head);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_shown_once_and_only_their_beginning_is_kept() {
    let world = World::new().await;
    let key = world.tenant().await.api_keys.remove(0);
    assert_eq!(key.prefix, world.key[..key.prefix.len()]);
    assert_eq!(key.prefix.len(), format!("fhk_{TENANT}_").len() + 4);
    let secret = &world.key[key.prefix.len()..];
    let request = episode_pb::GetStateRequest { stream: format!("tenant/{TENANT}"), at: None };
    let state = world.episodes().get_state(request).await.unwrap().into_inner().state_json;
    assert!(!state.contains(secret));
    for entry in std::fs::read_dir(world.directory.path().join("log")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "the log holds a secret");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_past_is_listed_and_a_state_is_shown_as_it_was() {
    let world = World::new().await;
    let reply = world.chat(&chat(5)).await;
    world.assert_settled(reply.request_id(), "completed").await;
    let request =
        episode_pb::ListEpisodesRequest { tenant_id: TENANT.to_owned(), page_size: 1, page_token: String::new() };
    let page = world.episodes().list_episodes(request).await.unwrap().into_inner();
    assert_eq!(page.episodes[0].episode_id, reply.request_id());
    assert_eq!((page.episodes[0].end_state.as_str(), page.episodes[0].model.as_str()), ("completed", "sim-small"));
    assert!(!page.next_page_token.is_empty());
    let state = |at| {
        let request = episode_pb::GetStateRequest { stream: format!("tenant/{TENANT}"), at: Some(at) };
        let mut episodes = world.episodes();
        async move { episodes.get_state(request).await }
    };
    use episode_pb::get_state_request::At;
    let first = state(At::Version(1)).await.unwrap().into_inner();
    let json: serde_json::Value = serde_json::from_str(&first.state_json).unwrap();
    assert_eq!((first.version, &json["keys"]), (1, &serde_json::json!({})));
    assert_eq!(state(At::TimeUs(1)).await.unwrap().into_inner().version, 0);
    let beyond = state(At::Version(99)).await.unwrap_err();
    assert_eq!((beyond.code(), reason(&beyond).as_str()), (Code::OutOfRange, "BEYOND_HEAD"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_and_health_tell_what_is_there_and_that_it_serves() {
    use tonic_reflection::pb::{v1, v1alpha};
    let world = World::new().await;
    let expected = ["freehold.episode.v1.Episodes", "freehold.gateway.v1.Gateway", "freehold.tenant.v1.Tenants"];
    {
        use v1::{server_reflection_request::MessageRequest, server_reflection_response::MessageResponse};
        let mut client = v1::server_reflection_client::ServerReflectionClient::new(world.channel.clone());
        let message_request = Some(MessageRequest::ListServices(String::new()));
        let request = v1::ServerReflectionRequest { host: String::new(), message_request };
        let mut answers = client.server_reflection_info(futures::stream::iter([request])).await.unwrap().into_inner();
        let answer = answers.next().await.unwrap().unwrap().message_response.unwrap();
        let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
        let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
        assert!(expected.iter().all(|name| names.iter().any(|have| have == name)), "{names:?}");
    }
    {
        use v1alpha::{server_reflection_request::MessageRequest, server_reflection_response::MessageResponse};
        let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(world.channel.clone());
        let message_request = Some(MessageRequest::FileContainingSymbol(expected[1].to_owned()));
        let request = v1alpha::ServerReflectionRequest { host: String::new(), message_request };
        let mut answers = client.server_reflection_info(futures::stream::iter([request])).await.unwrap().into_inner();
        let answer = answers.next().await.unwrap().unwrap().message_response.unwrap();
        assert!(matches!(answer, MessageResponse::FileDescriptorResponse(_)), "{answer:?}");
    }
    for service in ["", expected[0], expected[1], expected[2]] {
        crate::world::eventually("it serves", || async {
            let request = HealthCheckRequest { service: service.to_owned() };
            let answer = HealthClient::new(world.channel.clone()).check(request).await.ok()?;
            (answer.into_inner().status == 1).then_some(())
        })
        .await;
    }
}
