//! How far the stages are.

use shared::farm::{graph::Graph, moment::Moment};

/// One stage, as people are shown it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct StageProgress {
    pub name: String,
    pub tasks: u64,
    pub tasks_done: u64,
    pub cost: u64,
    pub cost_done: u64,
    /// Of tasks that were run; what an earlier run has kept is not among them, what was run twice counts twice.
    pub cost_run: u64,
    /// Summed over tasks.
    pub busy_us: u64,
    /// When its first task was given out, and when its last one was done.
    pub began: Option<Moment>,
    pub ended: Option<Moment>,
}

impl StageProgress {
    /// From the first task given out to the last one done.
    pub fn wall_us(&self) -> u64 {
        match (self.began, self.ended) {
            (Some(began), Some(ended)) => ended.since(began),
            (None, _) | (_, None) => 0,
        }
    }

    pub fn is_done(&self) -> bool {
        self.tasks_done == self.tasks
    }

    pub(super) fn began(&mut self, now: Moment) {
        self.began.get_or_insert(now);
    }

    pub(super) fn finished(&mut self, now: Moment, cost: u64, took_us: u32) {
        self.tasks_done += 1;
        self.cost_done += cost;
        self.cost_run += cost;
        self.busy_us += u64::from(took_us);
        self.ended = Some(now);
    }

    pub(super) fn undone(&mut self, cost: u64) {
        self.tasks_done -= 1;
        self.cost_done -= cost;
    }
}

/// Adds the stages and tasks that `graph` has beyond `stages` and the first `known` tasks, all of them done.
pub(super) fn extend<W>(stages: &mut Vec<StageProgress>, known: usize, graph: &Graph<W>) {
    let names = graph.stages.iter().skip(stages.len());
    stages.extend(names.map(|name| StageProgress {
        name: name.clone(),
        ..StageProgress::default()
    }));
    for task in &graph.tasks[known..] {
        let stage = &mut stages[task.stage as usize];
        stage.tasks += 1;
        stage.cost += task.cost;
        stage.tasks_done += 1;
        stage.cost_done += task.cost;
    }
}

/// How far a run is.
#[derive(Clone, PartialEq, Debug)]
pub struct Progress {
    pub elapsed_us: u64,
    pub stages: Vec<StageProgress>,
    /// Read from the cache, by all agents.
    pub loaded_bytes: u64,
    /// In memory, by all agents' own counting.
    pub tracked_bytes: u64,
    pub agents: usize,
}

impl<W: Clone> super::Scheduler<W> {
    pub fn stages(&self) -> &[StageProgress] {
        &self.stages
    }

    pub fn progress(&self, now: Moment) -> Progress {
        Progress {
            elapsed_us: now.0,
            stages: self.stages.clone(),
            loaded_bytes: self.statuses().map(|s| s.loaded_bytes).sum(),
            tracked_bytes: self.statuses().map(|s| s.tracked_bytes).sum(),
            agents: self.agents_alive(),
        }
    }
}
