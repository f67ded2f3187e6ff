//! Requests through HTTP: the platform with the simulator at zero latency, next to calling the simulator directly.
//!
//! Simulator and platform are processes of their own; the load generator is this one. Afterwards the tokens that
//! tenants were charged for must be the tokens that the simulator billed, to the last one.

use std::{ffi::OsStr, fs, net::SocketAddr, time::Duration};

use http::Method;
use proto::tenant::v1 as pb;
use serde::{Deserialize, Serialize};

use super::{
    child::Server,
    figure::{Figure, median, show_ms, show_rate},
    load::{self, Answered, Load, Usage},
    scratch::Scratch,
};
use crate::{
    auth::secret_file::ADMIN_TOKEN_FILE,
    cli::{
        arguments::BenchHttp,
        client::Client,
        clock::Stopwatch,
        failure::{Failure, Problem},
        output::{Column, Output, note},
        request, show,
    },
    config::{Config, Model, Secret, Upstream, unit::parse_usd},
};

/// Tenants that share the load: one tenant's plan allows 1,000 requests a second.
const TENANTS: usize = 32;
const PLAN: &str = "enterprise";
const MODEL: &str = "sim-small";
/// Longest wait for the last reservation to settle.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks whether it has.
const SETTLE_POLL: Duration = Duration::from_millis(20);

/// What a process says when it is ready.
#[derive(Debug, Deserialize)]
struct Ready {
    http: SocketAddr,
    grpc: Option<SocketAddr>,
}

/// One kind of answer, both ways.
#[derive(Debug, Serialize)]
struct Compared {
    answers: &'static str,
    direct: Figure,
    freehold: Figure,
    /// Freehold by direct, of requests a second.
    ratio: f64,
    /// CPU time of the platform's process a request, microseconds.
    freehold_cpu_us: f64,
}

/// Everything that runs.
struct Bench {
    simulator: Server,
    simulator_address: SocketAddr,
    platform: Server,
    platform_address: SocketAddr,
    client: Client,
    keys: Vec<String>,
}

/// Measures, checks and prints.
pub(super) fn run(options: &BenchHttp, scratch: &Scratch, output: &mut Output) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Problem::new("start the runtime").because(&error))?;
    runtime.block_on(async {
        let bench = Bench::start(scratch).await?;
        let mut billed = Usage::default();
        let mut requests = 0;
        let mut compared = Vec::new();
        for (answers, streaming) in [("plain", false), ("streaming", true)] {
            compared.push(bench.compare(options, answers, streaming, &mut billed, &mut requests).await?);
        }
        bench.check_settled(billed, requests).await?;
        drop(bench.client);
        bench.platform.stop()?;
        bench.simulator.stop()?;
        print(options, &compared, requests, billed, output)
    })
}

impl Bench {
    async fn start(scratch: &Scratch) -> Result<Self, Failure> {
        let (simulator, at): (_, Ready) =
            Server::start(&["simulate", "--listen", "127.0.0.1:0", "--json"].map(OsStr::new))?;
        let data = scratch.path("http");
        let config_file = scratch.path("freehold.toml");
        let config = configuration(&data, at.http)?;
        fs::write(&config_file, config).map_err(|error| Problem::new("write the configuration").because(&error))?;
        let [serve, json, config] = ["serve", "--json", "--config"].map(OsStr::new);
        let (platform, ready): (_, Ready) = Server::start(&[serve, json, config, config_file.as_os_str()])?;
        let token = fs::read_to_string(data.join(ADMIN_TOKEN_FILE));
        let token = token.map_err(|error| Problem::new("read the admin token").because(&error))?;
        let grpc = ready.grpc.ok_or_else(|| Problem::new("the server does not say where gRPC listens"))?;
        let client = Client::connect_to(grpc, &Secret::new(token.trim().to_owned())).await?;
        let mut keys = Vec::new();
        for number in 0..TENANTS {
            keys.push(tenant_with_key(&client, number).await?);
        }
        Ok(Self { simulator, simulator_address: at.http, platform, platform_address: ready.http, client, keys })
    }

    /// Alternates between both ways; adds what the simulator billed for what came through the platform.
    async fn compare(
        &self,
        options: &BenchHttp,
        answers: &'static str,
        streaming: bool,
        billed: &mut Usage,
        requests: &mut u64,
    ) -> Result<Compared, Failure> {
        let (mut direct, mut through, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
        for round in 1..=options.rounds {
            note(format_args!("http: {answers}, round {round} of {}", options.rounds));
            direct.push(load::run(self.load(options, streaming, self.simulator_address, &[])).await?.figure);
            let before = (self.billed().await?, self.platform.cpu_seconds());
            let load = self.load(options, streaming, self.platform_address, &self.keys);
            let answered = load::run(load).await?;
            let used = self.billed().await?.minus(before.0);
            check_reported(&answered, used)?;
            *billed = billed.plus(used);
            *requests += answered.requests;
            cpu.push((self.platform.cpu_seconds() - before.1) * 1e6 / f64_of(answered.requests).max(1.0));
            through.push(answered.figure);
        }
        let (direct, freehold) = (Figure::median(&direct), Figure::median(&through));
        let ratio = freehold.per_second / direct.per_second;
        Ok(Compared { answers, direct, freehold, ratio, freehold_cpu_us: median(cpu) })
    }

    fn load(&self, options: &BenchHttp, streaming: bool, address: SocketAddr, keys: &[String]) -> Load {
        Load {
            address,
            connections: options.connections as usize,
            length: Duration::from_secs_f64(options.seconds),
            streaming,
            model: MODEL,
            keys: keys.to_vec(),
        }
    }

    /// What the simulator has billed so far.
    async fn billed(&self) -> Result<Usage, Failure> {
        let answer = request::send(self.simulator_address, Method::GET, "/stats", None, None).await?;
        serde_json::from_slice(&answer.body)
            .map_err(|error| Problem::new("read the counts of the simulator").because(&error).into())
    }

    /// Every tenant's sums must add up to what the simulator billed, with nothing left open.
    async fn check_settled(&self, billed: Usage, requests: u64) -> Result<(), Failure> {
        let started = Stopwatch::start();
        loop {
            let (mut settled, mut count, mut open) = (Usage::default(), 0, 0);
            for number in 0..TENANTS {
                let request = pb::GetTenantRequest { tenant_id: tenant_id(number) };
                let tenant = self.client.tenants().get_tenant(request).await?.into_inner();
                count += tenant.requests_settled;
                open += tenant.open_reservations;
                let (prompt_tokens, completion_tokens) = (tenant.prompt_tokens, tenant.completion_tokens);
                settled = settled.plus(Usage { prompt_tokens, completion_tokens });
            }
            if open == 0 && (settled, count) == (billed, requests) {
                return Ok(());
            }
            if started.elapsed() > SETTLE_TIMEOUT {
                return Err(Problem::new(format!(
                    "{count} requests settled with {settled:?} and {open} open, but {requests} were answered and {billed:?} billed"
                ))
                .into());
            }
            tokio::time::sleep(SETTLE_POLL).await;
        }
    }
}

/// What clients were told must be what the simulator billed.
fn check_reported(answered: &Answered, billed: Usage) -> Result<(), Failure> {
    if answered.usage == billed {
        return Ok(());
    }
    Err(Problem::new(format!("answers reported {:?}, the simulator billed {billed:?}", answered.usage)).into())
}

fn configuration(data: &std::path::Path, simulator: SocketAddr) -> Result<String, Failure> {
    let usd = |text| parse_usd(text).map_err(|error| Problem::of(&error));
    let mut config = Config { data: data.to_owned(), ..Config::default() };
    config.grpc.listen.set_port(0);
    config.http.listen.set_port(0);
    "warn".clone_into(&mut config.telemetry.filter);
    let model = Model {
        name: MODEL.to_owned(),
        upstream_model: None,
        input_usd_per_mtok: usd("0.15")?,
        output_usd_per_mtok: usd("0.60")?,
        completion_tokens_default: 1_024,
        completion_tokens_max: 16_384,
    };
    let region = config.region.clone();
    config.upstreams.push(Upstream::new("sim", format!("http://{simulator}/v1"), region, vec![model]));
    config.to_toml().map_err(|error| Problem::new("write the configuration").because(&error).into())
}

fn tenant_id(number: usize) -> String {
    format!("bench-{number:02}")
}

async fn tenant_with_key(client: &Client, number: usize) -> Result<String, Failure> {
    let mut tenants = client.tenants();
    let (tenant_id, plan) = (tenant_id(number), PLAN.to_owned());
    let request = pb::CreateTenantRequest { tenant_id: tenant_id.clone(), display_name: tenant_id.clone(), plan };
    tenants.create_tenant(request).await?;
    let request = pb::IssueApiKeyRequest { tenant_id, label: "bench".to_owned() };
    Ok(tenants.issue_api_key(request).await?.into_inner().secret)
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
const fn f64_of(count: u64) -> f64 {
    count as f64
}

fn print(
    options: &BenchHttp,
    compared: &[Compared],
    requests: u64,
    billed: Usage,
    output: &mut Output,
) -> Result<(), Failure> {
    if output.json() {
        return output.document(&serde_json::json!({
            "connections": options.connections,
            "results": compared,
            "requests_settled": requests,
            "prompt_tokens": billed.prompt_tokens,
            "completion_tokens": billed.completion_tokens,
        }));
    }
    output.line(format_args!(
        "chat requests on {} connections, simulator at zero latency, medians",
        options.connections
    ))?;
    output.line("")?;
    let columns = [
        Column::Left("answers"),
        Column::Left("way"),
        Column::Right("requests/s"),
        Column::Right("p50 ms"),
        Column::Right("p99 ms"),
        Column::Right("p99.9 ms"),
        Column::Right("ratio"),
        Column::Right("cpu us/request"),
    ];
    let row = |answers: &str, way: &str, figure: &Figure, ratio: String, cpu: String| {
        vec![
            answers.to_owned(),
            way.to_owned(),
            show_rate(figure.per_second),
            show_ms(figure.p50_us),
            show_ms(figure.p99_us),
            show_ms(figure.p999_us),
            ratio,
            cpu,
        ]
    };
    let rows = compared.iter().flat_map(|one| {
        let (ratio, cpu) = (format!("{:.2}", one.ratio), format!("{:.0}", one.freehold_cpu_us));
        [
            row(one.answers, "direct", &one.direct, String::new(), String::new()),
            row(one.answers, "freehold", &one.freehold, ratio, cpu),
        ]
    });
    output.table(&columns, rows)?;
    output.line(format_args!(
        "checked: {} requests settled with {} + {} tokens, exactly what the simulator billed",
        show::count(requests),
        show::count(billed.prompt_tokens),
        show::count(billed.completion_tokens)
    ))
}
