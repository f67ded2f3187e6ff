//! Configuration: defaults, then `freehold.toml`, then `FREEHOLD_*`, then flags; and the only reader of the environment.
//!
//! Invariants: an unknown key is an error wherever it comes from; a [`Config`] that [`load`] returned is inside every
//! limit of [`limit`]; it holds no secret (keys of upstreams are named, and read when they are needed), so that all
//! of it can be printed. It deliberately does not follow changes of the file while the server runs.

mod check;
mod environment;
mod error;
pub mod limit;
mod load;
mod secret;
pub mod unit;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use events_model::{NanoUsd, RegionId};
use serde::{Deserialize, Serialize};

pub use self::{
    environment::Environment,
    error::Error,
    load::{FILE_NAME, Flags, load},
    secret::{KeyError, Secret},
};

/// Where gRPC listens when nothing else is said.
pub const GRPC_PORT: u16 = 7600;
/// Where HTTP listens when nothing else is said.
pub const HTTP_PORT: u16 = 7601;

/// Everything that can be set. Names are those of the file; units are in the values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The data directory, relative to the working directory. Since v0.1.
    pub data: PathBuf,
    /// The region this process decides for. Since v0.1.
    pub region: RegionId,
    /// The zone of tenants that are created here. Since v0.1.
    pub zone: String,
    /// The gRPC listener.
    pub grpc: Grpc,
    /// The HTTP listener.
    pub http: Http,
    /// The event log.
    pub log: Log,
    /// More nodes than this one.
    pub cluster: Cluster,
    /// Actors.
    pub actors: Actors,
    /// Model requests.
    pub requests: Requests,
    /// What the process says about itself.
    pub telemetry: Telemetry,
    /// Where model requests are sent, in the order of the file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<Upstream>,
}

/// The gRPC listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Grpc {
    /// Address and port; port 0 chooses a free one. Since v0.1.
    pub listen: SocketAddr,
    /// `host:port` where the other nodes reach it; empty = the address it listens at. Since v0.1.
    pub advertise: String,
}

/// The HTTP listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Address and port; port 0 chooses a free one. Since v0.1.
    pub listen: SocketAddr,
    /// Largest request body. Since v0.1.
    #[serde(with = "unit::bytes")]
    pub body_bytes_max: usize,
    /// Most connections at once; gRPC's listener takes as many of its own. Since v0.1.
    pub connections_max: usize,
    /// Longest wait for the head of a request, and for the beginning of a gRPC connection. Since v0.1.
    #[serde(with = "unit::duration")]
    pub header_timeout: Duration,
}

/// The event log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Size of a segment file. Since v0.1.
    #[serde(with = "unit::bytes")]
    pub segment_bytes: u64,
    /// How far the log's last time may be ahead of the machine's clock at a start. Since v0.1.
    #[serde(with = "unit::duration")]
    pub clock_ahead_max: Duration,
}

/// This process as one of several nodes over NATS JetStream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cluster {
    /// Addresses of the NATS servers, with commas between them; empty = one process with an embedded log. Since v0.1.
    pub nats: String,
    /// Name of this node, unique in its region. Since v0.1.
    pub node: String,
    /// NATS servers that hold the log: 1, 3 or 5. Since v0.1.
    pub replicas: usize,
    /// Shards of the region; the same on all nodes, for ever. Since v0.1.
    pub shards: u32,
    /// How long a node that is silent keeps its shards; the same on all nodes. Since v0.1.
    #[serde(with = "unit::duration")]
    pub lease: Duration,
    /// User of NATS. Since v0.1.
    pub user: String,
    /// Environment variable that holds the user's password; not set there = none is sent. Since v0.1.
    pub password_env: String,
    /// File that holds the user's password, instead of the variable. Since v0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Environment variable that holds the cluster's secret, under which nodes encrypt what they share through the NATS
    /// servers; not set there = it lies there as it is. Since v0.1.
    pub secret_env: String,
    /// File that holds the cluster's secret, instead of the variable. Since v0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// File with a user JWT and its key (`.creds`), instead of user and password. Since v0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<PathBuf>,
    /// Certificates (PEM) to trust beside those of the system. Since v0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

impl Cluster {
    /// Whether there are other nodes.
    pub const fn is_on(&self) -> bool {
        !self.nats.is_empty()
    }
}

/// Actors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Actors {
    /// Most messages that wait for one actor. Since v0.1.
    pub mailbox_len_max: usize,
    /// How long an actor stays in memory after its last message. Since v0.1.
    #[serde(with = "unit::duration")]
    pub idle_after: Duration,
    /// Events between two snapshots of an actor. Since v0.1.
    pub snapshot_every: u64,
    /// Threads that run actors; 0 = one a core. Since v0.1.
    pub arbiters: usize,
}

/// Model requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Requests {
    /// Most model requests at once, all tenants together. Since v0.1.
    pub in_flight_max: usize,
    /// How much longer than its upstream call a reservation may live. Since v0.1.
    #[serde(with = "unit::duration")]
    pub reservation_grace: Duration,
    /// How long a shutdown waits for requests in flight. Since v0.1.
    #[serde(with = "unit::duration")]
    pub drain_timeout: Duration,
}

/// What the process says about itself, on standard error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// For people or for programs. Since v0.1.
    pub format: LogFormat,
    /// Levels, in the form of `tracing`: `info`, `warn,server=debug`. Since v0.1.
    pub filter: String,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// An OpenAI-compatible service that model requests are sent to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Its name in the price book, in episodes and metrics. Since v0.1.
    pub name: String,
    /// `https://host/v1`, `https://host` or `http://...`. Since v0.1.
    pub base_url: String,
    /// The region it answers in. Since v0.1.
    #[serde(default = "region_default")]
    pub region: RegionId,
    /// Environment variable that holds its API key. Since v0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// File that holds its API key. Since v0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<PathBuf>,
    /// Name of the parameter that bounds an answer there. Since v0.1.
    #[serde(default = "max_tokens_parameter_default")]
    pub max_tokens_parameter: String,
    /// Where it tells the usage of one request, with `{request_id}` in it. Since v0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage_lookup_path: Option<String>,
    /// Certificates (PEM) to trust instead of the public ones. Since v0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Longest wait for a connection. Since v0.1.
    #[serde(default = "seconds::<5>", with = "unit::duration")]
    pub connect_timeout: Duration,
    /// Longest wait for the first byte of an answer. Since v0.1.
    #[serde(default = "seconds::<60>", with = "unit::duration")]
    pub first_byte_timeout: Duration,
    /// Longest pause inside an answer. Since v0.1.
    #[serde(default = "seconds::<30>", with = "unit::duration")]
    pub idle_timeout: Duration,
    /// Longest answer. Since v0.1.
    #[serde(default = "seconds::<600>", with = "unit::duration")]
    pub total_timeout: Duration,
    /// What it serves.
    #[serde(default)]
    pub models: Vec<Model>,
}

/// A model as an upstream serves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// As clients name it. Since v0.1.
    pub name: String,
    /// As the upstream names it; absent = the same. Since v0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_model: Option<String>,
    /// US dollars per million prompt tokens, to nine decimals. Since v0.1.
    #[serde(with = "unit::usd")]
    pub input_usd_per_mtok: NanoUsd,
    /// US dollars per million completion tokens, to nine decimals. Since v0.1.
    #[serde(with = "unit::usd")]
    pub output_usd_per_mtok: NanoUsd,
    /// Bound on an answer when the client sets none, tokens. Since v0.1.
    #[serde(default = "completion_tokens_default")]
    pub completion_tokens_default: u64,
    /// Bound on an answer whatever the client sets, tokens. Since v0.1.
    #[serde(default = "completion_tokens_max")]
    pub completion_tokens_max: u64,
}

impl Upstream {
    /// An upstream with the defaults of everything that need not be said.
    pub fn new(name: &str, base_url: String, region: RegionId, models: Vec<Model>) -> Self {
        Self {
            name: name.to_owned(),
            base_url,
            region,
            api_key_env: None,
            api_key_file: None,
            max_tokens_parameter: max_tokens_parameter_default(),
            usage_lookup_path: None,
            ca_file: None,
            connect_timeout: seconds::<5>(),
            first_byte_timeout: seconds::<60>(),
            idle_timeout: seconds::<30>(),
            total_timeout: seconds::<600>(),
            models,
        }
    }
}

impl Model {
    /// The name at the upstream.
    pub fn upstream_model(&self) -> &str {
        self.upstream_model.as_deref().unwrap_or(&self.name)
    }
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

const fn seconds<const SECONDS: u64>() -> Duration {
    Duration::from_secs(SECONDS)
}

const fn completion_tokens_default() -> u64 {
    1_024
}

const fn completion_tokens_max() -> u64 {
    16_384
}

fn max_tokens_parameter_default() -> String {
    limit::MAX_TOKENS_PARAMETERS[0].to_owned()
}

#[expect(clippy::expect_used, reason = "a constant name; a test loads the default")]
fn region_default() -> RegionId {
    RegionId::new("local").expect("a name")
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data: PathBuf::from("./freehold-data"),
            region: region_default(),
            zone: "local".to_owned(),
            grpc: Grpc::default(),
            http: Http::default(),
            log: Log::default(),
            cluster: Cluster::default(),
            actors: Actors::default(),
            requests: Requests::default(),
            telemetry: Telemetry::default(),
            upstreams: Vec::new(),
        }
    }
}

impl Default for Grpc {
    fn default() -> Self {
        Self { listen: loopback(GRPC_PORT), advertise: String::new() }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: loopback(HTTP_PORT),
            body_bytes_max: 4 * 1024 * 1024,
            connections_max: 10_000,
            header_timeout: Duration::from_secs(10),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { segment_bytes: 64 * 1024 * 1024, clock_ahead_max: Duration::from_secs(300) }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            nats: String::new(),
            node: String::new(),
            replicas: 1,
            shards: 256,
            lease: Duration::from_millis(1_500),
            user: "freehold".to_owned(),
            password_env: environment::NATS_PASSWORD.to_owned(),
            password_file: None,
            secret_env: environment::CLUSTER_SECRET.to_owned(),
            secret_file: None,
            credentials_file: None,
            ca_file: None,
        }
    }
}

impl Default for Actors {
    fn default() -> Self {
        Self { mailbox_len_max: 1_024, idle_after: Duration::from_secs(300), snapshot_every: 1_000, arbiters: 0 }
    }
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            in_flight_max: 4_096,
            reservation_grace: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".to_owned() }
    }
}

impl Config {
    /// The whole configuration as a file that would give it; it holds no secret.
    ///
    /// # Errors
    /// A path is not UTF-8.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

#[cfg(test)]
mod tests;
