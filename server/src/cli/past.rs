//! `freehold episode ...` and `freehold state`: asks the server, or reads the data directory.
//!
//! The directory is read with `--offline`, and also when `--data` is given, `--server` is not, and no server is
//! reachable.

use std::path::PathBuf;

use events_journal_sled::LocalStore;
use events_model::{EpisodeId, StreamId, TenantId, TimestampUs, Version};
use proto::episode::v1::{self as pb, get_state_request};
use replay::At;
use serde_json::{Value, json};

use super::{
    arguments::{Common, Episode, Source, State},
    client::Client,
    failure::{Failure, Problem},
    log,
    output::{Column, Output, note},
    show, timeline,
};
use crate::{
    config::{self, Environment},
    grpc::convert,
};

/// Who tells about the past.
enum Past {
    Server(Client),
    Directory(LocalStore),
}

/// Runs a command about episodes.
pub(super) async fn episode(common: &Common, command: &Episode, output: &mut Output) -> Result<(), Failure> {
    match command {
        Episode::Show { episode, source } => {
            let episode = Past::open(common, *source).await?.episode(*episode).await?;
            timeline::print(&episode, output)
        }
        Episode::List { tenant, limit, page_token, source } => {
            let list = Past::open(common, *source).await?.list(tenant, *limit, page_token).await?;
            print_list(&list, output)
        }
    }
}

/// Shows the state of an actor.
pub(super) async fn state(common: &Common, command: &State, output: &mut Output) -> Result<(), Failure> {
    let at = match (command.at_version, command.at_time) {
        (Some(version), _) => At::Version(Version(version)),
        (None, Some(time)) => At::Time(time),
        (None, None) => At::Newest,
    };
    let answer = Past::open(common, command.source).await?.state(&command.stream, at).await?;
    let state = timeline::embedded(&answer.state_json);
    if output.json() {
        return output.document(&json!({
            "stream": answer.stream,
            "version": answer.version,
            "recorded_at_us": answer.recorded_at_us,
            "state": state,
        }));
    }
    let recorded = if answer.version == 0 {
        "before its first event".to_owned()
    } else {
        format!("recorded {}", show::time(answer.recorded_at_us))
    };
    output.line(format_args!("{} at version {}, {recorded}", answer.stream, answer.version))?;
    output.line("money in nano-USD, times in UTC microseconds")?;
    output.line("")?;
    let mut lines = Vec::new();
    show::outline(&state, 0, &mut lines);
    lines.iter().try_for_each(|line| output.line(line))
}

impl Past {
    async fn open(common: &Common, source: Source) -> Result<Self, Failure> {
        let data = || -> Result<PathBuf, Failure> { Ok(config::load(&common.flags, &Environment::read())?.data) };
        if source.offline {
            return Ok(Self::Directory(log::open(&data()?)?));
        }
        match Client::connect(common).await {
            Ok(client) => Ok(Self::Server(client)),
            Err(failure) if failure.is_unreachable() && common.flags.data.is_some() && common.server.is_none() => {
                let data = data()?;
                let store = log::open(&data)?;
                note(format_args!("no server is reachable, reading {}", data.display()));
                Ok(Self::Directory(store))
            }
            Err(failure) => Err(failure),
        }
    }

    async fn episode(self, episode: EpisodeId) -> Result<pb::Episode, Failure> {
        match self {
            Self::Server(client) => {
                let request = pb::GetEpisodeRequest { episode_id: episode.to_string() };
                Ok(client.episodes().get_episode(request).await?.into_inner())
            }
            Self::Directory(store) => match replay::episode::show(&store, episode)? {
                Some(episode) => Ok(shown(episode)),
                None => Err(Problem::new(format!("there is no episode {episode}")).into()),
            },
        }
    }

    async fn list(
        self,
        tenant: &TenantId,
        page_size: u32,
        page_token: &str,
    ) -> Result<pb::ListEpisodesResponse, Failure> {
        match self {
            Self::Server(client) => {
                let (tenant_id, page_token) = (tenant.to_string(), page_token.to_owned());
                let request = pb::ListEpisodesRequest { tenant_id, page_size, page_token };
                Ok(client.episodes().list_episodes(request).await?.into_inner())
            }
            Self::Directory(store) => {
                let page = replay::episode::list(&store, tenant, page_size, page_token)
                    .map_err(|error| Problem::of(&error))?;
                Ok(pb::ListEpisodesResponse {
                    episodes: page.episodes.into_iter().map(convert::episode_summary).collect(),
                    next_page_token: page.next_page_token,
                })
            }
        }
    }

    async fn state(self, stream: &StreamId, at: At) -> Result<pb::GetStateResponse, Failure> {
        match self {
            Self::Server(client) => {
                let at = match at {
                    At::Version(version) => Some(get_state_request::At::Version(version.0)),
                    At::Time(TimestampUs(time)) => Some(get_state_request::At::TimeUs(time)),
                    At::Newest => None,
                };
                let request = pb::GetStateRequest { stream: stream.to_string(), at };
                Ok(client.episodes().get_state(request).await?.into_inner())
            }
            Self::Directory(store) => {
                let state = replay::state_at::json_at(&store, stream, at).map_err(|error| Problem::of(&error))?;
                Ok(pb::GetStateResponse {
                    stream: stream.to_string(),
                    version: state.version.0,
                    recorded_at_us: state.recorded_at.0,
                    state_json: state.state,
                })
            }
        }
    }
}

fn shown(episode: replay::episode::Episode) -> pb::Episode {
    if episode.is_truncated {
        note("the episode is longer than what is shown");
    }
    convert::episode(episode)
}

fn print_list(list: &pb::ListEpisodesResponse, output: &mut Output) -> Result<(), Failure> {
    if output.json() {
        let episodes: Vec<_> = list.episodes.iter().map(summary_json).collect();
        return output.document(&json!({ "episodes": episodes, "next_page_token": list.next_page_token }));
    }
    let columns = [
        Column::Left("episode"),
        Column::Left("started"),
        Column::Right("took"),
        Column::Left("end state"),
        Column::Left("model"),
        Column::Right("prompt tokens"),
        Column::Right("completion tokens"),
        Column::Right("cost"),
    ];
    let rows = list.episodes.iter().map(|episode| {
        vec![
            episode.episode_id.clone(),
            show::time(episode.started_at_us),
            show::millis(episode.duration_us),
            episode.end_state.clone(),
            episode.model.clone(),
            show::count(episode.prompt_tokens),
            show::count(episode.completion_tokens),
            show::money(episode.cost_nano_usd),
        ]
    });
    output.table(&columns, rows)?;
    if !list.next_page_token.is_empty() {
        note(format_args!("there are more: --page-token {}", list.next_page_token));
    }
    Ok(())
}

fn summary_json(episode: &pb::EpisodeSummary) -> Value {
    json!({
        "episode_id": episode.episode_id,
        "tenant": episode.tenant,
        "started_at_us": episode.started_at_us,
        "duration_us": episode.duration_us,
        "end_state": episode.end_state,
        "model": episode.model,
        "prompt_tokens": episode.prompt_tokens,
        "completion_tokens": episode.completion_tokens,
        "cost_nano_usd": episode.cost_nano_usd,
    })
}
