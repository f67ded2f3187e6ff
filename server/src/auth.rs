//! Who is asking: API keys of tenants, and the operator's token.
//!
//! Invariants: a secret is 256 random bits; an API key is stored only as HMAC-SHA256 under the installation's pepper,
//! so that neither the log nor a backup of it can be used as a key; secrets are compared in constant time and never
//! printed. Whether a key is known and not revoked is the tenant actor's knowledge, not this module's.

pub mod secret_file;
pub(crate) mod wrapped;

use std::fmt;

use events_model::TenantId;
use hmac::{
    Hmac, KeyInit as _, Mac,
    digest::{CtOutput, Output},
};
use sha2::Sha256;

/// Bytes of a secret.
pub const SECRET_BYTES: usize = 32;
/// Characters of a secret in base64url without padding.
pub const SECRET_CHARS: usize = 43;
/// Characters of a key's secret part that are shown in lists.
pub const SHOWN_CHARS: usize = 4;

const KEY_BEGINNING: &str = "fhk_";
const BASE64URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The system gave no randomness.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the system gave no randomness: {0}")]
pub struct NoEntropy(String);

/// Draws random bytes that are fit for secrets.
///
/// # Errors
/// The system gave none.
pub fn entropy<const N: usize>() -> Result<[u8; N], NoEntropy> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| NoEntropy(error.to_string()))?;
    Ok(bytes)
}

/// Writes bytes as base64url without padding.
pub fn base64url(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word = group.iter().fold(0_u32, |word, byte| (word << 8) | u32::from(*byte)) << (8 * (3 - group.len()));
        for index in 0..=group.len() {
            let digit = (word >> (18 - 6 * index)) & 63;
            text.push(BASE64URL.get(digit as usize).copied().map_or('A', char::from));
        }
    }
    text
}

/// Whether a text is as long as a secret and of its alphabet.
pub(crate) fn is_secret(text: &str) -> bool {
    text.len() == SECRET_CHARS && text.bytes().all(|byte| BASE64URL.contains(&byte))
}

/// The keyed hash of a secret. Comparing two takes the same time whatever they hold.
#[derive(Clone)]
pub struct Tag(CtOutput<Hmac<Sha256>>);

impl Tag {
    /// Whether this is the tag whose bytes were stored.
    pub fn is(&self, stored: &[u8; 32]) -> bool {
        self.0 == CtOutput::new(Output::<Hmac<Sha256>>::from(*stored))
    }

    /// The bytes to store.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.as_bytes().to_owned().into()
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tag(***)")
    }
}

/// The installation's own secret, which keys every hash.
#[derive(Clone)]
pub struct Pepper(Hmac<Sha256>);

impl Pepper {
    /// Takes the secret.
    pub fn new(secret: &[u8; SECRET_BYTES]) -> Self {
        // A block is larger than the secret, so HMAC takes it as it is.
        Self(Hmac::new(&hmac_block(secret)))
    }

    /// Hashes a text under the pepper.
    pub fn tag(&self, text: &str) -> Tag {
        Tag(self.0.clone().chain_update(text.as_bytes()).finalize())
    }

    /// Compares two secrets in constant time, lengths included.
    pub fn same(&self, one: &str, other: &str) -> bool {
        self.tag(one).0 == self.tag(other).0
    }
}

fn hmac_block(secret: &[u8; SECRET_BYTES]) -> hmac::digest::Key<Hmac<Sha256>> {
    let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
    for (to, from) in block.iter_mut().zip(secret) {
        *to = *from;
    }
    block
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper(***)")
    }
}

/// A whole API key, `fhk_<tenant>_<secret>`: shown once, never stored.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    tenant: TenantId,
    text: String,
}

impl ApiKey {
    /// Makes a new key for a tenant.
    ///
    /// # Errors
    /// The system gave no randomness.
    pub fn generate(tenant: &TenantId) -> Result<Self, NoEntropy> {
        let secret = base64url(&entropy::<SECRET_BYTES>()?);
        Ok(Self { tenant: tenant.clone(), text: format!("{KEY_BEGINNING}{tenant}_{secret}") })
    }

    /// Reads what a caller showed. A tenant's name holds no `_`, so the second one ends it; a secret may hold more.
    pub fn parse(text: &str) -> Option<Self> {
        let (tenant, secret) = text.strip_prefix(KEY_BEGINNING)?.split_once('_')?;
        let tenant = TenantId::new(tenant).ok()?;
        is_secret(secret).then(|| Self { tenant, text: text.to_owned() })
    }

    /// The tenant it claims to belong to.
    pub const fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// What may be shown of it in lists.
    pub fn prefix(&self) -> String {
        let shown = KEY_BEGINNING.len() + self.tenant.as_str().len() + 1 + SHOWN_CHARS;
        self.text.chars().take(shown).collect()
    }

    /// The whole key; only for the one who asked for it.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// What is stored of it.
    pub fn tag(&self, pepper: &Pepper) -> Tag {
        pepper.tag(&self.text)
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({}***)", self.prefix())
    }
}

/// The token of an `authorization: Bearer` value; the scheme's case does not matter.
pub fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64url_is_that_of_rfc_4648_without_padding() {
        for (bytes, text) in [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg")] {
            assert_eq!(base64url(bytes.as_bytes()), text);
        }
        assert_eq!(base64url(&[0xfb, 0xff, 0xfe]), "-__-");
        assert_eq!(base64url(&[7; SECRET_BYTES]).len(), SECRET_CHARS);
    }

    #[test]
    fn hashing_is_hmac_sha256() {
        // RFC 4231, test case 2, has a shorter key: zeros behind it are part of the block anyway.
        let mut secret = [0; SECRET_BYTES];
        secret[..4].copy_from_slice(b"Jefe");
        let tag = Pepper::new(&secret).tag("what do ya want for nothing?").to_bytes();
        let hex: String = tag.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn a_key_is_read_back_and_belongs_to_its_tenant_even_with_underscores_in_its_secret() {
        let tenant = TenantId::new("acme-2").unwrap();
        let key = ApiKey::generate(&tenant).unwrap();
        assert_eq!(ApiKey::parse(key.reveal()), Some(key.clone()));
        let text = format!("fhk_acme-2_{}", "_".repeat(SECRET_CHARS));
        let parsed = ApiKey::parse(&text).unwrap();
        assert_eq!((parsed.tenant(), parsed.prefix().as_str()), (&tenant, "fhk_acme-2_____"));
        assert!(!format!("{key:?}").contains(&key.reveal()[15..]));
    }

    #[test]
    fn what_is_not_a_key_is_not_read_as_one() {
        let secret = "a".repeat(SECRET_CHARS);
        for text in [
            String::new(),
            "fhk_".to_owned(),
            format!("sk_acme_{secret}"),
            format!("fhk_ACME_{secret}"),
            format!("fhk__{secret}"),
            format!("fhk_acme_{secret}a"),
            format!("fhk_acme_{}", &secret[1..]),
            format!("fhk_acme_{}\u{e9}", &secret[2..]),
            format!("fhk_acme_{}=", &secret[1..]),
        ] {
            assert_eq!(ApiKey::parse(&text), None, "{text}");
        }
    }

    #[test]
    fn a_tag_is_equal_only_to_its_own_bytes_and_another_pepper_gives_another() {
        let (one, other) = (Pepper::new(&[1; 32]), Pepper::new(&[2; 32]));
        let stored = one.tag("key").to_bytes();
        assert!(one.tag("key").is(&stored));
        assert!(!one.tag("kez").is(&stored) && !other.tag("key").is(&stored));
        assert!(one.same("token", "token") && !one.same("token", "token2"));
    }

    #[test]
    fn a_bearer_value_is_read_whatever_the_case_of_its_scheme() {
        assert_eq!(bearer("Bearer abc"), Some("abc"));
        assert_eq!(bearer("bearer  abc "), Some("abc"));
        assert_eq!(bearer("Basic abc"), None);
        assert_eq!(bearer("abc"), None);
    }
}
