//! Which shard a stream belongs to: fixed for ever, because owners, subjects and mirrors are divided by it.
//!
//! All streams of one tenant share a shard, so that one node decides for a tenant; every other stream stands for
//! itself. The hash is 64-bit FNV-1a over `tenant/<tenant>` or the stream's own name, stirred by the finalizer of
//! SplitMix64 (FNV alone leaves the low bits of similar names close together), modulo the number of shards.

use crate::id::StreamId;

/// The shard of a stream, 0..`shards`; 0 if there are none.
pub fn shard_of(stream: &StreamId, shards: u32) -> u32 {
    let hash = match stream.tenant_id() {
        Some(tenant) => fold(fold(FNV_OFFSET, b"tenant/"), tenant.as_str().as_bytes()),
        None => fold(FNV_OFFSET, stream.as_str().as_bytes()),
    };
    let shard = stir(hash).checked_rem(u64::from(shards)).unwrap_or(0);
    u32::try_from(shard).unwrap_or(0)
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

fn fold(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME))
}

const fn stir(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn shard(stream: &str) -> u32 {
        shard_of(&StreamId::new(stream).unwrap(), 256)
    }

    #[test]
    fn shards_never_move() {
        let streams = ["tenant/acme", "tenant/bell", "region/local", "tenant/a", "tenant/a1", "region/eu-west"];
        assert_eq!(streams.map(shard), [254, 113, 30, 238, 213, 26]);
    }

    #[test]
    fn all_streams_of_a_tenant_share_its_shard() {
        assert_eq!(shard("tenant/acme"), shard("saga/acme/one"));
        assert_eq!(shard("tenant/acme"), shard("saga/acme/two"));
        assert_ne!(shard("tenant/acme"), shard("region/acme"));
    }

    #[test]
    fn tenants_with_similar_names_spread_evenly() {
        let mut counts = BTreeMap::new();
        for n in 0..25_600 {
            *counts.entry(shard(&format!("tenant/t-{n}"))).or_insert(0) += 1;
        }
        // 100 each on average; a Poisson distribution of 256 shards stays within five deviations.
        assert_eq!(counts.len(), 256);
        assert!(counts.values().all(|count| (50..=150).contains(count)), "{counts:?}");
    }

    #[test]
    fn no_shards_is_no_panic() {
        assert_eq!(shard_of(&StreamId::new("tenant/acme").unwrap(), 0), 0);
    }
}
