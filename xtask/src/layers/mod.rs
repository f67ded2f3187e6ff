//! `cargo xtask layers`: who may import whom, which dependency is fenced into which crate, what a pure crate may
//! contain. The tables are in `rules`; `imports` judges manifests, `pure` judges sources.
//!
//! It reads manifests and sources as they are written and resolves nothing: what a third-party crate pulls in is the
//! business of `deny.toml`.

mod imports;
mod pure;
mod rules;

use std::path::Path;

use anyhow::Result;

use crate::{cargo, report};

/// Checks the workspace.
///
/// # Errors
/// A rule is broken (printed), or the workspace cannot be read.
pub(crate) fn run(root: &Path) -> Result<()> {
    let workspace = cargo::workspace(root)?;
    let mut violations = imports::check(&workspace);
    for name in rules::PURE {
        if let Some(pure) = workspace.crates.iter().find(|one| one.name == *name) {
            violations.extend(pure::check(root, &pure.folder)?);
        }
    }
    report::say(format_args!("layers: {} crates", workspace.crates.len()));
    report::finish("layers", violations)
}
