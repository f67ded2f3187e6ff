//! A node as a process would be: it can be killed, stopped and told what to do.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc as blocking,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use async_nats::{Client, ConnectOptions};
use events_journal_nats::lease::{
    Change, Changes, Error, Handover, Incarnation, Leases, LiveClock, MonotonicClock, Settings, desired_owner,
};
use events_model::RegionId;
use tests_kit::nats::{NatsServer, PASSWORD, USER};
use tokio::sync::{mpsc, oneshot};

pub(crate) const WAIT: Duration = Duration::from_secs(30);
pub(crate) const TTL: Duration = Duration::from_millis(900);

/// The machine's clock at its own speed, in parts of 100.
#[derive(Debug)]
pub(crate) struct Skewed(pub(crate) u32);

impl MonotonicClock for Skewed {
    fn now(&self) -> Duration {
        LiveClock.now() * self.0 / 100
    }
}

/// Waits for a condition.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < WAIT, "waited {WAIT:?} in vain: {what}");
        thread::sleep(Duration::from_millis(1));
    }
    started.elapsed()
}

pub(crate) fn region() -> RegionId {
    RegionId::new("eu-west").unwrap()
}

pub(crate) fn settings(name: &str, shards: u32) -> Settings {
    static RUNS: AtomicU64 = AtomicU64::new(1);
    let incarnation = Incarnation(RUNS.fetch_add(1, Ordering::Relaxed).into());
    let address = format!("{name}.example:7600");
    Settings { shards, ttl: TTL, address, ..Settings::new(region(), name, incarnation) }
}

pub(crate) async fn connect(urls: Vec<String>) -> Client {
    let options = ConnectOptions::new()
        .user_and_password(USER.to_owned(), PASSWORD.to_owned())
        .reconnect_delay_callback(|_| Duration::from_millis(20));
    options.connect(urls).await.unwrap()
}

pub(crate) enum Order {
    /// Blocks the node's only thread until the other end is dropped.
    Stop(blocking::Receiver<()>),
    /// Keeps what is handed over until the other end is dropped.
    Hold(oneshot::Receiver<()>),
    Drain(Duration, blocking::Sender<Result<u32, Error>>),
    Close(blocking::Sender<bool>),
    Kill,
}

/// A node as a process would be.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) leases: Leases,
    orders: mpsc::UnboundedSender<Order>,
    pub(crate) held: Arc<Mutex<Vec<Handover>>>,
    thread: Option<JoinHandle<()>>,
    taken: Arc<AtomicU64>,
}

impl Node {
    pub(crate) fn start(urls: Vec<String>, settings: Settings) -> Result<Self, Error> {
        Self::start_with(urls, settings, Arc::new(LiveClock))
    }

    pub(crate) fn start_with(
        urls: Vec<String>,
        settings: Settings,
        clock: Arc<dyn MonotonicClock>,
    ) -> Result<Self, Error> {
        let (orders, mut received) = mpsc::unbounded_channel();
        let (started, result) = blocking::channel();
        let (held, taken) = (Arc::default(), Arc::<AtomicU64>::default());
        let name = settings.node.clone();
        let (hold, count) = (Arc::clone(&held), Arc::clone(&taken));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let client = connect(urls).await;
                match Leases::start(&client, settings, clock).await {
                    Ok((leases, changes)) => {
                        started.send(Ok(leases.clone())).unwrap();
                        drop(started);
                        serve(leases, changes, &mut received, &hold, &count).await;
                    }
                    Err(error) => started.send(Err(error)).unwrap(),
                }
            });
        });
        let leases = result.recv().unwrap()?;
        Ok(Self { name, leases, orders, held, thread: Some(thread), taken })
    }

    pub(crate) fn order(&self, order: Order) {
        self.orders.send(order).unwrap_or_else(|_| panic!("{} has ended", self.name));
    }

    /// Ends everything of the node without a word to anybody.
    pub(crate) fn kill(&mut self) {
        self.order(Order::Kill);
        self.thread.take().unwrap().join().unwrap();
    }

    pub(crate) fn close(&mut self) -> bool {
        let (sender, receiver) = blocking::channel();
        self.order(Order::Close(sender));
        self.thread.take().unwrap().join().unwrap();
        receiver.recv().unwrap()
    }

    pub(crate) fn stop(&self) -> blocking::Sender<()> {
        let (sender, receiver) = blocking::channel();
        self.order(Order::Stop(receiver));
        sender
    }

    pub(crate) fn mine(&self) -> Vec<u32> {
        (0..self.leases.shards()).filter(|shard| self.leases.is_mine(*shard)).collect()
    }

    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            drop(self.orders.send(Order::Kill));
            drop(thread.join());
        }
    }
}

async fn serve(
    leases: Leases,
    mut changes: Changes,
    orders: &mut mpsc::UnboundedReceiver<Order>,
    held: &Arc<Mutex<Vec<Handover>>>,
    taken: &AtomicU64,
) {
    let mut hold: Option<oneshot::Receiver<()>> = None;
    loop {
        tokio::select! {
            Some(change) = changes.next() => match change {
                Change::Taken { .. } => { taken.fetch_add(1, Ordering::Relaxed); }
                Change::Lost { shard, handover, .. } => {
                    assert!(!leases.is_mine(shard), "lost and mine");
                    match &hold {
                        Some(_) => held.lock().unwrap().push(handover),
                        None => handover.acknowledge(),
                    }
                }
            },
            _ = async { hold.as_mut().unwrap().await }, if hold.is_some() => {
                hold = None;
                held.lock().unwrap().clear();
            }
            order = orders.recv() => match order {
                Some(Order::Stop(gate)) => drop(gate.recv()),
                Some(Order::Hold(gate)) => hold = Some(gate),
                Some(Order::Drain(wait, answer)) => {
                    let leases = leases.clone();
                    tokio::spawn(async move { answer.send(leases.drain(wait).await).unwrap() });
                }
                Some(Order::Close(answer)) => {
                    let closing = leases.close(WAIT);
                    tokio::pin!(closing);
                    loop {
                        tokio::select! {
                            given_back = &mut closing => return answer.send(given_back).unwrap(),
                            Some(change) = changes.next() => drop(change),
                        }
                    }
                }
                Some(Order::Kill) | None => return,
            },
        }
    }
}

/// Whether every shard is decided by the node that should, among these.
pub(crate) fn balanced(nodes: &[Node]) -> bool {
    let Some(shards) = nodes.first().map(|node| node.leases.shards()) else { return true };
    (0..shards).all(|shard| {
        let desired = desired_owner(shard, nodes.iter().map(|node| node.name.as_str())).unwrap();
        nodes.iter().all(|node| {
            let owner = node.leases.owner_of(shard);
            node.leases.is_mine(shard) == (node.name == desired)
                && owner.is_some_and(|owner| owner.node == desired && owner.here == (node.name == desired))
        })
    })
}

pub(crate) fn start(server: &NatsServer, name: &str, shards: u32) -> Node {
    start_for(TTL, server, name, shards)
}

pub(crate) fn start_for(ttl: Duration, server: &NatsServer, name: &str, shards: u32) -> Node {
    Node::start(vec![server.url()], Settings { ttl, ..settings(name, shards) }).unwrap()
}
