//! Repository rules as code: `cargo xtask <codegen|layers|tidy|setup|test|cold>`. See CONTRIBUTING.md.

mod cargo;
mod codegen;
mod cold;
mod layers;
mod report;
mod setup;
mod steps;
mod tidy;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Repository rules as code.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Generate Rust from the .proto files.
    Codegen {
        /// Only compare; exit 1 when the committed code is stale.
        #[arg(long)]
        check: bool,
    },
    /// Check who imports whom, fenced crates, and what pure crates contain.
    Layers,
    /// Check headers, lengths, forbidden words, machine paths, whitespace, links, error pages.
    Tidy,
    /// Bring what tests need and cargo does not, below the target directory: the openai client, a nats-server.
    Setup,
    /// Clone, build the release binary from nothing and start `dev`; print what it took.
    Cold,
    /// Run everything CI runs.
    Test {
        /// Only fmt, layers, tidy and clippy.
        #[arg(long)]
        quick: bool,
        /// Lint, test and document these packages only.
        packages: Vec<String>,
    },
}

fn main() -> ExitCode {
    perform(&root()).unwrap_or_else(|error| {
        complain(&error);
        ExitCode::FAILURE
    })
}

fn perform(root: &Path) -> Result<ExitCode> {
    match Arguments::parse().task {
        Task::Codegen { check } => codegen::run(root, check)?,
        Task::Layers => layers::run(root)?,
        Task::Tidy => tidy::run(root)?,
        Task::Setup => setup::run(root)?,
        Task::Cold => cold::run(root)?,
        Task::Test { quick, packages } => return Ok(steps::run(root, &steps::Options { quick, packages })),
    }
    Ok(ExitCode::SUCCESS)
}

/// Without a backtrace, which would bury the violations printed before.
#[expect(clippy::print_stderr, reason = "the top of a command line tool")]
fn complain(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}

/// The workspace root: the parent of this package's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}
