//! The command line as data. Help texts are what people read first; each says what, in which unit, and the default.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use events_model::{EpisodeId, KeyId, NanoUsd, RegionId, StreamId, TenantId, TimestampUs, tenant::Period};

use super::event_arguments::{Dlq, Events, Group};
use crate::{
    config::{Flags, LogFormat, unit},
    simulate,
};

/// Runs AI services for many tenants on one event log
///
/// Try `freehold dev`: it starts everything with a simulated model, sends one request and shows what happened.
#[derive(Debug, Parser)]
#[command(name = "freehold", version, disable_help_subcommand = true, max_term_width = 120)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Taken by every command.
#[derive(Debug, Args)]
pub(crate) struct Common {
    #[command(flatten)]
    pub(crate) flags: Flags,
    /// gRPC address of the server that commands talk to [default: $FREEHOLD_SERVER, else grpc.listen]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) server: Option<String>,
    /// Print one JSON document for programs instead of tables (JSON lines where it says so)
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start everything with a simulated model and a tenant `demo`, send one request, show it, stay up
    Dev(Listen),
    /// Run the server
    ///
    /// Operators show an admin token: that of $FREEHOLD_ADMIN_TOKEN if it is set (16 to 256 visible ASCII characters),
    /// else the one that the first start has written into the data directory.
    Serve(Listen),
    /// Run a simulated OpenAI-compatible upstream, seeded, with faults on request
    Simulate(Simulate),
    /// Create, list, show and change tenants
    #[command(subcommand)]
    Tenant(Tenant),
    /// Create and revoke API keys
    #[command(subcommand)]
    Key(Key),
    /// Look at what happened for a request
    #[command(subcommand)]
    Episode(Episode),
    /// Show the state of an actor, now or as it was
    State(State),
    /// Append, read and follow applications' events
    #[command(subcommand)]
    Events(Events),
    /// Create and look at persistent consumer groups
    #[command(subcommand)]
    Group(Group),
    /// Look at dead letters, deliver them again or give them up
    #[command(subcommand)]
    Dlq(Dlq),
    /// Check and test definitions of sagas; needs no server
    #[command(subcommand)]
    Saga(Saga),
    /// Look at the event log of a data directory; works beside a running server
    #[command(subcommand)]
    Log(Log),
    /// See the nodes of a region and their shards, have one hand over
    #[command(subcommand)]
    Cluster(Cluster),
    /// Measure this machine, each figure next to a reference
    #[command(subcommand)]
    Bench(Bench),
    /// Check configuration, data directory, ports, keys and NATS servers before a start; changes nothing
    Doctor(Doctor),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Saga {
    /// Check a definition and show its steps; exit code 1 and file:line:column for each fault
    Check {
        /// A definition, YAML or JSON
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Run a definition in a simulation: it must succeed, unwind from a failure at each step, and end the same when
    /// every step runs twice; exit code 1 if it does not
    Test {
        /// A definition, YAML or JSON; what its steps answer is written under its key `test`
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Cluster {
    /// List the nodes
    Nodes,
    /// Show which node decides for which shard
    Shards {
        /// One line a shard, with the epoch
        #[arg(long)]
        all: bool,
    },
    /// Have a node hand over all its shards and take no more until it is started again
    Drain {
        /// Its name
        #[arg(value_name = "NODE")]
        node: String,
    },
}

/// What `serve` and `dev` listen at and how they log.
#[derive(Debug, Args)]
pub(crate) struct Listen {
    /// Address of the gRPC listener; port 0 chooses a free one
    #[arg(long, value_name = "ADDRESS")]
    grpc_listen: Option<SocketAddr>,
    /// Address of the HTTP listener; port 0 chooses a free one
    #[arg(long, value_name = "ADDRESS")]
    http_listen: Option<SocketAddr>,
    /// Be a node of a cluster over these NATS servers: nats://host:4222, several with commas between them
    #[arg(long, value_name = "URLS")]
    nats: Option<String>,
    /// Name of this node, unique in its region
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Region that this process decides for
    #[arg(long, value_name = "REGION")]
    region: Option<RegionId>,
    /// Form of log lines
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// Levels of log lines, such as info or warn,server=debug
    #[arg(long, value_name = "FILTER")]
    log_filter: Option<String>,
    /// Print the configuration in force (defaults, file, environment, flags) and stop
    #[arg(long)]
    pub(crate) dump_config: bool,
}

/// As which node `doctor` looks at the NATS servers.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// NATS servers to check: nats://host:4222, several with commas between them
    #[arg(long, value_name = "URLS")]
    nats: Option<String>,
    /// Name of the node
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Its region
    #[arg(long, value_name = "REGION")]
    region: Option<RegionId>,
}

impl Doctor {
    /// All flags of the configuration.
    pub(crate) fn flags(&self, common: &Common) -> Flags {
        let (nats, node, region) = (self.nats.clone(), self.node.clone(), self.region.clone());
        Flags { nats, node, region, ..common.flags.clone() }
    }
}

impl Listen {
    /// All flags of the configuration.
    pub(crate) fn flags(&self, common: &Common) -> Flags {
        Flags {
            grpc_listen: self.grpc_listen,
            http_listen: self.http_listen,
            nats: self.nats.clone(),
            node: self.node.clone(),
            region: self.region.clone(),
            log_format: self.log_format,
            log_filter: self.log_filter.clone(),
            ..common.flags.clone()
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Simulate {
    /// Address to listen at; port 0 chooses a free one
    #[arg(long, default_value = "127.0.0.1:7602", value_name = "ADDRESS")]
    pub(crate) listen: SocketAddr,
    #[command(flatten)]
    pub(crate) options: simulate::Options,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Tenant {
    /// Register a tenant
    Create {
        /// 1 to 63 of a-z, 0-9 and '-', not at either end
        tenant: TenantId,
        /// Name for people [default: the tenant's id]
        #[arg(long, value_name = "TEXT")]
        display_name: Option<String>,
        /// free, pro or enterprise
        #[arg(long, default_value = "free", value_name = "PLAN")]
        plan: String,
    },
    /// List tenants with what they used
    List,
    /// Show a tenant: plan, budgets, keys, use
    Show {
        /// The tenant
        tenant: TenantId,
    },
    /// Move a tenant to another plan
    ///
    /// Ceilings that the old plan brought go with it; those set with set-budget stay.
    SetPlan {
        /// The tenant
        tenant: TenantId,
        /// free, pro or enterprise
        plan: String,
    },
    /// Set or lift the hard ceiling of a calendar period (UTC)
    #[command(group(clap::ArgGroup::new("ceiling").required(true).args(["limit", "no_limit"])))]
    SetBudget {
        /// The tenant
        tenant: TenantId,
        /// day, week, month or year
        #[arg(long, value_name = "PERIOD", value_parser = parse_period)]
        period: Period,
        /// US dollars, to nine decimals, such as 12.50
        #[arg(long, value_name = "USD", value_parser = parse_usd)]
        limit: Option<NanoUsd>,
        /// Lift the ceiling of this period
        #[arg(long)]
        no_limit: bool,
    },
    /// Refuse the tenant's requests from now on
    Suspend {
        /// The tenant
        tenant: TenantId,
        /// Why, for whoever looks later
        #[arg(long, default_value = "", value_name = "TEXT")]
        reason: String,
    },
    /// Admit the tenant's requests again
    Resume {
        /// The tenant
        tenant: TenantId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Create an API key; its secret is shown once
    Create {
        /// The tenant
        tenant: TenantId,
        /// What it is for
        #[arg(long, default_value = "", value_name = "TEXT")]
        label: String,
    },
    /// Revoke an API key
    Revoke {
        /// The tenant
        tenant: TenantId,
        /// The key's id, as `tenant show` lists it
        key_id: KeyId,
        /// Why, for whoever looks later
        #[arg(long, default_value = "", value_name = "TEXT")]
        reason: String,
    },
}

/// Where the past is read.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Source {
    /// Read the data directory (--data) instead of asking the server; works while it runs or not
    ///
    /// Without it, the directory is read instead if --data is given, --server is not, and no server is reachable at
    /// $FREEHOLD_SERVER or grpc.listen.
    #[arg(long)]
    pub(crate) offline: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Episode {
    /// List a tenant's episodes, newest first
    List {
        /// The tenant
        tenant: TenantId,
        /// Most episodes shown, 1 to 1000
        #[arg(long, default_value_t = 20, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
        /// Go on where a list ended (its next_page_token)
        #[arg(long, default_value = "", value_name = "TOKEN")]
        page_token: String,
        #[command(flatten)]
        source: Source,
    },
    /// Show an episode as a timeline: what happened, what it cost, the commands behind it
    Show {
        /// The episode; the same as the request's id
        episode: EpisodeId,
        #[command(flatten)]
        source: Source,
    },
}

#[derive(Debug, Args)]
pub(crate) struct State {
    /// tenant/<tenant> or region/<region>
    pub(crate) stream: StreamId,
    /// As it was after this version (the number of an event in the stream, from 1)
    #[arg(long, value_name = "N", conflicts_with = "at_time")]
    pub(crate) at_version: Option<u64>,
    /// As it was at this time: RFC 3339, such as 2026-01-31T12:00:00Z, or UTC microseconds since 1970
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) at_time: Option<TimestampUs>,
    #[command(flatten)]
    pub(crate) source: Source,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Log {
    /// Show how much the log holds
    Stat,
    /// Print commits, one a line (with --json: JSON lines with everything in them)
    Cat {
        /// First position
        #[arg(long, default_value_t = 1, value_name = "POSITION")]
        from: u64,
        /// Most commits printed [default: all]
        #[arg(long, value_name = "COUNT")]
        limit: Option<u64>,
        /// Only commits of this tenant
        #[arg(long, value_name = "TENANT")]
        tenant: Option<TenantId>,
        /// Only commits with an event of this type, such as RequestSettled; may be repeated
        #[arg(long = "type", value_name = "EVENT")]
        types: Vec<String>,
    },
    /// Check every byte of the log; exit code 1 and the place if one is damaged
    Verify,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Durable appends, replay and start-up of the event log
    Log(BenchLog),
    /// Requests through HTTP, next to calling the simulated upstream directly
    Http(BenchHttp),
    /// Appends and catching up over NATS servers that are started for it, next to publishing without Freehold
    Nats(BenchNats),
    /// How long actors take to come back from the log
    Actors(BenchActors),
    /// Opens a log in a process of its own and tells what it took (run by `bench log`)
    #[command(hide = true)]
    Open {
        /// The data directory
        directory: PathBuf,
    },
}

#[derive(Debug, Clone, Args)]
pub(crate) struct BenchLog {
    /// Commits of the log that is replayed
    #[arg(long, default_value_t = 2_000_000, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(2..=100_000_000))]
    pub(crate) commits: u64,
    /// Writers at once, one measurement each
    #[arg(long, default_values_t = [1, 16, 256], value_delimiter = ',', value_name = "COUNT,...", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) writers: Vec<u16>,
    /// Length of one round, seconds; each figure is the median of several
    #[arg(long, default_value_t = 1.5, value_name = "SECONDS", value_parser = parse_seconds)]
    pub(crate) seconds: f64,
    /// Rounds of each measurement, alternating with the reference
    #[arg(long, default_value_t = 3, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// Directory for temporary files, on the disk to be measured [default: beside the data directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct BenchHttp {
    /// Connections, each with one request at a time
    #[arg(long, default_value_t = 64, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) connections: u32,
    /// Length of one round, seconds; each figure is the median of several
    #[arg(long, default_value_t = 3.0, value_name = "SECONDS", value_parser = parse_seconds)]
    pub(crate) seconds: f64,
    /// Rounds of each measurement, alternating with the reference
    #[arg(long, default_value_t = 3, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// Directory for temporary files, on the disk to be measured [default: beside the data directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct BenchNats {
    /// The program that is started as NATS server, 2.12 or newer, with directories, ports and `sync_interval: always` of
    /// its own; nothing that runs already is touched
    #[arg(long, default_value = "nats-server", value_name = "PATH")]
    pub(crate) nats_server: PathBuf,
    /// Servers that hold the log, one measurement each
    #[arg(long, default_values_t = [1, 3], value_delimiter = ',', value_name = "COUNT,...", value_parser = parse_servers)]
    pub(crate) servers: Vec<u8>,
    /// Callers at once, one measurement each
    #[arg(long, default_values_t = [1, 64, 512], value_delimiter = ',', value_name = "COUNT,...", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) callers: Vec<u16>,
    /// Shards of the region; what several callers append to one shard shares a message
    #[arg(long, default_value_t = 256, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) shards: u16,
    /// Events that a node with an empty directory follows
    #[arg(long, default_value_t = 200_000, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub(crate) events: u64,
    /// Length of one round, seconds; each figure is the median of several
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS", value_parser = parse_seconds)]
    pub(crate) seconds: f64,
    /// Rounds of each measurement, alternating with the reference
    #[arg(long, default_value_t = 5, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// Directory for temporary files, on the disk to be measured [default: beside the data directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct BenchActors {
    /// Events of an actor, one measurement each
    #[arg(long, default_values_t = [100, 10_000], value_delimiter = ',', value_name = "COUNT,...", value_parser = clap::value_parser!(u32).range(4..=1_000_000))]
    pub(crate) events: Vec<u32>,
    /// Events of all actors of one measurement
    #[arg(long, default_value_t = 200_000, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(4..=100_000_000))]
    pub(crate) commits: u32,
    /// Rounds of each measurement, alternating with the reference
    #[arg(long, default_value_t = 5, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// Directory for temporary files, on the disk to be measured [default: beside the data directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

fn parse_servers(text: &str) -> Result<u8, String> {
    text.parse().ok().filter(|count| [1, 3, 5].contains(count)).ok_or_else(|| "it must be 1, 3 or 5".to_owned())
}

fn parse_period(text: &str) -> Result<Period, String> {
    let known = Period::ALL.into_iter().find(|period| period.name() == text);
    known.ok_or_else(|| "it must be day, week, month or year".to_owned())
}

fn parse_usd(text: &str) -> Result<NanoUsd, String> {
    unit::parse_usd(text)
        .map_err(|_| "it must be US dollars such as 12.50, digits with at most nine decimals".to_owned())
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.05..=3_600.0).contains(seconds));
    seconds.ok_or_else(|| "it must be 0.05 to 3600".to_owned())
}

pub(super) fn parse_time(text: &str) -> Result<TimestampUs, String> {
    if let Ok(micros) = text.parse() {
        return Ok(TimestampUs(micros));
    }
    let time = chrono::DateTime::parse_from_rfc3339(text).ok();
    let micros = time.and_then(|time| u64::try_from(time.timestamp_micros()).ok());
    micros
        .map(TimestampUs)
        .ok_or_else(|| "it must be RFC 3339 such as 2026-01-31T12:00:00Z, or UTC microseconds since 1970".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn times_are_rfc_3339_or_microseconds() {
        assert_eq!(parse_time("1970-01-01T00:00:01.5Z"), Ok(TimestampUs(1_500_000)));
        assert_eq!(parse_time("1970-01-01T01:00:00+01:00"), Ok(TimestampUs(0)));
        assert_eq!(parse_time("17"), Ok(TimestampUs(17)));
        assert!(parse_time("yesterday").is_err() && parse_time("1969-12-31T23:59:59Z").is_err());
    }
}
