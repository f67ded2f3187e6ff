//! Rust files: the module header and the lengths of files and functions.

use syn::{Block, spanned::Spanned, visit::Visit};

use crate::report::Violation;

/// Lines a file should not exceed.
const FILE_LINES_AIM: usize = 500;
/// Lines a file may not exceed.
const FILE_LINES_MAX: usize = 700;
/// Lines between the braces that a function should not exceed.
const FUNCTION_LINES_AIM: usize = 70;
/// Lines between the braces that a function may not exceed.
const FUNCTION_LINES_MAX: usize = 100;

const WHY_FILE: &str = "a file is read as a whole";
const REMEDY_FILE: &str = "split it by what it is about";
const WHY_FUNCTION: &str = "a function is read on one screen";
const REMEDY_FUNCTION: &str = "push ifs up and fors down, give the parts names";

pub(super) fn check(name: &str, text: &str, violations: &mut Vec<Violation>, warnings: &mut Vec<Violation>) {
    if !text.trim_start().starts_with("//!") {
        violations.push(Violation::new(
            format!("{name}:1"),
            "the module has no header",
            "a reader wants to know what it is for before how it works",
            "begin with `//!`: what it is for, its invariants, what it deliberately does not do",
        ));
    }
    let lines = text.lines().count();
    if let Some(list) = level(lines, FILE_LINES_AIM, FILE_LINES_MAX, violations, warnings) {
        list.push(Violation::new(name, format!("{lines} lines, aim is {FILE_LINES_AIM}"), WHY_FILE, REMEDY_FILE));
    }
    match syn::parse_file(text) {
        Ok(file) => {
            let mut functions = Functions(Vec::new());
            functions.visit_file(&file);
            for (line, function, lines) in functions.0 {
                let what = format!("{function} has {lines} lines, aim is {FUNCTION_LINES_AIM}");
                if let Some(list) = level(lines, FUNCTION_LINES_AIM, FUNCTION_LINES_MAX, violations, warnings) {
                    list.push(Violation::new(format!("{name}:{line}"), what, WHY_FUNCTION, REMEDY_FUNCTION));
                }
            }
        }
        Err(error) => violations.push(Violation::new(
            format!("{name}:{}", error.span().start().line),
            format!("it does not parse: {error}"),
            "what cannot be parsed cannot be checked",
            "mend it, or delete it if nothing includes it",
        )),
    }
}

/// The list that `lines` belong on, if any.
fn level<'a>(
    lines: usize,
    aim: usize,
    max: usize,
    violations: &'a mut Vec<Violation>,
    warnings: &'a mut Vec<Violation>,
) -> Option<&'a mut Vec<Violation>> {
    if lines > max {
        Some(violations)
    } else if lines > aim {
        Some(warnings)
    } else {
        None
    }
}

/// Line, name and length of every function, also inside of others.
struct Functions(Vec<(usize, String, usize)>);

impl Functions {
    fn add(&mut self, signature: &syn::Signature, body: &Block) {
        let (open, close) = (body.brace_token.span.open().start().line, body.brace_token.span.close().end().line);
        let between = close.saturating_sub(open).saturating_sub(1);
        self.0.push((signature.span().start().line, signature.ident.to_string(), between));
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.add(&function.sig, &function.block);
        syn::visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.add(&function.sig, &function.block);
        syn::visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(body) = &function.default {
            self.add(&function.sig, body);
        }
        syn::visit::visit_trait_item_fn(self, function);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> (Vec<String>, Vec<String>) {
        let (mut violations, mut warnings) = (Vec::new(), Vec::new());
        check("a.rs", text, &mut violations, &mut warnings);
        let short = |list: Vec<Violation>| list.into_iter().map(|one| format!("{}: {}", one.place, one.what)).collect();
        (short(violations), short(warnings))
    }

    fn function(lines: usize) -> String {
        format!("//! Doc.\nfn f() {{\n{}}}\n", "    g();\n".repeat(lines))
    }

    #[test]
    fn a_module_without_a_header_is_refused() {
        assert_eq!(found("use std::fmt;\n").0, ["a.rs:1: the module has no header"]);
        assert_eq!(found("/// Not a header.\nfn f() {}\n").0, ["a.rs:1: the module has no header"]);
        assert_eq!(found("//! A header.\n"), (Vec::new(), Vec::new()));
    }

    #[test]
    fn long_files_are_warned_of_and_very_long_ones_refused() {
        let file = |lines: usize| format!("//! Doc.\n{}", "// More.\n".repeat(lines - 1));
        assert_eq!(found(&file(FILE_LINES_AIM)), (Vec::new(), Vec::new()));
        assert_eq!(found(&file(FILE_LINES_AIM + 1)).1, ["a.rs: 501 lines, aim is 500"]);
        assert_eq!(found(&file(FILE_LINES_MAX)).0, [""; 0]);
        assert_eq!(found(&file(FILE_LINES_MAX + 1)).0, ["a.rs: 701 lines, aim is 500"]);
    }

    #[test]
    fn long_functions_are_warned_of_and_very_long_ones_refused() {
        assert_eq!(found(&function(FUNCTION_LINES_AIM)), (Vec::new(), Vec::new()));
        assert_eq!(found(&function(FUNCTION_LINES_AIM + 1)).1, ["a.rs:2: f has 71 lines, aim is 70"]);
        assert_eq!(found(&function(FUNCTION_LINES_MAX)).0, [""; 0]);
        assert_eq!(found(&function(FUNCTION_LINES_MAX + 1)).0, ["a.rs:2: f has 101 lines, aim is 70"]);
    }

    #[test]
    fn methods_trait_defaults_and_inner_functions_count_too() {
        let body = "g();\n".repeat(FUNCTION_LINES_AIM + 1);
        for text in [
            format!("//! Doc.\nimpl A {{\nfn f() {{\n{body}}}\n}}\n"),
            format!("//! Doc.\ntrait A {{\nfn f() {{\n{body}}}\n}}\n"),
            format!("//! Doc.\nmod a {{\nfn f() {{\n{body}}}\n}}\n"),
        ] {
            assert_eq!(found(&text).1, ["a.rs:3: f has 71 lines, aim is 70"]);
        }
        let inner = format!("//! Doc.\nfn outer() {{\nfn f() {{\n{body}}}\n}}\n");
        assert_eq!(found(&inner).1.len(), 2);
    }

    #[test]
    fn a_file_that_does_not_parse_is_refused() {
        assert!(found("//! Doc.\nfn f( {}\n").0[0].contains("does not parse"));
    }
}
