//! Nobody gets in, the reason is told on both sides, and the node serves on.
//!
//! Still to come: a peer of another version, for which a test needs a farm's words of its own.
#![cfg(target_os = "linux")]

use std::time::{Duration, SystemTime};

use shared::net::identity::FarmKey;
use tests::{
    farm_process::{Farm, Job, SOON, key_of, told_one_of},
    lan::{Process, program},
    lan_or_skip,
};

#[test]
fn another_farm_is_refused_and_told_on_both_sides() {
    let farm = lan_or_skip!(Farm::of(2, Job::SMALL));
    let (h1, h2) = (farm.lan.host("h1"), farm.lan.host("h2"));
    // h2 is of another farm.
    std::fs::remove_file(key_of(h2)).expect("it has a key");
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

#[test]
fn a_lent_certificate_that_has_run_out_opens_nothing() {
    let farm = lan_or_skip!(Farm::of(2, Job::SMALL));
    let [ws, h2] = [farm.lan.ws(), farm.lan.host("h2")];
    let key = FarmKey::read(&key_of(ws)).expect("the farm's key");
    let hour = Duration::from_secs(3600);
    let lent = key
        .lend_until(SystemTime::now() - hour)
        .expect("it can be lent");
    std::fs::write(key_of(h2), lent).expect("in place of the key");
    let good = farm.node("h1");
    let late = farm.node("h2");
    let run = farm.run(&["--node", "h1", "--node", "h2"]);
    farm.ends_well(&run);
    // Named by the workstation, and by the node that hears of it.
    let list = farm.svdjob(ws, &["nodes", "--node", "h2"]);
    list.succeeds(SOON);
    let told = list.stdout();
    assert!(
        told.contains("h2") && told.contains("expired"),
        "{}",
        list.told()
    );
    late.wait_for("expired", SOON);
    // Nor does it call anybody.
    let caller = farm.svdjob(h2, &["nodes", "--no-discover", "--node", "h1"]);
    caller.exit(SOON);
    told_one_of_both(&caller, "expired");
    good.wait_for("expired", SOON);
    farm.ends_well(&farm.run(&["--no-discover", "--node", "h1"]));
}

fn told_one_of_both(process: &Process, word: &str) {
    let told = process.stdout() + &process.stderr();
    assert!(told.contains(word), "{}", process.told());
}
