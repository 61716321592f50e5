//! How a graph comes in, at the beginning and each time that it grows.
//!
//! What is new comes in as if all of it had been done and lost: what the deliveries, the checkpoints and what is held need
//! of it, beyond what exists or a run before has kept, is to be done. So beginning, growing, going on after a kill, and
//! recovering from a loss are one mechanism.

use std::{collections::BTreeMap, sync::Arc};

use shared::farm::{
    graph::{Graph, Input, Output},
    ids::{AgentId, TaskId},
    message::{LATER, ToAgent},
    moment::Moment,
};

use super::{
    CheckpointRow, Keep, Row, Scheduler, Shelf, State, Sum, Transition, lineage::Undoing, progress,
    tables::Tables,
};

/// A task of which nothing is known but that nobody needs it.
const ROW: Row = Row {
    state: State::Done,
    attempt: 0,
    missing: 0,
    readers_left: 0,
    holder: None,
    last: None,
    delivered: false,
    keep: Keep::No,
    shelf: Shelf::Free,
};

/// How much of the graph was there before.
#[derive(Clone, Copy, Default)]
struct Known {
    tasks: usize,
    deliveries: usize,
    checkpoints: usize,
}

impl<W: Clone> Scheduler<W> {
    pub(super) fn begin(&mut self, graph: Arc<Graph<W>>, kept: &[TaskId], delivered: &[TaskId]) {
        self.adopt(graph);
        for &task in delivered {
            if self.tables.delivered.get(task.0 as usize) == Some(&true) {
                self.tasks[task.0 as usize].delivered = true;
                let from = Transition::Delivered(AgentId::COORDINATOR);
                self.story.tell(Moment::START, task, from);
            }
        }
        for &task in kept {
            let Some(row) = self.tasks.get_mut(task.0 as usize) else {
                continue;
            };
            // What should have been handed out from the spool and was not cannot be read.
            let readable = row.delivered || !self.tables.delivered[task.0 as usize];
            if readable && self.tables.checkpoint_of(task.0).is_some() {
                row.keep = Keep::Kept;
            }
        }
        // A run before had come so far: what nobody reads it has done, or nobody misses it.
        let past = delivered.iter().max().map_or(0, |task| task.0 + 1);
        let undoing = self.needed(Known::default(), &Tables::default(), past);
        self.undo_all(Moment::START, undoing);
        self.drop_superseded();
    }

    /// Goes on with a longer graph, of which the one so far is the beginning: see [`Graph::grows_from`]. What is no
    /// longer held is let go, but for what the new tasks read.
    ///
    /// To be called before the next action is asked for, when the last one was to hand out a block for which the graph
    /// grows: otherwise the scheduler may find that there is nothing left to do.
    pub fn grow(&mut self, now: Moment, graph: Arc<Graph<W>>) {
        debug_assert_eq!(graph.grows_from(&self.graph), Ok(()));
        debug_assert!(!self.over, "all was over when the graph grew");
        let known = Known {
            tasks: self.tasks.len(),
            deliveries: self.graph.deliveries.len(),
            checkpoints: self.checkpoints.len(),
        };
        let sums = self.sums.len();
        let before = self.adopt(graph);
        let accumulators = self.graph.accumulators[sums..].to_vec();
        if !accumulators.is_empty() {
            for agent in self.living() {
                let accumulators = accumulators.clone();
                self.tell(agent, ToAgent::Grow { accumulators });
            }
        }
        let undoing = self.needed(known, &before, 0);
        self.undo_all(now, undoing);
        for task in 0..known.tasks {
            if before.held[task] && !self.tables.held[task] {
                self.tasks[task].readers_left -= 1;
                self.drop_result(TaskId(task as u32));
            }
        }
        self.drop_superseded();
        self.dirty = true;
    }

    /// Makes room for a graph of which the one so far is the beginning; the tables of the one so far.
    fn adopt(&mut self, graph: Arc<Graph<W>>) -> Tables {
        assert!(graph.tasks.len() < LATER as usize, "too many tasks");
        let tables = Tables::new(&graph);
        let sum = Sum {
            folds_left: 0,
            readers_left: 0,
            dropped: true,
            holders: BTreeMap::new(),
        };
        progress::extend(&mut self.stages, self.tasks.len(), &graph);
        self.tasks.resize(graph.tasks.len(), ROW);
        self.sums.resize(graph.accumulators.len(), sum);
        let checkpoints = graph.checkpoints.len();
        self.checkpoints
            .resize(checkpoints, CheckpointRow::default());
        // Blocks that a growth is the first to read come behind the others. Who has them on disk is not known: nobody
        // was asked.
        self.homes.resize(tables.inputs.len(), None);
        self.graph = graph;
        std::mem::replace(&mut self.tables, tables)
    }

    /// Counts who needs what of the new part of the graph, and of the old one for it. What nobody reads is done for its
    /// own sake, from task `sake` on.
    fn needed(&mut self, known: Known, before: &Tables, sake: u32) -> Undoing {
        let graph = Arc::clone(&self.graph);
        let mut undoing = Undoing::of_new(TaskId(known.tasks as u32));
        if self.keeps {
            self.count_checkpoints(known.checkpoints);
            for (c, checkpoint) in graph.checkpoints.iter().enumerate().skip(known.checkpoints) {
                if self.checkpoints[c].superseded {
                    continue;
                }
                for &task in &checkpoint.tasks {
                    let row = &mut self.tasks[task.0 as usize];
                    match row.keep {
                        Keep::Kept => {}
                        Keep::No | Keep::Wanted => {
                            row.keep = Keep::Wanted;
                            row.readers_left += 1;
                            undoing.tasks.push(task);
                        }
                    }
                }
            }
        }
        for &task in &graph.deliveries[known.deliveries..] {
            let row = &mut self.tasks[task.0 as usize];
            if !row.delivered {
                row.readers_left += 1;
                self.not_delivered += 1;
                undoing.tasks.push(task);
            }
        }
        for (index, spec) in graph.tasks.iter().enumerate() {
            let task = TaskId(index as u32);
            if self.tables.held[index] && before.held.get(index) != Some(&true) {
                self.tasks[index].readers_left += 1;
                if !self.exists(&Input::Result { task, range: None }) {
                    undoing.tasks.push(task);
                }
            }
            let read = match spec.output {
                Output::Block { .. } => {
                    !self.tables.result_readers(task.0).is_empty()
                        || self.tables.delivered[index]
                        || self.tables.checkpoint_of(task.0).is_some()
                        || self.tables.held[index]
                }
                Output::Fold { accumulator, .. } => {
                    !self.tables.sum_readers(accumulator.0).is_empty()
                }
            };
            if !read && index >= known.tasks && task.0 >= sake {
                undoing.tasks.push(task);
            }
        }
        undoing
    }

    fn count_checkpoints(&mut self, first: usize) {
        for c in first..self.checkpoints.len() {
            let tasks = self.graph.checkpoints[c].tasks.iter();
            let left = tasks.filter(|t| self.tasks[t.0 as usize].keep != Keep::Kept);
            self.checkpoints[c].left = left.count();
        }
        for c in first..self.checkpoints.len() {
            if self.checkpoints[c].left == 0 {
                self.supersede(c);
            }
        }
    }
}
