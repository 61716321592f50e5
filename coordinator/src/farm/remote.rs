//! Agents on other machines.
//!
//! A search says where nodes may be; each is called, and again when it is lost or busy, for as long as the run lasts.
//! Whoever says welcome becomes an agent: its number is given here, its link leads into the mailbox of the run, and all
//! agents are told of each other before any of them is named as a holder.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

use node_agent::remote::Heard as LastHeard;
use quinn::{Connection, Endpoint};
use shared::{
    farm::{
        frame::{Frame, encode_control},
        ids::AgentId,
        link::Outbox,
        message::{PROTOCOL, Peer, ToAgent},
    },
    net::{
        discovery::{Heard, Search, SearchOptions, Searched, search},
        endpoint::{EndpointError, caller},
        greeting::{Greeting, JobCard, NodeCard, Purpose, Refusal},
        identity::{Fingerprint, Identity},
        link::{CallError, Called, SAID_ALL, Taker, call, code},
    },
    size,
};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
    time::sleep,
};

use super::ToCoordinator;
use crate::launch::{LaunchError, Launched, Payload, launch};

/// A call that is not answered for so long is given up.
const CALL_TIME: Duration = Duration::from_secs(2);
/// Addresses of one node are tried one after the other, without waiting for the one before to fail.
const NEXT_ADDRESS: Duration = Duration::from_millis(200);
/// A node that was lost or is busy is called again after so long; one that never answered, ever more seldom.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_SELDOM: Duration = Duration::from_secs(15);
/// A node that has said nothing for so long when the run ends was lost.
const SILENT_MS: u64 = 2_000;
/// Nodes hear so often that they are still wanted, whatever the run is doing.
const PING: Duration = Duration::from_secs(2);
/// What is still on its way when a run ends gets so long.
const FAREWELL: Duration = Duration::from_secs(2);
const LAST_PACKETS: Duration = Duration::from_millis(20);
const STOP_POLL: Duration = Duration::from_millis(50);

/// Where to look for nodes, and for what.
pub struct FarmOptions {
    pub identity: Identity,
    pub search: SearchOptions,
    pub job: JobCard,
    /// Nodes that offer fewer bytes than this are not used.
    pub memory_least: u64,
}

/// A node that works for this run.
#[derive(Clone, Debug)]
pub struct Member {
    pub agent: AgentId,
    pub card: NodeCard,
    pub address: SocketAddr,
    /// Bytes sent to it and received from it so far, with everything that UDP carries.
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// It was lost, for this reason.
    pub ended: Option<String>,
}

/// The nodes of a run, found and to be found.
pub struct Farm {
    /// Taken when the farm is dropped.
    runtime: Option<Runtime>,
    shared: Arc<Shared>,
    letters: Receiver<ToCoordinator>,
}

struct Shared {
    endpoint: Endpoint,
    job: JobCard,
    fingerprint: Fingerprint,
    mailbox: Sender<ToCoordinator>,
    roster: Mutex<Roster>,
    /// A member has come or gone.
    changed: Condvar,
    closing: AtomicBool,
    memory_least: u64,
}

#[derive(Default)]
struct Roster {
    members: BTreeMap<AgentId, Row>,
    /// Nodes that are members now or are being called, by the number of their start.
    engaged: HashSet<u64>,
    /// Why others are not, by host.
    refused: BTreeMap<String, (Heard, String)>,
    searched: Searched,
    /// Hosts on which a node is being started.
    launching: Vec<String>,
    /// When the last one was started.
    started: Option<Instant>,
    /// What came of launches, to be told.
    lines: Vec<String>,
    /// What they hold ends when this is dropped.
    launched: Vec<Launched>,
    next: u32,
}

struct Row {
    member: Member,
    connection: Connection,
    gone: bool,
    /// When it last said something.
    heard: Arc<LastHeard>,
    /// Dropped when the run or the link ends.
    outbox: Option<Outbox>,
}

impl Farm {
    /// Begins to look for nodes.
    pub fn open(options: FarmOptions) -> Result<Self, EndpointError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("net")
            .enable_all()
            .build()?;
        let _inside = runtime.enter();
        let endpoint = caller(&options.identity)?;
        let (mailbox, letters) = channel();
        let shared = Arc::new(Shared {
            endpoint,
            job: options.job,
            fingerprint: options.identity.fingerprint(),
            mailbox,
            roster: Mutex::default(),
            changed: Condvar::new(),
            closing: AtomicBool::new(false),
            memory_least: options.memory_least,
        });
        runtime.spawn(ping(Arc::clone(&shared)));
        runtime.spawn(recruit(Arc::clone(&shared), search(options.search)));
        drop(_inside);
        Ok(Self {
            runtime: Some(runtime),
            shared,
            letters,
        })
    }

    /// Starts nodes on these hosts over SSH; they end with the farm.
    pub fn launch(&self, hosts: &[String], payload: Payload) {
        let Some(runtime) = &self.runtime else { return };
        self.shared.roster().launching.extend_from_slice(hosts);
        let (shared, hosts, payload) =
            (Arc::clone(&self.shared), hosts.to_vec(), Arc::new(payload));
        runtime.spawn(async move {
            let mut launches = launch(&hosts, &payload);
            while let Some(ended) = launches.join_next().await {
                let Ok((host, result)) = ended else { continue };
                launched(&shared, host, result).await;
            }
        });
    }

    /// Waits until so many nodes have joined and every launch has come to something, the window is over, or the run is to
    /// stop; how many there are then. `tell` is told what came of each launch.
    pub fn gather(
        &self,
        at_least: usize,
        window: Duration,
        stop: &AtomicBool,
        tell: &mut dyn FnMut(String),
    ) -> usize {
        let begun = Instant::now();
        let mut roster = self.shared.roster();
        loop {
            for line in std::mem::take(&mut roster.lines) {
                tell(line);
            }
            let living = roster.living();
            let enough = living >= at_least.max(1);
            // A launch takes longer than an answer, and has bounds of its own; who was started is called only then.
            let launching = !roster.launching.is_empty();
            let since = roster.started.map_or(begun, |started| started.max(begun));
            let late = since.elapsed() >= window && (enough || !launching);
            if (enough && !launching) || late || stop.load(Ordering::Relaxed) {
                return living;
            }
            let wait = window
                .saturating_sub(since.elapsed())
                .clamp(Duration::from_millis(1), STOP_POLL);
            roster = self
                .shared
                .changed
                .wait_timeout(roster, wait)
                .expect("no panic while it is held")
                .0;
        }
    }

    /// What came of launches since it was last told: a line for each host.
    pub fn news(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.roster().lines)
    }

    /// The run has ended: nobody is called any more, and whoever goes now is not lost.
    pub fn close(&self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        let mut roster = self.shared.roster();
        let late = std::mem::take(&mut roster.launching);
        let late = late
            .iter()
            .map(|host| format!("{host}: no node was started before the job ended"));
        roster.lines.extend(late);
    }

    /// What comes from the agents.
    pub fn letters(&self) -> &Receiver<ToCoordinator> {
        &self.letters
    }

    /// What was asked and why nodes are not used.
    pub fn searched(&self) -> Searched {
        let roster = self.shared.roster();
        let mut searched = roster.searched.clone();
        for (heard, why) in roster.refused.values() {
            searched.refuse(heard, why);
        }
        searched
    }

    /// Everybody who works or has worked for this run.
    pub fn members(&self) -> Vec<Member> {
        let roster = self.shared.roster();
        roster.members.values().map(Row::described).collect()
    }
}

impl Drop for Farm {
    /// Tells everybody that it is over, and waits a moment until they have heard.
    fn drop(&mut self) {
        self.close();
        for row in self.shared.roster().members.values_mut() {
            row.outbox = None;
        }
        let begun = Instant::now();
        let mut roster = self.shared.roster();
        // Links end by themselves when their outboxes are gone and all is said.
        while roster.living() > 0 && begun.elapsed() < FAREWELL {
            let wait = FAREWELL.saturating_sub(begun.elapsed());
            roster = self
                .shared
                .changed
                .wait_timeout(roster, wait)
                .expect("no panic while it is held")
                .0;
        }
        let launched = std::mem::take(&mut roster.launched);
        drop(roster);
        if let Some(runtime) = &self.runtime {
            runtime.block_on(async {
                let mut stops = JoinSet::new();
                for node in launched {
                    stops.spawn(node.stop());
                }
                let _ = tokio::time::timeout(FAREWELL, stops.join_all()).await;
            });
        }
        self.shared
            .endpoint
            .close(shared::net::link::code::DONE, b"");
        if let Some(runtime) = self.runtime.take() {
            // The last packets leave.
            runtime.shutdown_timeout(LAST_PACKETS);
        }
    }
}

impl Row {
    fn described(&self) -> Member {
        let stats = self.connection.stats();
        let silent_ms = self.heard.ago_ms();
        let silent = !self.gone && silent_ms > SILENT_MS;
        Member {
            ended: self
                .member
                .ended
                .clone()
                .or_else(|| silent.then(|| format!("silent for {} s", silent_ms / 1000))),
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            ..self.member.clone()
        }
    }
}

impl Roster {
    fn living(&self) -> usize {
        self.members.values().filter(|row| !row.gone).count()
    }
}

impl Shared {
    fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().expect("no panic while it is held")
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Said at once: without it the user would wonder why a node that is there does nothing.
    fn too_small(&self, heard: &Heard, bytes: u64) {
        let why = format!(
            "it offers {} of memory, and a task of this job takes up to {}: `svdnode --memory` offers more, and a smaller rank \
             takes less",
            size::show(bytes),
            size::show(self.memory_least)
        );
        let line = format!("node {} is not used: {why}", heard.host);
        self.roster().lines.push(line);
        self.refused(heard, why);
    }

    fn refused(&self, heard: &Heard, why: String) {
        let mut roster = self.roster();
        let known = roster
            .refused
            .get(&heard.host)
            .is_some_and(|(_, w)| *w == why);
        if !known {
            tracing::info!("node {heard} is not used: {why}");
            roster
                .refused
                .insert(heard.host.clone(), (heard.clone(), why));
        }
    }
}

async fn ping(shared: Arc<Shared>) {
    let ping = encode_control(&ToAgent::<()>::Ping);
    while !shared.is_closing() {
        for row in shared.roster().members.values() {
            if let Some(outbox) = &row.outbox {
                let _ = outbox.frame(Frame::Control(ping.clone()));
            }
        }
        sleep(PING).await;
    }
}

/// A launch has come to something.
async fn launched(shared: &Arc<Shared>, host: String, result: Result<Launched, LaunchError>) {
    let line = match &result {
        Ok(launched) => format!("{host}: {launched}"),
        Err(why) => format!("{host}: {why}"),
    };
    if let Ok(launched) = result {
        let found = tokio::net::lookup_host((
            launched.address.host.as_str(),
            launched.address.port.unwrap_or_default(),
        ))
        .await;
        let heard = Heard {
            host: host.clone(),
            addresses: found.map(Iterator::collect).unwrap_or_default(),
            ..Heard::default()
        };
        let mut roster = shared.roster();
        roster.launched.push(launched);
        roster.started = Some(Instant::now());
        drop(roster);
        tokio::spawn(engage(Arc::clone(shared), heard));
    }
    let mut roster = shared.roster();
    // It is there no more if the run has ended.
    let place = roster.launching.iter().position(|h| *h == host);
    if let Some(place) = place {
        roster.launching.swap_remove(place);
        roster.lines.push(line);
    }
    drop(roster);
    shared.changed.notify_all();
}

/// Calls whoever is heard of, until the run ends.
async fn recruit(shared: Arc<Shared>, mut search: Search) {
    let mut calls: HashMap<String, tokio::task::AbortHandle> = HashMap::new();
    loop {
        tokio::select! {
            heard = search.next() => {
                // A named host that answers is heard of by its number, too.
                let key = heard
                    .id
                    .map_or_else(|| heard.to_string(), |id| format!("{id:016x}"));
                if let Some(id) = heard.id && shared.roster().engaged.contains(&id) {
                    continue;
                }
                if let Some(earlier) = calls.get(&key) && !earlier.is_finished() {
                    // More is known of it now.
                    earlier.abort();
                }
                calls.insert(key, tokio::spawn(engage(Arc::clone(&shared), heard)).abort_handle());
            }
            () = sleep(STOP_POLL) => {}
        }
        shared.roster().searched = search.searched();
        if shared.is_closing() {
            for call in calls.values() {
                call.abort();
            }
            return;
        }
    }
}

/// Calls one node until it is welcome, and again when it is lost.
async fn engage(shared: Arc<Shared>, heard: Heard) {
    // A node that the user has named is called all the same: so both sides are told why it cannot be.
    if let Some(theirs) = heard.fingerprint
        && theirs != shared.fingerprint
        && !heard.by.named
    {
        return shared.refused(&heard, format!("it belongs to another farm, {theirs}"));
    }
    let mut pause = AGAIN;
    while !shared.is_closing() {
        match call_any(&shared, &heard.addresses).await {
            Ok((called, address)) => {
                pause = AGAIN;
                let id = called.card.id;
                if called.card.memory_bytes < shared.memory_least {
                    called.connection.close(code::DONE, b"");
                    return shared.too_small(&heard, called.card.memory_bytes);
                }
                if !shared.roster().engaged.insert(id) {
                    // Known by another name.
                    called.connection.close(code::DONE, b"");
                    return;
                }
                let connection = join(&shared, called, address, &heard);
                connection.closed().await;
                shared.roster().engaged.remove(&id);
            }
            // It works for this very run, by another of its names.
            Err(CallError::Refused(Refusal::Busy(busy))) if busy.job == shared.job => pause = AGAIN,
            Err(why) => {
                shared.refused(&heard, why.to_string());
                match why {
                    CallError::Refused(Refusal::Busy(_) | Refusal::Stopping)
                    | CallError::Lost(_) => pause = AGAIN,
                    CallError::Silent(_) => pause = (2 * pause).min(AGAIN_SELDOM),
                    // That will not change by itself.
                    CallError::Stranger(_)
                    | CallError::Refused(
                        Refusal::Protocol { .. } | Refusal::OtherJob | Refusal::TooMany,
                    ) => return,
                }
            }
        }
        sleep(pause).await;
    }
}

/// Calls a node on all its addresses, the likeliest first; the first that leads to it is taken.
async fn call_any(
    shared: &Shared,
    addresses: &[SocketAddr],
) -> Result<(Called, SocketAddr), CallError> {
    let greeting = Greeting {
        protocol: PROTOCOL,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        purpose: Purpose::Job(shared.job.clone()),
    };
    let mut calls = JoinSet::new();
    let mut waiting = addresses.iter();
    let mut worst: Option<CallError> = None;
    loop {
        if let Some(&address) = waiting.next() {
            let (endpoint, greeting) = (shared.endpoint.clone(), greeting.clone());
            calls.spawn(async move {
                let called = call(&endpoint, address, &greeting, CALL_TIME).await;
                called.map(|called| (called, address))
            });
        } else if calls.is_empty() {
            return Err(worst.unwrap_or_else(|| CallError::Lost("it has no address".to_owned())));
        }
        let next = async {
            if waiting.len() > 0 {
                sleep(NEXT_ADDRESS).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            Some(ended) = calls.join_next() => match ended {
                Ok(Ok(called)) => return Ok(called),
                Ok(Err(why)) => {
                    let tells_more = |w: &CallError| weight(&why) > weight(w);
                    if worst.as_ref().is_none_or(tells_more) {
                        worst = Some(why);
                    }
                }
                Err(_) => {}
            },
            () = next => {}
        }
    }
}

/// How much a failed call tells.
fn weight(why: &CallError) -> u8 {
    match why {
        CallError::Silent(_) => 0,
        CallError::Lost(_) => 1,
        CallError::Stranger(_) => 2,
        CallError::Refused(_) => 3,
    }
}

/// Makes a node an agent of the run.
fn join(shared: &Arc<Shared>, called: Called, address: SocketAddr, heard: &Heard) -> Connection {
    let card = called.card.clone();
    let connection = called.connection.clone();
    let (outbox, opened) = called.open();
    let mut roster = shared.roster();
    let agent = AgentId(roster.next);
    roster.next += 1;
    roster.refused.remove(&heard.host);
    let others: Vec<Peer> = roster
        .members
        .values()
        .filter(|row| !row.gone)
        .map(|row| Peer {
            agent: row.member.agent,
            address: row.member.address,
        })
        .collect();
    let _ = outbox.control(&ToAgent::<()>::Peers(others));
    let newcomer = encode_control(&ToAgent::<()>::Peers(vec![Peer { agent, address }]));
    for row in roster.members.values() {
        if let Some(outbox) = &row.outbox {
            let _ = outbox.frame(Frame::Control(newcomer.clone()));
        }
    }
    tracing::info!(
        "node {} joined: {}, {} cores",
        card.host,
        address,
        card.cores
    );
    let name = card.host.clone();
    let last_heard = Arc::new(LastHeard::default());
    let member = Member {
        agent,
        card,
        address,
        sent_bytes: 0,
        received_bytes: 0,
        ended: None,
    };
    roster.members.insert(
        agent,
        Row {
            member,
            connection: connection.clone(),
            gone: false,
            heard: Arc::clone(&last_heard),
            outbox: Some(outbox.clone()),
        },
    );
    drop(roster);
    // Its first words come after this.
    let _ = shared.mailbox.send(ToCoordinator::Joined {
        agent,
        name,
        outbox,
    });
    shared.changed.notify_all();
    opened.run(FromNode {
        agent,
        heard: last_heard,
        shared: Arc::clone(shared),
    });
    connection
}

/// Takes what a node says.
struct FromNode {
    agent: AgentId,
    heard: Arc<LastHeard>,
    shared: Arc<Shared>,
}

impl Taker for FromNode {
    fn frame(&self, frame: Frame) -> bool {
        self.heard.now();
        let letter = ToCoordinator::Frame(self.agent, frame);
        self.shared.mailbox.send(letter).is_ok()
    }

    fn end(&self, why: String) {
        let mut roster = self.shared.roster();
        let Some(row) = roster.members.get_mut(&self.agent) else {
            return;
        };
        row.outbox = None;
        row.gone = true;
        // A node ends its streams itself only when it was told that the job has ended.
        if !self.shared.is_closing() && why != SAID_ALL {
            row.member.ended = Some(why.clone());
        }
        let host = row.member.card.host.clone();
        drop(roster);
        self.shared.changed.notify_all();
        if !self.shared.is_closing() && why != SAID_ALL {
            let letter = ToCoordinator::Ended(self.agent, format!("node {host} is lost: {why}"));
            let _ = self.shared.mailbox.send(letter);
        }
    }
}
