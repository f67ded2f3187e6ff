//! `freehold cluster ...`: the nodes of a region and their shards.

use std::collections::BTreeMap;

use proto::cluster::v1 as pb;
use serde_json::{Value, json};

use super::{
    arguments::{Cluster, Common},
    client::Client,
    failure::{Failure, Problem},
    output::{Column, Output},
    show,
};

/// Runs a command about the cluster.
pub(super) async fn run(common: &Common, command: &Cluster, output: &mut Output) -> Result<(), Failure> {
    let mut cluster = Client::connect(common).await?.cluster();
    match command {
        Cluster::Nodes => nodes(&cluster.list_nodes(pb::ListNodesRequest {}).await?.into_inner(), output),
        Cluster::Shards { all } => {
            shards(&cluster.list_shards(pb::ListShardsRequest {}).await?.into_inner(), *all, output)
        }
        Cluster::Drain { node } => {
            let left = cluster.drain_node(pb::DrainNodeRequest { name: node.clone() }).await?.into_inner().left;
            if output.json() {
                return output.document(&json!({ "node": node, "left": left }));
            }
            if left > 0 {
                let problem = Problem::new(format!("{left} shards of node {node} were not taken by others in time"));
                return Err(problem.hint("`freehold cluster shards` shows who decides").into());
            }
            output.line(format_args!("node {node} has handed over all its shards and takes no more"))
        }
    }
}

fn nodes(answer: &pb::ListNodesResponse, output: &mut Output) -> Result<(), Failure> {
    if output.json() {
        let node = |node: &pb::Node| {
            json!({
                "name": node.name, "state": node.state, "address": node.address, "version": node.version,
                "started_at_us": node.started_at_us, "shards": node.shards, "last_seen_us": node.last_seen_us,
                "is_this": node.is_this,
            })
        };
        return output.document(&json!({ "nodes": answer.nodes.iter().map(node).collect::<Vec<Value>>() }));
    }
    let columns = [
        Column::Left("node"),
        Column::Left("state"),
        Column::Right("shards"),
        Column::Left("grpc"),
        Column::Left("version"),
        Column::Left("started"),
        Column::Right("seen ms ago"),
    ];
    let rows = answer.nodes.iter().map(|node| {
        let mark = if node.is_this { " (asked)" } else { "" };
        vec![
            format!("{}{mark}", node.name),
            node.state.clone(),
            node.shards.to_string(),
            node.address.clone(),
            node.version.clone(),
            show::time(node.started_at_us),
            (node.last_seen_us / 1_000).to_string(),
        ]
    });
    output.table(&columns, rows)
}

fn shards(answer: &pb::ListShardsResponse, all: bool, output: &mut Output) -> Result<(), Failure> {
    let pb::ListShardsResponse { shards, applied, head } = answer;
    if output.json() {
        let shard = |shard: &pb::Shard| json!({ "number": shard.number, "owner": shard.owner, "epoch": shard.epoch });
        let shards: Vec<Value> = shards.iter().map(shard).collect();
        return output.document(&json!({ "shards": shards, "applied": applied, "head": head }));
    }
    let owner = |shard: &pb::Shard| if shard.owner.is_empty() { "nobody".to_owned() } else { shard.owner.clone() };
    if all {
        let columns = [Column::Right("shard"), Column::Left("owner"), Column::Right("epoch")];
        let rows = shards.iter().map(|shard| vec![shard.number.to_string(), owner(shard), shard.epoch.to_string()]);
        output.table(&columns, rows)?;
    } else {
        let mut owners: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for shard in shards {
            owners.entry(owner(shard)).or_default().push(shard.number);
        }
        let columns = [Column::Left("owner"), Column::Right("shards"), Column::Left("which")];
        let rows = owners.into_iter().map(|(owner, numbers)| vec![owner, numbers.len().to_string(), ranges(&numbers)]);
        output.table(&columns, rows)?;
    }
    output.line(format_args!("this node's replica holds {applied} of {head} groups of the stream"))
}

/// Ascending numbers as `0-3, 7`.
fn ranges(numbers: &[u32]) -> String {
    let runs = numbers.chunk_by(|a, b| a + 1 == *b).filter_map(|run| Some((*run.first()?, *run.last()?)));
    let text = runs.map(|(from, to)| if from == to { from.to_string() } else { format!("{from}-{to}") });
    text.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_follow_one_another_are_shown_as_ranges() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2, 5, 7-8");
    }
}
