//! The whole system as real processes: a simulated upstream and a server, from the shipped binary, on free ports.
//!
//! The binary is built by cargo when the test starts, so that it is always that of the sources; the test itself links
//! nothing of the server.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::time::timeout;

/// Longest wait for a process to be ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between two looks at something that is being waited for.
pub const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Builds the shipped binary and says where it lies.
///
/// # Errors
/// It does not build.
pub fn freehold() -> Result<PathBuf> {
    let test = std::env::current_exe().context("find this test")?;
    // target/<profile>/deps/<test>
    let profile = test.ancestors().nth(2).context("find the target directory")?;
    let binary = profile.join("freehold");
    let name = profile.file_name().and_then(OsStr::to_str).unwrap_or("debug");
    let profile = if name == "debug" { "dev" } else { name };
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "server", "--bin", "freehold", "--profile", profile])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .context("run cargo")?;
    ensure!(status.success(), "the server does not build");
    Ok(binary)
}

/// A process that ends with its test.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Where its HTTP listens.
    pub http: SocketAddr,
    /// Where its gRPC listens, if it does.
    pub(crate) grpc: Option<SocketAddr>,
}

impl Process {
    /// Starts a program and waits until it says where it listens, which is its first line when all is ready.
    pub(crate) async fn start(command: &mut Command) -> Result<Self> {
        let spawned = command.arg("--json").stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.context("start the process")?;
        let stdout = child.stdout.take().context("take the output of the process")?;
        // From here on it ends, and with it the reading, whatever else goes wrong.
        let mut process = Self { child, http: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), grpc: None };
        let reading = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).map(|_| line)
        });
        let line = timeout(READY_TIMEOUT, reading).await.context("wait for the process to be ready")?;
        let line = line.context("read the output of the process")?.context("read the output of the process")?;
        if line.is_empty() {
            bail!("the process ended: {}", process.child.wait().context("wait for the process")?);
        }
        let ready: Value = serde_json::from_str(&line).with_context(|| format!("read {line:?}"))?;
        let address = |name: &str| ready.get(name).and_then(Value::as_str).and_then(|text| text.parse().ok());
        process.http = address("http").with_context(|| format!("find the address in {line:?}"))?;
        process.grpc = address("grpc");
        Ok(process)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end as an operator does, and waits until it has.
    ///
    /// # Errors
    /// It cannot be asked, or ends with an error.
    pub fn terminate(&mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.child.wait().context("wait for the process")?;
        ensure!(status.success(), "the process ended with {status}");
        Ok(())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("name the process")?;
        kill_process(pid, signal).context("signal the process")
    }

    /// Ends it at once, as a power button would.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("kill the process")?;
        self.child.wait().context("wait for the process")?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.kill();
    }
}

/// A simulated upstream and a server before it.
#[derive(Debug)]
pub struct System {
    binary: PathBuf,
    folder: PathBuf,
    /// Where the server's gRPC listens; addresses are the same over restarts.
    grpc: SocketAddr,
    environment: Vec<(&'static str, OsString)>,
    /// The upstream.
    pub upstream: Process,
    /// The server.
    pub server: Process,
}

impl System {
    /// Starts both in a folder of their own; `faults` are flags of `freehold simulate`.
    ///
    /// # Errors
    /// One of them does not start.
    pub async fn start(folder: &Path, faults: &[String]) -> Result<Self> {
        Self::start_in(folder, faults, Vec::new()).await
    }

    /// The same, with more in the server's environment.
    ///
    /// # Errors
    /// One of them does not start.
    pub async fn start_in(
        folder: &Path,
        faults: &[String],
        environment: Vec<(&'static str, OsString)>,
    ) -> Result<Self> {
        let binary = freehold()?;
        let mut simulate = Command::new(&binary);
        let upstream = Process::start(simulate.args(["simulate", "--listen", "127.0.0.1:0"]).args(faults)).await?;
        fs::write(folder.join("freehold.toml"), configuration(upstream.http)).context("write the configuration")?;
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = Self::start_server(&binary, folder, [any, any], &environment).await?;
        let grpc = server.grpc.context("find the address of gRPC")?;
        Ok(Self { binary, folder: folder.to_path_buf(), grpc, environment, upstream, server })
    }

    async fn start_server(
        binary: &Path,
        folder: &Path,
        [grpc, http]: [SocketAddr; 2],
        environment: &[(&'static str, OsString)],
    ) -> Result<Process> {
        let mut serve = Command::new(binary);
        serve
            .arg("serve")
            .args(["--grpc-listen", &grpc.to_string()])
            .args(["--http-listen", &http.to_string()])
            .args(["--log-filter", "error"])
            .arg("--config")
            .arg(folder.join("freehold.toml"))
            .arg("--data")
            .arg(folder.join("data"))
            .envs(environment.iter().cloned());
        Process::start(&mut serve).await
    }

    /// Starts the server again on the same directory and the same ports.
    ///
    /// # Errors
    /// It does not start.
    pub async fn restart(&mut self) -> Result<()> {
        let addresses = [self.grpc, self.server.http];
        self.server = Self::start_server(&self.binary, &self.folder, addresses, &self.environment).await?;
        Ok(())
    }

    /// The same, with this in the server's environment from now on instead of what was there.
    ///
    /// # Errors
    /// It does not start.
    pub async fn restart_in(&mut self, environment: Vec<(&'static str, OsString)>) -> Result<()> {
        self.environment = environment;
        self.restart().await
    }

    /// Where the server keeps its log.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Runs an operator's command against the server and reads its JSON.
    ///
    /// # Errors
    /// It fails, or prints no JSON.
    pub fn operator(&self, arguments: &[&str]) -> Result<Value> {
        let output = Command::new(&self.binary)
            .args(arguments)
            .arg("--json")
            .args(["--server", &format!("http://{}", self.grpc)])
            .arg("--data")
            .arg(self.data())
            .output()
            .context("run the command")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?} ended with {}: {errors}", output.status);
        serde_json::from_slice(&output.stdout).with_context(|| format!("{arguments:?} printed no JSON"))
    }
}

pub(crate) fn configuration(upstream: SocketAddr) -> String {
    format!(
        r#"
[requests]
in_flight_max = 8000
reservation_grace = "5s"

[http]
connections_max = 10000

[[upstreams]]
name = "sim"
base_url = "http://{upstream}"
usage_lookup_path = "/v1/usage/{{request_id}}"
connect_timeout = "10s"
first_byte_timeout = "20s"
idle_timeout = "10s"
total_timeout = "30s"

[[upstreams.models]]
name = "sim-small"
input_usd_per_mtok = "0.15"
output_usd_per_mtok = "0.60"
completion_tokens_default = 64
completion_tokens_max = 256
"#
    )
}
