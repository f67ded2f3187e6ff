//! The stream of a region: what it must be, how it is made, and what is wrong with one that is different.
//!
//! Invariant: an existing stream is never changed here.

use std::{collections::HashMap, time::Duration};

use async_nats::jetstream::stream::{Compression, Config, DiscardPolicy, Info, RetentionPolicy, StorageType};
use serde_json::json;

use crate::{
    api::{self, Leader},
    clock,
    connect::Options,
    error::{ApiError, Difference, OpenError},
    limit::{MAKE_WAIT, RESOLVE_MAX},
    publish::Pauses,
    subject,
};

/// How long the servers recognise a repeated message id: only a second net below the expected sequence.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// Names of what we write beside the configuration.
const META_SHARDS: &str = "freehold_shards";
const META_FORMAT: &str = "freehold_format";

/// What a region's stream must be.
pub(crate) fn config(options: &Options) -> Config {
    Config {
        name: subject::stream_name(&options.region),
        description: Some(format!("Freehold: the log of region {}", options.region)),
        subjects: vec![subject::region_subjects(&options.region)],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        num_replicas: options.replicas,
        discard: DiscardPolicy::New,
        deny_delete: true,
        deny_purge: true,
        allow_direct: false,
        allow_rollup: false,
        duplicate_window: DUPLICATE_WINDOW,
        max_bytes: -1,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_message_size: -1,
        max_consumers: -1,
        metadata: HashMap::from([
            (META_SHARDS.to_owned(), options.shards.to_string()),
            (META_FORMAT.to_owned(), crate::group::FORMAT.to_string()),
        ]),
        ..Config::default()
    }
}

/// One line for each field that decides what the stream keeps and whom it refuses.
fn fields(config: &Config) -> Vec<(&'static str, String)> {
    let meta = |name: &str| config.metadata.get(name).cloned().unwrap_or_else(|| "missing".to_owned());
    vec![
        ("subjects", config.subjects.join(",")),
        ("retention", format!("{:?}", config.retention)),
        ("storage", format!("{:?}", config.storage)),
        ("num_replicas", config.num_replicas.to_string()),
        ("discard", format!("{:?}", config.discard)),
        ("discard_new_per_subject", config.discard_new_per_subject.to_string()),
        ("deny_delete", config.deny_delete.to_string()),
        ("deny_purge", config.deny_purge.to_string()),
        ("allow_direct", config.allow_direct.to_string()),
        ("allow_rollup_hdrs", config.allow_rollup.to_string()),
        ("allow_msg_ttl", config.allow_message_ttl.to_string()),
        ("allow_msg_counter", config.allow_message_counter.to_string()),
        ("duplicate_window", format!("{:?}", config.duplicate_window)),
        ("max_age", format!("{:?}", config.max_age)),
        ("max_bytes", config.max_bytes.to_string()),
        ("max_msgs", config.max_messages.to_string()),
        ("max_msgs_per_subject", config.max_messages_per_subject.to_string()),
        ("max_msg_size", config.max_message_size.to_string()),
        ("max_consumers", config.max_consumers.to_string()),
        ("no_ack", config.no_ack.to_string()),
        ("sealed", config.sealed.to_string()),
        ("mirror", config.mirror.as_ref().map_or_else(|| "none".to_owned(), |mirror| mirror.name.clone())),
        ("sources", config.sources.as_ref().map_or(0, Vec::len).to_string()),
        ("subject_transform", config.subject_transform.is_some().to_string()),
        ("compression", format!("{:?}", config.compression.clone().unwrap_or(Compression::None))),
        ("persist_mode", format!("{:?}", config.persist_mode.unwrap_or_default())),
        (META_SHARDS, meta(META_SHARDS)),
        (META_FORMAT, meta(META_FORMAT)),
    ]
}

fn differences(expected: &Config, actual: &Config) -> Vec<Difference> {
    let pairs = fields(expected).into_iter().zip(fields(actual));
    pairs
        .filter(|((_, expected), (_, actual))| expected != actual)
        .map(|((field, expected), (_, actual))| Difference { field, expected, actual })
        .collect()
}

/// Makes the stream if it is not there; checks it if it is.
pub(crate) async fn ensure(leader: &Leader, options: &Options) -> Result<Info, OpenError> {
    let wanted = config(options);
    let stream = wanted.name.clone();
    let failed = |source: ApiError| OpenError::Api { stream: stream.clone(), source };
    let info = match patient_info(leader).await {
        Err(error) if error.code() == Some(api::STREAM_NOT_FOUND) => create(leader, &wanted).await?,
        info => info.map_err(failed)?,
    };
    check(options, &info.config)?;
    Ok(info)
}

/// Whether a stream is what it must be.
pub(crate) fn check(options: &Options, actual: &Config) -> Result<(), OpenError> {
    let wanted = config(options);
    let differences = differences(&wanted, actual);
    if differences.is_empty() { Ok(()) } else { Err(OpenError::ForeignStream { stream: wanted.name, differences }) }
}

/// Asks for `RESOLVE_MAX`: servers that were just started elect a leader first.
async fn patient_info(leader: &Leader) -> Result<Info, ApiError> {
    let start = clock::now();
    let mut pauses = Pauses::new();
    loop {
        match leader.info().await {
            Err(error) if start.elapsed() < RESOLVE_MAX && error.is_passing() => pauses.pause().await,
            answer => return answer,
        }
    }
}

async fn create(leader: &Leader, wanted: &Config) -> Result<Info, OpenError> {
    let stream = wanted.name.clone();
    let body = serde_json::to_value(wanted).unwrap_or_else(|_| json!({}));
    let start = clock::now();
    let mut pauses = Pauses::new();
    loop {
        let source = match api::ask(&leader.client, &format!("STREAM.CREATE.{stream}"), &body, MAKE_WAIT).await {
            Ok(info) => return Ok(info),
            Err(source) => source,
        };
        let is_early = start.elapsed() < RESOLVE_MAX;
        match source.code() {
            // Another node was first; whether it made the same is checked by the caller.
            Some(api::STREAM_NAME_IN_USE) => {
                return patient_info(leader).await.map_err(|source| OpenError::Api { stream, source });
            }
            // Servers that are starting are not known as peers yet.
            Some(api::CLUSTER_NO_PEERS) if is_early => {}
            Some(api::STREAM_REPLICAS_NOT_SUPPORTED | api::CLUSTER_NO_PEERS) => {
                return Err(OpenError::TooFewServers { stream, replicas: wanted.num_replicas, source });
            }
            Some(_) | None if source.is_passing() && is_early => {}
            Some(_) | None => return Err(OpenError::Api { stream, source }),
        }
        pauses.pause().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_is_named() {
        let options = Options::default();
        let wanted = config(&options);
        assert_eq!(differences(&wanted, &wanted), []);
        let mut foreign = wanted.clone();
        foreign.deny_delete = false;
        foreign.max_messages = 1_000;
        foreign.metadata.clear();
        let names: Vec<_> = differences(&wanted, &foreign).into_iter().map(|one| one.field).collect();
        assert_eq!(names, ["deny_delete", "max_msgs", META_SHARDS, META_FORMAT]);
    }
}
