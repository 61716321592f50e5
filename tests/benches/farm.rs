//! How many tasks a second the farm itself can do, and the scheduler alone with a thousand agents.
//! `cargo bench -p tests --bench farm`

use std::{convert::Infallible, sync::Arc, sync::atomic::AtomicBool};

use std::time::Instant;

use coordinator::{
    farm::{AgentOptions, EmbeddedOptions, run_embedded},
    scheduler::{Action, Event, Scheduler, SchedulerConfig},
};
use shared::farm::{
    graph::{Accumulator, Graph, Input, Output, Task},
    ids::{AgentId, ContentHash, TaskId},
    message::{Done, FromAgent, Hello, PROTOCOL, Status, ToAgent, Try, Waits},
    moment::Moment,
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

fn run(what: &str, graph: &Arc<Graph<Toy>>, agents: usize, cores: u16) {
    let options = EmbeddedOptions {
        agents: vec![AgentOptions::new(cores, 1 << 30); agents],
        ..EmbeddedOptions::new(1, 0)
    };
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let report = run_embedded(
            Arc::clone(graph),
            ContentHash::of(b"bench"),
            Arc::new(()),
            &options,
            &mut |_, _| Ok::<_, Infallible>(None),
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

/// Passes over `blocks` blocks by 4 panels, each summed up and cut into 64 slices.
fn passes(passes: u16, blocks: u32) -> Graph<Toy> {
    const PANELS: u16 = 4;
    const SLICES: u32 = 64;
    let mut graph = Graph::default();
    let mut panels: Vec<Input> = Vec::new();
    for pass in 0..passes {
        let stage = graph.stage(format!("pass {pass}"));
        let accumulator = graph.accumulator(Accumulator {
            parts: vec![vec![8; SLICES as usize]; PANELS as usize],
            contributions: blocks,
        });
        for contribution in 0..blocks {
            let mut hash = [0; 32];
            hash[..4].copy_from_slice(&contribution.to_le_bytes());
            for part in 0..PANELS {
                let mut inputs = vec![Input::Block {
                    hash: ContentHash(hash),
                    bytes: 4 << 20,
                }];
                inputs.extend(panels.get(part as usize));
                graph.task(Task {
                    work: Toy::Scatter { seed: 1 },
                    inputs,
                    output: Output::Fold {
                        accumulator,
                        parts: (part, part + 1),
                        contribution,
                    },
                    width: 1,
                    cost: 100,
                    stage,
                });
            }
        }
        let slices: Vec<TaskId> = (0..SLICES)
            .map(|chunk| {
                let chunks = (0..PANELS).map(|part| Input::Fold {
                    accumulator,
                    part,
                    chunk,
                });
                graph.task(Task {
                    work: Toy::Mix { seed: 1, bytes: 64 },
                    inputs: chunks.collect(),
                    output: Output::Block { bytes: 1 << 20 },
                    width: 1,
                    cost: 10,
                    stage,
                })
            })
            .collect();
        panels = (0..PANELS)
            .map(|_| {
                let inputs = slices
                    .iter()
                    .map(|&task| Input::Result { task, range: None });
                let task = graph.task(Task {
                    work: Toy::Mix { seed: 1, bytes: 64 },
                    inputs: inputs.collect(),
                    output: Output::Block { bytes: 1 << 20 },
                    width: 1,
                    cost: 10,
                    stage,
                });
                Input::Result { task, range: None }
            })
            .collect();
    }
    for panel in panels {
        if let Input::Result { task, .. } = panel {
            graph.deliveries.push(task);
        }
    }
    graph
}

/// The scheduler with agents that do everything at once, one of them lost now and then.
fn schedule(what: &str, graph: &Arc<Graph<Toy>>, agents: u32, losses: u32) {
    let begin = Instant::now();
    let config = SchedulerConfig {
        agents_expected: agents as usize,
        ..SchedulerConfig::farm()
    };
    let hash = ContentHash::of(b"bench");
    let mut scheduler = Scheduler::new(Arc::clone(graph), hash, config, None, &[]);
    let mut now = Moment::START;
    let said = |agent, message| Event::Said { agent, message };
    for agent in (0..agents).map(AgentId) {
        let hello = Hello {
            protocol: PROTOCOL,
            cores: 4,
            memory_bytes: 1 << 34,
            disk_bytes: 0,
            isa: String::new(),
        };
        scheduler.handle(now, said(agent, FromAgent::Hello(hello)));
        scheduler.handle(now, said(agent, FromAgent::Have(Vec::new())));
    }
    // Done in the order in which they were given out, a message a task.
    let mut running: std::collections::VecDeque<(AgentId, Try)> = std::collections::VecDeque::new();
    let (mut done, mut lost) = (0_u64, 0);
    'run: loop {
        while let Some(action) = scheduler.poll_action(now) {
            match action {
                Action::Tell {
                    agent,
                    message: ToAgent::Assign(assignments),
                } => running.extend(assignments.iter().map(|a| (agent, a.this))),
                Action::Finished => break 'run,
                Action::Tell { .. }
                | Action::Deliver(_)
                | Action::Keep { .. }
                | Action::Unkeep(_)
                | Action::Failed { .. }
                | Action::Refused { .. }
                | Action::Close(_)
                | Action::NotGrown => {}
            }
        }
        let Some((agent, this)) = running.pop_front() else {
            for &task in &graph.deliveries {
                let agent = AgentId(agents - 1);
                scheduler.handle(now, Event::Delivery { agent, task });
            }
            continue;
        };
        now = now + 10;
        done += 1;
        if lost < losses && done % (graph.tasks.len() as u64 / u64::from(losses)) == 0 {
            lost += 1;
            scheduler.handle(now, Event::Lost(AgentId(lost)));
        }
        let message = FromAgent::Done {
            done: vec![Done {
                this,
                bytes: 1 << 20,
                took_us: 100_000,
                waits: Waits::default(),
            }],
            status: Status::default(),
            received: Vec::new(),
        };
        scheduler.handle(now, said(agent, message));
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "scheduler    {what:<9} {agents} agents, {} tasks, {lost} agents lost: {seconds:>6.3} s",
        graph.tasks.len()
    );
}

/// How long a growth by one pass takes, and checking it.
fn grow(blocks: u32) {
    let mut graph = Arc::new(Graph {
        open: true,
        ..passes(1, blocks)
    });
    let config = SchedulerConfig::farm();
    let hash = ContentHash::of(b"bench");
    let mut scheduler = Scheduler::new(Arc::clone(&graph), hash, config, None, &[]);
    for pass in 2..=10 {
        let mut longer = passes(pass, blocks);
        longer.deliveries.splice(0..0, graph.deliveries.clone());
        longer.open = true;
        let longer = Arc::new(longer);
        let begin = Instant::now();
        longer.grows_from(&graph).expect("a growth");
        longer.validate().expect("a graph");
        let checked = begin.elapsed().as_secs_f64();
        scheduler.grow(Moment::START, Arc::clone(&longer));
        println!(
            "growth       to {} tasks: checked in {:>4.1} ms, taken in in {:>4.1} ms",
            longer.tasks.len(),
            1e3 * checked,
            1e3 * (begin.elapsed().as_secs_f64() - checked)
        );
        graph = longer;
    }
}

fn main() {
    grow(2500);
    let graph = Arc::new(passes(10, 2500));
    schedule("passes", &graph, 1000, 0);
    schedule("passes", &graph, 1000, 10);
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
    let (empty, classic) = (Arc::new(empty), Arc::new(classic));
    for (agents, cores) in [(1, 1), (1, 2), (2, 1), (3, 4)] {
        run("empty", &empty, agents, cores);
        run("classic", &classic, agents, cores);
    }
}
