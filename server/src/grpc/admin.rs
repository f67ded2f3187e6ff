//! Lets only those in who show the admin token.

use tonic::{Code, Request, Status, metadata::MetadataMap, service::Interceptor};

use super::{App, status};
use crate::auth::{Pepper, bearer};

/// Checks the token of every call.
#[derive(Debug, Clone)]
pub(super) struct Admin {
    pepper: Pepper,
    token: String,
}

impl Admin {
    pub(super) fn new(app: &App) -> Self {
        Self { pepper: app.pepper.clone(), token: app.admin_token.clone() }
    }
}

impl Interceptor for Admin {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        match token(request.metadata()) {
            Some(shown) if self.pepper.same(shown, &self.token) => Ok(request),
            Some(_) | None => {
                let message = "the admin token is missing or wrong: send it as authorization: Bearer <token>";
                Err(status::plain(Code::Unauthenticated, "ADMIN_TOKEN_INVALID", message))
            }
        }
    }
}

/// The bearer token of a call.
pub(super) fn token(metadata: &MetadataMap) -> Option<&str> {
    bearer(metadata.get("authorization")?.to_str().ok()?)
}
