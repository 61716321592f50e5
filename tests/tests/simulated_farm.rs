//! One scheduler, many agents, virtual time: messages are delayed, work ends in any order, agents die and join. Whatever
//! happens, the bytes are those of the sequential evaluation. A failing run prints its seed and the stories.

use std::{
    collections::{BTreeMap, BinaryHeap, HashMap, VecDeque},
    fmt::Write as _,
};

use coordinator::scheduler::{Action as Order, Event as News, Scheduler, SchedulerConfig};
use node_agent::{
    agent::{Action, Agent, AgentConfig, Event, Parcel, Ran, Source},
    driver::bulk_answer,
    hands::{Hands, Loaded, add},
};
use shared::farm::{
    bytes::Bytes,
    frame::{Bulk, BulkKind, Frame, decode_control, encode_control},
    ids::{AgentId, ContentHash, TaskId},
    message::{Fetch, FromAgent, Name, ToAgent},
    moment::Moment,
};
use tests::{
    Random,
    toy::{Case, Toy, evaluate, random_case},
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
}

struct Node {
    agent: Agent<Toy>,
    hands: Hands,
    alive: bool,
    ended: bool,
    /// Links keep their order: nothing arrives before what was sent earlier.
    link_free: BTreeMap<(usize, usize), u64>,
}

struct Sim<'g> {
    random: Random,
    now: u64,
    next: u64,
    queue: BinaryHeap<std::cmp::Reverse<(u64, u64)>>,
    things: HashMap<u64, Thing>,
    nodes: Vec<Node>,
    scheduler: Scheduler<'g, Toy>,
    inputs: HashMap<ContentHash, Bytes>,
    blocks: HashMap<TaskId, Bytes>,
    delivered: BTreeMap<TaskId, Bytes>,
    finished: bool,
    memory: u64,
    deaths: usize,
}

const PLAN: ContentHash = ContentHash([7; 32]);
const COORDINATOR: usize = usize::MAX;

impl Sim<'_> {
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
            agent: Agent::new(AgentConfig::new(cores, self.memory)),
            hands: Hands::default(),
            alive: true,
            ended: false,
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
                let frame = Frame::Control(encode_control(&Fetch { request, name }));
                let peer = peer.0 as usize;
                self.send(node, peer, Thing::ToPeer(node, peer, frame));
            }
            Action::Answer {
                peer,
                request,
                rest,
                what,
            } => {
                let frame = bulk_answer(hands, PLAN, request, rest, what).encode();
                let peer = peer.0 as usize;
                self.send(node, peer, Thing::ToPeer(node, peer, frame));
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
            Action::Overrun { .. } => {}
            Action::Stop => self.nodes[node].ended = true,
        }
    }

    fn news(&mut self, news: News) {
        let again = match &news {
            News::Said { .. } if self.random.one_in(10) => Some(news.clone()),
            News::Said { .. } | News::Delivery { .. } | News::Lost(_) | News::Tick => None,
        };
        self.scheduler.handle(Moment(self.now), news);
        // Some are heard twice.
        if let Some(again) = again {
            self.scheduler.handle(Moment(self.now), again);
        }
        while let Some(order) = self.scheduler.poll_action(Moment(self.now)) {
            match order {
                Order::Tell { agent, message } => {
                    let frame = Frame::Control(encode_control(&message));
                    let agent = agent.0 as usize;
                    self.send(COORDINATOR, agent, Thing::ToAgent(agent, frame));
                }
                Order::Deliver(task) => {
                    let block = self.blocks.remove(&task).expect("it has come");
                    assert!(self.delivered.insert(task, block).is_none());
                }
                Order::Failed { this, cause } => panic!("{this:?} failed: {cause:?}"),
                Order::Refused { .. } => panic!("refused"),
                Order::Finished => self.finished = true,
            }
        }
    }

    fn happen(&mut self, thing: Thing) {
        match thing {
            Thing::ToAgent(node, frame) => {
                if !self.nodes[node].alive {
                    return;
                }
                let Frame::Control(bytes) = frame else {
                    unreachable!("the coordinator sends no blocks")
                };
                if bytes.is_empty() {
                    return self.drain(node);
                }
                let message: ToAgent<Toy> = decode_control(&bytes).unwrap();
                if let ToAgent::Begin { accumulators, .. } = &message {
                    self.nodes[node].hands.begin(accumulators.clone());
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
                        let what = match bulk.kind {
                            BulkKind::Block => Parcel::Block,
                            BulkKind::Partial => Parcel::Partial(bulk.set),
                            BulkKind::Nothing => Parcel::Nothing,
                            BulkKind::Delivery => unreachable!("not to a peer"),
                        };
                        Event::Arrived {
                            request: bulk.request,
                            rest: bulk.rest,
                            bytes: bulk.payload.len() as u64,
                            parcel: self.nodes[to].hands.parcel(bulk.payload),
                            what,
                        }
                    }
                };
                self.feed(to, event);
            }
            Thing::ToCoordinator(node, frame) => {
                let agent = AgentId(node as u32);
                match frame {
                    Frame::Control(bytes) => {
                        let message: FromAgent = decode_control(&bytes).unwrap();
                        self.news(News::Said { agent, message });
                    }
                    Frame::Bulk { head, payload } => {
                        let bulk = Bulk::decode(&head, payload).unwrap();
                        let task = TaskId(bulk.request as u32);
                        self.blocks.insert(task, bulk.payload);
                        self.news(News::Delivery { agent, task });
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
                if self.nodes[node].alive {
                    let bytes = self.inputs[&hash].clone();
                    let length = bytes.len() as u64;
                    self.nodes[node].hands.put(Name::Input(hash), bytes);
                    let outcome = Ok(length);
                    self.feed(node, Event::Loaded { hash, outcome });
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
                    self.deaths += 1;
                    let noticed = self.random.below(1000);
                    self.at(noticed, Thing::Lost(node));
                }
            }
            Thing::Lost(node) => self.news(News::Lost(AgentId(node as u32))),
            Thing::Joins => self.join(),
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

fn simulate(seed: u64) -> usize {
    let Case { graph, inputs } = random_case(seed);
    graph.validate().unwrap();
    let wanted = evaluate(&graph, &inputs);
    let mut random = Random(seed ^ 0xfa4);
    let agents = 1 + random.below(5) as usize;
    let memory = [0, 200, 1000, 1 << 30][random.below(4) as usize];
    let config = SchedulerConfig {
        agents_expected: 1 + random.below(agents as u64) as usize,
        ..SchedulerConfig::default()
    };
    let mut sim = Sim {
        scheduler: Scheduler::new(&graph, PLAN, config),
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
        deaths: 0,
        random,
    };
    for _ in 0..agents {
        sim.join();
    }
    for _ in 0..sim.random.below(4) {
        let (node, when) = (sim.random.below(6) as usize, 300 + sim.random.below(9000));
        sim.at(when, Thing::Dies(node));
        if sim.random.one_in(2) {
            let when = sim.random.below(9000);
            sim.at(when, Thing::Joins);
        }
    }
    let mut recent: VecDeque<u64> = VecDeque::new();
    while let Some(std::cmp::Reverse((when, id))) = sim.queue.pop() {
        sim.now = when;
        recent.push_back(when);
        let thing = sim.things.remove(&id).unwrap();
        sim.happen(thing);
        assert!(
            recent.len() < 200_000,
            "seed {seed} does not end\n{}",
            sim.stories(graph.tasks.len())
        );
    }
    assert!(
        sim.finished,
        "seed {seed} stands still at {}\n{}\n{:#?}",
        sim.now,
        sim.stories(graph.tasks.len()),
        sim.nodes
            .iter()
            .filter(|n| n.alive)
            .map(|n| &n.agent)
            .collect::<Vec<_>>(),
    );
    assert!(
        sim.delivered == wanted,
        "seed {seed}: other bytes\n{}",
        sim.stories(graph.tasks.len())
    );
    for node in &sim.nodes {
        assert!(
            node.ended || !node.alive,
            "seed {seed}: an agent was not told of the end"
        );
    }
    sim.deaths
}

#[test]
fn whatever_happens_the_bytes_are_the_same() {
    let (first, count) = match std::env::var("SVDJOB_SIM_SEED") {
        Ok(seed) => (seed.parse().expect("a number"), 1),
        Err(_) => (0, 3000),
    };
    let deaths: usize = (first..first + count).map(simulate).sum();
    assert!(
        count == 1 || deaths > 1000,
        "only {deaths} deaths: this tests little"
    );
}
