//! The OpenAI chat-completions API as bytes: requests in, answers and streams out, errors, durations.
//!
//! Everything here is free of I/O, clocks and randomness: the same bytes give the same result.

pub mod chunk;
pub mod count;
pub mod duration;
pub mod error;
mod json;
mod parameter;
pub mod request;
pub mod response;
mod rule;
pub mod sse;

pub use chunk::{Chunk, Naming};
pub use count::Delivered;
pub use error::ApiError;
pub use request::{ChatFields, ChatMessage, ChatRequest, MaxTokensParameter, RequestLimits};
pub use response::{PlainAnswer, Usage};
