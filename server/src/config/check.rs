//! Which values are allowed: each rule names its key and says what is.

use std::{collections::BTreeSet, fmt::Display, net::IpAddr, ops::RangeInclusive, time::Duration};

use events_model::{NanoUsd, RegionId, region::PRICE_BOOK_LEN_MAX};
use http::{Uri, uri::Authority};
use tracing_subscriber::EnvFilter;

use super::{Cluster, Config, Model, Upstream, limit, unit};

/// A value outside what its key allows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// `section.key`, `upstreams[0].models[1].key`.
    pub(super) key: String,
    /// What it is and what is allowed.
    pub(super) reason: String,
}

type Check = Result<(), Fault>;

/// The first value that is not allowed.
pub(super) fn first_fault(config: &Config) -> Option<Fault> {
    scalars(config).and_then(|()| upstreams(config)).err()
}

fn refuse(key: impl Into<String>, reason: impl Into<String>) -> Check {
    Err(Fault { key: key.into(), reason: reason.into() })
}

fn within<T: PartialOrd + Copy>(key: &str, value: T, allowed: &RangeInclusive<T>, show: fn(T) -> String) -> Check {
    if allowed.contains(&value) {
        return Ok(());
    }
    let (min, max) = (show(*allowed.start()), show(*allowed.end()));
    refuse(key, format!("{} is out of range; allowed is {min} to {max}", show(value)))
}

fn count(key: &str, value: impl TryInto<u64>, allowed: &RangeInclusive<u64>) -> Check {
    within(key, value.try_into().unwrap_or(u64::MAX), allowed, |value| value.to_string())
}

fn size(key: &str, value: impl TryInto<u64>, allowed: &RangeInclusive<u64>) -> Check {
    within(key, value.try_into().unwrap_or(u64::MAX), allowed, unit::show_bytes)
}

fn span(key: &str, value: Duration, allowed: &RangeInclusive<Duration>) -> Check {
    within(key, value, allowed, unit::show_duration)
}

fn cluster(cluster: &Cluster) -> Check {
    count("cluster.shards", cluster.shards, &limit::SHARDS)?;
    span("cluster.lease", cluster.lease, &limit::LEASE)?;
    if ![1, 3, 5].contains(&cluster.replicas) {
        return refuse("cluster.replicas", format!("{} is not possible; allowed are 1, 3 and 5", cluster.replicas));
    }
    if !cluster.is_on() {
        return Ok(());
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if !(1..=64).contains(&cluster.node.len()) || !cluster.node.bytes().all(is_plain) {
        let node = &cluster.node;
        return refuse("cluster.node", format!("\"{node}\" is no name; 1 to 64 letters, digits, - and _ are needed"));
    }
    if cluster.nats.contains('@') {
        return refuse("cluster.nats", "the address holds credentials; use password_file or credentials_file");
    }
    if cluster.password_file.is_some() && cluster.credentials_file.is_some() {
        return refuse("cluster.credentials_file", "password_file is set too; one of them is enough");
    }
    for server in cluster.nats.split(',').map(str::trim) {
        if !server.starts_with("nats://") && !server.starts_with("tls://") {
            return refuse("cluster.nats", format!("{server} is no address; it looks like nats://host:4222"));
        }
    }
    Ok(())
}

/// Whether the address of a NATS server is one of this machine alone, so that all its nodes are here too.
fn is_here(server: &str) -> bool {
    let host = server.trim().parse::<Uri>().ok().and_then(|uri| Some(uri.host()?.to_owned()));
    let is_loopback = |host: &str| host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    host.is_some_and(|host| host == "localhost" || is_loopback(host.trim_matches(['[', ']'])))
}

/// Other nodes bring consumers here: they must know where that is.
fn advertise(config: &Config) -> Check {
    let (listen, advertise) = (config.grpc.listen, config.grpc.advertise.as_str());
    if advertise.is_empty() {
        if config.cluster.is_on() && listen.ip().is_unspecified() {
            let why = format!("grpc.listen is {listen}, which tells other nodes nothing; host:port is needed");
            return refuse("grpc.advertise", why);
        }
        if config.cluster.is_on() && listen.ip().is_loopback() && !config.cluster.nats.split(',').all(is_here) {
            let why = format!("grpc.listen is {listen}, which on other machines is themselves; host:port is needed");
            return refuse("grpc.advertise", why);
        }
        return Ok(());
    }
    let authority = advertise.parse::<Authority>().ok().filter(|authority| !authority.as_str().contains('@'));
    if authority.and_then(|authority| authority.port_u16()).is_none_or(|port| port == 0) {
        return refuse("grpc.advertise", format!("{advertise:?} is no address; it looks like node-1:7600"));
    }
    Ok(())
}

fn scalars(config: &Config) -> Check {
    if config.data.as_os_str().is_empty() {
        return refuse("data", "it is empty; a directory is needed");
    }
    name("zone", &config.zone)?;
    size("http.body_bytes_max", config.http.body_bytes_max, &limit::BODY_BYTES)?;
    count("http.connections_max", config.http.connections_max, &limit::CONNECTIONS)?;
    span("http.header_timeout", config.http.header_timeout, &limit::HEADER_TIMEOUT)?;
    size("log.segment_bytes", config.log.segment_bytes, &limit::SEGMENT_BYTES)?;
    span("log.clock_ahead_max", config.log.clock_ahead_max, &limit::CLOCK_AHEAD)?;
    cluster(&config.cluster)?;
    advertise(config)?;
    count("actors.mailbox_len_max", config.actors.mailbox_len_max, &limit::MAILBOX_LEN)?;
    span("actors.idle_after", config.actors.idle_after, &limit::IDLE_AFTER)?;
    count("actors.snapshot_every", config.actors.snapshot_every, &limit::SNAPSHOT_EVERY)?;
    count("actors.arbiters", config.actors.arbiters, &limit::ARBITERS)?;
    count("requests.in_flight_max", config.requests.in_flight_max, &limit::IN_FLIGHT)?;
    span("requests.reservation_grace", config.requests.reservation_grace, &limit::RESERVATION_GRACE)?;
    span("requests.drain_timeout", config.requests.drain_timeout, &limit::DRAIN_TIMEOUT)?;
    let (grpc, http) = (config.grpc.listen, config.http.listen);
    if grpc == http && grpc.port() != 0 {
        return refuse("http.listen", format!("{http} is the address of gRPC too; they need different ones"));
    }
    if let Err(error) = EnvFilter::try_new(&config.telemetry.filter) {
        return refuse(
            "telemetry.filter",
            format!("{error}; allowed is for example \"info\" or \"warn,server=debug\""),
        );
    }
    Ok(())
}

fn upstreams(config: &Config) -> Check {
    if config.upstreams.len() > limit::UPSTREAMS_MAX {
        return refuse("upstreams", format!("there are more than {}", limit::UPSTREAMS_MAX));
    }
    if config.upstreams.iter().map(|upstream| upstream.models.len()).sum::<usize>() > PRICE_BOOK_LEN_MAX {
        return refuse("upstreams", format!("there are more than {PRICE_BOOK_LEN_MAX} models in all"));
    }
    let mut names = BTreeSet::new();
    for (index, upstream) in config.upstreams.iter().enumerate() {
        let prefix = format!("upstreams[{index}]");
        one_upstream(&prefix, upstream)?;
        if !names.insert(&upstream.name) {
            return refuse(format!("{prefix}.name"), format!("there are two upstreams {:?}", upstream.name));
        }
    }
    Ok(())
}

fn one_upstream(prefix: &str, upstream: &Upstream) -> Check {
    let key = |name: &str| format!("{prefix}.{name}");
    name(&key("name"), &upstream.name)?;
    base_url(&key("base_url"), &upstream.base_url)?;
    if upstream.api_key_env.is_some() && upstream.api_key_file.is_some() {
        return refuse(key("api_key_file"), "api_key_env is set too; one of them is enough");
    }
    if let Some(variable) = &upstream.api_key_env
        && (variable.is_empty() || variable.contains(['=', '\0']))
    {
        return refuse(key("api_key_env"), format!("{variable:?} is not the name of an environment variable"));
    }
    let parameter = upstream.max_tokens_parameter.as_str();
    if !limit::MAX_TOKENS_PARAMETERS.contains(&parameter) {
        let allowed = limit::MAX_TOKENS_PARAMETERS.join(" or ");
        return refuse(key("max_tokens_parameter"), format!("{parameter:?} is not {allowed}"));
    }
    if let Some(path) = &upstream.usage_lookup_path
        && !(path.starts_with('/')
            && path.contains(limit::REQUEST_ID_MARK)
            && path.bytes().all(|b| b.is_ascii_graphic()))
    {
        let mark = limit::REQUEST_ID_MARK;
        return refuse(key("usage_lookup_path"), format!("{path:?} must begin with / and contain {mark}"));
    }
    if upstream.ca_file.is_some() && !upstream.base_url.starts_with("https://") {
        return refuse(key("ca_file"), "base_url is not https, so no certificate is checked");
    }
    for (name, value) in [
        ("connect_timeout", upstream.connect_timeout),
        ("first_byte_timeout", upstream.first_byte_timeout),
        ("idle_timeout", upstream.idle_timeout),
        ("total_timeout", upstream.total_timeout),
    ] {
        span(&key(name), value, &limit::UPSTREAM_TIMEOUT)?;
    }
    let mut names = BTreeSet::new();
    for (index, model) in upstream.models.iter().enumerate() {
        let prefix = format!("{prefix}.models[{index}]");
        one_model(&prefix, model)?;
        if !names.insert(&model.name) {
            return refuse(format!("{prefix}.name"), format!("this upstream has two models {:?}", model.name));
        }
    }
    Ok(())
}

fn one_model(prefix: &str, model: &Model) -> Check {
    let key = |name: &str| format!("{prefix}.{name}");
    for (field, text) in [("name", model.name.as_str()), ("upstream_model", model.upstream_model())] {
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.is_empty() || text.len() > limit::MODEL_NAME_BYTES_MAX || !visible {
            let max = limit::MODEL_NAME_BYTES_MAX;
            return refuse(key(field), format!("{text:?} must be 1 to {max} visible ASCII characters"));
        }
    }
    for (field, price) in
        [("input_usd_per_mtok", model.input_usd_per_mtok), ("output_usd_per_mtok", model.output_usd_per_mtok)]
    {
        within(&key(field), price, &(NanoUsd::ZERO..=NanoUsd(limit::PRICE_NANO_USD_MAX)), unit::show_usd)?;
    }
    count(&key("completion_tokens_max"), model.completion_tokens_max, &limit::COMPLETION_TOKENS)?;
    let most = limit::COMPLETION_TOKENS.start().to_owned()..=model.completion_tokens_max;
    count(&key("completion_tokens_default"), model.completion_tokens_default, &most)
}

/// Checks a name: letters, digits and dashes, as of regions and tenants.
fn name(key: &str, text: &str) -> Check {
    match RegionId::new(text) {
        Ok(_) => Ok(()),
        Err(_) => refuse(key, format!("{text:?} must be 1 to 63 of a-z, 0-9 and '-', not at either end")),
    }
}

fn base_url(key: &str, text: &str) -> Check {
    // The text itself is not repeated when it holds credentials.
    let refuse = |shown: &dyn Display, reason: &str| refuse(key, format!("{shown} {reason}"));
    let Ok(uri) = text.parse::<Uri>() else { return refuse(&format!("{text:?}"), "is not a URL") };
    let Some(authority) = uri.authority().filter(|_| uri.scheme().is_some()) else {
        return refuse(&format!("{text:?}"), "needs a scheme and a host, such as \"https://api.example.com/v1\"");
    };
    if authority.as_str().contains('@') {
        return refuse(&"the URL", "holds credentials; use api_key_env or api_key_file");
    }
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return refuse(&format!("{text:?}"), "must begin with http:// or https://");
    }
    if uri.query().is_some() || text.contains('#') {
        return refuse(&format!("{text:?}"), "must not have a query or a fragment");
    }
    Ok(())
}
