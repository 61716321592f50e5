//! The farm without a farm: one task after the other, everything kept. It is what every other way of running a graph is
//! compared with, and the shortest statement of what a graph means.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    bytes::Bytes,
    graph::{Graph, Input, Output},
    ids::{ContentHash, TaskId},
    work::{Work, WorkError},
};

/// What tasks have yielded so far.
#[derive(Default)]
struct Yielded {
    blocks: Vec<Option<Bytes>>,
    sums: Vec<Vec<Vec<i64>>>,
}

impl Yielded {
    /// Makes room for sums that are new.
    fn grow<W>(&mut self, graph: &Graph<W>) {
        for accumulator in &graph.accumulators[self.sums.len()..] {
            let parts = 0..accumulator.parts.len() as u16;
            let zeroed = parts.map(|part| vec![0; accumulator.part_len(part)]);
            self.sums.push(zeroed.collect());
        }
    }

    /// Does the next task.
    fn next<W: Work>(
        &mut self,
        graph: &Graph<W>,
        load: &impl Fn(&ContentHash) -> Option<Bytes>,
    ) -> Result<(), WorkError> {
        let task = &graph.tasks[self.blocks.len()];
        let mut inputs = Vec::with_capacity(task.inputs.len());
        for input in &task.inputs {
            inputs.push(match *input {
                Input::Block { hash, .. } => load(&hash)
                    .ok_or_else(|| WorkError::BadInput(format!("no input block {hash}")))?,
                Input::Result { task, range } => {
                    let block = self.block(task);
                    match range {
                        None => block.clone(),
                        Some((start, end)) => block.slice(start as usize..end as usize),
                    }
                }
                Input::Fold {
                    accumulator,
                    part,
                    chunk,
                } => {
                    let range = graph.accumulators[accumulator.0 as usize].chunk_range(part, chunk);
                    let sum = &self.sums[accumulator.0 as usize];
                    Bytes::from_numbers(&sum[part as usize][range])?
                }
            });
        }
        let block = match task.output {
            Output::Block { .. } => Some(task.work.block(&inputs)?),
            Output::Fold {
                accumulator,
                parts: (start, end),
                ..
            } => {
                let parts = &mut self.sums[accumulator.0 as usize][start as usize..end as usize];
                let mut parts: Vec<&mut [i64]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
                task.work.fold(&inputs, &mut parts)?;
                None
            }
        };
        self.blocks.push(block);
        Ok(())
    }

    fn block(&self, task: TaskId) -> &Bytes {
        let block = self.blocks[task.0 as usize].as_ref();
        block.expect("what is read is a block and comes first")
    }

    fn deliveries<W>(&self, graph: &Graph<W>) -> HashMap<TaskId, Bytes> {
        let deliveries = graph.deliveries.iter();
        deliveries
            .map(|&task| (task, self.block(task).clone()))
            .collect()
    }
}

/// Runs the whole graph; yields the deliveries.
pub fn run<W: Work>(
    graph: &Graph<W>,
    load: impl Fn(&ContentHash) -> Option<Bytes>,
) -> Result<HashMap<TaskId, Bytes>, WorkError> {
    let mut yielded = Yielded::default();
    yielded.grow(graph);
    for _ in &graph.tasks {
        yielded.next(graph, &load)?;
    }
    Ok(yielded.deliveries(graph))
}

/// Runs a graph that grows: `grow` sees every delivery as soon as it exists, and may answer with a longer graph, of which
/// the one so far is the beginning. Yields the deliveries; `graph` is what it has become.
pub fn run_growing<W: Work>(
    graph: &mut Arc<Graph<W>>,
    load: impl Fn(&ContentHash) -> Option<Bytes>,
    mut grow: impl FnMut(TaskId, &Bytes) -> Option<Arc<Graph<W>>>,
) -> Result<HashMap<TaskId, Bytes>, WorkError> {
    let mut yielded = Yielded::default();
    yielded.grow(graph);
    let mut delivered: HashSet<TaskId> = graph.deliveries.iter().copied().collect();
    while yielded.blocks.len() < graph.tasks.len() {
        let task = TaskId(yielded.blocks.len() as u32);
        yielded.next(graph, &load)?;
        if delivered.contains(&task)
            && let Some(longer) = grow(task, yielded.block(task))
        {
            debug_assert_eq!(longer.grows_from(graph), Ok(()));
            delivered.extend(&longer.deliveries[graph.deliveries.len()..]);
            *graph = longer;
            yielded.grow(graph);
        }
    }
    Ok(yielded.deliveries(graph))
}
