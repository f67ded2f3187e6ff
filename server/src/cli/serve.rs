//! `freehold serve` and `freehold simulate`: run until a signal, then drain.
//!
//! Programs that start one with `--json` read one line from its standard output when it is ready.

use std::time::Duration;

use events_journal_nats::{self as nats, lease};
use events_journal_sled::OpenError;
use serde_json::json;

use super::{
    arguments::{Common, Listen, Simulate},
    catch_up,
    clock::Stopwatch,
    failure::{Failure, Problem},
    output::{Output, note},
    signal::Signals,
};
use crate::{
    cluster,
    config::{self, Config, Environment, Telemetry},
    platform::{Platform, StartError},
    simulate::Simulator,
    telemetry,
};

/// Runs the server.
pub(super) async fn serve(
    common: &Common,
    listen: &Listen,
    output: &mut Output,
    started: Stopwatch,
) -> Result<(), Failure> {
    let environment = Environment::read();
    let config = config::load(&listen.flags(common), &environment)?;
    if listen.dump_config {
        return dump(&config, output);
    }
    start_telemetry(&config.telemetry)?;
    let mut signals = Signals::install()?;
    let drain_timeout = config.requests.drain_timeout;
    let shown = catch_up::shown();
    let platform = tokio::select! {
        started = Platform::start_with(config, environment.admin_token(), &*shown) => started?,
        // A node may have much to catch up with; what it has is kept.
        () = signals.next() => {
            note("ended before it was ready");
            return Ok(());
        }
    };
    let (http, grpc) = (platform.http_address(), platform.grpc_address());
    let ready = started.elapsed();
    if output.json() {
        let ready_us = u64::try_from(ready.as_micros()).unwrap_or(u64::MAX);
        output.json_line(&json!({ "http": http.to_string(), "grpc": grpc.to_string(), "ready_us": ready_us }))?;
    } else {
        output.line(format_args!("ready in {} ms: HTTP http://{http}, gRPC http://{grpc}", ready.as_millis()))?;
    }
    output.flush()?;
    signals.next().await;
    say_draining(drain_timeout);
    signals.or_at_once(platform.shutdown()).await;
    Ok(())
}

/// Runs a simulated upstream.
pub(super) async fn simulate(simulate: &Simulate, output: &mut Output) -> Result<(), Failure> {
    start_telemetry(&Telemetry::default())?;
    let mut signals = Signals::install()?;
    if let Err(error) = simulate.options.validate() {
        return Err(Problem::of(&error).misuse().into());
    }
    let started = Simulator::start(simulate.options.clone(), simulate.listen).await;
    let simulator = started.map_err(|error| {
        let problem = Problem::new(format!("listen at {}", simulate.listen)).because(&error);
        if error.kind() == std::io::ErrorKind::AddrInUse { problem.code("E0007") } else { problem }
    })?;
    let address = simulator.address();
    if output.json() {
        output.json_line(&json!({ "http": address.to_string() }))?;
    } else {
        output.line(format_args!("simulated upstream at http://{address}/v1, counts at http://{address}/stats"))?;
    }
    output.flush()?;
    signals.next().await;
    signals.or_at_once(simulator.shutdown()).await;
    Ok(())
}

/// Prints the configuration in force.
pub(super) fn dump(config: &Config, output: &mut Output) -> Result<(), Failure> {
    if output.json() {
        return output.document(config);
    }
    let text = config.to_toml().map_err(|error| Problem::new("write the configuration as TOML").because(&error))?;
    output.lines(text.trim_end())
}

/// Starts log lines.
pub(super) fn start_telemetry(telemetry: &Telemetry) -> Result<(), Failure> {
    telemetry::start(telemetry).map_err(|error| Problem::of(&error).misuse().code(config::Error::CODE).into())
}

/// Says what a signal has started.
pub(super) fn say_draining(timeout: Duration) {
    let within = config::unit::show_duration(timeout);
    note(format_args!("draining: requests in flight settle within {within}; a second signal ends at once"));
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let problem = Problem::of(&error);
        let problem = error.code().into_iter().fold(problem, Problem::code);
        // What only another configuration mends is misuse: a supervisor need not start it again.
        match error {
            StartError::Certificates { .. } | StartError::Upstream(_) | StartError::PriceBookRefused(_) => {
                problem.misuse()
            }
            StartError::AdminTokenVariable => problem.misuse().hint("unset it to use the data directory's token"),
            StartError::Listen { .. } => problem.hint("name a free one with --http-listen or --grpc-listen; 0 chooses"),
            StartError::Open(OpenError::Locked { .. }) => problem.hint("stop that process, or name another --data"),
            StartError::ClockBehind { .. } => {
                problem.hint("set the machine's clock; if it is right, wait, or raise log.clock_ahead_max")
            }
            StartError::UpstreamKey(_) => {
                problem.hint("set it, or take the upstream out; `freehold doctor` checks all")
            }
            StartError::Cluster(error) => advise(problem, &error),
            StartError::Open(
                OpenError::Corrupt { .. } | OpenError::UnsupportedVersion { .. } | OpenError::Io { .. },
            )
            | StartError::Read(_)
            | StartError::AdminToken(_)
            | StartError::KeyPepper(_)
            | StartError::NoEntropy(_)
            | StartError::PriceBook(_)
            | StartError::Metrics(_)
            | StartError::Task(_) => problem,
        }
        .into()
    }
}

/// Says what an operator can do about a process that cannot be a node.
fn advise(problem: Problem, error: &cluster::Error) -> Problem {
    match error {
        cluster::Error::Log(nats::OpenError::ForeignStream { differences, .. })
        | cluster::Error::Lease(lease::Error::ForeignBucket { differences, .. })
            if cluster::is_other_settings(differences) =>
        {
            problem.misuse().hint("give cluster.shards and cluster.replicas the values that the region has")
        }
        cluster::Error::Log(error @ nats::OpenError::Option { .. }) => problem.misuse().hint(error.advice()),
        cluster::Error::Log(error) => problem.hint(error.advice()),
        cluster::Error::Lease(error @ (lease::Error::Differs { .. } | lease::Error::Setting { .. })) => {
            problem.misuse().hint(error.advice())
        }
        cluster::Error::Lease(error) => problem.hint(error.advice()),
        cluster::Error::Password(_) => problem.hint("write it there, or name another file with cluster.password_file"),
        cluster::Error::ClusterSecret(_) => {
            problem.hint("write it there, or name another file with cluster.secret_file")
        }
        cluster::Error::OtherSecret(_) => problem.misuse().hint("give this node the secret of the others"),
        cluster::Error::ClockSkew { .. } => problem.hint("set the wrong clock, and run a time service on all nodes"),
        cluster::Error::Listen(_) | cluster::Error::Secret(_) | cluster::Error::NoEntropy(_) => problem,
    }
}

#[cfg(test)]
mod tests {
    use nats::{Difference, OpenError as Nats};

    use super::{
        super::failure::{EXIT_MISUSE, EXIT_PROBLEM},
        *,
    };

    fn told(error: cluster::Error) -> (u8, String) {
        let failure = Failure::from(StartError::Cluster(error));
        match &failure {
            Failure::Problem(problem) => (failure.exit(), problem.to_string()),
            Failure::Found | Failure::ReaderGone => panic!("nothing is told"),
        }
    }

    fn stream_that_differs_in(fields: &[&'static str]) -> cluster::Error {
        let differs = |field: &&'static str| Difference { field, expected: "16".to_owned(), actual: "8".to_owned() };
        let differences = fields.iter().map(differs).collect();
        cluster::Error::Log(Nats::ForeignStream { stream: "FH_LOG_EU".to_owned(), differences })
    }

    #[test]
    fn a_node_whose_settings_are_not_the_regions_is_told_which_to_change_and_need_not_be_started_again() {
        let (exit, text) = told(stream_that_differs_in(&["freehold_shards", "num_replicas"]));
        assert_eq!(exit, EXIT_MISUSE);
        assert!(text.starts_with("error: [E0019]"), "{text}");
        assert!(text.contains("freehold_shards is 8, not 16") && text.contains("hint: give cluster.shards"), "{text}");
        let (asked, stored) = ("9000".to_owned(), "1500".to_owned());
        let (exit, text) = told(cluster::Error::Lease(lease::Error::Differs { setting: "ttl_ms", asked, stored }));
        assert_eq!(exit, EXIT_MISUSE);
        assert!(text.starts_with("error: [E0019] join the cluster\n"), "{text}");
        assert!(text.ends_with("hint: give every node of the region the same value"), "{text}");
    }

    #[test]
    fn a_stream_of_somebody_else_is_told_apart_from_other_settings() {
        let (exit, text) = told(stream_that_differs_in(&["freehold_shards", "max_age"]));
        assert_eq!(exit, EXIT_PROBLEM);
        assert!(text.contains("[E0018]") && text.contains("hint: choose another region name"), "{text}");
    }
}
