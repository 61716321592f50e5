//! `svdjob nodes`.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use shared::farm::message::PROTOCOL;
use shared::net::discovery::{Heard, How, SearchOptions, Searched, search};
use shared::net::endpoint::caller;
use shared::net::greeting::{Greeting, NodeCard, Purpose, Refusal};
use shared::net::identity::{Fingerprint, Identity};
use shared::net::link::{CallError, call, code};
use shared::size;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::farm::identity;
use super::{End, Global, out};
use crate::failure::{ExitCode, Failure};
use crate::job::diagnostics::Look;
use crate::job::overrides::{FarmFlags, FindFlags, Overrides};
use crate::job::resolve;
use crate::job::resolved::Farm;
use crate::report::numbers::{count, table, wrap};

/// Below this a node could hardly hold one task.
const MEMORY_MIN: u64 = 256 << 20;
/// Calls may take so much longer than the window.
const CALL_TIME: Duration = Duration::from_secs(2);
/// More addresses than these of one node are not tried.
const CALLS_MAX: usize = 16;
/// Below this width, a node is a line and what belongs to it.
const NARROW: usize = 84;

/// List the nodes of the farm, and why others are not used.
///
/// Looks for nodes as `svdjob run` does, calls each, and shows all that were heard of with their cores, memory, load,
/// version and cached blocks, and the reason why one is not used.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = AFTER, after_long_help = format!("{AFTER}\n\n{}", super::EXIT_CODES))]
pub struct NodesArgs {
    /// A job file, to look as its [farm] says
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,

    #[command(flatten)]
    pub find: FindFlags,
}

const AFTER: &str = "\
Examples:
  svdjob nodes                     who is on this network?
  svdjob nodes --node big1         and is big1 there, which is elsewhere?
  svdjob nodes factor.toml --json  those that a job would ask, for a script";

/// Lists.
///
/// # Errors
/// `NoFarm`: there is no key, or nobody was heard of. Others as of the job file.
pub fn run(args: &NodesArgs, global: &Global) -> Result<(), End> {
    let farm = wishes(args)?;
    let identity = identity(farm.key.as_deref())?;
    let fingerprint = identity.fingerprint();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|why| Failure::resources(format!("could not begin to search: {why}")))?;
    let (nodes, searched) = runtime.block_on(look(&identity, &farm))?;
    if nodes.is_empty() {
        return Err(Failure::new(
            ExitCode::NoFarm,
            format!(
                "no node was found in {:.1} s\n{}",
                searched.elapsed.as_secs_f64(),
                indented(&searched)
            ),
        )
        .help(searched.advice())
        .into());
    }
    if global.json {
        let nodes: Vec<_> = nodes.iter().map(Node::object).collect();
        out::object(&json!({
            "status": "done",
            "code": 0,
            "farm": fingerprint.to_string(),
            "seconds": searched.elapsed.as_secs_f64(),
            "nodes": nodes,
            "searched": searched.facts(),
        }))?;
    } else {
        out::text(&listing(&nodes, global.stdout_look()))?;
    }
    Ok(())
}

fn indented(searched: &Searched) -> String {
    let lines: Vec<_> = searched
        .facts()
        .iter()
        .map(|fact| format!("  {fact}"))
        .collect();
    lines.join("\n")
}

/// Where to look: as the flags say, else the job file, else the defaults.
fn wishes(args: &NodesArgs) -> Result<Farm, End> {
    let flags = FarmFlags {
        find: args.find.clone(),
        ..FarmFlags::default()
    };
    match &args.file {
        Some(file) => {
            let flags = Overrides {
                farm: flags,
                ..Overrides::default()
            };
            Ok(resolve::load(file, &flags)?.job.farm)
        }
        None => Ok(resolve::farm_of(&flags)),
    }
}

async fn look(identity: &Identity, farm: &Farm) -> Result<(Vec<Node>, Searched), Failure> {
    let endpoint = caller(identity).map_err(|why| Failure::resources(why.to_string()))?;
    let greeting = Arc::new(Greeting {
        protocol: PROTOCOL,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        purpose: Purpose::Status,
    });
    let options = SearchOptions {
        fingerprint: identity.fingerprint(),
        discover: farm.discover,
        interface: farm.interface.clone(),
        hosts: farm.nodes.clone(),
    };
    let of = endpoint.clone();
    let caller = move |address| {
        let (endpoint, greeting) = (of.clone(), Arc::clone(&greeting));
        async move {
            let called = call(&endpoint, address, &greeting, CALL_TIME).await?;
            called.connection.close(code::DONE, b"");
            Ok(called.card)
        }
    };
    let found = gather(options, farm.window, caller).await;
    endpoint.close(code::DONE, b"");
    // The last words get a moment to leave.
    let _ = tokio::time::timeout(Duration::from_millis(200), endpoint.wait_idle()).await;
    Ok(found)
}

/// A node and what is known of it.
#[derive(Clone, PartialEq, Debug)]
struct Node {
    heard: Heard,
    /// What it says itself, and where.
    card: Option<(NodeCard, SocketAddr)>,
    state: State,
    /// Why it is not used.
    reason: Option<String>,
}

/// Whether a node would be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Ready,
    Busy,
    OtherFarm,
    WrongKey,
    Version,
    /// It answers queries and no calls.
    Blocked,
    /// It is said to be there and does not answer.
    Silent,
    LittleMemory,
    /// Anything else that it says itself.
    Refuses,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Busy => "busy",
            Self::OtherFarm => "other farm",
            Self::WrongKey => "wrong key",
            Self::Version => "version",
            Self::Blocked => "blocked",
            Self::Silent => "silent",
            Self::LittleMemory => "little memory",
            Self::Refuses => "refuses",
        }
    }
}

/// Calls every node that is heard of within the window, and lists them by host and address.
async fn gather<C, F>(options: SearchOptions, window: Duration, caller: C) -> (Vec<Node>, Searched)
where
    C: Fn(SocketAddr) -> F + Clone + Send + 'static,
    F: Future<Output = Result<NodeCard, CallError>> + Send + 'static,
{
    let ours = options.fingerprint;
    let end = Instant::now() + window;
    let mut search = search(options);
    let mut heard_of: HashMap<Option<u64>, Vec<Heard>> = HashMap::new();
    let mut outcomes: HashMap<SocketAddr, Result<NodeCard, CallError>> = HashMap::new();
    let mut called: Vec<SocketAddr> = Vec::new();
    let mut calls = JoinSet::new();
    loop {
        tokio::select! {
            () = sleep_until(end) => break,
            heard = search.next() => {
                let stranger = heard.fingerprint.is_some_and(|theirs| theirs != ours);
                for &address in heard.addresses.iter().take(CALLS_MAX) {
                    // Somebody of another farm would not talk.
                    if !stranger && !called.contains(&address) {
                        called.push(address);
                        let caller = caller.clone();
                        calls.spawn(async move { (address, caller(address).await) });
                    }
                }
                let known = heard_of.entry(heard.id).or_default();
                match known.iter_mut().find(|k| k.id.is_some() || k.host == heard.host) {
                    Some(known) => *known = heard,
                    None => known.push(heard),
                }
            }
            Some(Ok((address, outcome))) = calls.join_next() => {
                outcomes.insert(address, outcome);
            }
        }
    }
    while let Ok(Some(done)) = timeout_at(end + CALL_TIME, calls.join_next()).await {
        if let Ok((address, outcome)) = done {
            outcomes.insert(address, outcome);
        }
    }
    let searched = search.searched();
    let heard = heard_of.into_values().flatten().collect();
    (judge(heard, &outcomes, ours), searched)
}

/// Brings together what was heard and what came of the calls.
fn judge(
    heard: Vec<Heard>,
    outcomes: &HashMap<SocketAddr, Result<NodeCard, CallError>>,
    ours: Fingerprint,
) -> Vec<Node> {
    let mut nodes: BTreeMap<(String, Vec<SocketAddr>), Node> = BTreeMap::new();
    let (known, named): (Vec<_>, Vec<_>) = heard.into_iter().partition(|heard| heard.id.is_some());
    let mut ids: Vec<u64> = known.iter().filter_map(|heard| heard.id).collect();
    for heard in known {
        let node = judged(heard, outcomes, ours);
        nodes.insert(key(&node), node);
    }
    for heard in named {
        // Several nodes may be on a named host.
        let mut found = false;
        for address in &heard.addresses {
            let Some(Ok(card)) = outcomes.get(address) else {
                continue;
            };
            found = true;
            if !ids.contains(&card.id) {
                ids.push(card.id);
                let one = Heard {
                    id: Some(card.id),
                    host: card.host.clone(),
                    addresses: vec![*address],
                    ..heard.clone()
                };
                let node = judged(one, outcomes, ours);
                nodes.insert(key(&node), node);
            }
        }
        if !found {
            let node = judged(heard, outcomes, ours);
            nodes.insert(key(&node), node);
        }
    }
    nodes.into_values().collect()
}

fn key(node: &Node) -> (String, Vec<SocketAddr>) {
    (node.heard.host.clone(), node.heard.addresses.clone())
}

fn judged(
    heard: Heard,
    outcomes: &HashMap<SocketAddr, Result<NodeCard, CallError>>,
    ours: Fingerprint,
) -> Node {
    let results = || {
        heard
            .addresses
            .iter()
            .filter_map(|a| Some((*a, outcomes.get(a)?)))
    };
    let card =
        results().find_map(|(address, result)| Some((result.as_ref().ok()?.clone(), address)));
    // The failure that tells most.
    let failure = results()
        .filter_map(|(_, result)| result.as_ref().err())
        .min_by_key(|error| match error {
            CallError::Refused(_) => 0,
            CallError::Stranger(_) => 1,
            CallError::Lost(_) => 2,
            CallError::Silent(_) => 3,
        })
        .cloned();
    let (state, reason) = match (&card, &failure) {
        (Some((card, _)), _) => of_card(card),
        (None, failure) => of_failure(&heard, failure.as_ref(), ours),
    };
    Node {
        heard,
        card,
        state,
        reason,
    }
}

fn of_card(card: &NodeCard) -> (State, Option<String>) {
    if let Some(busy) = &card.busy {
        return (
            State::Busy,
            Some(Refusal::Busy(Box::new(busy.clone())).to_string()),
        );
    }
    if card.protocol.common(PROTOCOL).is_none() {
        let refusal = Refusal::Protocol {
            release: card.release.clone(),
            understood: card.protocol,
        };
        return (State::Version, Some(refusal.to_string()));
    }
    if card.memory_bytes < MEMORY_MIN {
        let text = format!(
            "it offers {} of memory, a node needs {}: give it more with `svdnode --memory`",
            size::show(card.memory_bytes),
            size::show(MEMORY_MIN)
        );
        return (State::LittleMemory, Some(text));
    }
    (State::Ready, None)
}

fn of_failure(
    heard: &Heard,
    failure: Option<&CallError>,
    ours: Fingerprint,
) -> (State, Option<String>) {
    let (state, reason) = match (heard.fingerprint, failure) {
        (Some(theirs), _) if theirs != ours => (
            State::OtherFarm,
            format!("belongs to another farm, {theirs}; this is {ours}"),
        ),
        (_, Some(CallError::Stranger(why))) => (State::WrongKey, why.clone()),
        (_, Some(CallError::Refused(refusal))) => {
            let state = match refusal {
                Refusal::Busy(_) => State::Busy,
                Refusal::Protocol { .. } => State::Version,
                Refusal::Stopping
                | Refusal::OtherJob
                | Refusal::TooMany => State::Refuses,
            };
            (state, refusal.to_string())
        }
        (_, Some(CallError::Lost(why))) => (State::Refuses, format!("the call broke off: {why}")),
        (_, Some(CallError::Silent(_)) | None) if heard.by.answered => (
            State::Blocked,
            "it answers queries over UDP, but no QUIC connection comes about: something in between drops larger or \
             unknown datagrams"
                .into(),
        ),
        (_, Some(CallError::Silent(_)) | None) => (State::Silent, silent(heard)),
    };
    (state, Some(reason))
}

fn silent(heard: &Heard) -> String {
    let How { named, mdns, .. } = heard.by;
    let told = match (named, mdns) {
        (_, true) => "mDNS tells of it, but it does not answer",
        (true, false) => "it does not answer",
        (false, false) => "it was heard of, but does not answer",
    };
    format!("{told}: not running any more, or a firewall between (UDP)")
}

impl Node {
    fn address(&self) -> Option<SocketAddr> {
        let called = self.card.as_ref().map(|(_, address)| *address);
        called.or(self.heard.addresses.first().copied())
    }

    /// Cores, memory, load, version and cached blocks, as far as they are known.
    fn cells(&self) -> [String; 5] {
        let heard = &self.heard;
        let card = self.card.as_ref().map(|(card, _)| card);
        let or_heard = |card: Option<String>, heard: Option<String>| {
            card.or(heard).unwrap_or_else(|| "-".into())
        };
        [
            or_heard(
                card.map(|card| card.cores.to_string()),
                heard.cores.map(|cores| cores.to_string()),
            ),
            or_heard(
                card.map(|card| size::show(card.memory_bytes).to_string()),
                heard
                    .memory_bytes
                    .map(|bytes| size::show(bytes).to_string()),
            ),
            or_heard(card.map(|card| format!("{:.2}", card.load)), None),
            or_heard(card.map(|card| card.release.clone()), heard.release.clone()),
            or_heard(
                card.map(|card| match card.cached_blocks {
                    0 => "none".to_owned(),
                    blocks => format!("{} ({})", count(blocks), size::show(card.cached_bytes)),
                }),
                None,
            ),
        ]
    }

    fn object(&self) -> Value {
        let heard = &self.heard;
        let card = self.card.as_ref().map(|(card, _)| card);
        let id = card.map(|card| card.id).or(heard.id);
        json!({
            "id": id.map(|id| format!("{id:016x}")),
            "host": card.map_or(&heard.host, |card| &card.host),
            "address": self.address(),
            "addresses": heard.addresses,
            "state": self.state.word(),
            "reason": self.reason,
            "cores": card.map(|card| card.cores).or(heard.cores),
            "memory": card.map(|card| card.memory_bytes).or(heard.memory_bytes),
            "load": card.map(|card| card.load),
            "version": card.map(|card| &card.release).or(heard.release.as_ref()),
            "protocol": card.map(|card| card.protocol).or(heard.protocol),
            "isa": card.map(|card| &card.isa),
            "cached_blocks": card.map(|card| card.cached_blocks),
            "cached_bytes": card.map(|card| card.cached_bytes),
            "cache_bytes_max": card.map(|card| card.cache_bytes_max),
            "farm": heard.fingerprint.map(|farm| farm.to_string()),
            "heard_by": {
                "name": heard.by.named,
                "query": heard.by.answered,
                "mdns": heard.by.mdns,
            },
        })
    }
}

/// A table, or a paragraph a node where there is little room. Reasons stand below their nodes.
fn listing(nodes: &[Node], look: Look) -> String {
    let width = look.width.clamp(30, 120);
    let bold = |line: &str| {
        if look.color {
            format!("\x1b[1m{line}\x1b[0m")
        } else {
            line.to_owned()
        }
    };
    let mut text = String::new();
    let mut reasons: Vec<&Option<String>> = nodes.iter().map(|node| &node.reason).collect();
    let mut heads: Vec<String> = Vec::new();
    let place = |node: &Node| {
        node.address()
            .map_or("-".into(), |address| address.to_string())
    };
    if width < NARROW {
        for node in nodes {
            let [cores, memory, load, version, cached] = node.cells();
            heads.push(bold(&format!("{}  {}", node.heard.host, node.state.word())));
            let facts = format!(
                "{}, {cores} cores, {memory}, load {load}, version {version}, cached {cached}",
                place(node)
            );
            let last = heads.last_mut().expect("there is a line");
            for line in wrap(&facts, width - 2) {
                last.push_str(&format!("\n  {line}"));
            }
        }
    } else {
        let mut rows = vec![
            [
                "Node",
                "Address",
                "Cores",
                "Memory",
                "Load",
                "Version",
                "Cached blocks",
                "State",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        for node in nodes {
            let mut row = vec![node.heard.host.clone(), place(node)];
            row.extend(node.cells());
            row.push(node.state.word().to_owned());
            rows.push(row);
        }
        heads = table(&rows, &[0, 1, 7]);
        text.push_str(&format!("{}\n", bold(&heads.remove(0))));
    }
    for (head, reason) in heads.iter().zip(reasons.drain(..)) {
        text.push_str(head);
        text.push('\n');
        for line in reason.iter().flat_map(|reason| wrap(reason, width - 4)) {
            text.push_str(&format!("    {line}\n"));
        }
    }
    text.push('\n');
    for line in wrap(&sum(nodes), width) {
        text.push_str(&format!("{line}\n"));
    }
    text
}

fn sum(nodes: &[Node]) -> String {
    let ready: Vec<&NodeCard> = nodes
        .iter()
        .filter(|node| node.state == State::Ready)
        .filter_map(|node| Some(&node.card.as_ref()?.0))
        .collect();
    let cores: u64 = ready.iter().map(|card| u64::from(card.cores)).sum();
    let memory = ready.iter().map(|card| card.memory_bytes).sum();
    let total = match nodes.len() {
        1 => "1 node".to_owned(),
        more => format!("{more} nodes"),
    };
    if ready.is_empty() {
        return format!("{total}, none ready");
    }
    format!(
        "{total}, {} ready: {} cores, {} of memory",
        ready.len(),
        count(cores),
        size::show(memory)
    )
}

#[cfg(test)]
mod tests;
