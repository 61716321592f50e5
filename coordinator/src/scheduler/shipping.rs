//! What shipping costs: how fast the link of each agent is, as measured by what came over it, and what follows from that.
//!
//! A link that is much slower than the best one makes its agent *slow*: it is given only what takes longer to compute than
//! to ship, beyond what shipping takes to the others; and no home, if a stage would be over before what all of its tasks
//! read is there. After a while its link counts as unknown again and is tried anew, ever more seldom.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::FxHashSet;
use shared::farm::{
    graph::{Input, Output},
    ids::{AgentId, TaskId},
    message::Received,
    moment::Moment,
};

use super::{Scheduler, State, story::Recall, story::Turn, tables};

/// What a link carries until it is known better: 100 MB/s.
const BYTES_PER_US: f64 = 100.0;
/// So much has to come over a link before it tells a rate.
const WINDOW_BYTES: u64 = 256 << 10;
/// A link is slow if the best one is so much faster, and if it is slower than so much: faster ones hold nobody up, and what
/// is measured of them wavers with the load of the machines.
const SLOW_RATIO: f64 = 4.0;
const SLOW_BYTES_PER_US: f64 = 25.0;
/// When a slow link is tried again, the first time; twice as long each time.
const AGAIN_US: u64 = 20_000_000;
const AGAIN_DOUBLINGS: u32 = 6;
/// Differences below this are not worth a thought.
const IGNORED_US: f64 = 1_000.0;

/// What is being counted of one link, and its rate.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    bytes: u64,
    us: u64,
    /// Bytes per microsecond.
    rate: Option<f64>,
}

/// What is known of an agent's link.
#[derive(Clone, Debug, Default)]
pub(super) struct Link {
    /// By sender.
    from: BTreeMap<AgentId, Window>,
    /// It is slow until then; how often it was.
    slow_until: Option<Moment>,
    slow_times: u32,
    /// Bytes that assigned tasks wait for, where there are any.
    pub coming: BTreeMap<TaskId, u64>,
}

impl Link {
    fn count(&mut self, received: &Received) {
        let window = self.from.entry(received.from).or_default();
        window.bytes += received.bytes;
        window.us += received.us;
        if window.bytes < WINDOW_BYTES {
            return;
        }
        let new = window.bytes as f64 / window.us.max(1) as f64;
        // Whatever else goes on makes a link look slower, never faster.
        window.rate = Some(match window.rate {
            Some(old) if old > new => 0.75 * old + 0.25 * new,
            Some(_) | None => new,
        });
        window.bytes = 0;
        window.us = 0;
    }

    /// Over the best of its links.
    fn rate(&self) -> Option<f64> {
        let rates = self.from.values().filter_map(|window| window.rate);
        rates.max_by(f64::total_cmp)
    }

    pub fn is_slow(&self) -> bool {
        self.slow_until.is_some()
    }
}

/// Agents with slow links.
#[derive(Clone, Debug, Default)]
pub(super) struct Slow {
    agents: BTreeSet<AgentId>,
}

impl Slow {
    pub fn is_empty(&self) -> bool {
        self.agents.is_empty()
    }

    pub fn contains(&self, agent: AgentId) -> bool {
        self.agents.contains(&agent)
    }
}

impl<W: Clone> Scheduler<W> {
    /// Bytes per microsecond that an agent's link is known or believed to carry.
    pub(super) fn ship_rate(&self, agent: AgentId) -> f64 {
        let rate = self.agents[agent.0 as usize].link.rate();
        rate.unwrap_or(BYTES_PER_US)
    }

    /// Of the best link of those that are given work.
    pub(super) fn best_ship_rate(&self) -> f64 {
        let serving = self.agents.iter().filter(|row| self.serves(row));
        serving
            .map(|row| row.link.rate().unwrap_or(BYTES_PER_US))
            .max_by(f64::total_cmp)
            .unwrap_or(BYTES_PER_US)
    }

    /// What has come over an agent's links.
    pub(super) fn received(&mut self, now: Moment, agent: AgentId, received: &[Received]) {
        let link = &mut self.agents[agent.0 as usize].link;
        let before = link.rate();
        for received in received {
            link.count(received);
        }
        let Some(rate) = link.rate().filter(|rate| Some(*rate) != before) else {
            return;
        };
        if self.is_slow(rate) && !self.slow.contains(agent) {
            self.make_slow(now, agent, rate);
        }
        // What is slow depends on what the others are.
        let fine = |a: &AgentId| !self.is_slow(self.ship_rate(*a));
        let fine: Vec<AgentId> = self.slow.agents.iter().copied().filter(fine).collect();
        for agent in fine {
            self.try_again(now, agent);
        }
    }

    fn is_slow(&self, rate: f64) -> bool {
        rate < SLOW_BYTES_PER_US && rate * SLOW_RATIO < self.best_ship_rate()
    }

    /// An agent has waited so long for what a task reads, and it is not there: its link carries no more than that. Whether
    /// that is slow.
    pub(super) fn suspect_link(&mut self, now: Moment, agent: AgentId, task: TaskId, us: f64) {
        let link = &self.agents[agent.0 as usize].link;
        let Some(&bytes) = link.coming.get(&task) else {
            return;
        };
        let most = bytes as f64 / us.max(1.0);
        if link.is_slow() || link.rate().is_some_and(|rate| rate <= most) || !self.is_slow(most) {
            return;
        }
        let link = &mut self.agents[agent.0 as usize].link;
        let window = Window {
            rate: Some(most),
            ..Window::default()
        };
        link.from = BTreeMap::from([(AgentId::COORDINATOR, window)]);
        self.make_slow(now, agent, most);
    }

    /// What it has not begun goes to others.
    fn make_slow(&mut self, now: Moment, agent: AgentId, rate: f64) {
        let link = &mut self.agents[agent.0 as usize].link;
        link.slow_until = Some(now + (AGAIN_US << link.slow_times.min(AGAIN_DOUBLINGS)));
        link.slow_times += 1;
        self.slow.agents.insert(agent);
        self.replan = true;
        let bytes_per_s = (rate * 1e6) as u64;
        self.story
            .tell_turn(now, agent, Turn::SlowLink { bytes_per_s });
        // What it was sent it has only once the task is done.
        let row = &mut self.agents[agent.0 as usize];
        for &task in row.link.coming.keys() {
            if let Some(block) = self.tables.block_of(task.0) {
                row.has.remove(block);
            }
        }
        let queue = self.agents[agent.0 as usize].queue.iter().copied();
        let given: Vec<TaskId> = queue
            .filter(|task| match self.tasks[task.0 as usize].state {
                State::Assigned {
                    agent: a, recalled, ..
                } => a == agent && !recalled && !self.pays(agent, *task),
                State::Waiting | State::Ready | State::Done => false,
            })
            .collect();
        if !given.is_empty() {
            self.recall(now, agent, &given, Recall::SlowLink);
        }
        let home: Vec<TaskId> = self.agents[agent.0 as usize].home.iter().copied().collect();
        for task in home {
            self.unshelve(task);
            self.shelve(task);
        }
    }

    fn try_again(&mut self, now: Moment, agent: AgentId) {
        self.agents[agent.0 as usize].link.slow_until = None;
        self.slow.agents.remove(&agent);
        self.replan = true;
        self.story.tell_turn(now, agent, Turn::LinkAgain);
        self.refile(agent);
    }

    /// The next moment at which a slow link is tried again.
    pub(super) fn next_link_again(&self) -> Option<Moment> {
        let slow = self.slow.agents.iter();
        slow.filter_map(|a| self.agents[a.0 as usize].link.slow_until)
            .min()
    }

    /// Tries slow links again whose time has come.
    pub(super) fn watch_links(&mut self, now: Moment) {
        let due = |a: &AgentId| {
            let until = self.agents[a.0 as usize].link.slow_until;
            until.is_some_and(|at| at <= now)
        };
        let due: Vec<AgentId> = self.slow.agents.iter().copied().filter(due).collect();
        for agent in due {
            self.agents[agent.0 as usize].link.from.clear();
            self.try_again(now, agent);
        }
    }

    /// An agent that is gone has no link.
    pub(super) fn forget_link(&mut self, agent: AgentId) {
        self.slow.agents.remove(&agent);
        let link = &mut self.agents[agent.0 as usize].link;
        link.slow_until = None;
        link.from.clear();
        link.coming.clear();
    }

    /// Bytes of results and of an input block that have to come to an agent before it can do a task.
    pub(super) fn ship_bytes(&self, agent: AgentId, task: TaskId) -> u64 {
        let block = self.tables.block_of(task.0);
        let inputs = self.graph.tasks[task.0 as usize].inputs.iter();
        inputs
            .map(|input| match *input {
                Input::Block { bytes, .. } => {
                    let here =
                        block.is_none_or(|block| self.agents[agent.0 as usize].has.contains(block));
                    if here { 0 } else { bytes }
                }
                Input::Result { task, .. } if self.holder_of(task) == Some(agent) => 0,
                Input::Result { .. } | Input::Fold { .. } => self.input_bytes(input),
            })
            .sum()
    }

    /// Time until an input block, or what else a task reads, has come to an agent.
    pub(super) fn ship_us(&self, agent: AgentId, task: TaskId) -> f64 {
        let bytes = match self.tables.block_of(task.0) {
            Some(block) if self.agents[agent.0 as usize].has.contains(block) => 0,
            Some(block) => self.tables.input_bytes[block as usize],
            None => {
                let inputs = self.graph.tasks[task.0 as usize].inputs.iter();
                inputs
                    .map(|input| match *input {
                        Input::Result { task, range } => {
                            range.map_or_else(|| self.block_bytes(task), |(start, end)| end - start)
                        }
                        Input::Block { .. } | Input::Fold { .. } => 0,
                    })
                    .sum()
            }
        };
        bytes as f64 / self.ship_rate(agent)
    }

    /// What shipping takes longer to a slow agent than to the others, for so many bytes.
    fn extra_us(&self, agent: AgentId, bytes: u64) -> f64 {
        bytes as f64 * (1.0 / self.ship_rate(agent) - 1.0 / self.best_ship_rate())
    }

    /// Time of a task, by those of its stage that are done.
    pub(super) fn expected_us(&self, task: TaskId) -> Option<f64> {
        let spec = &self.graph.tasks[task.0 as usize];
        let stage = &self.stages[spec.stage as usize];
        (stage.busy_us > 0)
            .then(|| stage.busy_us as f64 / stage.cost_run.max(1) as f64 * spec.cost as f64)
    }

    /// Whether a task gains more by being done there than shipping what it reads and yields costs. Where nothing is slow, it
    /// does.
    pub(super) fn pays(&self, agent: AgentId, task: TaskId) -> bool {
        if !self.slow.contains(agent) {
            return true;
        }
        let yields = match self.graph.tasks[task.0 as usize].output {
            Output::Block { bytes } => bytes,
            Output::Fold {
                accumulator, parts, ..
            } => {
                let shape = &self.graph.accumulators[accumulator.0 as usize];
                (parts.0..parts.1)
                    .map(|part| 8 * shape.part_len(part) as u64)
                    .sum()
            }
        };
        let extra = self.extra_us(agent, self.ship_bytes(agent, task) + yields);
        extra <= IGNORED_US.max(self.expected_us(task).unwrap_or(0.0))
    }

    /// The share of a stage in which a slow agent could work, when everything that each of the tasks there reads and yields
    /// has been shipped first: 1 for those that are not slow. `us`: what the stage takes without it, if that is known.
    pub(super) fn time_left(&self, agent: AgentId, us: Option<f64>) -> f64 {
        if !self.slow.contains(agent) {
            return 1.0;
        }
        let (Some(us), Some(stage), Some(&block)) =
            (us, self.planned_stage, self.tables.homed.first())
        else {
            return 0.0;
        };
        // What is not cut by blocks: every home needs all of it.
        let mut seen = FxHashSet::default();
        let mut sums = FxHashSet::default();
        let mut bytes = 0;
        for &task in self.tables.block_readers(block) {
            let spec = &self.graph.tasks[task as usize];
            if spec.stage != stage {
                continue;
            }
            for input in &spec.inputs {
                match *input {
                    Input::Result { task, range } if seen.insert(tables::name(input)) => {
                        bytes += range
                            .map_or_else(|| self.block_bytes(task), |(start, end)| end - start);
                    }
                    Input::Result { .. } | Input::Block { .. } | Input::Fold { .. } => {}
                }
            }
            match spec.output {
                Output::Fold {
                    accumulator, parts, ..
                } => {
                    let shape = &self.graph.accumulators[accumulator.0 as usize];
                    for part in parts.0..parts.1 {
                        if sums.insert((accumulator, part)) {
                            bytes += 8 * shape.part_len(part) as u64;
                        }
                    }
                }
                Output::Block { .. } => {}
            }
        }
        let left = 1.0 - self.extra_us(agent, bytes) / us.max(1.0);
        if left < 0.5 { 0.0 } else { left }
    }

    fn holder_of(&self, task: TaskId) -> Option<AgentId> {
        self.tasks[task.0 as usize].holder
    }
}
