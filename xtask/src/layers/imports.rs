//! Judges manifests: imports, fences, names, inheritance. Pure: it gets the workspace as read and returns what is
//! wrong with it.

use crate::{
    cargo::{Crate, Dependency, Kind, Workspace},
    report::Violation,
};

use super::rules;

/// Everything that is wrong with the manifests.
pub(super) fn check(workspace: &Workspace) -> Vec<Violation> {
    let mut violations = Vec::new();
    root_is_virtual(&workspace.root_manifest, &mut violations);
    for one in &workspace.crates {
        package(one, &mut violations);
        inheritance(one, &mut violations);
        for dependency in &one.dependencies {
            if workspace.crates.iter().any(|other| other.name == dependency.name) {
                import(one, dependency, &mut violations);
            } else {
                fence(one, dependency, &mut violations);
                pure(one, dependency, &mut violations);
            }
        }
    }
    violations
}

fn place(one: &Crate) -> String {
    format!("{}/Cargo.toml", one.folder)
}

fn root_is_virtual(manifest: &toml::Table, violations: &mut Vec<Violation>) {
    if manifest.contains_key("package") {
        violations.push(Violation::new(
            "Cargo.toml",
            "the root is a package",
            "the root manifest is virtual so that every crate has a folder and a layer",
            "move the package into a folder of its own",
        ));
    }
}

fn package(one: &Crate, violations: &mut Vec<Violation>) {
    let expected = one.folder.replace('/', "-");
    if one.name != expected {
        violations.push(Violation::new(
            place(one),
            format!("the crate is named {} but lies in {}", one.name, one.folder),
            "a crate is named after its path so that either finds the other",
            "rename the crate or move the folder",
        ));
    }
    if !rules::IMPORTS.iter().any(|(name, _)| *name == one.name) {
        violations.push(Violation::new(
            place(one),
            format!("crate {} has no place in the layers", one.name),
            "a crate nobody placed may import anything",
            "add it to IMPORTS in xtask/src/layers/rules.rs",
        ));
    }
    if one.published || one.version != "0.0.0" {
        violations.push(Violation::new(
            place(one),
            format!("the crate has version {} and publish = {}", one.version, one.published),
            "the workspace is released as one binary, crates have no versions of their own",
            "say `version.workspace = true` and `publish.workspace = true`",
        ));
    }
    let lints = one.manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool);
    if lints != Some(true) && !rules::LINTS_OPT_OUT.contains(&one.name.as_str()) {
        violations.push(Violation::new(
            place(one),
            "the workspace's lints are not inherited",
            "a crate without them is a crate without rules",
            "add `[lints]` with `workspace = true`",
        ));
    }
}

/// Every dependency, of any kind and for any target, says `workspace = true`.
fn inheritance(one: &Crate, violations: &mut Vec<Violation>) {
    let targets = one.manifest.get("target").and_then(toml::Value::as_table);
    let tables = targets.into_iter().flat_map(|table| table.values().filter_map(toml::Value::as_table));
    for table in std::iter::once(&one.manifest).chain(tables) {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (name, value) in table.get(kind).and_then(toml::Value::as_table).into_iter().flatten() {
                if value.get("workspace").and_then(toml::Value::as_bool) != Some(true) {
                    violations.push(Violation::new(
                        place(one),
                        format!("{kind}: {name} has a version or path of its own"),
                        "versions live once, in the root, so that there is one of each",
                        "put it into [workspace.dependencies] and say `workspace = true` here",
                    ));
                }
            }
        }
    }
}

fn import(one: &Crate, dependency: &Dependency, violations: &mut Vec<Violation>) {
    let name = dependency.name.as_str();
    let allowed = rules::IMPORTS.iter().find(|(own, _)| *own == one.name).map_or(&[][..], |(_, allowed)| *allowed);
    let for_tests = dependency.kind == Kind::Dev && name == rules::TEST_KIT;
    if name == rules::TEST_KIT && !for_tests && !allowed.contains(&name) {
        violations.push(Violation::new(
            place(one),
            format!("{} depends on {name}", one.name),
            "fixtures must not reach the program",
            "make it a dev-dependency",
        ));
    } else if !for_tests && !allowed.contains(&name) {
        violations.push(Violation::new(
            place(one),
            format!("{} imports {name}", one.name),
            "imports point inwards only, as drawn in ARCHITECTURE.md",
            "move the code to the layer it belongs to, or pass what it needs as an argument",
        ));
    }
    let (api_crate, feature) = rules::API_FEATURE;
    let switches_on = name == api_crate && dependency.features.iter().any(|one| one == feature);
    if switches_on && !rules::API_USERS.contains(&one.name.as_str()) {
        violations.push(Violation::new(
            place(one),
            format!("{} switches on {api_crate}/{feature}", one.name),
            "the inside knows stored messages, not the API",
            "drop the feature; convert in server::grpc",
        ));
    }
}

fn fence(one: &Crate, dependency: &Dependency, violations: &mut Vec<Violation>) {
    let name = dependency.name.as_str();
    let fence = rules::FENCES.iter().find(|fence| {
        let rest = name.strip_prefix(fence.name);
        rest.is_some_and(|rest| rest.is_empty() || (fence.family && rest.starts_with('-')))
    });
    if let Some(fence) = fence
        && !fence.inside.contains(&one.name.as_str())
    {
        violations.push(Violation::new(
            place(one),
            format!("{} depends on {name}, which is fenced into {}", one.name, fence.inside.join(", ")),
            fence.why,
            "use the port or type that the fenced crate offers",
        ));
    }
}

fn pure(one: &Crate, dependency: &Dependency, violations: &mut Vec<Violation>) {
    let name = dependency.name.as_str();
    if dependency.kind == Kind::Dev || !rules::PURE.contains(&one.name.as_str()) {
        return;
    }
    if !rules::PURE_THIRD_PARTY.contains(&name) {
        violations.push(Violation::new(
            place(one),
            format!("pure crate {} depends on {name}", one.name),
            "a pure crate gives the same answer on every machine, for ever",
            "pass the value in, or, if the crate is pure too, add it to PURE_THIRD_PARTY in xtask/src/layers/rules.rs",
        ));
    }
    for (library, feature) in rules::IMPURE_FEATURES {
        if *library == name && dependency.features.iter().any(|own| own == feature) {
            violations.push(Violation::new(
                place(one),
                format!("pure crate {} switches on {name}/{feature}", one.name),
                "the feature brings a clock or randomness",
                "pass the value in",
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "[package]\nname = \"x\"\n[lints]\nworkspace = true\n";

    fn made_up(folder: &str, manifest: &str) -> Crate {
        Crate {
            name: folder.replace('/', "-"),
            folder: folder.to_owned(),
            version: "0.0.0".to_owned(),
            published: false,
            dependencies: Vec::new(),
            manifest: manifest.parse().unwrap(),
        }
    }

    fn with(folder: &str, dependencies: &[(&str, Kind, &[&str])]) -> Crate {
        let dependencies = dependencies
            .iter()
            .map(|(name, kind, features)| Dependency {
                name: (*name).to_owned(),
                kind: *kind,
                features: features.iter().map(|&feature| feature.to_owned()).collect(),
            })
            .collect();
        Crate { dependencies, ..made_up(folder, MANIFEST) }
    }

    /// Checks `one` in a workspace that has every crate of the table, and returns what is wrong with `one`.
    fn wrong_with(one: Crate) -> Vec<String> {
        let others = rules::IMPORTS.iter().filter(|(name, _)| *name != one.name);
        let mut crates: Vec<_> = others.map(|(name, _)| made_up(name, MANIFEST)).collect();
        let place = place(&one);
        crates.push(one);
        let workspace = Workspace { crates, root_manifest: toml::Table::new() };
        check(&workspace)
            .into_iter()
            .filter(|violation| violation.place == place)
            .map(|violation| violation.what)
            .collect()
    }

    #[test]
    fn drawn_imports_are_fine() {
        let normal = Kind::Normal;
        assert_eq!(
            wrong_with(with("gateway", &[("actors-core", normal, &[]), ("events-model", normal, &[])])),
            [""; 0]
        );
        assert_eq!(wrong_with(with("server", &[("proto", normal, &["api"]), ("gateway", normal, &[])])), [""; 0]);
        assert_eq!(wrong_with(with("tests/chaos", &[("tests-kit", normal, &[]), ("server", normal, &[])])), [""; 0]);
    }

    #[test]
    fn an_import_that_is_not_drawn_is_refused_whatever_its_kind() {
        for kind in [Kind::Normal, Kind::Dev, Kind::Build] {
            assert_eq!(wrong_with(with("replay", &[("actors-shell", kind, &[])])), ["replay imports actors-shell"]);
        }
        assert_eq!(wrong_with(with("proto", &[("events-model", Kind::Normal, &[])])), ["proto imports events-model"]);
    }

    #[test]
    fn the_kit_is_a_dev_dependency_only() {
        assert_eq!(wrong_with(with("actors/core", &[("tests-kit", Kind::Dev, &[])])), [""; 0]);
        let wrong = wrong_with(with("actors/core", &[("tests-kit", Kind::Normal, &[])]));
        assert_eq!(wrong, ["actors-core depends on tests-kit"]);
    }

    #[test]
    fn the_api_stays_outside() {
        let wrong = wrong_with(with("events/model", &[("proto", Kind::Normal, &["api"])]));
        assert_eq!(wrong, ["events-model switches on proto/api"]);
    }

    #[test]
    fn fenced_crates_stay_inside_their_fence() {
        for (folder, name) in [
            ("gateway", "actix"),
            ("gateway", "actix-rt"),
            ("tests/chaos", "tonic"),
            ("gateway", "tonic-types"),
            ("server", "tonic-prost-build"),
            ("projections", "datafusion"),
            ("projections", "sled"),
            ("server", "async-nats"),
            ("replay", "clap"),
        ] {
            for kind in [Kind::Normal, Kind::Dev] {
                let wrong = wrong_with(with(folder, &[(name, kind, &[])]));
                assert_eq!(wrong.len(), 1, "{folder} with {name}");
                assert!(wrong[0].contains("fenced into"), "{wrong:?}");
            }
        }
        for (folder, name) in [("server", "tonic"), ("xtask", "tonic-prost-build"), ("events/journal-sled", "sled")] {
            assert_eq!(wrong_with(with(folder, &[(name, Kind::Normal, &[])])), [""; 0]);
        }
        assert_eq!(wrong_with(with("gateway", &[("sled-like", Kind::Normal, &[])])), [""; 0]);
    }

    #[test]
    fn pure_crates_depend_on_the_allowlist_only() {
        assert_eq!(wrong_with(with("actors/core", &[("serde", Kind::Normal, &[])])), [""; 0]);
        assert_eq!(wrong_with(with("actors/core", &[("proptest", Kind::Dev, &[])])), [""; 0]);
        let wrong = wrong_with(with("actors/core", &[("tokio", Kind::Normal, &[])]));
        assert_eq!(wrong, ["pure crate actors-core depends on tokio"]);
        let wrong = wrong_with(with("events/model", &[("chrono", Kind::Normal, &["clock"])]));
        assert_eq!(wrong, ["pure crate events-model switches on chrono/clock"]);
    }

    #[test]
    fn names_follow_paths() {
        let wrong = wrong_with(Crate { name: "gateway".to_owned(), ..with("net/gateway", &[]) });
        assert_eq!(wrong, ["the crate is named gateway but lies in net/gateway"]);
    }

    #[test]
    fn a_crate_outside_the_table_is_refused() {
        assert_eq!(wrong_with(with("helpers", &[])), ["crate helpers has no place in the layers"]);
    }

    #[test]
    fn crates_have_no_version_of_their_own_and_are_not_published() {
        let wrong = wrong_with(Crate { version: "1.2.0".to_owned(), published: true, ..with("gateway", &[]) });
        assert_eq!(wrong, ["the crate has version 1.2.0 and publish = true"]);
    }

    #[test]
    fn lints_are_inherited_except_by_generated_code() {
        for manifest in ["[package]\n", "[lints]\nworkspace = false\n", "[lints.rust]\nunsafe_code = \"allow\"\n"] {
            assert_eq!(wrong_with(made_up("gateway", manifest)), ["the workspace's lints are not inherited"]);
        }
        assert_eq!(wrong_with(made_up("proto", "[package]\n")), [""; 0]);
    }

    #[test]
    fn versions_live_in_the_root_only() {
        for dependency in [
            "[dependencies]\nserde = \"1\"\n",
            "[dev-dependencies]\nserde = { version = \"1\" }\n",
            "[build-dependencies.serde]\npath = \"../serde\"\n",
            "[target.'cfg(unix)'.dependencies]\nserde = { git = \"https://example.org\" }\n",
        ] {
            let wrong = wrong_with(made_up("gateway", &format!("{MANIFEST}{dependency}")));
            assert_eq!(wrong.len(), 1, "{dependency}");
            assert!(wrong[0].ends_with("serde has a version or path of its own"), "{wrong:?}");
        }
        let inherited = "[dependencies]\nserde.workspace = true\ntokio = { workspace = true, features = [\"rt\"] }\n";
        assert_eq!(wrong_with(made_up("gateway", &format!("{MANIFEST}{inherited}"))), [""; 0]);
    }

    #[test]
    fn the_root_is_virtual() {
        let root_manifest = MANIFEST.parse().unwrap();
        let wrong = check(&Workspace { crates: Vec::new(), root_manifest });
        assert_eq!(wrong.len(), 1);
    }

    /// What `name` can reach through the table.
    fn closure(name: &str) -> Vec<&'static str> {
        let mut reached: Vec<&str> = Vec::new();
        let mut waiting = vec![name.to_owned()];
        while let Some(name) = waiting.pop() {
            for next in rules::IMPORTS.iter().filter(|(own, _)| *own == name).flat_map(|(_, allowed)| *allowed) {
                if !reached.contains(next) {
                    reached.push(next);
                    waiting.push((*next).to_owned());
                }
            }
        }
        reached
    }

    #[test]
    fn the_table_has_no_cycle_and_replay_cannot_reach_an_effect() {
        for (name, _) in rules::IMPORTS {
            assert!(!closure(name).contains(name), "{name} reaches itself");
        }
        for effectful in ["actors-shell", "gateway", "events-journal-sled", "server"] {
            assert!(!closure("replay").contains(&effectful));
        }
        for pure in rules::PURE {
            assert!(closure(pure).iter().all(|one| rules::PURE.contains(one) || *one == "proto"));
        }
    }
}
