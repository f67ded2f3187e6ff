//! The arguments of `freehold events`, `freehold group` and `freehold dlq`.

use std::{path::PathBuf, str::FromStr};

use clap::{Args, Subcommand};
use events_model::{CommitId, EpisodeId, StreamId, TenantId, TimestampUs, application};
use proto::events::v1 as pb;

use super::arguments::parse_time;
use crate::platform::Model;

/// `<tenant>/<name>`.
#[derive(Debug, Clone)]
pub(crate) struct GroupName {
    pub(crate) tenant: TenantId,
    pub(crate) name: String,
}

impl FromStr for GroupName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (tenant, name) = text.split_once('/').ok_or("a group is <tenant>/<name>")?;
        let tenant = TenantId::new(tenant).map_err(|error| error.to_string())?;
        StreamId::group(&tenant, name).map_err(|error| error.to_string())?;
        Ok(Self { tenant, name: name.to_owned() })
    }
}

/// What has dead letters: a consumer group, or a read model.
#[derive(Debug, Clone)]
pub(crate) enum Parking {
    Group(GroupName),
    Model(Model),
}

impl FromStr for Parking {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            return text.parse().map(Self::Group);
        }
        let known = || Model::ALL.map(Model::name).join(", ");
        let unknown = || format!("it must be <tenant>/<name> of a consumer group, or a read model: {}", known());
        Model::named(text).map(Self::Model).ok_or_else(unknown)
    }
}

/// What an append expects of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expect(pub(crate) pb::Expected, pub(crate) u64);

impl FromStr for Expect {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(pb::Expected::None, 0)),
            "any" => Ok(Self(pb::Expected::Any, 0)),
            "exists" => Ok(Self(pb::Expected::Exists, 0)),
            text => match text.parse() {
                Ok(version) => Ok(Self(pb::Expected::Exact, version)),
                Err(_) => Err("it must be a version, none, any or exists".to_owned()),
            },
        }
    }
}

fn parse_type(text: &str) -> Result<String, String> {
    application::check_type(text).map(|()| text.to_owned()).map_err(|invalid| invalid.to_string())
}

#[derive(Debug, Subcommand)]
pub(crate) enum Events {
    /// Append one event to a stream of an application
    #[command(group(clap::ArgGroup::new("what").required(true).args(["payload", "file"])))]
    Append {
        /// app/<tenant>/<id>
        stream: StreamId,
        /// The application's own name of the event's type, such as order.placed
        #[arg(long = "type", value_name = "TYPE", value_parser = parse_type)]
        kind: String,
        /// Media type of the payload
        #[arg(long, default_value = "application/json", value_name = "TYPE")]
        content_type: String,
        /// The payload
        #[arg(long, value_name = "TEXT")]
        payload: Option<String>,
        /// File with the payload, at most 512 KiB
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// The stream's version, or none (it must not exist), exists or any
        #[arg(long, default_value = "any", value_name = "VERSION")]
        expect: Expect,
        /// Idempotency key: the same one again appends nothing [default: a random one]
        #[arg(long, value_name = "ID")]
        commit_id: Option<CommitId>,
    },
    /// Read a stream or the whole log, one commit a line (with --json: JSON lines)
    Read {
        /// A stream; without it the whole log is read
        stream: Option<StreamId>,
        /// First version of the stream, or first position of the log [default: where the direction begins]
        #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
        from: u64,
        /// Read towards the beginning
        #[arg(long)]
        backward: bool,
        /// Most commits printed
        #[arg(long, default_value_t = 100, value_name = "COUNT")]
        limit: u64,
        #[command(flatten)]
        filter: EventFilter,
    },
    /// Print what is there, then what comes, one commit a line (with --json: JSON lines), until it is interrupted
    Subscribe {
        /// First position
        #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "POSITION", conflicts_with = "live")]
        from: u64,
        /// Only what comes from now on
        #[arg(long)]
        live: bool,
        /// Stop when everything that is there has been printed
        #[arg(long)]
        until_caught_up: bool,
        #[command(flatten)]
        filter: EventFilter,
    },
}

#[derive(Debug, Args)]
pub(crate) struct EventFilter {
    /// Only events of this type: an application's own name or a full protobuf name; may be repeated
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// Only commits of this tenant
    #[arg(long, value_name = "TENANT")]
    tenant: Option<TenantId>,
    /// Only commits of this episode
    #[arg(long, value_name = "EPISODE")]
    episode: Option<EpisodeId>,
    /// Only what was recorded from this time on: RFC 3339 or UTC microseconds since 1970
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<TimestampUs>,
    /// Only what was recorded before this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<TimestampUs>,
}

impl EventFilter {
    /// As the server takes it.
    pub(crate) fn message(&self) -> pb::Filter {
        pb::Filter {
            types: self.types.clone(),
            tenant: self.tenant.as_ref().map_or_else(String::new, ToString::to_string),
            episode_id: self.episode.map_or_else(String::new, |episode| episode.to_string()),
            recorded_from_us: self.since.unwrap_or_default().0,
            recorded_before_us: self.until.unwrap_or_default().0,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Group {
    /// Create a persistent consumer group over the events of a tenant's applications
    Create {
        /// <tenant>/<name>
        group: GroupName,
        /// Deliver events of this type only; may be repeated
        #[arg(long = "type", value_name = "TYPE", value_parser = parse_type)]
        types: Vec<String>,
        /// Deliver what comes from now on; else everything behind --after
        #[arg(long, conflicts_with = "after")]
        live: bool,
        /// Deliver the events behind this position
        #[arg(long, default_value_t = 0, value_name = "POSITION")]
        after: u64,
        /// Deliveries of one event until it is parked, 1 to 100
        #[arg(long, default_value_t = 5, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100))]
        attempts: u32,
        /// Wait before the second attempt, milliseconds; doubles with each further one
        #[arg(long, default_value_t = 500, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
        backoff_first_ms: u64,
        /// Longest wait between two attempts, milliseconds
        #[arg(long, default_value_t = 60_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
        backoff_max_ms: u64,
        /// How long a consumer may take to answer, milliseconds
        #[arg(long, default_value_t = 30_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(100..=3_600_000))]
        answer_timeout_ms: u64,
        /// Most deliveries without an answer, 1 to 1000
        #[arg(long, default_value_t = 256, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000))]
        in_flight: u32,
    },
    /// List groups with their lag and what is parked
    List {
        /// Only groups of this tenant
        #[arg(long, value_name = "TENANT")]
        tenant: Option<TenantId>,
    },
    /// Show a group
    Show {
        /// <tenant>/<name>
        group: GroupName,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Dlq {
    /// List what is parked, oldest first
    List {
        /// <tenant>/<name> of a consumer group, or a read model: tenants, billing or groups
        of: Parking,
        /// Most events shown, 1 to 1000
        #[arg(long, default_value_t = 100, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1_000))]
        limit: u32,
        /// Go on where a list ended (its next_page_token)
        #[arg(long, default_value = "", value_name = "TOKEN")]
        page_token: String,
    },
    /// Show a parked event with its payload
    Show {
        /// <tenant>/<name> of a consumer group, or a read model
        of: Parking,
        /// Its number, as `dlq list` shows it
        number: u64,
    },
    /// Have parked events delivered again; a read model folds the log anew and so tries all of its own
    Redrive {
        #[command(flatten)]
        which: Which,
    },
    /// Give parked events up for good; it is recorded with the reason. A read model never contains them then
    Drop {
        #[command(flatten)]
        which: Which,
        /// Why, for whoever looks later
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

/// Which parked events.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("which").required(true).args(["numbers", "all"])))]
pub(crate) struct Which {
    /// <tenant>/<name> of a consumer group, or a read model
    pub(crate) of: Parking,
    /// Their numbers, as `dlq list` shows them
    #[arg(value_name = "NUMBER")]
    pub(crate) numbers: Vec<u64>,
    /// All that is parked there
    #[arg(long)]
    pub(crate) all: bool,
}
