//! How a coordinator finds nodes, and a node makes itself known.
//!
//! mDNS and a query of our own by broadcast go out at the same time, since either may be blocked; hosts that a user names
//! are asked too. What is heard is merged by the number that a node draws at its start. All of it only says where to
//! call: who is there, the call's handshake proves, and whether a node is alive, its connection tells.

mod advertise;
mod host;
pub mod interfaces;
mod searched;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use mdns_sd::{DaemonEvent, ResolvedService, ScopedIp, ServiceDaemon, ServiceEvent};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::{
    net::{UdpSocket, lookup_host},
    sync::Notify,
    task::{AbortHandle, JoinSet},
    time::{self, timeout},
};

pub use advertise::{Advertiser, MdnsError};
pub use host::HostPort;
pub use searched::{Asked, Refused, Searched};

use super::{
    PORTS,
    beacon::{self, Advert, HOST_BYTES_MAX, Query, RELEASE_BYTES_MAX, harmless, within},
    identity::Fingerprint,
};
use crate::farm::message::ProtocolRange;
use interfaces::Fit;

/// What nodes are called in DNS-SD.
pub const SERVICE: &str = "_svdnode._udp.local.";

/// Pauses between the first queries.
const EARLY_MS: [u64; 5] = [100, 200, 400, 800, 1000];
/// Pause between later ones, for as long as the job runs.
const LATER: Duration = Duration::from_secs(5);
/// A browser asks ever less often, so it is begun anew.
const BROWSE_ANEW: Duration = Duration::from_secs(20);
/// A named host that has not answered for so long may still be called; sooner where there is one port to call.
const CALL_ANYWAY: Duration = Duration::from_millis(350);
const CALL_PORT_ANYWAY: Duration = Duration::from_millis(90);
/// A node that was silent for so long and answers is told of again.
const SILENT: Duration = Duration::from_secs(10);
const RESOLVE: Duration = Duration::from_secs(5);
/// Anyone may answer, so what is kept is bounded.
const NODES_MAX: usize = 4096;
const ADDRESSES_MAX: usize = 64;

/// Whom to look for, and where.
#[derive(Clone, Debug)]
pub struct SearchOptions {
    /// The asker's farm.
    pub fingerprint: Fingerprint,
    /// Ask by mDNS and broadcast; otherwise only the named hosts.
    pub discover: bool,
    /// The only interface to discover on.
    pub interface: Option<String>,
    pub hosts: Vec<HostPort>,
}

/// How a node came to be known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct How {
    /// The user named its host.
    pub named: bool,
    /// It answered a query, so UDP passes both ways.
    pub answered: bool,
    /// mDNS told of it.
    pub mdns: bool,
}

/// What was heard of one node. All of it is hearsay.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Heard {
    /// `None`: a named host that has not answered; its addresses may be called all the same.
    pub id: Option<u64>,
    pub host: String,
    /// Those that it answered from first, then by how likely they lead there.
    pub addresses: Vec<SocketAddr>,
    pub fingerprint: Option<Fingerprint>,
    pub protocol: Option<ProtocolRange>,
    pub cores: Option<u16>,
    pub memory_bytes: Option<u64>,
    pub release: Option<String>,
    pub busy: bool,
    pub by: How,
}

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.addresses.first() {
            Some(address) => write!(f, "{} ({address})", self.host),
            None => f.write_str(&self.host),
        }
    }
}

/// A search that goes on until it is dropped.
pub struct Search {
    shared: Arc<Shared>,
    /// Aborted on drop.
    tasks: JoinSet<()>,
}

/// Begins to search. Must be called inside a tokio runtime.
pub fn search(options: SearchOptions) -> Search {
    let mut nonce = [0; 8];
    // Without a nonce that nobody can guess, strangers that are not on the network could answer. They would not gain much.
    let _ = SystemRandom::new().fill(&mut nonce);
    let query = Query {
        nonce: u64::from_le_bytes(nonce),
        fingerprint: options.fingerprint,
    };
    let shared = Arc::new(Shared {
        query,
        begun: Instant::now(),
        registry: Mutex::default(),
        changed: Notify::new(),
    });
    {
        let record = &mut shared.lock().record;
        record.discover = options.discover;
        record.interface.clone_from(&options.interface);
    }
    let mut tasks = JoinSet::new();
    if options.discover {
        tasks.spawn(broadcast(Arc::clone(&shared), options.interface.clone()));
        tasks.spawn(browse(Arc::clone(&shared), options.interface));
    }
    let mut search = Search { shared, tasks };
    for host in options.hosts {
        search.ask(host);
    }
    search
}

impl Search {
    /// Asks one more host by name.
    pub fn ask(&mut self, host: HostPort) {
        let at = {
            let hosts = &mut self.shared.lock().record.hosts;
            hosts.push(Asked {
                name: host.to_string(),
                ..Asked::default()
            });
            hosts.len() - 1
        };
        self.tasks
            .spawn(ask_host(Arc::clone(&self.shared), at, host));
    }

    /// Waits for the next news: a node that was not known, or a known one of which there is more to tell, or that answers
    /// again after a silence. May be cancelled without loss.
    pub async fn next(&mut self) -> Heard {
        loop {
            let changed = self.shared.changed.notified();
            if let Some(heard) = self.shared.lock().take() {
                return heard;
            }
            changed.await;
        }
    }

    /// The record so far.
    pub fn searched(&self) -> Searched {
        let registry = self.shared.lock();
        let mut record = registry.record.clone();
        record.elapsed = self.shared.begun.elapsed();
        record.nodes = registry.nodes.values().map(|e| e.heard()).collect();
        record
            .nodes
            .sort_by(|a, b| a.host.cmp(&b.host).then(a.addresses.cmp(&b.addresses)));
        record
    }
}

struct Shared {
    query: Query,
    begun: Instant,
    registry: Mutex<Registry>,
    changed: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Registry> {
        // What is in there is whole after every statement.
        self.registry
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }

    fn change(&self, change: impl FnOnce(&mut Registry)) {
        let mut registry = self.lock();
        change(&mut registry);
        if !registry.news.is_empty() {
            self.changed.notify_one();
        }
    }
}

/// Whose news it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Key {
    Node(u64),
    /// A named host that has not answered, by its place in the list.
    Host(usize),
}

#[derive(Default)]
struct Registry {
    nodes: HashMap<Key, Entry>,
    /// Each key once: a flood of answers makes no queue.
    news: VecDeque<Key>,
    record: Searched,
}

#[derive(Clone, Default)]
struct Entry {
    heard: Heard,
    addresses: Vec<(Likely, SocketAddr)>,
    answered_at: Option<Instant>,
}

/// How likely an address leads to a node. The most likely first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Likely {
    Answered,
    Named,
    V4,
    V6,
    /// An address that is valid on one link only, and there may be others with the same.
    Link,
}

impl Likely {
    fn of(address: &SocketAddr) -> Self {
        match address.ip() {
            IpAddr::V4(ip) if ip.is_link_local() => Self::Link,
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(ip) if ip.is_unicast_link_local() => Self::Link,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl Entry {
    fn heard(&self) -> Heard {
        Heard {
            addresses: self.addresses.iter().map(|(_, address)| *address).collect(),
            ..self.heard.clone()
        }
    }

    /// Whether that was new.
    fn add(&mut self, likely: Likely, address: SocketAddr) -> bool {
        let full = self.addresses.len() >= ADDRESSES_MAX;
        let known = |(_, known): &&mut (Likely, SocketAddr)| *known == address;
        match self.addresses.iter_mut().find(known) {
            Some((known, _)) if *known <= likely => return false,
            Some((known, _)) => *known = likely,
            None if full => return false,
            None => self.addresses.push((likely, address)),
        }
        self.addresses.sort();
        true
    }
}

impl Registry {
    fn take(&mut self) -> Option<Heard> {
        while let Some(key) = self.news.pop_front() {
            if let Some(entry) = self.nodes.get(&key) {
                return Some(entry.heard());
            }
        }
        None
    }

    fn tell(&mut self, key: Key) {
        if !self.news.contains(&key) {
            self.news.push_back(key);
        }
    }

    fn entry(&mut self, key: Key) -> Option<&mut Entry> {
        if self.nodes.len() >= NODES_MAX && !self.nodes.contains_key(&key) {
            return None;
        }
        Some(self.nodes.entry(key).or_default())
    }

    /// A node answered a query. `host` is the named host that was asked.
    fn answered(&mut self, from: SocketAddr, advert: Advert, host: Option<usize>, now: Instant) {
        let key = Key::Node(advert.id);
        // At one address there is one node: who was there before is not there now.
        for (other, entry) in &mut self.nodes {
            if *other != key {
                entry.addresses.retain(|(_, address)| *address != from);
            }
        }
        self.nodes.retain(|_, entry| !entry.addresses.is_empty());
        let Some(entry) = self.entry(key) else {
            return;
        };
        let before = entry.heard.clone();
        entry.heard = Heard {
            id: Some(advert.id),
            host: advert.host,
            addresses: Vec::new(),
            fingerprint: Some(advert.fingerprint),
            protocol: Some(advert.protocol),
            cores: Some(advert.cores),
            memory_bytes: Some(advert.memory_bytes),
            release: Some(advert.release),
            busy: advert.busy,
            by: How {
                named: before.by.named || host.is_some(),
                answered: true,
                mdns: before.by.mdns,
            },
        };
        let silent = entry
            .answered_at
            .replace(now)
            .is_none_or(|at| now.duration_since(at) >= SILENT);
        if entry.add(Likely::Answered, from) | silent | (entry.heard != before) {
            self.tell(key);
        }
    }

    /// mDNS told of a node.
    fn resolved(&mut self, mut told: Heard, addresses: Vec<SocketAddr>) {
        let Some(id) = told.id else {
            return;
        };
        let key = Key::Node(id);
        // mDNS remembers for two minutes who was at an address; an answer says who is.
        let taken = |address: &SocketAddr| {
            self.nodes.iter().any(|(other, entry)| {
                *other != key && entry.addresses.contains(&(Likely::Answered, *address))
            })
        };
        let addresses: Vec<_> = addresses.into_iter().filter(|a| !taken(a)).collect();
        if addresses.is_empty() {
            return;
        }
        self.record.mdns_answers += 1;
        let Some(entry) = self.entry(key) else {
            return;
        };
        let mut new = false;
        for address in addresses {
            new |= entry.add(Likely::of(&address), address);
        }
        // What a node answers itself is younger.
        if entry.heard.by.answered {
            new |= !entry.heard.by.mdns;
            entry.heard.by.mdns = true;
        } else {
            told.by = How {
                mdns: true,
                ..entry.heard.by
            };
            new |= entry.heard != told;
            entry.heard = told;
        }
        if new {
            self.tell(key);
        }
    }

    /// A named host has not answered; it may be called without.
    fn call_anyway(&mut self, at: usize, host: &HostPort, addresses: &[IpAddr]) {
        let key = Key::Host(at);
        let ports = || {
            addresses
                .iter()
                .flat_map(|ip| host.ports().map(|port| SocketAddr::new(*ip, port)))
        };
        let known: Vec<SocketAddr> = self
            .nodes
            .iter()
            .filter(|(other, _)| **other != key)
            .flat_map(|(_, entry)| entry.addresses.iter().map(|(_, address)| *address))
            .collect();
        let Some(entry) = self.entry(key) else {
            return;
        };
        entry.heard.host = host.host.clone();
        entry.heard.by.named = true;
        let mut new = false;
        for address in ports().filter(|address| !known.contains(address)) {
            new |= entry.add(Likely::Named, address);
        }
        if entry.addresses.is_empty() {
            self.nodes.remove(&key);
        } else if new {
            self.tell(key);
        }
    }
}

/// When to ask next.
struct Rounds(usize);

impl Rounds {
    fn pause(&mut self) -> Duration {
        let pause = EARLY_MS
            .get(self.0)
            .copied()
            .map_or(LATER, Duration::from_millis);
        self.0 += 1;
        pause
    }
}

/// Asks on every fit interface, for as long as it is there.
async fn broadcast(shared: Arc<Shared>, picked: Option<String>) {
    let mut askers = JoinSet::new();
    let mut running: HashMap<Fit, AbortHandle> = HashMap::new();
    loop {
        match interfaces::list(picked.as_deref()) {
            Ok((fits, unfits)) => {
                shared.lock().record.left_out = unfits;
                running.retain(|fit, asker| {
                    let there = fits.contains(fit) && !asker.is_finished();
                    if !there {
                        asker.abort();
                    }
                    there
                });
                for fit in fits {
                    let shared = Arc::clone(&shared);
                    running
                        .entry(fit)
                        .or_insert_with_key(|fit| askers.spawn(ask_interface(shared, fit.clone())));
                }
            }
            Err(why) => tracing::debug!("the interfaces cannot be listed: {why}"),
        }
        while askers.try_join_next().is_some() {}
        time::sleep(LATER).await;
    }
}

async fn ask_interface(shared: Arc<Shared>, fit: Fit) {
    let at = {
        let record = &mut shared.lock().record;
        let known = record.interfaces.iter().position(|asked| {
            asked.name == fit.name && asked.addresses.contains(&fit.broadcast.into())
        });
        known.unwrap_or_else(|| {
            record.interfaces.push(Asked {
                name: fit.name.clone(),
                addresses: vec![fit.broadcast.into()],
                ..Asked::default()
            });
            record.interfaces.len() - 1
        })
    };
    let mut to = vec![IpAddr::from(fit.broadcast)];
    if fit.address.is_loopback() {
        // A node that listens on 127.0.0.1 alone hears no broadcast.
        to.push(fit.address.into());
    }
    let socket = match UdpSocket::bind((fit.address, 0)).await {
        Ok(socket) => socket,
        Err(why) => {
            shared.lock().record.interfaces[at].trouble = Some(why.to_string());
            return;
        }
    };
    if let Err(why) = socket.set_broadcast(true) {
        shared.lock().record.interfaces[at].trouble = Some(why.to_string());
        return;
    }
    let mut rounds = Rounds(0);
    loop {
        let sent = send(&shared, &socket, &to, PORTS).await;
        note(&mut shared.lock().record.interfaces[at], sent);
        let listen = listen(&shared, &socket, None, |record| &mut record.interfaces[at]);
        let _ = timeout(rounds.pause(), listen).await;
    }
}

async fn ask_host(shared: Arc<Shared>, at: usize, host: HostPort) {
    let bound = (
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await,
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await,
    );
    let (v4, v6) = match bound {
        (Err(why), Err(_)) => {
            shared.lock().record.hosts[at].trouble = Some(why.to_string());
            return;
        }
        (v4, v6) => (v4.ok(), v6.ok()),
    };
    let begun = Instant::now();
    let patience = match host.port {
        Some(_) => CALL_PORT_ANYWAY,
        None => CALL_ANYWAY,
    };
    let mut rounds = Rounds(0);
    let mut addresses: Vec<IpAddr> = Vec::new();
    loop {
        if addresses.is_empty() || rounds.0 > EARLY_MS.len() {
            // Names may lead elsewhere later, or only later anywhere.
            match resolve(&host.host).await {
                Ok(found) => addresses = found,
                Err(why) => shared.lock().record.hosts[at].trouble = Some(why),
            }
        }
        shared.lock().record.hosts[at]
            .addresses
            .clone_from(&addresses);
        if !addresses.is_empty() {
            let (mut queries, mut trouble) = (0, None);
            for (socket, is_v4) in [(&v4, true), (&v6, false)] {
                let to: Vec<_> = addresses
                    .iter()
                    .copied()
                    .filter(|ip| ip.is_ipv4() == is_v4)
                    .collect();
                if let Some(socket) = socket {
                    let sent = send(&shared, socket, &to, host.ports()).await;
                    queries += sent.0;
                    trouble = trouble.or(sent.1);
                }
            }
            note(&mut shared.lock().record.hosts[at], (queries, trouble));
            if begun.elapsed() >= patience {
                shared.change(|registry| {
                    if registry.record.hosts[at].answers == 0 {
                        registry.call_anyway(at, &host, &addresses);
                    }
                });
            }
        }
        let wait = time::sleep(rounds.pause());
        tokio::select! {
            () = wait => {}
            () = listen_if(&shared, v4.as_ref(), at) => {}
            () = listen_if(&shared, v6.as_ref(), at) => {}
        }
    }
}

async fn resolve(host: &str) -> Result<Vec<IpAddr>, String> {
    match timeout(RESOLVE, lookup_host((host, 0))).await {
        Ok(Ok(found)) => {
            let mut addresses: Vec<IpAddr> = Vec::new();
            for address in found {
                // More than these are hardly one machine's.
                if !addresses.contains(&address.ip()) && addresses.len() < 8 {
                    addresses.push(address.ip());
                }
            }
            Ok(addresses)
        }
        Ok(Err(why)) => Err(format!("the name is not known here: {why}")),
        Err(_) => Err(format!(
            "the name was not resolved within {} s",
            RESOLVE.as_secs()
        )),
    }
}

/// Sends a query to every port of every address: how many went out, and why others did not.
async fn send(
    shared: &Shared,
    socket: &UdpSocket,
    to: &[IpAddr],
    ports: std::ops::RangeInclusive<u16>,
) -> (u64, Option<String>) {
    let query = beacon::query(shared.query);
    let (mut sent, mut trouble) = (0, None);
    for ip in to {
        for port in ports.clone() {
            match socket.send_to(&query, (*ip, port)).await {
                Ok(_) => sent += 1,
                Err(why) => trouble = Some(why.to_string()),
            }
        }
    }
    (sent, trouble)
}

fn note(asked: &mut Asked, (sent, trouble): (u64, Option<String>)) {
    asked.queries += sent;
    asked.trouble = trouble;
}

async fn listen_if(shared: &Shared, socket: Option<&UdpSocket>, at: usize) {
    match socket {
        Some(socket) => listen(shared, socket, Some(at), |record| &mut record.hosts[at]).await,
        None => std::future::pending().await,
    }
}

/// Takes answers for as long as it is polled.
async fn listen(
    shared: &Shared,
    socket: &UdpSocket,
    host: Option<usize>,
    asked: impl Fn(&mut Searched) -> &mut Asked,
) {
    let mut buffer = [0; 2 * beacon::QUERY_BYTES];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, from)) => {
                if let Some((nonce, advert)) = beacon::read_answer(&buffer[..length])
                    && nonce == shared.query.nonce
                {
                    shared.change(|registry| {
                        asked(&mut registry.record).answers += 1;
                        registry.answered(from, advert, host, Instant::now());
                    });
                }
            }
            // An unreachable port is told this way on some systems. Nothing was lost; a pause lest it repeat for ever.
            Err(_) => time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Stops its thread when dropped.
struct Daemon(ServiceDaemon);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.shutdown();
    }
}

async fn browse(shared: Arc<Shared>, picked: Option<String>) {
    loop {
        if let Err(why) = browse_until_trouble(&shared, picked.as_deref()).await {
            shared.lock().record.mdns_trouble = Some(why.to_string());
        }
        time::sleep(LATER).await;
    }
}

async fn browse_until_trouble(shared: &Shared, picked: Option<&str>) -> Result<(), MdnsError> {
    let daemon = Daemon(advertise::daemon(picked)?);
    let monitor = daemon.0.monitor()?;
    loop {
        let events = daemon.0.browse(SERVICE)?;
        let anew = time::sleep(BROWSE_ANEW);
        tokio::pin!(anew);
        loop {
            tokio::select! {
                () = &mut anew => break,
                event = events.recv_async() => match event {
                    Ok(ServiceEvent::ServiceResolved(service)) => {
                        let (heard, addresses) = read_service(&service);
                        shared.change(|registry| {
                            registry.record.mdns_trouble = None;
                            registry.resolved(heard, addresses);
                        });
                    }
                    // A node that is gone by mDNS may be there all the same: its connection tells.
                    Ok(_) => {}
                    Err(_) => return Err(MdnsError("the browser has stopped".into())),
                },
                event = monitor.recv_async() => match event {
                    Ok(DaemonEvent::Error(why)) => {
                        shared.lock().record.mdns_trouble = Some(why.to_string());
                    }
                    Ok(_) => {}
                    Err(_) => return Err(MdnsError("the browser has stopped".into())),
                },
            }
        }
    }
}

fn read_service(service: &ResolvedService) -> (Heard, Vec<SocketAddr>) {
    let text = |key: &str, max: usize| {
        let text = service.get_property_val_str(key)?;
        Some(harmless(within(text, max)))
    };
    let protocol = text("protocol", 16).and_then(|text| {
        let (oldest, newest) = text.split_once('-')?;
        Some(ProtocolRange {
            oldest: oldest.parse().ok()?,
            newest: newest.parse().ok()?,
        })
    });
    let heard = Heard {
        id: text("id", 16).and_then(|id| u64::from_str_radix(&id, 16).ok()),
        host: text("host", HOST_BYTES_MAX)
            .unwrap_or_else(|| harmless(within(service.get_hostname(), HOST_BYTES_MAX))),
        addresses: Vec::new(),
        fingerprint: text("farm", 32).and_then(|print| Fingerprint::parse(&print)),
        protocol,
        cores: text("cores", 8).and_then(|cores| cores.parse().ok()),
        memory_bytes: text("memory", 24).and_then(|bytes| bytes.parse().ok()),
        release: text("version", RELEASE_BYTES_MAX),
        busy: false,
        by: How {
            mdns: true,
            ..How::default()
        },
    };
    let port = service.get_port();
    let addresses = service
        .get_addresses()
        .iter()
        .map(|scoped| match scoped {
            ScopedIp::V6(v6) if v6.addr().is_unicast_link_local() => {
                SocketAddrV6::new(*v6.addr(), port, 0, v6.scope_id().index).into()
            }
            other => SocketAddr::new(other.to_ip_addr(), port),
        })
        .collect();
    (heard, addresses)
}

#[cfg(test)]
mod tests;
