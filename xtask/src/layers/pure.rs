//! Judges the sources of pure crates: the lints at the top of `lib.rs`, the crate's own `clippy.toml`, and names that
//! stand for a clock, randomness, I/O, a runtime, logging or global state.
//!
//! It follows `mod` declarations from `lib.rs` and skips what is `#[cfg(test)]`: tests may be impure. It compares
//! names and does not resolve them; a renamed import can deceive it, a reviewer should not be.

use std::{
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::{AttrStyle, Attribute, Item, UseTree, spanned::Spanned};

use crate::{cargo, report::Violation};

use super::rules;

const WHY_PURE: &str = "a pure crate gives the same answer on every machine, for ever";
const REMEDY_PURE: &str = "pass the value in, or move the code to the shell";

/// Everything that is wrong with the pure crate in `folder`.
pub(super) fn check(root: &Path, folder: &str) -> Result<Vec<Violation>> {
    let mut violations = Vec::new();
    let config = root.join(folder).join("clippy.toml");
    if config.exists() {
        let (general, own) = (cargo::read_toml(&root.join("clippy.toml"))?, cargo::read_toml(&config)?);
        violations.extend(clippy_config(&format!("{folder}/clippy.toml"), &general, &own));
    } else {
        violations.push(Violation::new(
            format!("{folder}/clippy.toml"),
            "the file is missing",
            "it bans hashing containers, whose order differs between runs",
            "copy the one of another pure crate",
        ));
    }
    let library = format!("{folder}/src/lib.rs");
    let mut waiting = vec![(PathBuf::from(&library), PathBuf::from(format!("{folder}/src")))];
    while let Some((file, children)) = waiting.pop() {
        let text = fs::read_to_string(root.join(&file)).with_context(|| format!("read {}", file.display()))?;
        let place = file.to_string_lossy().into_owned();
        let parsed = parse(&place, &text)?;
        if place == library {
            violations.extend(numeric_lints(&place, &parsed.attributes));
        }
        violations.extend(impurities(&place, &text, &parsed)?);
        for module in parsed.modules {
            let flat = children.join(format!("{module}.rs"));
            let nested = children.join(&module).join("mod.rs");
            let file = if root.join(&flat).exists() { flat } else { nested };
            waiting.push((file, children.join(&module)));
        }
    }
    Ok(violations)
}

/// What the syntax tree says: the rest is judged on tokens, which also show the inside of macros.
struct Parsed {
    attributes: Vec<Attribute>,
    /// Modules in files of their own, with the path of inline parents, e.g. `outer/inner`.
    modules: Vec<String>,
    /// Full paths of all imports.
    imports: Vec<(usize, String)>,
    /// Lines of items that exist in tests only.
    test_lines: Vec<RangeInclusive<usize>>,
}

fn parse(place: &str, text: &str) -> Result<Parsed> {
    let file = syn::parse_file(text).with_context(|| format!("parse {place}"))?;
    let mut parsed =
        Parsed { attributes: file.attrs, modules: Vec::new(), imports: Vec::new(), test_lines: Vec::new() };
    items(&file.items, "", &mut parsed);
    Ok(parsed)
}

fn items(all: &[Item], parent: &str, parsed: &mut Parsed) {
    for item in all {
        let span = item.span();
        if attributes(item).iter().any(is_test_only) {
            parsed.test_lines.push(span.start().line..=span.end().line);
        } else if let Item::Use(import) = item {
            let mut paths = Vec::new();
            expand(&import.tree, "", &mut paths);
            parsed.imports.extend(paths.into_iter().map(|path| (span.start().line, path)));
        } else if let Item::Mod(module) = item {
            match &module.content {
                Some((_, inner)) => items(inner, &format!("{parent}{}/", module.ident), parsed),
                None => parsed.modules.push(format!("{parent}{}", module.ident)),
            }
        }
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        Item::ExternCrate(_) | Item::ForeignMod(_) | Item::TraitAlias(_) | Item::Union(_) | Item::Verbatim(_) | _ => {
            &[]
        }
    }
}

fn is_test_only(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg")
        && attribute.parse_args::<syn::Path>().is_ok_and(|condition| condition.is_ident("test"))
}

/// `a::{b, c::d as e}` as `a::b` and `a::c::d`.
fn expand(tree: &UseTree, prefix: &str, paths: &mut Vec<String>) {
    match tree {
        UseTree::Path(path) => expand(&path.tree, &format!("{prefix}{}::", path.ident), paths),
        UseTree::Name(name) => paths.push(format!("{prefix}{}", name.ident)),
        UseTree::Rename(rename) => paths.push(format!("{prefix}{}", rename.ident)),
        UseTree::Glob(_) => paths.push(format!("{prefix}*")),
        UseTree::Group(group) => group.items.iter().for_each(|tree| expand(tree, prefix, paths)),
    }
}

fn numeric_lints(place: &str, attributes: &[Attribute]) -> Vec<Violation> {
    let mut on = Vec::new();
    for attribute in attributes.iter().filter(|attribute| matches!(attribute.style, AttrStyle::Inner(_))) {
        if let syn::Meta::List(list) = &attribute.meta {
            let level = list.path.get_ident().map(ToString::to_string).unwrap_or_default();
            lints_on(&level, &list.tokens, &mut on);
        }
    }
    let missing: Vec<_> = rules::NUMERIC_LINTS.iter().filter(|lint| !on.iter().any(|one| one == *lint)).collect();
    missing
        .into_iter()
        .map(|lint| {
            Violation::new(
                place,
                format!("clippy::{lint} is not switched on"),
                "a total that wraps or a slice that panics would be decided differently by the next build",
                "add it to `#![cfg_attr(not(test), warn(...))]` at the top",
            )
        })
        .collect()
}

/// Collects the clippy lints inside `warn(..)`, `deny(..)` or `forbid(..)`, also within `cfg_attr(..)`.
fn lints_on(level: &str, tokens: &TokenStream, on: &mut Vec<String>) {
    let mut previous = String::new();
    for token in tokens.clone() {
        if let TokenTree::Ident(name) = &token {
            previous = name.to_string();
            if matches!(level, "warn" | "deny" | "forbid") {
                on.push(previous.clone());
            }
        } else if let TokenTree::Group(group) = &token
            && group.delimiter() == Delimiter::Parenthesis
            && level == "cfg_attr"
        {
            lints_on(&previous, &group.stream(), on);
        }
    }
}

/// A crate's `clippy.toml` replaces the root's, so it must repeat it.
fn clippy_config(place: &str, general: &toml::Table, own: &toml::Table) -> Vec<Violation> {
    let mut missing = Vec::new();
    for (key, value) in general {
        match (value.as_array(), own.get(key).and_then(toml::Value::as_array)) {
            (Some(wanted), Some(found)) => {
                let absent = wanted.iter().filter(|rule| !found.contains(rule));
                missing.extend(absent.map(|rule| format!("{key}: {}", rule.get("path").unwrap_or(rule))));
            }
            _ if own.get(key) != Some(value) => missing.push(key.clone()),
            _ => {}
        }
    }
    for banned in ["std::collections::HashMap", "std::collections::HashSet"] {
        let types = own.get("disallowed-types").and_then(toml::Value::as_array);
        let has = |rule: &toml::Value| rule.get("path").unwrap_or(rule).as_str() == Some(banned);
        if !types.is_some_and(|types| types.iter().any(has)) {
            missing.push(format!("disallowed-types: {banned}"));
        }
    }
    missing
        .into_iter()
        .map(|what| {
            Violation::new(
                place,
                format!("{what} is missing or differs"),
                "a crate's clippy.toml replaces the root one",
                "repeat the root's rules and ban the hashing containers",
            )
        })
        .collect()
}

fn impurities(place: &str, text: &str, parsed: &Parsed) -> Result<Vec<Violation>> {
    let stream: TokenStream = text.parse().map_err(|_lex| anyhow::anyhow!("{place} does not lex"))?;
    let mut tokens = Vec::new();
    flatten(stream, &mut tokens);
    let mut found: Vec<(usize, String, &str)> = Vec::new();
    for window in tokens.windows(4) {
        let [(line, first), (_, second), (_, third), (_, fourth)] = window else { continue };
        let path = second == ":" && third == ":";
        for (name, is) in rules::IMPURE_NAMES.iter().filter(|(name, _)| name == first) {
            found.push((*line, (*name).to_owned(), is));
        }
        for (module, is) in rules::IMPURE_STD.iter().filter(|(module, _)| first == "std" && path && module == fourth) {
            found.push((*line, format!("std::{module}"), is));
        }
        if second == "!" && third != "=" && rules::IMPURE_MACROS.contains(&first.as_str()) {
            found.push((*line, format!("{first}!"), "logging"));
        }
        if first.starts_with("Atomic") {
            found.push((*line, first.clone(), "shared state"));
        }
        if first == "static" && second == "mut" {
            found.push((*line, "static mut".to_owned(), "global state"));
        }
        if matches!(first.as_str(), "Utc" | "Local") && path && fourth == "now" {
            found.push((*line, format!("{first}::now"), "a clock"));
        }
    }
    for (line, path) in &parsed.imports {
        for (module, is) in rules::IMPURE_STD {
            let whole = format!("std::{module}");
            if *path == whole || path.starts_with(&format!("{whole}::")) {
                found.push((*line, whole, is));
            }
        }
    }
    found.retain(|(line, ..)| !parsed.test_lines.iter().any(|lines| lines.contains(line)));
    found.retain(|(_, what, _)| !rules::IMPURE_ALLOWED.iter().any(|(file, name, _)| *file == place && name == what));
    found.sort();
    found.dedup();
    Ok(found
        .into_iter()
        .map(|(line, what, is)| {
            Violation::new(format!("{place}:{line}"), format!("{what} is {is}"), WHY_PURE, REMEDY_PURE)
        })
        .collect())
}

/// The tokens in order, with their lines; groups are opened, and the end is padded so that windows reach the last.
fn flatten(stream: TokenStream, tokens: &mut Vec<(usize, String)>) {
    flatten_group(stream, tokens);
    tokens.extend((0..4).map(|_| (0, String::new())));
}

fn flatten_group(stream: TokenStream, tokens: &mut Vec<(usize, String)>) {
    for token in stream {
        let line = token.span().start().line;
        match token {
            TokenTree::Group(group) => {
                tokens.push((line, "(".to_owned()));
                flatten_group(group.stream(), tokens);
                tokens.push((line, ")".to_owned()));
            }
            TokenTree::Ident(name) => tokens.push((line, name.to_string())),
            TokenTree::Punct(sign) => tokens.push((line, sign.as_char().to_string())),
            TokenTree::Literal(literal) => tokens.push((line, literal.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn impure(text: &str) -> Vec<String> {
        let parsed = parse("lib.rs", text).unwrap();
        impurities("lib.rs", text, &parsed).unwrap().into_iter().map(|violation| violation.what).collect()
    }

    #[test]
    fn each_impurity_is_seen() {
        for (text, what) in [
            ("use std::time::SystemTime;", "SystemTime is a clock"),
            ("use std::{fmt, time::{Duration, Instant}};", "Instant is a clock"),
            ("fn f() { let t = chrono::Utc::now(); }", "Utc::now is a clock"),
            ("fn f() { let id = Uuid::now_v7(); }", "now_v7 is a clock and randomness"),
            ("fn f() -> u8 { rand::random() }", "rand is randomness"),
            ("use std::{fmt, env};", "std::env is the environment"),
            ("use std::fs as files;", "std::fs is I/O"),
            ("fn f() { std::fs::read(x); }", "std::fs is I/O"),
            ("use std::net::IpAddr;", "std::net is I/O"),
            ("use std::thread;", "std::thread is threads"),
            ("async fn f() {}", "async is a runtime"),
            ("use std::collections::HashMap;", "HashMap is an order that differs between runs"),
            ("type T = std::collections::HashSet<u8>;", "HashSet is an order that differs between runs"),
            ("macro_rules! m { () => { HashMap::new() }; }", "HashMap is an order that differs between runs"),
            ("fn f() { tracing::info!(\"x\"); }", "tracing is logging"),
            ("fn f() { warn!(\"x\"); }", "warn! is logging"),
            ("fn f() { println!(\"x\"); }", "println! is logging"),
            ("static mut COUNT: u8 = 0;", "static mut is global state"),
            ("static T: OnceLock<u8> = OnceLock::new();", "OnceLock is global state"),
            ("static N: AtomicU64 = x;", "AtomicU64 is shared state"),
        ] {
            assert!(impure(text).contains(&what.to_owned()), "{text}: {:?}", impure(text));
        }
    }

    #[test]
    fn comments_tests_and_look_alikes_are_fine() {
        for text in [
            "//! Never SystemTime, never HashMap.\nfn f() {}",
            "const TEXT: &str = \"use std::fs;\";",
            "#![warn(clippy::float_cmp)]\nfn f() {}",
            "pub mod log;\nuse crate::log::Error;\nfn f(error: &'static str) -> bool { error != \"\" }",
            "#[cfg(test)]\nmod tests {\n    use std::collections::HashSet;\n}",
            "#[cfg(test)]\nuse std::fs;",
            "use std::{collections::BTreeMap, fmt, time::Duration};",
        ] {
            assert_eq!(impure(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn modules_are_followed_unless_they_are_tests() {
        let parsed = parse("lib.rs", "mod a;\nmod b { mod c; }\n#[cfg(test)]\nmod tests;").unwrap();
        assert_eq!(parsed.modules, ["a", "b/c"]);
    }

    #[test]
    fn each_numeric_lint_must_be_on() {
        let missing = |text: &str| numeric_lints("lib.rs", &parse("lib.rs", text).unwrap().attributes).len();
        let all: Vec<_> = rules::NUMERIC_LINTS.iter().map(|lint| format!("clippy::{lint}")).collect();
        let all = all.join(", ");
        assert_eq!(missing(&format!("#![warn({all})]")), 0);
        assert_eq!(missing(&format!("#![cfg_attr(not(test), warn({all}))]")), 0);
        assert_eq!(missing(&format!("#![cfg_attr(not(test), allow({all}))]")), rules::NUMERIC_LINTS.len());
        assert_eq!(missing("#![warn(clippy::float_cmp)]"), rules::NUMERIC_LINTS.len() - 1);
        assert_eq!(missing(&format!("// #![warn({all})]")), rules::NUMERIC_LINTS.len());
    }

    #[test]
    fn a_clippy_config_repeats_the_roots() {
        let general: toml::Table = "a = true\nm = [{ path = \"x::now\", reason = \"r\" }]\n".parse().unwrap();
        let types = "disallowed-types = [\"std::collections::HashMap\", { path = \"std::collections::HashSet\" }]\n";
        let missing = |own: &str| {
            let own = format!("{own}{types}").parse().unwrap();
            clippy_config("clippy.toml", &general, &own).into_iter().map(|one| one.what).collect::<Vec<_>>()
        };
        assert_eq!(missing("a = true\nm = [{ path = \"x::now\", reason = \"r\" }, { path = \"y\" }]\n"), [""; 0]);
        assert_eq!(missing("a = false\nm = [{ path = \"x::now\", reason = \"r\" }]\n"), ["a is missing or differs"]);
        assert_eq!(missing("a = true\nm = []\n"), ["m: \"x::now\" is missing or differs"]);
        assert_eq!(missing("a = true\n"), ["m is missing or differs"]);
        let bare = clippy_config("clippy.toml", &toml::Table::new(), &toml::Table::new());
        assert_eq!(bare.len(), 2, "both hashing containers must be banned");
    }
}
