//! Nodes that `svdjob` starts over a real SSH server: they come, work, and are gone with the job, however it ends.
#![cfg(target_os = "linux")]

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    thread::sleep,
    time::{Duration, Instant},
};

use tests::{
    farm_process::{Farm, Job, SOON, Stage, reaches},
    lan::{Process, Shape, program},
    lan_or_skip,
};

const fn hosts(hosts: usize) -> Shape {
    Shape {
        hosts,
        far: 0,
        ipv6: true,
    }
}

/// Waits until no node is left on a host.
fn is_free(farm: &Farm, name: &str, within: Duration) {
    let deadline = Instant::now() + within;
    while farm.lan.host(name).running("svdnode") > 0 {
        assert!(Instant::now() < deadline, "the node of {name} lives on");
        sleep(Duration::from_millis(100));
    }
}

/// Where the binary was copied to.
fn binary(farm: &Farm, name: &str) -> PathBuf {
    let folder = farm.lan.host(name).home().join(".cache/svdjob/bin");
    let mut entries = fs::read_dir(&folder)
        .expect("the binary is there")
        .flatten();
    let path = entries.next().expect("a binary").path();
    assert!(entries.next().is_none(), "more than one binary");
    path
}

/// The one line that a host has of its launch.
fn result_of(run: &Process, host: &str) -> String {
    let said = run.stdout() + &run.stderr();
    let mut lines = said
        .lines()
        .filter(|line| line.trim_start().starts_with(&format!("{host}: ")));
    let line = lines
        .next()
        .unwrap_or_else(|| panic!("{host}{}", run.told()));
    assert_eq!(lines.next(), None, "{host}{}", run.told());
    line.trim().to_owned()
}

#[test]
fn nodes_come_over_ssh_and_go_with_the_job() {
    let farm = lan_or_skip!(Farm::over_ssh(hosts(2), Job::SMALL, &["h1", "h2"]));
    let names = ["h1", "h2"];
    let whole = fs::read(program("svdnode")).expect("the binary");
    let run = || {
        let run = farm.run_over_ssh(&names, &["--at-least", "2"]);
        farm.ends_well(&run);
        for name in names {
            let line = result_of(&run, name);
            assert!(line.contains("started, "), "{line}");
            is_free(&farm, name, SOON);
            assert!(fs::read(binary(&farm, name)).expect("a binary") == whole);
        }
        names.map(|name| fs::metadata(binary(&farm, name)).expect("facts").ino())
    };
    let first = run();
    assert_eq!(run(), first, "copied again");
    // A damaged one of the same length, and another program.
    let damaged = binary(&farm, "h1");
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, &bytes).expect("the same, but for a bit");
    fs::write(binary(&farm, "h2"), "#!/bin/sh\nexit 0\n").expect("another");
    let third = run();
    assert!(third[0] != first[0] && third[1] != first[1], "not replaced");
    // The certificate was lent, not the key, and stands in no file.
    for name in names {
        assert!(!farm.lan.host(name).home().join(".config").exists());
    }
}

#[test]
fn hosts_without_a_node_are_named_and_the_job_goes_on() {
    let farm = lan_or_skip!(Farm::over_ssh(hosts(4), Job::SMALL, &["h1"]));
    lan_or_skip!(farm.lan.sshd("h3", false));
    farm.lan.cut("h4");
    let begun = Instant::now();
    let run = farm.run_over_ssh(&["h1", "h2", "h3", "h4", "h5"], &[]);
    farm.ends_well(&run);
    eprintln!(
        "with four hosts that cannot be used: {:.1?}",
        begun.elapsed()
    );
    for (host, words) in [
        ("h1", "started, "),
        ("h2", "Connection refused"),
        ("h3", "Host key verification failed"),
        ("h4", "h4"),
        ("h5", "resolve"),
    ] {
        let line = result_of(&run, host);
        assert!(line.contains(words), "{line}");
    }
}

#[test]
fn nodes_end_when_svdjob_is_killed_or_their_cable_is_cut() {
    let farm = lan_or_skip!(Farm::over_ssh(hosts(2), Job::MIDDLE, &["h1", "h2"]));
    let run = farm.run_over_ssh(&["h1", "h2"], &["--at-least", "2"]);
    reaches(&run, Stage::Power(3));
    farm.lan.cut("h2");
    let cut = Instant::now();
    run.wait_for("node h2 is silent", SOON);
    run.kill9();
    // The end of stdin is its end.
    is_free(&farm, "h1", Duration::from_secs(5));
    assert_eq!(farm.lan.host("h2").running("svdnode"), 1);
    let again = farm.run_over_ssh(&["h1"], &[]);
    again.wait_for("resuming at", SOON);
    farm.ends_well(&again);
    // 12 s of lease, and then 20 s in which nobody has called.
    is_free(
        &farm,
        "h2",
        Duration::from_secs(40).saturating_sub(cut.elapsed()),
    );
}

#[test]
fn a_node_behind_a_jump_host() {
    let shape = Shape { far: 1, ..hosts(1) };
    let farm = lan_or_skip!(Farm::over_ssh(shape, Job::SMALL, &["h1", "f1"]));
    farm.lan
        .ssh_config("Host far\n  HostName f1\n  ProxyJump h1\n");
    let run = farm.run_over_ssh(&["far"], &[]);
    farm.ends_well(&run);
    assert!(result_of(&run, "far").contains("started, "));
    is_free(&farm, "f1", SOON);
}
