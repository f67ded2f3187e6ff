//! Generates `proto/src/gen` from `proto/proto` with a compiler written in Rust (protox), so that no
//! `protoc` is needed; `--check` compares without writing. Generated code is committed: an ordinary build
//! compiles no protobuf compiler.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use prost::Message;

use crate::cargo;

/// File that holds all descriptors, for gRPC reflection.
const DESCRIPTORS: &str = "descriptors.bin";

/// Writes the generated code, or compares it with what is committed.
pub(crate) fn run(root: &Path, check: bool) -> Result<()> {
    let committed = root.join("proto/src/gen");
    let scratch = cargo::target_directory(root)?.join("codegen");
    if scratch.exists() {
        fs::remove_dir_all(&scratch).with_context(|| format!("clear {}", scratch.display()))?;
    }
    fs::create_dir_all(&scratch).with_context(|| format!("create {}", scratch.display()))?;
    generate(&root.join("proto/proto"), &scratch)?;
    let (new, old) = (read_all(&scratch)?, read_all(&committed)?);
    if check {
        let stale: Vec<_> = new
            .iter()
            .filter(|(name, bytes)| old.get(*name) != Some(bytes))
            .map(|(name, _)| name.clone())
            .chain(old.keys().filter(|name| !new.contains_key(*name)).cloned())
            .collect();
        if !stale.is_empty() {
            bail!("generated code is stale: {}; run `cargo xtask codegen`", stale.join(", "));
        }
        return Ok(());
    }
    fs::create_dir_all(&committed)?;
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        fs::remove_file(committed.join(name))?;
    }
    for (name, bytes) in &new {
        fs::write(committed.join(name), bytes)?;
    }
    Ok(())
}

fn generate(protos: &Path, out: &Path) -> Result<()> {
    let mut files = Vec::new();
    find_protos(protos, &mut files)?;
    files.sort();
    let mut compiler = protox::Compiler::new([protos]).context("open the proto folder")?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(&files).context("compile the .proto files")?;
    let descriptors = compiler.file_descriptor_set();
    tonic_prost_build::configure()
        .out_dir(out)
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)
        .context("generate Rust")?;
    // Source info (comments) is for the Rust code only; reflection clients do not need it.
    compiler.include_source_info(false);
    fs::write(out.join(DESCRIPTORS), compiler.file_descriptor_set().encode_to_vec())?;
    Ok(())
}

fn find_protos(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            find_protos(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            found.push(path);
        }
    }
    Ok(())
}

fn read_all(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    if folder.exists() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.insert(name, fs::read(&path)?);
        }
    }
    Ok(files)
}
