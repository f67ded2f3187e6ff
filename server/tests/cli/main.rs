//! The command line as its users meet it: the real binary, its exit codes, its standard output and error.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    reason = "tests may panic and wait"
)]

mod saga;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Longest wait for a process to end.
const END_WAIT: Duration = Duration::from_secs(60);

/// How a command ended.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ended {
    fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{}", self.err);
        serde_json::from_str(&self.out).unwrap()
    }
}

fn command(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_freehold"));
    command.env_clear().current_dir(directory).stdin(Stdio::null());
    command
}

fn run_with(directory: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> Ended {
    let output = command(directory).envs(variables.iter().copied()).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

fn run(directory: &Path, arguments: &[&str]) -> Ended {
    run_with(directory, &[], arguments)
}

/// A server that was started with `--json`; killed if the test ends early.
struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
    ready: Value,
}

impl Server {
    fn start(directory: &Path, arguments: &[&str]) -> Self {
        Self::start_with(directory, &[], arguments)
    }

    fn start_with(directory: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> Self {
        let mut command = command(directory);
        let mut child = command.envs(variables.iter().copied()).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line).unwrap();
        Self { child, stdout, ready }
    }

    fn dev(directory: &Path) -> Self {
        let arguments = ["dev", "--json", "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
        Self::start(directory, &arguments)
    }

    fn text(&self, name: &str) -> &str {
        self.ready[name].as_str().unwrap()
    }

    fn url(&self) -> String {
        format!("http://{}", self.text("grpc"))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().try_into().unwrap()).unwrap(), signal).unwrap();
    }

    /// Waits for the end; the exit code and what else was printed.
    fn ended(mut self) -> (Option<i32>, String) {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < END_WAIT, "the server does not end");
            std::thread::yield_now();
        };
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        (status.code(), rest)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Sends what curl would send; the status line with the headers, and the body.
fn post(address: &str, key: &str, body: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(END_WAIT)).unwrap();
    let length = body.len();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

#[test]
fn help_and_version_are_answers() {
    let directory = TempDir::new().unwrap();
    let help = run(directory.path(), &["--help"]);
    assert_eq!(help.code, Some(0));
    let commands = ["dev", "serve", "simulate", "tenant", "key", "episode", "state", "log", "bench", "doctor"];
    for name in commands {
        assert!(help.out.lines().any(|line| line.trim_start().starts_with(name)), "{name} is missing in\n{}", help.out);
        let one = run(directory.path(), &[name, "--help"]);
        assert_eq!(one.code, Some(0), "{name}");
        assert!(one.out.contains("Usage: freehold"), "{name}: {}", one.out);
    }
    let version = run(directory.path(), &["--version"]);
    assert!(version.code == Some(0) && version.out.starts_with("freehold "));
}

#[test]
fn misuse_is_exit_code_2_and_says_what_is_allowed() {
    let directory = TempDir::new().unwrap();
    for (arguments, says) in [
        (&["nonsense"][..], "unrecognized subcommand"),
        (&["tenant", "show", "Not A Name"], "1 to 63 of a-z, 0-9 and '-'"),
        (&["episode", "show", "x"], "must be a UUID"),
        (&["state", "acme"], "tenant/<tenant>"),
        (&["state", "tenant/a", "--at-time", "yesterday"], "RFC 3339"),
        (&["state", "tenant/a", "--at-version", "1", "--at-time", "1"], "cannot be used with"),
        (&["tenant", "set-budget", "a", "--period", "day"], "--limit <USD>|--no-limit"),
        (&["tenant", "set-budget", "a", "--period", "decade", "--no-limit"], "day, week, month or year"),
        (&["tenant", "set-budget", "a", "--period", "day", "--limit", "1e3"], "digits with at most nine decimals"),
        (&["episode", "list", "a", "--limit", "0"], "1..=1000"),
        (&["simulate", "--cut-rate", "2"], "cut_rate is 2: it must be from 0 to 1"),
        (&["tenant", "list", "--server", "https://x"], "must begin with http://"),
    ] {
        let ended = run(directory.path(), arguments);
        assert_eq!(ended.code, Some(2), "{arguments:?}: {}{}", ended.out, ended.err);
        assert!(ended.err.contains(says) && ended.out.is_empty(), "{arguments:?}: {}{}", ended.out, ended.err);
    }
}

#[test]
fn a_wrong_configuration_is_exit_code_2_with_its_number_and_place() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("freehold.toml"), "[http]\nlissten = \"x\"\n").unwrap();
    for arguments in [&["serve"][..], &["dev"], &["tenant", "list"], &["log", "stat"]] {
        let ended = run(directory.path(), arguments);
        assert_eq!(ended.code, Some(2), "{arguments:?}");
        let says = "error: [E0006] freehold.toml, line 2: http.lissten: unknown field `lissten`, expected one of";
        assert!(ended.err.starts_with(says), "{arguments:?}: {}", ended.err);
    }
    let doctor = run(directory.path(), &["doctor"]);
    assert_eq!(doctor.code, Some(1));
    assert!(doctor.out.starts_with("problem configuration   [E0006] freehold.toml, line 2"), "{}", doctor.out);
    let ended = run_with(&directory.path().join(".."), &[("FREEHOLD_NONSENSE", "1")], &["serve"]);
    assert!(ended.code == Some(2) && ended.err.contains("environment variable FREEHOLD_NONSENSE"), "{}", ended.err);
}

#[test]
fn dump_config_shows_all_layers_and_no_secret() {
    let directory = TempDir::new().unwrap();
    let text = "zone = \"file\"\n[[upstreams]]\nname = \"u\"\nbase_url = \"http://host\"\napi_key_env = \"KEY\"\n";
    fs::write(directory.path().join("freehold.toml"), text).unwrap();
    let variables = [("FREEHOLD_REGION", "variable"), ("KEY", "hunter2"), ("FREEHOLD_ADMIN_TOKEN", "hunter3")];
    let dumped = run_with(
        directory.path(),
        &variables,
        &["serve", "--dump-config", "--http-listen", "127.0.0.1:1", "--data", "d"],
    );
    assert_eq!(dumped.code, Some(0), "{}", dumped.err);
    for line in [
        "zone = \"file\"",
        "region = \"variable\"",
        "listen = \"127.0.0.1:1\"",
        "data = \"d\"",
        "api_key_env = \"KEY\"",
    ] {
        assert!(dumped.out.lines().any(|found| found == line), "{line} is missing in\n{}", dumped.out);
    }
    assert!(!dumped.out.contains("hunter") && !directory.path().join("d").exists());
    // What is printed is a configuration that gives the same.
    let again = directory.path().join("again.toml");
    fs::write(&again, &dumped.out).unwrap();
    let arguments = ["serve", "--dump-config", "--config", again.to_str().unwrap()];
    assert_eq!(run(directory.path(), &arguments).out, dumped.out);
    let json = run_with(directory.path(), &variables, &["serve", "--dump-config", "--json"]).json();
    assert_eq!(json["http"]["body_bytes_max"], "4MiB");
}

#[test]
fn problems_are_exit_code_1_with_a_hint() {
    let directory = TempDir::new().unwrap();
    let ended = run(directory.path(), &["tenant", "list", "--server", "http://127.0.0.1:1"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.starts_with("error: [E0010] no server is reachable at http://127.0.0.1:1\n"), "{}", ended.err);
    let ended = run(directory.path(), &["log", "stat", "--data", "d"]);
    assert!(ended.code == Some(1) && ended.err.starts_with("error: there is no log in d\n  hint: "), "{}", ended.err);

    let server = Server::dev(directory.path());
    let at = server.url();
    let ended = run(directory.path(), &["tenant", "list", "--data", "d", "--server", &at]);
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.err.starts_with("error: [E0009] no admin token in d/admin-token\n  because: No such"),
        "{}",
        ended.err
    );
    assert!(ended.err.contains("\n  hint: name the server's data directory with --data"), "{}", ended.err);
    let token = [("FREEHOLD_ADMIN_TOKEN", "0123456789abcdef")];
    let ended = run_with(directory.path(), &token, &["tenant", "list", "--server", &at]);
    assert!(ended.code == Some(1) && ended.err.starts_with("error: [E0009] "), "{}", ended.err);
}

#[test]
fn the_admin_token_of_the_environment_is_in_force_instead_of_the_file() {
    let directory = TempDir::new().unwrap();
    let arguments = ["serve", "--json", "--data", "d", "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    let name = "FREEHOLD_ADMIN_TOKEN";
    let ended = run_with(directory.path(), &[(name, "0123456789abcde")], &arguments);
    assert_eq!(ended.code, Some(2), "{}", ended.err);
    let says = "error: [E0009] FREEHOLD_ADMIN_TOKEN is not a token of 16 to 256 visible ASCII characters\n";
    assert!(ended.err.contains(says) && !ended.err.contains("0123456789"), "{}", ended.err);
    let token = [(name, "0123456789abcdef")];
    let server = Server::start_with(directory.path(), &token, &arguments);
    let mode = |path: &str| fs::metadata(directory.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("d"), mode("d/admin-token")), (0o700, 0o600));
    let list = ["tenant", "list", "--json", "--data", "d", "--server", &server.url()];
    assert_eq!(run_with(directory.path(), &token, &list).json()["tenants"], Value::Array(Vec::new()));
    let ended = run(directory.path(), &list);
    assert!(ended.code == Some(1) && ended.err.starts_with("error: [E0009] "), "{}", ended.err);
    let http = format!("http://{}", server.text("http"));
    let ended = run(directory.path(), &["tenant", "list", "--data", "d", "--server", &http]);
    assert!(ended.code == Some(1) && ended.err.starts_with("error: [E0010] what answers is no "), "{}", ended.err);
    assert!(ended.err.contains("\n  hint: name the gRPC address with --server"), "{}", ended.err);
}

#[test]
fn a_reader_that_goes_away_ends_a_command_quietly() {
    let directory = TempDir::new().unwrap();
    let mut child = command(directory.path())
        .args(["serve", "--dump-config"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), ended.stderr.as_slice()), (Some(0), &[][..]));
}

#[test]
fn simulate_serves_until_a_signal() {
    let directory = TempDir::new().unwrap();
    let server = Server::start(directory.path(), &["simulate", "--json", "--listen", "127.0.0.1:0"]);
    let body = r#"{"model":"sim-small","messages":[{"role":"user","content":"hi"}]}"#;
    let (head, _) = post(server.text("http"), "none", body);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    server.signal(Signal::TERM);
    assert_eq!(server.ended(), (Some(0), String::new()));
}

#[test]
fn dev_is_ready_fast_shows_one_request_and_keeps_its_key() {
    let directory = TempDir::new().unwrap();
    let server = Server::dev(directory.path());
    let episode = &server.ready["episode"];
    assert_eq!((episode["end_state"].as_str(), episode["tenant"].as_str()), (Some("completed"), Some("demo")));
    let events: Vec<_> = episode["entries"].as_array().unwrap().iter().map(|entry| &entry["event"]).collect();
    assert_eq!(events, ["RequestAdmitted", "RequestSettled"]);
    assert_eq!(server.ready["answer"]["usage"]["completion_tokens"], episode["completion_tokens"]);
    let key = server.text("key").to_owned();
    let mode = fs::metadata(directory.path().join("freehold-data/dev-key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    server.signal(Signal::INT);
    assert_eq!(server.ended().0, Some(0));

    let server = Server::dev(directory.path());
    assert_eq!(server.text("key"), key);
    server.signal(Signal::TERM);
    assert_eq!(server.ended(), (Some(0), String::new()));
}

#[test]
fn dev_tells_people_how_to_go_on() {
    let directory = TempDir::new().unwrap();
    let mut child = command(directory.path())
        .args(["dev", "--data", "d", "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let text: Vec<_> = lines.by_ref().map(Result::unwrap).take_while(|line| !line.starts_with("Ctrl-C")).collect();
    let text = text.join("\n");
    assert!(text.starts_with("freehold is ready in "), "{text}");
    let key = fs::read_to_string(directory.path().join("d/dev-key")).unwrap();
    for part in [
        "  +0.000 ms  RequestAdmitted  admitted sim-small via sim: ",
        ", holds $0.00",
        "\nend state  completed after ",
        "  curl http://127.0.0.1:",
        "  grpcurl -plaintext ",
        "client = OpenAI(base_url=\"http://127.0.0.1:",
        "  freehold tenant show demo --data d --server http://127.0.0.1:",
        key.trim(),
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    kill_process(Pid::from_raw(child.id().try_into().unwrap()).unwrap(), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_server_on_the_same_directory_is_refused_with_the_first_ones_process() {
    let directory = TempDir::new().unwrap();
    let server = Server::dev(directory.path());
    let arguments = ["serve", "--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    let ended = run(directory.path(), &arguments);
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("error: [E0001] "), "{}", ended.err);
    assert!(ended.err.contains(&format!("in use by process {}", server.child.id())), "{}", ended.err);
    let busy = run(
        directory.path(),
        &["serve", "--data", "other", "--http-listen", server.text("http"), "--grpc-listen", "127.0.0.1:0"],
    );
    assert!(busy.code == Some(1) && busy.err.contains("[E0007] "), "{}", busy.err);
    let doctor = run(directory.path(), &["doctor"]);
    assert_eq!(doctor.code, Some(1));
    assert!(doctor.out.contains("problem lock            [E0001] the data directory is in use"), "{}", doctor.out);
    server.signal(Signal::TERM);
    assert_eq!(server.ended().0, Some(0));
    let doctor = run(directory.path(), &["doctor"]);
    assert!(doctor.out.contains("ok      lock            free"), "{}", doctor.out);
}

#[test]
fn operators_see_the_same_from_the_server_and_from_the_directory() {
    let directory = TempDir::new().unwrap();
    let server = Server::dev(directory.path());
    let at = server.url();
    let online = |arguments: &[&str]| run(directory.path(), &[arguments, &["--server", &at, "--json"]].concat()).json();
    let offline = |arguments: &[&str]| run(directory.path(), &[arguments, &["--offline", "--json"]].concat()).json();

    let created = online(&["tenant", "create", "acme", "--plan", "free", "--display-name", "Acme"]);
    assert_eq!((created["status"].as_str(), created["plan"]["name"].as_str()), (Some("active"), Some("free")));
    let again = run(directory.path(), &["tenant", "create", "acme", "--server", &at]);
    assert!(again.code == Some(1) && again.err.starts_with("error: "), "{}", again.err);
    assert_eq!(online(&["tenant", "set-plan", "acme", "pro"])["plan"]["name"], "pro");
    let limited = online(&["tenant", "set-budget", "acme", "--period", "day", "--limit", "0.50"]);
    let day = limited["budgets"].as_array().unwrap().iter().find(|budget| budget["period"] == "day").unwrap();
    assert_eq!(day["limit_nano_usd"], 500_000_000);
    assert_eq!(online(&["tenant", "suspend", "acme", "--reason", "late"])["status"], "suspended");
    assert_eq!(online(&["tenant", "resume", "acme"])["status"], "active");

    let key = online(&["key", "create", "acme", "--label", "ci"]);
    let secret = key["secret"].as_str().unwrap();
    assert!(secret.starts_with("fhk_acme_"));
    let body = r#"{"model":"sim-small","messages":[{"role":"user","content":"hi"}],"max_tokens":16}"#;
    let (head, answer) = post(server.text("http"), secret, body);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}\n{answer}");
    let episodes = online(&["episode", "list", "acme"]);
    let newest = &episodes["episodes"][0];
    assert_eq!((newest["end_state"].as_str(), newest["model"].as_str()), (Some("completed"), Some("sim-small")));
    let id = newest["episode_id"].as_str().unwrap();
    assert!(head.contains(id), "{head}");

    for arguments in
        [&["episode", "show", id][..], &["episode", "list", "acme"], &["state", "tenant/acme", "--at-version", "3"]]
    {
        assert_eq!(online(arguments), offline(arguments), "{arguments:?}");
    }
    let before = online(&["state", "tenant/acme", "--at-version", "1"]);
    assert_eq!((before["version"].as_u64(), before["state"]["plan"]["name"].as_str()), (Some(1), Some("free")));
    let beyond = run(directory.path(), &["state", "tenant/acme", "--at-version", "99", "--server", &at]);
    assert!(beyond.code != Some(0) && beyond.err.contains("has no version 99"), "{}", beyond.err);

    let revoked = online(&["key", "revoke", "acme", key["api_key"]["key_id"].as_str().unwrap()]);
    assert_eq!(revoked["revoked"], true);
    assert!(post(server.text("http"), secret, body).0.starts_with("HTTP/1.1 401"));
    let list = online(&["tenant", "list"]);
    let names: Vec<_> = list["tenants"].as_array().unwrap().iter().map(|tenant| &tenant["tenant_id"]).collect();
    assert_eq!(names, ["acme", "demo"]);
    server.signal(Signal::TERM);
    assert_eq!(server.ended().0, Some(0));
    // Nobody is reachable now; the directory that was named is read instead.
    let shown = run(directory.path(), &["episode", "show", id, "--data", "freehold-data", "--json"]);
    assert!(shown.json()["entries"].as_array().unwrap().len() == 2 && shown.err.contains("no server is reachable"));
    let shown = run(directory.path(), &["episode", "show", id]);
    assert!(shown.code == Some(1) && shown.err.contains("[E0010]"), "{}", shown.err);
}

#[test]
fn the_log_is_read_beside_a_server_and_damage_is_found() {
    let directory = TempDir::new().unwrap();
    let server = Server::dev(directory.path());
    let log = |arguments: &[&str]| run(directory.path(), &[&["log"], arguments].concat());
    let stat = log(&["stat", "--json"]).json();
    let commits = stat["commits"].as_u64().unwrap();
    assert!(commits >= 5, "{stat}");
    let lines = log(&["cat", "--json"]);
    let all: Vec<Value> = lines.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        all.iter().map(|commit| commit["position"].as_u64().unwrap()).collect::<Vec<_>>(),
        (1..=commits).collect::<Vec<_>>()
    );
    let settled = log(&["cat", "--type", "RequestSettled", "--tenant", "demo"]);
    assert_eq!(settled.out.lines().count(), 1, "{}", settled.out);
    assert!(settled.out.contains("  SettleRequest -> RequestSettled  by system/"), "{}", settled.out);
    assert_eq!(log(&["cat", "--from", "2", "--limit", "2"]).out.lines().count(), 2);
    let none = log(&["cat", "--type", "Nope"]);
    assert_eq!((none.code, none.out.as_str(), none.err.as_str()), (Some(0), "", "no commit matches\n"));
    assert_eq!(log(&["verify", "--json"]).json()["commits"], commits);
    server.signal(Signal::TERM);
    assert_eq!(server.ended().0, Some(0));

    let segments: Vec<_> = fs::read_dir(directory.path().join("freehold-data/log")).unwrap().collect();
    let segment = segments.into_iter().map(|entry| entry.unwrap().path()).min().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.windows(4).position(|window| window == b"demo").unwrap();
    bytes[at] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let damaged = log(&["verify"]);
    assert_eq!(damaged.code, Some(1), "{}", damaged.out);
    let name = segment.file_name().unwrap().to_str().unwrap();
    let says = |text: &str| text.contains(name) && text.contains("is damaged at byte ");
    assert!(damaged.err.starts_with("error: [E0002] ") && says(&damaged.err), "{}", damaged.err);
    let json = log(&["verify", "--json"]);
    let found: Value = serde_json::from_str(&json.out).unwrap();
    assert!(json.code == Some(1) && found["ok"] == false && found["offset"].is_u64(), "{}", json.out);
}

#[test]
fn bench_log_checks_its_results_and_leaves_nothing_behind() {
    let directory = TempDir::new().unwrap();
    let arguments = ["bench", "log", "--commits", "6000", "--seconds", "0.1", "--rounds", "1", "--json"];
    let result = run(directory.path(), &arguments).json();
    assert_eq!(result["append"].as_array().unwrap().len(), 3);
    assert_eq!(result["replay"]["with_index"]["settled"], 2_000);
    assert_eq!(result["replay"]["without_index"]["events"], 6_000);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn bench_http_checks_that_what_is_charged_is_what_was_billed() {
    let directory = TempDir::new().unwrap();
    let arguments = ["bench", "http", "--connections", "8", "--seconds", "0.2", "--rounds", "1", "--json"];
    let result = run(directory.path(), &arguments).json();
    assert_eq!(result["results"].as_array().unwrap().len(), 2);
    assert!(result["requests_settled"].as_u64().unwrap() > 0);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}
