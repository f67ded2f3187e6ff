//! The wire form of a group and the chain of groups.
//!
//! Invariants: a group is never empty; its hash is SHA-256 over the message's bytes as they lie in the stream; each
//! group of a subject names the number after and the hash of the one before, so that a hole, a repetition or a change
//! is seen by whoever follows.

use bytes::Bytes;
use prost::Message;
use proto::log::v1 as pb;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The only form there is.
pub(crate) const FORMAT: u32 = 1;
/// Characters of the hash in a message id.
const ID_HASH_CHARS: usize = 32;

/// The end of a chain: the number and the hash of its last group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Link {
    /// 0 = the chain is empty.
    pub(crate) number: u64,
    hash: [u8; 32],
}

/// The end of a chain without groups.
pub(crate) const START: Link = Link { number: 0, hash: [0; 32] };

impl Link {
    fn previous(&self) -> &[u8] {
        if self.number == 0 { &[] } else { &self.hash }
    }

    /// The id under which the servers recognise a repeated publish.
    pub(crate) fn message_id(&self, shard: u32) -> String {
        let hash: String = self.hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{shard}-{}-{}", self.number, hash.get(..ID_HASH_CHARS).unwrap_or_default())
    }
}

/// A group ready to be published.
#[derive(Debug, Clone)]
pub(crate) struct Encoded {
    pub(crate) bytes: Bytes,
    pub(crate) link: Link,
}

/// Encodes commits as the group after `previous`.
pub(crate) fn encode(shard: u32, previous: &Link, commits: Vec<Vec<u8>>) -> Encoded {
    let number = previous.number + 1;
    let group = pb::Group { format: FORMAT, shard, number, previous: previous.previous().to_vec(), commits };
    let bytes = Bytes::from(group.encode_to_vec());
    let link = Link { number, hash: Sha256::digest(&bytes).into() };
    Encoded { bytes, link }
}

impl Encoded {
    /// The group as it will come from the stream.
    pub(crate) fn decoded(&self, shard: u32, previous: &Link) -> Result<Decoded, String> {
        let commits = pb::Group::decode(self.bytes.clone()).map_err(|error| error.to_string())?.commits;
        let commits = commits.into_iter().map(Bytes::from).collect();
        Ok(Decoded { shard, previous: previous.previous().to_vec(), commits, link: self.link })
    }
}

/// A group as it came from the stream.
#[derive(Debug, Clone)]
pub(crate) struct Decoded {
    pub(crate) shard: u32,
    previous: Vec<u8>,
    pub(crate) commits: Vec<Bytes>,
    pub(crate) link: Link,
}

impl Decoded {
    /// Says what is wrong if this is not the group after `link`.
    pub(crate) fn broken_chain(&self, before: &Link) -> Option<String> {
        let (number, expected) = (self.link.number, before.number.saturating_add(1));
        if number != expected {
            Some(format!("its number is {number}, not {expected}"))
        } else if self.previous != before.previous() {
            Some(format!("it does not name the hash of group {} before it", before.number))
        } else {
            None
        }
    }
}

/// Decodes a message; the text says why it is no group.
pub(crate) fn decode(bytes: &[u8]) -> Result<Decoded, String> {
    let group = pb::Group::decode(bytes).map_err(|error| error.to_string())?;
    if group.format != FORMAT {
        return Err(format!("its format is {}, this program reads {FORMAT}", group.format));
    }
    if group.number == 0 || group.commits.is_empty() {
        return Err(format!("group {} has {} commits", group.number, group.commits.len()));
    }
    let link = Link { number: group.number, hash: Sha256::digest(bytes).into() };
    let commits = group.commits.into_iter().map(Bytes::from).collect();
    Ok(Decoded { shard: group.shard, previous: group.previous, commits, link })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_group_never_change() {
        let first = encode(7, &START, vec![b"one".to_vec(), b"two".to_vec()]);
        assert_eq!(first.bytes.as_ref(), b"\x08\x01\x10\x07\x18\x01\x2a\x03one\x2a\x03two");
        // The beginning of `sha256sum` over those bytes.
        assert_eq!(first.link.message_id(7), "7-1-59282533e81346bef4dcdda7f2bb1b7c");
        let second = encode(7, &first.link, vec![b"three".to_vec()]);
        let mut expected = b"\x08\x01\x10\x07\x18\x02\x22\x20".to_vec();
        expected.extend(first.link.hash);
        expected.extend(b"\x2a\x05three");
        assert_eq!(second.bytes, expected);
    }

    #[test]
    fn a_chain_is_whole_or_says_where_it_breaks() {
        let first = encode(3, &START, vec![vec![1]]);
        let second = encode(3, &first.link, vec![vec![2]]);
        let other = encode(3, &encode(3, &START, vec![vec![9]]).link, vec![vec![2]]);
        let read = |encoded: &Encoded| decode(&encoded.bytes).unwrap();
        assert_eq!(read(&first).broken_chain(&START), None);
        assert_eq!(read(&second).broken_chain(&first.link), None);
        assert!(read(&second).broken_chain(&START).unwrap().contains("number is 2, not 1"));
        assert!(read(&first).broken_chain(&first.link).unwrap().contains("number is 1, not 2"));
        assert!(read(&other).broken_chain(&first.link).unwrap().contains("hash of group 1"));
    }

    #[test]
    fn what_is_no_group_is_refused_with_a_reason() {
        let group = encode(3, &START, vec![vec![1; 90]]).bytes;
        for end in 0..group.len() {
            assert!(decode(&group[..end]).is_err(), "{end}");
        }
        let newer = pb::Group { format: 2, number: 1, commits: vec![vec![1]], ..pb::Group::default() };
        assert!(decode(&newer.encode_to_vec()).unwrap_err().contains("format is 2"));
        let empty = pb::Group { format: 1, number: 1, ..pb::Group::default() };
        assert!(decode(&empty.encode_to_vec()).is_err());
    }
}
