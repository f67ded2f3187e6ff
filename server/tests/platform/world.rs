//! A platform, its upstream, a tenant with a key, and clients; and what every test asks of them.

use std::{net::SocketAddr, path::Path, time::Duration};

use bytes::Bytes;
use events_model::NanoUsd;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use proto::{
    episode::v1::{self as episode_pb, episodes_client::EpisodesClient},
    tenant::v1::{self as tenant_pb, tenants_client::TenantsClient},
};
use serde_json::{Value, json};
use server::{
    config::{self, Config},
    platform::Platform,
    simulate::{Options, Simulator},
};
use tempfile::TempDir;
use tonic::{
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const TENANT: &str = "acme";
/// Nano-USD per million tokens.
pub(crate) const INPUT: i64 = 150_000_000;
pub(crate) const OUTPUT: i64 = 600_000_000;

pub(crate) struct World {
    pub(crate) directory: TempDir,
    pub(crate) simulator: Simulator,
    pub(crate) config: Config,
    pub(crate) platform: Platform,
    pub(crate) key: String,
    pub(crate) key_id: String,
    pub(crate) client: Client<HttpConnector, Full<Bytes>>,
    pub(crate) channel: Channel,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Adds the admin token to each call.
#[derive(Debug, Clone)]
pub(crate) struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

pub(crate) type Admin = InterceptedService<Channel, Bearer>;

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {:?}", self.body))
    }

    /// The error in OpenAI's form: every member is there.
    pub(crate) fn error(&self) -> Value {
        let body = self.json();
        let error = body["error"].clone();
        for member in ["message", "type", "param", "code"] {
            assert!(error.get(member).is_some(), "{member} is missing in {body}");
        }
        assert!(error["message"].as_str().unwrap().len() > 5);
        error
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no header {name}: {:?}", self.headers)).to_str().unwrap()
    }

    pub(crate) fn request_id(&self) -> &str {
        self.header("x-request-id")
    }
}

/// A chat request of a few words.
pub(crate) fn chat(max_tokens: u64) -> Value {
    json!({
        "model": "sim-small",
        "messages": [{"role": "user", "content": "What does a freeholder hold?"}],
        "max_tokens": max_tokens,
    })
}

/// The same, streamed.
pub(crate) fn streamed(max_tokens: u64, include_usage: bool) -> Value {
    let mut body = chat(max_tokens);
    body["stream"] = json!(true);
    body["stream_options"] = json!({ "include_usage": include_usage });
    body
}

/// Waits until something is there.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let waiting = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

pub(crate) fn config(data: &Path, upstream: SocketAddr) -> Config {
    let mut config = Config { data: data.to_owned(), ..Config::default() };
    config.http.listen = ([127, 0, 0, 1], 0).into();
    config.grpc.listen = ([127, 0, 0, 1], 0).into();
    config.log.segment_bytes = 4 * 1024 * 1024;
    config.actors.arbiters = 1;
    config.requests.drain_timeout = Duration::from_secs(4);
    let model = |name: &str| config::Model {
        name: name.to_owned(),
        upstream_model: None,
        input_usd_per_mtok: NanoUsd(INPUT),
        output_usd_per_mtok: NanoUsd(OUTPUT),
        completion_tokens_default: 64,
        completion_tokens_max: 1_000,
    };
    let models = vec![model("sim-small"), model("sim-large")];
    let mut upstream = config::Upstream::new("sim", format!("http://{upstream}/v1"), config.region.clone(), models);
    upstream.usage_lookup_path = Some("/v1/usage/{request_id}".to_owned());
    upstream.first_byte_timeout = Duration::from_secs(15);
    upstream.idle_timeout = Duration::from_secs(1);
    upstream.total_timeout = Duration::from_secs(60);
    config.upstreams.push(upstream);
    config
}

impl World {
    /// A world with the plan `pro` and an upstream that behaves like this.
    pub(crate) async fn with(options: Options) -> Self {
        Self::configured(options, "pro", |_| {}).await
    }

    pub(crate) async fn new() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn configured(options: Options, plan: &str, change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let simulator = Simulator::start(options, ([127, 0, 0, 1], 0).into()).await.unwrap();
        let mut config = config(directory.path(), simulator.address());
        change(&mut config);
        let platform = Platform::start(config.clone()).await.unwrap();
        let channel = channel(&platform);
        let client = client();
        let (key, key_id) = (String::new(), String::new());
        let mut world = Self { directory, simulator, config, platform, key, key_id, client, channel };
        let request = tenant_pb::CreateTenantRequest {
            tenant_id: TENANT.to_owned(),
            display_name: "Acme".to_owned(),
            plan: plan.to_owned(),
        };
        world.tenants().create_tenant(request).await.unwrap();
        (world.key, world.key_id) = world.issue_key().await;
        world
    }

    pub(crate) async fn issue_key(&self) -> (String, String) {
        let request = tenant_pb::IssueApiKeyRequest { tenant_id: TENANT.to_owned(), label: "test".to_owned() };
        let issued = self.tenants().issue_api_key(request).await.unwrap().into_inner();
        (issued.secret, issued.api_key.unwrap().key_id)
    }

    /// Ends the platform politely and starts it again on the same data.
    pub(crate) async fn restart(self, change: impl FnOnce(&mut Config)) -> Self {
        let Self { directory, simulator, mut config, platform, key, key_id, client, channel } = self;
        drop(channel);
        platform.shutdown().await;
        change(&mut config);
        let platform = Platform::start(config.clone()).await.unwrap();
        let channel = self::channel(&platform);
        Self { directory, simulator, config, platform, key, key_id, client, channel }
    }

    pub(crate) fn bearer(&self) -> Bearer {
        Bearer(format!("Bearer {}", self.platform.admin_token()).parse().unwrap())
    }

    pub(crate) fn tenants(&self) -> TenantsClient<Admin> {
        TenantsClient::new(InterceptedService::new(self.channel.clone(), self.bearer()))
    }

    pub(crate) fn episodes(&self) -> EpisodesClient<Admin> {
        EpisodesClient::new(InterceptedService::new(self.channel.clone(), self.bearer()))
    }

    pub(crate) async fn tenant(&self) -> tenant_pb::Tenant {
        let request = tenant_pb::GetTenantRequest { tenant_id: TENANT.to_owned() };
        self.tenants().get_tenant(request).await.unwrap().into_inner()
    }

    /// The episode of a request once nothing of it is open.
    pub(crate) async fn episode(&self, request_id: &str) -> episode_pb::Episode {
        eventually("the episode ends", || async {
            let request = episode_pb::GetEpisodeRequest { episode_id: request_id.to_owned() };
            let episode = self.episodes().get_episode(request).await.ok()?.into_inner();
            (episode.end_state != "open").then_some(episode)
        })
        .await
    }

    /// What the upstream billed for a request: prompt and completion tokens.
    pub(crate) async fn billed(&self, request_id: &str) -> (u64, u64) {
        let uri = format!("http://{}/v1/usage/{request_id}", self.simulator.address());
        let reply = self.send(Request::get(uri).body(Full::default()).unwrap()).await;
        if reply.status == StatusCode::NOT_FOUND {
            return (0, 0);
        }
        let usage = reply.json();
        assert_ne!(usage["status"], "running");
        if usage["billed"] == false {
            return (0, 0);
        }
        (usage["prompt_tokens"].as_u64().unwrap(), usage["completion_tokens"].as_u64().unwrap())
    }

    /// Asserts that a request ended like this, that it settled for what the upstream billed, and that nothing is held.
    pub(crate) async fn assert_settled(&self, request_id: &str, end_state: &str) -> episode_pb::Episode {
        let episode = self.episode(request_id).await;
        assert_eq!(episode.end_state, end_state, "{episode:#?}");
        assert_eq!((episode.prompt_tokens, episode.completion_tokens), self.billed(request_id).await, "{episode:#?}");
        assert_eq!(self.tenant().await.open_reservations, 0);
        episode
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.platform.http_address())
    }

    pub(crate) fn post(&self, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
        Request::post(self.url("/v1/chat/completions"))
            .header("authorization", format!("Bearer {}", self.key))
            .header("content-type", "application/json")
            .body(Full::new(body.into()))
            .unwrap()
    }

    /// Sends a request and reads the answer to its end.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Reply {
        let response = tokio::time::timeout(PATIENCE, self.client.request(request)).await.unwrap().unwrap();
        let (parts, body) = response.into_parts();
        let body = tokio::time::timeout(PATIENCE, body.collect()).await.unwrap().unwrap().to_bytes();
        Reply { status: parts.status, headers: parts.headers, body }
    }

    pub(crate) async fn chat(&self, body: &Value) -> Reply {
        self.send(self.post(body.to_string())).await
    }

    /// Sends a request and leaves the body to the caller.
    pub(crate) async fn open(&self, body: &Value) -> Response<Incoming> {
        let request = self.post(body.to_string());
        tokio::time::timeout(PATIENCE, self.client.request(request)).await.unwrap().unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        let request = Request::get(self.url(path)).header("authorization", format!("Bearer {}", self.key));
        self.send(request.body(Full::default()).unwrap()).await
    }
}

pub(crate) fn client() -> Client<HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).build_http()
}

pub(crate) fn channel(platform: &Platform) -> Channel {
    Endpoint::from_shared(format!("http://{}", platform.grpc_address())).unwrap().connect_lazy()
}

/// The data of server-sent events.
pub(crate) fn events(body: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(body).unwrap();
    assert!(text.is_empty() || text.ends_with("\n\n"), "{text:?}");
    text.split("\n\n")
        .filter(|event| !event.is_empty())
        .map(|event| event.strip_prefix("data: ").unwrap().to_owned())
        .collect()
}

/// Reads a body until it holds so many events.
pub(crate) async fn read_events(body: &mut Incoming, count: usize) -> Vec<u8> {
    let mut read = Vec::new();
    let reading = async {
        while read.windows(2).filter(|pair| pair == b"\n\n").count() < count {
            let frame = body.frame().await.unwrap().unwrap();
            read.extend_from_slice(&frame.into_data().unwrap());
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.unwrap();
    read
}
