//! The binary: everything is in the library, so that tests and benchmarks can use it.

use std::process::ExitCode;

fn main() -> ExitCode {
    server::cli::run()
}
