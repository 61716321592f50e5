//! The TSQR tree over R factors, as tasks: up to the root, and the orthogonal factors back down.

use shared::{
    farm::{
        graph::{Graph, Input, Output, Task},
        ids::TaskId,
    },
    svd::{
        SvdWork,
        layout::{ARITY, f64s},
    },
};

/// A grown tree.
pub struct Tree {
    pub leaves: Vec<TaskId>,
    width: usize,
    /// Height of the root's R.
    root_height: usize,
    root: TaskId,
    /// Of every leaf, where its factor from above stands; empty when the only leaf is the root.
    above: Vec<Input>,
}

/// One node while the tree grows.
struct Node {
    task: TaskId,
    height: u32,
    children: Vec<usize>,
}

impl Tree {
    /// Leaves are tasks whose block starts with an R factor f64[height x width].
    pub fn grow(
        graph: &mut Graph<SvdWork>,
        width: u32,
        leaves: &[(TaskId, u32)],
        stage: u16,
    ) -> Self {
        let l = width as usize;
        let mut nodes: Vec<Node> = leaves
            .iter()
            .map(|&(task, height)| Node {
                task,
                height,
                children: Vec::new(),
            })
            .collect();
        let mut level: Vec<usize> = (0..nodes.len()).collect();
        while level.len() > 1 {
            let mut above = Vec::new();
            for children in level.chunks(ARITY) {
                if let [only] = *children {
                    above.push(only);
                    continue;
                }
                let heights: Vec<u32> = children.iter().map(|&c| nodes[c].height).collect();
                let rows: u32 = heights.iter().sum();
                let height = rows.min(width);
                let inputs = children
                    .iter()
                    .map(|&c| Input::Result {
                        task: nodes[c].task,
                        range: Some((0, f64s(nodes[c].height as usize, l))),
                    })
                    .collect();
                let bytes = f64s(height as usize, l) + f64s(rows as usize, height as usize);
                let task = graph.task(Task {
                    work: SvdWork::Combine { width, heights },
                    inputs,
                    output: Output::Block { bytes },
                    width: 1,
                    cost: 4 * u64::from(rows) * (l * l) as u64,
                    stage,
                });
                above.push(nodes.len());
                nodes.push(Node {
                    task,
                    height,
                    children: children.to_vec(),
                });
            }
            level = above;
        }
        let root = level[0];
        let mut above: Vec<Option<Input>> = vec![None; nodes.len()];
        // Inner nodes come after their children, so walk down from the last.
        for n in (leaves.len()..nodes.len()).rev() {
            let heights: Vec<u32> = nodes[n].children.iter().map(|&c| nodes[c].height).collect();
            let rows: u32 = heights.iter().sum();
            let (h, columns) = (nodes[n].height as usize, nodes[root].height as usize);
            let r = f64s(h, l);
            let q = (r, r + f64s(rows as usize, h));
            // The children's factors: rows of the root's own Q, or of Q times the factor from above.
            let (task, mut at) = match above[n] {
                None => (nodes[n].task, q.0),
                Some(from_above) => {
                    let q = Input::Result {
                        task: nodes[n].task,
                        range: Some(q),
                    };
                    let push = graph.task(Task {
                        work: SvdWork::Push {
                            width: columns as u32,
                            height: h as u32,
                            heights,
                        },
                        inputs: vec![q, from_above],
                        output: Output::Block {
                            bytes: f64s(rows as usize, columns),
                        },
                        width: 1,
                        cost: 2 * u64::from(rows) * (h * columns) as u64,
                        stage,
                    });
                    (push, 0)
                }
            };
            for &c in &nodes[n].children {
                let end = at + f64s(nodes[c].height as usize, columns);
                above[c] = Some(Input::Result {
                    task,
                    range: Some((at, end)),
                });
                at = end;
            }
        }
        Self {
            leaves: leaves.iter().map(|&(task, _)| task).collect(),
            width: l,
            root_height: nodes[root].height as usize,
            root: nodes[root].task,
            above: above[..leaves.len()].iter().copied().flatten().collect(),
        }
    }

    /// R of everything: f64[l x l].
    pub fn root_r(&self) -> Input {
        Input::Result {
            task: self.root,
            range: Some((0, f64s(self.root_height, self.width))),
        }
    }

    /// The tasks that yield the leaves' factors from above.
    pub fn pushed(&self) -> Vec<TaskId> {
        let mut tasks: Vec<TaskId> = self
            .above
            .iter()
            .filter_map(|input| match input {
                Input::Result { task, .. } => Some(*task),
                Input::Block { .. } | Input::Fold { .. } => None,
            })
            .collect();
        tasks.sort_unstable();
        tasks.dedup();
        tasks
    }

    /// The factor from above of a leaf; none when it is alone.
    pub fn above_leaf(&self, leaf: usize) -> Option<Input> {
        self.above.get(leaf).copied()
    }
}
