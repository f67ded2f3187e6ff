//! Secrets that nodes share through servers that should not be able to read them.
//!
//! They are encrypted (ChaCha20-Poly1305) under a key that is derived (HKDF-SHA256) from a secret which every node has in
//! its configuration. What a secret is for is authenticated with it, so that one cannot be put in another's place. Nonces
//! are random: a region shares two secrets in its life.

use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Salt},
};

use super::{NoEntropy, entropy};

/// Begins what is wrapped; a secret as it is never begins so, or is shorter.
const MAGIC: [u8; 4] = [0xfb, b'F', b'W', 1];
const SALT: &[u8] = b"freehold.cluster.secret.v1";

fn key(secret: &str, what: &str) -> Option<LessSafeKey> {
    let derived = Salt::new(HKDF_SHA256, SALT).extract(secret.as_bytes());
    let info = [what.as_bytes()];
    let key = derived.expand(&info, &CHACHA20_POLY1305).ok()?;
    Some(LessSafeKey::new(UnboundKey::from(key)))
}

/// Wraps a secret; `what` says what it is for.
///
/// # Errors
/// The system gave no randomness.
pub(crate) fn wrap(secret: &str, what: &str, plain: &[u8]) -> Result<Vec<u8>, NoEntropy> {
    let nonce = entropy::<NONCE_LEN>()?;
    let mut sealed = plain.to_vec();
    let key = key(secret, what).ok_or_else(|| NoEntropy("the key cannot be derived".to_owned()))?;
    let done = key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(what), &mut sealed);
    done.map_err(|error| NoEntropy(error.to_string()))?;
    Ok([&MAGIC[..], &nonce, &sealed].concat())
}

/// Whether bytes are a wrapped secret.
pub(crate) fn is_wrapped(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC) && bytes.len() > MAGIC.len() + NONCE_LEN + CHACHA20_POLY1305.tag_len()
}

/// Opens a wrapped secret; none if it was wrapped under another secret, for something else, or was changed.
pub(crate) fn open(secret: &str, what: &str, wrapped: &[u8]) -> Option<Vec<u8>> {
    let (nonce, sealed) = wrapped.strip_prefix(&MAGIC)?.split_first_chunk::<NONCE_LEN>()?;
    let mut opened = sealed.to_vec();
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let plain = key(secret, what)?.open_in_place(nonce, Aad::from(what), &mut opened).ok()?;
    Some(plain.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_secret_is_opened_by_the_same_secret_for_the_same_purpose_alone() {
        let pepper = [7; 32];
        let wrapped = wrap("correct horse battery", "eu/key-pepper", &pepper).unwrap();
        assert!(is_wrapped(&wrapped) && !is_wrapped(&pepper) && !is_wrapped(&[0xfb; 32]));
        assert!(!wrapped.windows(4).any(|part| part == [7; 4]));
        assert_eq!(open("correct horse battery", "eu/key-pepper", &wrapped).unwrap(), pepper);
        assert_eq!(open("another horse battery", "eu/key-pepper", &wrapped), None);
        assert_eq!(open("correct horse battery", "eu/admin-token", &wrapped), None);
        for index in 0..wrapped.len() {
            let mut changed = wrapped.clone();
            changed[index] ^= 1;
            assert_eq!(open("correct horse battery", "eu/key-pepper", &changed), None, "{index}");
        }
        assert_ne!(wrap("correct horse battery", "eu/key-pepper", &pepper).unwrap(), wrapped);
    }
}
