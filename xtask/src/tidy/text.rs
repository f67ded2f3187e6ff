//! Lines of any text file: whitespace, merge markers, forbidden words, paths of one machine.

use crate::report::Violation;

/// Extensions of files that are programs or configuration; words are forbidden in them, not in prose.
const SOURCE_EXTENSIONS: &[&str] =
    &["c", "h", "json", "proto", "py", "rs", "service", "sh", "sql", "toml", "yaml", "yml"];
/// Sources without an extension.
const SOURCE_FILES: &[&str] = &[".ci/run"];
/// Folders of files whose bytes are the point: their whitespace is left alone.
const GOLDEN_FOLDER: &str = "golden";

// The words are put together here so that this file does not contain them.
/// Words that mark unfinished work, matched as written.
const MARKERS: &[&str] = &[
    concat!("to", "do!"),
    concat!("un", "implemented!"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("HA", "CK"),
    concat!("db", "g!"),
];
/// Phrases that mark unfinished work, whatever their case.
const PHRASES: &[&str] = &[concat!("place", "holder"), concat!("for ", "now"), concat!("not yet ", "implemented")];
/// Attributes that switch a check off without being missed when it is no longer needed.
const ATTRIBUTES: &[&str] = &[concat!("#[", "ignore"), concat!("#[", "allow("), concat!("#![", "allow(")];
/// Folders that exist on one machine only; a source has no business in the temporary folder either.
const MACHINE_FOLDERS: &[&str] = &[concat!("/", "work/"), concat!("/", "root/"), concat!("/", "home/")];
const TEMPORARY_FOLDER: &str = concat!("/", "tmp/");
const MERGE_MARKERS: &[&str] = &[concat!("<<<<", "<<< "), concat!(">>>>", ">>> "), concat!("||||", "||| ")];

pub(super) fn check(name: &str, text: &str, violations: &mut Vec<Violation>) {
    let source = is_source(name);
    let golden = name.split('/').any(|part| part == GOLDEN_FOLDER);
    for (number, line) in (1..).zip(text.split('\n')) {
        let place = || format!("{name}:{number}");
        if !golden {
            whitespace(&place, name, line, violations);
        }
        if MERGE_MARKERS.iter().any(|marker| line.starts_with(marker)) {
            violations.push(Violation::new(place(), "merge marker", "the merge is not finished", "resolve it"));
        }
        if source {
            words(&place, line, violations);
        }
        machine_paths(&place, line, source, violations);
    }
    if !golden && !text.is_empty() && (!text.ends_with('\n') || text.ends_with("\n\n")) {
        violations.push(Violation::new(
            name,
            "the file does not end with exactly one newline",
            "tools disagree about the last line",
            "end it with one newline",
        ));
    }
}

fn is_source(name: &str) -> bool {
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    SOURCE_FILES.contains(&name) || SOURCE_EXTENSIONS.contains(&extension)
}

fn whitespace(place: &dyn Fn() -> String, name: &str, line: &str, violations: &mut Vec<Violation>) {
    if line.ends_with(char::is_whitespace) {
        let what = if line.ends_with('\r') { "carriage return" } else { "trailing whitespace" };
        violations.push(Violation::new(place(), what, "it makes diffs noisy", "remove it"));
    }
    if name.ends_with(".rs") && line.contains('\t') {
        violations.push(Violation::new(place(), "tab", "tabs render differently", "use spaces, or \\t in a text"));
    }
}

fn words(place: &dyn Fn() -> String, line: &str, violations: &mut Vec<Violation>) {
    let lower = line.to_lowercase();
    let markers = MARKERS.iter().filter(|word| has_word(line, word));
    let phrases = PHRASES.iter().filter(|phrase| has_word(&lower, phrase));
    for word in markers.chain(phrases) {
        violations.push(Violation::new(
            place(),
            format!("forbidden word `{word}`"),
            "what is on the main branch is finished",
            "finish it, or write an issue and say in a sentence what the code does today",
        ));
    }
    for attribute in ATTRIBUTES.iter().filter(|attribute| line.contains(*attribute)) {
        violations.push(Violation::new(
            place(),
            format!("forbidden attribute `{attribute}`"),
            "it stays when its reason has gone",
            "use `#[expect(lint, reason = \"...\")]` on the smallest item; mend or delete a test",
        ));
    }
}

/// Whether `word` stands in `line` by itself and not as a part of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        let after = line.get(at + word.len()..).and_then(|text| text.chars().next());
        !before.is_some_and(is_part) && (word.ends_with('!') || !after.is_some_and(is_part))
    })
}

fn machine_paths(place: &dyn Fn() -> String, line: &str, source: bool, violations: &mut Vec<Violation>) {
    let temporary = source.then_some(&TEMPORARY_FOLDER);
    for folder in MACHINE_FOLDERS.iter().chain(temporary) {
        if line.match_indices(folder).any(|(at, _)| begins_path(line.get(..at).unwrap_or_default())) {
            violations.push(Violation::new(
                place(),
                format!("machine path `{folder}`"),
                "it exists on one machine only",
                "use a path relative to the root, a temporary folder from tempfile, or an argument",
            ));
        }
    }
}

/// Whether a `/` after `before` begins an absolute path: in `target/tmp` or `https://host/root` it does not.
fn begins_path(before: &str) -> bool {
    before.chars().next_back().is_none_or(|c| c.is_whitespace() || "\"'`(=:,[<|;&".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, text: &str) -> Vec<String> {
        let mut violations = Vec::new();
        check(name, text, &mut violations);
        violations.into_iter().map(|violation| format!("{}: {}", violation.place, violation.what)).collect()
    }

    #[test]
    fn each_forbidden_word_is_seen_in_sources_only() {
        for word in MARKERS.iter().chain(PHRASES) {
            let text = format!("fn f() {{}}\n// Say {word} here.\n");
            assert_eq!(found("a.rs", &text), [format!("a.rs:2: forbidden word `{word}`")]);
            assert_eq!(found("a.toml", &text).len(), 1);
            assert_eq!(found(".ci/run", &text).len(), 1);
            assert_eq!(found("a.md", &text), [""; 0]);
        }
    }

    #[test]
    fn parts_of_longer_words_are_fine() {
        for text in [
            "mkstemp(\"aXXXXXX\")",
            "let hacks = 1;",
            "for nowhere",
            "let todo = 1;",
            "SHACKLE",
            concat!("XX", "X_COUNT"),
        ] {
            assert_eq!(found("a.rs", &format!("{text}\n")), [""; 0], "{text}");
        }
        assert_eq!(found("a.rs", &format!("// {} is Fine.\n", concat!("For ", "Now"))).len(), 1);
        assert_eq!(found("a.rs", &format!("{}(x)\n", concat!("db", "g!"))).len(), 1);
    }

    #[test]
    fn attributes_that_hide_are_refused() {
        for attribute in ATTRIBUTES {
            let wrong = found("a.rs", &format!("{attribute}x)]\n"));
            assert!(wrong.contains(&format!("a.rs:1: forbidden attribute `{attribute}`")), "{wrong:?}");
        }
        assert_eq!(found("a.rs", "#[expect(clippy::panic, reason = \"why\")]\n"), [""; 0]);
    }

    #[test]
    fn machine_paths_are_refused() {
        for folder in MACHINE_FOLDERS.iter().chain([&TEMPORARY_FOLDER]) {
            for before in ["\"", "", " ", "=", "unix:"] {
                let text = format!("{before}{folder}x\"\n");
                assert_eq!(found("a.rs", &text), [format!("a.rs:1: machine path `{folder}`")], "{text}");
            }
            for before in ["target", "https://host", "{dir}", "$HOME", "."] {
                assert_eq!(found("a.rs", &format!("\"{before}{folder}x\"\n")), [""; 0], "{before}");
            }
        }
        assert_eq!(found("a.md", &format!("freehold dev --data {TEMPORARY_FOLDER}x\n")), [""; 0]);
    }

    #[test]
    fn whitespace_is_clean_except_in_golden_files() {
        assert_eq!(found("a.md", "x \n"), ["a.md:1: trailing whitespace"]);
        assert_eq!(found("a.md", "x\r\n"), ["a.md:1: carriage return"]);
        assert_eq!(found("a.rs", "\tx\n"), ["a.rs:1: tab"]);
        assert_eq!(found("Makefile", "a:\n\tx\n"), [""; 0]);
        assert_eq!(found("a.txt", "x"), ["a.txt: the file does not end with exactly one newline"]);
        assert_eq!(found("a.txt", "x\n\n"), ["a.txt: the file does not end with exactly one newline"]);
        assert_eq!(found("a/golden/stream.txt", "x \r\n\r\n"), [""; 0]);
        assert_eq!(found("empty.txt", ""), [""; 0]);
    }

    #[test]
    fn merge_markers_are_refused_everywhere() {
        for marker in MERGE_MARKERS {
            assert_eq!(found("a.md", &format!("{marker}HEAD\n")), ["a.md:1: merge marker"]);
        }
    }
}
