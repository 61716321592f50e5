//! A toy task type with both outputs, random plans of it, and the reference: the same plan, one task after the other.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use shared::farm::{
    bytes::{Bytes, BytesMut},
    graph::{Accumulator, Checkpoint, Graph, Input, Output, Task},
    ids::{ContentHash, TaskId},
    sequential,
    work::{Work, WorkError},
};

use crate::Random;

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Toy {
    /// Yields so many bytes, a function of the inputs and the seed.
    Mix {
        seed: u64,
        bytes: u64,
    },
    /// Adds pseudo-random integers, a function of the inputs and the seed.
    Scatter {
        seed: u64,
    },
    Fail,
    Panic,
}

fn digest(seed: u64, inputs: &[Bytes]) -> u64 {
    let mut random = Random(seed);
    for input in inputs {
        let hash = blake3::hash(input.as_slice());
        random.0 ^= u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight bytes"));
        random.bits();
    }
    random.bits()
}

impl Work for Toy {
    fn verb(&self) -> &'static str {
        match self {
            Self::Mix { .. } => "mix",
            Self::Scatter { .. } => "scatter",
            Self::Fail => "fail",
            Self::Panic => "panic",
        }
    }

    fn block(&self, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
        match self {
            Self::Mix { seed, bytes } => {
                let mut random = Random(digest(*seed, inputs));
                let mut block = BytesMut::zeroed(*bytes as usize)?;
                for byte in block.as_bytes_mut() {
                    *byte = random.bits() as u8;
                }
                Ok(block.freeze())
            }
            Self::Fail => Err(WorkError::Numbers("nothing adds up".to_owned())),
            Self::Panic => panic!("out of {}", "ideas"),
            Self::Scatter { .. } => unreachable!("scatter folds"),
        }
    }

    fn fold(&self, inputs: &[Bytes], parts: &mut [&mut [i64]]) -> Result<(), WorkError> {
        match self {
            Self::Scatter { seed } => {
                let mut random = Random(digest(*seed, inputs));
                for number in parts.iter_mut().flat_map(|p| p.iter_mut()) {
                    *number = number.wrapping_add(random.bits() as i64);
                }
                Ok(())
            }
            Self::Fail => Err(WorkError::Numbers("nothing adds up".to_owned())),
            Self::Panic => panic!("out of ideas"),
            Self::Mix { .. } => unreachable!("mix folds nothing"),
        }
    }
}

/// A plan with its inputs.
#[derive(Clone, Debug)]
pub struct Case {
    pub graph: Graph<Toy>,
    pub inputs: HashMap<ContentHash, Bytes>,
}

/// A random plan: stages of blocks and of sums, each reading some of what came before.
pub fn random_case(seed: u64) -> Case {
    let mut r = Random(seed);
    let mut graph = Graph::default();
    let mut inputs = HashMap::new();
    let mut blocks: Vec<(Input, u64)> = Vec::new();
    for n in 0..1 + r.below(6) {
        let bytes = 1 + r.below(300);
        let content: Vec<u8> = (0..bytes).map(|i| (i * 7 + n + seed) as u8).collect();
        let hash = ContentHash::of(&content);
        inputs.insert(hash, Bytes::copy_from(&content).expect("memory"));
        blocks.push((Input::Block { hash, bytes }, bytes));
    }
    let mut chunks: Vec<Input> = Vec::new();
    for s in 0..2 + r.below(4) {
        let stage = graph.stage(format!("stage {s}"));
        let pick = |r: &mut Random, blocks: &[(Input, u64)], chunks: &[Input]| {
            let mut picked = Vec::new();
            for _ in 0..r.below(4) {
                if !chunks.is_empty() && r.one_in(2) {
                    picked.push(chunks[r.below(chunks.len() as u64) as usize]);
                    continue;
                }
                let (mut input, bytes) = blocks[r.below(blocks.len() as u64) as usize];
                if let Input::Result { range, .. } = &mut input
                    && r.one_in(3)
                {
                    let start = r.below(bytes);
                    *range = Some((start, start + 1 + r.below(bytes - start)));
                }
                picked.push(input);
            }
            picked
        };
        if r.one_in(2) {
            let parts: Vec<Vec<u32>> = (0..1 + r.below(3))
                .map(|_| {
                    (0..1 + r.below(3))
                        .map(|_| 1 + r.below(20) as u32)
                        .collect()
                })
                .collect();
            let contributions = 1 + r.below(8) as u32;
            let whole = r.one_in(2);
            let accumulator = graph.accumulator(Accumulator {
                parts: parts.clone(),
                contributions,
            });
            let count = parts.len() as u16;
            for contribution in 0..contributions {
                let ranges: Vec<(u16, u16)> = if whole {
                    vec![(0, count)]
                } else {
                    (0..count).map(|p| (p, p + 1)).collect()
                };
                for parts in ranges {
                    let inputs = pick(&mut r, &blocks, &chunks);
                    graph.task(Task {
                        work: Toy::Scatter { seed: r.bits() },
                        inputs,
                        output: Output::Fold {
                            accumulator,
                            parts,
                            contribution,
                        },
                        width: 1 + r.below(2) as u16,
                        cost: 1,
                        stage,
                    });
                }
            }
            for (p, lengths) in parts.iter().enumerate() {
                for c in 0..lengths.len() {
                    chunks.push(Input::Fold {
                        accumulator,
                        part: p as u16,
                        chunk: c as u32,
                    });
                }
            }
        } else {
            let mut new = Vec::new();
            for _ in 0..1 + r.below(12) {
                let inputs = pick(&mut r, &blocks, &chunks);
                let bytes = 1 + r.below(200);
                let task = graph.task(Task {
                    work: Toy::Mix {
                        seed: r.bits(),
                        bytes,
                    },
                    inputs,
                    output: Output::Block { bytes },
                    width: 1 + r.below(3) as u16,
                    cost: 1,
                    stage,
                });
                new.push((Input::Result { task, range: None }, bytes));
            }
            blocks.extend(new);
        }
    }
    // What nobody has read so far is read at the end, and delivered.
    let stage = graph.stage("end");
    for input in chunks.iter().copied().chain(blocks.iter().map(|b| b.0)) {
        if r.one_in(3) {
            continue;
        }
        let task = graph.task(Task {
            work: Toy::Mix {
                seed: r.bits(),
                bytes: 16,
            },
            inputs: vec![input],
            output: Output::Block { bytes: 16 },
            width: 1,
            cost: 1,
            stage,
        });
        graph.deliveries.push(task);
    }
    Case { graph, inputs }
}

/// A plan that grows: for every portion but the last, the block that decides about the next one.
#[derive(Clone, Debug)]
pub struct Growing {
    /// The plan as it is with each portion.
    pub graphs: Vec<Arc<Graph<Toy>>>,
    pub decisions: Vec<TaskId>,
    /// Numbers of the tasks of the plan that was cut.
    pub numbers: Vec<TaskId>,
}

impl Growing {
    /// The plan as it is once that block has been delivered, if it decides anything.
    pub fn decided(&self, task: TaskId) -> Option<Arc<Graph<Toy>>> {
        let portion = self.decisions.iter().position(|d| *d == task)?;
        Some(Arc::clone(&self.graphs[portion + 1]))
    }
}

/// Cuts a plan after some of its stages. A decision reads some of the blocks of its portion. Most of what later portions
/// read is held; the rest has to be made again. `keep` is asked for the checkpoints of each portion.
pub fn cut(
    whole: &Graph<Toy>,
    r: &mut Random,
    mut keep: impl FnMut(&mut Graph<Toy>, &mut Random, Range<u16>),
) -> Growing {
    let stages = whole.stages.len() as u16;
    let mut numbers: Vec<TaskId> = Vec::new();
    let mut graph = Graph::default();
    let (mut graphs, mut decisions) = (Vec::new(), Vec::new());
    let mut first = 0;
    let mut from = 0;
    for end in 1..=stages {
        graph.stage(whole.stages[end as usize - 1].clone());
        let last = end == stages;
        if !last && r.one_in(3) {
            continue;
        }
        let begin = graph.tasks.len();
        while let Some(task) = whole.tasks.get(first).filter(|t| t.stage < end) {
            let mut task = task.clone();
            for input in &mut task.inputs {
                if let Input::Result { task, .. } = input {
                    *task = numbers[task.0 as usize];
                }
            }
            if let Output::Fold { accumulator, .. } = task.output {
                let known = graph.accumulators.len();
                let new = &whole.accumulators[known..(accumulator.0 as usize + 1).max(known)];
                graph.accumulators.extend_from_slice(new);
            }
            numbers.push(graph.task(task));
            first += 1;
        }
        keep(&mut graph, r, from..end);
        from = end;
        graph.open = !last;
        if !last {
            let blocks = (begin..graph.tasks.len()).map(|t| TaskId(t as u32));
            let blocks: Vec<TaskId> = blocks
                .filter(|t| matches!(graph.tasks[t.0 as usize].output, Output::Block { .. }))
                .collect();
            let read = blocks.iter().filter(|_| r.one_in(3));
            let inputs = read.map(|&task| Input::Result { task, range: None });
            let inputs = inputs.collect();
            let decision = graph.task(Task {
                work: Toy::Mix { seed: 4, bytes: 8 },
                inputs,
                output: Output::Block { bytes: 8 },
                width: 1,
                cost: 1,
                stage: end - 1,
            });
            graph.deliveries.push(decision);
            decisions.push(decision);
            if !r.one_in(4) {
                graph.checkpoints.push(Checkpoint {
                    tasks: vec![decision],
                    supersedes: Vec::new(),
                });
            }
            let mut held: Vec<TaskId> = whole.tasks[first..]
                .iter()
                .flat_map(|task| &task.inputs)
                .filter_map(|input| match input {
                    Input::Result { task, .. } => numbers.get(task.0 as usize).copied(),
                    Input::Block { .. } | Input::Fold { .. } => None,
                })
                .filter(|_| !r.one_in(5))
                .collect();
            held.dedup();
            graph.held = held;
        } else {
            graph.held.clear();
            let deliveries = whole.deliveries.iter().map(|t| numbers[t.0 as usize]);
            graph.deliveries.extend(deliveries);
        }
        graphs.push(Arc::new(graph.clone()));
    }
    Growing {
        graphs,
        decisions,
        numbers,
    }
}

/// What a plan delivers, evaluated one task after the other.
pub fn evaluate<W: Work>(
    graph: &Graph<W>,
    inputs: &HashMap<ContentHash, Bytes>,
) -> BTreeMap<TaskId, Bytes> {
    sequential::run(graph, |hash| inputs.get(hash).cloned())
        .expect("no task of a case fails")
        .into_iter()
        .collect()
}
