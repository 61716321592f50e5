//! One scheduler, many agents, virtual time: messages are delayed, work ends in any order, agents die, join, freeze and
//! thaw, links between them are cut, blocks cannot be read, and the coordinator itself is killed and begins again with
//! what it has kept. Whatever happens, the bytes are those of the sequential evaluation. A failing run prints its seed and
//! the stories.

use std::{
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap},
    fmt::Write as _,
    ops::Range,
    sync::Arc,
};

use coordinator::scheduler::{Action as Order, Event as News, Scheduler, SchedulerConfig};
use node_agent::{
    agent::{Action, Agent, AgentConfig, Event, Parcel, Ran, Source},
    driver::bulk_answer,
    hands::{Hands, Loaded, add},
};
use shared::farm::{
    bytes::Bytes,
    contributions::Contributions,
    frame::{Bulk, BulkKind, Frame, decode_control, encode_control, plan_tag},
    graph::{Checkpoint, Graph, Output},
    ids::{AgentId, ContentHash, TaskId},
    message::{Fetch, FromAgent, InputError, InputErrorKind, Name, ToAgent},
    moment::Moment,
    sequential,
};
use tests::{
    Random,
    toy::{Case, Growing, Toy, cut, evaluate, random_case},
};

/// What is on its way, or going on.
enum Thing {
    ToAgent(usize, Frame),
    ToPeer(usize, usize, Frame),
    ToCoordinator(usize, Frame),
    Ran(usize, u16, Vec<Loaded<Toy>>),
    Loaded(usize, ContentHash),
    Gathered(usize, Name, Vec<Bytes>),
    Dies(usize),
    Lost(usize),
    Joins,
    Freezes(usize, u64),
    Thaws(usize),
    /// Two agents do not reach each other any more.
    Cut(usize, usize),
    PeerGone(usize, usize),
    /// Deadlines: of an agent, of the scheduler.
    AgentTick(usize),
    Tick,
    /// The coordinator is killed and starts again, with other agents.
    Restart,
}

impl Thing {
    /// The agent to which it happens.
    fn node(&self) -> Option<usize> {
        match self {
            Self::ToAgent(node, _)
            | Self::ToPeer(_, node, _)
            | Self::Ran(node, ..)
            | Self::Loaded(node, _)
            | Self::Gathered(node, ..)
            | Self::PeerGone(node, _)
            | Self::AgentTick(node) => Some(*node),
            Self::ToCoordinator(..)
            | Self::Dies(_)
            | Self::Lost(_)
            | Self::Joins
            | Self::Freezes(..)
            | Self::Thaws(_)
            | Self::Cut(..)
            | Self::Tick
            | Self::Restart => None,
        }
    }
}

struct Node {
    agent: Agent<Toy>,
    hands: Hands,
    alive: bool,
    ended: bool,
    /// What waits until it thaws.
    frozen: Option<Vec<Thing>>,
    tick: Option<u64>,
    /// Links keep their order: nothing arrives before what was sent earlier.
    link_free: BTreeMap<(usize, usize), u64>,
}

struct Sim {
    random: Random,
    now: u64,
    next: u64,
    queue: BinaryHeap<std::cmp::Reverse<(u64, u64)>>,
    things: HashMap<u64, Thing>,
    nodes: Vec<Node>,
    scheduler: Scheduler<Toy>,
    inputs: HashMap<ContentHash, Bytes>,
    blocks: HashMap<TaskId, Bytes>,
    delivered: BTreeMap<TaskId, Bytes>,
    finished: bool,
    memory: u64,
    growing: Growing,
    /// The plan with which the coordinator began.
    graph: Arc<Graph<Toy>>,
    config: SchedulerConfig,
    kept: BTreeMap<TaskId, Bytes>,
    keeps: bool,
    /// Pairs of agents that do not reach each other.
    cut: BTreeSet<(usize, usize)>,
    /// Once in so many, an input block cannot be read.
    unreadable: Option<u64>,
    tick: Option<u64>,
    /// Agents of the coordinator that was killed.
    bygone: usize,
    tally: Tally,
}

/// What has happened, over all runs.
#[derive(Default, Debug)]
struct Tally {
    deaths: usize,
    resets: usize,
    cuts: usize,
    restarts: usize,
    resumed: usize,
    failures: usize,
    from_spool: usize,
    growths: usize,
    replayed: usize,
}

const PLAN: ContentHash = ContentHash([7; 32]);
const COORDINATOR: usize = usize::MAX;
const HEARTBEAT_US: u64 = 1000;
const SUSPECT_US: u64 = 4000;

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl Sim {
    fn at(&mut self, delay: u64, thing: Thing) {
        let id = self.next;
        self.next += 1;
        self.queue.push(std::cmp::Reverse((self.now + delay, id)));
        self.things.insert(id, thing);
    }

    /// Sends on the link from `from` to `to`, in order.
    fn send(&mut self, from: usize, to: usize, thing: Thing) {
        let sender = if from == COORDINATOR { to } else { from };
        let delay = self.random.below(200);
        let free = self.nodes[sender].link_free.entry((from, to)).or_default();
        let arrives = (self.now + delay).max(*free + 1);
        *free = arrives;
        self.at(arrives - self.now, thing);
    }

    fn join(&mut self) {
        let cores = 1 + self.random.below(4) as u16;
        self.nodes.push(Node {
            agent: Agent::new(AgentConfig {
                heartbeat_us: Some(HEARTBEAT_US),
                ..AgentConfig::new(cores, self.memory)
            }),
            hands: Hands::default(),
            alive: true,
            ended: false,
            frozen: None,
            tick: None,
            link_free: BTreeMap::new(),
        });
        self.drain(self.nodes.len() - 1);
    }

    fn feed(&mut self, node: usize, event: Event<Toy>) {
        self.nodes[node].agent.handle(Moment(self.now), event);
        // Now and then several events come before anything is done.
        if !self.random.one_in(4) {
            self.drain(node);
        } else {
            let fresh = self.random.below(50);
            self.at(fresh, Thing::ToAgent(node, Frame::Control(Vec::new())));
        }
    }

    fn drain(&mut self, node: usize) {
        while let Some(action) = self.nodes[node].agent.poll_action() {
            self.act(node, action);
        }
        if let Some(at) = self.nodes[node].agent.poll_deadline()
            && self.nodes[node].tick.is_none_or(|tick| at.0 < tick)
        {
            self.nodes[node].tick = Some(at.0);
            self.at(at.0.saturating_sub(self.now), Thing::AgentTick(node));
        }
    }

    /// Sends to another agent, if the link holds.
    fn send_to_peer(&mut self, from: usize, to: usize, frame: Frame) {
        if self.cut.contains(&pair(from, to)) {
            let delay = self.random.below(100);
            return self.at(delay, Thing::PeerGone(from, to));
        }
        // Some answers come twice.
        if let Frame::Bulk { .. } = &frame
            && self.random.one_in(20)
        {
            self.send(from, to, Thing::ToPeer(from, to, frame.clone()));
        }
        self.send(from, to, Thing::ToPeer(from, to, frame));
    }

    fn act(&mut self, node: usize, action: Action<Toy>) {
        let hands = &mut self.nodes[node].hands;
        match action {
            Action::Tell(message) => {
                let frame = Frame::Control(encode_control(&message));
                self.send(node, COORDINATOR, Thing::ToCoordinator(node, frame));
            }
            Action::Ask {
                peer,
                request,
                name,
            } => {
                let fetch = Fetch { request, name };
                if peer == AgentId::COORDINATOR {
                    let frame = Frame::Control(encode_control(&FromAgent::Fetch(fetch)));
                    return self.send(node, COORDINATOR, Thing::ToCoordinator(node, frame));
                }
                let frame = Frame::Control(encode_control(&fetch));
                self.send_to_peer(node, peer.0 as usize, frame);
            }
            Action::Answer {
                peer,
                request,
                rest,
                what,
            } => {
                let frame = bulk_answer(hands, PLAN, request, rest, what).encode();
                self.send_to_peer(node, peer.0 as usize, frame);
            }
            Action::Deliver(task) => {
                let bytes = hands.block(&Source {
                    name: Name::result(task),
                    range: None,
                });
                let frame = Bulk::delivery(PLAN, task, bytes).encode();
                self.send(node, COORDINATOR, Thing::ToCoordinator(node, frame));
            }
            Action::Survey(hashes) => {
                let here = (0..hashes.len() as u32).collect();
                self.nodes[node]
                    .agent
                    .handle(Moment(self.now), Event::Surveyed(here));
            }
            Action::Load(hash) => {
                let delay = self.random.below(300);
                self.at(delay, Thing::Loaded(node, hash));
            }
            Action::Run { worker, jobs } => {
                let loaded = jobs.into_iter().map(|j| hands.load(j)).collect();
                let delay = 1 + self.random.below(500);
                self.at(delay, Thing::Ran(node, worker, loaded));
            }
            Action::Gather { name, pieces } => {
                let pieces = pieces.into_iter().map(|p| hands.piece(&name, p)).collect();
                let delay = self.random.below(100);
                self.at(delay, Thing::Gathered(node, name, pieces));
            }
            Action::Keep { name, piece } => {
                let bytes = hands.piece(&name, piece);
                hands.put(name, bytes);
            }
            Action::Forget(name) => hands.forget(&name),
            Action::ForgetSum(id) => hands.forget_sum(id),
            Action::Discard(parcel) => hands.discard(parcel),
            Action::ForgetAll => hands.forget_all(),
            Action::Overrun { .. } => {}
            Action::Stop => self.nodes[node].ended = true,
        }
    }

    fn news(&mut self, news: News) {
        let again = match &news {
            News::Said { .. } if self.random.one_in(10) => Some(news.clone()),
            News::Said { .. }
            | News::Delivery { .. }
            | News::NotKept(_)
            | News::KeepNoMore
            | News::Lost(_)
            | News::Tick => None,
        };
        self.scheduler.handle(Moment(self.now), news);
        // Some are heard twice.
        if let Some(again) = again {
            self.scheduler.handle(Moment(self.now), again);
        }
        self.orders();
    }

    fn tell(&mut self, agent: AgentId, message: &ToAgent<Toy>) {
        let frame = Frame::Control(encode_control(message));
        let agent = agent.0 as usize;
        self.send(COORDINATOR, agent, Thing::ToAgent(agent, frame));
    }

    fn orders(&mut self) {
        while let Some(order) = self.scheduler.poll_action(Moment(self.now)) {
            match order {
                Order::Tell { agent, message } => {
                    self.tally.resets += usize::from(message == ToAgent::Reset);
                    self.tell(agent, &message);
                }
                Order::Deliver(task) => {
                    let block = self.blocks[&task].clone();
                    assert!(self.delivered.insert(task, block).is_none());
                    if let Some(graph) = self.growing.decided(task) {
                        graph.grows_from(self.scheduler.graph()).unwrap();
                        self.scheduler.grow(Moment(self.now), graph);
                        self.tally.growths += 1;
                    }
                }
                Order::Keep { agent, task } => {
                    if self.random.one_in(30) {
                        self.scheduler.handle(Moment(self.now), News::NotKept(task));
                    } else {
                        self.kept.insert(task, self.blocks[&task].clone());
                    }
                    self.tell(agent, &ToAgent::Delivered(vec![task]));
                }
                Order::Unkeep(task) => {
                    self.kept.remove(&task);
                }
                Order::Failed { this, cause } => panic!("{this:?} failed: {cause:?}"),
                Order::Refused { .. } => panic!("refused"),
                Order::Close(agent) => self.nodes[agent.0 as usize].alive = false,
                Order::NotGrown => panic!("the plan has not grown"),
                Order::Finished => self.finished = true,
            }
        }
        if let Some(at) = self.scheduler.poll_deadline()
            && self.tick.is_none_or(|tick| at.0 < tick)
        {
            self.tick = Some(at.0);
            self.at(at.0.saturating_sub(self.now), Thing::Tick);
        }
    }

    /// Answers an agent from what is kept.
    fn answer_from_spool(&mut self, node: usize, fetch: Fetch) {
        let block = match fetch.name {
            Name::Result { task, range } => {
                let block = self.kept.get(&task).filter(|_| !self.random.one_in(20));
                let block = block.map(|b| match range {
                    None => b.clone(),
                    Some((start, end)) => b.slice(start as usize..end as usize),
                });
                if block.is_none() {
                    self.kept.remove(&task);
                    self.news(News::NotKept(task));
                }
                block
            }
            Name::Input(_) | Name::Chunk { .. } => panic!("not asked of the coordinator"),
        };
        self.tally.from_spool += usize::from(block.is_some());
        let frame = Bulk {
            kind: match block {
                Some(_) => BulkKind::Block,
                None => BulkKind::Nothing,
            },
            request: fetch.request,
            plan: plan_tag(PLAN),
            rest: 0,
            set: Contributions::default(),
            payload: block.unwrap_or_else(|| Bytes::copy_from(&[]).unwrap()),
        };
        self.send(COORDINATOR, node, Thing::ToAgent(node, frame.encode()));
    }

    /// Hands out what is kept of the deliveries; some of it cannot be read. The plan grows for it.
    fn replay(&mut self) -> Vec<TaskId> {
        self.graph = Arc::clone(&self.growing.graphs[0]);
        let mut delivered = Vec::new();
        let mut next = 0;
        while let Some(&task) = self.graph.deliveries.get(next) {
            next += 1;
            if let Some(block) = self.kept.get(&task).cloned()
                && !self.random.one_in(10)
            {
                assert!(self.delivered.insert(task, block).is_none());
                delivered.push(task);
                if let Some(graph) = self.growing.decided(task) {
                    self.graph = graph;
                    self.tally.replayed += 1;
                }
            }
        }
        delivered
    }

    fn restart(&mut self) {
        if self.finished {
            return;
        }
        self.tally.restarts += 1;
        self.bygone = self.nodes.len();
        for node in &mut self.nodes {
            node.alive = false;
        }
        self.delivered.clear();
        self.blocks.clear();
        let kept: Vec<TaskId> = self.kept.keys().copied().collect();
        self.tally.resumed += usize::from(!kept.is_empty());
        let kept = self.keeps.then_some(kept);
        self.config.agents_expected = 1;
        let delivered = self.replay();
        let graph = Arc::clone(&self.graph);
        self.scheduler = Scheduler::new(graph, PLAN, self.config, kept.as_deref(), &delivered);
        for _ in 0..1 + self.random.below(3) {
            self.join();
        }
        self.orders();
    }

    fn bulk(&mut self, node: usize, bulk: Bulk) {
        let what = match bulk.kind {
            BulkKind::Block => Parcel::Block,
            BulkKind::Partial => Parcel::Partial(bulk.set),
            BulkKind::Nothing => Parcel::Nothing,
            BulkKind::Delivery => unreachable!("not to an agent"),
        };
        let event = Event::Arrived {
            request: bulk.request,
            rest: bulk.rest,
            bytes: bulk.payload.len() as u64,
            parcel: self.nodes[node].hands.parcel(bulk.payload),
            what,
        };
        self.feed(node, event);
    }

    fn happen(&mut self, thing: Thing) {
        if let Some(node) = thing.node()
            && let Some(waiting) = &mut self.nodes[node].frozen
        {
            return waiting.push(thing);
        }
        match thing {
            Thing::ToAgent(node, frame) => {
                if !self.nodes[node].alive {
                    return;
                }
                let bytes = match frame {
                    Frame::Control(bytes) => bytes,
                    Frame::Bulk { head, payload } => {
                        let bulk = Bulk::decode(&head, payload).unwrap();
                        return self.bulk(node, bulk);
                    }
                };
                if bytes.is_empty() {
                    return self.drain(node);
                }
                let message: ToAgent<Toy> = decode_control(&bytes).unwrap();
                let hands = &mut self.nodes[node].hands;
                if let ToAgent::Begin { accumulators, .. } = &message {
                    hands.begin(accumulators.clone());
                }
                if let ToAgent::Grow { accumulators } = &message {
                    hands.grow(accumulators.clone());
                }
                self.feed(node, Event::Coordinator(message));
            }
            Thing::ToPeer(from, to, frame) => {
                if !self.nodes[to].alive {
                    return;
                }
                let event = match frame {
                    Frame::Control(bytes) => {
                        let Fetch { request, name } = decode_control(&bytes).unwrap();
                        Event::Asked {
                            from: AgentId(from as u32),
                            request,
                            name,
                        }
                    }
                    Frame::Bulk { head, payload } => {
                        let bulk = Bulk::decode(&head, payload).unwrap();
                        return self.bulk(to, bulk);
                    }
                };
                self.feed(to, event);
            }
            Thing::ToCoordinator(node, frame) => {
                let agent = AgentId(node as u32);
                if node < self.bygone {
                    return;
                }
                match frame {
                    Frame::Control(bytes) => {
                        let message: FromAgent = decode_control(&bytes).unwrap();
                        if let FromAgent::Fetch(fetch) = &message {
                            self.answer_from_spool(node, *fetch);
                        }
                        self.news(News::Said { agent, message });
                    }
                    Frame::Bulk { head, payload } => {
                        let bulk = Bulk::decode(&head, payload).unwrap();
                        let task = TaskId(bulk.request as u32);
                        self.blocks.insert(task, bulk.payload);
                        self.news(News::Delivery { agent, task });
                        self.blocks.clear();
                    }
                }
            }
            Thing::Ran(node, worker, loaded) => {
                if !self.nodes[node].alive {
                    return;
                }
                let results = loaded
                    .into_iter()
                    .map(|job| {
                        let yielded = job.run();
                        Ran {
                            this: yielded.this,
                            took_us: 5,
                            outcome: self.nodes[node].hands.take(yielded),
                        }
                    })
                    .collect();
                self.feed(node, Event::Ran { worker, results });
            }
            Thing::Loaded(node, hash) => {
                if self.nodes[node].alive && self.unreadable.is_some_and(|n| self.random.one_in(n))
                {
                    self.tally.failures += 1;
                    let outcome = Err(InputError {
                        hash,
                        kind: InputErrorKind::Io,
                        why: "of a test".to_owned(),
                    });
                    let shipped = true;
                    self.feed(
                        node,
                        Event::Loaded {
                            hash,
                            shipped,
                            outcome,
                        },
                    );
                } else if self.nodes[node].alive {
                    let bytes = self.inputs[&hash].clone();
                    let length = bytes.len() as u64;
                    self.nodes[node].hands.put(Name::Input(hash), bytes);
                    let outcome = Ok(length);
                    let shipped = true;
                    self.feed(
                        node,
                        Event::Loaded {
                            hash,
                            shipped,
                            outcome,
                        },
                    );
                }
            }
            Thing::Gathered(node, name, pieces) => {
                if self.nodes[node].alive {
                    self.nodes[node].hands.put(name, add(&pieces).unwrap());
                    let outcome = Ok(());
                    self.feed(node, Event::Gathered { name, outcome });
                }
            }
            Thing::Dies(node) => {
                let living = self.nodes.iter().filter(|n| n.alive).count();
                if node < self.nodes.len() && self.nodes[node].alive && living > 1 {
                    self.nodes[node].alive = false;
                    self.tally.deaths += 1;
                    let noticed = self.random.below(1000);
                    self.at(noticed, Thing::Lost(node));
                }
            }
            Thing::Lost(node) => {
                if node >= self.bygone {
                    self.news(News::Lost(AgentId(node as u32)));
                }
            }
            Thing::Joins => self.join(),
            Thing::Freezes(node, how_long) => {
                if node < self.nodes.len()
                    && self.nodes[node].alive
                    && self.nodes[node].frozen.is_none()
                {
                    self.nodes[node].frozen = Some(Vec::new());
                    self.at(how_long, Thing::Thaws(node));
                }
            }
            Thing::Thaws(node) => {
                for thing in self.nodes[node].frozen.take().unwrap_or_default() {
                    self.happen(thing);
                }
            }
            Thing::Cut(a, b) => {
                if a != b && a.max(b) < self.nodes.len() && self.cut.insert(pair(a, b)) {
                    self.tally.cuts += 1;
                    for (a, b) in [(a, b), (b, a)] {
                        let delay = self.random.below(300);
                        self.at(delay, Thing::PeerGone(a, b));
                    }
                }
            }
            Thing::PeerGone(node, peer) => {
                if self.nodes[node].alive {
                    self.feed(node, Event::PeerGone(AgentId(peer as u32)));
                }
            }
            Thing::AgentTick(node) => {
                self.nodes[node].tick = None;
                if self.nodes[node].alive && !self.nodes[node].ended {
                    self.feed(node, Event::Tick);
                }
            }
            Thing::Tick => {
                self.tick = None;
                self.news(News::Tick);
            }
            Thing::Restart => self.restart(),
        }
    }

    fn stories(&self, tasks: usize) -> String {
        let mut text = String::new();
        for task in 0..tasks {
            let story = self.scheduler.story().of(TaskId(task as u32));
            let _ = writeln!(text, "task {task}\n{story}");
        }
        text
    }
}

/// Some blocks of some stages are to be kept.
fn with_checkpoints(graph: &mut Graph<Toy>, random: &mut Random, stages: Range<u16>) {
    for stage in stages {
        if random.one_in(2) {
            continue;
        }
        let tasks: Vec<TaskId> = (0..)
            .zip(&graph.tasks)
            .filter(|(_, task)| task.stage == stage && matches!(task.output, Output::Block { .. }))
            .map(|(id, _)| TaskId(id))
            .filter(|_| !random.one_in(3))
            .collect();
        let before = graph.checkpoints.len().checked_sub(1);
        let before = before.map(|c| c as u16).filter(|_| random.one_in(2));
        let supersedes = before.into_iter().collect();
        graph.checkpoints.push(Checkpoint { tasks, supersedes });
    }
}

fn simulate(seed: u64, grows: bool, tally: Tally) -> Tally {
    let Case { graph, inputs } = random_case(seed);
    let mut random = Random(seed ^ 0xfa4);
    let growing = if grows {
        cut(&graph, &mut random, with_checkpoints)
    } else {
        let mut graph = graph.clone();
        let stages = 0..graph.stages.len() as u16;
        with_checkpoints(&mut graph, &mut random, stages);
        Growing {
            numbers: (0..graph.tasks.len() as u32).map(TaskId).collect(),
            graphs: vec![Arc::new(graph)],
            decisions: Vec::new(),
        }
    };
    for graph in &growing.graphs {
        graph.validate().unwrap();
    }
    let whole = growing.graphs.last().unwrap();
    let wanted = evaluate(whole, &inputs);
    for (task, block) in evaluate(&graph, &inputs) {
        assert!(wanted[&growing.numbers[task.0 as usize]] == block);
    }
    let first = Arc::clone(&growing.graphs[0]);
    let load = |hash: &ContentHash| inputs.get(hash).cloned();
    let grow = |task, _: &Bytes| growing.decided(task);
    let mut last = Arc::clone(&first);
    let grown = sequential::run_growing(&mut last, load, grow).unwrap();
    assert!(grown.into_iter().collect::<BTreeMap<_, _>>() == wanted && !last.open);
    let tasks = whole.tasks.len();
    let crowd = random.one_in(200);
    let agents = if crowd {
        100 + random.below(200) as usize
    } else {
        1 + random.below(5) as usize
    };
    let memory = [0, 200, 1000, 1 << 30][random.below(4) as usize];
    let keeps = random.one_in(2);
    let config = SchedulerConfig {
        agents_expected: 1 + random.below(agents as u64) as usize,
        suspect_us: Some(SUSPECT_US),
        gone_us: Some(40_000),
        attempts_max: 1000,
        ..SchedulerConfig::default()
    };
    let kept: Option<&[TaskId]> = keeps.then_some(&[]);
    let mut sim = Sim {
        scheduler: Scheduler::new(Arc::clone(&first), PLAN, config, kept, &[]),
        now: 0,
        next: 0,
        queue: BinaryHeap::new(),
        things: HashMap::new(),
        nodes: Vec::new(),
        inputs,
        blocks: HashMap::new(),
        delivered: BTreeMap::new(),
        finished: false,
        memory,
        graph: first,
        growing,
        config,
        kept: BTreeMap::new(),
        keeps,
        cut: BTreeSet::new(),
        unreadable: random.one_in(3).then_some(10),
        tick: None,
        bygone: 0,
        tally,
        random,
    };
    for _ in 0..agents {
        sim.join();
    }
    for _ in 0..sim.random.below(4) {
        let (node, when) = (
            sim.random.below(agents as u64 + 1) as usize,
            300 + sim.random.below(9000),
        );
        sim.at(when, Thing::Dies(node));
        if sim.random.one_in(2) {
            let when = sim.random.below(9000);
            sim.at(when, Thing::Joins);
        }
    }
    for _ in 0..sim.random.below(3) {
        let node = sim.random.below(agents as u64) as usize;
        let when = sim.random.below(5000);
        let how_long = 100 + sim.random.below(12_000);
        sim.at(when, Thing::Freezes(node, how_long));
    }
    if sim.random.one_in(3) {
        for _ in 0..1 + sim.random.below(3) {
            let (a, b) = (
                sim.random.below(agents as u64) as usize,
                sim.random.below(agents as u64) as usize,
            );
            let when = sim.random.below(5000);
            sim.at(when, Thing::Cut(a, b));
        }
    }
    if sim.random.one_in(4) {
        let when = sim.random.below(8000);
        sim.at(when, Thing::Restart);
    }
    let mut count = 0;
    while let Some(std::cmp::Reverse((when, id))) = sim.queue.pop() {
        sim.now = when;
        count += 1;
        let thing = sim.things.remove(&id).unwrap();
        sim.happen(thing);
        if sim.finished
            && sim
                .nodes
                .iter()
                .all(|n| n.ended || !n.alive || n.frozen.is_some())
        {
            break;
        }
        assert!(
            count < 3_000_000 && sim.now < 1_000_000_000,
            "seed {seed} does not end, at {}, finished: {}\n{}",
            sim.now,
            sim.finished,
            sim.stories(tasks)
        );
    }
    assert!(
        sim.finished,
        "seed {seed} stands still at {}\n{}\n{:#?}",
        sim.now,
        sim.stories(tasks),
        sim.nodes
            .iter()
            .filter(|n| n.alive)
            .map(|n| &n.agent)
            .collect::<Vec<_>>(),
    );
    assert!(
        sim.delivered == wanted,
        "seed {seed}: other bytes\n{}",
        sim.stories(tasks)
    );
    sim.tally
}

fn simulate_many(grows: bool) -> Tally {
    let (first, count) = match std::env::var("SVDJOB_SIM_SEED") {
        Ok(seed) => (seed.parse().expect("a number"), 1),
        Err(_) => (0, 3000),
    };
    let mut tally = Tally::default();
    for seed in first..first + count {
        tally = simulate(seed, grows, tally);
    }
    println!("{tally:?}");
    let Tally {
        deaths,
        resets,
        cuts,
        restarts,
        resumed,
        failures,
        from_spool,
        growths: _,
        replayed: _,
    } = tally;
    let least = deaths
        .min(resets)
        .min(cuts)
        .min(restarts)
        .min(resumed)
        .min(failures)
        .min(from_spool);
    assert!(count == 1 || least > 100, "this tests little");
    tally
}

#[test]
fn whatever_happens_the_bytes_are_the_same() {
    simulate_many(false);
}

#[test]
fn whatever_happens_to_a_plan_that_grows_the_bytes_are_the_same() {
    let Tally {
        growths, replayed, ..
    } = simulate_many(true);
    let one = std::env::var("SVDJOB_SIM_SEED").is_ok();
    assert!(one || growths.min(replayed) > 100, "this tests little");
}
