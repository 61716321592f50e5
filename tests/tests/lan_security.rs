//! Nobody gets in, the reason is told on both sides, and the node serves on.
//!
//! Still to come: a peer of another version, for which a test needs a farm's words of its own.
#![cfg(target_os = "linux")]

use tests::{
    farm_process::{Farm, Job, SOON, told_one_of},
    lan::program,
    lan_or_skip,
};

#[test]
fn another_farm_is_refused_and_told_on_both_sides() {
    let farm = lan_or_skip!(Farm::of(2, Job::SMALL));
    let (h1, h2) = (farm.lan.host("h1"), farm.lan.host("h2"));
    // h2 is of another farm.
    std::fs::remove_file(tests::farm_process::key_of(h2)).expect("it has a key");
    farm.make_key(h2);
    let _ours = farm.node("h1");
    let theirs = farm.node("h2");
    let run = farm.run(&["--node", "h1", "--node", "h2"]);
    farm.ends_well(&run);
    let list = farm.svdjob(farm.lan.ws(), &["nodes", "--node", "h2"]);
    list.succeeds(SOON);
    let told = list.stdout().to_lowercase();
    assert!(
        told.contains("farm") && told.contains("h2"),
        "{}",
        list.told()
    );
    theirs.wait_for("refused", SOON);
    told_one_of(&theirs, &["farm", "key"]);
    // And alone it is no farm for us.
    let none = farm.run(&["--no-discover", "--node", "h2"]);
    none.exits_with(5, SOON);
    told_one_of(&none, &["another farm", "other farm", "key"]);
    assert_ne!(h1.address(), h2.address());
}

#[test]
fn garbage_is_dropped_and_the_node_serves_on() {
    let farm = lan_or_skip!(Farm::of(2, Job::SMALL));
    let _node = farm.node("h1");
    let stranger = farm.lan.host("h2");
    for bytes in ["1000", "400000"] {
        stranger
            .program(program("lan-probe"))
            .args(["blast", "10.77.0.11:24740", bytes])
            .run(SOON)
            .1
            .succeeds(SOON);
    }
    farm.ends_well(&farm.run(&[]));
}
