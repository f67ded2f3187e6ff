//! A streamed answer as events, read no faster than its reader wants them.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use events_model::Tokens;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    client::{Inner, Opened},
    error::{CallError, EXCERPT_CHARS_MAX, Phase},
    wait::Deadline,
};
use crate::openai::{
    Chunk, Delivered, Naming, Usage,
    sse::{self, DONE},
};

/// How long the end of the body is waited for after `[DONE]`, so that the connection can be used again.
const END_WAIT: Duration = Duration::from_millis(50);

/// What a streamed answer brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEvent {
    /// A chunk to forward.
    Delta {
        /// The server-sent event, ready to be written: `data: {...}` and an empty line.
        frame: Bytes,
        /// Text of the first choice.
        text: String,
        /// Tokens it holds at least (`openai::count`).
        tokens: Tokens,
    },
    /// A choice ended; follows the chunk that says so.
    Finished {
        /// `stop`, `length`, `tool_calls`, `content_filter`, `function_call`, or what the upstream calls it.
        finish_reason: String,
    },
    /// What the upstream bills; comes at most once, just before `Done`.
    Usage {
        /// Prompt and completion.
        usage: Usage,
        /// The server-sent event that says it, if the client asked.
        frame: Option<Bytes>,
    },
    /// The answer is complete; write `data: [DONE]`.
    Done,
}

/// A streamed answer; dropping it cancels the call.
#[derive(Debug)]
pub struct AnswerStream {
    upstream: Arc<Inner>,
    naming: Naming,
    deadline: Deadline,
    /// None once the answer is complete or failed.
    body: Option<Incoming>,
    reader: sse::Reader,
    raw: VecDeque<Bytes>,
    ready: VecDeque<StreamEvent>,
    delivered: Delivered,
    usage: Option<(Usage, Option<Bytes>)>,
    finished: u32,
    slot: Option<OwnedSemaphorePermit>,
}

impl AnswerStream {
    pub(super) fn new(upstream: Arc<Inner>, opened: Opened, naming: Naming) -> Self {
        Self {
            upstream,
            naming,
            deadline: opened.deadline,
            body: Some(opened.response.into_body()),
            reader: sse::Reader::default(),
            raw: VecDeque::new(),
            ready: VecDeque::new(),
            delivered: Delivered::default(),
            usage: None,
            finished: 0,
            slot: Some(opened.slot),
        }
    }

    /// Names for chunks of our own, to end a stream that is cut.
    pub const fn naming(&self) -> &Naming {
        &self.naming
    }

    /// The text delivered so far, as counted.
    pub const fn delivered(&self) -> Delivered {
        self.delivered
    }

    /// Usage the upstream has reported so far; some report it with every chunk.
    pub fn usage(&self) -> Option<Usage> {
        self.usage.as_ref().map(|(usage, _)| *usage)
    }

    /// Waits for the next event; none after `Done` or an error.
    ///
    /// # Errors
    /// The answer broke off, stalled, or cannot be read; the call is then over.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<StreamEvent, CallError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            self.body.as_ref()?;
            let step = match self.raw.pop_front() {
                Some(data) if &*data == DONE => {
                    self.drain().await;
                    self.complete();
                    Ok(())
                }
                Some(data) => self.take(&data),
                None => self.read().await,
            };
            if let Err(error) = step {
                self.close();
                return Some(Err(error));
            }
        }
    }

    /// Reads the next piece of the body.
    async fn read(&mut self) -> Result<(), CallError> {
        let Some(body) = &mut self.body else { return Ok(()) };
        let idle = self.upstream.settings.timeouts.idle;
        let frame = self.deadline.wait(Phase::Idle, idle, body.frame()).await;
        match frame.map_err(|phase| self.upstream.timeout(phase, self.delivered))? {
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { return Ok(()) };
                self.reader.push(&data, &mut self.raw).map_err(|_| self.too_large())
            }
            Some(Err(source)) => Err(self.cut(Some(source.into()))),
            None => self.end(),
        }
    }

    /// The body ended without `[DONE]`: complete if every sign of an end was there, else cut.
    fn end(&mut self) -> Result<(), CallError> {
        let left = std::mem::take(&mut self.reader).finish();
        if left.as_deref() == Some(DONE) || (self.finished > 0 && self.usage.is_some()) {
            self.complete();
            return Ok(());
        }
        Err(self.cut(None))
    }

    fn take(&mut self, data: &[u8]) -> Result<(), CallError> {
        let chunk = self.naming.chunk(data).map_err(|error| self.upstream.malformed(error.why, self.delivered))?;
        let Chunk { frame, text, delivered, finish_reason, finished, usage, error } = chunk;
        if let Some(error) = error {
            let excerpt = error.chars().take(EXCERPT_CHARS_MAX).collect();
            let upstream = self.upstream.settings.name.clone();
            return Err(CallError::Reported { upstream, excerpt, delivered: self.delivered });
        }
        let before = self.delivered.tokens_at_least();
        self.delivered.add(delivered);
        self.finished = self.finished.saturating_add(finished);
        if let Some(frame) = frame {
            let tokens = self.delivered.tokens_at_least().minus(before);
            self.ready.push_back(StreamEvent::Delta { frame, text, tokens });
        }
        self.ready.extend(finish_reason.map(|finish_reason| StreamEvent::Finished { finish_reason }));
        if usage.is_some() {
            self.usage = usage;
        }
        Ok(())
    }

    /// Reads the body to its end, which usually is already there; a connection left in the middle cannot be reused.
    async fn drain(&mut self) {
        let Some(body) = &mut self.body else { return };
        let end = async { while let Some(Ok(_)) = body.frame().await {} };
        // An end that does not come costs the connection, nothing else.
        self.deadline.wait(Phase::Idle, END_WAIT, end).await.ok();
    }

    fn complete(&mut self) {
        if let Some((usage, frame)) = self.usage.clone() {
            self.ready.push_back(StreamEvent::Usage { usage, frame });
        }
        self.ready.push_back(StreamEvent::Done);
        self.close();
    }

    fn close(&mut self) {
        self.body = None;
        self.slot = None;
        self.raw.clear();
    }

    fn cut(&self, source: Option<Box<dyn std::error::Error + Send + Sync>>) -> CallError {
        let upstream = self.upstream.settings.name.clone();
        CallError::Cut { upstream, delivered: self.delivered, usage: self.usage(), source }
    }

    fn too_large(&self) -> CallError {
        let upstream = self.upstream.settings.name.clone();
        CallError::TooLarge { upstream, bytes_max: sse::EVENT_BYTES_MAX, delivered: self.delivered }
    }
}
