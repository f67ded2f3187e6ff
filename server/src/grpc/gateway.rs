//! `freehold.gateway.v1.Gateway`: model requests, plain and streamed.

use std::{pin::Pin, sync::Arc};

use events_model::{RequestId, tenant};
use futures::Stream;
use gateway::openai::ChatRequest;
use proto::gateway::v1::{
    CompleteRequest, CompleteResponse, StreamCompleteResponse, Usage, gateway_server::Gateway as Service,
};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, metadata::MetadataMap};
use tracing::{Instrument as _, info_span};

use super::{App, admin, convert, status};
use crate::model_path::{Ended, Failed, Failure, Item, Submission, Surface, traceparent};

const REQUEST_ID: &str = "x-request-id";

/// The service.
#[derive(Debug)]
pub(super) struct Gateway(pub(super) Arc<App>);

impl Gateway {
    async fn submission(
        &self,
        request_id: RequestId,
        request: Request<CompleteRequest>,
        stream: bool,
    ) -> Result<Submission, Failed> {
        let path = &self.0.path;
        let (metadata, _, message) = request.into_parts();
        let caller = path.authenticate(admin::token(&metadata)).await?;
        let text = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok());
        Ok(Submission {
            request_id,
            caller,
            request: ChatRequest::new(&convert::chat_fields(message, stream), path.limits())?,
            // A key that is no visible ASCII is none: it is refused as an empty one is.
            idempotency_key: metadata.get("idempotency-key").map(|key| key.to_str().unwrap_or_default().to_owned()),
            traceparent: text("traceparent").and_then(traceparent::parse),
            surface: Surface::Grpc,
        })
    }

    async fn answer(
        &self,
        request_id: RequestId,
        request: Request<CompleteRequest>,
    ) -> Result<CompleteResponse, Failed> {
        let submission = self.submission(request_id, request, false).await?;
        let model = submission.request.model.clone();
        let completion = self.0.path.complete(submission).await?;
        let choices = completion.answer.choices();
        let choices = choices.map_err(|_| Failure::Internal { what: "the answer's choices cannot be read" })?;
        Ok(CompleteResponse {
            request_id: request_id.to_string(),
            model,
            content: choices.text,
            finish_reason: choices.finish_reason.unwrap_or_default(),
            usage: Some(usage(completion.usage, completion.cost)),
        })
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<StreamCompleteResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Service for Gateway {
    async fn complete(&self, request: Request<CompleteRequest>) -> Result<Response<CompleteResponse>, Status> {
        let request_id = self.0.path.new_request_id();
        let span = info_span!("grpc", %request_id, method = "Complete");
        match self.answer(request_id, request).instrument(span).await {
            Ok(message) => Ok(with_id(request_id, Response::new(message))),
            Err(failed) => Err(failure(request_id, &failed)),
        }
    }

    type StreamCompleteStream = Answers;

    async fn stream_complete(&self, request: Request<CompleteRequest>) -> Result<Response<Answers>, Status> {
        let request_id = self.0.path.new_request_id();
        let span = info_span!("grpc", %request_id, method = "StreamComplete");
        let begun = async {
            let submission = self.submission(request_id, request, true).await?;
            let model = submission.request.model.clone();
            Ok((model, self.0.path.stream(submission).await?))
        };
        match begun.instrument(span).await {
            Ok((model, streaming)) => {
                Ok(with_id(request_id, Response::new(answers(request_id, model, streaming.items))))
            }
            Err(failed) => Err(failure(request_id, &failed)),
        }
    }
}

/// Messages as they come; one without text (the chunk that names the role) is not worth sending.
fn answers(request_id: RequestId, model: String, items: mpsc::Receiver<Item>) -> Answers {
    let request_id = request_id.to_string();
    Box::pin(futures::stream::unfold((items, false), move |(mut items, is_over)| {
        let message = StreamCompleteResponse {
            request_id: request_id.clone(),
            model: model.clone(),
            delta: String::new(),
            finish_reason: String::new(),
            usage: None,
        };
        async move {
            if is_over {
                return None;
            }
            loop {
                match items.recv().await.unwrap_or_else(Item::broken_off) {
                    Item::Chunk { text, .. } if text.is_empty() => {}
                    Item::Chunk { text, .. } => {
                        return Some((Ok(StreamCompleteResponse { delta: text, ..message }), (items, false)));
                    }
                    Item::End(Ended { finish_reason, usage: used, cost, .. }) => {
                        let finish_reason = finish_reason.unwrap_or_default();
                        let usage = Some(usage(used, cost));
                        return Some((Ok(StreamCompleteResponse { finish_reason, usage, ..message }), (items, true)));
                    }
                    Item::Failed(failure) => {
                        crate::http::error::log(&failure);
                        return Some((Err(status::failure(&failure)), (items, true)));
                    }
                }
            }
        }
    }))
}

const fn usage(usage: tenant::Usage, cost: events_model::NanoUsd) -> Usage {
    Usage { prompt_tokens: usage.prompt_tokens.0, completion_tokens: usage.completion_tokens.0, cost_nano_usd: cost.0 }
}

fn with_id<T>(request_id: RequestId, mut response: Response<T>) -> Response<T> {
    put_id(response.metadata_mut(), request_id);
    response
}

fn failure(request_id: RequestId, failed: &Failed) -> Status {
    let mut status = status::failed(failed);
    put_id(status.metadata_mut(), request_id);
    status
}

fn put_id(metadata: &mut MetadataMap, request_id: RequestId) {
    if let Ok(value) = request_id.to_string().parse() {
        metadata.insert(REQUEST_ID, value);
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use tonic::Code;
    use tonic_types::StatusExt as _;

    use super::*;

    #[tokio::test]
    async fn a_stream_whose_task_ended_early_ends_with_an_internal_error() {
        let (sink, items) = mpsc::channel(2);
        sink.send(Item::Chunk { frame: bytes::Bytes::new(), text: "hi".to_owned() }).await.unwrap();
        drop(sink);
        let all: Vec<_> = answers(RequestId::from_bytes([7; 16]), "m".to_owned(), items).collect().await;
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].as_ref().unwrap().delta, "hi");
        let status = all[1].as_ref().unwrap_err();
        assert_eq!(status.code(), Code::Internal);
        assert_eq!(status.get_error_details().error_info().unwrap().reason, "INTERNAL");
    }
}
