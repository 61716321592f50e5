//! A plan as data: which tasks there are, what each reads, what it yields. The farm schedules a [`Graph`] without
//! knowing what its tasks mean.
//!
//! A graph that is *open* grows while it runs. Whoever runs it looks at a delivered block, decides what comes next, and
//! hands over a longer graph, of which the one before is the beginning: see [`Graph::grows_from`].

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
    /// Once all of `tasks` are kept, nothing of the checkpoints with these indices is read any more.
    pub supersedes: Vec<u16>,
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
    /// Tasks whose blocks a later growth may read: they stay though nobody in the graph reads them, and are made again
    /// when they are lost. Each growth says anew which these are.
    pub held: Vec<TaskId>,
    /// More will come.
    pub open: bool,
}

impl<W> Default for Graph<W> {
    fn default() -> Self {
        Self {
            tasks: Vec::new(),
            accumulators: Vec::new(),
            stages: Vec::new(),
            deliveries: Vec::new(),
            checkpoints: Vec::new(),
            held: Vec::new(),
            open: false,
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
    #[error("task {task} is held for a later growth, but yields no block")]
    NotHoldable { task: u32 },
    #[error("task {task} has width 0")]
    NoWidth { task: u32 },
    #[error("a graph that is not open has grown")]
    Closed,
    #[error("a growth has changed or left out {what} that were there before")]
    Changed { what: &'static str },
    #[error("a growth delivers or keeps task {task}, which was there before")]
    OldTask { task: u32 },
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
        if let Some(task) = self.no_block(&self.deliveries) {
            return Err(GraphError::NotDeliverable { task });
        }
        if let Some(task) = self.no_block(self.checkpoints.iter().flat_map(|c| &c.tasks)) {
            return Err(GraphError::NotKeepable { task });
        }
        if let Some(task) = self.no_block(&self.held) {
            return Err(GraphError::NotHoldable { task });
        }
        Ok(())
    }

    /// The first of these that yields no block.
    fn no_block<'a>(&self, tasks: impl IntoIterator<Item = &'a TaskId>) -> Option<u32> {
        let output = |task: &TaskId| self.tasks.get(task.0 as usize).map(|t| &t.output);
        tasks
            .into_iter()
            .find(|task| !matches!(output(task), Some(Output::Block { .. })))
            .map(|task| task.0)
    }

    /// Checks that this is `before`, grown: everything in it is as it was and where it was, but for what is held and
    /// whether more will come. What is new comes behind. Deliveries and checkpoints that are new are of new tasks: of an
    /// old one nobody would send the block a second time.
    ///
    /// New tasks may read all blocks of old ones. Those that are neither held nor still read are made again for them,
    /// with everything that they need in turn; so are sums, which nothing can hold, from all of their contributions. A
    /// growth that costs no more than what it adds reads what is held, and sums of its own.
    pub fn grows_from(&self, before: &Self) -> Result<(), GraphError> {
        let changed = |what| Err(GraphError::Changed { what });
        let task = |(old, new): (&Task<W>, &Task<W>)| {
            old.inputs == new.inputs
                && old.output == new.output
                && (old.width, old.cost, old.stage) == (new.width, new.cost, new.stage)
        };
        let count = before.tasks.len();
        if !before.open {
            return Err(GraphError::Closed);
        }
        if self.tasks.len() < count || !before.tasks.iter().zip(&self.tasks).all(task) {
            return changed("tasks");
        }
        if !self.accumulators.starts_with(&before.accumulators) {
            return changed("accumulators");
        }
        if !self.stages.starts_with(&before.stages) {
            return changed("stages");
        }
        if !self.deliveries.starts_with(&before.deliveries) {
            return changed("deliveries");
        }
        if !self.checkpoints.starts_with(&before.checkpoints) {
            return changed("checkpoints");
        }
        let kept = &self.checkpoints[before.checkpoints.len()..];
        let new = self.deliveries[before.deliveries.len()..]
            .iter()
            .chain(kept.iter().flat_map(|c| &c.tasks));
        for task in new {
            if (task.0 as usize) < count {
                return Err(GraphError::OldTask { task: task.0 });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(open: bool) -> Graph<()> {
        let mut graph = Graph {
            open,
            ..Graph::default()
        };
        graph.stage("only");
        block(&mut graph, 0);
        graph.deliveries.push(TaskId(0));
        graph
    }

    fn block(graph: &mut Graph<()>, reads: u32) {
        let inputs = (0..reads).map(|task| Input::Result {
            task: TaskId(task),
            range: None,
        });
        graph.task(Task {
            work: (),
            inputs: inputs.collect(),
            output: Output::Block { bytes: 8 },
            width: 1,
            cost: 1,
            stage: 0,
        });
    }

    #[test]
    fn a_growth_leaves_what_was_there() {
        let open = one(true);
        let mut grown = open.clone();
        block(&mut grown, 1);
        grown.deliveries.push(TaskId(1));
        grown.open = false;
        grown.held = vec![TaskId(0)];
        assert_eq!(grown.validate(), Ok(()));
        assert_eq!(grown.grows_from(&open), Ok(()));
        let before = one(false);
        assert_eq!(grown.grows_from(&before), Err(GraphError::Closed));
        let mut other = grown.clone();
        other.tasks[0].cost = 2;
        let changed = |what| Err(GraphError::Changed { what });
        assert_eq!(other.grows_from(&open), changed("tasks"));
        other = grown.clone();
        other.deliveries = vec![TaskId(1)];
        assert_eq!(other.grows_from(&open), changed("deliveries"));
        other = grown.clone();
        other.stages.clear();
        assert_eq!(other.grows_from(&open), changed("stages"));
        grown.checkpoints.push(Checkpoint {
            tasks: vec![TaskId(0)],
            supersedes: Vec::new(),
        });
        let old = GraphError::OldTask { task: 0 };
        assert_eq!(grown.grows_from(&open), Err(old));
    }

    #[test]
    fn only_blocks_are_held() {
        let mut graph = one(true);
        graph.held = vec![TaskId(0)];
        assert_eq!(graph.validate(), Ok(()));
        graph.held = vec![TaskId(1)];
        let none = GraphError::NotHoldable { task: 1 };
        assert_eq!(graph.validate(), Err(none));
    }
}
