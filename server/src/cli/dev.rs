//! `freehold dev`: the whole platform, a simulated model and a tenant `demo` in one process.
//!
//! It sends one real request through itself, shows what became of it, tells how to send more, and stays up. It writes
//! nothing but the data directory: the log, the admin token, and `dev-key`, so that a restart has the same key.

mod howto;

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use events_model::{NanoUsd, RegionId};
use http::{Method, StatusCode};
use proto::{episode::v1 as episode_pb, tenant::v1 as pb};
use serde_json::json;
use tonic::Code;

use super::{
    arguments::{Common, Listen},
    catch_up,
    client::Client,
    clock::Stopwatch,
    failure::{Failure, Problem},
    output::{Output, note},
    request::{self, Answer},
    serve::{dump, say_draining, start_telemetry},
    signal::Signals,
    timeline,
};
use crate::{
    auth::secret_file,
    config::{self, Config, Environment, Model, Secret, Telemetry, Upstream},
    platform::Platform,
    simulate::{self, Simulator},
};

/// The tenant that is created.
const TENANT: &str = "demo";
/// Its plan.
const PLAN: &str = "pro";
/// The upstream that is added.
const UPSTREAM: &str = "sim";
/// The model that the first request names.
const MODEL: &str = "sim-small";
/// File in the data directory that keeps the key.
const KEY_FILE: &str = "dev-key";
/// Where the simulator tells what it billed.
const USAGE_PATH: &str = "/v1/usage/{request_id}";

/// What is told once everything runs.
struct Ready {
    http: SocketAddr,
    grpc: SocketAddr,
    key: Secret,
    took: Duration,
}

/// Runs everything until a signal.
pub(super) async fn run(
    common: &Common,
    listen: &Listen,
    output: &mut Output,
    started: Stopwatch,
) -> Result<(), Failure> {
    let environment = Environment::read();
    let mut config = config::load(&listen.flags(common), &environment)?;
    if listen.dump_config {
        return dump(&config, output);
    }
    quiet(&mut config.telemetry);
    start_telemetry(&config.telemetry)?;
    let mut signals = Signals::install()?;
    let simulator = Simulator::start(simulate::Options::default(), ([127, 0, 0, 1], 0).into()).await;
    let simulator = simulator.map_err(|error| Problem::new("start the simulated upstream").because(&error))?;
    add_upstream(&mut config, simulator.address())?;
    let (data, drain_timeout) = (config.data.clone(), config.requests.drain_timeout);
    let platform = Platform::start_with(config, environment.admin_token(), &*catch_up::shown()).await?;
    let token = Secret::new(platform.admin_token().to_owned());
    let client = Client::connect_to(platform.grpc_address(), &token).await?;
    ensure_tenant(&client).await?;
    let (http, grpc) = (reachable(platform.http_address()), reachable(platform.grpc_address()));
    let key = ensure_key(&client, http, &data).await?;
    let ready = Ready { http, grpc, key, took: started.elapsed() };
    show_one_request(&client, &ready, &data, output).await?;
    output.flush()?;

    signals.next().await;
    say_draining(drain_timeout);
    drop(client);
    signals
        .or_at_once(async {
            platform.shutdown().await;
            simulator.shutdown().await;
        })
        .await;
    Ok(())
}

/// Log lines between the lines of the tour would only confuse; whoever sets another level gets it.
fn quiet(telemetry: &mut Telemetry) {
    if *telemetry == Telemetry::default() {
        "warn".clone_into(&mut telemetry.filter);
    }
}

fn add_upstream(config: &mut Config, simulator: SocketAddr) -> Result<(), Failure> {
    if config.upstreams.iter().any(|upstream| upstream.name == UPSTREAM) {
        let problem = Problem::new(format!("the configuration has an upstream {UPSTREAM:?}, which dev adds itself"));
        return Err(problem.misuse().code(config::Error::CODE).hint("give yours another name").into());
    }
    let model = |name: &str, input_nano: i64, output_nano: i64| Model {
        name: name.to_owned(),
        upstream_model: None,
        input_usd_per_mtok: NanoUsd(input_nano),
        output_usd_per_mtok: NanoUsd(output_nano),
        completion_tokens_default: 256,
        completion_tokens_max: 4_096,
    };
    let region: RegionId = config.region.clone();
    let models = vec![model(MODEL, 150_000_000, 600_000_000), model("sim-large", 2_500_000_000, 10_000_000_000)];
    let mut upstream = Upstream::new(UPSTREAM, format!("http://{simulator}/v1"), region, models);
    upstream.usage_lookup_path = Some(USAGE_PATH.to_owned());
    config.upstreams.push(upstream);
    Ok(())
}

async fn ensure_tenant(client: &Client) -> Result<(), Failure> {
    let request = pb::CreateTenantRequest {
        tenant_id: TENANT.to_owned(),
        display_name: "Demo".to_owned(),
        plan: PLAN.to_owned(),
    };
    match client.tenants().create_tenant(request).await {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::AlreadyExists => Ok(()),
        Err(status) => Err(status.into()),
    }
}

/// The key of the run before, if it still opens the door; else a new one.
async fn ensure_key(client: &Client, http: SocketAddr, data: &Path) -> Result<Secret, Failure> {
    let path = data.join(KEY_FILE);
    if let Ok(text) = fs::read_to_string(&path) {
        let key = text.trim();
        let answer = request::send(http, Method::GET, "/v1/models", Some(key), None).await?;
        if answer.status == StatusCode::OK {
            return Ok(Secret::new(key.to_owned()));
        }
    }
    let request = pb::IssueApiKeyRequest { tenant_id: TENANT.to_owned(), label: "dev".to_owned() };
    let secret = client.tenants().issue_api_key(request).await?.into_inner().secret;
    secret_file::save(&path, &format!("{secret}\n")).map_err(|error| Problem::of(&error))?;
    Ok(Secret::new(secret))
}

async fn show_one_request(client: &Client, ready: &Ready, data: &Path, output: &mut Output) -> Result<(), Failure> {
    if !output.json() {
        let took = ready.took.as_millis();
        output.line(format_args!("freehold is ready in {took} ms  (data in {})", data.display()))?;
        output.line(format_args!("  HTTP  http://{}", ready.http))?;
        output.line(format_args!("  gRPC  http://{}", ready.grpc))?;
        output.line("")?;
    }
    let body = howto::body();
    let answer = request::send(ready.http, Method::POST, howto::PATH, Some(ready.key.expose()), Some(body)).await?;
    let episode = episode_of(client, &answer).await?;
    if output.json() {
        return output.json_line(&json!({
            "ready_us": u64::try_from(ready.took.as_micros()).unwrap_or(u64::MAX),
            "http": ready.http.to_string(),
            "grpc": ready.grpc.to_string(),
            "tenant": TENANT,
            "key": ready.key.expose(),
            "answer": timeline::embedded(&String::from_utf8_lossy(&answer.body)),
            "episode": episode.as_ref().map(timeline::episode_json),
        }));
    }
    match &episode {
        Some(episode) => {
            output.line("one request went through; this is what the log says of it:")?;
            output.line("")?;
            timeline::print(episode, output)?;
        }
        None => note(format_args!(
            "the first request was answered with {}: {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        )),
    }
    howto::print(ready, data, output)
}

/// The episode of an answer that is a success.
async fn episode_of(client: &Client, answer: &Answer) -> Result<Option<episode_pb::Episode>, Failure> {
    let id = answer.headers.get("x-request-id").and_then(|id| id.to_str().ok());
    let Some(id) = id.filter(|_| answer.status.is_success()) else { return Ok(None) };
    let request = episode_pb::GetEpisodeRequest { episode_id: id.to_owned() };
    Ok(Some(client.episodes().get_episode(request).await?.into_inner()))
}

/// Where a listener is reached from this machine.
fn reachable(mut listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        listen.set_ip(if listen.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    listen
}
