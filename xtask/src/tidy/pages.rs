//! Error codes: each code that the program can print has a page, and each page is about a code it can print.
//!
//! A code is `E`, `0` and three digits, as a word of its own, in any Rust source outside `xtask`.

use std::collections::BTreeMap;

use crate::report::Violation;

use super::Files;

const PAGES_FOLDER: &str = "docs/errors/";
/// `E` and the digits.
const CODE_LEN: usize = 5;

pub(super) fn check(files: &Files, violations: &mut Vec<Violation>) {
    let mut used: BTreeMap<&str, String> = BTreeMap::new();
    for (name, text) in files.iter().filter(|(name, _)| name.ends_with(".rs") && !name.starts_with("xtask/")) {
        for (number, line) in (1..).zip(text.as_deref().unwrap_or_default().lines()) {
            for code in codes(line) {
                used.entry(code).or_insert_with(|| format!("{name}:{number}"));
            }
        }
    }
    for (code, place) in &used {
        if !files.contains_key(&format!("{PAGES_FOLDER}{code}.md")) {
            violations.push(Violation::new(
                place,
                format!("error code {code} has no page"),
                "the page is the runbook of whoever meets the error",
                "write docs/errors/<code>.md in the form of the others and list it in docs/errors/README.md",
            ));
        }
    }
    for page in files.keys() {
        let code = page.strip_prefix(PAGES_FOLDER).and_then(|rest| rest.strip_suffix(".md"));
        if let Some(code) = code.filter(|code| codes(code).next().is_some())
            && !used.contains_key(code)
        {
            violations.push(Violation::new(
                page,
                format!("no source uses error code {code}"),
                "a page for an error that cannot occur misleads",
                "print the code with the error, or delete the page",
            ));
        }
    }
}

fn codes(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| {
        word.len() == CODE_LEN
            && word.strip_prefix("E0").is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let files = files.iter().map(|(name, text)| ((*name).to_owned(), Some((*text).to_owned()))).collect();
        let mut violations = Vec::new();
        check(&files, &mut violations);
        violations.into_iter().map(|violation| format!("{}: {}", violation.place, violation.what)).collect()
    }

    #[test]
    fn a_code_has_a_page_and_a_page_a_code() {
        let page = ("docs/errors/E0012.md", "# E0012");
        assert_eq!(found(&[("a.rs", "\"[E0012] data\""), page, ("docs/errors/README.md", "E0099")]), [""; 0]);
        assert_eq!(found(&[("a.rs", "x\n\"E0012\"")]), ["a.rs:2: error code E0012 has no page"]);
        assert_eq!(found(&[page]), ["docs/errors/E0012.md: no source uses error code E0012"]);
    }

    #[test]
    fn only_codes_in_sources_of_the_program_count() {
        for (name, text) in
            [("a.md", "[E0012]"), ("xtask/src/a.rs", "[E0012]"), ("a.rs", "0xE0012 E00123 E012 AE0012 E0012_x E1012")]
        {
            assert_eq!(found(&[(name, text)]), [""; 0], "{text}");
        }
    }
}
