//! An agent's links over QUIC: to its coordinator, to the agents that it asks, and to those that ask it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Sender},
    },
    time::{Duration, Instant},
};

use quinn::Endpoint;
use shared::{
    farm::{
        bytes::Bytes,
        frame::{Bulk, BulkKind, Frame},
        ids::{AgentId, ContentHash},
        link::Outbox,
        message::{Fetch, FromAgent, InputError, InputErrorKind, Name, PROTOCOL, Peer},
    },
    net::{
        greeting::{Greeting, Purpose},
        link::{Taker, call},
    },
};
use tokio::{runtime::Handle, sync::mpsc::UnboundedSender};

use crate::{
    blocks::BlockStore,
    driver::{Letter, Links},
    inputs::Inputs,
};

/// Requests of input blocks have numbers of their own.
pub const INPUT_REQUEST: u64 = 1 << 63;
/// A peer that does not answer a call for so long cannot be reached.
const CALL_TIME: Duration = Duration::from_secs(3);

/// Agents that have called, by number.
pub type Callers = Arc<Mutex<HashMap<AgentId, Outbox>>>;

/// See the module.
pub struct Remote {
    pub coordinator: Outbox,
    pub callers: Callers,
    pub endpoint: Endpoint,
    pub runtime: Handle,
    pub plan: ContentHash,
    pub mailbox: Sender<Letter>,
    me: AgentId,
    book: HashMap<AgentId, SocketAddr>,
    asked: HashMap<AgentId, Asked>,
}

/// A peer that was called, or is being called.
struct Asked {
    outbox: Outbox,
    gone: Arc<AtomicBool>,
}

impl Remote {
    pub fn new(
        coordinator: Outbox,
        callers: Callers,
        endpoint: Endpoint,
        runtime: Handle,
        plan: ContentHash,
        mailbox: Sender<Letter>,
    ) -> Self {
        Self {
            coordinator,
            callers,
            endpoint,
            runtime,
            plan,
            mailbox,
            me: AgentId::default(),
            book: HashMap::new(),
            asked: HashMap::new(),
        }
    }

    /// Calls a peer. What is put into the outbox meanwhile waits.
    fn call(&self, peer: AgentId, address: SocketAddr) -> Asked {
        let (queue, mut waiting) = tokio::sync::mpsc::unbounded_channel::<Frame>();
        let gone = Arc::new(AtomicBool::new(false));
        let taker = FromPeer {
            peer,
            gone: Arc::clone(&gone),
            mailbox: self.mailbox.clone(),
        };
        let greeting = Greeting {
            protocol: PROTOCOL,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            purpose: Purpose::Peer {
                plan: self.plan,
                from: self.me,
            },
        };
        let endpoint = self.endpoint.clone();
        self.runtime.spawn(async move {
            match call(&endpoint, address, &greeting, CALL_TIME).await {
                Ok(called) => {
                    let (_, outbox) = called.run(taker);
                    while let Some(frame) = waiting.recv().await {
                        if outbox.frame(frame).is_err() {
                            return;
                        }
                    }
                }
                Err(why) => taker.end(why.to_string()),
            }
        });
        Asked {
            outbox: queue_into(queue),
            gone,
        }
    }
}

fn queue_into(queue: UnboundedSender<Frame>) -> Outbox {
    Outbox::new(move |frame| queue.send(frame).is_ok())
}

impl Links for Remote {
    fn begin(&mut self, me: AgentId) {
        self.me = me;
    }

    fn coordinator(&self) -> &Outbox {
        &self.coordinator
    }

    fn ask(&mut self, whom: AgentId) -> Option<Outbox> {
        let address = *self.book.get(&whom)?;
        let known = self
            .asked
            .get(&whom)
            .filter(|asked| !asked.gone.load(Ordering::Relaxed));
        if let Some(asked) = known {
            return Some(asked.outbox.clone());
        }
        let asked = self.call(whom, address);
        let outbox = asked.outbox.clone();
        self.asked.insert(whom, asked);
        Some(outbox)
    }

    fn answer(&mut self, whom: AgentId) -> Option<Outbox> {
        let callers = self.callers.lock().expect("no panic while it is held");
        callers.get(&whom).cloned()
    }

    fn shun(&mut self, whom: AgentId) {
        self.asked.remove(&whom);
        self.callers
            .lock()
            .expect("no panic while it is held")
            .remove(&whom);
    }

    fn meet(&mut self, peers: &[Peer]) {
        self.book.extend(peers.iter().map(|p| (p.agent, p.address)));
    }
}

/// Takes what a peer says.
pub struct FromPeer {
    pub peer: AgentId,
    pub gone: Arc<AtomicBool>,
    pub mailbox: Sender<Letter>,
}

impl Taker for FromPeer {
    fn frame(&self, frame: Frame) -> bool {
        self.mailbox.send(Letter::Peer(self.peer, frame)).is_ok()
    }

    fn end(&self, why: String) {
        tracing::debug!(peer = self.peer.0, "the link to a peer has ended: {why}");
        self.gone.store(true, Ordering::Relaxed);
        let _ = self.mailbox.send(Letter::PeerGone(self.peer));
    }
}

/// Takes what the coordinator says.
pub struct FromCoordinator {
    pub mailbox: Sender<Letter>,
    pub inputs: Arc<RemoteInputs>,
    pub heard: Arc<Heard>,
}

impl Taker for FromCoordinator {
    fn frame(&self, frame: Frame) -> bool {
        self.heard.now();
        match frame {
            Frame::Bulk { head, payload } if is_input(&head) => {
                self.inputs.arrived(&head, payload);
                true
            }
            frame => self.mailbox.send(Letter::Coordinator(frame)).is_ok(),
        }
    }

    fn end(&self, why: String) {
        tracing::info!("the link to the coordinator has ended: {why}");
        self.inputs.hang_up();
        let _ = self.mailbox.send(Letter::CoordinatorGone);
    }
}

/// When somebody was last heard of.
pub struct Heard {
    start: Instant,
    at_ms: AtomicU64,
}

impl Default for Heard {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            at_ms: AtomicU64::new(0),
        }
    }
}

impl Heard {
    pub fn now(&self) {
        let ms = self.start.elapsed().as_millis() as u64;
        self.at_ms.store(ms, Ordering::Relaxed);
    }

    pub fn ago_ms(&self) -> u64 {
        let ms = self.start.elapsed().as_millis() as u64;
        ms.saturating_sub(self.at_ms.load(Ordering::Relaxed))
    }
}

fn is_input(head: &[u8]) -> bool {
    Bulk::request_of(head).is_some_and(|request| request & INPUT_REQUEST != 0)
}

/// Input blocks: from this machine's disk, else from the coordinator.
pub struct RemoteInputs {
    store: Arc<BlockStore>,
    coordinator: Mutex<Option<Outbox>>,
    waiting: Mutex<HashMap<u64, mpsc::SyncSender<Bulk>>>,
    next: AtomicU64,
    /// Fetched from the coordinator in this job.
    fetched_bytes: AtomicU64,
}

impl RemoteInputs {
    pub fn new(store: Arc<BlockStore>) -> Self {
        Self {
            store,
            coordinator: Mutex::new(None),
            waiting: Mutex::new(HashMap::new()),
            next: AtomicU64::new(INPUT_REQUEST),
            fetched_bytes: AtomicU64::new(0),
        }
    }

    pub fn connect(&self, coordinator: Outbox) {
        *self.coordinator.lock().expect("no panic while it is held") = Some(coordinator);
    }

    pub fn fetched_bytes(&self) -> u64 {
        self.fetched_bytes.load(Ordering::Relaxed)
    }

    fn arrived(&self, head: &[u8], payload: Bytes) {
        match Bulk::decode(head, payload) {
            Ok(bulk) => {
                let mut waiting = self.waiting.lock().expect("no panic while it is held");
                if let Some(waiter) = waiting.remove(&bulk.request) {
                    let _ = waiter.try_send(bulk);
                }
            }
            Err(why) => tracing::warn!("a block from the coordinator {why}"),
        }
    }

    /// Nothing will come any more: whoever waits is told.
    fn hang_up(&self) {
        *self.coordinator.lock().expect("no panic while it is held") = None;
        self.waiting
            .lock()
            .expect("no panic while it is held")
            .clear();
    }

    fn ask(&self, hash: &ContentHash) -> Result<Bytes, InputError> {
        let failed = |kind, why: &str| InputError {
            hash: *hash,
            kind,
            why: why.to_owned(),
        };
        let gone = || failed(InputErrorKind::Link, "the coordinator is gone");
        let outbox = {
            let coordinator = self.coordinator.lock().expect("no panic while it is held");
            coordinator.clone().ok_or_else(gone)?
        };
        let request = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = mpsc::sync_channel(1);
        self.waiting
            .lock()
            .expect("no panic while it is held")
            .insert(request, answer);
        let name = Name::Input(*hash);
        outbox
            .control(&FromAgent::Fetch(Fetch { request, name }))
            .map_err(|_| gone())?;
        drop(outbox);
        // It ends when the block comes or the link ends: then the sending half is dropped.
        let bulk = answered.recv().map_err(|_| gone())?;
        match bulk.kind {
            BulkKind::Block => {}
            BulkKind::Nothing | BulkKind::Partial | BulkKind::Delivery => {
                return Err(failed(
                    InputErrorKind::Missing,
                    "the coordinator could not read it",
                ));
            }
        }
        let bytes = bulk.payload;
        if ContentHash::of(bytes.as_slice()) != *hash {
            return Err(failed(
                InputErrorKind::Corrupt,
                "what the coordinator sent has another hash",
            ));
        }
        self.fetched_bytes
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }
}

impl Inputs for RemoteInputs {
    fn load(&self, hash: &ContentHash) -> Result<Bytes, InputError> {
        Ok(self.fetch(hash)?.0)
    }

    fn fetch(&self, hash: &ContentHash) -> Result<(Bytes, bool), InputError> {
        if let Some(bytes) = self.store.read(hash) {
            return Ok((bytes, false));
        }
        let bytes = self.ask(hash)?;
        self.store.write(hash, &bytes);
        Ok((bytes, true))
    }

    fn has(&self, hash: &ContentHash) -> bool {
        self.store.has(hash)
    }
}
