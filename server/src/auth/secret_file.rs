//! Secrets that the first start writes beside the log: mode 0600, whole or not at all, on the disk before they are used.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write as _},
    ops::RangeInclusive,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use super::{NoEntropy, SECRET_BYTES, base64url, entropy};

/// Name of the file with the operator's token.
pub const ADMIN_TOKEN_FILE: &str = "admin-token";
/// Name of the file with the pepper of API keys.
pub const KEY_PEPPER_FILE: &str = "key-pepper";
/// What an operator's token is.
pub const ADMIN_TOKEN_FORM: &str = "a token of 16 to 256 visible ASCII characters";
/// Fewest and most characters of an operator's token.
const ADMIN_TOKEN_CHARS: RangeInclusive<usize> = 16..=256;
/// Only its owner reads and writes a secret.
const MODE: u32 = 0o600;

/// Why a secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refuses.
    #[error("{verb} {}", .path.display())]
    Io {
        /// What was done.
        verb: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file does not hold what the first start wrote.
    #[error("{} does not hold {expected}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// A new secret could not be drawn.
    #[error("draw a new secret")]
    NoEntropy(#[source] NoEntropy),
}

/// A secret and whether it was made just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded<T> {
    /// The secret.
    pub secret: T,
    /// The file did not exist.
    pub is_new: bool,
}

/// Whether a text can be the operator's token. Operators may bring their own; it only has to fit into a header.
pub fn is_admin_token(text: &str) -> bool {
    ADMIN_TOKEN_CHARS.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Reads the operator's token, or makes it.
///
/// # Errors
/// The file cannot be read, written, or holds something else.
pub fn admin_token(directory: &Path) -> Result<Loaded<String>, Error> {
    let path = directory.join(ADMIN_TOKEN_FILE);
    let (text, is_new) = load_or_create(&path, base64url)?;
    let secret = text.trim().to_owned();
    if !is_admin_token(&secret) {
        return Err(Error::Malformed { path, expected: ADMIN_TOKEN_FORM });
    }
    Ok(Loaded { secret, is_new })
}

/// Reads the pepper of API keys, or makes it.
///
/// # Errors
/// The file cannot be read, written, or holds something else.
pub fn key_pepper(directory: &Path) -> Result<Loaded<[u8; SECRET_BYTES]>, Error> {
    let path = directory.join(KEY_PEPPER_FILE);
    let (text, is_new) = load_or_create(&path, to_hex)?;
    match from_hex(text.trim()) {
        Some(secret) => Ok(Loaded { secret, is_new }),
        None => Err(Error::Malformed { path, expected: "64 hexadecimal digits" }),
    }
}

/// Keeps a pepper that came from elsewhere.
///
/// # Errors
/// The file system refuses.
pub fn save_key_pepper(directory: &Path, secret: &[u8; SECRET_BYTES]) -> Result<(), Error> {
    save(&directory.join(KEY_PEPPER_FILE), &to_hex(secret))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<[u8; SECRET_BYTES]> {
    let mut bytes = [0; SECRET_BYTES];
    if text.len() != 2 * SECRET_BYTES || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

fn load_or_create(path: &Path, write: impl FnOnce(&[u8]) -> String) -> Result<(String, bool), Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok((text, false)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = write(&entropy::<SECRET_BYTES>().map_err(Error::NoEntropy)?);
            save(path, &text)?;
            Ok((text, true))
        }
        Err(source) => Err(Error::Io { verb: "read", path: path.to_owned(), source }),
    }
}

/// Writes a secret whole or not at all; when this returns it is on the disk.
///
/// # Errors
/// The file system refuses.
pub fn save(path: &Path, text: &str) -> Result<(), Error> {
    let at = |verb| move |source| Error::Io { verb, path: path.to_owned(), source };
    let beside = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(MODE).open(&beside).map_err(at("create"))?;
    // A file that a crash left behind may have another mode.
    file.set_permissions(Permissions::from_mode(MODE)).map_err(at("set the mode of"))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(at("write"))?;
    fs::rename(&beside, path).map_err(at("rename to"))?;
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(at("sync the directory of"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::is_secret;

    #[test]
    fn the_first_start_makes_secrets_only_their_owner_reads_and_the_next_finds_them() {
        let directory = tempfile::tempdir().unwrap();
        let token = admin_token(directory.path()).unwrap();
        let pepper = key_pepper(directory.path()).unwrap();
        assert!(token.is_new && pepper.is_new && is_secret(&token.secret));
        for name in [ADMIN_TOKEN_FILE, KEY_PEPPER_FILE] {
            let mode = fs::metadata(directory.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, MODE, "{name}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "nothing else is left behind");
        let again = admin_token(directory.path()).unwrap();
        assert_eq!(again, Loaded { secret: token.secret, is_new: false });
        assert_eq!(key_pepper(directory.path()).unwrap().secret, pepper.secret);
    }

    #[test]
    fn a_file_with_something_else_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(ADMIN_TOKEN_FILE), "short\n").unwrap();
        fs::write(directory.path().join(KEY_PEPPER_FILE), "é".repeat(32)).unwrap();
        let error = admin_token(directory.path()).unwrap_err().to_string();
        assert!(error.contains(ADMIN_TOKEN_FILE), "{error}");
        assert!(key_pepper(directory.path()).is_err());
    }
}
