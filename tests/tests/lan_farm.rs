//! Nothing lost: real nodes on a LAN die, freeze, are cut off, fill up, and the factors are the same to the last bit.
#![cfg(target_os = "linux")]

use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use tests::{
    farm_process::{Farm, Job, LONG, SOON, Stage, bytes_of, largest_file, reaches, told_one_of},
    lan::Wire,
    lan_or_skip,
};

fn a_node_dies_in(stage: Stage) {
    let farm = lan_or_skip!(Farm::of(3, Job::MIDDLE));
    let [_h1, h2, _h3] = farm.nodes(["h1", "h2", "h3"]);
    let run = farm.run(&["--at-least", "3"]);
    reaches(&run, stage);
    h2.kill9();
    farm.ends_well(&run);
    let told = farm.svdjob(farm.lan.ws(), &["explain", "factor.toml", "--node", "h2"]);
    told.succeeds(SOON);
    let account = told.stdout();
    // The job may be over before more than its silence is known.
    let missed = ["h2 lost:", "h2 silent for"];
    assert!(
        missed.iter().any(|what| account.contains(what)),
        "{account}"
    );
    match stage {
        // It may have had nothing yet that anybody misses.
        Stage::Ship => {}
        _ => assert!(account.contains("done again: lost with h2"), "{account}"),
    }
}

/// What the coordinator sends and receives in a pass is the same for any number of nodes, but for messages.
#[test]
fn the_coordinator_s_bytes_in_a_pass_do_not_grow_with_the_nodes() {
    let farm = lan_or_skip!(Farm::of(3, Job::MIDDLE));
    let mut nodes = Vec::new();
    let mut alone = None;
    for (count, name) in [(1_u64, "h1"), (2, "h2"), (3, "h3")] {
        nodes.push(farm.node(name));
        let run = farm.run(&["--at-least", &count.to_string(), "--json"]);
        farm.ends_well(&run);
        let result: serde_json::Value =
            serde_json::from_str(&run.stdout()).expect("one JSON object");
        let stages = result["farm"]["stages"].as_array().expect("stages");
        let of = |stage: &serde_json::Value, what: &str| {
            stage["bytes"][what].as_u64().expect("a number")
        };
        let sum = |what| stages.iter().map(|stage| of(stage, what)).sum::<u64>();
        for stage in stages {
            let links = stage["links"].as_array().expect("links").iter();
            let between = links.filter(|link| link["from"] != "svdjob" && link["to"] != "svdjob");
            let between: u64 = between
                .map(|link| link["blocks"].as_u64().expect("bytes"))
                .sum();
            assert_eq!(between, of(stage, "between_nodes"), "{stage}");
        }
        // In most passes no block has to be sent: a median does not see those that move.
        let passes = stages.iter().filter(|stage| stage["pass"] == true);
        let mut sent: Vec<u64> = passes.map(|stage| of(stage, "sent")).collect();
        sent.sort_unstable();
        let sent = sent[sent.len() / 2];
        let (received, between) = (sum("received"), sum("between_nodes"));
        eprintln!(
            "{count} nodes: {sent} sent in a pass, {received} received, {between} between nodes"
        );
        assert_eq!(between > 0, count > 1, "panels go from node to node");
        let (sent_alone, received_alone) = *alone.get_or_insert((sent, received));
        assert_eq!(sent, sent_alone, "by {count} nodes{}", run.told());
        // What is delivered twice when two have done the same task is not a twentieth.
        assert!(
            received <= received_alone + received_alone / 20,
            "{received} by {count} nodes, {received_alone} by one{}",
            run.told()
        );
    }
}

#[test]
fn a_node_dies_while_blocks_are_shipped() {
    a_node_dies_in(Stage::Ship);
}

#[test]
fn a_node_dies_in_a_power_pass() {
    a_node_dies_in(Stage::Power(7));
}

#[test]
fn a_node_dies_in_the_making_of_a_basis() {
    a_node_dies_in(Stage::Basis(5));
}

#[test]
fn a_node_dies_in_the_projection() {
    a_node_dies_in(Stage::Projection);
}

#[test]
fn a_node_dies_in_the_lift() {
    a_node_dies_in(Stage::Lift);
}

/// The plan that grows: a node dies in each of its phases, and the factors are the same.
#[test]
fn nodes_die_while_a_tolerance_is_worked_for() {
    let farm = lan_or_skip!(Farm::of(3, Job::CERTIFIED));
    let _h1 = farm.node("h1");
    for stage in [
        Stage::Pass(9),
        Stage::New(12),
        Stage::Restart,
        Stage::Verification,
        Stage::Polish,
        Stage::Lift,
    ] {
        let [h2, h3] = farm.nodes(["h2", "h3"]);
        let run = farm.run(&["--at-least", "3"]);
        reaches(&run, stage);
        h2.kill9();
        farm.ends_well(&run);
        h3.kill9();
    }
}

/// The plan that grows, and a coordinator that is killed again and again: each run comes to the same plan by what the last
/// one has kept.
#[test]
fn the_coordinator_dies_while_a_tolerance_is_worked_for() {
    let farm = lan_or_skip!(Farm::of(2, Job::CERTIFIED));
    let _nodes = farm.nodes(["h1", "h2"]);
    let mut first = true;
    for stage in [
        Stage::Pass(6),
        Stage::New(9),
        Stage::Restart,
        Stage::Verification,
        Stage::Lift,
    ] {
        let run = farm.run(&[]);
        if !first {
            run.wait_for("resuming at", SOON);
        }
        first = false;
        reaches(&run, stage);
        run.kill9();
    }
    let run = farm.run(&[]);
    run.wait_for("resuming at", SOON);
    farm.ends_well(&run);
}

/// A node, and then the coordinator, at some place of a plan.
fn both_die_in(job: Job, stage: Stage, later: Stage) {
    let farm = lan_or_skip!(Farm::of(2, job));
    let [_h1, h2] = farm.nodes(["h1", "h2"]);
    let run = farm.run(&["--at-least", "2"]);
    reaches(&run, stage);
    h2.kill9();
    farm.ends_well(&run);
    let _again = farm.node("h2");
    let run = farm.run(&["--at-least", "2"]);
    reaches(&run, later);
    run.kill9();
    let run = farm.run(&[]);
    run.wait_for("resuming at", SOON);
    farm.ends_well(&run);
}

#[test]
fn both_die_while_centred_columns_are_worked_on() {
    both_die_in(Job::CENTRED, Stage::Pass(9), Stage::Restart);
}

#[test]
fn both_die_after_a_warm_start() {
    both_die_in(Job::WARM, Stage::Pass(3), Stage::Verification);
}

#[test]
fn both_die_in_a_gram_plan() {
    both_die_in(Job::GRAM, Stage::Gram, Stage::Lift);
}

#[test]
fn a_node_that_has_too_little_memory_is_named_and_left_out() {
    let farm = lan_or_skip!(Farm::of(2, Job::MIDDLE));
    let _enough = farm.node("h1");
    let _little = farm.node_with("h2", &["--cores", "1", "--memory", "16 MiB"]);
    let run = farm.run(&[]);
    run.wait_for("node h2 is not used: it offers 16 MiB", SOON);
    farm.ends_well(&run);
    assert!(run.told().contains("1 node of"), "{}", run.told());
}

#[test]
fn a_node_dies_and_is_started_again() {
    let farm = lan_or_skip!(Farm::of(2, Job::LASTING));
    let [_h1, h2] = farm.nodes(["h1", "h2"]);
    let run = farm.run(&["--at-least", "2"]);
    reaches(&run, Stage::Power(4));
    h2.kill9();
    let _again = farm.node("h2");
    let before = bytes_of(farm.lan.host("h2"));
    farm.ends_well(&run);
    let used = bytes_of(farm.lan.host("h2")) - before;
    assert!(
        used > 1 << 20,
        "it came back for {used} bytes{}",
        run.told()
    );
}

#[test]
fn all_nodes_but_one_die() {
    let farm = lan_or_skip!(Farm::of(3, Job::MIDDLE));
    let [h1, h2, _h3] = farm.nodes(["h1", "h2", "h3"]);
    let run = farm.run(&["--at-least", "3"]);
    reaches(&run, Stage::Power(4));
    h1.kill9();
    reaches(&run, Stage::Power(9));
    h2.kill9();
    farm.ends_well(&run);
}

#[test]
fn a_node_joins_in_the_middle_and_gets_work() {
    let farm = lan_or_skip!(Farm::of(2, Job::LASTING));
    let _h1 = farm.node("h1");
    let run = farm.run(&[]);
    reaches(&run, Stage::Power(3));
    let _h2 = farm.node("h2");
    run.wait_for("node h2 joined", SOON);
    farm.ends_well(&run);
    // More than greetings: a block, or what stands for one.
    let moved = bytes_of(farm.lan.host("h2"));
    assert!(moved > 1 << 20, "{moved} bytes{}", run.told());
}

#[test]
fn a_node_that_is_stopped_hands_over_and_goes() {
    let farm = lan_or_skip!(Farm::of(2, Job::MIDDLE));
    let [h1, h2] = farm.nodes(["h1", "h2"]);
    let run = farm.run(&["--at-least", "2"]);
    reaches(&run, Stage::Power(5));
    h1.terminate();
    h1.succeeds(SOON);
    farm.ends_well(&run);
    h2.terminate();
    h2.succeeds(Duration::from_secs(2));
}

/// `away` and `back` are given ten seconds between them, during which the others go on.
fn a_node_is_away(
    away: impl FnOnce(&Farm, &tests::lan::Process),
    back: impl FnOnce(&Farm, &tests::lan::Process),
) {
    let farm = lan_or_skip!(Farm::of(3, Job::LASTING));
    // Makes the run last without taking the processors from other tests.
    let far = Wire {
        delay_ms: 5.0,
        ..Wire::default()
    };
    for host in farm.lan.nodes() {
        farm.lan.wire(host.name(), far);
    }
    let [_h1, h2, _h3] = farm.nodes(["h1", "h2", "h3"]);
    let run = farm.run(&["--at-least", "3"]);
    reaches(&run, Stage::Power(4));
    away(&farm, &h2);
    run.wait_for("node h2 is silent", SOON);
    let start = Instant::now();
    sleep(Duration::from_secs(10));
    eprintln!(
        "away for {:.1?} after it was called silent",
        start.elapsed()
    );
    assert_eq!(
        run.ended(),
        None,
        "the job is too short for this{}",
        run.told()
    );
    let before = bytes_of(farm.lan.host("h2"));
    back(&farm, &h2);
    farm.ends_well(&run);
    let used = bytes_of(farm.lan.host("h2")) - before;
    assert!(
        used > 1 << 20,
        "it came back for {used} bytes{}",
        run.told()
    );
}

#[test]
fn a_node_freezes_for_ten_seconds() {
    a_node_is_away(|_, h2| h2.freeze(), |_, h2| h2.thaw());
}

#[test]
fn a_node_is_cut_off_for_ten_seconds() {
    a_node_is_away(|farm, _| farm.lan.cut("h2"), |farm, _| farm.lan.heal("h2"));
}

#[test]
fn two_nodes_that_do_not_hear_each_other() {
    let farm = lan_or_skip!(Farm::of(3, Job::MIDDLE));
    let _nodes = farm.nodes(["h1", "h2", "h3"]);
    let run = farm.run(&["--at-least", "3"]);
    reaches(&run, Stage::Power(4));
    farm.lan.cut_pair("h1", "h2");
    farm.ends_well(&run);
}

#[test]
fn a_long_and_lossy_way_to_every_node() {
    let farm = lan_or_skip!(Farm::of(3, Job::SMALL));
    let bad = Wire {
        delay_ms: 20.0,
        loss_percent: 2.0,
        ..Wire::default()
    };
    for name in ["h1", "h2", "h3"] {
        farm.lan.wire(name, bad);
    }
    let _nodes = farm.nodes(["h1", "h2", "h3"]);
    let run = farm.run(&["--at-least", "3"]);
    farm.ends_well(&run);
}

#[test]
fn one_of_three_has_a_slow_link() {
    let farm = lan_or_skip!(Farm::of(3, Job::MIDDLE));
    let _others = farm.nodes(["h1", "h2"]);
    let timed = |least| {
        let start = Instant::now();
        let run = farm.run(&["--at-least", least]);
        farm.ends_well(&run);
        start.elapsed()
    };
    timed("2");
    let two = timed("2");
    let slow = Wire {
        rate_mbit: 20.0,
        ..Wire::default()
    };
    farm.lan.wire("h3", slow);
    let _slow = farm.node("h3");
    let three = timed("3");
    let told = farm.svdjob(farm.lan.ws(), &["explain", "factor.toml", "--json"]);
    told.succeeds(SOON);
    let account: serde_json::Value = serde_json::from_str(&told.stdout()).expect("one JSON object");
    let names = account["names"].as_array().expect("names").iter();
    let slow: Vec<_> = names
        .filter(|name| name["name"] == "h3")
        .map(|name| &name["agent"])
        .collect();
    let shares = account["stages"].as_array().expect("stages").iter();
    let shares: Vec<_> = shares
        .flat_map(|stage| stage["agents"].as_array().expect("agents"))
        .collect();
    let busy = |only_slow: bool| -> u64 {
        let shares = shares.iter();
        shares
            .filter(|share| !only_slow || slow.contains(&&share["agent"]))
            .map(|share| share["busy_us"].as_u64().expect("a number"))
            .sum()
    };
    eprintln!("it was given {} of {} us of work", busy(true), busy(false));
    // A third of the cores; but each block, panel and sum would take longer to cross its link than a pass takes.
    assert!(10 * busy(true) < busy(false), "{}", told.stdout());
    // Not a bound: a machine that does other things, too, times nothing.
    eprintln!("two nodes {two:.1?}, with a third at 20 Mbit/s {three:.1?}");
}

#[test]
fn the_coordinator_dies_in_phase_after_phase_and_goes_on() {
    let farm = lan_or_skip!(Farm::of(2, Job::MIDDLE));
    let _nodes = farm.nodes(["h1", "h2"]);
    let mut first = true;
    for stage in [
        Stage::Power(10),
        Stage::Basis(20),
        Stage::Range,
        Stage::Projection,
        Stage::Lift,
    ] {
        let run = farm.run(&[]);
        if !first {
            run.wait_for("resuming at", SOON);
        }
        first = false;
        reaches(&run, stage);
        run.kill9();
    }
    let run = farm.run(&[]);
    run.wait_for("resuming at", SOON);
    farm.ends_well(&run);
    // A job that is done is not gone on with.
    let again = farm.run(&["--fresh"]);
    farm.ends_well(&again);
    assert!(!again.has_said("resuming at"), "{}", again.told());
}

#[test]
fn a_fresh_run_does_not_go_on_with_an_old_one() {
    let farm = lan_or_skip!(Farm::of(1, Job::MIDDLE));
    let _node = farm.node("h1");
    let run = farm.run(&[]);
    reaches(&run, Stage::Power(8));
    run.kill9();
    let run = farm.run(&["--fresh"]);
    farm.ends_well(&run);
    assert!(!run.has_said("resuming at"), "{}", run.told());
}

#[test]
fn the_second_coordinator_hears_who_has_the_node_and_gets_it_when_the_first_dies() {
    let farm = lan_or_skip!(Farm::of(2, Job::LASTING));
    let _node = farm.node("h1");
    let first = farm.run(&[]);
    reaches(&first, Stage::Power(3));
    // h2 is another workstation.
    let other = farm.lan.host("h2");
    farm.put_job(other, Job::SMALL);
    let wants = ["run", "factor.toml", "-v", "--otherwise", "fail"];
    let second = farm.svdjob(other, &wants);
    second.exits_with(5, SOON);
    told_one_of(&second, &["busy with job"]);
    let list = farm.svdjob(other, &["nodes"]);
    list.succeeds(SOON);
    assert!(list.stdout().contains("busy"), "{}", list.told());
    first.kill9();
    let deadline = Instant::now() + SOON;
    loop {
        // Each tries for its window.
        let again = farm.svdjob(other, &wants);
        if again.exit(LONG).code == Some(0) {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "the lease does not run out{}",
            again.told()
        );
    }
}

#[test]
fn a_flipped_byte_in_a_cached_block() {
    let farm = lan_or_skip!(Farm::of(1, Job::SMALL));
    let node = farm.node("h1");
    farm.ends_well(&farm.run(&[]));
    node.terminate();
    node.succeeds(SOON);
    let block = largest_file(&farm.lan.host("h1").home().join("node-cache"));
    let mut bytes = fs::read(&block).expect("a block");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&block, &bytes).expect("the same block, but for a bit");
    let node = farm.node("h1");
    farm.ends_well(&farm.run(&[]));
    told_one_of(&node, &["damaged"]);
}

#[test]
fn a_full_cache_disk() {
    let farm = lan_or_skip!(Farm::of(2, Job::MIDDLE));
    let h1 = farm.lan.host("h1");
    h1.small_disk(h1.home().join("node-cache"), 3 << 20);
    let [node, _other] = farm.nodes(["h1", "h2"]);
    farm.ends_well(&farm.run(&["--at-least", "2"]));
    told_one_of(&node, &["space", "full"]);
}

#[test]
fn a_node_that_gets_no_memory() {
    let farm = lan_or_skip!(Farm::of(2, Job::MIDDLE));
    let _poor = farm.poor_node("h1", 60 << 20);
    let _other = farm.node("h2");
    let run = farm.run(&["--at-least", "2"]);
    farm.ends_well(&run);
    told_one_of(&run, &["memory"]);
}

#[test]
fn any_number_of_nodes_and_threads_gives_the_same_bits() {
    let farm = lan_or_skip!(Farm::of(5, Job::SMALL));
    let mut nodes = vec![farm.node_with("h1", &["--cores", "2"])];
    farm.ends_well(&farm.run(&[]));
    for (count, names) in [(2, &["h2"][..]), (3, &["h3"]), (5, &["h4", "h5"])] {
        for (i, name) in names.iter().enumerate() {
            let cores = if i == 0 { "2" } else { "1" };
            nodes.push(farm.node_with(name, &["--cores", cores]));
        }
        let least = count.to_string();
        farm.ends_well(&farm.run(&["--at-least", &least]));
    }
}
