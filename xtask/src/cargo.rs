//! Calls cargo the way the caller called us, and reads what `cargo metadata` says about the workspace.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// What a dependency is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Normal,
    Dev,
    Build,
}

/// One dependency of a crate, features as they are after inheritance.
#[derive(Debug, Clone)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) features: Vec<String>,
}

/// One crate of the workspace.
#[derive(Debug, Clone)]
pub(crate) struct Crate {
    pub(crate) name: String,
    /// Relative to the root, with `/`.
    pub(crate) folder: String,
    pub(crate) version: String,
    pub(crate) published: bool,
    pub(crate) dependencies: Vec<Dependency>,
    /// As written.
    pub(crate) manifest: toml::Table,
}

/// What the rules are checked against.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    pub(crate) crates: Vec<Crate>,
    pub(crate) root_manifest: toml::Table,
}

/// A cargo that works in `root` and does not inherit what `cargo run` says about this package: build scripts that
/// watch such variables (ring's does) would run again on each switch between a shell and a task.
pub(crate) fn command(root: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    for (key, _) in env::vars_os() {
        let name = key.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&key);
        }
    }
    command
}

/// Reads the workspace.
///
/// # Errors
/// Cargo fails, or a manifest cannot be read.
pub(crate) fn workspace(root: &Path) -> Result<Workspace> {
    let metadata = metadata(root)?;
    let mut crates = Vec::new();
    for package in list(&metadata["packages"]) {
        let manifest_path = PathBuf::from(text(&package["manifest_path"])?);
        let folder = manifest_path.parent().unwrap_or(root);
        crates.push(Crate {
            name: text(&package["name"])?,
            folder: folder.strip_prefix(root).unwrap_or(folder).to_string_lossy().replace('\\', "/"),
            version: text(&package["version"])?,
            // `publish = false` is an empty list of registries; no such line is null.
            published: package["publish"].as_array().is_none_or(|registries| !registries.is_empty()),
            dependencies: list(&package["dependencies"]).iter().map(dependency).collect::<Result<_>>()?,
            manifest: read_toml(&manifest_path)?,
        });
    }
    crates.sort_by(|a, b| a.folder.cmp(&b.folder));
    Ok(Workspace { crates, root_manifest: read_toml(&root.join("Cargo.toml"))? })
}

/// Where cargo builds, honouring `CARGO_TARGET_DIR` and configuration.
///
/// # Errors
/// Cargo fails.
pub(crate) fn target_directory(root: &Path) -> Result<PathBuf> {
    Ok(PathBuf::from(text(&metadata(root)?["target_directory"])?))
}

/// Reads and parses a TOML file.
///
/// # Errors
/// It cannot be read or is not TOML.
pub(crate) fn read_toml(path: &Path) -> Result<toml::Table> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    text.parse().with_context(|| format!("parse {}", path.display()))
}

fn metadata(root: &Path) -> Result<Value> {
    let output = command(root).args(["metadata", "--no-deps", "--format-version=1"]).output().context("run cargo")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("parse the output of cargo metadata")
}

fn dependency(value: &Value) -> Result<Dependency> {
    let kind = match value["kind"].as_str() {
        Some("dev") => Kind::Dev,
        Some("build") => Kind::Build,
        Some(other) => bail!("cargo metadata names an unknown kind of dependency: {other}"),
        None => Kind::Normal,
    };
    let features = list(&value["features"]).iter().map(text).collect::<Result<_>>()?;
    Ok(Dependency { name: text(&value["name"])?, kind, features })
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).with_context(|| format!("cargo metadata: a text is missing, found {value}"))
}

/// Files git tracks or would track, by their path relative to `root`, with their text where it is UTF-8.
///
/// # Errors
/// Git is missing, or a file cannot be read.
pub(crate) fn repository_files(root: &Path) -> Result<BTreeMap<String, Option<String>>> {
    let output = Command::new("git")
        .current_dir(root)
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .output()
        .context("run git (it lists the files to check)")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let mut files = BTreeMap::new();
    for name in String::from_utf8(output.stdout).context("file names are not UTF-8")?.split_terminator('\0') {
        let path = root.join(name);
        // Deleted but still in the index, a symbolic link, or a submodule: there is no text here to judge.
        if !path.symlink_metadata().is_ok_and(|metadata| metadata.is_file()) {
            continue;
        }
        let bytes = fs::read(&path).with_context(|| format!("read {name}"))?;
        files.insert(name.to_owned(), String::from_utf8(bytes).ok());
    }
    Ok(files)
}
