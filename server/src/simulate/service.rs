//! Routes and the path of one chat request.
//!
//! Order: body read, key checked, rate limit window, body understood, refusal drawn, accepted, first token awaited,
//! answered. Nothing is billed before "accepted". The body is read first because a connection with an unread body
//! cannot be used again.

use std::{convert::Infallible, future::poll_fn, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use tokio::time::Instant;

use super::{
    body::{self, Body, CREATED_UNIX_S, EventStream},
    dice::{self, Dice, Plan},
    error::ApiError,
    generate::{Generator, Step},
    ledger::{Attempt, Ledger, Outcome},
    options::Options,
    request::{Chat, clipped},
    text::Words,
};

/// Largest request body, in bytes.
pub(super) const BODY_BYTES_MAX: usize = 16 * 1_024 * 1_024;
/// Longest client request id, in bytes.
pub(super) const CLIENT_ID_BYTES_MAX: usize = 256;
/// The header that names a request across retries.
const CLIENT_ID_HEADER: &str = "x-client-request-id";
/// Where the usage of a client request id is found.
const USAGE_PREFIX: &str = "/v1/usage/";

/// One simulator, as its connections see it.
#[derive(Debug)]
pub(super) struct Service {
    options: Options,
    /// The models as JSON strings, in the order of the options.
    models_json: Vec<String>,
    ledger: Arc<Ledger>,
    started: Instant,
}

impl Service {
    /// A service for options that were validated.
    pub(super) fn new(options: Options) -> Self {
        // A validated model name is visible ASCII, so the text of a JSON string is all that can come out.
        let models_json =
            options.models.iter().map(|name| serde_json::Value::from(name.as_str()).to_string()).collect();
        let ledger = Arc::new(Ledger::new(options.records_max));
        Self { options, models_json, ledger, started: now() }
    }

    /// The books.
    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Answers one request; every error is an answer.
    pub(super) async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let post = request.method() == Method::POST;
        let get = request.method() == Method::GET;
        let answer = match request.uri().path() {
            "/v1/chat/completions" if post => return Ok(self.chat(request).await),
            "/v1/models" if get => self.authorise(request.headers()).map(|()| self.list_models()),
            "/stats" if get => Ok(Body::json(StatusCode::OK, &self.ledger.stats())),
            "/healthz" if get => Ok(Body::json(StatusCode::OK, &"ok")),
            path if get && path.starts_with(USAGE_PREFIX) => {
                self.authorise(request.headers()).and_then(|()| self.usage(path))
            }
            path => Err(unknown_route(request.method(), path)),
        };
        Ok(answer.unwrap_or_else(ApiError::into_response))
    }

    async fn chat(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, incoming) = request.into_parts();
        let client_id = client_id(&parts.headers);
        let mut attempt = self.ledger.begin(client_id.as_ref().ok().copied().flatten());
        // Not a `?` chain, because a refusal must be entered into the books before it is answered.
        let admitted = match read(incoming).await {
            Ok(body) => self.admit(&parts.headers, client_id, attempt.number(), &body),
            Err(error) => Err(error),
        };
        match admitted {
            Ok((dice, chat)) => self.generate(attempt, dice, &chat).await,
            Err(error) => {
                attempt.end(Outcome::Refused(error.refused()));
                error.into_response()
            }
        }
    }

    fn admit(
        &self,
        headers: &HeaderMap,
        client_id: Result<Option<&str>, ApiError>,
        attempt: u32,
        body: &[u8],
    ) -> Result<(Dice, Chat), ApiError> {
        self.authorise(headers)?;
        if let Some(remaining) = self.rate_limited() {
            return Err(ApiError::rate_limited(remaining));
        }
        let client_id = client_id?;
        let chat = Chat::parse(body, &self.options.models)?;
        let seed = self.options.seed;
        let dice = match client_id {
            Some(id) => Dice::for_id(seed, id, attempt),
            None => {
                let hash = dice::hash(seed, body);
                Dice::for_body(seed, hash, self.ledger.occurrence(hash))
            }
        };
        match dice::refusal(dice, &self.options) {
            Some(dice::Refusal::Error500) => Err(ApiError::server_error()),
            Some(dice::Refusal::Error503) => Err(ApiError::overloaded()),
            None => Ok((dice, chat)),
        }
    }

    async fn generate(&self, mut attempt: Attempt, dice: Dice, chat: &Chat) -> Response<Body> {
        attempt.accept(chat.prompt_tokens, chat.stream);
        let plan = Plan::draw(dice, &self.options, chat);
        let words = |choice| Words::new(self.options.seed, chat.prompt_hash, choice);
        let mut generator = Generator::new(attempt, plan, words);
        let name = dice.name();
        let model = self.models_json.get(chat.model).map_or("\"\"", String::as_str);
        let (body, content_type) = if chat.stream {
            // Like real services, the head of a stream is sent when its first token is there.
            poll_fn(|context| generator.poll_first(context)).await;
            let stream = EventStream::new(generator, name, model, chat.include_usage);
            (Body::Stream(Box::new(stream)), "text/event-stream")
        } else {
            (plain(generator, name, model).await, "application/json")
        };
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if chat.stream {
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        }
        if let Ok(id) = HeaderValue::try_from(format!("req_{name:016x}")) {
            headers.insert("x-request-id", id);
        }
        response
    }

    fn authorise(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(key) = &self.options.api_key else { return Ok(()) };
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        if given == Some(key.as_bytes()) { Ok(()) } else { Err(ApiError::unauthorized()) }
    }

    /// Time that is left of the present rate limit window.
    fn rate_limited(&self) -> Option<Duration> {
        if self.options.rate_limit_for_ms == 0 {
            return None;
        }
        let every = Duration::from_millis(self.options.rate_limit_every_ms);
        let window = Duration::from_millis(self.options.rate_limit_for_ms);
        let into = now().duration_since(self.started).as_nanos() % every.as_nanos();
        let remaining = Duration::from_nanos(u64::try_from(every.as_nanos() - into).unwrap_or(u64::MAX));
        (remaining <= window).then_some(remaining)
    }

    fn list_models(&self) -> Response<Body> {
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
        let model = |id| Model { id, object: "model", created: CREATED_UNIX_S, owned_by: "freehold-simulator" };
        let data = self.options.models.iter().map(|id| model(id.as_str())).collect();
        Body::json(StatusCode::OK, &List { object: "list", data })
    }

    fn usage(&self, path: &str) -> Result<Response<Body>, ApiError> {
        let id = path.strip_prefix(USAGE_PREFIX).unwrap_or_default();
        match self.ledger.usage(id) {
            Some(usage) => Ok(Body::json(StatusCode::OK, &usage)),
            None => Err(ApiError::not_found(format!("No request with the id {:?} is known.", clipped(id)))),
        }
    }
}

/// Generates a whole plain response.
async fn plain(mut generator: Generator, name: u64, model: &str) -> Body {
    let mut texts = vec![String::new(); generator.lengths.len()];
    let (mut malformed, mut cut) = (false, false);
    loop {
        match poll_fn(|context| generator.poll_step(context)).await {
            Step::Token { choice, word } => texts.iter_mut().skip(choice).take(1).for_each(|text| text.push_str(word)),
            Step::Malformed => malformed = true,
            Step::Cut => {
                cut = true;
                break;
            }
            Step::End => break,
        }
    }
    let mut data = body::plain(&generator, name, model, &texts);
    let half = data.len() / 2;
    let mut attempt = generator.attempt;
    if cut {
        attempt.end(Outcome::Cut);
        let length = data.len() as u64;
        return Body::Torn { data: Some(data.split_to(half)), length, flushed: false };
    }
    if malformed {
        data.truncate(half);
    }
    Body::Whole { data: Some(data), attempt: Some(attempt) }
}

async fn read(incoming: Incoming) -> Result<Bytes, ApiError> {
    match Limited::new(incoming, BODY_BYTES_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::too_large(BODY_BYTES_MAX)),
        Err(_) => Err(ApiError::bad_request("The request body could not be read.", None, None)),
    }
}

/// The client request id: absent, or characters that a path carries unchanged.
fn client_id(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(value) = headers.get(CLIENT_ID_HEADER) else { return Ok(None) };
    let fits = |id: &&str| {
        (1..=CLIENT_ID_BYTES_MAX).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~:@".contains(&byte))
    };
    match value.to_str().ok().filter(fits) {
        Some(id) => Ok(Some(id)),
        None => {
            let allowed = "letters, digits or characters of -._~:@";
            let message = format!("The header {CLIENT_ID_HEADER} must be 1 to {CLIENT_ID_BYTES_MAX} {allowed}.");
            Err(ApiError::bad_request(message, None, Some("invalid_client_request_id")))
        }
    }
}

fn unknown_route(method: &Method, path: &str) -> ApiError {
    let known = matches!(path, "/v1/chat/completions" | "/v1/models" | "/stats" | "/healthz");
    if known || path.starts_with(USAGE_PREFIX) {
        ApiError::method_not_allowed(format!("Not allowed method for {}: {}.", clipped(path), clipped(method.as_str())))
    } else {
        ApiError::not_found(format!("Unknown address: {}.", clipped(path)))
    }
}

#[expect(clippy::disallowed_methods, reason = "rate limit windows are the one thing here that follows real time")]
fn now() -> Instant {
    Instant::now()
}
