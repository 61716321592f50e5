//! What is to be done again when an agent is lost: everything that it alone had and that somebody still needs, and
//! whatever that needs in turn.
//!
//! A partial sum is lost whole. The contributions that were in it are added again elsewhere; the partial sums of others
//! stay as they are. Since a reader adds only disjoint sets that cover all, no contribution can count twice.
//!
//! A run begins as if all of the plan had been done and lost, and so does what a plan grows by: see [`super::growth`].

use std::sync::Arc;

use rustc_hash::FxHashSet;
use shared::farm::{
    graph::{Input, Output},
    ids::{AccumulatorId, AgentId, TaskId},
    moment::Moment,
};

use super::{Keep, Scheduler, State, Transition, story::Recall};

/// What is being undone: tasks still to look at, and whose readers have to be counted anew.
#[derive(Default)]
pub(super) struct Undoing {
    pub tasks: Vec<TaskId>,
    /// From this one on, tasks have never been done.
    new: Option<TaskId>,
    touched: FxHashSet<TaskId>,
    touched_sums: FxHashSet<AccumulatorId>,
    /// With whom it was lost.
    with: AgentId,
}

impl Undoing {
    pub fn of_new(first: TaskId) -> Self {
        Self {
            new: Some(first),
            ..Self::default()
        }
    }

    fn lost_with(agent: AgentId) -> Self {
        Self {
            with: agent,
            ..Self::default()
        }
    }
}

impl<W: Clone> Scheduler<W> {
    /// The agent is no longer counted on. Whoever calls says what becomes of it.
    pub(super) fn write_off(&mut self, now: Moment, agent: AgentId) {
        let recalls = self.readers_from(agent);
        self.forget_link(agent);
        let row = &mut self.agents[agent.0 as usize];
        row.assignments.clear();
        row.take_drops();
        row.surveyed = false;
        let queue: Vec<TaskId> = row.queue.iter().copied().collect();
        let holds = std::mem::take(&mut row.holds);
        for task in queue {
            self.story.tell(now, task, Transition::Lost(agent));
            self.give_up(agent, task);
            self.settle_if_waiting(now, task);
        }
        let mut undoing = Undoing::lost_with(agent);
        for task in holds {
            let row = &mut self.tasks[task.0 as usize];
            if row.holder != Some(agent) {
                continue;
            }
            row.holder = None;
            let needed = match self.graph.tasks[task.0 as usize].output {
                Output::Block { .. } => row.readers_left > 0 && row.keep != Keep::Kept,
                Output::Fold { accumulator, .. } => {
                    self.sums[accumulator.0 as usize].readers_left > 0
                }
            };
            if needed {
                undoing.tasks.push(task);
            }
        }
        for sum in &mut self.sums {
            sum.holders.remove(&agent);
        }
        self.undo_all(now, undoing);
        for (agent, tasks) in recalls {
            self.recall(now, agent, &tasks, Recall::HolderLost);
        }
        self.population_changed();
        let home: Vec<TaskId> = self.agents[agent.0 as usize].home.iter().copied().collect();
        for task in home {
            self.unshelve(task);
            self.shelve(task);
        }
    }

    /// A block that was in the spool is not there after all.
    pub(super) fn not_kept(&mut self, now: Moment, task: TaskId) {
        let Some(row) = self.tasks.get_mut(task.0 as usize) else {
            return;
        };
        match row.keep {
            Keep::Kept => {}
            Keep::No | Keep::Wanted => return,
        }
        row.keep = Keep::No;
        if let Some(c) = self.tables.checkpoint_of(task.0) {
            self.checkpoints[c].left += 1;
        }
        let row = &self.tasks[task.0 as usize];
        if row.state == State::Done && row.holder.is_none() && row.readers_left > 0 {
            let mut undoing = Undoing::lost_with(AgentId::COORDINATOR);
            undoing.tasks.push(task);
            self.undo_all(now, undoing);
        }
    }

    /// Tasks given to others that were told to fetch from this agent.
    fn readers_from(&self, lost: AgentId) -> Vec<(AgentId, Vec<TaskId>)> {
        let mut tasks = FxHashSet::default();
        for held in &self.agents[lost.0 as usize].holds {
            if self.tasks[held.0 as usize].holder == Some(lost) {
                tasks.extend(self.tables.result_readers(held.0).iter().copied());
            }
        }
        for (id, sum) in self.sums.iter().enumerate() {
            if sum.holders.contains_key(&lost) {
                tasks.extend(self.tables.sum_readers(id as u32).iter().copied());
            }
        }
        let mut tasks: Vec<u32> = tasks.into_iter().collect();
        tasks.sort_unstable();
        let mut recalls = std::collections::BTreeMap::<AgentId, Vec<TaskId>>::new();
        for task in tasks.into_iter().map(TaskId) {
            match self.tasks[task.0 as usize].state {
                State::Assigned { agent, .. } if agent != lost => {
                    recalls.entry(agent).or_default().push(task);
                }
                State::Assigned { .. } | State::Waiting | State::Ready | State::Done => {}
            }
            if let Some(twin) = self.twins.get(&task).filter(|t| t.agent != lost) {
                recalls.entry(twin.agent).or_default().push(task);
            }
        }
        recalls.into_iter().collect()
    }

    pub(super) fn undo_all(&mut self, now: Moment, mut undoing: Undoing) {
        while let Some(task) = undoing.tasks.pop() {
            self.undo(now, task, &mut undoing);
        }
        let mut touched: Vec<u32> = Vec::new();
        for task in &undoing.touched {
            touched.push(task.0);
            touched.extend(self.tables.result_readers(task.0));
        }
        for sum in &undoing.touched_sums {
            touched.extend(self.tables.sum_readers(sum.0));
        }
        touched.sort_unstable();
        touched.dedup();
        for task in touched.into_iter().map(TaskId) {
            match self.tasks[task.0 as usize].state {
                State::Waiting => self.settle(now, task),
                State::Ready => {
                    let mut inputs = self.graph.tasks[task.0 as usize].inputs.iter();
                    if !inputs.all(|i| self.exists(i)) {
                        self.unshelve(task);
                        self.tasks[task.0 as usize].state = State::Waiting;
                        self.settle(now, task);
                    }
                }
                State::Assigned { .. } | State::Done => {}
            }
        }
    }

    /// A task that was done has to be done again, and so does whatever it reads that is gone.
    fn undo(&mut self, now: Moment, task: TaskId, undoing: &mut Undoing) {
        let row = &mut self.tasks[task.0 as usize];
        match row.state {
            State::Done => {}
            State::Waiting | State::Ready | State::Assigned { .. } => return,
        }
        row.state = State::Waiting;
        self.not_done += 1;
        undoing.touched.insert(task);
        if undoing.new.is_none_or(|new| task < new) {
            self.story.tell(now, task, Transition::Undone(undoing.with));
        }
        let graph = Arc::clone(&self.graph);
        let spec = &graph.tasks[task.0 as usize];
        self.stages[spec.stage as usize].undone(spec.cost);
        match spec.output {
            Output::Block { .. } => {}
            Output::Fold { accumulator, .. } => {
                let sum = &mut self.sums[accumulator.0 as usize];
                sum.folds_left += 1;
                sum.dropped = false;
                undoing.touched_sums.insert(accumulator);
            }
        }
        for input in &spec.inputs {
            match *input {
                Input::Block { .. } => {}
                Input::Result { task, .. } => {
                    self.tasks[task.0 as usize].readers_left += 1;
                    if !self.exists(input) {
                        undoing.tasks.push(task);
                    }
                }
                Input::Fold { accumulator, .. } => self.revive(accumulator, undoing),
            }
        }
    }

    /// A sum is needed again: every contribution that is in nobody's partial sum has to be.
    fn revive(&mut self, id: AccumulatorId, undoing: &mut Undoing) {
        let sum = &mut self.sums[id.0 as usize];
        sum.readers_left += 1;
        sum.dropped = false;
        // While it had readers, what was lost of it was undone at once.
        if sum.readers_left > 1 {
            return;
        }
        for &task in self.tables.sum_folders(id.0) {
            if self.tasks[task as usize].holder.is_none() {
                undoing.tasks.push(TaskId(task));
            }
        }
    }
}
