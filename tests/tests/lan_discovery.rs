//! Who finds whom on which networks, and what is said when nobody is found.
#![cfg(target_os = "linux")]

use std::time::{Duration, Instant};

use tests::{
    farm_process::{Farm, Job, SOON, told_one_of},
    lan::{Counters, Shape, Wire, program},
    lan_or_skip,
};

const QUIET: Shape = Shape {
    hosts: 1,
    far: 0,
    ipv6: false,
};

#[test]
fn four_nodes_are_found_at_once() {
    let farm = lan_or_skip!(Farm::of(4, Job::SMALL));
    let _nodes = farm.nodes(["h1", "h2", "h3", "h4"]);
    let start = Instant::now();
    let run = farm.run(&["--at-least", "4"]);
    for name in ["h1", "h2", "h3", "h4"] {
        run.wait_for(&format!("node {name} joined"), SOON);
    }
    let took = start.elapsed();
    eprintln!("four nodes have joined after {took:.2?}");
    assert!(took < Duration::from_millis(1500), "{took:?}{}", run.told());
    farm.ends_well(&run);
    let list = farm.svdjob(farm.lan.ws(), &["nodes"]);
    list.succeeds(SOON);
    for name in ["h1", "h2", "h3", "h4"] {
        assert!(list.stdout().contains(name), "{}", list.told());
    }
}

#[test]
fn nobody_is_there() {
    let farm = lan_or_skip!(Farm::of(1, Job::SMALL));
    let start = Instant::now();
    let run = farm.run(&[]);
    run.exits_with(5, SOON);
    eprintln!("nobody was found after {:.1?}", start.elapsed());
    told_one_of(&run, &["eth0"]);
    told_one_of(&run, &["firewall"]);
    // The job file decides what then.
    let run = farm.run(&["--otherwise", "embedded"]);
    farm.ends_well(&run);
}

#[test]
fn a_router_lets_no_question_pass_but_named_nodes_work() {
    let shape = Shape {
        hosts: 0,
        far: 2,
        ipv6: true,
    };
    let farm = lan_or_skip!(Farm::without_keys(shape, Job::SMALL));
    farm.make_key(farm.lan.ws());
    for name in ["f1", "f2"] {
        farm.give_key(farm.lan.host(name));
    }
    let _nodes = farm.nodes(["f1", "f2"]);
    farm.run(&[]).exits_with(5, SOON);
    farm.ends_well(&farm.run(&["--node", "f1", "--node", "10.77.1.12", "--at-least", "2"]));
}

#[test]
fn a_firewall_on_the_workstation_is_named_and_a_named_node_works() {
    let farm = lan_or_skip!(Farm::of(1, Job::SMALL));
    farm.lan.wire(
        "ws",
        Wire {
            firewall: true,
            ..Wire::default()
        },
    );
    let _node = farm.node("h1");
    let run = farm.run(&[]);
    run.exits_with(5, SOON);
    told_one_of(&run, &["firewall"]);
    farm.ends_well(&farm.run(&["--node", "h1"]));
}

#[test]
fn a_node_that_does_not_advertise_is_found_by_name_only() {
    let farm = lan_or_skip!(Farm::of(1, Job::SMALL));
    let _node = farm.node_with("h1", &["--cores", "1", "--no-advertise"]);
    farm.ends_well(&farm.run(&["--no-discover", "--node", "h1"]));
}

#[test]
fn the_job_file_names_the_farm() {
    let farm = lan_or_skip!(Farm::of(2, Job::SMALL));
    farm.add_to_job("[farm]\ndiscover = false\nnodes = [\"h1\"]\notherwise = \"fail\"\n");
    let _nodes = farm.nodes(["h1", "h2"]);
    let run = farm.svdjob(farm.lan.ws(), &["run", "factor.toml", "-v"]);
    farm.ends_well(&run);
    assert!(run.has_said("node h1 joined"), "{}", run.told());
    assert!(!run.has_said("node h2 joined"), "{}", run.told());
}

#[test]
fn without_a_key_not_one_packet_is_sent() {
    let farm = lan_or_skip!(Farm::without_keys(QUIET, Job::SMALL));
    let (ws, h1) = (farm.lan.ws(), farm.lan.host("h1"));
    let before = ["eth0", "lo"].map(|interface| ws.counters(interface));
    assert_eq!(before, [Counters::default(); 2], "the LAN is not quiet");
    let run = farm.svdjob(ws, &["run", "factor.toml"]);
    farm.ends_well(&run);
    let after = ["eth0", "lo"].map(|interface| ws.counters(interface));
    assert_eq!(after, before, "{}", run.told());

    // And a node says what is missing, and where from to bring it.
    let node = h1.program(program("svdnode")).spawn();
    let exit = node.exit(SOON);
    assert!(exit.code.is_some_and(|code| code != 0), "{exit:?}");
    told_one_of(&node, &["farm.pem"]);
    told_one_of(&node, &["scp"]);
    let after = ["eth0", "lo"].map(|interface| h1.counters(interface));
    assert_eq!(after, [Counters::default(); 2], "{}", node.told());
}

#[test]
fn two_nodes_on_one_host_take_two_ports() {
    let farm = lan_or_skip!(Farm::of(1, Job::SMALL));
    let first = farm.node("h1");
    let second = farm.node_with("h1", &["--cores", "1", "--cache", "second-cache"]);
    assert!(first.has_said("UDP port 24740"), "{}", first.told());
    assert!(second.has_said("UDP port 24741"), "{}", second.told());
    farm.ends_well(&farm.run(&["--node", "h1", "--at-least", "2"]));
}

#[test]
fn a_node_with_nothing_to_do_goes_when_told_so() {
    let farm = lan_or_skip!(Farm::of(2, Job::SMALL));
    let idle = farm.node_with("h1", &["--exit-when-idle", "1"]);
    idle.succeeds(SOON);
    let once = farm.node_with("h2", &["--once"]);
    farm.ends_well(&farm.run(&[]));
    once.succeeds(SOON);
}

#[test]
fn a_network_that_has_only_ipv6() {
    let farm = lan_or_skip!(Farm::of(2, Job::SMALL));
    for name in ["ws", "h1", "h2"] {
        let (_, flush) = farm
            .lan
            .host(name)
            .program("ip")
            .args(["-4", "address", "flush", "dev", "eth0"])
            .run(SOON);
        flush.succeeds(SOON);
    }
    let _h1 = farm.node("h1");
    let _h2 = farm.node_with("h2", &["--cores", "1", "--listen", "[fd77::12]:24745"]);
    let named = ["--node", "[fd77::11]:24740", "--node", "[fd77::12]:24745"];
    let flags = [&["--no-discover", "--at-least", "2"], &named[..]].concat();
    farm.ends_well(&farm.run(&flags));
    let list = farm.svdjob(
        farm.lan.ws(),
        &["nodes", "--no-discover", "--node", "[fd77::11]"],
    );
    list.succeeds(SOON);
    assert!(list.stdout().contains("h1"), "{}", list.told());
    // And by mDNS, which IPv6 has, too.
    farm.ends_well(&farm.run(&["--at-least", "1"]));
}
