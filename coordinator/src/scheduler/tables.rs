//! What the scheduler needs to know of a graph and what never changes: who reads what, and when next.

use rustc_hash::{FxHashMap, FxHashSet};
use shared::farm::{
    graph::{Graph, Input, Output},
    ids::ContentHash,
    message::Name,
};

/// Rows of numbers of different lengths, one after the other.
#[derive(Debug, Default)]
struct Rows {
    starts: Vec<u32>,
    items: Vec<u32>,
}

impl Rows {
    /// Sorts pairs (row, item) into rows, items staying in order.
    fn collect(rows: usize, pairs: impl Iterator<Item = (u32, u32)> + Clone) -> Self {
        let mut starts = vec![0_u32; rows + 1];
        for (row, _) in pairs.clone() {
            starts[row as usize + 1] += 1;
        }
        for row in 0..rows {
            starts[row + 1] += starts[row];
        }
        let mut next = starts.clone();
        let mut items = vec![0; starts[rows] as usize];
        for (row, item) in pairs {
            let at = &mut next[row as usize];
            items[*at as usize] = item;
            *at += 1;
        }
        Self { starts, items }
    }

    fn row(&self, row: u32) -> &[u32] {
        &self.items[self.starts[row as usize] as usize..self.starts[row as usize + 1] as usize]
    }
}

#[derive(Debug)]
pub(super) struct Tables {
    result_readers: Rows,
    sum_readers: Rows,
    sum_folders: Rows,
    /// Where each task's inputs begin in `again`.
    starts: Vec<u32>,
    /// For every input of every task, the next task that reads the same.
    again: Vec<u32>,
    pub delivered: Vec<bool>,
    /// Every input block once, in the order of their first readers.
    pub inputs: Vec<ContentHash>,
}

pub(super) fn name(input: &Input) -> Name {
    match *input {
        Input::Block { hash, .. } => Name::Input(hash),
        Input::Result { task, range } => Name::Result { task, range },
        Input::Fold {
            accumulator,
            part,
            chunk,
        } => Name::Chunk {
            accumulator,
            part,
            chunk,
        },
    }
}

impl Tables {
    pub fn new<W>(graph: &Graph<W>) -> Self {
        let tasks = graph.tasks.len();
        let entries = || {
            graph
                .tasks
                .iter()
                .enumerate()
                .flat_map(|(t, task)| task.inputs.iter().map(move |i| (t as u32, i)))
        };
        let result_readers = Rows::collect(
            tasks,
            entries().filter_map(|(t, input)| match input {
                Input::Result { task, .. } => Some((task.0, t)),
                Input::Block { .. } | Input::Fold { .. } => None,
            }),
        );
        let sum_readers = Rows::collect(
            graph.accumulators.len(),
            entries().filter_map(|(t, input)| match input {
                Input::Fold { accumulator, .. } => Some((accumulator.0, t)),
                Input::Block { .. } | Input::Result { .. } => None,
            }),
        );
        let sum_folders = Rows::collect(
            graph.accumulators.len(),
            graph
                .tasks
                .iter()
                .enumerate()
                .filter_map(|(t, task)| match task.output {
                    Output::Fold { accumulator, .. } => Some((accumulator.0, t as u32)),
                    Output::Block { .. } => None,
                }),
        );
        let mut starts = Vec::with_capacity(tasks + 1);
        let mut count = 0;
        let mut inputs = Vec::new();
        let mut seen = FxHashSet::default();
        for task in &graph.tasks {
            starts.push(count);
            count += task.inputs.len() as u32;
            for input in &task.inputs {
                match input {
                    Input::Block { hash, .. } => {
                        if seen.insert(*hash) {
                            inputs.push(*hash);
                        }
                    }
                    Input::Result { .. } | Input::Fold { .. } => {}
                }
            }
        }
        starts.push(count);
        let mut again = vec![u32::MAX; count as usize];
        let mut next: FxHashMap<Name, u32> = FxHashMap::default();
        for (t, task) in graph.tasks.iter().enumerate().rev() {
            for (i, input) in task.inputs.iter().enumerate() {
                // A second input of the same name meets its own task here: it is no later reader.
                let later = next.get(&name(input)).copied();
                again[starts[t] as usize + i] = later.filter(|n| *n > t as u32).unwrap_or(u32::MAX);
            }
            for input in &task.inputs {
                next.insert(name(input), t as u32);
            }
        }
        let mut delivered = vec![false; tasks];
        for task in &graph.deliveries {
            delivered[task.0 as usize] = true;
        }
        Self {
            result_readers,
            sum_readers,
            sum_folders,
            starts,
            again,
            delivered,
            inputs,
        }
    }

    /// Readers of a task's block, one entry for each of their inputs that reads it.
    pub fn result_readers(&self, task: u32) -> &[u32] {
        self.result_readers.row(task)
    }

    /// Readers of an accumulator, one entry for each of their inputs that reads it.
    pub fn sum_readers(&self, sum: u32) -> &[u32] {
        self.sum_readers.row(sum)
    }

    pub fn sum_folders(&self, sum: u32) -> &[u32] {
        self.sum_folders.row(sum)
    }

    pub fn again(&self, task: u32, input: usize) -> Option<u32> {
        let at = self.again[self.starts[task as usize] as usize + input];
        (at != u32::MAX).then_some(at)
    }
}
