//! A TCP proxy between an engine and its server that swallows what goes one way, and cuts.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// What the proxy does with bytes.
#[derive(Debug, Default)]
struct Rules {
    /// Swallows what clients send.
    to_server: AtomicBool,
    /// Swallows what the server sends.
    to_client: AtomicBool,
    ended: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

/// See the module; ends with the value.
#[derive(Debug)]
pub(crate) struct Proxy {
    rules: Arc<Rules>,
    port: u16,
}

impl Proxy {
    pub(crate) fn before(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let rules = Arc::new(Rules::default());
        let shared = Arc::clone(&rules);
        thread::spawn(move || {
            for client in listener.incoming() {
                if shared.ended.load(Ordering::Acquire) {
                    return;
                }
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", server))) else { continue };
                let mut open = shared.open.lock().unwrap();
                for (from, to, is_to_server) in [(&client, &server, true), (&server, &client, false)] {
                    let (from, to, rules) = (from.try_clone().unwrap(), to.try_clone().unwrap(), Arc::clone(&shared));
                    thread::spawn(move || pass(from, to, &rules, is_to_server));
                }
                open.extend([client, server]);
            }
        });
        Self { rules, port }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Swallows the client's bytes from now on.
    pub(crate) fn swallow_to_server(&self) {
        self.rules.to_server.store(true, Ordering::Release);
    }

    /// Swallows the server's bytes from now on.
    pub(crate) fn swallow_to_client(&self) {
        self.rules.to_client.store(true, Ordering::Release);
    }

    /// Closes every connection and passes everything on new ones.
    pub(crate) fn cut(&self) {
        for one in self.rules.open.lock().unwrap().drain(..) {
            drop(one.shutdown(Shutdown::Both));
        }
        self.rules.to_server.store(false, Ordering::Release);
        self.rules.to_client.store(false, Ordering::Release);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.rules.ended.store(true, Ordering::Release);
        self.cut();
        // Wakes the listener, which then ends.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, rules: &Rules, is_to_server: bool) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let swallow = if is_to_server { &rules.to_server } else { &rules.to_client };
        if !swallow.load(Ordering::Acquire) && to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    drop(to.shutdown(Shutdown::Both));
}
