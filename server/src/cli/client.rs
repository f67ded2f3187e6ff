//! Talks to a running server: gRPC with the admin token.

use std::{fs, io, net::SocketAddr, time::Duration};

use proto::{
    cluster::v1::cluster_client::ClusterClient, episode::v1::episodes_client::EpisodesClient,
    events::v1::events_client::EventsClient, tenant::v1::tenants_client::TenantsClient,
};
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::{
    arguments::Common,
    failure::{Failure, Problem, UNREACHABLE},
};
use crate::{
    auth::secret_file::ADMIN_TOKEN_FILE,
    config::{self, Config, Environment, Secret},
};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection that carries the admin token.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    channel: Channel,
    bearer: Bearer,
}

/// Adds the token to each call.
#[derive(Debug, Clone)]
pub(crate) struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Authorised = InterceptedService<Channel, Bearer>;

impl Client {
    /// Connects to the server that the command line, the environment or the configuration names.
    ///
    /// # Errors
    /// No token is found, or nobody answers.
    pub(crate) async fn connect(common: &Common) -> Result<Self, Failure> {
        let environment = Environment::read();
        let config = config::load(&common.flags, &environment)?;
        let server = common.server.clone().or_else(|| environment.server().map(str::to_owned));
        let server = server.unwrap_or_else(|| url_of(config.grpc.listen));
        // First whether anybody is there: who has not started a server yet need not hear of tokens.
        let channel = reach(&server).await?;
        Self::new(channel, &admin_token(&config, &environment)?)
    }

    /// Connects to a server of which everything is known.
    ///
    /// # Errors
    /// Nobody answers.
    pub(crate) async fn connect_to(address: SocketAddr, token: &Secret) -> Result<Self, Failure> {
        Self::new(reach(&url_of(address)).await?, token)
    }

    fn new(channel: Channel, token: &Secret) -> Result<Self, Failure> {
        let mut bearer: MetadataValue<Ascii> = format!("Bearer {}", token.expose())
            .parse()
            .map_err(|_| Problem::new("the admin token has characters that no header carries").code("E0009"))?;
        bearer.set_sensitive(true);
        Ok(Self { channel, bearer: Bearer(bearer) })
    }

    /// Administration of tenants.
    pub(crate) fn tenants(&self) -> TenantsClient<Authorised> {
        TenantsClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }

    /// Applications' events, consumer groups, dead letters.
    pub(crate) fn events(&self) -> EventsClient<Authorised> {
        EventsClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }

    /// The nodes of the region.
    pub(crate) fn cluster(&self) -> ClusterClient<Authorised> {
        ClusterClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }

    /// The past.
    pub(crate) fn episodes(&self) -> EpisodesClient<Authorised> {
        EpisodesClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }
}

/// The URL of a listener; one that listens everywhere is reached here.
fn url_of(mut listen: SocketAddr) -> String {
    if listen.ip().is_unspecified() {
        listen.set_ip(if listen.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    format!("http://{listen}")
}

async fn reach(server: &str) -> Result<Channel, Failure> {
    let wrong = |reason: &str| Problem::new(format!("--server {server:?} {reason}")).misuse();
    if !server.starts_with("http://") {
        return Err(wrong("must begin with http://").hint("for example http://127.0.0.1:7600").into());
    }
    let endpoint = Endpoint::from_shared(server.to_owned()).map_err(|_| wrong("is not a URL"))?;
    let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(ANSWER_TIMEOUT).tcp_nodelay(true);
    endpoint.connect().await.map_err(|error| {
        let hint = "start one with `freehold dev` or `freehold serve`, or name it with --server";
        Problem::new(format!("no server is reachable at {server}")).because(&error).code(UNREACHABLE).hint(hint).into()
    })
}

fn admin_token(config: &Config, environment: &Environment) -> Result<Secret, Failure> {
    if let Some(token) = environment.admin_token() {
        return Ok(token);
    }
    let path = config.data.join(ADMIN_TOKEN_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Secret::new(text.trim().to_owned())),
        Err(error) => {
            let hint = if error.kind() == io::ErrorKind::NotFound {
                "name the server's data directory with --data, or set FREEHOLD_ADMIN_TOKEN"
            } else {
                "run as the server's user, or set FREEHOLD_ADMIN_TOKEN"
            };
            let problem = Problem::new(format!("no admin token in {}", path.display()));
            Err(problem.because(&error).code("E0009").hint(hint).into())
        }
    }
}

impl From<Status> for Failure {
    /// Words of an answer that is an error.
    fn from(status: Status) -> Self {
        let text = if status.message().is_empty() { status.code().description() } else { status.message() };
        let problem = Problem::new(text);
        match status.code() {
            Code::Unauthenticated => {
                problem.code("E0009").hint("name the server's data directory with --data, or set FREEHOLD_ADMIN_TOKEN")
            }
            Code::InvalidArgument | Code::OutOfRange => problem.misuse(),
            Code::Unavailable => {
                let problem = std::error::Error::source(&status).map(|source| Problem::new(text).because(source));
                problem.unwrap_or_else(|| Problem::new(text)).hint("the server refuses or is not reachable; try again")
            }
            Code::ResourceExhausted | Code::Aborted => problem.hint("try again in a moment"),
            // Our servers' errors have particulars; what has none is another's answer, such as the HTTP listener's.
            Code::Unimplemented | Code::Internal if status.details().is_empty() => {
                Problem::new(format!("what answers is no Freehold server's gRPC: {text}"))
                    .code(UNREACHABLE)
                    .hint("name the gRPC address with --server, by default port 7600; 7601 is the HTTP API")
            }
            Code::Unimplemented => problem.hint("the address answers, but is no Freehold server of this version"),
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::Internal
            | Code::DataLoss => problem,
        }
        .into()
    }
}
