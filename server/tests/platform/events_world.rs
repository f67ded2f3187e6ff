//! What tests of the event service share: clients, appends, a consumer.

use std::time::Duration;

use futures::StreamExt as _;
use proto::{
    events::v1::{self as pb, events_client::EventsClient},
    tenant::v1 as tenant_pb,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};
use tonic_types::StatusExt as _;

use crate::world::{PATIENCE, TENANT, World};

/// Shows a token with each call.
#[derive(Debug, Clone)]
pub(crate) struct Token(MetadataValue<Ascii>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

pub(crate) type Client = EventsClient<InterceptedService<Channel, Token>>;

pub(crate) fn client(world: &World, token: &str) -> Client {
    let token = Token(format!("Bearer {token}").parse().unwrap());
    EventsClient::new(InterceptedService::new(world.channel.clone(), token))
}

pub(crate) fn own(world: &World) -> Client {
    client(world, &world.key)
}

pub(crate) fn admin(world: &World) -> Client {
    client(world, world.platform.admin_token())
}

/// Registers another tenant and gives its key.
pub(crate) async fn neighbour(world: &World, tenant: &str) -> String {
    let request = tenant_pb::CreateTenantRequest {
        tenant_id: tenant.to_owned(),
        display_name: String::new(),
        plan: "pro".to_owned(),
    };
    world.tenants().create_tenant(request).await.unwrap();
    let request = tenant_pb::IssueApiKeyRequest { tenant_id: tenant.to_owned(), label: String::new() };
    world.tenants().issue_api_key(request).await.unwrap().into_inner().secret
}

pub(crate) fn event(kind: &str, data: &str) -> pb::NewEvent {
    pb::NewEvent { r#type: kind.to_owned(), content_type: "text/plain".to_owned(), data: data.as_bytes().to_vec() }
}

/// An append of one event to a stream of the tenant, whatever its version.
pub(crate) fn any(id: &str, commit_id: &str, data: &str) -> pb::AppendRequest {
    pb::AppendRequest {
        stream: format!("app/{TENANT}/{id}"),
        expected: pb::Expected::Any.into(),
        commit_id: commit_id.to_owned(),
        events: vec![event("order.placed", data)],
        ..pb::AppendRequest::default()
    }
}

pub(crate) fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "freehold");
    info.reason.clone()
}

/// Asserts that a field is refused, by its name.
pub(crate) fn assert_field<T: std::fmt::Debug>(answer: Result<T, Status>, field: &str) {
    let status = answer.err().unwrap_or_else(|| panic!("{field} is taken"));
    let details = status.get_error_details();
    let violations = details.bad_request().unwrap_or_else(|| panic!("{field}: {status:?}"));
    assert_eq!((status.code(), violations.field_violations[0].field.as_str()), (Code::InvalidArgument, field));
}

pub(crate) fn data(commit: &pb::Commit) -> Vec<String> {
    commit.events.iter().map(|event| String::from_utf8(event.data.clone()).unwrap()).collect()
}

/// A group that gives up after two attempts and does not wait long in between.
pub(crate) fn group(name: &str) -> pb::CreateGroupRequest {
    pb::CreateGroupRequest {
        name: name.to_owned(),
        attempts_max: 2,
        backoff_first_ms: 5,
        backoff_max_ms: 20,
        ..pb::CreateGroupRequest::default()
    }
}

/// A consumer of a group.
#[derive(Debug)]
pub(crate) struct Consumer {
    pub(crate) asks: mpsc::Sender<pb::ConsumeRequest>,
    pub(crate) deliveries: Streaming<pb::ConsumeResponse>,
}

impl Consumer {
    pub(crate) async fn start(client: &mut Client, start: pb::Start) -> Result<Self, Status> {
        let (asks, queue) = mpsc::channel(64);
        asks.send(of(pb::consume_request::Message::Start(start))).await.unwrap();
        let deliveries = client.consume(ReceiverStream::new(queue)).await?.into_inner();
        Ok(Self { asks, deliveries })
    }

    pub(crate) async fn join(client: &mut Client, group: &str, in_flight_max: u32) -> Self {
        let start = pb::Start {
            group: group.to_owned(),
            in_flight_max,
            consumer_version: "test 1".to_owned(),
            ..pb::Start::default()
        };
        Self::start(client, start).await.unwrap()
    }

    pub(crate) async fn next(&mut self) -> pb::Delivery {
        let next = tokio::time::timeout(PATIENCE, self.deliveries.next()).await;
        next.unwrap().unwrap().unwrap().delivery.unwrap()
    }

    /// Whether nothing comes for a moment.
    pub(crate) async fn is_quiet(&mut self, for_ms: u64) -> bool {
        tokio::time::timeout(Duration::from_millis(for_ms), self.deliveries.next()).await.is_err()
    }

    pub(crate) async fn ack(&self, delivery: &pb::Delivery) {
        self.ack_all(vec![delivery.id.unwrap()]).await;
    }

    pub(crate) async fn ack_all(&self, deliveries: Vec<pb::DeliveryId>) {
        self.asks.send(of(pb::consume_request::Message::Ack(pb::Ack { deliveries }))).await.unwrap();
    }

    pub(crate) async fn nack(&self, delivery: &pb::Delivery, reason: &str) {
        let nack = pb::Nack { delivery: delivery.id, reason: reason.to_owned() };
        self.asks.send(of(pb::consume_request::Message::Nack(nack))).await.unwrap();
    }
}

pub(crate) const fn of(message: pb::consume_request::Message) -> pb::ConsumeRequest {
    pb::ConsumeRequest { message: Some(message) }
}

pub(crate) fn text(delivery: &pb::Delivery) -> String {
    data(delivery.commit.as_ref().unwrap()).remove(0)
}
