//! What is to be done again when an agent is lost: everything that it alone had and that somebody still needs, and
//! whatever that needs in turn.
//!
//! A partial sum is lost whole. The contributions that were in it are added again elsewhere; the partial sums of others
//! stay as they are. Since a reader adds only disjoint sets that cover all, no contribution can count twice.

use shared::farm::{
    graph::{Input, Output},
    ids::{AccumulatorId, AgentId, TaskId},
    moment::Moment,
};

use super::{Scheduler, State, Transition};

impl<W: Clone> Scheduler<'_, W> {
    pub(super) fn lost(&mut self, now: Moment, agent: AgentId) {
        if !self.is_alive(agent) {
            return;
        }
        let recalls = self.readers_from(agent);
        let row = &mut self.agents[agent.0 as usize];
        row.alive = false;
        row.assignments.clear();
        let queue = row.queue.clone();
        let home = std::mem::take(&mut row.home);
        self.ready.extend(home);
        for task in queue {
            self.story.tell(now, task, Transition::Lost(agent));
            self.unassign(agent, task);
        }
        let mut undo = Vec::new();
        for (index, row) in self.tasks.iter_mut().enumerate() {
            if row.holder == Some(agent) {
                row.holder = None;
                let needed = match self.graph.tasks[index].output {
                    Output::Block { .. } => row.readers_left > 0,
                    Output::Fold { accumulator, .. } => {
                        self.sums[accumulator.0 as usize].readers_left > 0
                    }
                };
                if needed {
                    undo.push(TaskId(index as u32));
                }
            }
        }
        for sum in &mut self.sums {
            sum.holders.remove(&agent);
        }
        while let Some(task) = undo.pop() {
            self.undo(now, task, &mut undo);
        }
        self.recount(now);
        for (agent, tasks) in recalls {
            self.recall(now, agent, &tasks);
        }
    }

    /// Tasks given to others that were told to fetch from this agent.
    fn readers_from(&self, lost: AgentId) -> Vec<(AgentId, Vec<TaskId>)> {
        let mut recalls = Vec::new();
        for agent in self.alive() {
            if agent == lost {
                continue;
            }
            let queue = self.agents[agent.0 as usize].queue.iter().copied();
            let tasks: Vec<TaskId> = queue
                .filter(|t| {
                    let mut inputs = self.graph.tasks[t.0 as usize].inputs.iter();
                    inputs.any(|input| match input {
                        Input::Block { .. } => false,
                        Input::Result { task, .. } => {
                            self.tasks[task.0 as usize].holder == Some(lost)
                        }
                        Input::Fold { accumulator, .. } => self.sums[accumulator.0 as usize]
                            .holders
                            .contains_key(&lost),
                    })
                })
                .collect();
            if !tasks.is_empty() {
                recalls.push((agent, tasks));
            }
        }
        recalls
    }

    /// A task that was done has to be done again, and so does whatever it reads that is gone.
    fn undo(&mut self, now: Moment, task: TaskId, more: &mut Vec<TaskId>) {
        let row = &mut self.tasks[task.0 as usize];
        match row.state {
            State::Done => {}
            State::Waiting | State::Ready | State::Assigned { .. } => return,
        }
        row.state = State::Waiting;
        self.not_done += 1;
        self.story.tell(now, task, Transition::Undone);
        let graph = self.graph;
        let spec = &graph.tasks[task.0 as usize];
        self.stages[spec.stage as usize].undone(spec.cost);
        match spec.output {
            Output::Block { .. } => {}
            Output::Fold { accumulator, .. } => self.sums[accumulator.0 as usize].folds_left += 1,
        }
        for input in &spec.inputs {
            match *input {
                Input::Block { .. } => {}
                Input::Result { task, .. } => {
                    let row = &mut self.tasks[task.0 as usize];
                    row.readers_left += 1;
                    if row.holder.is_none() {
                        more.push(task);
                    }
                }
                Input::Fold { accumulator, .. } => self.revive(accumulator, more),
            }
        }
    }

    /// A sum is needed again: every contribution that is in nobody's partial sum has to be.
    fn revive(&mut self, id: AccumulatorId, more: &mut Vec<TaskId>) {
        let sum = &mut self.sums[id.0 as usize];
        sum.readers_left += 1;
        sum.dropped = false;
        for &task in self.tables.sum_folders(id.0) {
            if self.tasks[task as usize].holder.is_none() {
                more.push(TaskId(task));
            }
        }
    }

    /// Counts anew what every task misses that is not with an agent.
    fn recount(&mut self, now: Moment) {
        for index in 0..self.tasks.len() {
            let task = TaskId(index as u32);
            match self.tasks[index].state {
                State::Waiting => self.settle(now, task),
                State::Ready => {
                    let mut inputs = self.graph.tasks[index].inputs.iter();
                    if !inputs.all(|i| self.exists(i)) {
                        self.ready.remove(&task);
                        for agent in &mut self.agents {
                            agent.home.remove(&task);
                        }
                        self.tasks[index].state = State::Waiting;
                        self.settle(now, task);
                    }
                }
                State::Assigned { .. } | State::Done => {}
            }
        }
    }
}
