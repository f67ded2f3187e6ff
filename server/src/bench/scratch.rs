//! A directory for what a benchmark writes, on the disk that is to be measured; removed at the end.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::cli::failure::{Failure, Problem};

/// Removed when dropped.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// Makes one in `directory`, or beside the data directory.
    pub(super) fn create(directory: Option<&Path>, data: &Path) -> Result<Self, Failure> {
        let beside = data.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let parent = directory.unwrap_or(beside);
        let path = parent.join(format!("freehold-bench-{}", std::process::id()));
        let failed = |error: io::Error| Problem::new(format!("create {}", path.display())).because(&error);
        fs::create_dir_all(parent).and_then(|()| fs::create_dir(&path)).map_err(failed)?;
        Ok(Self(path))
    }

    /// A path inside.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is left for people: its name says what it is.
        fs::remove_dir_all(&self.0).ok();
    }
}
