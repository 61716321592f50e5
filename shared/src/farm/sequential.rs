//! The farm without a farm: one task after the other, everything kept. It is what every other way of running a graph is
//! compared with, and the shortest statement of what a graph means.

use std::collections::HashMap;

use super::{
    bytes::Bytes,
    graph::{Graph, Input, Output},
    ids::{ContentHash, TaskId},
    work::{Work, WorkError},
};

/// Runs the whole graph; yields the deliveries.
pub fn run<W: Work>(
    graph: &Graph<W>,
    load: impl Fn(&ContentHash) -> Option<Bytes>,
) -> Result<HashMap<TaskId, Bytes>, WorkError> {
    let mut blocks: Vec<Option<Bytes>> = vec![None; graph.tasks.len()];
    let mut sums: Vec<Vec<Vec<i64>>> = graph
        .accumulators
        .iter()
        .map(|a| {
            (0..a.parts.len())
                .map(|p| vec![0; a.part_len(p as u16)])
                .collect()
        })
        .collect();
    for (id, task) in graph.tasks.iter().enumerate() {
        let mut inputs = Vec::with_capacity(task.inputs.len());
        for input in &task.inputs {
            inputs.push(match *input {
                Input::Block { hash, .. } => load(&hash)
                    .ok_or_else(|| WorkError::BadInput(format!("no input block {hash}")))?,
                Input::Result { task, range } => {
                    let block = blocks[task.0 as usize].as_ref().expect("inputs come first");
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
                    Bytes::from_numbers(&sums[accumulator.0 as usize][part as usize][range])?
                }
            });
        }
        match task.output {
            Output::Block { .. } => blocks[id] = Some(task.work.block(&inputs)?),
            Output::Fold {
                accumulator,
                parts: (start, end),
                ..
            } => {
                let parts = &mut sums[accumulator.0 as usize][start as usize..end as usize];
                let mut parts: Vec<&mut [i64]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
                task.work.fold(&inputs, &mut parts)?;
            }
        }
    }
    Ok(graph
        .deliveries
        .iter()
        .map(|&task| {
            (
                task,
                blocks[task.0 as usize]
                    .take()
                    .expect("deliveries are blocks"),
            )
        })
        .collect())
}
