//! The LAN of namespaces itself, tried with small programs: what a test of the farm may rely on.
#![cfg(target_os = "linux")]

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tests::{
    lan::{Counters, Host, Lan, Process, Shape, Wire, program},
    lan_or_skip,
};

const SOON: Duration = Duration::from_secs(10);

fn echo(host: &Host) -> Process {
    let echo = host
        .program(program("lan-probe"))
        .args(["echo", "7000"])
        .spawn();
    echo.wait_for("listening", SOON);
    echo
}

fn asking(from: &Host, to: &str, count: u32, every_ms: u32) -> Process {
    from.program(program("lan-probe"))
        .args(["ask", to])
        .args([count.to_string(), every_ms.to_string()])
        .spawn()
}

/// How many answers come to so many questions, one each 5 ms.
fn answers(from: &Host, to: &str, count: u32) -> u32 {
    let ask = asking(from, to, count, 5);
    let line = ask.wait_for("answers", SOON);
    ask.succeeds(SOON);
    let mut words = line.split(' ').skip(1);
    words.next().unwrap().parse().unwrap()
}

/// Waits for an answer. Who was not to be reached is looked for again once a second only.
fn reaches(from: &Host, to: &str) {
    asking(from, to, 1000, 5).wait_for("answer ", SOON);
}

fn at(host: &Host) -> String {
    format!("{}:7000", host.address())
}

#[test]
fn hosts_hear_each_other_by_address_name_broadcast_and_multicast() {
    let start = Instant::now();
    let lan = lan_or_skip!(Lan::up(4));
    eprintln!(
        "four hosts and a workstation are up after {:.0?}",
        start.elapsed()
    );
    let _echoes: Vec<_> = lan.nodes().map(echo).collect();
    let ws = lan.ws();
    for node in lan.nodes() {
        assert_eq!(answers(ws, &at(node), 3), 3, "{}", node.name());
        assert_eq!(answers(node, &at(lan.host("h1")), 2), 2, "{}", node.name());
    }
    assert_eq!(answers(ws, "10.77.0.255:7000", 1), 4);
    let (exit, hostname) = ws
        .program("sh")
        .args([
            "-c",
            "hostname; getent hosts h3; ls -A /tmp /run; echo $HOME; id -u",
        ])
        .run(SOON);
    assert_eq!(exit.code, Some(0));
    let told = hostname.stdout();
    assert!(told.starts_with("ws\n10.77.0.13 "), "{told}");
    assert!(told.contains("/tmp:\n"), "{told}");
    assert!(told.ends_with("ws/home\n0\n"), "{told}");
    let group = lan
        .host("h2")
        .program(program("lan-probe"))
        .args(["echo", "7001", "239.1.2.3"])
        .spawn();
    group.wait_for("listening", SOON);
    // Without a default route a multicast needs one of its own.
    let (exit, _) = ws
        .program("ip")
        .args(["route", "add", "239.0.0.0/8", "dev", "eth0"])
        .run(SOON);
    assert_eq!(exit.code, Some(0));
    assert_eq!(answers(ws, "239.1.2.3:7001", 2), 2);
    let from_there = lan.host("h1").counters("eth0");
    assert!(from_there.received_packets > 0 && from_there.sent_packets > 0);
}

#[test]
fn lans_do_not_meet_and_nothing_leaves_them() {
    let first = lan_or_skip!(Lan::up(1));
    let second = lan_or_skip!(Lan::up(2));
    let _echo = echo(first.host("h1"));
    assert_eq!(answers(first.ws(), "10.77.0.255:7000", 1), 1);
    assert_eq!(answers(second.ws(), "10.77.0.255:7000", 1), 0);
    let links = second.ws().read("/proc/net/dev").unwrap();
    let mut names: Vec<&str> = links
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim()))
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["eth0", "lo"]);
}

#[test]
fn a_quiet_host_sends_and_hears_nothing() {
    let lan = lan_or_skip!(Lan::with(Shape {
        hosts: 1,
        far: 0,
        ipv6: false,
    }));
    for interface in ["eth0", "lo"] {
        let counted = lan.ws().counters(interface);
        assert_eq!(counted, Counters::default(), "{interface}");
    }
}

#[test]
fn processes_end_freeze_and_thaw() {
    let lan = lan_or_skip!(Lan::up(1));
    let (ws, h1) = (lan.ws(), lan.host("h1"));
    let service = echo(h1);
    assert_eq!(answers(ws, &at(h1), 3), 3);
    service.freeze();
    assert_eq!(answers(ws, &at(h1), 3), 0);
    service.thaw();
    assert_eq!(answers(ws, &at(h1), 3), 3);
    service.kill9();
    assert_eq!(service.ended().unwrap().signal, Some(9));
    assert_eq!(answers(ws, &at(h1), 3), 0);
    let (exit, _) = h1.program("sh").args(["-c", "exit 5"]).run(SOON);
    assert_eq!(exit.code, Some(5));
    let sleeper = h1.program("sleep").args(["1000"]).spawn();
    sleeper.terminate();
    assert_eq!(sleeper.exit(SOON).signal, Some(15));
    let limited = h1
        .program("sh")
        .args(["-c", "ulimit -d"])
        .memory_limit(100 << 20)
        .spawn();
    limited.wait_for("102400", SOON);
    let disk = h1.small_disk(h1.home().join("small"), 2 << 20);
    let (exit, full) = h1
        .program("sh")
        .args(["-c", "head -c 3000000 /dev/zero >file"])
        .within(disk)
        .run(SOON);
    assert_ne!(exit.code, Some(0));
    assert!(full.stderr().contains("No space"), "{}", full.told());
}

#[test]
fn cables_are_cut_in_silence_and_healed() {
    let lan = lan_or_skip!(Lan::up(2));
    let (ws, h1, h2) = (lan.ws(), lan.host("h1"), lan.host("h2"));
    let _echoes = [echo(h1), echo(h2)];
    lan.cut("h1");
    assert_eq!(answers(ws, &at(h1), 3), 0);
    assert_eq!(answers(ws, &at(h2), 3), 3);
    assert_eq!(h1.read("/sys/class/net/eth0/carrier").as_deref(), Ok("1\n"));
    lan.heal("h1");
    reaches(ws, &at(h1));
    lan.cut_pair("h1", "h2");
    assert_eq!(answers(h1, &at(h2), 3), 0);
    assert_eq!(answers(ws, &at(h1), 3), 3);
    assert_eq!(answers(ws, &at(h2), 3), 3);
    lan.heal_pair("h1", "h2");
    reaches(h1, &at(h2));
    // The same with a wire between.
    lan.wire("h1", Wire::default());
    assert_eq!(answers(ws, &at(h1), 3), 3);
    lan.cut("h1");
    assert_eq!(answers(ws, &at(h1), 3), 0);
    lan.heal("h1");
    reaches(ws, &at(h1));
}

#[test]
fn wires_delay_lose_and_are_slow() {
    let lan = lan_or_skip!(Lan::up(2));
    let (ws, h1, h2) = (lan.ws(), lan.host("h1"), lan.host("h2"));
    let _echoes = [echo(h1), echo(h2)];
    lan.wire(
        "h1",
        Wire {
            delay_ms: 20.0,
            ..Wire::default()
        },
    );
    let ask = asking(ws, &at(h1), 2, 5);
    let line = ask.wait_for("answer 1", SOON);
    let (_, took) = line.split_once("after ").unwrap();
    let took: f64 = took.trim_end_matches(" ms").parse().unwrap();
    assert!(took >= 40.0, "{line}");

    lan.wire(
        "h1",
        Wire {
            loss_percent: 10.0,
            ..Wire::default()
        },
    );
    let back = answers(ws, &at(h1), 400);
    // About 324: 81 %.
    assert!((280..370).contains(&back), "{back} of 400");
    assert_eq!(answers(ws, &at(h2), 100), 100);

    lan.wire(
        "h1",
        Wire {
            rate_mbit: 2.0,
            ..Wire::default()
        },
    );
    let blast = ws
        .program(program("lan-probe"))
        .args(["blast", &at(h1), "60000"])
        .spawn();
    let line = blast.wait_for("back", SOON);
    let words: Vec<u64> = line
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    let [back, ms] = words[..] else {
        panic!("{line}")
    };
    assert_eq!(back, 60_000);
    // A quarter of a megabyte a second.
    assert!(ms >= 230, "{line}");
}

#[test]
fn a_firewall_lets_in_answers_only() {
    let lan = lan_or_skip!(Lan::up(2));
    let (ws, h1) = (lan.ws(), lan.host("h1"));
    let _echoes: Vec<_> = lan.nodes().map(echo).collect();
    lan.wire(
        "ws",
        Wire {
            firewall: true,
            ..Wire::default()
        },
    );
    assert_eq!(answers(ws, "10.77.0.255:7000", 2), 0);
    assert_eq!(answers(ws, &at(h1), 2), 2);
    let _echo = echo(ws);
    assert_eq!(answers(h1, &at(ws), 2), 0);
}

#[test]
fn a_router_passes_datagrams_but_no_broadcast() {
    let lan = lan_or_skip!(Lan::with(Shape {
        hosts: 1,
        far: 1,
        ipv6: true,
    }));
    let (ws, f1) = (lan.ws(), lan.host("f1"));
    let _echo = echo(f1);
    assert_eq!(answers(ws, &at(f1), 3), 3);
    assert_eq!(answers(ws, "10.77.0.255:7000", 2), 0);
    assert_eq!(answers(ws, "10.77.1.255:7000", 2), 0);
}

/// Names how long programs are to sleep, by which they are known again.
const SLEEP: &str = "LAN_RIG_SLEEP";

/// Not a test of its own: what the next one starts and kills.
#[test]
#[ignore = "is killed by another test"]
fn a_lan_to_be_killed() {
    let lan = lan_or_skip!(Lan::up(1));
    let Ok(time) = std::env::var(SLEEP) else {
        return;
    };
    let sleeper = lan.host("h1").program("sleep").args([&time]).spawn();
    let frozen = lan.ws().program("sleep").args([&time]).spawn();
    frozen.freeze();
    eprintln!("THE LAN IS UP");
    sleeper.exit(Duration::from_secs(1000));
}

#[test]
fn nothing_outlives_a_test_that_is_killed() {
    use std::io::{BufRead, BufReader};
    drop(lan_or_skip!(Lan::up(0)));
    let time = (1_000_000 + std::process::id()).to_string();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .env(SLEEP, &time)
        .args(["--ignored", "--exact", "a_lan_to_be_killed", "--nocapture"])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let said = lines
        .map_while(Result::ok)
        .any(|line| line == "THE LAN IS UP");
    let wanted = format!("sleep\0{time}\0").into_bytes();
    let sleepers = || -> usize {
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter(|entry| {
                let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                line == wanted
            })
            .count()
    };
    let before = sleepers();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(said);
    assert_eq!(before, 2);
    let deadline = Instant::now() + SOON;
    while sleepers() > 0 {
        assert!(
            Instant::now() < deadline,
            "processes of a killed test live on"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
