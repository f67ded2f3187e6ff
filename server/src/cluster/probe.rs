//! What a start as a node would meet at the NATS servers, for `freehold doctor`. Changes nothing there.

use std::{convert::Infallible, time::Duration};

use events_journal_nats::{Found, OpenError, Probe, Publish};
use events_model::TimestampUs;
use tokio::{net::TcpStream, time::timeout};

use super::{Error, clock, options};
use crate::config::Config;

/// Something that was looked at.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) what: &'static str,
    pub(crate) found: Answer,
}

/// What was found.
#[derive(Debug)]
pub(crate) enum Answer {
    Fine(String),
    /// Worth knowing: it cannot be told, or is as it need not be.
    Unknown(String),
    Wrong(Error),
    /// The user may not do what it must.
    Denied(String),
}

const SERVERS: &str = "NATS servers";
const PERMISSIONS: &str = "permissions";
/// Longest wait for a connection to another node.
const REACH_WAIT: Duration = Duration::from_secs(2);

/// Which check a refusal of the connection belongs to.
const fn place(error: &OpenError) -> &'static str {
    match error {
        OpenError::Credentials { .. } | OpenError::CredentialsFile { .. } => "credentials",
        OpenError::ServerTooOld { .. } => "NATS version",
        OpenError::NoJetStream { .. } => "JetStream",
        OpenError::PayloadTooSmall { .. } => "max_payload",
        OpenError::Unreachable { .. }
        | OpenError::ForeignStream { .. }
        | OpenError::TooFewServers { .. }
        | OpenError::Option { .. }
        | OpenError::Api { .. }
        | OpenError::Replica { .. } => SERVERS,
    }
}

/// Looks at everything.
pub(crate) async fn look(config: &Config, wall: fn() -> TimestampUs) -> Vec<Check> {
    let secret = match config.cluster.read_secret() {
        Ok(Some(_)) => Answer::Fine("set, what nodes share is encrypted if the first one had it".to_owned()),
        Ok(None) => {
            Answer::Unknown("none: the pepper of keys and the admin token lie at the servers as they are".to_owned())
        }
        Err(error) => Answer::Wrong(Error::ClusterSecret(error)),
    };
    let mut checks = vec![Check { what: "cluster secret", found: secret }];
    checks.extend(look_at_servers(config, wall).await);
    checks
}

async fn look_at_servers(config: &Config, wall: fn() -> TimestampUs) -> Vec<Check> {
    let wrong = |what, error| vec![Check { what, found: Answer::Wrong(error) }];
    let options = match options(config) {
        Ok(options) => options,
        Err(error) => return wrong("credentials", error),
    };
    let probe = match Probe::connect(options).await {
        Ok(probe) => probe,
        Err(error) => return wrong(place(&error), Error::Log(error)),
    };
    let fine = |what, text: String| Check { what, found: Answer::Fine(text) };
    let mut checks = vec![
        fine(SERVERS, format!("{} answers and accepts the credentials", probe.server)),
        fine("NATS version", probe.version.clone()),
        fine("JetStream", "enabled".to_owned()),
        fine("max_payload", format!("{} bytes", probe.max_payload)),
    ];
    let stream = probe.stream().await;
    let bucket = probe.bucket(config.cluster.lease).await;
    let is_bucket_there = matches!(bucket, Ok(Found::Fits));
    let is_absent = |found: &Found| matches!(found, Found::Absent);
    let lacks = match (&stream, &bucket) {
        (Err(_), _) | (_, Err(_)) => Some("cannot be tried while the stream or the leases are not as expected"),
        (Ok(stream), Ok(bucket)) if is_absent(stream) || is_absent(bucket) => {
            Some("cannot be tried before a start has made the stream and the leases")
        }
        (Ok(_), Ok(_)) => None,
    };
    let is_stream_there = !matches!(stream, Ok(Found::Absent));
    checks.push(Check { what: "stream", found: found(stream.map_err(Error::Log)) });
    checks.push(Check { what: "leases", found: found(bucket.map_err(Error::Lease)) });
    match lacks {
        Some(why) => checks.push(Check { what: PERMISSIONS, found: Answer::Unknown(why.to_owned()) }),
        None => checks.extend(permissions(&probe).await),
    }
    if is_bucket_there {
        checks.extend(nodes(&probe, config.cluster.lease).await);
    }
    checks.push(Check { what: "clock", found: clock(&probe, is_stream_there, wall).await });
    checks
}

fn found(found: Result<Found, Error>) -> Answer {
    match found {
        Ok(Found::Fits) => Answer::Fine("as expected".to_owned()),
        Ok(Found::Absent) => Answer::Fine("does not exist, a start makes it".to_owned()),
        Err(error) => Answer::Wrong(error),
    }
}

async fn permissions(probe: &Probe) -> Vec<Check> {
    let tried = probe.publishes().await;
    let all = tried.iter().all(|(_, became)| matches!(became, Publish::Allowed));
    let each = tried.into_iter().filter_map(|(subject, became)| match became {
        Publish::Allowed => None,
        Publish::Denied => Some(Answer::Denied(format!("the user may not publish to {subject}"))),
        Publish::Unanswered(error) => Some(Answer::Unknown(format!("publishing to {subject} was not tried: {error}"))),
    });
    let fine = all.then(|| Answer::Fine("the user may publish to the log and the leases".to_owned()));
    fine.into_iter().chain(each).map(|found| Check { what: PERMISSIONS, found }).collect()
}

/// The other nodes: whether this one may be one more, and whether it reaches them.
async fn nodes(probe: &Probe, ttl: Duration) -> Vec<Check> {
    let check = |found| Check { what: "nodes", found };
    let others = match probe.nodes(ttl).await {
        Ok(others) => others,
        Err(error) => return vec![check(Answer::Wrong(Error::Lease(error)))],
    };
    let count = match others.len() {
        1 => "1 other has".to_owned(),
        many => format!("{many} others have"),
    };
    let fine = Answer::Fine(format!("{count} a lease, none has this name"));
    let mut checks = vec![check(fine)];
    for (name, address) in others {
        let reached = timeout(REACH_WAIT, TcpStream::connect(&address)).await;
        if !reached.is_ok_and(|connected| connected.is_ok()) {
            let what = format!("{name} is alive and not reached at {address}: look at its grpc.advertise");
            checks.push(check(Answer::Unknown(what)));
        }
    }
    checks
}

async fn clock(probe: &Probe, is_stream_there: bool, wall: fn() -> TimestampUs) -> Answer {
    if !is_stream_there {
        return Answer::Unknown("cannot be compared before the stream exists; a start does".to_owned());
    }
    // The time is asked between two looks at this machine's clock.
    let asking = async { Ok::<_, Infallible>(probe.time().await.unwrap_or_default()) };
    match clock::between(asking, wall).await {
        Ok(Some(skew)) => match skew.check() {
            Ok(skew) => Answer::Fine(format!("within {} ms of the servers'", skew.by.as_millis())),
            Err(error) => Answer::Wrong(error),
        },
        Ok(None) => Answer::Unknown("the servers did not tell their time".to_owned()),
        Err(never) => match never {},
    }
}
