use std::process::Command;

use super::*;
use crate::farm::message::PROTOCOL;

fn advert(id: u64, port: u16) -> Advert {
    Advert {
        id,
        fingerprint: Fingerprint([7; 8]),
        protocol: PROTOCOL,
        release: "0.1.0".into(),
        host: "h1".into(),
        cores: 4,
        memory_bytes: 1 << 33,
        port,
        busy: false,
    }
}

fn options(hosts: &[&str]) -> SearchOptions {
    SearchOptions {
        fingerprint: Fingerprint([7; 8]),
        discover: false,
        interface: None,
        hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
    }
}

/// Answers as a node does, on a port of its own.
async fn node(ip: Ipv4Addr, ports: std::ops::RangeInclusive<u16>, id: u64) -> (u16, JoinSet<()>) {
    let mut bound = None;
    for port in ports {
        if let Ok(socket) = UdpSocket::bind((ip, port)).await {
            bound = Some(socket);
            break;
        }
    }
    let socket = bound.expect("a port is free");
    let port = socket.local_addr().unwrap().port();
    let me = advert(id, port);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut buffer = [0; 2048];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            if let Some(answer) = beacon::answer(&buffer[..length], &me) {
                socket.send_to(&answer, from).await.unwrap();
            }
        }
    });
    (port, tasks)
}

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_named_host_is_asked_and_found() {
    let (port, _node) = node(Ipv4Addr::LOCALHOST, 0..=0, 42).await;
    let mut search = search(options(&[&format!("127.0.0.1:{port}")]));
    let heard = timeout(PATIENCE, search.next()).await.unwrap();
    assert_eq!(heard.id, Some(42));
    assert_eq!(heard.addresses, [SocketAddr::from(([127, 0, 0, 1], port))]);
    assert_eq!(heard.cores, Some(4));
    assert!(heard.by.named && heard.by.answered && !heard.by.mdns);
    let searched = search.searched();
    assert_eq!(searched.hosts[0].answers, 1);
    assert!(searched.to_string().contains("is there"), "{searched}");
}

#[tokio::test]
async fn a_named_host_that_is_silent_may_be_called_all_the_same() {
    // Bound and silent, so nobody else is there.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let mut search = search(options(&[&address.to_string()]));
    let heard = timeout(PATIENCE, search.next()).await.unwrap();
    assert_eq!((heard.id, heard.addresses), (None, vec![address]));
    assert!(search.searched().to_string().contains("no answer"));
}

#[test]
fn what_is_heard_is_merged_by_the_number_of_the_node() {
    let mut registry = Registry::default();
    let now = Instant::now();
    let [a, b]: [SocketAddr; 2] = ["10.0.0.1:24740", "10.0.0.2:24740"].map(|a| a.parse().unwrap());
    let link: SocketAddr = "[fe80::1%2]:24740".parse().unwrap();
    let told = |id| Heard {
        id: Some(id),
        host: "h1".into(),
        ..Heard::default()
    };
    registry.resolved(told(1), vec![link, a]);
    let heard = registry.take().unwrap();
    assert_eq!(heard.addresses, [a, link]);
    assert!(heard.by.mdns && !heard.by.answered);
    registry.resolved(told(1), vec![a]);
    assert_eq!(registry.take(), None);
    registry.answered(b, advert(1, 24740), None, now);
    let heard = registry.take().unwrap();
    assert_eq!(heard.addresses, [b, a, link]);
    assert!(heard.by.mdns && heard.by.answered);
    registry.answered(b, advert(1, 24740), None, now + Duration::from_secs(5));
    assert_eq!(registry.take(), None);
    registry.answered(b, advert(1, 24740), None, now + Duration::from_secs(30));
    assert!(registry.take().is_some());
    // The node was started anew; mDNS still tells of the old one.
    registry.answered(b, advert(2, 24740), None, now);
    registry.answered(a, advert(2, 24740), None, now);
    assert_eq!(registry.take().unwrap().addresses, [a, b]);
    registry.resolved(told(1), vec![a, b]);
    assert_eq!(registry.take(), None);
    assert_eq!(registry.nodes[&Key::Node(1)].heard().addresses, [link]);
}

#[test]
fn a_flood_of_nodes_and_addresses_is_bounded() {
    let mut registry = Registry::default();
    let now = Instant::now();
    for id in 0..2 * NODES_MAX as u64 {
        let from = SocketAddr::from((Ipv4Addr::from_bits(id as u32), 24740));
        if id < 8 || id > NODES_MAX as u64 - 8 {
            registry.answered(from, advert(id, 24740), None, now);
        } else {
            registry.resolved(
                Heard {
                    id: Some(id),
                    ..Heard::default()
                },
                vec![from],
            );
        }
    }
    assert_eq!(registry.nodes.len(), NODES_MAX);
    let many = (0..1000)
        .map(|ip| SocketAddr::from((Ipv4Addr::from_bits(ip), 1)))
        .collect();
    let told = Heard {
        id: Some(20),
        ..Heard::default()
    };
    registry.resolved(told, many);
    assert_eq!(
        registry.nodes[&Key::Node(20)].addresses.len(),
        ADDRESSES_MAX
    );
}

/// A network that belongs to this test alone: the test runs itself again inside it. Nothing is sent anywhere else.
fn alone(name: &str) -> bool {
    const INSIDE: &str = "SVDJOB_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        for command in [
            "link set lo up",
            "link add lan0 type veth peer name end0",
            "addr add 10.9.0.1/24 dev lan0",
            "link set end0 up",
            "link set lan0 up",
        ] {
            let done = Command::new("ip")
                .args(command.split(' '))
                .status()
                .unwrap();
            assert!(done.success(), "ip {command}");
        }
        return true;
    }
    let probe = Command::new("unshare")
        .args(["-Urn", "ip", "link"])
        .output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        eprintln!("SKIPPED: needs user namespaces, unshare and ip");
        return false;
    }
    let test = format!("{}::{name}", module_path!().split_once("::").unwrap().1);
    let output = Command::new("unshare")
        .arg("-Urn")
        .arg(std::env::current_exe().unwrap())
        .args([&test, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{told}"
    );
    false
}

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

#[test]
fn two_nodes_of_a_host_are_found_both_ways() {
    if !alone("two_nodes_of_a_host_are_found_both_ways") {
        return;
    }
    run(async {
        let (first, _one) = node(Ipv4Addr::UNSPECIFIED, PORTS, 1).await;
        let (second, _two) = node(Ipv4Addr::UNSPECIFIED, PORTS, 2).await;
        assert_ne!(first, second);
        let _told = [(1, first), (2, second)]
            .map(|(id, port)| Advertiser::start(&advert(id, port), None).unwrap());
        let mut search = search(SearchOptions {
            discover: true,
            ..options(&[])
        });
        let mut known: HashMap<u64, Heard> = HashMap::new();
        let whole = |known: &HashMap<u64, Heard>| {
            known.len() == 2
                && known
                    .values()
                    .all(|heard| heard.by.answered && heard.by.mdns)
        };
        while !whole(&known) {
            let heard = timeout(PATIENCE, search.next())
                .await
                .unwrap_or_else(|_| panic!("{known:?}\n{}", search.searched()));
            known.insert(heard.id.unwrap(), heard);
        }
        for (id, port) in [(1, first), (2, second)] {
            let address = SocketAddr::from(([10, 9, 0, 1], port));
            assert_eq!(known[&id].addresses[0], address);
            assert_eq!(known[&id].memory_bytes, Some(1 << 33));
        }
        let searched = search.searched();
        assert_eq!(searched.interfaces.len(), 1, "{searched}");
        assert_eq!(searched.interfaces[0].name, "lan0");
    });
}

#[test]
fn mdns_alone_tells_all() {
    if !alone("mdns_alone_tells_all") {
        return;
    }
    run(async {
        let me = advert(9, 24740);
        let _told = Advertiser::start(&me, Some("lan0")).unwrap();
        let mut search = search(SearchOptions {
            discover: true,
            interface: Some("lan0".into()),
            ..options(&[])
        });
        let heard = timeout(PATIENCE, search.next()).await.unwrap();
        assert_eq!(heard.id, Some(me.id));
        assert_eq!(heard.host, me.host);
        assert_eq!(heard.fingerprint, Some(me.fingerprint));
        assert_eq!(heard.protocol, Some(me.protocol));
        assert_eq!(heard.release, Some(me.release));
        assert_eq!(
            (heard.cores, heard.memory_bytes),
            (Some(me.cores), Some(me.memory_bytes))
        );
        assert_eq!(heard.addresses[0], "10.9.0.1:24740".parse().unwrap());
        assert!(heard.by.mdns && !heard.by.answered);
    });
}
