//! A plan as data: which tasks there are, what each reads, what it yields. The farm schedules a [`Graph`] without
//! knowing what its tasks mean.

use serde::{Deserialize, Serialize};

use super::ids::{AccumulatorId, ContentHash, TaskId};

/// What a task reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Input {
    /// Bytes that exist before the plan starts; `bytes` is their length.
    Block { hash: ContentHash, bytes: u64 },
    /// The block that an earlier task yields, or the given byte range of it.
    Result {
        task: TaskId,
        range: Option<(u64, u64)>,
    },
    /// One chunk of one part of a finished accumulator, as little-endian `i64`s.
    Fold {
        accumulator: AccumulatorId,
        part: u16,
        chunk: u32,
    },
}

/// What a task yields: one of two things, and they differ in what may happen to them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Output {
    /// Immutable bytes: may be computed twice, copied, or lost and computed again, without harm. `bytes` is their
    /// expected length.
    Block { bytes: u64 },
    /// An addition into `parts` (a half-open range) of an accumulator. Exact and commutative, so any order of arrival
    /// gives the same bits, but it must happen exactly once: `contribution` is this task's place in the set that every
    /// partial sum carries.
    Fold {
        accumulator: AccumulatorId,
        parts: (u16, u16),
        contribution: u32,
    },
}

/// One task.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Task<W> {
    pub work: W,
    pub inputs: Vec<Input>,
    pub output: Output,
    /// Cores that it uses at once.
    pub width: u16,
    /// Expected work in arbitrary but common units (the svd floor counts flops); used for placement only.
    pub cost: u64,
    /// Index into [`Graph::stages`].
    pub stage: u16,
}

/// A named sum of 64-bit integers: `parts` x `chunk_lengths.len()` chunks. A part is what one task may hold
/// exclusively while it adds; a chunk is what one reader asks for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Accumulator {
    /// For every part, the lengths (in `i64`s) of its chunks, which lie one after the other.
    pub parts: Vec<Vec<u32>>,
    /// Every part needs exactly the contributions `0..contributions`.
    pub contributions: u32,
}

impl Accumulator {
    /// Length of a part in `i64`s.
    pub fn part_len(&self, part: u16) -> usize {
        self.parts[part as usize].iter().map(|&n| n as usize).sum()
    }

    /// Where a chunk lies inside its part, in `i64`s.
    pub fn chunk_range(&self, part: u16, chunk: u32) -> std::ops::Range<usize> {
        let chunks = &self.parts[part as usize];
        let start = chunks[..chunk as usize].iter().map(|&n| n as usize).sum();
        start..start + chunks[chunk as usize] as usize
    }
}

/// Results that are kept on the coordinator's disk, so that what comes after them never has to go back behind them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    pub tasks: Vec<TaskId>,
    /// Once all of `tasks` are kept, nothing of the checkpoint with this index is read any more.
    pub supersedes: Option<u16>,
}

/// A plan: tasks in an order in which every input comes before its readers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Graph<W> {
    pub tasks: Vec<Task<W>>,
    pub accumulators: Vec<Accumulator>,
    /// Names of the stages, in order, as people are shown them ("pass 1 of 4").
    pub stages: Vec<String>,
    /// Tasks whose blocks are handed to whoever runs the plan, as soon as they exist.
    pub deliveries: Vec<TaskId>,
    pub checkpoints: Vec<Checkpoint>,
}

impl<W> Default for Graph<W> {
    fn default() -> Self {
        Self {
            tasks: Vec::new(),
            accumulators: Vec::new(),
            stages: Vec::new(),
            deliveries: Vec::new(),
            checkpoints: Vec::new(),
        }
    }
}

impl<W> Graph<W> {
    pub fn task(&mut self, task: Task<W>) -> TaskId {
        self.tasks.push(task);
        TaskId(u32::try_from(self.tasks.len() - 1).expect("fewer than 2^32 tasks"))
    }

    pub fn accumulator(&mut self, accumulator: Accumulator) -> AccumulatorId {
        self.accumulators.push(accumulator);
        AccumulatorId(u32::try_from(self.accumulators.len() - 1).expect("fewer than 2^32 sums"))
    }

    /// Opens a new stage; tasks made with the returned number belong to it.
    pub fn stage(&mut self, name: impl Into<String>) -> u16 {
        self.stages.push(name.into());
        u16::try_from(self.stages.len() - 1).expect("fewer than 65,536 stages")
    }
}

/// What is wrong with a graph: a bug of whoever built it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    #[error("task {task} reads task {input}, which does not come before it")]
    NotBefore { task: u32, input: u32 },
    #[error("task {task} reads the block of task {input}, which folds instead")]
    NotABlock { task: u32, input: u32 },
    #[error("task {task} names accumulator {accumulator}, part or chunk, which does not exist")]
    NoSuchSum { task: u32, accumulator: u32 },
    #[error("task {task} reads accumulator {accumulator} before task {later} has added to it")]
    FoldAfterRead {
        task: u32,
        accumulator: u32,
        later: u32,
    },
    #[error(
        "part {part} of accumulator {accumulator} wants each of {wanted} contributions once, contribution {contribution} comes {found} times"
    )]
    Contributions {
        accumulator: u32,
        part: u16,
        wanted: u32,
        contribution: u32,
        found: u32,
    },
    #[error("task {task} belongs to stage {stage}, which does not exist")]
    NoSuchStage { task: u32, stage: u16 },
    #[error("task {task} is to be delivered, but yields no block")]
    NotDeliverable { task: u32 },
    #[error("task {task} is to be kept, but yields no block")]
    NotKeepable { task: u32 },
    #[error("task {task} has width 0")]
    NoWidth { task: u32 },
}

impl<W> Graph<W> {
    /// Checks everything that the farm relies on.
    pub fn validate(&self) -> Result<(), GraphError> {
        let mut counts: Vec<Vec<Vec<u32>>> = self
            .accumulators
            .iter()
            .map(|a| vec![vec![0; a.contributions as usize]; a.parts.len()])
            .collect();
        let mut first_reader: Vec<Option<u32>> = vec![None; self.accumulators.len()];
        for (index, task) in self.tasks.iter().enumerate() {
            let id = index as u32;
            if task.width == 0 {
                return Err(GraphError::NoWidth { task: id });
            }
            if task.stage as usize >= self.stages.len() {
                return Err(GraphError::NoSuchStage {
                    task: id,
                    stage: task.stage,
                });
            }
            for input in &task.inputs {
                match *input {
                    Input::Block { .. } => {}
                    Input::Result { task: from, .. } => {
                        if from.0 >= id {
                            return Err(GraphError::NotBefore {
                                task: id,
                                input: from.0,
                            });
                        }
                        if !matches!(self.tasks[from.0 as usize].output, Output::Block { .. }) {
                            return Err(GraphError::NotABlock {
                                task: id,
                                input: from.0,
                            });
                        }
                    }
                    Input::Fold {
                        accumulator,
                        part,
                        chunk,
                    } => {
                        let known = self
                            .accumulators
                            .get(accumulator.0 as usize)
                            .and_then(|a| a.parts.get(part as usize))
                            .is_some_and(|chunks| (chunk as usize) < chunks.len());
                        if !known {
                            return Err(GraphError::NoSuchSum {
                                task: id,
                                accumulator: accumulator.0,
                            });
                        }
                        first_reader[accumulator.0 as usize].get_or_insert(id);
                    }
                }
            }
            match task.output {
                Output::Block { .. } => {}
                Output::Fold {
                    accumulator,
                    parts,
                    contribution,
                } => {
                    let sum = counts
                        .get_mut(accumulator.0 as usize)
                        .and_then(|p| p.get_mut(parts.0 as usize..parts.1 as usize))
                        .ok_or(GraphError::NoSuchSum {
                            task: id,
                            accumulator: accumulator.0,
                        })?;
                    if let Some(reader) = first_reader[accumulator.0 as usize] {
                        return Err(GraphError::FoldAfterRead {
                            task: reader,
                            accumulator: accumulator.0,
                            later: id,
                        });
                    }
                    for part in sum {
                        *part
                            .get_mut(contribution as usize)
                            .ok_or(GraphError::NoSuchSum {
                                task: id,
                                accumulator: accumulator.0,
                            })? += 1;
                    }
                }
            }
        }
        for (a, parts) in counts.iter().enumerate() {
            for (p, contributions) in parts.iter().enumerate() {
                for (c, &found) in contributions.iter().enumerate() {
                    if found != 1 {
                        return Err(GraphError::Contributions {
                            accumulator: a as u32,
                            part: p as u16,
                            wanted: contributions.len() as u32,
                            contribution: c as u32,
                            found,
                        });
                    }
                }
            }
        }
        for &task in &self.deliveries {
            match self.tasks.get(task.0 as usize).map(|t| &t.output) {
                Some(Output::Block { .. }) => {}
                Some(Output::Fold { .. }) | None => {
                    return Err(GraphError::NotDeliverable { task: task.0 });
                }
            }
        }
        for &task in self.checkpoints.iter().flat_map(|c| &c.tasks) {
            match self.tasks.get(task.0 as usize).map(|t| &t.output) {
                Some(Output::Block { .. }) => {}
                Some(Output::Fold { .. }) | None => {
                    return Err(GraphError::NotKeepable { task: task.0 });
                }
            }
        }
        Ok(())
    }
}
