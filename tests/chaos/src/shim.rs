//! Compiles `shim.c`, the library that stands between a program and its disk, and `clock.c`, the one that stands
//! between a program and the machine's clock, and says how to use them.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

const DISK: &str = include_str!("shim.c");
const CLOCK: &str = include_str!("clock.c");

/// The compiled library.
#[derive(Debug)]
pub struct Shim {
    library: PathBuf,
}

/// A fault of the disk; see `shim.c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No write succeeds.
    DiskFull,
    /// No file grows and none is created.
    NoGrowth,
    /// Nothing can be changed.
    ReadOnly,
    /// No sync succeeds, and what it should have written is forgotten.
    SyncFails,
    /// The same, and the first that forgets more than zeros kills the program before it hears of it.
    SyncKills,
    /// One sync in three fails so, and is told to whoever asks first through a descriptor.
    SyncFlaky,
}

impl Fault {
    const fn word(self) -> &'static str {
        match self {
            Self::DiskFull => "enospc",
            Self::NoGrowth => "full",
            Self::ReadOnly => "erofs",
            Self::SyncFails => "eio",
            Self::SyncKills => "deadly",
            Self::SyncFlaky => "flaky",
        }
    }
}

impl Shim {
    /// Compiles the library into a directory.
    ///
    /// # Errors
    /// There is no C compiler, or it does not accept the source.
    pub fn compile(dir: &Path) -> Result<Self> {
        Ok(Self { library: library(dir, "shim", DISK)? })
    }

    /// The environment under which a program's data directory is watched.
    ///
    /// # Errors
    /// The directory does not exist.
    pub fn environment(&self, data: &Path) -> Result<Vec<(&'static str, OsString)>> {
        // The shim compares paths with what the kernel calls an open file.
        let data = data.canonicalize().with_context(|| format!("find {}", data.display()))?;
        Ok(vec![("LD_PRELOAD", self.library.clone().into()), ("CHAOS_DATA", data.into())])
    }
}

/// The environment under which a program's clock is ahead by whole seconds; compiles the library for it into a
/// directory.
///
/// # Errors
/// There is no C compiler, or it does not accept the source.
pub fn clock_ahead(dir: &Path, by: Duration) -> Result<Vec<(&'static str, OsString)>> {
    let library = library(dir, "clock", CLOCK)?;
    Ok(vec![("LD_PRELOAD", library.into()), ("CHAOS_CLOCK_AHEAD_S", by.as_secs().to_string().into())])
}

/// The environment under which a program's clock is ahead by the whole seconds that stand in a file, while there is
/// one; compiles the library for it into a directory.
///
/// # Errors
/// There is no C compiler, or it does not accept the source.
pub fn clock_of(dir: &Path, file: &Path) -> Result<Vec<(&'static str, OsString)>> {
    let library = library(dir, "clock", CLOCK)?;
    Ok(vec![("LD_PRELOAD", library.into()), ("CHAOS_CLOCK_FILE", file.into())])
}

fn library(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let (source, library) = (dir.join(format!("{name}.c")), dir.join(format!("{name}.so")));
    fs::write(&source, text).with_context(|| format!("write the source of {name}"))?;
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
        .args([&library, &source])
        .args(["-ldl", "-lpthread"])
        .output()
        .context("these tests need a C compiler: no program `cc` could be started")?;
    ensure!(output.status.success(), "cc does not compile {name}.c: {}", String::from_utf8_lossy(&output.stderr));
    Ok(library)
}

/// The file whose presence is a fault.
#[derive(Debug)]
pub struct FaultSwitch {
    path: PathBuf,
}

impl FaultSwitch {
    /// A switch that is off.
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join("fault") }
    }

    /// What tells the shim about the switch.
    pub fn environment(&self) -> (&'static str, OsString) {
        ("CHAOS_FAULT", self.path.clone().into())
    }

    /// Lets a fault begin, at once as a whole.
    ///
    /// # Errors
    /// The switch cannot be written.
    pub fn begin(&self, fault: Fault) -> Result<()> {
        let temporary = self.path.with_extension("new");
        fs::write(&temporary, fault.word()).and_then(|()| fs::rename(&temporary, &self.path)).context("begin a fault")
    }

    /// Lets it end.
    ///
    /// # Errors
    /// The switch cannot be removed.
    pub fn end(&self) -> Result<()> {
        fs::remove_file(&self.path).context("end a fault")
    }
}
