//! What an operator says about an upstream, and its checks.

use std::{fmt, time::Duration};

use http::{
    HeaderValue, Uri,
    uri::{PathAndQuery, Scheme},
};

use crate::openai::MaxTokensParameter;

/// Longest time any limit may be set to.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Most calls at once that may be allowed.
pub const CONNECTIONS_MAX: usize = 65_536;

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Which HTTP an upstream is spoken to in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Http2 {
    /// HTTP/2 if TLS negotiates it, else HTTP/1.1.
    #[default]
    Auto,
    /// HTTP/2 at once, also without TLS.
    PriorKnowledge,
}

/// How long an upstream may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// For a free connection: to get a slot, and to connect including TLS.
    pub connect: Duration,
    /// From sending the request to the head of the answer. A plain answer usually has no head before it is complete.
    pub first_byte: Duration,
    /// Between two pieces of the answer.
    pub idle: Duration,
    /// For the whole call.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(120),
            idle: Duration::from_secs(60),
            total: Duration::from_secs(600),
        }
    }
}

/// An upstream as it is configured.
#[derive(Debug, Clone)]
pub struct UpstreamSettings {
    /// For logs and records.
    pub name: String,
    /// `http` or `https`, as OpenAI's own clients take it: a path is kept and `/chat/completions` appended, so
    /// `https://x/v1` and `https://x/api/v3` work; without a path, `https://x`, it means `https://x/v1`.
    pub base_url: String,
    /// Sent as `authorization: Bearer`.
    pub api_key: Option<Secret>,
    /// Limits of time.
    pub timeouts: Timeouts,
    /// Version of HTTP.
    pub http2: Http2,
    /// The name it knows the bound of tokens under, used when the client gave none.
    pub max_tokens_parameter: MaxTokensParameter,
    /// Path from the root of the server that tells what a call was billed; it contains `{request_id}`.
    pub usage_lookup_path: Option<String>,
    /// Certificates (PEM) to trust instead of the public ones.
    pub ca_file: Option<Vec<u8>>,
    /// Calls at once; a call beyond waits for `timeouts.connect`. With HTTP/1.1 also the connections kept open.
    pub connections_max: usize,
    /// Largest plain answer, bytes.
    pub answer_bytes_max: usize,
}

impl UpstreamSettings {
    /// Defaults for an upstream at this address.
    pub fn new(name: impl Into<String>, base_url: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            base_url: base_url.into(),
            api_key: None,
            timeouts: Timeouts::default(),
            http2: Http2::default(),
            max_tokens_parameter: MaxTokensParameter::default(),
            usage_lookup_path: None,
            ca_file: None,
            connections_max: 1_024,
            answer_bytes_max: 16 * 1024 * 1024,
        }
    }
}

/// Says what is wrong with an upstream's settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The address is not usable.
    #[error("upstream {upstream}: base_url must be http(s)://host[:port][/path] without user and query: {why}")]
    BaseUrl {
        /// Its name.
        upstream: String,
        /// What is wrong.
        why: String,
    },
    /// The key cannot be sent in a header.
    #[error("upstream {upstream}: api_key holds characters that no header may hold")]
    ApiKey {
        /// Its name.
        upstream: String,
    },
    /// The path lacks what it must have.
    #[error("upstream {upstream}: usage_lookup_path must begin with '/' and contain {{request_id}}")]
    LookupPath {
        /// Its name.
        upstream: String,
    },
    /// A limit is out of range.
    #[error("upstream {upstream}: {what} must be {range}")]
    Limit {
        /// Its name.
        upstream: String,
        /// Which limit.
        what: &'static str,
        /// What it may be.
        range: String,
    },
    /// The certificates cannot be used.
    #[error("upstream {upstream}: ca_file: {why}")]
    Certificates {
        /// Its name.
        upstream: String,
        /// What is wrong.
        why: String,
    },
    /// TLS cannot be set up.
    #[error("upstream {upstream}: set up tls")]
    Tls {
        /// Its name.
        upstream: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// The checked addresses of an upstream.
#[derive(Debug, Clone)]
pub(super) struct Addresses {
    pub(super) completions: Uri,
    /// Before and after the request id.
    lookup: Option<(String, String)>,
    root: Uri,
}

impl Addresses {
    pub(super) fn new(settings: &UpstreamSettings) -> Result<Self, SettingsError> {
        let refuse = |why: &str| SettingsError::BaseUrl { upstream: settings.name.clone(), why: why.to_owned() };
        let root: Uri = settings.base_url.parse().map_err(|_| refuse("it is no URL"))?;
        if ![Some(&Scheme::HTTP), Some(&Scheme::HTTPS)].contains(&root.scheme()) {
            return Err(refuse("its scheme is neither http nor https"));
        }
        if root.authority().is_none_or(|authority| authority.as_str().contains('@')) {
            return Err(refuse("it names a user"));
        }
        if root.query().is_some() {
            return Err(refuse("it has a query"));
        }
        let prefix = match root.path().trim_end_matches('/') {
            "" => "/v1",
            path => path,
        };
        let completions = with_path(&root, &format!("{prefix}/chat/completions")).ok_or_else(|| refuse("its path"))?;
        let split = |path: &str| path.split_once("{request_id}").map(|(a, b)| (a.to_owned(), b.to_owned()));
        let lookup = match &settings.usage_lookup_path {
            Some(path) if path.starts_with('/') && with_path(&root, &path.replace(['{', '}'], "")).is_some() => {
                Some(split(path).ok_or_else(|| SettingsError::LookupPath { upstream: settings.name.clone() })?)
            }
            Some(_) => return Err(SettingsError::LookupPath { upstream: settings.name.clone() }),
            None => None,
        };
        Ok(Self { completions, lookup, root })
    }

    /// Where to ask about a request; none if the upstream cannot be asked.
    pub(super) fn lookup(&self, request_id: &str) -> Option<Uri> {
        let (before, after) = self.lookup.as_ref()?;
        with_path(&self.root, &format!("{before}{request_id}{after}"))
    }
}

fn with_path(root: &Uri, path: &str) -> Option<Uri> {
    let mut parts = root.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(path).ok()?);
    Uri::from_parts(parts).ok()
}

/// Checks the limits and makes the header of the key.
pub(super) fn check(settings: &UpstreamSettings) -> Result<Option<HeaderValue>, SettingsError> {
    let limit = |what, range: String| SettingsError::Limit { upstream: settings.name.clone(), what, range };
    let timeouts = &settings.timeouts;
    for (what, time) in [
        ("timeouts.connect", timeouts.connect),
        ("timeouts.first_byte", timeouts.first_byte),
        ("timeouts.idle", timeouts.idle),
        ("timeouts.total", timeouts.total),
    ] {
        if time.is_zero() || time > TIMEOUT_MAX {
            return Err(limit(what, format!("more than 0 s and at most {} s", TIMEOUT_MAX.as_secs())));
        }
    }
    if !(1..=CONNECTIONS_MAX).contains(&settings.connections_max) {
        return Err(limit("connections_max", format!("1 to {CONNECTIONS_MAX}")));
    }
    if settings.answer_bytes_max == 0 {
        return Err(limit("answer_bytes_max", "at least 1".to_owned()));
    }
    let Some(key) = &settings.api_key else { return Ok(None) };
    let mut header = HeaderValue::try_from(format!("Bearer {}", key.expose()))
        .map_err(|_| SettingsError::ApiKey { upstream: settings.name.clone() })?;
    header.set_sensitive(true);
    Ok(Some(header))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completions(base_url: &str) -> Result<String, SettingsError> {
        Addresses::new(&UpstreamSettings::new("u", base_url)).map(|addresses| addresses.completions.to_string())
    }

    #[test]
    fn base_urls_are_taken_as_openai_clients_take_them() {
        for (base_url, expected) in [
            ("https://x", "https://x/v1/chat/completions"),
            ("https://x/", "https://x/v1/chat/completions"),
            ("https://x/v1", "https://x/v1/chat/completions"),
            ("http://127.0.0.1:80/v1/", "http://127.0.0.1:80/v1/chat/completions"),
            ("https://x/v1beta/openai/", "https://x/v1beta/openai/chat/completions"),
        ] {
            assert_eq!(completions(base_url).unwrap(), expected);
        }
        for base_url in ["", "x", "ftp://x", "/v1", "https://u:p@x/v1", "https://x/v1?a=b", "https://"] {
            let error = completions(base_url).unwrap_err().to_string();
            assert!(!error.contains("u:p"), "{error}");
        }
    }

    #[test]
    fn the_lookup_path_starts_at_the_root_and_names_the_request() {
        let mut settings = UpstreamSettings::new("u", "http://x/v1");
        settings.usage_lookup_path = Some("/v1/usage/{request_id}?full=1".to_owned());
        let addresses = Addresses::new(&settings).unwrap();
        assert_eq!(addresses.lookup("r-1").unwrap(), "http://x/v1/usage/r-1?full=1");
        for path in ["v1/{request_id}", "/v1/usage", "/v1/ {request_id}"] {
            settings.usage_lookup_path = Some(path.to_owned());
            assert!(matches!(Addresses::new(&settings), Err(SettingsError::LookupPath { .. })), "{path}");
        }
    }

    #[test]
    fn keys_are_never_printed_and_must_fit_a_header() {
        let mut settings = UpstreamSettings::new("u", "http://x");
        settings.api_key = Some(Secret::new("sk-1234"));
        assert!(!format!("{settings:?}").contains("1234"));
        assert!(!format!("{:?}", check(&settings).unwrap()).contains("1234"));
        settings.api_key = Some(Secret::new("sk\r\nx: y"));
        assert!(matches!(check(&settings), Err(SettingsError::ApiKey { .. })));
    }

    #[test]
    fn limits_of_nothing_are_refused() {
        let mut settings = UpstreamSettings::new("u", "http://x");
        settings.timeouts.idle = Duration::ZERO;
        assert!(check(&settings).unwrap_err().to_string().contains("timeouts.idle"));
        settings = UpstreamSettings { connections_max: 0, ..UpstreamSettings::new("u", "http://x") };
        assert!(matches!(check(&settings), Err(SettingsError::Limit { what: "connections_max", .. })));
    }
}
