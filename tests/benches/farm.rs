//! How many tasks a second the farm itself can do. `cargo bench -p tests --bench farm`

use std::{convert::Infallible, sync::Arc, sync::atomic::AtomicBool};

use coordinator::farm::{AgentOptions, EmbeddedOptions, run_embedded};
use shared::farm::{
    graph::{Graph, Input, Output, Task},
    ids::{ContentHash, TaskId},
};
use tests::toy::Toy;

fn mix(graph: &mut Graph<Toy>, inputs: Vec<Input>) -> TaskId {
    graph.task(Task {
        work: Toy::Mix { seed: 1, bytes: 0 },
        inputs,
        output: Output::Block { bytes: 0 },
        width: 1,
        cost: 1,
        stage: 0,
    })
}

fn run(what: &str, graph: &Graph<Toy>, agents: usize, cores: u16) {
    let options = EmbeddedOptions {
        agents: vec![AgentOptions::new(cores, 1 << 30); agents],
        progress_ms_min: 100,
    };
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let report = run_embedded(
            graph,
            ContentHash::of(b"bench"),
            Arc::new(()),
            &options,
            &mut |_, _| Ok::<_, Infallible>(()),
            &mut |_| {},
            &AtomicBool::new(false),
        )
        .expect("nothing can fail");
        best = best.min(report.elapsed_us as f64 / 1e6);
    }
    let tasks = graph.tasks.len() as f64;
    println!(
        "{what:<12} {agents} agents of {cores}: {best:>7.3} s, {:>8.0} tasks/s",
        tasks / best
    );
}

fn main() {
    let mut empty = Graph::default();
    empty.stage("empty");
    for _ in 0..100_000 {
        mix(&mut empty, vec![]);
    }
    let mut classic = Graph::default();
    classic.stage("classic");
    let read = |task| Input::Result { task, range: None };
    let squares: Vec<TaskId> = (0..10_000).map(|_| mix(&mut classic, vec![])).collect();
    let negated: Vec<TaskId> = squares
        .into_iter()
        .map(|s| mix(&mut classic, vec![read(s)]))
        .collect();
    let sum = mix(&mut classic, negated.into_iter().map(read).collect());
    classic.deliveries.push(sum);
    for (agents, cores) in [(1, 1), (1, 2), (2, 1), (3, 4)] {
        run("empty", &empty, agents, cores);
        run("classic", &classic, agents, cores);
    }
}
