//! A node in this process, listening on loopback, for tests and benches with task kinds of their own.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use coordinator::{
    farm::remote::{Farm, FarmOptions},
    scheduler::SchedulerConfig,
};
use node_agent::{
    blocks::BlockStore,
    service::{Offer, Service},
};
use shared::{
    farm::{ids::ContentHash, work::Work},
    net::{
        discovery::{HostPort, SearchOptions},
        endpoint,
        greeting::JobCard,
        identity::Identity,
    },
};
use tokio::runtime::{Builder, Runtime};

/// A node that serves until it is dropped.
pub struct Node {
    pub address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Node {
    /// Panics when it cannot start: a test has nothing else to do then.
    pub fn start<W: Work>(identity: &Identity, cores: u16, cache: &std::path::Path) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("threads");
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let endpoint = {
            let _inside = runtime.enter();
            endpoint::listen(identity, Some(ip), Some(0), Arc::new(|_| None)).expect("a UDP port")
        };
        let address = endpoint.local_addr().expect("bound");
        let offer = Offer {
            id: u64::from(address.port()),
            cores,
            memory_bytes: 1 << 30,
            isa: "none",
            once: false,
            idle_max: None,
        };
        let store = BlockStore::open(cache, 1 << 30).expect("a directory");
        let service = Service::<W>::new(offer, Arc::new(store), endpoint);
        runtime.spawn(async move { service.serve().await });
        Self {
            address,
            runtime: Some(runtime),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_millis(200));
        }
    }
}

/// A farm of these nodes, all of them there.
pub fn farm(identity: &Identity, plan: ContentHash, nodes: &[&Node]) -> Farm {
    let host = |node: &&Node| HostPort {
        host: node.address.ip().to_string(),
        port: Some(node.address.port()),
    };
    let farm = Farm::open(FarmOptions {
        search: SearchOptions {
            fingerprint: identity.fingerprint(),
            discover: false,
            interface: None,
            hosts: nodes.iter().map(host).collect(),
        },
        identity: identity.clone(),
        job: JobCard {
            plan,
            title: "test".to_owned(),
            user: "nobody".to_owned(),
            host: "here".to_owned(),
            run: 1,
            alone: false,
        },
        memory_least: 0,
    })
    .expect("loopback");
    let stop = AtomicBool::new(false);
    let found = farm.gather(nodes.len(), Duration::from_secs(10), &stop, &mut |_| {});
    assert_eq!(found, nodes.len(), "{}", farm.searched());
    farm
}

/// As a farm of real machines is scheduled, with nothing to wait for.
pub fn config(nodes: usize) -> SchedulerConfig {
    SchedulerConfig {
        agents_expected: nodes,
        ..SchedulerConfig::farm()
    }
}
