//! A plain call: one answer, after its settlement is durable.

use actors_core::tenant::View;
use events_model::{
    NanoUsd,
    tenant::{Outcome, Usage},
};
use gateway::{
    openai::{Delivered, PlainAnswer},
    upstream::CallError,
};
use tokio::sync::oneshot;
use tracing::Instrument as _;

use super::{
    ModelPath, Submission, Work,
    admit::Admitted,
    call::{Interruption, unsettled},
    failure::{Failed, Failure},
    guard::InFlight,
    settle::Ending,
};

/// A whole answer, settled.
#[derive(Debug)]
pub struct Completion {
    /// The upstream's answer, renamed.
    pub answer: PlainAnswer,
    /// What was settled.
    pub usage: Usage,
    /// What it cost.
    pub cost: NanoUsd,
    /// The caller's limits right after the admission.
    pub view: View,
}

enum Called {
    Answer(PlainAnswer),
    Failed(CallError),
    Interrupted(Interruption),
}

type Reply = oneshot::Sender<Result<Completion, Failed>>;

impl ModelPath {
    /// Runs a plain request from its admission to its settlement.
    ///
    /// # Errors
    /// Why there is no answer; whatever was used is settled all the same.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the upstream call and settles what was used, in a task of its own.
    pub async fn complete(&self, submission: Submission) -> Result<Completion, Failed> {
        let work = self.take_in(submission)?;
        let (reply, answer) = oneshot::channel();
        self.inner.tasks.spawn(work.run_plain(reply).in_current_span());
        answer.await.unwrap_or_else(|_| Err(Failure::Internal { what: "the request's task ended" }.into()))
    }
}

impl Work {
    async fn run_plain(self, mut reply: Reply) {
        let admitted = match self.admit().await {
            Ok(admitted) => admitted,
            Err(failed) => {
                // Whether the client still listens makes no difference: nothing was admitted.
                drop(reply.send(Err(failed)));
                return;
            }
        };
        let in_flight = InFlight::new(&self.path.parts().metrics.model_in_flight);
        let result = self.call_and_settle(&admitted, &mut reply).await;
        drop(in_flight);
        // A client that is gone does not need its answer; it is settled.
        drop(reply.send(result));
    }

    async fn call_and_settle(&self, admitted: &Admitted, reply: &mut Reply) -> Result<Completion, Failed> {
        let parts = self.path.parts();
        let started = parts.clock.now();
        let called = tokio::select! {
            biased;
            result = admitted.upstream.complete(self.call(admitted)) => match result {
                Ok(answer) => Called::Answer(answer),
                Err(error) => Called::Failed(error),
            },
            () = reply.closed() => Called::Interrupted(Interruption::ClientGone),
            () = parts.stop.cut.cancelled() => Called::Interrupted(Interruption::Stopped),
        };
        let mut ending = match &called {
            Called::Answer(answer) => complete(answer),
            Called::Failed(error) => Ending::failed(error, false),
            Called::Interrupted(interruption) => interruption.ending(Delivered::default()),
        };
        ending.duration = parts.clock.now().since(started);
        if ending.is_complete {
            // A plain answer has no first token of its own: it came as a whole.
            ending.first_token = ending.duration;
        }
        let closed = Box::pin(self.close(admitted, ending)).await;
        let failure = match (called, closed) {
            (Called::Answer(answer), Ok(settled)) => {
                let (usage, cost, view) = (settled.usage, settled.cost, admitted.view);
                return Ok(Completion { answer, usage, cost, view });
            }
            (Called::Answer(_), Err(lost)) => unsettled(&lost),
            (Called::Failed(error), _) => Failure::Upstream(error),
            (Called::Interrupted(interruption), _) => interruption.failure(),
        };
        Err(Failed::with_view(failure, admitted.view))
    }
}

/// An answer that came whole. Without usage it is counted like one that broke off, from the text it holds.
fn complete(answer: &PlainAnswer) -> Ending {
    let delivered = answer.choices().map(|choices| choices.delivered).unwrap_or_default();
    let mut ending = Ending::incomplete(Outcome::Completed, delivered, "");
    ending.reported = answer.usage;
    ending.is_complete = true;
    ending.upstream_status = 200;
    ending
}
