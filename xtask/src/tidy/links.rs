//! Markdown: relative links lead to a file or folder of the repository.
//!
//! Links to the web are not followed, anchors are not looked up, and code (fenced or inline) is not read.

use crate::report::Violation;

use super::Files;

pub(super) fn check(name: &str, text: &str, files: &Files, violations: &mut Vec<Violation>) {
    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut fence: Option<&str> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let marker = ["```", "~~~"].into_iter().find(|marker| line.trim_start().starts_with(marker));
        if let Some(marker) = marker {
            fence = match fence {
                None => Some(marker),
                Some(open) if open == marker => None,
                Some(open) => Some(open),
            };
            continue;
        }
        if fence.is_some() {
            continue;
        }
        for target in targets(&without_code(line)) {
            if !resolves(folder, &target, files) {
                violations.push(Violation::new(
                    format!("{name}:{number}"),
                    format!("dead link `{target}`"),
                    "a reader who follows it finds nothing",
                    "link to a file or folder of this repository, relative to this one",
                ));
            }
        }
    }
}

/// The line with inline code blanked out.
fn without_code(line: &str) -> String {
    // Every second part between backticks is code; an odd last one is not.
    let parts: Vec<_> = line.split('`').collect();
    let last = parts.len().saturating_sub(1);
    let kept = parts.iter().enumerate().filter(|(index, _)| index % 2 == 0 || *index == last);
    kept.map(|(_, part)| *part).collect::<Vec<_>>().join(" ")
}

/// Targets of `[text](target)` and `[name]: target`, without titles and anchors; those on the web left out.
fn targets(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for after in line.split("](").skip(1) {
        found.extend(after.split(')').next());
    }
    if line.starts_with('[')
        && let Some((_, after)) = line.split_once("]: ")
    {
        found.push(after);
    }
    found
        .into_iter()
        .filter_map(|target| target.split_whitespace().next())
        .map(|target| target.trim_start_matches('<').trim_end_matches('>'))
        .filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
        .filter_map(|target| target.split('#').next())
        .filter(|target| !target.is_empty())
        .map(str::to_owned)
        .collect()
}

fn resolves(folder: &str, target: &str, files: &Files) -> bool {
    if target.starts_with('/') {
        return false;
    }
    let mut path: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                if path.pop().is_none() {
                    return false;
                }
            }
            name => path.push(name),
        }
    }
    let path = path.join("/");
    let inside = format!("{path}/");
    path.is_empty() || files.contains_key(&path) || files.keys().any(|name| name.starts_with(&inside))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dead(text: &str) -> Vec<String> {
        let files = ["README.md", "docs/a.md", "docs/adr/0001-x.md", "src/lib.rs", "logo.png"];
        let files = files.into_iter().map(|name| (name.to_owned(), None)).collect();
        let mut violations = Vec::new();
        check("docs/a.md", text, &files, &mut violations);
        violations.into_iter().map(|violation| format!("{} {}", violation.place, violation.what)).collect()
    }

    #[test]
    fn links_to_files_and_folders_resolve() {
        for text in [
            "[a](a.md)",
            "[up](../README.md#part) and [down](adr/0001-x.md \"title\")",
            "[folder](adr/) [folder](../src) [root](..)",
            "![image](../logo.png)",
            "[here](#part) [web](https://example.org/x) [mail](mailto:a@example.org)",
            "[name]: ./adr/0001-x.md",
            "<https://example.org>",
        ] {
            assert_eq!(dead(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn dead_links_are_named_with_their_line() {
        assert_eq!(dead("fine\n[gone](gone.md)\n"), ["docs/a.md:2 dead link `gone.md`"]);
        assert_eq!(dead("[name]: gone.md\n").len(), 1);
        assert_eq!(dead("[outside](../../shared/x.md)\n").len(), 1);
        assert_eq!(dead("[above the root](../../README.md)\n").len(), 1);
        assert_eq!(dead("[absolute](/a.md)\n").len(), 1);
        assert_eq!(dead("[one](a.md) [two](b.md)\n").len(), 1);
    }

    #[test]
    fn code_is_not_read() {
        assert_eq!(dead("`[gone](gone.md)`\n"), [""; 0]);
        assert_eq!(dead("```\n[gone](gone.md)\n```\n[a](a.md)\n"), [""; 0]);
        assert_eq!(dead("```\n~~~\n```\n[gone](gone.md)\n").len(), 1, "a fence ends with its own marker");
        assert_eq!(dead("a lone ` and [gone](gone.md)\n").len(), 1);
    }
}
