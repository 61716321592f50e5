use serde::{Deserialize, Serialize};
use shared::farm::{
    graph::{Accumulator, Task},
    ids::Attempt,
    message::{ProtocolRange, Waits},
    work::Work,
};

use super::*;

mod pace;

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct Nothing;

impl Work for Nothing {
    fn verb(&self) -> &'static str {
        "nothing"
    }
}

const PLAN: ContentHash = ContentHash([1; 32]);

fn task(inputs: Vec<Input>, output: Output) -> Task<Nothing> {
    Task {
        work: Nothing,
        inputs,
        output,
        width: 1,
        cost: 1,
        stage: 0,
    }
}

const BLOCK: Output = Output::Block { bytes: 8 };

fn result(task: u32) -> Input {
    Input::Result {
        task: TaskId(task),
        range: None,
    }
}

fn equal(count: u32) -> Graph<Nothing> {
    let mut graph = Graph::default();
    graph.stage("only");
    for _ in 0..count {
        graph.task(task(vec![], BLOCK));
    }
    graph
}

/// The scheduler, spoken to in verbs.
struct Farm {
    scheduler: Scheduler<Nothing>,
    now: u64,
}

impl Farm {
    fn new(graph: &Graph<Nothing>, cores: &[u16]) -> Self {
        Self::keeping(graph, cores, None)
    }

    fn keeping(graph: &Graph<Nothing>, cores: &[u16], kept: Option<&[TaskId]>) -> Self {
        Self::going_on(graph, cores, kept, &[])
    }

    fn going_on(
        graph: &Graph<Nothing>,
        cores: &[u16],
        kept: Option<&[TaskId]>,
        delivered: &[TaskId],
    ) -> Self {
        graph.validate().unwrap();
        let config = SchedulerConfig {
            agents_expected: cores.len(),
            suspect_us: Some(1000),
            attempts_max: 3,
            ..SchedulerConfig::default()
        };
        let mut farm = Self {
            scheduler: Scheduler::new(Arc::new(graph.clone()), PLAN, config, kept, delivered),
            now: 0,
        };
        for (agent, &cores) in cores.iter().enumerate() {
            farm.joins(agent as u32, cores);
        }
        farm
    }

    fn joins(&mut self, agent: u32, cores: u16) {
        let hello = Hello {
            protocol: PROTOCOL,
            cores,
            memory_bytes: 1 << 30,
            disk_bytes: 0,
            isa: String::new(),
        };
        self.said(agent, FromAgent::Hello(hello));
        self.said(agent, FromAgent::Have(vec![]));
    }

    fn said(&mut self, agent: u32, message: FromAgent) {
        let agent = AgentId(agent);
        self.handle(Event::Said { agent, message });
    }

    fn handle(&mut self, event: Event) {
        self.now += 1;
        self.scheduler.handle(Moment(self.now), event);
    }

    fn does(&mut self, agent: u32, this: Try) {
        let done = vec![Done {
            this,
            bytes: 8,
            took_us: 1_000_000,
            waits: Waits::default(),
        }];
        let status = Status::default();
        let received = Vec::new();
        self.said(
            agent,
            FromAgent::Done {
                done,
                status,
                received,
            },
        );
    }

    fn actions(&mut self) -> Vec<Action<Nothing>> {
        let now = Moment(self.now);
        std::iter::from_fn(|| self.scheduler.poll_action(now)).collect()
    }

    /// What is assigned now: agent and task.
    fn assigned(&mut self) -> Vec<(u32, Try)> {
        let mut assigned = Vec::new();
        for action in self.actions() {
            if let Action::Tell {
                agent,
                message: ToAgent::Assign(assignments),
            } = action
            {
                assigned.extend(assignments.iter().map(|a| (agent.0, a.this)));
            }
        }
        assigned
    }
}

fn count(assigned: &[(u32, Try)], agent: u32) -> usize {
    assigned.iter().filter(|(a, _)| *a == agent).count()
}

fn first(task: u32) -> Try {
    Try {
        task: TaskId(task),
        attempt: Attempt(1),
    }
}

#[test]
fn fourteen_tasks_on_two_agents_of_eight_cores_all_run_at_once() {
    let graph = equal(14);
    let assigned = Farm::new(&graph, &[8, 8]).assigned();
    assert_eq!((count(&assigned, 0), count(&assigned, 1)), (7, 7));
}

#[test]
fn first_homes_are_in_proportion_to_cores() {
    let graph = equal(14);
    let assigned = Farm::new(&graph, &[2, 4, 8]).assigned();
    let counts = [0, 1, 2].map(|a| count(&assigned, a));
    assert_eq!(counts, [2, 4, 8]);
    // No agent is given more than twice what it can run before it is known how long that takes.
    let graph = equal(1000);
    let assigned = Farm::new(&graph, &[1, 2, 4]).assigned();
    assert_eq!([0, 1, 2].map(|a| count(&assigned, a)), [2, 4, 8]);
}

#[test]
fn nothing_is_assigned_before_all_are_there_and_strangers_are_refused() {
    let graph = equal(4);
    let mut farm = Farm::new(&graph, &[]);
    farm.scheduler.config.agents_expected = 2;
    farm.joins(0, 4);
    assert_eq!(farm.assigned(), []);
    let future = ProtocolRange {
        oldest: 70,
        newest: 71,
    };
    let hello = Hello {
        protocol: future,
        cores: 4,
        memory_bytes: 0,
        disk_bytes: 0,
        isa: String::new(),
    };
    farm.said(1, FromAgent::Hello(hello));
    let refused = Action::Refused {
        agent: AgentId(1),
        understood: future,
    };
    assert!(farm.actions().contains(&refused));
    farm.joins(2, 4);
    assert_eq!(farm.assigned().len(), 4);
}

#[test]
fn whoever_stands_idle_gets_what_others_have_not_begun() {
    let graph = equal(4);
    let mut farm = Farm::new(&graph, &[2]);
    assert_eq!(count(&farm.assigned(), 0), 4);
    farm.joins(1, 2);
    let back: Vec<Try> = [3, 2].map(first).to_vec();
    let recall = Action::Tell {
        agent: AgentId(0),
        message: ToAgent::Recall(back.clone()),
    };
    assert!(farm.actions().contains(&recall));
    farm.said(0, FromAgent::Returned(back));
    let moved: Vec<(u32, u32)> = farm
        .assigned()
        .iter()
        .map(|(a, t)| (*a, t.task.0))
        .collect();
    assert_eq!(moved, [(1, 2), (1, 3)]);
}

#[test]
fn what_a_lost_agent_alone_had_is_done_again_with_what_it_needs() {
    // 0 -> 1 -> 2, and 3 beside them.
    let mut graph = equal(1);
    graph.task(task(vec![result(0)], BLOCK));
    let last = graph.task(task(vec![result(1)], BLOCK));
    graph.task(task(vec![], BLOCK));
    graph.deliveries.push(last);
    let mut farm = Farm::new(&graph, &[1]);
    farm.assigned();
    farm.does(0, first(0));
    farm.does(0, first(3));
    farm.does(0, first(1));
    farm.actions();
    farm.joins(1, 1);
    farm.handle(Event::Lost(AgentId(0)));
    // Task 0 had been dropped, task 1 was needed: both again; task 3 was read by nobody.
    let assigned = farm.assigned();
    let again = Try {
        task: TaskId(0),
        attempt: Attempt(2),
    };
    assert_eq!(assigned, [(1, again)]);
    // The lost one speaks, late: nobody listens.
    farm.does(0, first(2));
    farm.does(0, again);
    assert_eq!(farm.assigned(), []);
    farm.does(1, again);
    assert_eq!(farm.assigned()[0].1.task, TaskId(1));
}

#[test]
fn a_lost_partial_sum_is_added_again_and_its_readers_are_told() {
    let mut graph = Graph::default();
    graph.stage("only");
    let accumulator = graph.accumulator(Accumulator {
        parts: vec![vec![4]],
        contributions: 2,
    });
    for contribution in 0..2 {
        let output = Output::Fold {
            accumulator,
            parts: (0, 1),
            contribution,
        };
        graph.task(task(vec![], output));
    }
    let chunk = Input::Fold {
        accumulator,
        part: 0,
        chunk: 0,
    };
    let reader = graph.task(task(vec![chunk], BLOCK));
    graph.deliveries.push(reader);
    let mut farm = Farm::new(&graph, &[1, 1]);
    assert_eq!(farm.assigned(), [(0, first(0)), (1, first(1))]);
    farm.does(0, first(0));
    farm.does(1, first(1));
    let assigned = farm.assigned();
    assert_eq!(assigned.len(), 1);
    let reading = assigned[0].0;
    let other = 1 - reading;
    farm.handle(Event::Lost(AgentId(other)));
    let recall = Action::Tell {
        agent: AgentId(reading),
        message: ToAgent::Recall(vec![first(2)]),
    };
    let actions = farm.actions();
    assert_eq!(actions[0], recall);
    let story = farm.scheduler.story().of(TaskId(other));
    assert!(
        story
            .0
            .iter()
            .any(|(_, what)| *what == Transition::Undone(AgentId(other)))
    );
    farm.said(reading, FromAgent::Returned(vec![first(2)]));
    assert_eq!(farm.assigned(), [], "the reader waits for the sum");
    let again = Try {
        task: TaskId(other),
        attempt: Attempt(2),
    };
    farm.does(reading, again);
    assert_eq!(farm.assigned()[0].1.task, reader);
}

impl Farm {
    fn tick_at(&mut self, now: u64) {
        self.now = now - 1;
        self.handle(Event::Tick);
    }
}

#[test]
fn whoever_is_silent_is_written_off_and_comes_back_with_a_hello() {
    let graph = equal(1);
    let mut farm = Farm::new(&graph, &[1]);
    assert_eq!(farm.assigned(), [(0, first(0))]);
    assert!(farm.scheduler.poll_deadline() <= Some(Moment(1001)));
    farm.now = 500;
    farm.said(
        0,
        FromAgent::Heartbeat {
            status: Status::default(),
            received: Vec::new(),
        },
    );
    farm.tick_at(1200);
    assert_eq!(farm.scheduler.agents_alive(), 1);
    farm.tick_at(1650);
    assert_eq!(farm.scheduler.agents_alive(), 0);
    let reset = Action::Tell {
        agent: AgentId(0),
        message: ToAgent::Reset,
    };
    assert!(farm.actions().contains(&reset));
    // What it says before its hello is of its earlier life.
    farm.does(0, first(0));
    farm.handle(Event::Delivery {
        agent: AgentId(0),
        task: TaskId(0),
    });
    assert_eq!(farm.actions(), []);
    farm.joins(0, 1);
    let again = Try {
        task: TaskId(0),
        attempt: Attempt(2),
    };
    assert_eq!(farm.assigned(), [(0, again)]);
    farm.does(0, first(0));
    assert!(!farm.actions().contains(&Action::Finished));
    farm.does(0, again);
    assert!(farm.actions().contains(&Action::Finished));
}

#[test]
fn a_coordinator_that_was_asleep_blames_nobody() {
    let graph = equal(1);
    let mut farm = Farm::new(&graph, &[1]);
    farm.tick_at(10_000_000);
    assert_eq!(farm.scheduler.agents_alive(), 1);
    farm.tick_at(10_001_200);
    assert_eq!(farm.scheduler.agents_alive(), 0);
}

#[test]
fn whoever_is_silent_for_long_is_gone() {
    let graph = equal(1);
    let mut farm = Farm::new(&graph, &[]);
    farm.scheduler.config.gone_us = Some(3000);
    farm.joins(0, 1);
    for now in (100..4000).step_by(100) {
        farm.tick_at(now);
    }
    assert!(farm.actions().contains(&Action::Close(AgentId(0))));
    farm.joins(0, 1);
    assert_eq!(farm.scheduler.agents_alive(), 0, "gone for good");
}

fn input(n: u8) -> Input {
    Input::Block {
        hash: ContentHash([n; 32]),
        bytes: 1 << 20,
    }
}

fn failing(kind: shared::farm::message::InputErrorKind) -> Cause {
    Cause::Input(shared::farm::message::InputError {
        hash: ContentHash([0; 32]),
        kind,
        why: "of a test".to_owned(),
    })
}

#[test]
fn what_fails_for_want_of_an_input_is_tried_elsewhere_and_not_for_ever() {
    use shared::farm::message::InputErrorKind;
    let graph = equal(1);
    let mut farm = Farm::new(&graph, &[1, 1, 1]);
    let mut tried = Vec::new();
    for attempt in 1..=3 {
        let assigned = farm.assigned();
        assert_eq!(assigned.len(), 1, "attempt {attempt}");
        let (agent, this) = assigned[0];
        tried.push(agent);
        let cause = failing(InputErrorKind::Io);
        farm.said(agent, FromAgent::Failed { this, cause });
    }
    tried.sort_unstable();
    assert_eq!(tried, [0, 1, 2]);
    let actions = farm.actions();
    assert!(matches!(actions[0], Action::Failed { .. }), "{actions:?}");
}

#[test]
fn blocks_find_homes_in_proportion_to_cores_and_where_they_are() {
    let mut graph = Graph::default();
    graph.stage("only");
    for n in 0..70 {
        graph.task(task(vec![input(n)], BLOCK));
    }
    let mut farm = Farm::new(&graph, &[1, 2, 4]);
    farm.assigned();
    let homes = |farm: &Farm| {
        [0, 1, 2].map(|a| {
            let homes = farm.scheduler.homes.iter();
            homes.filter(|h| **h == Some(AgentId(a))).count()
        })
    };
    assert_eq!(homes(&farm), [10, 20, 40]);
    // Another one comes, with half of the blocks: it gets its share, of those.
    farm.said(
        3,
        FromAgent::Hello(Hello {
            protocol: PROTOCOL,
            cores: 7,
            memory_bytes: 1 << 30,
            disk_bytes: 0,
            isa: String::new(),
        }),
    );
    farm.said(3, FromAgent::Have((35..70).collect()));
    farm.assigned();
    assert_eq!(homes(&farm), [5, 10, 20]);
    let of_3 = (0..).zip(&farm.scheduler.homes);
    let of_3 = of_3.filter(|(_, home)| **home == Some(AgentId(3)));
    assert_eq!(of_3.filter(|(block, _)| *block >= 35).count(), 20);
}

/// 0 and 1, kept; 2 reads them, kept in their place; 3 reads 2, delivered.
fn kept_in_turn() -> Graph<Nothing> {
    use shared::farm::graph::Checkpoint;
    let mut graph = equal(2);
    let middle = graph.task(task(vec![result(0), result(1)], BLOCK));
    let last = graph.task(task(vec![result(2)], BLOCK));
    graph.deliveries.push(last);
    graph.checkpoints.push(Checkpoint {
        tasks: vec![TaskId(0), TaskId(1)],
        supersedes: Vec::new(),
    });
    graph.checkpoints.push(Checkpoint {
        tasks: vec![middle],
        supersedes: vec![0],
    });
    graph
}

#[test]
fn what_is_kept_is_not_done_again_and_goes_when_it_is_superseded() {
    let graph = kept_in_turn();
    let mut farm = Farm::keeping(&graph, &[1], Some(&[]));
    assert_eq!(farm.assigned(), [(0, first(0)), (0, first(1))]);
    let agent = AgentId(0);
    for n in 0..2 {
        farm.does(0, first(n));
        let task = TaskId(n);
        farm.handle(Event::Delivery { agent, task });
        assert!(farm.actions().contains(&Action::Keep { agent, task }));
    }
    // All agents are lost; another comes.
    farm.handle(Event::Lost(agent));
    farm.joins(1, 1);
    let assigned = farm.assigned();
    assert_eq!(assigned.len(), 1);
    let (whom, this) = assigned[0];
    assert_eq!((whom, this.task), (1, TaskId(2)), "only what was not kept");
    farm.does(1, this);
    let agent = AgentId(1);
    let task = TaskId(2);
    farm.handle(Event::Delivery { agent, task });
    let actions = farm.actions();
    assert!(actions.contains(&Action::Keep { agent, task }));
    for n in 0..2 {
        assert!(actions.contains(&Action::Unkeep(TaskId(n))), "{actions:?}");
    }
}

#[test]
fn a_run_begins_with_what_the_one_before_has_kept() {
    let graph = kept_in_turn();
    let assigned = |kept: &[u32]| -> Vec<u32> {
        let kept: Vec<TaskId> = kept.iter().copied().map(TaskId).collect();
        let mut farm = Farm::keeping(&graph, &[1], Some(&kept));
        farm.assigned().iter().map(|(_, t)| t.task.0).collect()
    };
    assert_eq!(assigned(&[]), [0, 1]);
    assert_eq!(assigned(&[1]), [0]);
    assert_eq!(assigned(&[0, 1]), [2]);
    assert_eq!(assigned(&[2]), [3], "the first two are superseded");
    let mut farm = Farm::keeping(&graph, &[1], Some(&[TaskId(2)]));
    assert_eq!(farm.assigned().len(), 1);
    // It turns out damaged.
    farm.said(0, FromAgent::Returned(vec![first(3)]));
    farm.handle(Event::NotKept(TaskId(2)));
    let again: Vec<u32> = farm.assigned().iter().map(|(_, t)| t.task.0).collect();
    assert_eq!(again, [0, 1]);
}

#[test]
fn what_was_delivered_from_the_spool_is_not_delivered_again() {
    let mut graph = kept_in_turn();
    graph.deliveries.push(TaskId(2));
    let kept = [TaskId(2)];
    let mut farm = Farm::going_on(&graph, &[1], Some(&kept), &kept);
    assert_eq!(farm.assigned(), [(0, first(3))]);
    farm.does(0, first(3));
    let agent = AgentId(0);
    farm.handle(Event::Delivery {
        agent,
        task: TaskId(3),
    });
    let actions = farm.actions();
    assert!(!actions.contains(&Action::Deliver(TaskId(2))));
    assert_eq!(actions.last(), Some(&Action::Finished));
    // What is in the spool and could not be read there is made again.
    let mut farm = Farm::going_on(&graph, &[1], Some(&kept), &[]);
    let again: Vec<u32> = farm.assigned().iter().map(|(_, t)| t.task.0).collect();
    assert_eq!(again, [0, 1]);
}

#[test]
fn whom_two_cannot_reach_begins_anew_and_pairs_are_kept_apart() {
    let mut graph = equal(1);
    for _ in 0..3 {
        let reader = graph.task(task(vec![result(0)], BLOCK));
        graph.deliveries.push(reader);
    }
    let mut farm = Farm::new(&graph, &[1, 1, 1]);
    assert_eq!(farm.assigned(), [(0, first(0))]);
    farm.does(0, first(0));
    let assigned = farm.assigned();
    let of_1: Vec<Try> = assigned.iter().filter(|a| a.0 == 1).map(|a| a.1).collect();
    let Some(&this) = of_1.first() else {
        // All at home with agent 0: what it has not begun is asked back for the others.
        return;
    };
    farm.said(1, FromAgent::Returned(vec![this]));
    farm.said(1, FromAgent::Unreachable(AgentId(0)));
    farm.tick_at(5000);
    assert!(
        farm.assigned().iter().all(|(agent, _)| *agent != 1),
        "it cannot reach what it would read"
    );
}

#[test]
fn blocks_are_dropped_when_all_have_read_them() {
    let mut graph = equal(1);
    let reader = graph.task(task(vec![result(0), result(0)], BLOCK));
    graph.deliveries.push(reader);
    let mut farm = Farm::new(&graph, &[1]);
    farm.actions();
    farm.does(0, first(0));
    let drop = |task: u32| Action::Tell {
        agent: AgentId(0),
        message: ToAgent::Drop {
            results: vec![TaskId(task)],
            accumulators: vec![],
        },
    };
    assert!(!farm.actions().contains(&drop(0)));
    farm.does(0, first(1));
    assert!(farm.actions().contains(&drop(0)));
    let agent = AgentId(0);
    let task = TaskId(1);
    farm.handle(Event::Delivery { agent, task });
    let actions = farm.actions();
    assert_eq!(actions[0], Action::Deliver(task));
    assert!(actions.contains(&drop(1)));
    assert_eq!(actions.last(), Some(&Action::Finished));
}

/// 0, held, and 1, which reads it and is delivered; more will come.
fn open_plan() -> Graph<Nothing> {
    let mut graph = equal(1);
    let decision = graph.task(task(vec![result(0)], BLOCK));
    graph.deliveries.push(decision);
    graph.held = vec![TaskId(0)];
    graph.open = true;
    graph
}

/// One more task, delivered; more will come, and what is held may be read.
fn longer(graph: &Graph<Nothing>, reads: u32, held: &[u32]) -> Graph<Nothing> {
    let mut graph = graph.clone();
    let stage = graph.stage("more");
    let more = graph.task(Task {
        stage,
        ..task(vec![result(reads)], BLOCK)
    });
    graph.deliveries.push(more);
    graph.held = held.iter().copied().map(TaskId).collect();
    graph
}

impl Farm {
    /// The agent does a task, and the plan grows when its block is delivered. What is to be done then.
    fn decides(&mut self, agent: u32, this: Try, graph: Graph<Nothing>) -> Vec<Action<Nothing>> {
        self.does(agent, this);
        let before = self.actions();
        assert!(!before.contains(&Action::Finished) && !before.contains(&Action::NotGrown));
        let task = this.task;
        self.handle(Event::Delivery {
            agent: AgentId(agent),
            task,
        });
        graph.validate().unwrap();
        let mut graph = Some(Arc::new(graph));
        let mut actions = before;
        while let Some(action) = self.scheduler.poll_action(Moment(self.now)) {
            if action == Action::Deliver(task) {
                let graph = graph.take().expect("delivered once");
                self.scheduler.grow(Moment(self.now), graph);
            }
            actions.push(action);
        }
        assert!(graph.is_none(), "{task:?} was not delivered: {actions:?}");
        actions
    }
}

fn dropped(actions: &[Action<Nothing>]) -> Vec<u32> {
    let results = actions.iter().filter_map(|action| match action {
        Action::Tell {
            message: ToAgent::Drop { results, .. },
            ..
        } => Some(results),
        _ => None,
    });
    results.flatten().map(|task| task.0).collect()
}

fn given(actions: &[Action<Nothing>]) -> Vec<u32> {
    let assignments = actions.iter().filter_map(|action| match action {
        Action::Tell {
            message: ToAgent::Assign(assignments),
            ..
        } => Some(assignments),
        _ => None,
    });
    assignments
        .flatten()
        .map(|given| given.this.task.0)
        .collect()
}

#[test]
fn what_is_held_stays_until_a_growth_lets_it_go() {
    let graph = open_plan();
    let mut farm = Farm::new(&graph, &[1]);
    assert_eq!(farm.assigned(), [(0, first(0))]);
    farm.does(0, first(0));
    assert_eq!(farm.assigned(), [(0, first(1))]);
    // 2 reads 0, which is held on; 1 is read by nobody any more.
    let graph = longer(&graph, 0, &[0, 2]);
    let actions = farm.decides(0, first(1), graph.clone());
    assert_eq!((dropped(&actions), given(&actions)), (vec![1], vec![2]));
    // 3 reads 2, which is not held any more, but is read; nor is 0.
    let mut graph = longer(&graph, 2, &[]);
    graph.open = false;
    let actions = farm.decides(0, first(2), graph);
    assert_eq!((dropped(&actions), given(&actions)), (vec![0], vec![3]));
    farm.does(0, first(3));
    assert_eq!(dropped(&farm.actions()), [2]);
    let (agent, task) = (AgentId(0), TaskId(3));
    farm.handle(Event::Delivery { agent, task });
    assert_eq!(farm.actions().last(), Some(&Action::Finished));
    let stages = farm.scheduler.stages();
    let names: Vec<&str> = stages.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["only", "more", "more"]);
    assert!(stages.iter().all(StageProgress::is_done));
}

#[test]
fn what_is_held_is_made_again_when_it_is_lost() {
    let graph = open_plan();
    let mut farm = Farm::new(&graph, &[1]);
    farm.actions();
    farm.does(0, first(0));
    farm.actions();
    // 2 reads nothing that is held.
    let mut graph = longer(&graph, 1, &[0]);
    graph.tasks[2].inputs.clear();
    farm.decides(0, first(1), graph);
    farm.joins(1, 1);
    farm.actions();
    farm.handle(Event::Lost(AgentId(0)));
    let assigned = farm.assigned();
    assert_eq!(assigned.len(), 2, "{assigned:?}");
    assert_eq!(assigned[0].1.task, TaskId(0), "1 is delivered, 0 is held");
    assert_eq!(assigned[1].1.task, TaskId(2));
}

#[test]
fn what_is_neither_held_nor_read_is_made_again_for_a_growth() {
    let mut graph = open_plan();
    graph.held.clear();
    let mut farm = Farm::new(&graph, &[1]);
    farm.actions();
    farm.does(0, first(0));
    farm.actions();
    let actions = farm.decides(0, first(1), longer(&graph, 1, &[]));
    assert_eq!(dropped(&actions), [0, 1]);
    assert_eq!(given(&actions), [0], "1 reads it, and 2 reads 1");
}

#[test]
fn agents_old_and_new_are_told_of_new_sums() {
    let graph = open_plan();
    let mut farm = Farm::new(&graph, &[1]);
    farm.actions();
    farm.does(0, first(0));
    farm.actions();
    let mut graph = longer(&graph, 0, &[0]);
    let accumulator = graph.accumulator(Accumulator {
        parts: vec![vec![4]],
        contributions: 1,
    });
    let output = Output::Fold {
        accumulator,
        parts: (0, 1),
        contribution: 0,
    };
    graph.task(task(vec![result(0)], output));
    let accumulators = graph.accumulators.clone();
    let actions = farm.decides(0, first(1), graph);
    let grow = Action::Tell {
        agent: AgentId(0),
        message: ToAgent::Grow {
            accumulators: accumulators.clone(),
        },
    };
    let told = actions.iter().position(|action| *action == grow);
    let assigned = actions.iter().rposition(|action| {
        matches!(action, Action::Tell { message: ToAgent::Assign(given), .. }
            if given.iter().any(|g| g.this.task.0 >= 2))
    });
    assert!(told.is_some() && told < assigned, "{actions:?}");
    farm.joins(1, 1);
    let begins = farm.actions().into_iter().find_map(|action| match action {
        Action::Tell {
            message: ToAgent::Begin { accumulators, .. },
            ..
        } => Some(accumulators),
        _ => None,
    });
    assert_eq!(begins, Some(accumulators));
}

#[test]
fn a_plan_that_is_left_open_and_does_not_grow_comes_to_an_end() {
    let mut farm = Farm::new(&open_plan(), &[1]);
    farm.actions();
    farm.does(0, first(0));
    farm.actions();
    farm.does(0, first(1));
    assert!(!farm.actions().contains(&Action::NotGrown));
    let (agent, task) = (AgentId(0), TaskId(1));
    farm.handle(Event::Delivery { agent, task });
    let actions = farm.actions();
    assert_eq!(actions.last(), Some(&Action::NotGrown));
    assert!(!actions.contains(&Action::Finished));
}

#[test]
fn an_input_block_that_a_growth_may_read_is_said_to_be_read_later() {
    use shared::farm::message::LATER;
    for (open, again) in [(true, Some(TaskId(LATER + 1))), (false, None)] {
        let mut graph = equal(1);
        graph.tasks[0].inputs.push(input(7));
        graph.task(task(vec![input(7), result(0)], BLOCK));
        graph.deliveries.push(TaskId(1));
        graph.open = open;
        let mut farm = Farm::new(&graph, &[1]);
        let mut agains = Vec::new();
        for n in 0..2 {
            for action in farm.actions() {
                if let Action::Tell {
                    message: ToAgent::Assign(assignments),
                    ..
                } = action
                {
                    let needs = assignments.iter().flat_map(|a| &a.needs);
                    agains.extend(needs.map(|need| need.again));
                }
            }
            farm.does(0, first(n));
        }
        assert_eq!(agains, [Some(TaskId(1)), again, None]);
    }
}

#[test]
fn a_run_that_goes_on_does_not_do_what_was_only_held_once() {
    use shared::farm::graph::Checkpoint;
    // 0 was held and is read by nobody, 1 decided, 2 came for it.
    let mut graph = equal(3);
    graph.deliveries = vec![TaskId(1), TaskId(2)];
    graph.checkpoints.push(Checkpoint {
        tasks: vec![TaskId(1)],
        supersedes: Vec::new(),
    });
    let assigned = |these: &[TaskId]| -> Vec<u32> {
        let mut farm = Farm::going_on(&graph, &[4], Some(these), these);
        farm.assigned().iter().map(|(_, t)| t.task.0).collect()
    };
    assert_eq!(assigned(&[]), [0, 1, 2]);
    assert_eq!(assigned(&[TaskId(1)]), [2]);
}
