//! `GET /v1/models` and `GET /v1/models/{id}`: what clients may name.

use axum::{
    extract::{Path, rejection::PathRejection},
    response::Response,
};
use gateway::openai::ApiError;
use http::HeaderMap;
use serde::Serialize;

use super::{App, JSON, State, error, headers, with_type};
use crate::model_path::{Failed, Failure};

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

impl<'a> Model<'a> {
    const fn new(app: &App, id: &'a str) -> Self {
        Self { id, object: "model", created: app.models_since_s, owned_by: "freehold" }
    }
}

pub(super) async fn list(state: State, headers: HeaderMap) -> Response {
    let listed = async {
        state.path.authenticate(headers::bearer(&headers)).await?;
        let models = state.path.routing().models();
        json(&List { object: "list", data: models.into_iter().map(|id| Model::new(&state, id)).collect() })
    };
    listed.await.unwrap_or_else(|failed| error::failed_response(&failed))
}

pub(super) async fn show(state: State, id: Result<Path<String>, PathRejection>, headers: HeaderMap) -> Response {
    let shown = async {
        state.path.authenticate(headers::bearer(&headers)).await?;
        let not_text = |_| ApiError::bad_request(Some("invalid_utf8"), None, "The model's name is not UTF-8.");
        let Path(id) = id.map_err(not_text)?;
        match state.path.routing().models().into_iter().find(|model| *model == id) {
            Some(model) => json(&Model::new(&state, model)),
            None => Err(ApiError::model_not_found(&shortened(&id)).into()),
        }
    };
    shown.await.unwrap_or_else(|failed| error::failed_response(&failed))
}

/// What of an unknown name is repeated: no control characters, no more than a name may have.
fn shortened(id: &str) -> String {
    id.chars().filter(|letter| !letter.is_control()).take(128).collect()
}

fn json(value: &impl Serialize) -> Result<Response, Failed> {
    let body = serde_json::to_vec(value).map_err(|_| Failure::Internal { what: "a list does not encode" })?;
    Ok(with_type(JSON, body))
}
