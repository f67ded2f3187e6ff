//! Ports that stay ours while a server is down: a cluster's routes and a restart need ports known beforehand.
//!
//! Invariants: a port is held by at most one test process of this user, by a lock on a file that the operating system
//! lets go with the process; ports lie below those the operating system gives to outgoing connections.

use std::{
    fs::{self, File, TryLockError},
    net::{Ipv4Addr, TcpListener},
    process,
    sync::atomic::{AtomicU16, Ordering},
};

use super::Error;

const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;
/// Spreads processes, whose ids follow each other, over the range; prime to the count.
const STRIDE: u32 = 7_919;

/// How many ports this process has asked for.
static ASKED: AtomicU16 = AtomicU16::new(0);

/// A port of the loopback interface, ours until dropped.
#[derive(Debug)]
pub(super) struct Port {
    number: u16,
    #[expect(dead_code, reason = "it is held, not read: closing it lets the lock go")]
    lock: File,
}

impl Port {
    pub(super) fn number(&self) -> u16 {
        self.number
    }

    /// The port with its address, as servers and clients write it.
    pub(super) fn address(&self) -> String {
        format!("{}:{}", Ipv4Addr::LOCALHOST, self.number)
    }
}

/// Reserves a port on which nobody listens.
///
/// # Errors
/// All are in use, or the folder of locks cannot be written.
pub(super) fn reserve() -> Result<Port, Error> {
    let user = rustix::process::getuid().as_raw();
    let folder = std::env::temp_dir().join(format!("freehold-test-ports-{user}"));
    fs::create_dir_all(&folder).map_err(|source| Error::io(format!("make {}", folder.display()), source))?;
    for _ in 0..COUNT {
        let number = next();
        let path = folder.join(number.to_string());
        let open = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = open.map_err(|source| Error::io(format!("open {}", path.display()), source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(source)) => return Err(Error::io(format!("lock {}", path.display()), source)),
        }
        if TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
            return Ok(Port { number, lock });
        }
    }
    Err(Error::NoPort { first: FIRST, last: FIRST + COUNT - 1 })
}

fn next() -> u16 {
    let begin = process::id().wrapping_mul(STRIDE) % u32::from(COUNT);
    let asked = u32::from(ASKED.fetch_add(1, Ordering::Relaxed));
    FIRST + u16::try_from((begin + asked) % u32::from(COUNT)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn reserved_ports_differ_and_can_be_listened_on() {
        let ports: Vec<_> = (0..20).map(|_| reserve().unwrap()).collect();
        let numbers: BTreeSet<_> = ports.iter().map(Port::number).collect();
        assert_eq!(numbers.len(), ports.len());
        for port in &ports {
            TcpListener::bind(port.address()).unwrap();
        }
    }

    #[test]
    fn a_reserved_port_is_refused_to_another_process_until_it_is_dropped() {
        let port = reserve().unwrap();
        let folder = format!("freehold-test-ports-{}", rustix::process::getuid().as_raw());
        let path = std::env::temp_dir().join(folder).join(port.number().to_string());
        // A second handle stands for the other process: the lock belongs to the handle.
        let other = File::options().write(true).open(path).unwrap();
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        drop(port);
        other.try_lock().unwrap();
    }
}
