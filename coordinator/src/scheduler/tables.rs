//! What the scheduler needs to know of a graph and what changes only when it grows: who reads what, and when next.

use rustc_hash::FxHashMap;
use shared::farm::{
    graph::{Graph, Input, Output},
    ids::{ContentHash, TaskId},
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

#[derive(Debug, Default)]
pub(super) struct Tables {
    result_readers: Rows,
    sum_readers: Rows,
    sum_folders: Rows,
    /// Where each task's inputs begin in `again`.
    starts: Vec<u32>,
    /// For every input of every task, the next task that reads the same.
    again: Vec<u32>,
    pub delivered: Vec<bool>,
    pub held: Vec<bool>,
    /// Every input block once, in the order of their first readers, and its length.
    pub inputs: Vec<ContentHash>,
    pub input_bytes: Vec<u64>,
    /// For every task, the place of the input block that decides where it is at home; `NONE` if there is none. Blocks that
    /// most tasks read beside another are at home everywhere.
    block_of: Vec<u32>,
    /// Tasks that are at home with each input block.
    block_readers: Rows,
    /// Input blocks that are at home somewhere.
    pub homed: Vec<u32>,
    /// The checkpoint of every task; `NONE` if it is in none.
    checkpoint_of: Vec<u32>,
}

const NONE: u32 = u32::MAX;

/// Of the input blocks of each task, the one that the fewest tasks read; unless it is itself passed over elsewhere.
fn blocks_of<W>(graph: &Graph<W>, places: &FxHashMap<ContentHash, u32>) -> Vec<u32> {
    let blocks = |task: usize| {
        graph.tasks[task].inputs.iter().filter_map(|i| match i {
            Input::Block { hash, .. } => Some(places[hash]),
            Input::Result { .. } | Input::Fold { .. } => None,
        })
    };
    let mut readers = vec![0_u32; places.len()];
    for task in 0..graph.tasks.len() {
        for block in blocks(task) {
            readers[block as usize] += 1;
        }
    }
    let mut block_of = Vec::with_capacity(graph.tasks.len());
    let mut shared = vec![false; places.len()];
    for task in 0..graph.tasks.len() {
        let first = blocks(task).min_by_key(|b| (readers[*b as usize], *b));
        for block in blocks(task).filter(|b| Some(*b) != first) {
            shared[block as usize] = true;
        }
        block_of.push(first.unwrap_or(NONE));
    }
    for block in &mut block_of {
        if *block != NONE && shared[*block as usize] {
            *block = NONE;
        }
    }
    block_of
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
        let mut input_bytes = Vec::new();
        let mut places: FxHashMap<ContentHash, u32> = FxHashMap::default();
        for task in &graph.tasks {
            starts.push(count);
            count += task.inputs.len() as u32;
            for input in &task.inputs {
                match input {
                    Input::Block { hash, bytes } => {
                        let next = inputs.len() as u32;
                        places.entry(*hash).or_insert_with(|| {
                            inputs.push(*hash);
                            input_bytes.push(*bytes);
                            next
                        });
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
        let marked = |these: &[TaskId]| {
            let mut marks = vec![false; tasks];
            for task in these {
                marks[task.0 as usize] = true;
            }
            marks
        };
        let block_of = blocks_of(graph, &places);
        let homed_tasks = || (0..).zip(&block_of).filter(|(_, b)| **b != NONE);
        let block_readers = Rows::collect(
            inputs.len(),
            homed_tasks().map(|(task, block)| (*block, task)),
        );
        let homed = (0..inputs.len() as u32)
            .filter(|b| !block_readers.row(*b).is_empty())
            .collect();
        let mut checkpoint_of = vec![NONE; tasks];
        for (c, checkpoint) in graph.checkpoints.iter().enumerate() {
            for task in &checkpoint.tasks {
                checkpoint_of[task.0 as usize] = c as u32;
            }
        }
        Self {
            input_bytes,
            block_readers,
            homed,
            block_of,
            checkpoint_of,
            result_readers,
            sum_readers,
            sum_folders,
            starts,
            again,
            delivered: marked(&graph.deliveries),
            held: marked(&graph.held),
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

    /// The input block with which a task is at home.
    pub fn block_of(&self, task: u32) -> Option<u32> {
        Some(self.block_of[task as usize]).filter(|b| *b != NONE)
    }

    /// Tasks that are at home with an input block.
    pub fn block_readers(&self, block: u32) -> &[u32] {
        self.block_readers.row(block)
    }

    pub fn checkpoint_of(&self, task: u32) -> Option<usize> {
        Some(self.checkpoint_of[task as usize])
            .filter(|c| *c != NONE)
            .map(|c| c as usize)
    }

    pub fn again(&self, task: u32, input: usize) -> Option<u32> {
        let at = self.again[self.starts[task as usize] as usize + input];
        (at != u32::MAX).then_some(at)
    }
}
