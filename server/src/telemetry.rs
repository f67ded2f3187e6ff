//! Log lines on standard error, for people or for programs.
//!
//! Standard output belongs to results. What is measured is counted elsewhere (`metrics`).

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{EnvFilter, filter::ParseError};

use crate::config::{LogFormat, Telemetry};

/// Starts to write log lines; a second start in one process changes nothing.
///
/// # Errors
/// The filter is not understood (a configuration that was loaded has one that is).
pub fn start(telemetry: &Telemetry) -> Result<(), ParseError> {
    let filter = EnvFilter::try_new(&telemetry.filter)?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let started = match telemetry.format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    // Whoever was first keeps the lines: a test that runs several servers in one process.
    drop(started);
    Ok(())
}
