//! The embedded farm on real threads: any number of agents and cores gives the bytes of the sequential evaluation.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use coordinator::{
    farm::{
        AgentOptions, EmbeddedOptions, InputErrorKind, Inputs, RunError, RunReport, run_embedded,
    },
    spool::Spool,
};
use shared::farm::{
    bytes::Bytes,
    graph::{Accumulator, Graph, Input, Output, Task},
    ids::{ContentHash, TaskId},
    work::WorkError,
};
use tests::{
    Random,
    toy::{Case, Growing, Toy, cut, evaluate, random_case},
};

fn options(agents: usize, cores: u16, memory_bytes: u64) -> EmbeddedOptions {
    EmbeddedOptions {
        agents: vec![AgentOptions::new(cores, memory_bytes); agents],
        ..EmbeddedOptions::new(1, 0)
    }
}

fn run(
    graph: &Graph<Toy>,
    inputs: HashMap<ContentHash, Bytes>,
    options: &EmbeddedOptions,
) -> Result<(BTreeMap<TaskId, Bytes>, RunReport), RunError<Infallible>> {
    let inputs: Arc<dyn Inputs> = Arc::new(inputs);
    let mut delivered = BTreeMap::new();
    let report = run_embedded(
        Arc::new(graph.clone()),
        ContentHash::of(b"plan"),
        inputs,
        options,
        &mut |task, bytes| {
            assert!(delivered.insert(task, bytes).is_none(), "delivered twice");
            Ok(None)
        },
        &mut |_| {},
        &AtomicBool::new(false),
    )?;
    Ok((delivered, report))
}

#[test]
fn agents_cores_and_budgets_change_no_byte() {
    for seed in 0..40 {
        let Case { graph, inputs } = random_case(seed);
        let wanted = evaluate(&graph, &inputs);
        for (agents, cores, memory) in [
            (1, 1, 1 << 30),
            (1, 4, 1 << 30),
            (2, 2, 1 << 30),
            (3, 1, 1 << 30),
            (1, 2, 500),
            (3, 2, 0),
        ] {
            let options = options(agents, cores, memory);
            let (found, report) = run(&graph, inputs.clone(), &options)
                .unwrap_or_else(|why| panic!("seed {seed}, {options:?}: {why}"));
            assert_eq!(found, wanted, "seed {seed}, {options:?}");
            assert_eq!(report.tasks, graph.tasks.len() as u64);
        }
    }
}

fn one_task(work: Toy, inputs: Vec<Input>) -> Graph<Toy> {
    let mut graph = Graph::default();
    let stage = graph.stage("only");
    let task = graph.task(Task {
        work,
        inputs,
        output: Output::Block { bytes: 8 },
        width: 1,
        cost: 1,
        stage,
    });
    graph.deliveries.push(task);
    graph
}

#[test]
fn a_failing_task_ends_the_run_with_its_story() {
    let options = options(1, 2, 1 << 30);
    match run(&one_task(Toy::Fail, vec![]), HashMap::new(), &options) {
        Err(RunError::Work {
            task,
            verb,
            error,
            story,
        }) => {
            assert_eq!((task, verb), (TaskId(0), "fail"));
            assert_eq!(error, WorkError::Numbers("nothing adds up".to_owned()));
            let told = story.to_string();
            assert!(
                told.contains("ready") && told.contains("failed at agent 0"),
                "{told}"
            );
        }
        other => panic!("{other:?}"),
    }
    match run(&one_task(Toy::Panic, vec![]), HashMap::new(), &options) {
        Err(RunError::Work { error, .. }) => {
            assert_eq!(error, WorkError::Panic("out of ideas".to_owned()));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_input_that_cannot_be_read_is_named() {
    let hash = ContentHash::of(b"never written");
    let graph = one_task(
        Toy::Mix { seed: 1, bytes: 8 },
        vec![Input::Block { hash, bytes: 13 }],
    );
    match run(&graph, HashMap::new(), &options(1, 1, 1 << 30)) {
        Err(RunError::Input(error)) => {
            assert_eq!((error.hash, error.kind), (hash, InputErrorKind::Missing));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_run_that_is_stopped_ends_at_once() {
    let graph = one_task(Toy::Mix { seed: 1, bytes: 8 }, vec![]);
    let stop = AtomicBool::new(false);
    let inputs: Arc<dyn Inputs> = Arc::new(());
    let result = run_embedded(
        Arc::new(graph),
        ContentHash::of(b"plan"),
        inputs,
        &options(1, 1, 1 << 30),
        &mut |_, _| Ok::<_, Infallible>(None),
        &mut |_| stop.store(true, Ordering::Relaxed),
        &stop,
    );
    // Stopped by the first report of progress, unless the one task was faster than that.
    assert!(matches!(result, Err(RunError::Interrupted) | Ok(_)));
}

/// Enough tasks that every queue on the way is full now and then.
#[test]
fn thousands_of_tasks_pass_through_any_number_of_agents() {
    let mut graph = Graph::default();
    let stage = graph.stage("only");
    let mut task = |inputs: Vec<Input>| {
        graph.task(Task {
            work: Toy::Mix { seed: 3, bytes: 8 },
            inputs,
            output: Output::Block { bytes: 8 },
            width: 1,
            cost: 1,
            stage,
        })
    };
    let read = |task| Input::Result { task, range: None };
    let first: Vec<TaskId> = (0..10_000).map(|_| task(vec![])).collect();
    let second = first
        .into_iter()
        .map(|t| read(task(vec![read(t)])))
        .collect();
    let last = task(second);
    graph.deliveries.push(last);
    let wanted = evaluate(&graph, &HashMap::new());
    for (agents, cores) in [(1, 1), (1, 4), (2, 1), (3, 4)] {
        let options = options(agents, cores, 1 << 30);
        let (found, _) = run(&graph, HashMap::new(), &options).unwrap();
        assert_eq!(found, wanted, "{options:?}");
    }
}

/// Two passes of 40 blocks by 4 parts with memory for about half of the blocks: every block is read at most once a
/// pass, what fits stays from pass to pass, and the budget holds.
#[test]
fn out_of_core_passes_read_each_block_once_and_keep_what_fits() {
    const BLOCKS: u32 = 40;
    const PARTS: u16 = 4;
    const BYTES: u64 = 1 << 16;
    let mut inputs = HashMap::new();
    let blocks: Vec<Input> = (0..BLOCKS)
        .map(|n| {
            let content = vec![n as u8; BYTES as usize];
            let hash = ContentHash::of(&content);
            inputs.insert(hash, Bytes::copy_from(&content).unwrap());
            Input::Block { hash, bytes: BYTES }
        })
        .collect();
    let mut graph = Graph::default();
    let mut before: Vec<Input> = Vec::new();
    for pass in 0..2 {
        let stage = graph.stage(format!("pass {pass}"));
        let accumulator = graph.accumulator(Accumulator {
            parts: vec![vec![100]; PARTS as usize],
            contributions: BLOCKS,
        });
        for contribution in 0..BLOCKS {
            for part in 0..PARTS {
                let mut reads = vec![blocks[contribution as usize]];
                reads.extend(before.get(part as usize));
                graph.task(Task {
                    work: Toy::Scatter { seed: 5 },
                    inputs: reads,
                    output: Output::Fold {
                        accumulator,
                        parts: (part, part + 1),
                        contribution,
                    },
                    width: 1,
                    cost: 1,
                    stage,
                });
            }
        }
        before = (0..PARTS)
            .map(|part| Input::Fold {
                accumulator,
                part,
                chunk: 0,
            })
            .collect();
    }
    let last = graph.task(Task {
        work: Toy::Mix { seed: 1, bytes: 8 },
        inputs: before,
        output: Output::Block { bytes: 8 },
        width: 1,
        cost: 1,
        stage: 1,
    });
    graph.deliveries.push(last);
    let wanted = evaluate(&graph, &inputs);
    let budget = 20 * BYTES + 20_000;
    for cores in [1, 2, 4] {
        let (found, report) = run(&graph, inputs.clone(), &options(1, cores, budget)).unwrap();
        assert_eq!(found, wanted);
        assert!(report.tracked_bytes_peak <= budget);
        let all = u64::from(BLOCKS) * BYTES;
        eprintln!(
            "{cores} cores read {:.2} of all",
            report.loaded_bytes as f64 / all as f64
        );
        assert!(
            report.loaded_bytes <= all * 7 / 4,
            "read {} of {all}",
            report.loaded_bytes
        );
    }
}

/// As [`run`], of a plan that grows; broken off after so many deliveries. What was delivered, from the spool too.
fn run_growing(
    growing: &Growing,
    inputs: HashMap<ContentHash, Bytes>,
    options: &EmbeddedOptions,
    deliveries_max: usize,
) -> (BTreeMap<TaskId, Bytes>, Option<RunReport>) {
    let inputs: Arc<dyn Inputs> = Arc::new(inputs);
    let mut delivered = BTreeMap::new();
    let ran = run_embedded(
        Arc::clone(&growing.graphs[0]),
        ContentHash::of(b"plan"),
        inputs,
        options,
        &mut |task, bytes| {
            if delivered.len() == deliveries_max {
                return Err(());
            }
            assert!(delivered.insert(task, bytes).is_none(), "delivered twice");
            Ok(growing.decided(task))
        },
        &mut |_| {},
        &AtomicBool::new(false),
    );
    match ran {
        Ok(report) => (delivered, Some(report)),
        Err(RunError::Deliver(())) => (delivered, None),
        Err(why) => panic!("{why}"),
    }
}

#[test]
fn a_plan_that_grows_is_gone_on_with_where_it_was_broken_off() {
    let mut replayed = 0;
    for seed in 0..40 {
        let Case { graph, inputs } = random_case(seed);
        let growing = cut(&graph, &mut Random(seed), |_, _, _| {});
        let last = growing.graphs.last().unwrap();
        let wanted = evaluate(last, &inputs);
        let spools = tempfile::tempdir().unwrap();
        let plan = ContentHash::of(b"plan");
        for deliveries in 0.. {
            let spool = Spool::open(spools.path(), plan).unwrap().unwrap();
            let kept = spool.kept().len();
            let options = EmbeddedOptions {
                spool: Some(Arc::new(spool)),
                ..options(1 + seed as usize % 3, 2, 1 << 30)
            };
            let (found, report) = run_growing(&growing, inputs.clone(), &options, deliveries);
            if let Some(report) = report {
                assert_eq!(found, wanted, "seed {seed}");
                assert_eq!(report.tasks, last.tasks.len() as u64);
                break;
            }
            replayed += kept;
        }
    }
    assert!(replayed > 20, "this tests little");
}

#[test]
fn a_plan_that_is_left_open_ends_the_run_with_a_word() {
    let mut graph = one_task(Toy::Mix { seed: 1, bytes: 8 }, vec![]);
    graph.open = true;
    match run(&graph, HashMap::new(), &options(1, 1, 1 << 30)) {
        Err(RunError::NotGrown) => {}
        other => panic!("{other:?}"),
    }
}
