//! Who we are, where the servers are, and whether they are fit for a log.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event};
use events_model::RegionId;
use serde_json::json;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    api,
    error::{ApiError, OpenError},
    limit::{
        CONNECT_WAIT, MAX_PAYLOAD_BYTES_MIN, PING_EVERY, READ_WAIT, RECONNECT_PAUSE_MAX, RESOLVE_MAX,
        SERVER_VERSION_MIN, SHARDS_DEFAULT, SHARDS_MAX,
    },
};

/// How we show the servers who we are.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Not at all, or by what the address holds.
    #[default]
    None,
    /// User and password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A token.
    Token(String),
    /// A `.creds` file with a user JWT and its key.
    File(PathBuf),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Password { user, .. } => write!(f, "Password({user})"),
            Self::Token(_) => f.write_str("Token"),
            Self::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

/// Which shards a node decides for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ownership {
    /// All of them, each from its first append on: there is no other node.
    #[default]
    All,
    /// Those that were taken with `JetStreamLog::take`.
    Taken,
}

/// How the engine is opened.
#[derive(Clone)]
pub struct Options {
    /// Addresses: `nats://host:port` or `tls://host:port`.
    pub servers: Vec<String>,
    /// How we show who we are.
    pub credentials: Credentials,
    /// Root certificates beside those of the system, PEM.
    pub root_certificates: Option<PathBuf>,
    /// Name of this node, shown by the servers.
    pub node: String,
    /// The region, which has one stream.
    pub region: RegionId,
    /// The zone of this region's tenants; part of every subject, named like a region.
    pub zone: RegionId,
    /// Servers that hold the stream: 1, 3 or 5.
    pub replicas: usize,
    /// Shards of the region, 1..=`SHARDS_MAX`; fixed when its stream is made.
    pub shards: u32,
    /// Which shards this node decides for.
    pub ownership: Ownership,
    /// Longest time in which a group is published again before its outcome is called unknown; also the longest time
    /// for reading the end of a shard. Shorter than an election of the servers takes, it makes outages visible.
    pub resolve_max: Duration,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("servers", &self.shown_servers())
            .field("credentials", &self.credentials)
            .field("root_certificates", &self.root_certificates)
            .field("node", &self.node)
            .field("region", &self.region)
            .field("zone", &self.zone)
            .field("replicas", &self.replicas)
            .field("shards", &self.shards)
            .field("ownership", &self.ownership)
            .field("resolve_max", &self.resolve_max)
            .finish()
    }
}

impl Default for Options {
    #[expect(clippy::expect_used, reason = "the name is a constant that a test opens")]
    fn default() -> Self {
        let local = RegionId::new("local").expect("a name");
        Self {
            servers: vec!["nats://127.0.0.1:4222".to_owned()],
            credentials: Credentials::None,
            root_certificates: None,
            node: "freehold".to_owned(),
            region: local.clone(),
            zone: local,
            replicas: 1,
            shards: SHARDS_DEFAULT,
            ownership: Ownership::All,
            resolve_max: RESOLVE_MAX,
        }
    }
}

impl Options {
    /// The addresses without the users and passwords that they may hold.
    fn shown_servers(&self) -> String {
        let shown = |server: &String| match (server.split_once("://"), server.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
            (None, Some((_, host))) => host.to_owned(),
            (Some(_) | None, None) => server.clone(),
        };
        self.servers.iter().map(shown).collect::<Vec<_>>().join(",")
    }

    fn check(&self) -> Result<(), OpenError> {
        if !(1..=SHARDS_MAX).contains(&self.shards) {
            let allowed = format!("1 to {SHARDS_MAX}");
            return Err(OpenError::Option { option: "shards", value: self.shards.to_string(), allowed });
        }
        if ![1, 3, 5].contains(&self.replicas) {
            let allowed = "1, 3 or 5".to_owned();
            return Err(OpenError::Option { option: "replicas", value: self.replicas.to_string(), allowed });
        }
        Ok(())
    }
}

/// A connection that was found fit, and how often it was made.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    pub(crate) connects: watch::Receiver<u64>,
}

async fn connect_options(options: &Options) -> Result<(ConnectOptions, watch::Receiver<u64>), OpenError> {
    let (sender, connects) = watch::channel(0);
    let sender = Arc::new(sender);
    let mut connect = ConnectOptions::new()
        .name(&options.node)
        .connection_timeout(CONNECT_WAIT)
        .request_timeout(Some(READ_WAIT))
        .ping_interval(PING_EVERY)
        .max_reconnects(None)
        .reconnect_delay_callback(|attempts| {
            let step = u32::try_from(attempts).unwrap_or(u32::MAX);
            Duration::from_millis(20).saturating_mul(step).min(RECONNECT_PAUSE_MAX)
        })
        .event_callback(move |event| {
            let sender = Arc::clone(&sender);
            async move {
                match event {
                    Event::Connected => {
                        sender.send_modify(|count| *count += 1);
                        info!("connected to the log's servers");
                    }
                    Event::Disconnected => warn!("the connection to the log's servers is lost, connecting again"),
                    Event::LameDuckMode | Event::Draining | Event::Closed => info!(%event, "the log's server leaves"),
                    Event::SlowConsumer(_) | Event::ServerError(_) | Event::ClientError(_) => {
                        warn!(%event, "the log's server complains");
                    }
                }
            }
        });
    connect = match &options.credentials {
        Credentials::None => connect,
        Credentials::Password { user, password } => connect.user_and_password(user.clone(), password.clone()),
        Credentials::Token(token) => connect.token(token.clone()),
        Credentials::File(path) => connect
            .credentials_file(path)
            .await
            .map_err(|source| OpenError::CredentialsFile { path: path.clone(), source })?,
    };
    if let Some(path) = &options.root_certificates {
        connect = connect.add_root_certificates(path.clone());
    }
    Ok((connect, connects))
}

/// Connects and checks version, `max_payload` and JetStream.
pub(crate) async fn connect(options: &Options) -> Result<Connection, OpenError> {
    options.check()?;
    let (connect, connects) = connect_options(options).await?;
    let servers = options.shown_servers();
    let client = connect.connect(&options.servers).await.map_err(|source| match source.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            OpenError::Credentials { servers: servers.clone(), source }
        }
        ConnectErrorKind::ServerParse
        | ConnectErrorKind::Dns
        | ConnectErrorKind::TimedOut
        | ConnectErrorKind::Tls
        | ConnectErrorKind::Io
        | ConnectErrorKind::MaxReconnects => OpenError::Unreachable { servers: servers.clone(), source },
    })?;
    let server = client.server_info();
    let name = server.server_name.clone();
    if !is_new_enough(&server.version) {
        return Err(OpenError::ServerTooOld { server: name, version: server.version });
    }
    check_jetstream(&client, &name).await?;
    if server.max_payload < MAX_PAYLOAD_BYTES_MIN {
        return Err(OpenError::PayloadTooSmall { server: name, bytes: server.max_payload });
    }
    Ok(Connection { client, connects })
}

async fn check_jetstream(client: &Client, server: &str) -> Result<(), OpenError> {
    let answer: Result<serde_json::Value, ApiError> = api::ask(client, "INFO", &json!({}), READ_WAIT).await;
    match answer {
        // A cluster that elects a leader just now, or a user that may not ask: what follows will tell.
        Ok(_) | Err(ApiError::TimedOut { .. } | ApiError::Broken { .. }) => Ok(()),
        Err(source @ (ApiError::NoResponders { .. } | ApiError::Refused { .. })) => {
            Err(OpenError::NoJetStream { server: server.to_owned(), source })
        }
    }
}

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split(['.', '-', '+']).map_while(|part| part.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) >= SERVER_VERSION_MIN,
        (None | Some(_), None) | (None, Some(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_servers_of_the_series_2_12_and_newer_are_accepted() {
        for version in ["2.12.0", "2.12.0-RC.1", "2.15.1", "v2.14.5", "3.0.0", "2.100.0"] {
            assert!(is_new_enough(version), "{version}");
        }
        for version in ["2.11.9", "2.9.25", "1.4.1", "", "2", "two.twelve"] {
            assert!(!is_new_enough(version), "{version}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let secret = "hunter2";
        let password = Credentials::Password { user: "fh".to_owned(), password: secret.to_owned() };
        for credentials in [password, Credentials::Token(secret.to_owned())] {
            assert!(!format!("{credentials:?}").contains(secret));
        }
        let servers = ["nats://fh:hunter2@one:4222", "fh:hunter2@two:4222", "tls://three:4222"].map(str::to_owned);
        let options = Options { servers: servers.into(), ..Options::default() };
        assert_eq!(options.shown_servers(), "nats://one:4222,two:4222,tls://three:4222");
        assert!(!format!("{options:?}").contains(secret));
    }

    #[test]
    fn options_out_of_range_are_named() {
        for (options, option) in [
            (Options { shards: 0, ..Options::default() }, "shards"),
            (Options { shards: SHARDS_MAX + 1, ..Options::default() }, "shards"),
            (Options { replicas: 2, ..Options::default() }, "replicas"),
        ] {
            assert!(matches!(options.check(), Err(OpenError::Option { option: named, .. }) if named == option));
        }
    }
}
