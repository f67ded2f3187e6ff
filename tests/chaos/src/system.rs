//! The whole system as real processes: a simulated upstream and a server, from the shipped binary, on free ports.
//!
//! The binary is built by cargo when the test starts, so that it is always that of the sources; the test itself links
//! nothing of the server.

use std::{
    ffi::{OsStr, OsString},
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::clients::Http;

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

/// A port that was free a moment ago; it stays the same over restarts.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("bind a port")?;
    Ok(listener.local_addr().context("read the port")?.port())
}

/// A process that ends with its test.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Where its HTTP listens.
    pub http: SocketAddr,
}

impl Process {
    fn start(mut command: Command, http: SocketAddr) -> Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("start the process")?;
        Ok(Self { child, http })
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

    /// Waits until `path` answers 200.
    ///
    /// # Errors
    /// It does not in time, or the process ended.
    pub async fn ready(&mut self, path: &str) -> Result<()> {
        let http = Http::new(self.http);
        let wait = async {
            loop {
                if let Some(status) = self.child.try_wait().context("look at the process")? {
                    bail!("the process ended: {status}");
                }
                if http.get(path).await.is_ok_and(|(status, _)| status == 200) {
                    return Ok(());
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::time::timeout(READY_TIMEOUT, wait).await.context("wait for the process to be ready")?
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
    grpc_port: u16,
    http_port: u16,
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
        let upstream_at = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let mut simulate = Command::new(&binary);
        simulate.args(["simulate", "--listen", &upstream_at.to_string()]).args(faults);
        let mut upstream = Process::start(simulate, upstream_at)?;
        upstream.ready("/healthz").await?;
        let (grpc_port, http_port) = (free_port()?, free_port()?);
        fs::write(folder.join("freehold.toml"), configuration(upstream_at)).context("write the configuration")?;
        let server = Self::start_server(&binary, folder, [grpc_port, http_port], &environment)?;
        let folder = folder.to_path_buf();
        let mut system = Self { binary, folder, grpc_port, http_port, environment, upstream, server };
        system.server.ready("/readyz").await?;
        Ok(system)
    }

    fn start_server(
        binary: &Path,
        folder: &Path,
        [grpc_port, http_port]: [u16; 2],
        environment: &[(&'static str, OsString)],
    ) -> Result<Process> {
        let mut serve = Command::new(binary);
        serve
            .arg("serve")
            .args(["--grpc-listen", &format!("127.0.0.1:{grpc_port}")])
            .args(["--http-listen", &format!("127.0.0.1:{http_port}")])
            .args(["--log-filter", "error"])
            .arg("--config")
            .arg(folder.join("freehold.toml"))
            .arg("--data")
            .arg(folder.join("data"))
            .envs(environment.iter().cloned());
        Process::start(serve, SocketAddr::from((Ipv4Addr::LOCALHOST, http_port)))
    }

    /// Starts the server again on the same directory and the same ports.
    ///
    /// # Errors
    /// It does not start.
    pub async fn restart(&mut self) -> Result<()> {
        let ports = [self.grpc_port, self.http_port];
        self.server = Self::start_server(&self.binary, &self.folder, ports, &self.environment)?;
        self.server.ready("/readyz").await
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
            .args(["--server", &format!("http://127.0.0.1:{}", self.grpc_port)])
            .arg("--data")
            .arg(self.data())
            .output()
            .context("run the command")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?} ended with {}: {errors}", output.status);
        serde_json::from_slice(&output.stdout).with_context(|| format!("{arguments:?} printed no JSON"))
    }
}

fn configuration(upstream: SocketAddr) -> String {
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
