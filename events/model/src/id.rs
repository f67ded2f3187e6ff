//! Identifiers: one type each, checked where they enter, cheap to clone.
//!
//! Names are 1..=`NAME_BYTES_MAX` bytes of `a-z`, `0-9` and `-`, with no `-` at either end, so that they are
//! safe in subjects, paths, headers and keys without escaping.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Longest name, bytes.
pub const NAME_BYTES_MAX: usize = 63;
/// Longest commit id (idempotency key of a command), bytes.
pub const COMMIT_ID_BYTES_MAX: usize = 128;
/// Longest stream id, bytes.
pub const STREAM_ID_BYTES_MAX: usize = 200;

/// Says why a text is no identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not of the form of a name.
    #[error("{what} must be 1 to {NAME_BYTES_MAX} of a-z, 0-9 and '-', not at either end, but is {text:?}")]
    Name {
        /// Which identifier.
        what: &'static str,
        /// The text as given, cut to 80 characters.
        text: String,
    },
    /// Not visible ASCII or too long.
    #[error("{what} must be 1 to {bytes_max} visible ASCII characters, but is {text:?}")]
    Text {
        /// Which identifier.
        what: &'static str,
        /// The bound.
        bytes_max: usize,
        /// The text as given, cut to 80 characters.
        text: String,
    },
    /// Not a UUID.
    #[error("{what} must be a UUID, but is {text:?}")]
    Uuid {
        /// Which identifier.
        what: &'static str,
        /// The text as given, cut to 80 characters.
        text: String,
    },
    /// Not a stream id.
    #[error(
        "a stream is tenant/<tenant>, saga/<tenant>/<saga>, region/<region>, app/<tenant>/<id> or group/<tenant>/<name>, \
         but this is {text:?}"
    )]
    Stream {
        /// The text as given, cut to 80 characters.
        text: String,
    },
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

fn is_name(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = text.as_bytes();
    bytes.len() <= NAME_BYTES_MAX
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
}

fn is_visible_ascii(text: &str, bytes_max: usize) -> bool {
    !text.is_empty() && text.len() <= bytes_max && text.bytes().all(|byte| byte.is_ascii_graphic())
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr, $error:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and takes a text.
            ///
            /// # Errors
            /// The text is not of this identifier's form.
            pub fn new(text: &str) -> Result<Self, Error> {
                if $check(text) { Ok(Self(text.into())) } else { Err($error($what, text)) }
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self, Error> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.as_str().to_owned()
            }
        }
    };
}

fn name_error(what: &'static str, text: &str) -> Error {
    Error::Name { what, text: cut(text) }
}

text_id!(
    /// A customer organisation.
    TenantId, "a tenant", is_name, name_error
);
text_id!(
    /// A region, which has one log.
    RegionId, "a region", is_name, name_error
);
text_id!(
    /// One API key of a tenant; not the secret.
    KeyId, "a key id", is_name, name_error
);
text_id!(
    /// Idempotency key of a command, unique in its stream.
    CommitId,
    "a commit id",
    |text| is_visible_ascii(text, COMMIT_ID_BYTES_MAX),
    |what, text| Error::Text { what, bytes_max: COMMIT_ID_BYTES_MAX, text: cut(text) }
);
text_id!(
    /// Who asked: `admin`, `key/<key id>`, `system/<component>`.
    Principal,
    "a principal",
    |text| is_visible_ascii(text, COMMIT_ID_BYTES_MAX),
    |what, text| Error::Text { what, bytes_max: COMMIT_ID_BYTES_MAX, text: cut(text) }
);
text_id!(
    /// The ordered events of one actor, `tenant/<tenant>`, `saga/<tenant>/<saga>`, `region/<region>`,
    /// `group/<tenant>/<name>`, or of an application, `app/<tenant>/<id>`.
    StreamId,
    "a stream",
    is_stream,
    |_, text| Error::Stream { text: cut(text) }
);

fn is_stream(text: &str) -> bool {
    let mut parts = text.split('/');
    let names = match parts.next() {
        Some("tenant" | "region") => 1,
        Some("saga" | "app" | "group") => 2,
        _ => return false,
    };
    text.len() <= STREAM_ID_BYTES_MAX && parts.clone().count() == names && parts.all(is_name)
}

impl StreamId {
    /// The stream of a tenant's actor.
    pub fn tenant(tenant: &TenantId) -> Self {
        Self(format!("tenant/{tenant}").into())
    }

    /// The stream of a region's actor.
    pub fn region(region: &RegionId) -> Self {
        Self(format!("region/{region}").into())
    }

    /// The stream of a consumer group.
    ///
    /// # Errors
    /// The name is not 1 to 63 of `a-z`, `0-9` and `-`, or has a `-` at either end.
    pub fn group(tenant: &TenantId, name: &str) -> Result<Self, Error> {
        if is_name(name) { Ok(Self(format!("group/{tenant}/{name}").into())) } else { Err(name_error("a group", name)) }
    }

    /// The tenant this stream belongs to, if it belongs to one.
    pub fn tenant_id(&self) -> Option<TenantId> {
        let mut parts = self.0.split('/');
        match parts.next() {
            Some("tenant" | "saga" | "app" | "group") => parts.next().and_then(|name| TenantId::new(name).ok()),
            _ => None,
        }
    }

    /// The last part: a saga's, group's or application's own name of the stream.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// `tenant`, `saga`, `region`, `app` or `group`.
    pub fn kind(&self) -> &str {
        self.0.split('/').next().unwrap_or_default()
    }
}

impl Principal {
    /// The operator.
    pub fn admin() -> Self {
        Self("admin".into())
    }

    /// An application that showed an API key.
    pub fn key(key: &KeyId) -> Self {
        Self(format!("key/{key}").into())
    }

    /// A part of Freehold itself.
    pub fn system(component: &'static str) -> Self {
        Self(format!("system/{component}").into())
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Uuid);

        impl $name {
            /// Takes the 16 bytes of a UUID.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// The 16 bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// Builds a version 7 UUID from UTC milliseconds and randomness; both are inputs.
            pub fn from_parts(unix_ms: u64, random: [u8; 10]) -> Self {
                Self(uuid::Builder::from_unix_timestamp_millis(unix_ms, &random).into_uuid())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                Uuid::try_parse(text).map(Self).map_err(|_| Error::Uuid { what: $what, text: cut(text) })
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self, Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
    };
}

uuid_id!(
    /// Everything that happened for one request or one saga.
    EpisodeId, "an episode id"
);
uuid_id!(
    /// One event.
    EventId, "an event id"
);
uuid_id!(
    /// One model request; the same UUID as its episode.
    RequestId, "a request id"
);

impl From<RequestId> for EpisodeId {
    fn from(id: RequestId) -> Self {
        Self(id.0)
    }
}

impl From<EpisodeId> for RequestId {
    fn from(id: EpisodeId) -> Self {
        Self(id.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_slashes_capitals_or_dashes_at_the_edge_are_refused() {
        for text in ["", "-a", "a-", "A", "a/b", "a_b", "ü", "a b", &"x".repeat(64)] {
            assert!(TenantId::new(text).is_err(), "{text:?}");
        }
        assert_eq!(TenantId::new("acme-2").unwrap().as_str(), "acme-2");
    }

    #[test]
    fn streams_have_a_known_kind_and_the_right_number_of_parts() {
        for text in
            ["tenant", "tenant/", "tenant/a/b", "saga/a", "other/a", "tenant/A", "app/a", "app/a/b/c", "group/a/B"]
        {
            assert!(StreamId::new(text).is_err(), "{text:?}");
        }
        let saga = StreamId::new("saga/acme/order-1").unwrap();
        assert_eq!(saga.tenant_id(), Some(TenantId::new("acme").unwrap()));
        let group = StreamId::group(&TenantId::new("acme").unwrap(), "mail").unwrap();
        assert_eq!((group.as_str(), group.name(), group.kind()), ("group/acme/mail", "mail", "group"));
        assert_eq!(StreamId::new("app/acme/order-1").unwrap().tenant_id(), group.tenant_id());
    }

    #[test]
    fn commit_ids_refuse_control_characters() {
        assert!(CommitId::new("a\r\nb").is_err());
        assert!(CommitId::new("settle/0192").is_ok());
    }
}
