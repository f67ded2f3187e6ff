//! NATS servers that a benchmark starts: fresh directories, free ports of the loopback interface, every message synced
//! before it is acknowledged, as the configurations that are shipped do it. They end with the value.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use events_journal_nats::{Options, bench};
use events_model::RegionId;

use crate::cli::{
    clock::Stopwatch,
    failure::{Failure, Problem},
};

/// Longest wait until servers that were started answer.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks whether they do.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A start is done again with other ports when another process took one meanwhile.
const STARTS_MAX: usize = 3;

const INSTALL: &str = "install nats-server 2.12 or newer and put it on PATH or name it with --nats-server; \
                       in a checkout `cargo xtask setup` puts one at target/tools/nats-server";

/// Running servers.
#[derive(Debug)]
pub(super) struct Servers {
    children: Vec<Child>,
    options: Options,
}

impl Servers {
    /// Starts so many with what they keep below `directory`, and waits until a stream can be made on all of them.
    pub(super) async fn start(program: &Path, directory: &Path, count: usize) -> Result<Self, Failure> {
        let mut attempt = 1;
        loop {
            match Self::attempt(program, &directory.join(format!("start-{attempt}")), count).await {
                Err(_) if attempt < STARTS_MAX => attempt += 1,
                started => return started,
            }
        }
    }

    async fn attempt(program: &Path, directory: &Path, count: usize) -> Result<Self, Failure> {
        let ports = free_ports(2 * count).map_err(|error| Problem::new("find free ports").because(&error))?;
        let (clients, routes) = ports.split_at(count);
        let urls = clients.iter().map(|port| format!("nats://{}:{port}", Ipv4Addr::LOCALHOST));
        let options = Options { servers: urls.collect(), replicas: count, ..Options::default() };
        let mut servers = Self { children: Vec::new(), options };
        for (number, (client, route)) in clients.iter().zip(routes).enumerate() {
            let directory = directory.join(format!("nats-{}", number + 1));
            let written = configure(&directory, number + 1, (*client, *route), routes);
            let path = written.map_err(|error| Problem::new("configure a NATS server").because(&error))?;
            servers.children.push(spawn(program, &path)?);
        }
        servers.wait_ready(directory).await?;
        Ok(servers)
    }

    pub(super) const fn count(&self) -> usize {
        self.options.replicas
    }

    /// How a region of this name is reached.
    pub(super) fn region(&self, name: &str) -> Result<Options, Failure> {
        let region = RegionId::new(name).map_err(|error| Problem::of(&error))?;
        Ok(Options { region, ..self.options.clone() })
    }

    async fn wait_ready(&mut self, directory: &Path) -> Result<(), Failure> {
        let probe = self.region("probe")?;
        let started = Stopwatch::start();
        loop {
            let Err(error) = bench::make(&probe).await else { break };
            for child in &mut self.children {
                if let Ok(Some(status)) = child.try_wait() {
                    let problem = format!("a NATS server ended with {status}; its log lies in {}", directory.display());
                    return Err(Problem::new(problem).into());
                }
            }
            if started.elapsed() >= READY_WITHIN {
                return Err(Problem::new("the NATS servers are not ready").because(&error).into());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        bench::remove(&probe).await.map_err(|error| Problem::new("remove a stream").because(&error).into())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in &mut self.children {
            // One that has ended already needs neither.
            child.kill().and_then(|()| child.wait()).ok();
        }
    }
}

/// Ports that nobody listens to at the moment.
fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    let held: Vec<_> = (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<io::Result<_>>()?;
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

fn configure(directory: &Path, number: usize, (client, route): (u16, u16), routes: &[u16]) -> io::Result<PathBuf> {
    fs::create_dir_all(directory)?;
    let host = Ipv4Addr::LOCALHOST;
    let store = directory.join("store");
    let mut text = format!(
        "server_name: n{number}\nlisten: \"{host}:{client}\"\nmax_payload: 8MB\n\
         jetstream {{ store_dir: {store:?}, sync_interval: always }}\n"
    );
    if routes.len() > 1 {
        let seeds: Vec<_> = routes.iter().map(|port| format!("\"nats://{host}:{port}\"")).collect();
        let seeds = seeds.join(", ");
        // Writing into a string does not fail.
        writeln!(text, "cluster {{ name: bench, listen: \"{host}:{route}\", routes: [ {seeds} ] }}").ok();
    }
    let path = directory.join("server.conf");
    fs::write(&path, text)?;
    Ok(path)
}

fn spawn(program: &Path, configuration: &Path) -> Result<Child, Failure> {
    let failed = |error: io::Error| {
        let problem = Problem::new(format!("start {}", program.display())).because(&error);
        if error.kind() == io::ErrorKind::NotFound { problem.hint(INSTALL) } else { problem }
    };
    let log = File::create(configuration.with_file_name("server.log")).map_err(failed)?;
    let mut command = Command::new(program);
    command.arg("--config").arg(configuration).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Ok(command.spawn().map_err(failed)?)
}
