//! One server process.

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    Error, PASSWORD, READY_WITHIN, attempt, binary, configurations, monitor,
    ports::{self, Port},
    probe, wait,
};

/// In the server's directory.
const LOG: &str = "server.log";
/// In the server's directory.
const STORE: &str = "store";
/// What the server prints when it is asked for its health too early.
const UNHEALTHY: &str = "Healthcheck failed";
/// How much of the log an error shows.
const LOG_BYTES_SHOWN: usize = 4 * 1024;

/// A NATS server of its own process; dropped, it is killed and its directory removed.
#[derive(Debug)]
pub struct NatsServer {
    name: String,
    launch: Launch,
    client: Port,
    monitor: Port,
    #[expect(dead_code, reason = "held, not read: the ports of the server's other listeners")]
    others: Vec<Port>,
    child: Option<Child>,
    // After the process in this list, so that a killed server's directory is removed and not a living one's.
    directory: TempDir,
}

/// How a process is started, each time in the same way.
#[derive(Debug)]
struct Launch {
    configuration: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

impl NatsServer {
    /// Starts one server with `single.conf` and waits until it is ready.
    ///
    /// # Errors
    /// There is no binary, or it does not start.
    pub fn start() -> Result<Self, Error> {
        attempt(|| Self::single(|_| Ok(configurations().join("single.conf"))))
    }

    /// Starts one server with another configuration: `text`, which may include `permissions.conf` and use
    /// `$FREEHOLD_NATS_STORE` and `$FREEHOLD_NATS_PASSWORD`. Its ports are chosen here.
    ///
    /// # Errors
    /// There is no binary, or it does not start.
    pub fn start_with(text: &str) -> Result<Self, Error> {
        attempt(|| {
            Self::single(|directory| {
                let path = directory.join("server.conf");
                fs::write(&path, text).map_err(|source| Error::io("write a configuration", source))?;
                let permissions = "permissions.conf";
                fs::copy(configurations().join(permissions), directory.join(permissions))
                    .map_err(|source| Error::io("copy the permissions", source))?;
                Ok(path)
            })
        })
    }

    /// The text of `single.conf`, to change something in it for [`Self::start_with`].
    ///
    /// # Errors
    /// It cannot be read.
    pub fn configuration() -> Result<String, Error> {
        fs::read_to_string(configurations().join("single.conf")).map_err(|source| Error::io("read single.conf", source))
    }

    fn single(configuration: impl FnOnce(&Path) -> Result<PathBuf, Error>) -> Result<Self, Error> {
        let directory = directory()?;
        let (client, monitor) = (ports::reserve()?, ports::reserve()?);
        // The file says where it listens when it is shipped; here the ports are ours, on the loopback interface only.
        let arguments = [
            ("--addr", Ipv4Addr::LOCALHOST.to_string()),
            ("--port", client.number().to_string()),
            ("--http_port", monitor.number().to_string()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect();
        let environment = common_environment(directory.path());
        let launch = Launch { configuration: configuration(directory.path())?, arguments, environment };
        let name = "single".to_owned();
        let mut server = Self { name, launch, client, monitor, others: Vec::new(), child: None, directory };
        server.spawn()?;
        server.wait_healthy(READY_WITHIN)?;
        Ok(server)
    }

    /// Starts a server whose configuration takes all that differs from the environment, and does not wait for it.
    pub(super) fn launch(
        name: &str,
        configuration: PathBuf,
        client: Port,
        monitor: Port,
        others: Vec<Port>,
        (arguments, more): (Vec<String>, Vec<(&str, String)>),
    ) -> Result<Self, Error> {
        let directory = directory()?;
        let mut environment = common_environment(directory.path());
        environment.push(("FREEHOLD_NATS_LISTEN".to_owned(), client.address()));
        environment.push(("FREEHOLD_NATS_MONITOR".to_owned(), monitor.address()));
        environment.extend(more.into_iter().map(|(key, value)| (key.to_owned(), value)));
        let launch = Launch { configuration, arguments, environment };
        let mut server = Self { name: name.to_owned(), launch, client, monitor, others, child: None, directory };
        server.spawn()?;
        Ok(server)
    }

    /// The name the server has in its cluster.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where clients connect, without credentials: those are [`super::USER`] and [`super::PASSWORD`].
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://{}", self.client.address())
    }

    /// The client port on the loopback interface.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.client.number()
    }

    /// The monitoring port on the loopback interface.
    #[must_use]
    pub fn monitor_port(&self) -> u16 {
        self.monitor.number()
    }

    /// The directory with all that JetStream stores.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.directory.path().join(STORE)
    }

    /// All that the server printed since its first start.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.directory.path().join(LOG))
            .map_or_else(|error| error.to_string(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// What the monitoring port says at a path such as `/jsz`; nothing where the server does not answer in a second.
    #[must_use]
    pub fn look(&self, path: &str) -> Option<Value> {
        self.child.as_ref().and_then(|_| monitor::look(self.monitor.number(), path))
    }

    /// Whether the stream with this subject has a leader that answers who writes through this server.
    #[must_use]
    pub fn takes_writes(&self, subject: &str) -> bool {
        self.child.is_some() && probe::takes_writes(self.client.number(), subject)
    }

    /// Ends the process at once, as a crash would; nothing happens where none runs.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn kill(&mut self) -> Result<(), Error> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill().and_then(|()| child.wait()).map_err(|source| Error::io(format!("kill {}", self.name), source))?;
        Ok(())
    }

    /// Stops the process where it is (`SIGSTOP`), until [`Self::continue_signal`], and returns when it has stopped.
    ///
    /// # Errors
    /// None runs, or the operating system refuses.
    pub fn stop_signal(&self) -> Result<(), Error> {
        let process = self.signal(Signal::STOP)?;
        // Whether it stopped or ended is seen without reaping it: that is left to who asks for its exit status.
        let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(process), options)
            .map_err(|source| Error::io(format!("wait until {} stops", self.name), source.into()))?;
        Ok(())
    }

    /// Lets a stopped process go on (`SIGCONT`).
    ///
    /// # Errors
    /// None runs, or the operating system refuses.
    pub fn continue_signal(&self) -> Result<(), Error> {
        self.signal(Signal::CONT).map(|_| ())
    }

    /// Starts the process again on the same directory and ports, after killing it where it still runs, and waits until
    /// it takes connections. JetStream of a cluster may need longer: [`Self::wait_healthy`].
    ///
    /// # Errors
    /// It does not start.
    pub fn restart(&mut self) -> Result<(), Error> {
        self.kill()?;
        self.spawn()?;
        let greeting = wait(READY_WITHIN, || match self.running() {
            Ok(()) => Ok(monitor::greets(self.client.number()).then_some(())),
            // Somebody who knows nothing of our reservation listens, perhaps not for long.
            Err(error) if error.is_port_taken() => self.spawn().map(|()| None),
            Err(error) => Err(error),
        });
        self.in_time(greeting?, "listening", READY_WITHIN)
    }

    /// Waits until the server says that it and its JetStream are ready.
    ///
    /// # Errors
    /// It ends, or is not ready in time.
    pub fn wait_healthy(&mut self, within: Duration) -> Result<(), Error> {
        self.wait_for("healthy", within, |server| monitor::is_healthy(server.monitor.number()))
    }

    pub(super) fn wait_for(
        &mut self,
        awaited: &'static str,
        within: Duration,
        look: impl Fn(&Self) -> bool,
    ) -> Result<(), Error> {
        let seen = wait(within, || {
            self.running()?;
            Ok(look(self).then_some(()))
        });
        self.in_time(seen?, awaited, within)
    }

    fn in_time(&self, seen: Option<()>, awaited: &'static str, within: Duration) -> Result<(), Error> {
        let late =
            || Error::TooLate { name: self.name.clone(), awaited, seconds: within.as_secs(), log: self.end_of_log() };
        seen.ok_or_else(late)
    }

    fn spawn(&mut self) -> Result<(), Error> {
        let binary = binary()?;
        let path = self.directory.path().join(LOG);
        let log = File::options().create(true).append(true).open(&path);
        let log = log.map_err(|source| Error::io(format!("open {}", path.display()), source))?;
        let child = Command::new(&binary)
            .arg("--config")
            .arg(&self.launch.configuration)
            .args(&self.launch.arguments)
            .env_clear()
            .envs(self.launch.environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|source| Error::io(format!("start {}", binary.display()), source))?;
        self.child = Some(child);
        Ok(())
    }

    /// Whether the process is there; reaps it where it ended.
    fn running(&mut self) -> Result<(), Error> {
        let Some(child) = &mut self.child else { return Err(Error::NotRunning { name: self.name.clone() }) };
        let ended = child.try_wait().map_err(|source| Error::io(format!("look after {}", self.name), source))?;
        let Some(status) = ended else { return Ok(()) };
        self.child = None;
        Err(Error::Ended { name: self.name.clone(), status, log: self.end_of_log() })
    }

    fn signal(&self, signal: Signal) -> Result<Pid, Error> {
        let child = self.child.as_ref().ok_or_else(|| Error::NotRunning { name: self.name.clone() })?;
        let process = Pid::from_child(child);
        kill_process(process, signal).map_err(|source| Error::io(format!("signal {}", self.name), source.into()))?;
        Ok(process)
    }

    /// Without what our own looks at its health put there.
    pub(super) fn end_of_log(&self) -> String {
        let log: String = self.log().split_inclusive('\n').filter(|line| !line.contains(UNHEALTHY)).collect();
        let mut begin = log.len().saturating_sub(LOG_BYTES_SHOWN);
        while !log.is_char_boundary(begin) {
            begin += 1;
        }
        log.get(begin..).unwrap_or_default().trim_end().to_owned()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        // A test that ends cannot do anything about a process that cannot be killed.
        drop(self.kill());
    }
}

fn directory() -> Result<TempDir, Error> {
    let made = tempfile::Builder::new().prefix("freehold-nats-").tempdir();
    made.map_err(|source| Error::io("make a directory for a server", source))
}

fn common_environment(directory: &Path) -> Vec<(String, String)> {
    let store = directory.join(STORE).display().to_string();
    [("FREEHOLD_NATS_PASSWORD", PASSWORD.to_owned()), ("FREEHOLD_NATS_STORE", store)]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
}
