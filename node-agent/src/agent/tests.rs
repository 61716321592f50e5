use shared::farm::{
    graph::Accumulator,
    ids::{Attempt, ContentHash},
    message::Need,
};

use super::*;

fn this(task: u32) -> Try {
    Try {
        task: TaskId(task),
        attempt: Attempt(1),
    }
}

fn hash(n: u8) -> ContentHash {
    ContentHash([n; 32])
}

fn input(n: u8, bytes: u64) -> Need {
    Need {
        name: Name::Input(hash(n)),
        bytes,
        again: None,
        holders: vec![],
    }
}

fn fold(part: u16, contribution: u32) -> Output {
    Output::Fold {
        accumulator: AccumulatorId(0),
        parts: (part, part + 1),
        contribution,
    }
}

fn assignment(task: u32, needs: Vec<Need>, output: Output) -> Assignment<u8> {
    Assignment {
        this: this(task),
        work: 0,
        needs,
        output,
        width: 1,
        stage: 0,
        deliver: false,
    }
}

/// The agent, spoken to in verbs.
struct Bench {
    agent: Agent<u8>,
}

impl Bench {
    fn new(cores: u16, memory: u64, parts: usize) -> Self {
        let mut bench = Self {
            agent: Agent::new(AgentConfig::new(cores, memory)),
        };
        bench.coordinator(ToAgent::Begin {
            you: AgentId(0),
            protocol: PROTOCOL.newest,
            plan: hash(9),
            accumulators: vec![Accumulator {
                parts: vec![vec![4]; parts],
                contributions: 4,
            }],
            inputs: vec![],
            open_bytes: 0,
        });
        let first = bench.actions();
        assert!(matches!(
            first[..],
            [Action::Tell(FromAgent::Hello(_)), Action::Survey(_)]
        ));
        bench
    }

    fn event(&mut self, event: Event<u8>) {
        self.agent.handle(Moment(1), event);
    }

    fn coordinator(&mut self, message: ToAgent<u8>) {
        self.event(Event::Coordinator(message));
    }

    fn assign(&mut self, assignments: Vec<Assignment<u8>>) -> Vec<Action<u8>> {
        self.coordinator(ToAgent::Assign(assignments));
        self.actions()
    }

    fn loads(&mut self, n: u8, bytes: u64) -> Vec<Action<u8>> {
        self.event(Event::Loaded {
            shipped: false,
            hash: hash(n),
            outcome: Ok(bytes),
        });
        self.actions()
    }

    fn ends(&mut self, worker: u16, task: u32, bytes: u64) -> Vec<Action<u8>> {
        self.event(Event::Ran {
            worker,
            results: vec![Ran {
                this: this(task),
                took_us: 1_000_000,
                outcome: Ok(bytes),
            }],
        });
        self.actions()
    }

    fn actions(&mut self) -> Vec<Action<u8>> {
        std::iter::from_fn(|| self.agent.poll_action()).collect()
    }
}

/// Which worker begins which task.
fn runs(actions: &[Action<u8>]) -> Vec<(u16, u32)> {
    actions
        .iter()
        .filter_map(|a| match a {
            Action::Run { worker, jobs } => Some((*worker, jobs[0].this.task.0)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_task_is_loaded_run_and_told_of() {
    let mut bench = Bench::new(1, 100, 0);
    let block = Output::Block { bytes: 8 };
    let actions = bench.assign(vec![assignment(0, vec![input(1, 30)], block)]);
    assert_eq!(actions, [Action::Load(hash(1))]);
    assert_eq!(runs(&bench.loads(1, 30)), [(0, 0)]);
    let actions = bench.ends(0, 0, 8);
    assert_eq!(actions[0], Action::Forget(Name::Input(hash(1))));
    assert!(matches!(
        &actions[1..],
        [Action::Tell(FromAgent::Done { done, .. })] if done[0].this == this(0)
    ));
    assert_eq!(bench.agent.store().tracked(), 8);
    bench.coordinator(ToAgent::Drop {
        results: vec![TaskId(0)],
        accumulators: vec![],
    });
    assert_eq!(bench.actions(), [Action::Forget(Name::result(TaskId(0)))]);
    assert_eq!(bench.agent.store().tracked(), 0);
}

#[test]
fn a_worker_goes_on_with_the_part_that_it_has_just_added_to() {
    // Blocks 1 and 2, parts 0 and 1: tasks (1,0) (1,1) (2,0) (2,1).
    let mut bench = Bench::new(2, 1 << 20, 2);
    let tasks = (0..4)
        .map(|t| {
            let (block, part) = (t / 2, t % 2);
            assignment(t, vec![input(block as u8, 10)], fold(part as u16, block))
        })
        .collect();
    assert_eq!(
        bench.assign(tasks),
        [Action::Load(hash(0)), Action::Load(hash(1))]
    );
    assert_eq!(runs(&bench.loads(0, 10)), [(0, 0), (1, 1)]);
    bench.loads(1, 10);
    assert_eq!(runs(&bench.ends(1, 1, 0)), [(1, 3)], "part 1 again");
    assert_eq!(runs(&bench.ends(0, 0, 0)), [(0, 2)], "part 0 again");
    assert_eq!(bench.agent.partials.copies(AccumulatorId(0), 0).len(), 1);
}

#[test]
fn a_second_copy_is_opened_only_where_a_worker_stands_idle_and_memory_allows() {
    for (memory, copies) in [(1000, 2), (40, 1)] {
        let mut bench = Bench::new(2, memory, 1);
        let actions = bench.assign(vec![
            assignment(0, vec![], fold(0, 0)),
            assignment(1, vec![], fold(0, 1)),
        ]);
        assert_eq!(runs(&actions).len(), copies);
        assert_eq!(
            bench.agent.partials.copies(AccumulatorId(0), 0).len(),
            copies
        );
        assert!(bench.agent.store().peak() <= memory);
    }
}

#[test]
fn the_budget_holds_back_what_does_not_fit_and_yields_only_to_standstill() {
    let mut bench = Bench::new(4, 100, 0);
    let block = Output::Block { bytes: 10 };
    let actions = bench.assign(
        (0..3)
            .map(|t| assignment(t, vec![input(t as u8, 40)], block.clone()))
            .collect(),
    );
    // Two fit, with what they yield; the third has to wait.
    assert_eq!(actions, [Action::Load(hash(0)), Action::Load(hash(1))]);
    bench.loads(0, 40);
    bench.loads(1, 40);
    assert_eq!(bench.agent.store().tracked(), 100);
    let actions = bench.ends(0, 0, 10);
    assert!(!actions.contains(&Action::Load(hash(2))), "60 + 50 > 100");
    // Nothing else goes on: now it must, though the two results cannot go and 20 + 50 would fit anyhow.
    let actions = bench.ends(1, 1, 10);
    assert!(actions.contains(&Action::Load(hash(2))));
    assert!(bench.agent.store().peak() <= 100);

    let mut bench = Bench::new(1, 10, 0);
    let actions = bench.assign(vec![assignment(0, vec![input(1, 40)], block)]);
    assert!(matches!(
        actions[..],
        [Action::Overrun { .. }, Action::Load(_)]
    ));
}

#[test]
fn what_has_begun_is_not_given_back() {
    let mut bench = Bench::new(1, 1000, 0);
    let block = Output::Block { bytes: 10 };
    bench.assign(vec![
        assignment(0, vec![], block.clone()),
        assignment(1, vec![], block),
    ]);
    let stale = Try {
        task: TaskId(1),
        attempt: Attempt(0),
    };
    bench.coordinator(ToAgent::Recall(vec![this(0), stale, this(1), this(5)]));
    assert_eq!(
        bench.actions(),
        [Action::Tell(FromAgent::Returned(vec![this(1)]))]
    );
    assert_eq!(bench.agent.store().tracked(), 10);
}

#[test]
fn a_wide_task_waits_for_its_cores_but_not_for_ever() {
    let mut bench = Bench::new(2, 1 << 20, 0);
    let block = Output::Block { bytes: 1 };
    let mut wide = assignment(1, vec![], block.clone());
    wide.width = 2;
    let mut tasks = vec![assignment(0, vec![], block.clone()), wide];
    tasks.extend((2..40).map(|t| assignment(t, vec![], block.clone())));
    let mut begun: Vec<(u16, u32)> = runs(&bench.assign(tasks));
    let mut at = 0;
    while begun.iter().all(|(_, t)| *t != 1) {
        let (worker, task) = begun[at];
        at += 1;
        begun.extend(runs(&bench.ends(worker, task, 1)));
    }
    assert!(begun.len() < 12, "{} went before", begun.len());
}

#[test]
fn a_chunk_is_the_sum_of_all_partial_sums_or_it_is_not() {
    let chunk = Name::Chunk {
        accumulator: AccumulatorId(0),
        part: 0,
        chunk: 0,
    };
    let set = |members: &[u32]| {
        let mut set = Contributions::default();
        for &m in members {
            set.insert(m);
        }
        set
    };
    for (theirs, whole) in [
        (set(&[1, 2, 3]), true),
        (set(&[1, 2]), false),
        (set(&[0, 1, 2, 3]), false),
    ] {
        let mut bench = Bench::new(1, 1000, 1);
        bench.assign(vec![assignment(0, vec![], fold(0, 0))]);
        bench.ends(0, 0, 0);
        let need = Need {
            name: chunk,
            bytes: 32,
            again: None,
            holders: vec![AgentId(4)],
        };
        let block = Output::Block { bytes: 1 };
        let actions = bench.assign(vec![assignment(1, vec![need], block)]);
        let ask = Action::Ask {
            peer: AgentId(4),
            request: 0,
            name: chunk,
        };
        assert_eq!(actions, [ask]);
        bench.event(Event::Arrived {
            request: 0,
            rest: 0,
            parcel: 0,
            bytes: 32,
            what: Parcel::Partial(theirs),
        });
        let actions = bench.actions();
        if whole {
            let pieces = vec![Piece::Copy(0), Piece::Parcel(0)];
            assert_eq!(
                actions,
                [Action::Gather {
                    name: chunk,
                    pieces
                }]
            );
        } else {
            assert!(actions.contains(&Action::Tell(FromAgent::Returned(vec![this(1)]))));
        }
    }
}

/// A block of 8 bytes that others have.
fn result(task: u32, holders: &[AgentId]) -> Need {
    Need {
        name: Name::result(TaskId(task)),
        bytes: 8,
        again: None,
        holders: holders.to_vec(),
    }
}

fn asked(actions: &[Action<u8>]) -> Vec<(AgentId, u64)> {
    actions
        .iter()
        .filter_map(|a| match a {
            Action::Ask { peer, request, .. } => Some((*peer, *request)),
            _ => None,
        })
        .collect()
}

const BLOCK: Output = Output::Block { bytes: 8 };

#[test]
fn who_does_not_have_it_or_does_not_answer_is_passed_over_and_the_coordinator_is_asked_last() {
    let mut bench = Bench::new(1, 100, 0);
    let holders = [AgentId::COORDINATOR, AgentId(1), AgentId(2)];
    let actions = bench.assign(vec![assignment(5, vec![result(3, &holders)], BLOCK)]);
    let first = asked(&actions);
    assert_eq!(first[0].0, AgentId(1));
    bench.event(Event::PeerGone(AgentId(1)));
    let actions = bench.actions();
    let second = asked(&actions);
    assert_eq!(second[0].0, AgentId(2));
    assert!(actions.contains(&Action::Tell(FromAgent::Unreachable(AgentId(1)))));
    bench.event(Event::PeerGone(AgentId(1)));
    assert_eq!(bench.actions(), [], "nothing is open there any more");
    let nothing = |request| Event::Arrived {
        request,
        rest: 0,
        parcel: request,
        bytes: 0,
        what: Parcel::Nothing,
    };
    bench.event(nothing(second[0].1));
    let third = asked(&bench.actions());
    assert_eq!(third[0].0, AgentId::COORDINATOR);
    bench.event(nothing(third[0].1));
    let back = Action::Tell(FromAgent::Returned(vec![this(5)]));
    assert!(bench.actions().contains(&back));
    assert_eq!(bench.agent.store().tracked(), 0);
}

#[test]
fn an_input_that_cannot_be_read_fails_all_that_wait_for_it() {
    let mut bench = Bench::new(1, 100, 0);
    bench.assign(vec![
        assignment(0, vec![input(1, 30)], BLOCK),
        assignment(1, vec![input(1, 30)], BLOCK),
    ]);
    let error = InputError {
        hash: hash(1),
        kind: shared::farm::message::InputErrorKind::Io,
        why: String::new(),
    };
    bench.event(Event::Loaded {
        shipped: false,
        hash: hash(1),
        outcome: Err(error),
    });
    let actions = bench.actions();
    for task in [0, 1] {
        assert!(actions.iter().any(|a| matches!(a,
            Action::Tell(FromAgent::Failed { this: t, .. }) if *t == this(task))));
    }
    assert_eq!(bench.agent.store().tracked(), 0);
}

#[test]
fn after_a_reset_it_runs_out_what_it_does_and_says_hello_with_its_inputs() {
    let mut bench = Bench::new(2, 1000, 1);
    bench.assign(vec![
        assignment(0, vec![input(1, 30)], fold(0, 0)),
        assignment(1, vec![input(1, 30)], BLOCK),
        assignment(2, vec![input(2, 30)], BLOCK),
    ]);
    assert_eq!(runs(&bench.loads(1, 30)).len(), 2);
    bench.ends(1, 1, 8);
    bench.coordinator(ToAgent::Reset);
    assert_eq!(bench.actions(), [Action::ForgetAll]);
    // A worker and a reader are still at it.
    assert_eq!(bench.ends(0, 0, 0), []);
    let actions = bench.loads(2, 30);
    assert_eq!(actions[0], Action::Forget(Name::Input(hash(2))));
    assert_eq!(actions[1], Action::ForgetAll);
    assert!(matches!(actions[2], Action::Tell(FromAgent::Hello(_))));
    assert_eq!(bench.agent.store().tracked(), 30, "one input is here");
    bench.coordinator(ToAgent::Begin {
        you: AgentId(0),
        protocol: PROTOCOL.newest,
        plan: hash(9),
        accumulators: vec![Accumulator {
            parts: vec![vec![4]],
            contributions: 4,
        }],
        inputs: vec![],
        open_bytes: 0,
    });
    bench.actions();
    let again = assignment(0, vec![input(1, 30)], fold(0, 0));
    assert_eq!(runs(&bench.assign(vec![again])), [(0, 0)], "read before");
}
