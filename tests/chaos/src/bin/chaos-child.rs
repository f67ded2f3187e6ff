//! The program that the tests of this crate kill; see `tests_chaos::child`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use tests_chaos::{child, plan::Plan};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().context("the first argument is the data directory")?);
    child::run(&dir, Plan::from_arguments(arguments)?)
}
