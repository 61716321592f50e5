//! Who gets what when some are slower than others, or their links.

use shared::farm::message::Received;

use super::*;

/// Nobody is lost for silence here.
fn patient(graph: &Graph<Nothing>, cores: &[u16]) -> Farm {
    let mut farm = Farm::new(graph, cores);
    farm.scheduler.config.suspect_us = None;
    farm
}

fn block(n: u8, bytes: u64) -> Input {
    Input::Block {
        hash: ContentHash([n; 32]),
        bytes,
    }
}

impl Farm {
    fn takes(&mut self, agent: u32, this: Try, took_us: u32) {
        let done = vec![Done {
            this,
            bytes: 8,
            took_us,
            waits: Waits::default(),
        }];
        self.said(
            agent,
            FromAgent::Done {
                done,
                status: Status::default(),
                received: Vec::new(),
            },
        );
    }

    /// A MiB has come from the coordinator in that time.
    fn receives(&mut self, agent: u32, us: u64) {
        let received = vec![Received {
            stage: 0,
            from: AgentId::COORDINATOR,
            bytes: 1 << 20,
            us,
        }];
        let status = Status::default();
        self.said(agent, FromAgent::Heartbeat { status, received });
    }

    fn turns(&self, agent: u32) -> Vec<Turn> {
        let chapter = self.scheduler.story().since(&mut Mark::default());
        let turns = chapter.turns.iter();
        turns
            .filter(|line| line.agent == AgentId(agent))
            .map(|line| line.what)
            .collect()
    }
}

#[test]
fn a_straggler_s_task_is_given_to_an_idle_agent_too_and_the_first_answer_counts() {
    let mut farm = patient(&equal(2), &[1, 1]);
    assert_eq!(farm.assigned(), [(0, first(0)), (1, first(1))]);
    farm.does(1, first(1));
    assert_eq!(farm.assigned(), [], "it is not late yet");
    // A task takes 1 s.
    farm.now += 2_000_000;
    farm.handle(Event::Tick);
    assert_eq!(farm.assigned(), [], "nor now");
    farm.now += 200_000;
    farm.handle(Event::Tick);
    let second = Try {
        task: TaskId(0),
        attempt: Attempt(2),
    };
    assert_eq!(farm.assigned(), [(1, second)]);
    farm.does(1, second);
    let recall = Action::Tell {
        agent: AgentId(0),
        message: ToAgent::Recall(vec![first(0)]),
    };
    assert!(farm.actions().contains(&recall));
    let story = farm.scheduler.story().of(TaskId(0)).to_string();
    assert!(
        story.contains("given to agent 1, too") && story.contains("another was faster"),
        "{story}"
    );
}

/// What an idle agent gets of another's home, when a task takes 1 s and a block so many bytes.
fn stolen(bytes: u64) -> Vec<(u32, Try)> {
    let mut graph = Graph::default();
    graph.stage("only");
    for n in 0..8 {
        graph.task(task(vec![block(n, bytes)], BLOCK));
    }
    let mut farm = patient(&graph, &[1, 1]);
    let given = farm.assigned();
    assert_eq!((count(&given, 0), count(&given, 1)), (2, 2));
    farm.does(0, first(0));
    farm.assigned();
    for n in 4..7 {
        farm.does(1, first(n));
        farm.assigned();
    }
    farm.does(1, first(7));
    farm.assigned()
}

#[test]
fn what_is_at_home_elsewhere_is_taken_if_shipping_it_costs_less_than_waiting() {
    // Three tasks of 1 s are left there: shipping may take 2 s, and a link carries 100 MB/s until it is measured.
    assert_eq!(stolen(150_000_000), [(1, first(3))]);
    assert_eq!(stolen(250_000_000), []);
}

/// How many of 14 blocks are at home with each of two agents, after a stage in which one took three times as long.
fn homes_after_a_stage(bytes: u64) -> ([usize; 2], bool) {
    let mut graph = Graph::default();
    graph.stage("first");
    let stage = graph.stage("second");
    for n in 0..14 {
        graph.task(task(vec![block(n, bytes)], BLOCK));
    }
    for n in 0..14 {
        let mut inputs = vec![block(n, bytes)];
        inputs.extend((0..14).map(result));
        graph.task(Task {
            stage,
            ..task(inputs, BLOCK)
        });
    }
    let mut farm = patient(&graph, &[1, 1]);
    let mut done = 0;
    let mut given = farm.assigned();
    while done < 14 {
        let (agent, this) = given.remove(0);
        farm.takes(agent, this, if agent == 0 { 1_000_000 } else { 3_000_000 });
        done += 1;
        given.extend(farm.assigned());
    }
    let homes = [0, 1].map(|agent| {
        let homes = farm.scheduler.homes.iter();
        homes.filter(|home| **home == Some(AgentId(agent))).count()
    });
    let chapter = farm.scheduler.story().since(&mut Mark::default());
    let moved = chapter.moved.iter().any(|m| m.measured && m.from.is_some());
    (homes, moved)
}

#[test]
fn homes_move_by_measured_rate_if_that_gains_more_than_shipping_costs() {
    let (homes, moved) = homes_after_a_stage(1000);
    assert!(moved && homes[0] >= 10, "{homes:?}");
    let (homes, moved) = homes_after_a_stage(1_000_000_000_000);
    assert_eq!((homes, moved), ([7, 7], false));
}

#[test]
fn shipping_is_counted_by_what_came_over_the_link() {
    let mut farm = patient(&equal(1), &[1, 1]);
    let rate = |farm: &Farm| farm.scheduler.ship_rate(AgentId(0));
    assert!((rate(&farm) - 100.0).abs() < 1e-9, "until it is known");
    farm.receives(0, 1 << 14);
    assert!((rate(&farm) - 64.0).abs() < 1e-9);
    // It is believed to be as fast as it was, less a quarter of the difference.
    farm.receives(0, 1 << 15);
    assert!((rate(&farm) - 56.0).abs() < 1e-9);
    farm.receives(0, 1 << 13);
    assert!((rate(&farm) - 128.0).abs() < 1e-9);
}

#[test]
fn a_slow_link_gets_only_what_gains_more_than_shipping_costs() {
    let mut graph = Graph::default();
    graph.stage("only");
    let large = Output::Block { bytes: 8 << 20 };
    for n in 0..30 {
        graph.task(task(vec![], if n < 20 { large.clone() } else { BLOCK }));
    }
    let mut farm = patient(&graph, &[1, 1, 1]);
    // 2 MB/s, where the others are believed to have 100.
    farm.receives(2, 1 << 19);
    let slow = |turn: &Turn| matches!(turn, Turn::SlowLink { .. });
    assert!(farm.turns(2).iter().any(slow));
    let given = farm.assigned();
    assert_eq!((count(&given, 0), count(&given, 1)), (2, 2));
    let to_slow = given.iter().filter(|(agent, _)| *agent == 2);
    let to_slow: Vec<u32> = to_slow.map(|(_, this)| this.task.0).collect();
    assert_eq!(to_slow, [20, 21], "small ones only");
    // It turns out to be as fast as the others.
    farm.receives(2, 1 << 13);
    assert_eq!(farm.turns(2).last(), Some(&Turn::LinkAgain));
    farm.does(2, first(20));
    let given = farm.assigned();
    assert_eq!(given, [(2, first(4))], "a large one");
}

/// Agent 1 waits for a MiB for half a second, and is heard of meanwhile or not.
fn waits(lives: bool) -> Farm {
    let mut graph = Graph::default();
    graph.stage("only");
    for n in 0..2 {
        graph.task(task(vec![block(n, 1 << 20)], BLOCK));
    }
    let mut farm = patient(&graph, &[1, 1]);
    assert_eq!(farm.assigned(), [(0, first(0)), (1, first(1))]);
    farm.takes(0, first(0), 10_000);
    farm.assigned();
    farm.now += 500_000;
    if lives {
        let (status, received) = (Status::default(), Vec::new());
        farm.said(1, FromAgent::Heartbeat { status, received });
    }
    farm.handle(Event::Tick);
    farm
}

#[test]
fn whoever_keeps_others_waiting_for_what_it_was_sent_has_a_slow_link() {
    let mut farm = waits(true);
    let actions = farm.actions();
    let recall = Action::Tell {
        agent: AgentId(1),
        message: ToAgent::Recall(vec![first(1)]),
    };
    assert!(actions.contains(&recall), "{actions:?}");
    farm.said(1, FromAgent::Returned(vec![first(1)]));
    let given = farm.assigned();
    assert_eq!(count(&given, 1), 0, "{given:?}");
}

#[test]
fn whoever_may_be_dead_is_not_blamed_for_its_link() {
    let farm = waits(false);
    let slow = |turn: &Turn| matches!(turn, Turn::SlowLink { .. });
    assert!(!farm.turns(1).iter().any(slow));
}
