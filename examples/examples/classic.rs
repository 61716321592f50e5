//! The classic: square ten thousand numbers, negate the squares, sum them, as 20,001 tasks on the embedded farm. The
//! farm knows none of these task kinds; a program brings its own.
//!
//! `cargo run --release -p examples --example classic`

use std::{convert::Infallible, sync::Arc, sync::atomic::AtomicBool};

use coordinator::farm::{EmbeddedOptions, run_embedded};
use serde::{Deserialize, Serialize};
use shared::farm::{
    bytes::Bytes,
    graph::{Graph, Input, Output, Task},
    ids::ContentHash,
    work::{Work, WorkError},
};

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Classic {
    Square(i64),
    Negate,
    Sum,
}

impl Work for Classic {
    fn verb(&self) -> &'static str {
        match self {
            Self::Square(_) => "square",
            Self::Negate => "negate",
            Self::Sum => "sum",
        }
    }

    fn block(&self, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
        let number = |bytes: &Bytes| bytes.numbers::<i64>().map(|n| n[0]);
        Bytes::from_numbers(&[match self {
            Self::Square(n) => n * n,
            Self::Negate => -number(&inputs[0])?,
            Self::Sum => inputs.iter().map(number).sum::<Result<i64, _>>()?,
        }])
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut graph = Graph::default();
    let stage = graph.stage("classic");
    let mut task = |work, reads: Vec<_>| {
        let read = |task| Input::Result { task, range: None };
        graph.task(Task {
            work,
            inputs: reads.into_iter().map(read).collect(),
            output: Output::Block { bytes: 8 },
            width: 1,
            cost: 1,
            stage,
        })
    };
    let mut negated = Vec::new();
    for n in 1..=10_000 {
        let square = vec![task(Classic::Square(n), vec![])];
        negated.push(task(Classic::Negate, square));
    }
    let sum = task(Classic::Sum, negated);
    graph.deliveries.push(sum);
    let report = run_embedded(
        Arc::new(graph),
        ContentHash::of(b"classic"),
        Arc::new(()),
        &EmbeddedOptions::new(2, 1 << 30),
        &mut |_, block| {
            println!("sum {}", block.numbers::<i64>().expect("a number")[0]);
            Ok::<_, Infallible>(None)
        },
        &mut |_| {},
        &AtomicBool::new(false),
    )?;
    let seconds = report.elapsed_us as f64 / 1e6;
    println!("{} tasks in {seconds:.3} s", report.tasks);
    Ok(())
}
