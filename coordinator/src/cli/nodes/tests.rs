use shared::farm::ids::ContentHash;
use shared::farm::message::ProtocolRange;
use shared::net::greeting::{Busy, JobCard};

use super::*;

const OURS: Fingerprint = Fingerprint([0x0a; 8]);

fn heard(id: u64, last: u8) -> Heard {
    Heard {
        id: Some(id),
        host: format!("h{last}"),
        addresses: vec![SocketAddr::from(([10, 77, 0, last], 24740))],
        fingerprint: Some(OURS),
        protocol: Some(PROTOCOL),
        cores: Some(4),
        memory_bytes: Some(8 << 30),
        release: Some("0.1.0".into()),
        busy: false,
        by: How {
            answered: true,
            ..How::default()
        },
    }
}

fn card(id: u64, host: &str) -> NodeCard {
    NodeCard {
        id,
        host: host.into(),
        release: "0.1.0".into(),
        protocol: PROTOCOL,
        isa: "avx2".into(),
        cores: 4,
        memory_bytes: 8 << 30,
        load: 0.12,
        cached_blocks: 1234,
        cached_bytes: 3 << 30,
        cache_bytes_max: 64 << 30,
        busy: None,
    }
}

fn busy() -> Busy {
    Busy {
        job: JobCard {
            plan: ContentHash([1; 32]),
            title: "films.toml".into(),
            user: "alice".into(),
            host: "ws".into(),
            run: 1,
            alone: false,
        },
        lease_ms: 11_300,
    }
}

/// One of every kind.
fn zoo() -> Vec<Node> {
    let mut outcomes = HashMap::new();
    let address = |heard: &Heard| heard.addresses[0];
    let mut all = Vec::new();
    let mut meet = |heard: Heard, outcome: Option<Result<NodeCard, CallError>>| {
        if let Some(outcome) = outcome {
            outcomes.insert(address(&heard), outcome);
        }
        all.push(heard);
    };
    meet(heard(1, 11), Some(Ok(card(1, "h11"))));
    let works = NodeCard {
        busy: Some(busy()),
        ..card(2, "h12")
    };
    meet(heard(2, 12), Some(Ok(works)));
    let other = Heard {
        fingerprint: Some(Fingerprint([0xff; 8])),
        ..heard(3, 13)
    };
    meet(other, None);
    let stranger = CallError::Stranger("belongs to another farm: the farm keys differ".into());
    meet(heard(4, 14), Some(Err(stranger)));
    let old = Refusal::Protocol {
        release: "0.0.9".into(),
        understood: ProtocolRange {
            oldest: 0,
            newest: 0,
        },
    };
    meet(heard(5, 15), Some(Err(CallError::Refused(old))));
    let silence = |heard: &Heard| Some(Err(CallError::Silent(address(heard))));
    let shut = heard(6, 16);
    let nothing = silence(&shut);
    meet(shut, nothing);
    let told = Heard {
        by: How {
            mdns: true,
            ..How::default()
        },
        ..heard(7, 17)
    };
    let nothing = silence(&told);
    meet(told, nothing);
    let small = NodeCard {
        memory_bytes: 100 << 20,
        ..card(8, "h18")
    };
    meet(heard(8, 18), Some(Ok(small)));
    judge(all, &outcomes, OURS)
}

#[test]
fn every_node_is_told_with_why_it_is_not_used() {
    let states: Vec<_> = zoo().iter().map(|node| node.state).collect();
    assert_eq!(
        states,
        [
            State::Ready,
            State::Busy,
            State::OtherFarm,
            State::WrongKey,
            State::Version,
            State::Blocked,
            State::Silent,
            State::LittleMemory,
        ]
    );
    let text = listing(
        &zoo(),
        Look {
            color: false,
            width: 100,
        },
    );
    assert_eq!(
        text,
        "\
Node  Address           Cores   Memory  Load  Version  Cached blocks  State
h11   10.77.0.11:24740      4    8 GiB  0.12    0.1.0  1,234 (3 GiB)  ready
h12   10.77.0.12:24740      4    8 GiB  0.12    0.1.0  1,234 (3 GiB)  busy
    busy with job films.toml of alice@ws, lease 12 s
h13   10.77.0.13:24740      4    8 GiB     -    0.1.0              -  other farm
    belongs to another farm, ffff-ffff-ffff-ffff; this is 0a0a-0a0a-0a0a-0a0a
h14   10.77.0.14:24740      4    8 GiB     -    0.1.0              -  wrong key
    belongs to another farm: the farm keys differ
h15   10.77.0.15:24740      4    8 GiB     -    0.1.0              -  version
    it is of release 0.0.9 and speaks protocols 0 to 0, this is release 0.1.0 and speaks 5 to 5:
    install the same release on both
h16   10.77.0.16:24740      4    8 GiB     -    0.1.0              -  blocked
    it answers queries over UDP, but no QUIC connection comes about: something in between drops
    larger or unknown datagrams
h17   10.77.0.17:24740      4    8 GiB     -    0.1.0              -  silent
    mDNS tells of it, but it does not answer: not running any more, or a firewall between (UDP)
h18   10.77.0.18:24740      4  100 MiB  0.12    0.1.0  1,234 (3 GiB)  little memory
    it offers 100 MiB of memory, a node needs 256 MiB: give it more with `svdnode --memory`

8 nodes, 1 ready: 4 cores, 8 GiB of memory
"
    );
}

#[test]
fn a_narrow_terminal_is_not_exceeded() {
    for width in [40, 60, 80] {
        let text = listing(
            &zoo(),
            Look {
                color: false,
                width,
            },
        );
        for line in text.lines() {
            assert!(line.chars().count() <= width, "{width}: {line}");
        }
    }
    let look = Look {
        color: false,
        width: 44,
    };
    assert!(listing(&zoo()[1..2], look).starts_with(
        "\
h12  busy
  10.77.0.12:24740, 4 cores, 8 GiB, load
  0.12, version 0.1.0, cached 1,234 (3 GiB)
    busy with job films.toml of alice@ws,
    lease 12 s
"
    ));
}

#[test]
fn a_named_host_is_one_row_or_a_row_for_each_of_its_nodes() {
    let addresses: Vec<SocketAddr> = (24740..=24749)
        .map(|port| SocketAddr::from(([10, 0, 0, 5], port)))
        .collect();
    let named = Heard {
        id: None,
        host: "big1".into(),
        addresses: addresses.clone(),
        by: How {
            named: true,
            ..How::default()
        },
        ..Heard::default()
    };
    let mut outcomes: HashMap<_, _> = addresses
        .iter()
        .map(|&address| (address, Err(CallError::Silent(address))))
        .collect();
    let nodes = judge(vec![named.clone()], &outcomes, OURS);
    assert_eq!(nodes.len(), 1);
    assert_eq!(nodes[0].state, State::Silent);
    outcomes.insert(addresses[0], Ok(card(1, "big1")));
    outcomes.insert(addresses[1], Ok(card(2, "big1")));
    let nodes = judge(vec![named, heard(2, 11)], &outcomes, OURS);
    let ids: Vec<_> = nodes.iter().map(|node| node.heard.id).collect();
    assert_eq!(ids, [Some(1), Some(2)]);
    assert_eq!(nodes[0].object()["address"], "10.0.0.5:24740");
}

#[tokio::test]
async fn nodes_are_called_where_they_are_said_to_be() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let options = SearchOptions {
        fingerprint: OURS,
        discover: false,
        interface: None,
        hosts: vec![address.to_string().parse().unwrap()],
    };
    let caller = |_| async { Ok(card(9, "here")) };
    let (nodes, searched) = gather(options, Duration::from_millis(1500), caller).await;
    assert_eq!(nodes.len(), 1, "{searched}");
    assert_eq!(
        (nodes[0].state, nodes[0].address()),
        (State::Ready, Some(address))
    );
}
