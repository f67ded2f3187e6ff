//! What a start as a node would meet at the NATS servers, for `freehold doctor`. Changes nothing there.

use std::convert::Infallible;

use events_journal_nats::{Found, OpenError, Probe};
use events_model::TimestampUs;

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
    let are_there = matches!((&stream, &bucket), (Ok(Found::Fits), Ok(Found::Fits)));
    let is_stream_there = !matches!(stream, Ok(Found::Absent));
    checks.push(Check { what: "stream", found: found(stream.map_err(Error::Log)) });
    checks.push(Check { what: "leases", found: found(bucket.map_err(Error::Lease)) });
    checks.push(Check { what: "permissions", found: permissions(&probe, are_there).await });
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

async fn permissions(probe: &Probe, are_there: bool) -> Answer {
    if !are_there {
        return Answer::Unknown("cannot be tried before stream and leases exist".to_owned());
    }
    let denied = probe.denied().await;
    if denied.is_empty() {
        return Answer::Fine("the user may publish to the log and the leases".to_owned());
    }
    Answer::Denied(format!("the user may not publish to {}, or nobody answers there", denied.join(", ")))
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
