//! A node: it listens, greets, and works for one coordinator at a time.

use std::{
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use quinn::{Connection, Endpoint};
use shared::{
    farm::{frame::Frame, ids::AgentId, message::PROTOCOL, work::Work},
    machine,
    net::{
        greeting::{Busy, JobCard, LEASE_MS, NodeCard, Purpose, Refusal},
        link::{Called, Incoming, Taker, code, hear, is_about_keys, plain},
    },
    platform,
};
use tokio::{runtime::Handle, sync::Notify, time::interval};

use crate::{
    agent::AgentConfig,
    blocks::BlockStore,
    driver::{Letter, run_agent},
    inputs::Inputs,
    remote::{Callers, FromCoordinator, Heard, Remote, RemoteInputs},
};

/// What a node offers.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Drawn anew at every start.
    pub id: u64,
    pub cores: u16,
    pub memory_bytes: u64,
    /// The instruction set of its kernels.
    pub isa: &'static str,
    /// Stop after the first job.
    pub once: bool,
    /// Stop when nobody has asked for work for so long.
    pub idle_max: Option<Duration>,
}

/// Threads that read and fetch blocks.
const IO_THREADS: usize = 4;
/// More connections are refused: agents of one farm call each other, and people ask how it is.
const CONNECTIONS_MAX: usize = 1024;
const HEARTBEAT_US: u64 = 500_000;
/// How often leases are looked at.
const WATCH: Duration = Duration::from_millis(250);
/// Tasks under way end before a new run of the same job takes over.
const TAKEOVER: Duration = Duration::from_secs(3);
/// A run that was told to end and does not within this time holds up the node no longer.
const DRAIN: Duration = Duration::from_secs(10);

/// What the node is doing.
#[derive(Default)]
enum Doing {
    #[default]
    Nothing,
    Working(Arc<Working>),
}

/// A job that the node works on.
struct Working {
    card: JobCard,
    heard: Arc<Heard>,
    mailbox: Sender<Letter>,
    callers: Callers,
    connection: Connection,
}

/// See the module. `W` is the kind of tasks that it knows.
pub struct Service<W> {
    offer: Offer,
    store: Arc<BlockStore>,
    endpoint: Endpoint,
    /// Kept here because beacons are answered while the endpoint is locked.
    port: u16,
    doing: Mutex<Doing>,
    stopping: AtomicBool,
    connections: AtomicUsize,
    jobs_done: AtomicU64,
    idle_since: Mutex<Instant>,
    /// Something changed that whoever waits for the end wants to know.
    changed: Notify,
    work: PhantomData<fn() -> W>,
}

impl<W: Work> Service<W> {
    pub fn new(offer: Offer, store: Arc<BlockStore>, endpoint: Endpoint) -> Arc<Self> {
        let port = endpoint.local_addr().map_or(0, |a| a.port());
        Arc::new(Self {
            port,
            offer,
            store,
            endpoint,
            doing: Mutex::new(Doing::Nothing),
            stopping: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            jobs_done: AtomicU64::new(0),
            idle_since: Mutex::new(Instant::now()),
            changed: Notify::new(),
            work: PhantomData,
        })
    }

    fn doing(&self) -> MutexGuard<'_, Doing> {
        self.doing.lock().expect("no panic while it is held")
    }

    fn working(&self) -> Option<Arc<Working>> {
        match &*self.doing() {
            Doing::Nothing => None,
            Doing::Working(working) => Some(Arc::clone(working)),
        }
    }

    pub fn is_busy(&self) -> bool {
        self.working().is_some()
    }

    fn busy(&self) -> Option<Busy> {
        self.working().map(|working| Busy {
            job: working.card.clone(),
            lease_ms: LEASE_MS.saturating_sub(working.heard.ago_ms()),
        })
    }

    /// The node, as it describes itself.
    pub fn card(&self) -> NodeCard {
        let contents = self.store.contents();
        NodeCard {
            id: self.offer.id,
            host: machine::host(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
            isa: self.offer.isa.to_owned(),
            cores: self.offer.cores,
            memory_bytes: self.offer.memory_bytes,
            load: machine::load().unwrap_or(0.0),
            cached_blocks: contents.blocks,
            cached_bytes: contents.bytes,
            cache_bytes_max: self.store.bytes_max(),
            busy: self.busy(),
        }
    }

    /// No new job from now on. The one under way goes on.
    pub fn drain(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Serves until it is told to stop and has nothing to do, or has done what it was to do.
    pub async fn serve(self: &Arc<Self>) {
        let watch = self.watch();
        tokio::pin!(watch);
        loop {
            tokio::select! {
                incoming = self.endpoint.accept() => {
                    let Some(incoming) = incoming else { return };
                    tokio::spawn(Arc::clone(self).receive(incoming));
                }
                () = &mut watch => return,
            }
        }
    }

    /// Looks after leases; returns when there is nothing left to serve for.
    async fn watch(&self) {
        let mut ticks = interval(WATCH);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.changed.notified() => {}
            }
            if let Some(working) = self.working() {
                if working.heard.ago_ms() > LEASE_MS {
                    tracing::warn!(
                        "job {}: no word from its coordinator for {} s; the node is free again",
                        working.card,
                        LEASE_MS / 1000
                    );
                    working
                        .connection
                        .close(code::SILENT, b"silent for too long");
                }
                continue;
            }
            let idle = self.idle_since.lock().expect("no panic").elapsed();
            let done = self.offer.once && self.jobs_done.load(Ordering::Relaxed) > 0;
            let unwanted = self.offer.idle_max.is_some_and(|max| idle >= max);
            if done || unwanted || self.stopping.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    async fn receive(self: Arc<Self>, incoming: quinn::Incoming) {
        let from = incoming.remote_address();
        if self.connections.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            tracing::warn!(%from, "refused: {}", Refusal::TooMany);
            incoming.refuse();
            return;
        }
        let connection = match incoming.await {
            Ok(connection) => connection,
            Err(why) => {
                if is_about_keys(&why) {
                    tracing::warn!("refused a call from {from}: the caller {}", plain(&why));
                } else {
                    tracing::debug!("a call from {from} came to nothing: {}", plain(&why));
                }
                return;
            }
        };
        let _open = Open::new(Arc::clone(&self));
        match hear(connection).await {
            Ok(call) => self.answer(call).await,
            Err(why) => tracing::warn!("hung up on {from}: {why}"),
        }
    }

    async fn answer(self: &Arc<Self>, call: Incoming) {
        let from = call.connection.remote_address();
        let greeting = call.greeting.clone();
        let refusal = match &greeting.purpose {
            // Whoever asks how the node is may be of any release.
            Purpose::Status => None,
            Purpose::Job(_) | Purpose::Peer { .. }
                if PROTOCOL.common(greeting.protocol).is_none() =>
            {
                Some(Refusal::Protocol {
                    release: env!("CARGO_PKG_VERSION").to_owned(),
                    understood: PROTOCOL,
                })
            }
            Purpose::Job(_) if self.stopping.load(Ordering::Relaxed) => Some(Refusal::Stopping),
            Purpose::Job(_) => None,
            Purpose::Peer { plan, .. } => match self.working() {
                Some(working) if working.card.plan == *plan => None,
                Some(_) | None => Some(Refusal::OtherJob),
            },
        };
        if let Some(refusal) = refusal {
            match &refusal {
                Refusal::Protocol { .. } => tracing::warn!(
                    "refused a call from {from}: release {} speaks protocols {} to {}",
                    greeting.release,
                    greeting.protocol.oldest,
                    greeting.protocol.newest
                ),
                Refusal::Busy(_) | Refusal::Stopping | Refusal::OtherJob | Refusal::TooMany => {
                    tracing::info!("refused a call from {from}: {refusal}")
                }
            }
            return call.refuse(refusal).await;
        }
        match greeting.purpose {
            Purpose::Status => {
                if let Ok(called) = call.welcome(self.card()).await {
                    called.connection.closed().await;
                }
            }
            Purpose::Peer { from, .. } => self.peer(from, call).await,
            Purpose::Job(card) => self.job(card, call).await,
        }
    }

    async fn peer(&self, peer: AgentId, call: Incoming) {
        let Some(working) = self.working() else {
            return call.refuse(Refusal::OtherJob).await;
        };
        let Ok(called) = call.welcome(self.card()).await else {
            return;
        };
        let taker = FromCaller {
            peer,
            mailbox: working.mailbox.clone(),
        };
        let (outbox, opened) = called.open();
        // Before the first question comes, there is a way to answer it.
        {
            let mut callers = working.callers.lock().expect("no panic while it is held");
            callers.insert(peer, outbox);
        }
        opened.run(taker).closed().await;
    }

    async fn job(self: &Arc<Self>, card: JobCard, call: Incoming) {
        let (mailbox, letters) = channel();
        let heard = Arc::new(Heard::default());
        let connection = call.connection.clone();
        let working = Arc::new(Working {
            card,
            heard: Arc::clone(&heard),
            mailbox: mailbox.clone(),
            callers: Callers::default(),
            connection: connection.clone(),
        });
        // Taken before the welcome: two coordinators at once cannot both be welcome.
        let take = || {
            let mut doing = self.doing();
            match &*doing {
                Doing::Working(other) => Some(Arc::clone(other)),
                Doing::Nothing => {
                    *doing = Doing::Working(Arc::clone(&working));
                    None
                }
            }
        };
        let mut other = take();
        if let Some(earlier) = &other
            && working.card.succeeds(&earlier.card)
        {
            tracing::info!("job {}: a new run takes over from the last", working.card);
            earlier
                .connection
                .close(code::DONE, b"a new run takes over");
            let begun = Instant::now();
            while other.is_some() && begun.elapsed() < TAKEOVER {
                tokio::time::sleep(Duration::from_millis(20)).await;
                other = take();
            }
        }
        if other.is_some()
            && let Some(busy) = self.busy()
        {
            tracing::info!(
                "refused job {} from {}: busy with job {}",
                working.card,
                connection.remote_address(),
                busy.job
            );
            return call.refuse(Refusal::Busy(Box::new(busy))).await;
        }
        let mut own = self.card();
        own.busy = None;
        let called = match call.welcome(own).await {
            Ok(called) => called,
            Err(why) => {
                tracing::info!("job {}: {why}", working.card);
                return self.over();
            }
        };
        tracing::info!(
            "working on job {} from {}",
            working.card,
            connection.remote_address()
        );
        let runtime = Handle::current();
        let service = Arc::clone(self);
        let started = thread::Builder::new()
            .name("agent".to_owned())
            .spawn(move || {
                service.run(called, &working, (mailbox, letters), runtime);
                service.over();
            });
        if let Err(why) = started {
            tracing::error!("could not start a thread: {why}");
            connection.close(code::DONE, b"could not start a thread");
            self.over();
        }
    }

    /// Free for the next job.
    fn over(&self) {
        *self.doing() = Doing::Nothing;
        *self.idle_since.lock().expect("no panic") = Instant::now();
        self.jobs_done.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    fn run(
        &self,
        called: Called,
        working: &Arc<Working>,
        (mailbox, letters): (Sender<Letter>, std::sync::mpsc::Receiver<Letter>),
        runtime: Handle,
    ) {
        let inputs = Arc::new(RemoteInputs::new(Arc::clone(&self.store)));
        let taker = FromCoordinator {
            mailbox: mailbox.clone(),
            inputs: Arc::clone(&inputs),
            heard: Arc::clone(&working.heard),
        };
        let (connection, outbox) = {
            let _in_runtime = runtime.enter();
            called.run(taker)
        };
        inputs.connect(outbox.clone());
        let memory = self.offer.memory_bytes;
        let freed = platform::freed_worth_keeping(memory);
        platform::keep_freed(freed as usize);
        let mut config = AgentConfig::new(self.offer.cores, memory - freed);
        config.loads_max = IO_THREADS;
        config.heartbeat_us = Some(HEARTBEAT_US);
        config.disk_bytes = self.store.bytes_max();
        config.isa = self.offer.isa;
        let links = Remote::new(
            outbox,
            Arc::clone(&working.callers),
            self.endpoint.clone(),
            runtime,
            working.card.plan,
            mailbox.clone(),
        );
        let blocks: Arc<dyn Inputs> = Arc::clone(&inputs) as Arc<dyn Inputs>;
        let ran = catch_unwind(AssertUnwindSafe(|| {
            run_agent::<W>(config, IO_THREADS, &blocks, (mailbox, letters), links)
        }));
        let fetched = shared::size::show(inputs.fetched_bytes());
        match ran {
            Ok(Ok(())) => tracing::info!(
                "job {} has ended; {fetched} of blocks came over the network",
                working.card
            ),
            Ok(Err(why)) => {
                tracing::error!("job {}: {why}", working.card);
                connection.close(code::NONSENSE, why.to_string().as_bytes());
            }
            Err(_) => {
                tracing::error!("job {}: the agent panicked", working.card);
                connection.close(code::NONSENSE, b"the agent panicked");
            }
        }
        working
            .callers
            .lock()
            .expect("no panic while it is held")
            .clear();
        // Between jobs the machine is its user's.
        platform::keep_freed(0);
        platform::give_back_memory();
        // The outboxes are gone: what was in them is sent, then the coordinator hangs up, or its lease ends.
        let deadline = Instant::now() + DRAIN;
        while connection.close_reason().is_none() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        connection.close(code::DONE, b"");
    }

    /// Tells the one that it works for that it goes, and leaves.
    pub fn abandon(&self) {
        if let Some(working) = self.working() {
            working
                .connection
                .close(code::DONE, b"the node was stopped");
        }
        self.endpoint.close(code::DONE, b"the node was stopped");
    }

    /// The UDP port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Counts a connection while it is served.
struct Open<W: Work>(Arc<Service<W>>);

impl<W: Work> Open<W> {
    fn new(service: Arc<Service<W>>) -> Self {
        service.connections.fetch_add(1, Ordering::Relaxed);
        Self(service)
    }
}

impl<W: Work> Drop for Open<W> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes what an agent that has called says.
struct FromCaller {
    peer: AgentId,
    mailbox: Sender<Letter>,
}

impl Taker for FromCaller {
    fn frame(&self, frame: Frame) -> bool {
        self.mailbox.send(Letter::Peer(self.peer, frame)).is_ok()
    }

    fn end(&self, why: String) {
        tracing::debug!(peer = self.peer.0, "a caller has hung up: {why}");
    }
}
