//! Which node should own which shard: rendezvous hashing, so that every node comes to the same answer by itself, and
//! that only the shards of a node that leaves, or the ones that a new node gets, move.
//!
//! The score of a pair is the stirred sum of a hash of the node's name and a hash of the shard; the highest wins, equal
//! scores go to the smaller name. Nodes of two versions that disagree here would pass shards to and fro: it is fixed.

/// The node that should own a shard, among live nodes that are not draining; none if there are none.
pub fn desired_owner<'a>(shard: u32, nodes: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let best = |node: &'a str| (score(shard, node), std::cmp::Reverse(node));
    nodes.into_iter().map(best).max().map(|(_, std::cmp::Reverse(node))| node)
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// 64-bit FNV-1a of the name plus a multiple of the golden ratio, stirred by the finalizer of `SplitMix64`.
fn score(shard: u32, node: &str) -> u64 {
    let name = node.bytes().fold(FNV_OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME));
    stir(stir(name).wrapping_add(u64::from(shard).wrapping_add(1).wrapping_mul(GOLDEN)))
}

const fn stir(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    fn owners(nodes: &[String], shards: u32) -> Vec<String> {
        let owner = |shard| desired_owner(shard, nodes.iter().map(String::as_str)).unwrap().to_owned();
        (0..shards).map(owner).collect()
    }

    fn names(rng: &mut StdRng) -> Vec<String> {
        let count = rng.random_range(1..=12);
        let style = rng.random_range(0..3);
        (0..count)
            .map(|n| match style {
                0 => format!("node-{n}"),
                1 => format!("freehold-{}.eu", n + 1),
                _ => format!("{:08x}", rng.random::<u32>()),
            })
            .collect()
    }

    #[test]
    fn owners_never_change_between_versions() {
        let nodes = ["n1", "n2", "n3"];
        let owners = [0, 1, 2, 3, 4, 255, 4_095].map(|shard| desired_owner(shard, nodes).unwrap());
        assert_eq!(owners, ["n3", "n3", "n2", "n3", "n3", "n3", "n3"]);
        assert_eq!(desired_owner(0, []), None);
    }

    #[test]
    fn shards_spread_over_any_nodes() {
        for seed in 0..200 {
            let nodes = names(&mut StdRng::seed_from_u64(seed));
            let mut counts: BTreeMap<String, f64> = nodes.iter().map(|node| (node.clone(), 0.0)).collect();
            for owner in owners(&nodes, 4_096) {
                *counts.get_mut(&owner).unwrap() += 1.0;
            }
            // Each shard is a throw of a fair die: five standard deviations either way.
            let chance = 1.0 / f64::from(u32::try_from(nodes.len()).unwrap());
            let (mean, deviation) = (4_096.0 * chance, (4_096.0 * chance * (1.0 - chance)).sqrt());
            for (node, count) in counts {
                assert!((count - mean).abs() <= 5.0 * deviation + 1.0, "seed {seed}: {node} has {count} of {mean}");
            }
        }
    }

    #[test]
    fn only_the_shards_of_the_node_that_comes_or_goes_move() {
        for seed in 0..200 {
            let nodes = names(&mut StdRng::seed_from_u64(seed));
            let before = owners(&nodes, 512);
            let with: Vec<_> = nodes.iter().cloned().chain(["joining".to_owned()]).collect();
            for (before, after) in before.iter().zip(owners(&with, 512)) {
                assert!(after == "joining" || after == *before, "seed {seed}: {before} -> {after}");
            }
        }
    }

    #[test]
    fn the_order_of_the_nodes_does_not_matter() {
        for seed in 0..100 {
            let mut nodes = names(&mut StdRng::seed_from_u64(seed));
            let before = owners(&nodes, 256);
            nodes.reverse();
            assert_eq!(before, owners(&nodes, 256), "seed {seed}");
        }
    }
}
