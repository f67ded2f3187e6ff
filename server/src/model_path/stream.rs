//! A streamed call: chunks as they come, and the end of the stream after its settlement is durable.
//!
//! Chunks go through a bounded channel, so a slow client slows its upstream down and costs a bounded amount of
//! memory. A stream is cut before the first chunk that would take it beyond what is reserved.

use std::time::Duration;

use actors_core::tenant::View;
use bytes::Bytes;
use events_model::{
    DurationUs, NanoUsd, TimestampUs, Tokens,
    tenant::{Outcome, Usage},
};
use gateway::{
    openai::{Delivered, Naming, Usage as UpstreamUsage},
    upstream::{AnswerStream, CallError, StreamEvent},
};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument as _;

use super::{
    ModelPath, Parts, Submission, Work,
    admit::Admitted,
    call::{Interruption, unsettled},
    failure::{Failed, Failure},
    guard::InFlight,
    settle::{Ending, Settled},
};

/// Most chunks that wait for a client to read them.
pub const STREAM_ITEMS_MAX: usize = 64;
/// Longest time a client may read nothing.
const CLIENT_STALL_MAX: Duration = Duration::from_secs(60);
/// Why a stream that was cut ended, as OpenAI calls it.
const LENGTH: &str = "length";

/// A streamed answer that has begun.
#[derive(Debug)]
pub struct Streaming {
    /// What comes; the last item is `End` or `Failed`, unless the request's task panicked. Dropping it cancels the upstream call.
    pub items: mpsc::Receiver<Item>,
    /// The caller's limits right after the admission.
    pub view: View,
}

/// A piece of a streamed answer.
#[derive(Debug)]
pub enum Item {
    /// A chunk.
    Chunk {
        /// As a server-sent event.
        frame: Bytes,
        /// Text of the first choice.
        text: String,
    },
    /// The end, settled.
    End(Ended),
    /// The answer broke off.
    Failed(Box<Failure>),
}

/// The end of a streamed answer.
#[derive(Debug)]
pub struct Ended {
    /// Why the first choice ended, if it said.
    pub finish_reason: Option<String>,
    /// What was settled.
    pub usage: Usage,
    /// What it cost.
    pub cost: NanoUsd,
    /// The server-sent event that says so, if the client asked for it.
    pub usage_frame: Option<Bytes>,
}

/// How the upstream's part of a stream ended.
#[derive(Debug)]
enum Stop {
    Done,
    /// The next chunk would have been beyond the reservation.
    Reached,
    Failed(CallError),
    Interrupted(Interruption),
}

impl Item {
    /// Whether nothing comes after it.
    pub const fn is_last(&self) -> bool {
        match self {
            Self::End(_) | Self::Failed(_) => true,
            Self::Chunk { .. } => false,
        }
    }

    /// What stands for the last item when the items end without one: the request's task panicked.
    pub fn broken_off() -> Self {
        Self::Failed(Box::new(Failure::Internal { what: "the request's task ended in the middle of its answer" }))
    }
}

type Reply = oneshot::Sender<Result<Streaming, Failed>>;

/// Carries chunks from the upstream to the client.
struct Pump<'a> {
    parts: &'a Parts,
    sink: mpsc::Sender<Item>,
    completion_tokens_max: Tokens,
    tokens: Tokens,
    started: TimestampUs,
    first_token: DurationUs,
    finish_reason: Option<String>,
    usage: Option<(UpstreamUsage, Option<Bytes>)>,
}

impl ModelPath {
    /// Runs a streamed request from its admission to its settlement; returns when the answer begins.
    ///
    /// # Errors
    /// Why there is no answer; whatever was used is settled all the same.
    ///
    /// # Cancel safety
    /// Dropping the future, or what it returned, cancels the upstream call and settles what was used.
    pub async fn stream(&self, submission: Submission) -> Result<Streaming, Failed> {
        let work = self.take_in(submission)?;
        let (reply, answer) = oneshot::channel();
        self.inner.tasks.spawn(work.run_stream(reply).in_current_span());
        answer.await.unwrap_or_else(|_| Err(Failure::Internal { what: "the request's task ended" }.into()))
    }
}

impl Work {
    async fn run_stream(self, reply: Reply) {
        let admitted = match self.admit().await {
            Ok(admitted) => admitted,
            Err(failed) => {
                // Whether the client still listens makes no difference: nothing was admitted.
                drop(reply.send(Err(failed)));
                return;
            }
        };
        let _in_flight = InFlight::new(&self.path.parts().metrics.model_in_flight);
        Box::pin(self.open_and_settle(&admitted, reply)).await;
    }

    async fn open_and_settle(&self, admitted: &Admitted, mut reply: Reply) {
        let parts = self.path.parts();
        let started = parts.clock.now();
        let opened = tokio::select! {
            biased;
            result = admitted.upstream.stream(self.call(admitted)) => result.map_err(Stop::Failed),
            () = reply.closed() => Err(Stop::Interrupted(Interruption::ClientGone)),
            () = parts.stop.cut.cancelled() => Err(Stop::Interrupted(Interruption::Stopped)),
        };
        let stream = match opened {
            Ok(stream) => stream,
            Err(stop) => {
                let mut ending = match &stop {
                    Stop::Failed(error) => Ending::failed(error, false),
                    Stop::Interrupted(interruption) => interruption.ending(Delivered::default()),
                    Stop::Done | Stop::Reached => return,
                };
                ending.duration = parts.clock.now().since(started);
                // The client hears why there is no answer whether that could be recorded or not.
                drop(self.close(admitted, ending).await);
                drop(reply.send(Err(Failed::with_view(failure_of(stop), admitted.view))));
                return;
            }
        };
        let (sink, items) = mpsc::channel(STREAM_ITEMS_MAX);
        // If the client is gone, the channel is closed, which the pump sees.
        drop(reply.send(Ok(Streaming { items, view: admitted.view })));
        self.carry_and_settle(admitted, stream, sink, started).await;
    }

    async fn carry_and_settle(
        &self,
        admitted: &Admitted,
        mut stream: AnswerStream,
        sink: mpsc::Sender<Item>,
        started: TimestampUs,
    ) {
        let parts = self.path.parts();
        let mut pump = Pump {
            parts,
            sink,
            completion_tokens_max: admitted.completion_tokens_max,
            tokens: Tokens::ZERO,
            started,
            first_token: DurationUs::ZERO,
            finish_reason: None,
            usage: None,
        };
        // The upstream's own limit does not see a client that reads too slowly.
        let spent = Duration::from_micros(parts.clock.now().since(started).0);
        let left = admitted.upstream.settings().timeouts.total.saturating_sub(spent);
        let stop = match tokio::time::timeout(left, pump.carry(&mut stream)).await {
            Ok(stop) => stop,
            Err(_) => Stop::Interrupted(Interruption::TooLong),
        };
        let mut ending = ending_of(&stop, &stream);
        ending.reported = ending.reported.or(pump.usage.as_ref().map(|(usage, _)| *usage));
        let naming = stream.naming().clone();
        // Cancels the call if it is not over; what it billed is asked only then.
        drop(stream);
        ending.first_token = pump.first_token;
        ending.duration = parts.clock.now().since(started);
        let closed = self.close(admitted, ending).await;
        let last = match (stop, closed) {
            (Stop::Done, Ok(settled)) => self.end(&mut pump, &naming, settled),
            (Stop::Reached, Ok(settled)) => {
                self.cut_short(&mut pump, &naming).await;
                self.end(&mut pump, &naming, settled)
            }
            (Stop::Done | Stop::Reached, Err(lost)) => Item::Failed(Box::new(unsettled(&lost))),
            (stop, _) => Item::Failed(Box::new(failure_of(stop))),
        };
        pump.send_last(last).await;
    }

    /// Ends every choice of a stream that is cut.
    async fn cut_short(&self, pump: &mut Pump<'_>, naming: &Naming) {
        pump.finish_reason = Some(LENGTH.to_owned());
        for index in 0..self.submission.request.n {
            let frame = naming.finish_frame(self.now_s(), index, LENGTH);
            pump.send_last(Item::Chunk { frame, text: String::new() }).await;
        }
    }

    fn end(&self, pump: &mut Pump<'_>, naming: &Naming, settled: Settled) -> Item {
        let Settled { usage, cost } = settled;
        let own = || {
            let usage = UpstreamUsage { prompt: usage.prompt_tokens, completion: usage.completion_tokens };
            naming.final_usage_frame(self.now_s(), usage)
        };
        // The upstream's own words, with details, if they are what was settled.
        let theirs = pump.usage.take().and_then(|(reported, frame)| {
            let same = reported.prompt == usage.prompt_tokens && reported.completion == usage.completion_tokens;
            frame.filter(|_| same)
        });
        let usage_frame = self.submission.request.include_usage.then(|| theirs.unwrap_or_else(own));
        Item::End(Ended { finish_reason: pump.finish_reason.take(), usage, cost, usage_frame })
    }

    fn now_s(&self) -> u64 {
        self.path.parts().clock.now().0 / 1_000_000
    }
}

impl Pump<'_> {
    async fn carry(&mut self, stream: &mut AnswerStream) -> Stop {
        loop {
            let event = tokio::select! {
                biased;
                () = self.parts.stop.cut.cancelled() => return Stop::Interrupted(Interruption::Stopped),
                event = stream.next() => event,
                () = self.sink.closed() => return Stop::Interrupted(Interruption::ClientGone),
            };
            match event {
                Some(Ok(StreamEvent::Delta { frame, text, tokens })) => {
                    if self.tokens.plus(tokens) > self.completion_tokens_max {
                        return Stop::Reached;
                    }
                    self.tokens = self.tokens.plus(tokens);
                    if tokens > Tokens::ZERO && self.first_token == DurationUs::ZERO {
                        self.first_token = self.parts.clock.now().since(self.started);
                    }
                    if let Err(interruption) = self.send(Item::Chunk { frame, text }).await {
                        return Stop::Interrupted(interruption);
                    }
                }
                Some(Ok(StreamEvent::Finished { finish_reason })) => {
                    self.finish_reason.get_or_insert(finish_reason);
                }
                Some(Ok(StreamEvent::Usage { usage, frame })) => self.usage = Some((usage, frame)),
                // Nothing comes after `Done`.
                Some(Ok(StreamEvent::Done)) | None => return Stop::Done,
                Some(Err(error)) => return Stop::Failed(error),
            }
        }
    }

    async fn send(&self, item: Item) -> Result<(), Interruption> {
        match tokio::time::timeout(CLIENT_STALL_MAX, self.sink.send(item)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Interruption::ClientGone),
            Err(_) => Err(Interruption::ClientStalled),
        }
    }

    /// Sends after the settlement, when nothing depends on whether the client reads it.
    async fn send_last(&self, item: Item) {
        tokio::select! {
            // Whether it was read makes no difference any more.
            _sent = self.send(item) => {}
            () = self.parts.stop.abandon.cancelled() => {}
        }
    }
}

fn ending_of(stop: &Stop, stream: &AnswerStream) -> Ending {
    let delivered = stream.delivered();
    let mut ending = match stop {
        Stop::Done => Ending { is_complete: true, ..Ending::incomplete(Outcome::Completed, delivered, "") },
        Stop::Reached => {
            Ending::incomplete(Outcome::ReservationReached, delivered, "the answer reached what is reserved")
        }
        Stop::Failed(error) => Ending::failed(error, true),
        Stop::Interrupted(interruption) => interruption.ending(delivered),
    };
    ending.reported = ending.reported.or(stream.usage());
    ending.upstream_status = 200;
    ending
}

fn failure_of(stop: Stop) -> Failure {
    match stop {
        Stop::Failed(error) => Failure::Upstream(error),
        Stop::Interrupted(interruption) => interruption.failure(),
        Stop::Done | Stop::Reached => Failure::Internal { what: "a whole answer is no failure" },
    }
}
