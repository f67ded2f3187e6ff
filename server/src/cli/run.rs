//! From arguments to an exit code.

use std::process::ExitCode;

use clap::{Parser as _, error::ErrorKind};
use tokio::runtime::{Builder, Runtime};

use super::{
    arguments::{Arguments, Command, Common},
    clock::Stopwatch,
    cluster, dev, dlq, doctor, events,
    failure::{EXIT_FINE, EXIT_MISUSE, Failure, Problem},
    group, log,
    output::{Output, note},
    past, saga, serve, tenant,
};
use crate::{
    bench,
    config::{self, Environment},
};

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let started = Stopwatch::start();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    let mut output = Output::new(arguments.common.json);
    let ended = command(&arguments, &mut output, started).and_then(|()| output.flush());
    let Err(failure) = ended else { return ExitCode::from(EXIT_FINE) };
    // What was printed before the failure still belongs to its reader.
    output.flush().ok();
    if let Failure::Problem(problem) = &failure {
        note(problem);
    }
    ExitCode::from(failure.exit())
}

/// Help and version are answers; everything else that clap says is about misuse.
fn usage(error: &clap::Error) -> ExitCode {
    let fine = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    // A reader that went away needs no help.
    error.print().ok();
    ExitCode::from(if fine { EXIT_FINE } else { EXIT_MISUSE })
}

fn command(arguments: &Arguments, output: &mut Output, started: Stopwatch) -> Result<(), Failure> {
    let common = &arguments.common;
    match &arguments.command {
        Command::Dev(listen) => many_threads()?.block_on(dev::run(common, listen, output, started)),
        Command::Serve(listen) => many_threads()?.block_on(serve::serve(common, listen, output, started)),
        Command::Simulate(simulate) => many_threads()?.block_on(serve::simulate(simulate, output)),
        Command::Tenant(command) => one_thread()?.block_on(tenant::tenant(common, command, output)),
        Command::Key(command) => one_thread()?.block_on(tenant::key(common, command, output)),
        Command::Episode(command) => one_thread()?.block_on(past::episode(common, command, output)),
        Command::State(command) => one_thread()?.block_on(past::state(common, command, output)),
        Command::Events(command) => one_thread()?.block_on(events::events(common, command, output)),
        Command::Group(command) => one_thread()?.block_on(group::group(common, command, output)),
        Command::Dlq(command) => one_thread()?.block_on(dlq::dlq(common, command, output)),
        Command::Cluster(command) => one_thread()?.block_on(cluster::run(common, command, output)),
        Command::Saga(command) => saga::run(command, output),
        Command::Log(command) => log::run(&data(common)?, command, output),
        Command::Bench(command) => bench::run(&data(common)?, command, output),
        Command::Doctor(doctor) => one_thread()?.block_on(doctor::run(common, doctor, output)),
    }
}

/// The data directory in force.
fn data(common: &Common) -> Result<std::path::PathBuf, Failure> {
    Ok(config::load(&common.flags, &Environment::read())?.data)
}

/// A runtime for commands that wait for one server.
fn one_thread() -> Result<Runtime, Failure> {
    runtime(&mut Builder::new_current_thread())
}

/// A runtime for servers.
fn many_threads() -> Result<Runtime, Failure> {
    runtime(&mut Builder::new_multi_thread())
}

fn runtime(builder: &mut Builder) -> Result<Runtime, Failure> {
    builder.enable_all().build().map_err(|error| Problem::new("start the runtime").because(&error).into())
}
