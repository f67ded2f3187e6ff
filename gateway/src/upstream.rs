//! Calls to OpenAI-compatible upstreams: plain, streamed, and the question what a call was billed.
//!
//! Invariants: every wait has a limit; a call that is dropped is cancelled upstream (HTTP/1 closes the connection,
//! HTTP/2 resets the stream); no call is sent twice; errors say whether the upstream may have billed something.
//! Deliberately absent: retries, hedging and routing (the caller's), redirects (an upstream is where it is configured).

mod call;
mod client;
mod error;
mod lookup;
mod settings;
mod stream;
mod wait;

pub use call::Call;
pub use client::Upstream;
pub use error::{CallError, EXCERPT_CHARS_MAX, Phase, UpstreamMessage};
pub use settings::{CONNECTIONS_MAX, Http2, Secret, SettingsError, TIMEOUT_MAX, Timeouts, UpstreamSettings};
pub use stream::{AnswerStream, StreamEvent};
