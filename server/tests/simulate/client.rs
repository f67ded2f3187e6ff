//! A small HTTP client for the tests of the simulator: keep-alive, both HTTP versions, whole bodies or frame by frame.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client as Pool, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use server::simulate::{Options, Simulator, Usage};

/// A free port of this machine.
pub(crate) const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// How long a condition may take to become true.
const PATIENCE: Duration = Duration::from_secs(20);

/// A simulator and a client of it.
pub(crate) async fn start(options: Options) -> (Simulator, Client) {
    let simulator = Simulator::start(options, LOCAL).await.unwrap();
    let client = Client::new(simulator.address());
    (simulator, client)
}

/// An error of any layer below HTTP: the connection broke.
pub(crate) type Broken = Box<dyn std::error::Error + Send + Sync>;

/// A pool of connections to one simulator.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    address: SocketAddr,
    pool: Pool<HttpConnector, Full<Bytes>>,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The text of one choice, put together from a stream.
    pub(crate) fn streamed_text(&self, choice: u64) -> String {
        streamed_text(&self.body, choice)
    }
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, pool: Pool::builder(TokioExecutor::new()).build_http() }
    }

    /// Speaks HTTP/2 with prior knowledge.
    pub(crate) fn http2(address: SocketAddr) -> Self {
        Self { address, pool: Pool::builder(TokioExecutor::new()).http2_only(true).build_http() }
    }

    /// Sends a request and returns once the head of the answer is there.
    pub(crate) async fn open(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Result<Response<Incoming>, Broken> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Ok(self.pool.request(request.body(Full::from(body)).unwrap()).await?)
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Result<Answer, Broken> {
        let (parts, body) = self.open(method, path, headers, body).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], String::new()).await.unwrap()
    }

    pub(crate) async fn post(&self, id: Option<&str>, body: String) -> Result<Answer, Broken> {
        let headers: Vec<_> = id.map(|id| ("x-client-request-id", id)).into_iter().collect();
        self.send(Method::POST, "/v1/chat/completions", &headers, body).await
    }

    pub(crate) async fn chat(&self, id: &str, body: &Value) -> Result<Answer, Broken> {
        self.post(Some(id), body.to_string()).await
    }

    /// The head of a chat answer; its body is the caller's to read or to drop.
    pub(crate) async fn open_chat(&self, id: &str, body: &Value) -> Result<Response<Incoming>, Broken> {
        self.open(Method::POST, "/v1/chat/completions", &[("x-client-request-id", id)], body.to_string()).await
    }

    pub(crate) async fn usage(&self, id: &str) -> Option<Usage> {
        let answer = self.get(&format!("/v1/usage/{id}")).await;
        (answer.status == StatusCode::OK).then(|| serde_json::from_slice(&answer.body).unwrap())
    }

    /// Asks for the usage until it is as wanted.
    pub(crate) async fn wait_for(&self, id: &str, wanted: impl Fn(&Usage) -> bool) -> Usage {
        let asking = async {
            loop {
                match self.usage(id).await {
                    Some(usage) if wanted(&usage) => return usage,
                    Some(_) | None => tokio::task::yield_now().await,
                }
            }
        };
        match tokio::time::timeout(PATIENCE, asking).await {
            Ok(usage) => usage,
            Err(_) => panic!("{id} is not as wanted: {:?}", self.usage(id).await),
        }
    }
}

/// A chat request with one user message and more fields.
pub(crate) fn chat(prompt: &str, fields: Value) -> Value {
    let mut body = json!({"model": "sim-small", "messages": [{"role": "user", "content": prompt}]});
    let Value::Object(fields) = fields else { panic!("fields are an object") };
    body.as_object_mut().unwrap().extend(fields);
    body
}

/// The data of the complete events of a stream.
pub(crate) fn data(body: &[u8]) -> Vec<&str> {
    let text = std::str::from_utf8(body).unwrap();
    text.split_inclusive("\n\n").filter_map(|event| event.strip_prefix("data: ")?.strip_suffix("\n\n")).collect()
}

/// The text of one choice in the complete and valid events of a stream.
pub(crate) fn streamed_text(body: &[u8], choice: u64) -> String {
    data(body)
        .into_iter()
        .filter_map(|event| serde_json::from_str::<Value>(event).ok())
        .filter_map(|chunk| {
            let first = chunk["choices"].get(0)?;
            (first["index"] == choice).then(|| first["delta"]["content"].as_str().map(String::from))?
        })
        .collect()
}

/// Completion tokens in a text.
pub(crate) fn words(text: &str) -> u64 {
    text.split_whitespace().count() as u64
}
