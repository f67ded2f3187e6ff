//! A TCP proxy before one server: a network that a test can break and mend.
//!
//! Invariants: bytes of one direction keep their order, and what is neither swallowed nor cut arrives. `Hold` is what a
//! network that loses every packet looks like to TCP: nothing arrives, nothing is refused, and what was sent goes on
//! when the network is back. `Swallow` leaves a connection that can only be cut.
//!
//! It deliberately limits no throughput and reads nothing of what it carries.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        mpsc::{self, Receiver, SyncSender},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

/// Read at a time, bytes.
const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks of one direction that are on their way; then the sender feels it.
const CHUNKS_MAX: usize = 1_024;
/// Connections that a cut remembers; older ones have ended long ago.
const CONNECTIONS_MAX: usize = 1_024;

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From clients to the server.
    ToServer,
    /// From the server to clients.
    ToClient,
}

/// What becomes of bytes that go one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// They go on at once.
    Pass,
    /// They go on after this time.
    Delay(Duration),
    /// They go on when the rule is another one.
    Hold,
    /// They are gone.
    Swallow,
}

#[derive(Debug)]
struct Rules {
    to_server: Traffic,
    to_client: Traffic,
    is_ended: bool,
    open: VecDeque<[TcpStream; 2]>,
}

#[derive(Debug)]
struct Shared {
    rules: Mutex<Rules>,
    changed: Condvar,
}

/// See the module; ends with the value.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    port: u16,
}

#[expect(clippy::disallowed_methods, reason = "the network between real processes is delayed by the real clock")]
fn now() -> Instant {
    Instant::now()
}

impl Proxy {
    /// A proxy before what listens at this port of the loopback interface; it passes everything.
    ///
    /// # Errors
    /// No port can be listened to.
    pub fn before(server: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let (to_server, to_client) = (Traffic::Pass, Traffic::Pass);
        let rules = Mutex::new(Rules { to_server, to_client, is_ended: false, open: VecDeque::new() });
        let shared = Arc::new(Shared { rules, changed: Condvar::new() });
        let passing = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                if passing.rules.lock().is_ended {
                    return;
                }
                // A server that does not listen refuses its client by this end of the connection.
                let (Ok(client), Ok(server)) = (client, TcpStream::connect((Ipv4Addr::LOCALHOST, server))) else {
                    continue;
                };
                // One whose handles cannot be copied is closed at once.
                let _closed = passing.connect(client, server);
            }
        });
        Ok(Self { shared, port })
    }

    /// Where clients connect.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Where clients of NATS connect.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://{}:{}", Ipv4Addr::LOCALHOST, self.port)
    }

    /// Sets what becomes of bytes that go one way: those that are on their way, and all later ones.
    pub fn set(&self, way: Way, traffic: Traffic) {
        let mut rules = self.shared.rules.lock();
        match way {
            Way::ToServer => rules.to_server = traffic,
            Way::ToClient => rules.to_client = traffic,
        }
        drop(rules);
        self.shared.changed.notify_all();
    }

    /// The same for both ways.
    pub fn set_both(&self, traffic: Traffic) {
        self.set(Way::ToServer, traffic);
        self.set(Way::ToClient, traffic);
    }

    /// Closes every connection; later ones follow the rules.
    pub fn cut(&self) {
        for one in self.shared.rules.lock().open.drain(..).flatten() {
            // It may have ended already.
            let _ended = one.shutdown(Shutdown::Both);
        }
    }

    /// Passes everything; what was held goes on.
    pub fn heal(&self) {
        self.set_both(Traffic::Pass);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.rules.lock().is_ended = true;
        self.cut();
        self.shared.changed.notify_all();
        // Wakes the listener, which then ends.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
    }
}

impl Shared {
    fn connect(self: &Arc<Self>, client: TcpStream, server: TcpStream) -> io::Result<()> {
        // A test that counts milliseconds must not count Nagle's.
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        for (from, to, way) in [(&client, &server, Way::ToServer), (&server, &client, Way::ToClient)] {
            let (from, to, shared) = (from.try_clone()?, to.try_clone()?, Arc::clone(self));
            let (read, written) = mpsc::sync_channel(CHUNKS_MAX);
            thread::spawn(move || take(from, &read));
            thread::spawn(move || shared.give(to, &written, way));
        }
        let mut rules = self.rules.lock();
        rules.open.push_back([client, server]);
        if rules.open.len() > CONNECTIONS_MAX {
            rules.open.pop_front();
        }
        Ok(())
    }

    fn give(&self, mut to: TcpStream, chunks: &Receiver<(Instant, Vec<u8>)>, way: Way) {
        for (read_at, chunk) in chunks {
            if self.is_through(read_at, way) && to.write_all(&chunk).is_err() {
                break;
            }
        }
        // It may have ended already.
        let _ended = to.shutdown(Shutdown::Both);
    }

    /// Waits until bytes that were read then may go on; whether they do.
    fn is_through(&self, read_at: Instant, way: Way) -> bool {
        let mut rules = self.rules.lock();
        while !rules.is_ended {
            let traffic = match way {
                Way::ToServer => rules.to_server,
                Way::ToClient => rules.to_client,
            };
            match traffic {
                Traffic::Pass => return true,
                Traffic::Swallow => return false,
                Traffic::Hold => self.changed.wait(&mut rules),
                Traffic::Delay(delay) => {
                    if self.changed.wait_until(&mut rules, read_at + delay).timed_out() || now() >= read_at + delay {
                        return true;
                    }
                }
            }
        }
        false
    }
}

fn take(mut from: TcpStream, chunks: &SyncSender<(Instant, Vec<u8>)>) {
    let mut bytes = vec![0; CHUNK_BYTES];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let chunk = bytes.get(..count).map(<[u8]>::to_vec).unwrap_or_default();
        if chunks.send((now(), chunk)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longest wait for bytes that must come.
    const WAIT: Duration = Duration::from_secs(30);
    const DELAY: Duration = Duration::from_millis(300);

    /// A proxy with both ends of one connection through it.
    fn connected() -> (Proxy, TcpStream, TcpStream) {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let proxy = Proxy::before(server.local_addr().unwrap().port()).unwrap();
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
        let (server, _) = server.accept().unwrap();
        for end in [&client, &server] {
            end.set_read_timeout(Some(WAIT)).unwrap();
        }
        (proxy, client, server)
    }

    fn read(from: &mut TcpStream) -> String {
        let mut bytes = [0; 64];
        let count = from.read(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    fn is_silent(from: &mut TcpStream) -> bool {
        from.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let silent = from.read(&mut [0; 64]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        from.set_read_timeout(Some(WAIT)).unwrap();
        silent
    }

    #[test]
    fn what_is_held_one_way_arrives_when_the_network_heals_and_the_other_way_is_open() {
        let (proxy, mut client, mut server) = connected();
        proxy.set(Way::ToServer, Traffic::Hold);
        client.write_all(b"held").unwrap();
        server.write_all(b"answer").unwrap();
        assert_eq!(read(&mut client), "answer");
        assert!(is_silent(&mut server));
        proxy.heal();
        assert_eq!(read(&mut server), "held");
    }

    #[test]
    fn delayed_bytes_come_later_and_in_order() {
        let (proxy, mut client, mut server) = connected();
        proxy.set_both(Traffic::Delay(DELAY));
        let start = now();
        client.write_all(b"late").unwrap();
        assert_eq!(read(&mut server), "late");
        assert!(start.elapsed() >= DELAY);
    }

    #[test]
    fn swallowed_bytes_are_gone_and_a_cut_ends_both_ends() {
        let (proxy, mut client, mut server) = connected();
        proxy.set(Way::ToServer, Traffic::Swallow);
        client.write_all(b"gone").unwrap();
        assert!(is_silent(&mut server));
        proxy.cut();
        proxy.heal();
        assert_eq!(read(&mut server), "");
        assert_eq!(read(&mut client), "");
    }
}
