//! `cargo xtask tidy`: what a reviewer should not have to say: module headers, lengths, forbidden words, machine
//! paths, whitespace, dead links, error codes without a page.
//!
//! It sees the files git tracks or would track. Generated code is skipped; everything else has to conform. It does
//! not format (rustfmt does) and does not judge code (clippy does).

mod links;
mod pages;
mod rust;
mod text;

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;

use crate::{
    cargo,
    report::{self, Violation},
};

/// Files that tools write: nobody can tidy them by hand.
const GENERATED: &[&str] = &["Cargo.lock", "proto/src/gen/"];

/// Files of the repository, by path relative to the root; `None` where they are no text.
type Files = BTreeMap<String, Option<String>>;

/// Checks the repository.
///
/// # Errors
/// A rule is broken (printed), or the files cannot be read.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut files = cargo::repository_files(root)?;
    files.retain(|name, _| !is_generated(name));
    let (violations, warnings) = check(&files);
    for warning in &warnings {
        report::say(format_args!("warning: {warning}"));
    }
    report::say(format_args!("tidy: {} files, {} warnings", files.len(), warnings.len()));
    report::finish("tidy", violations)
}

fn is_generated(name: &str) -> bool {
    GENERATED
        .iter()
        .any(|generated| name.strip_prefix(generated).is_some_and(|rest| rest.is_empty() || generated.ends_with('/')))
}

/// Returns what must and what should be changed.
fn check(files: &Files) -> (Vec<Violation>, Vec<Violation>) {
    let (mut violations, mut warnings) = (Vec::new(), Vec::new());
    for (name, text) in files.iter().filter_map(|(name, text)| Some((name, text.as_ref()?))) {
        text::check(name, text, &mut violations);
        if name.ends_with(".rs") {
            rust::check(name, text, &mut violations, &mut warnings);
        }
        if name.ends_with(".md") {
            links::check(name, text, files, &mut violations);
        }
    }
    pages::check(files, &mut violations);
    (violations, warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_files_are_named_exactly() {
        assert!(is_generated("Cargo.lock"));
        assert!(is_generated("proto/src/gen/freehold.log.v1.rs"));
        assert!(!is_generated("Cargo.lock.md"));
        assert!(!is_generated("proto/src/lib.rs"));
    }

    #[test]
    fn a_tidy_repository_has_no_violation() {
        let files = Files::from([
            ("README.md".to_owned(), Some("# Name\n\nSee [the library](src/lib.rs).\n".to_owned())),
            ("src/lib.rs".to_owned(), Some("//! What it is for.\n".to_owned())),
            ("logo.png".to_owned(), None),
        ]);
        assert_eq!(check(&files), (Vec::new(), Vec::new()));
    }

    #[test]
    fn each_kind_of_check_runs() {
        let files = Files::from([
            ("README.md".to_owned(), Some("[gone](gone.md)\n".to_owned())),
            ("src/lib.rs".to_owned(), Some("fn f() {}\t\n".to_owned())),
            ("docs/errors/E0001.md".to_owned(), Some("# Page\n".to_owned())),
        ]);
        let (violations, _) = check(&files);
        let places: Vec<_> = violations.iter().map(|violation| violation.place.as_str()).collect();
        for place in ["README.md:1", "src/lib.rs:1", "docs/errors/E0001.md"] {
            assert!(places.contains(&place), "{places:?}");
        }
    }
}
