//! `freehold doctor`: what a start would trip over, one line each. It changes nothing, neither here nor at the NATS
//! servers.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    net::{SocketAddr, TcpListener},
    path::Path,
};

use actors_shell::LiveClock;
use serde_json::json;

use super::{
    arguments::{Common, Doctor},
    failure::{Failure, Problem},
    output::Output,
    show,
};
use crate::{
    cluster::{self, Answer, Check},
    config::{self, Config, Environment, KeyError},
};

/// File that a server locks in its data directory.
const LOCK_FILE: &str = "lock";

/// What was found.
struct Finding {
    what: &'static str,
    text: String,
    verdict: Verdict,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Fine,
    /// Worth knowing; no reason not to start.
    Note,
    Problem,
}

impl Verdict {
    const fn name(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Note => "note",
            Self::Problem => "problem",
        }
    }
}

/// Checks everything; a problem makes the exit code 1.
pub(super) async fn run(common: &Common, doctor: &Doctor, output: &mut Output) -> Result<(), Failure> {
    let findings = match config::load(&doctor.flags(common), &Environment::read()) {
        Ok(config) => {
            let mut findings = examine(&config);
            if config.cluster.is_on() {
                findings.extend(cluster::look(&config, LiveClock::wall).await.into_iter().map(of_cluster));
            }
            findings
        }
        Err(error) => {
            let problem = Failure::from(error);
            let Failure::Problem(problem) = problem else { return Err(problem) };
            vec![Finding { what: "configuration", text: told(&problem), verdict: Verdict::Problem }]
        }
    };
    if output.json() {
        let list: Vec<_> = findings
            .iter()
            .map(|found| json!({ "check": found.what, "verdict": found.verdict.name(), "text": found.text }))
            .collect();
        output.document(&list)?;
    } else {
        for Finding { what, text, verdict } in &findings {
            output.line(format_args!("{:<8}{what:<16}{text}", verdict.name()))?;
        }
    }
    if findings.iter().any(|found| found.verdict == Verdict::Problem) { Err(Failure::Found) } else { Ok(()) }
}

fn told(problem: &Problem) -> String {
    problem.to_string().trim_start_matches("error: ").replace("\n  ", "; ")
}

fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = vec![Finding {
        what: "configuration",
        text: format!("valid, {}", show::things(config.upstreams.len() as u64, "upstream")),
        verdict: Verdict::Fine,
    }];
    let (text, verdict) = data_directory(&config.data);
    findings.push(Finding { what: "data directory", text, verdict });
    let (text, verdict) = lock(&config.data);
    findings.push(Finding { what: "lock", text, verdict });
    for (what, listen) in [("gRPC port", config.grpc.listen), ("HTTP port", config.http.listen)] {
        let (text, verdict) = port(listen);
        findings.push(Finding { what, text, verdict });
    }
    if config.upstreams.is_empty() {
        let text = "none is configured; every model request will be refused".to_owned();
        findings.push(Finding { what: "upstreams", text, verdict: Verdict::Note });
    }
    for upstream in &config.upstreams {
        let (text, verdict) = match upstream.read_api_key() {
            Ok(Some(_)) => (format!("{}: present", upstream.name), Verdict::Fine),
            Ok(None) => (format!("{}: none is configured", upstream.name), Verdict::Fine),
            Err(error) => (format!("[{}] {error}", KeyError::CODE), Verdict::Problem),
        };
        findings.push(Finding { what: "upstream key", text, verdict });
    }
    findings
}

/// What a node would meet at the NATS servers.
fn of_cluster(Check { what, found }: Check) -> Finding {
    let (text, verdict) = match found {
        Answer::Fine(text) => (text, Verdict::Fine),
        Answer::Unknown(text) => (text, Verdict::Note),
        Answer::Denied(text) => (format!("[E0014] {text}"), Verdict::Problem),
        Answer::Wrong(error) => {
            let problem = Problem::of(&error);
            (told(&error.code().into_iter().fold(problem, Problem::code)), Verdict::Problem)
        }
    };
    Finding { what, text, verdict }
}

fn data_directory(data: &Path) -> (String, Verdict) {
    let shown = data.display();
    // A directory that does not exist yet is created by the start: what must be writable is what it will lie in.
    let existing = data.ancestors().find(|path| path.as_os_str().is_empty() || path.exists()).unwrap_or(data);
    let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
    if !existing.is_dir() {
        return (format!("{} is not a directory", existing.display()), Verdict::Problem);
    }
    let probe = existing.join(format!(".freehold-doctor-{}", std::process::id()));
    let written = OpenOptions::new().write(true).create_new(true).open(&probe).and_then(|file| file.sync_all());
    let removed = fs::remove_file(&probe);
    match (written.and(removed), existing == data) {
        (Ok(()), true) => (format!("{shown} is writable"), Verdict::Fine),
        (Ok(()), false) => (format!("{shown} does not exist, a start creates it"), Verdict::Fine),
        (Err(error), _) => (format!("{} is not writable: {error}", existing.display()), Verdict::Problem),
    }
}

fn lock(data: &Path) -> (String, Verdict) {
    let Ok(file) = File::open(data.join(LOCK_FILE)) else { return ("free".to_owned(), Verdict::Fine) };
    match file.try_lock_shared() {
        Ok(()) => ("free".to_owned(), Verdict::Fine),
        Err(TryLockError::WouldBlock) => {
            let pid = fs::read_to_string(data.join(LOCK_FILE)).unwrap_or_default();
            (format!("[E0001] the data directory is in use by process {}", pid.trim()), Verdict::Problem)
        }
        Err(TryLockError::Error(error)) => (format!("the lock cannot be tried: {error}"), Verdict::Problem),
    }
}

fn port(listen: SocketAddr) -> (String, Verdict) {
    match TcpListener::bind(listen) {
        Ok(_) => (format!("{listen} is free"), Verdict::Fine),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            (format!("[E0007] {listen} is in use"), Verdict::Problem)
        }
        Err(error) => (format!("{listen} cannot be bound: {error}"), Verdict::Problem),
    }
}
