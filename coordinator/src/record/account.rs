//! What a stage was like, from the story of its tasks.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use shared::farm::ids::{AgentId, TaskId};

use super::{Idle, Share, StageEntry, Wait, Why, write::Batch};
use crate::scheduler::{Transition, Turn, Waited};

/// Long waits that are told of a stage.
const LONGEST_MAX: usize = 5;

/// One agent's life: since when it is there and serves, and until when it did before.
#[derive(Debug, Default)]
struct Life {
    cores: u16,
    serves_since: Option<u64>,
    served: Vec<(u64, u64)>,
    /// Tasks that it has done, as long as a stage that is not over may ask for them.
    done: Vec<(u16, Waited)>,
}

impl Life {
    /// Times at which it served, between two moments.
    fn present(&self, began: u64, ended: u64) -> Vec<(u64, u64)> {
        let now = self.serves_since.map(|since| (since, ended));
        let all = self.served.iter().copied().chain(now);
        all.map(|(a, b)| (a.max(began), b.min(ended)))
            .filter(|(a, b)| a < b)
            .collect()
    }
}

#[derive(Debug, Default)]
struct Stage {
    taken: u64,
    recalled: u64,
    returned: u64,
    doubled: u64,
    redone: BTreeMap<AgentId, u64>,
    tasks: BTreeMap<AgentId, (u64, u64)>,
    longest: Vec<Wait>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Account {
    agents: BTreeMap<AgentId, Life>,
    stages: BTreeMap<u16, Stage>,
    /// Since when tasks are ready, and how long they were before they were given to somebody.
    ready: HashMap<TaskId, u64>,
    /// Stages that something has happened to since they were last told of.
    touched: BTreeSet<u16>,
    /// Times at which nobody served.
    nobody: Vec<(u64, u64)>,
    nobody_since: Option<u64>,
}

fn common(a: (u64, u64), b: (u64, u64)) -> u64 {
    a.1.min(b.1).saturating_sub(a.0.max(b.0))
}

impl Account {
    pub fn new() -> Self {
        Self {
            nobody_since: Some(0),
            ..Self::default()
        }
    }

    pub fn read(&mut self, batch: &Batch) {
        for line in &batch.chapter.turns {
            let (at, life) = (line.at.0, self.agents.entry(line.agent).or_default());
            match line.what {
                Turn::Hello { cores, .. } => life.cores = cores,
                Turn::Serves { .. } => {
                    life.serves_since.get_or_insert(at);
                    if let Some(since) = self.nobody_since.take() {
                        self.nobody.push((since, at));
                    }
                }
                Turn::Silent { .. } | Turn::Shunned { .. } | Turn::Ended | Turn::GivenUp { .. } => {
                    if let Some(since) = life.serves_since.take() {
                        life.served.push((since, at));
                    }
                    if self.agents.values().all(|a| a.serves_since.is_none()) {
                        self.nobody_since.get_or_insert(at);
                    }
                }
                Turn::SlowLink { .. } | Turn::LinkAgain => {}
            }
        }
        for line in &batch.chapter.lines {
            let (number, verb) = (batch.about)(line.task);
            let at = line.at.0;
            self.touched.insert(number);
            let stage = self.stages.entry(number).or_default();
            match line.what {
                Transition::Ready => {
                    self.ready.insert(line.task, at);
                }
                Transition::Assigned(agent) => {
                    if let Some(since) = self.ready.remove(&line.task) {
                        let gaps = self.nobody.iter().copied();
                        let none: u64 = gaps.map(|gap| common(gap, (since, at))).sum();
                        let why = if 2 * none > at - since {
                            Why::Nobody
                        } else {
                            Why::Busy
                        };
                        stage.long(line.task, verb, agent, at - since, why);
                    }
                }
                Transition::Taken(_) => stage.taken += 1,
                Transition::Recalled(..) => stage.recalled += 1,
                Transition::Returned(_) => stage.returned += 1,
                Transition::Doubled(_) => stage.doubled += 1,
                Transition::Lost(agent) | Transition::Undone(agent) => {
                    *stage.redone.entry(agent).or_default() += 1;
                }
                Transition::Done(_)
                | Transition::Delivered(_)
                | Transition::Failed(_)
                | Transition::Kept => {}
            }
        }
        for waited in &batch.chapter.waited {
            let (number, verb) = (batch.about)(waited.task);
            let stage = self.stages.entry(number).or_default();
            let sum = stage.tasks.entry(waited.agent).or_default();
            sum.0 += 1;
            sum.1 += u64::from(waited.took_us);
            let waits = waited.waits;
            for (us, why) in [
                (waits.room_us, Why::Room),
                (waits.inputs_us, Why::Inputs(waits.last_from)),
                (waits.core_us, Why::Core),
            ] {
                stage.long(waited.task, verb, waited.agent, u64::from(us), why);
            }
            let life = self.agents.entry(waited.agent).or_default();
            life.done.push((number, *waited));
        }
    }

    /// Those stages that something has happened to.
    pub fn tell(&mut self, batch: &Batch) -> Vec<StageEntry> {
        let touched = std::mem::take(&mut self.touched);
        let told = touched.iter().filter_map(|n| self.stage(*n, batch));
        let told = told.collect();
        let open = batch.stages.iter().filter(|s| !s.is_done());
        let first = open.filter_map(|s| s.began).min();
        let first = first.map_or(batch.now.0, |at| at.0);
        for life in self.agents.values_mut() {
            life.done.retain(|(_, waited)| waited.at.0 >= first);
        }
        told
    }

    fn stage(&self, number: u16, batch: &Batch) -> Option<StageEntry> {
        let progress = batch.stages.get(number as usize)?;
        let stage = self.stages.get(&number)?;
        let began = progress.began?.0;
        let ended = match progress.ended {
            Some(ended) if progress.is_done() => ended.0,
            Some(_) | None => batch.now.0,
        };
        let agents = self.agents.iter().filter_map(|(agent, life)| {
            let (tasks, busy_us) = stage.tasks.get(agent).copied().unwrap_or_default();
            let there = !life.present(began, ended).is_empty();
            (there || tasks > 0).then(|| {
                let (other_us, idle) = idle(life, number, began, ended);
                Share {
                    agent: *agent,
                    cores: life.cores,
                    tasks,
                    busy_us,
                    other_us,
                    idle,
                }
            })
        });
        Some(StageEntry {
            stage: number,
            name: progress.name.clone(),
            began,
            ended,
            tasks: progress.tasks,
            done: progress.tasks_done,
            agents: agents.collect(),
            taken: stage.taken,
            recalled: stage.recalled,
            returned: stage.returned,
            doubled: stage.doubled,
            redone: stage.redone.iter().map(|(a, n)| (*a, *n)).collect(),
            longest: stage.longest.clone(),
            links: batch.traffic.of(number),
        })
    }
}

impl Stage {
    fn long(&mut self, task: TaskId, verb: &str, agent: AgentId, us: u64, why: Why) {
        let least = self.longest.last().map_or(0, |wait| wait.us);
        if us == 0 || (self.longest.len() >= LONGEST_MAX && us <= least) {
            return;
        }
        let at = self.longest.partition_point(|wait| wait.us >= us);
        let verb = verb.to_owned();
        let wait = Wait {
            task,
            verb,
            agent,
            us,
            why,
        };
        self.longest.insert(at, wait);
        self.longest.truncate(LONGEST_MAX);
    }
}

/// Time of an agent's cores for other stages, and idle, between two moments. Sweeps over what it has done, laid out
/// backwards from the moment at which that was heard of.
fn idle(life: &Life, stage: u16, began: u64, ended: u64) -> (u64, Idle) {
    const RUN: usize = 0;
    const INPUTS: usize = 1;
    const ROOM: usize = 2;
    const PRESENT: usize = 3;
    let mut changes: Vec<(u64, usize, i64)> = Vec::new();
    let mut span = |kind: usize, from: u64, to: u64| {
        let (from, to) = (from.max(began), to.min(ended));
        if from < to {
            changes.push((from, kind, 1));
            changes.push((to, kind, -1));
        }
    };
    let mut other_us = 0;
    let mut senders = BTreeMap::<AgentId, u64>::new();
    for (of, waited) in &life.done {
        let end = waited.at.0;
        let run = end.saturating_sub(u64::from(waited.took_us));
        let inputs = run.saturating_sub(u64::from(waited.waits.core_us));
        let room = inputs.saturating_sub(u64::from(waited.waits.inputs_us));
        let start = room.saturating_sub(u64::from(waited.waits.room_us));
        span(RUN, run, end);
        span(INPUTS, room, inputs);
        span(ROOM, start, room);
        if *of != stage {
            other_us += common((run, end), (began, ended));
        }
        if let Some(from) = waited.waits.last_from {
            *senders.entry(from).or_default() += common((room, inputs), (began, ended));
        }
    }
    for (from, to) in life.present(began, ended) {
        span(PRESENT, from, to);
    }
    changes.sort_unstable();
    let sender = senders.into_iter().max_by_key(|(_, us)| *us);
    let mut idle = Idle {
        inputs_from: sender.filter(|(_, us)| *us > 0).map(|(from, _)| from),
        ..Idle::default()
    };
    let mut counts = [0_i64; 4];
    let mut at = began;
    for (moment, kind, by) in changes.into_iter().chain([(ended, PRESENT, 0)]) {
        let free = (i64::from(life.cores) - counts[RUN]).max(0) as u64;
        let us = free * (moment - at);
        let reason = if counts[PRESENT] == 0 {
            &mut idle.absent_us
        } else if counts[INPUTS] > 0 {
            &mut idle.inputs_us
        } else if counts[ROOM] > 0 {
            &mut idle.room_us
        } else {
            &mut idle.nothing_us
        };
        *reason += us;
        counts[kind] += by;
        at = moment;
    }
    (other_us, idle)
}
