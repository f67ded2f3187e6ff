//! `freehold bench`: measures this machine, each figure next to a reference in the same run.
//!
//! Invariants: every measurement alternates with its reference and is a median of rounds, because absolute times vary;
//! every result is checked (counted, summed up, compared with the simulator's books) and a wrong one fails the run.
//! Nothing of the operator's data is touched: everything lies in a scratch directory that is removed.

mod actors;
mod append;
mod bare;
mod child;
mod figure;
mod generate;
mod http;
mod load;
mod nats;
mod replay;
mod scratch;

use std::path::Path;

use crate::cli::{arguments::Bench, failure::Failure, output::Output};

/// Runs a benchmark.
pub(crate) fn run(data: &Path, command: &Bench, output: &mut Output) -> Result<(), Failure> {
    match command {
        Bench::Log(options) => {
            let scratch = scratch::Scratch::create(options.dir.as_deref(), data)?;
            let appends = append::run(options, &scratch, output)?;
            let replayed = replay::run(options, &scratch, output)?;
            if output.json() {
                return output.document(&serde_json::json!({ "append": appends, "replay": replayed }));
            }
            Ok(())
        }
        Bench::Http(options) => {
            let scratch = scratch::Scratch::create(options.dir.as_deref(), data)?;
            http::run(options, &scratch, output)
        }
        Bench::Nats(options) => {
            let scratch = scratch::Scratch::create(options.dir.as_deref(), data)?;
            nats::run(options, &scratch, output)
        }
        Bench::Actors(options) => {
            let scratch = scratch::Scratch::create(options.dir.as_deref(), data)?;
            actors::run(options, &scratch, output)
        }
        Bench::Open { directory } => replay::open(directory, output),
    }
}
