//! `freehold.episode.v1.Episodes`: the past, read from the log on blocking threads.

use std::{error::Error, sync::Arc};

use events_journal::EventLog;
use events_model::{EpisodeId, StreamId, TimestampUs, Version};
use proto::episode::v1::{self as pb, get_state_request::At as WireAt};
use replay::{
    At,
    episode::{self, ListError, PAGE_SIZE_MAX},
    state_at,
};
use tonic::{Code, Request, Response, Status};

use super::{App, convert, status};

/// The service.
#[derive(Debug)]
pub(super) struct Episodes(pub(super) Arc<App>);

type Answer<T> = Result<Response<T>, Status>;

impl Episodes {
    async fn look<R: Send + 'static>(
        &self,
        look: impl FnOnce(&dyn EventLog) -> R + Send + 'static,
    ) -> Result<R, Status> {
        let log = Arc::clone(&self.0.log);
        tokio::task::spawn_blocking(move || look(&*log)).await.map_err(|error| broken(&error))
    }
}

/// The log cannot be read: the operator, who asks, is told why.
fn broken(error: &dyn Error) -> Status {
    let text = crate::model_path::chain(error, 2_048);
    tracing::error!(error = text, "the past cannot be read");
    status::plain(Code::Internal, "LOG_UNREADABLE", text)
}

fn state_error(error: &state_at::Error) -> Status {
    match error {
        state_at::Error::NoSuchStream { .. } => status::plain(Code::NotFound, "NO_SUCH_STREAM", error.to_string()),
        state_at::Error::BeyondHead { .. } => status::plain(Code::OutOfRange, "BEYOND_HEAD", error.to_string()),
        state_at::Error::Kind { .. } => status::invalid("stream", error.to_string()),
        state_at::Error::Gap { .. }
        | state_at::Error::Decode { .. }
        | state_at::Error::Read { .. }
        | state_at::Error::Json { .. } => broken(error),
    }
}

#[tonic::async_trait]
impl pb::episodes_server::Episodes for Episodes {
    async fn get_episode(&self, request: Request<pb::GetEpisodeRequest>) -> Answer<pb::Episode> {
        let text = request.into_inner().episode_id;
        let episode_id: EpisodeId =
            text.parse().map_err(|error: events_model::id::Error| status::invalid("episode_id", error.to_string()))?;
        match self.look(move |log| episode::show(log, episode_id)).await? {
            Ok(Some(episode)) => Ok(Response::new(convert::episode(episode))),
            Ok(None) => {
                Err(status::plain(Code::NotFound, "NO_SUCH_EPISODE", format!("there is no episode {episode_id}")))
            }
            Err(error) => Err(broken(&error)),
        }
    }

    async fn list_episodes(&self, request: Request<pb::ListEpisodesRequest>) -> Answer<pb::ListEpisodesResponse> {
        let pb::ListEpisodesRequest { tenant_id, page_size, page_token } = request.into_inner();
        let tenant = convert::tenant_id(&tenant_id)?;
        if page_size > PAGE_SIZE_MAX {
            return Err(status::invalid("page_size", format!("must be at most {PAGE_SIZE_MAX}")));
        }
        match self.look(move |log| episode::list(log, &tenant, page_size, &page_token)).await? {
            Ok(page) => Ok(Response::new(pb::ListEpisodesResponse {
                episodes: page.episodes.into_iter().map(convert::episode_summary).collect(),
                next_page_token: page.next_page_token,
            })),
            Err(error @ ListError::PageToken { .. }) => Err(status::invalid("page_token", error.to_string())),
            Err(error @ ListError::NoSuchTenant { .. }) => {
                Err(status::plain(Code::NotFound, "NOT_REGISTERED", error.to_string()))
            }
            Err(error @ ListError::Read { .. }) => Err(broken(&error)),
        }
    }

    async fn get_state(&self, request: Request<pb::GetStateRequest>) -> Answer<pb::GetStateResponse> {
        let pb::GetStateRequest { stream, at } = request.into_inner();
        let stream = StreamId::new(&stream).map_err(|error| status::invalid("stream", error.to_string()))?;
        let at = match at {
            Some(WireAt::Version(version)) => At::Version(Version(version)),
            Some(WireAt::TimeUs(time)) => At::Time(TimestampUs(time)),
            None => At::Newest,
        };
        let name = stream.to_string();
        match self.look(move |log| state_at::json_at(log, &stream, at)).await? {
            Ok(state) => Ok(Response::new(pb::GetStateResponse {
                stream: name,
                version: state.version.0,
                recorded_at_us: state.recorded_at.0,
                state_json: state.state,
            })),
            Err(error) => Err(state_error(&error)),
        }
    }
}
