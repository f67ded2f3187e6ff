//! The log on JetStream: commits a second and their latency with the embedded log, with one NATS server and with three,
//! next to raw publishing of the same bytes; and how fast a node with an empty directory catches up.
//!
//! The servers are started here, on this machine, which they share with the engine and the callers. A caller appends one
//! commit, waits for its answer, and appends the next. Raw publishing repeats what the engine published, message by
//! message on as many subjects, and then once more with one message a commit.

mod appends;
mod catch_up;
mod servers;

use tokio::runtime::Runtime;

use self::servers::Servers;
use super::scratch::Scratch;
use crate::cli::{
    arguments::BenchNats,
    failure::{Failure, Problem},
    output::Output,
};

/// Measures, checks and prints.
pub(super) fn run(options: &BenchNats, scratch: &Scratch, output: &mut Output) -> Result<(), Failure> {
    let runtime = Runtime::new().map_err(|error| Problem::new("start the runtime").because(&error))?;
    let (mut compared, mut caught_up) = (Vec::new(), None);
    for count in options.servers.iter().copied().map(usize::from) {
        let directory = scratch.path(&format!("servers-{count}"));
        let servers = runtime.block_on(Servers::start(&options.nats_server, &directory, count))?;
        compared.extend(appends::run(options, &servers, scratch, &runtime)?);
        if caught_up.is_none() {
            caught_up = Some(catch_up::run(options, &servers, scratch, &runtime)?);
        }
    }
    if output.json() {
        return output.document(&serde_json::json!({ "appends": compared, "catch_up": caught_up }));
    }
    appends::print(options, &compared, output)?;
    match caught_up {
        Some(caught_up) => catch_up::print(&caught_up, output),
        None => Ok(()),
    }
}
