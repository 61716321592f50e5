//! What the wire costs: tasks through nodes over QUIC, and the speed of a link. All on loopback, in this process; the
//! second line of each pair is the same without a wire.
//! `cargo bench -p tests --bench wire`

use std::{convert::Infallible, sync::Arc, sync::atomic::AtomicBool, time::Instant};

use coordinator::farm::{EmbeddedOptions, Orders, drive, run_embedded};
use serde::{Deserialize, Serialize};
use shared::{
    farm::{
        bytes::{Bytes, BytesMut},
        frame::{Bulk, Frame},
        graph::{Graph, Input, Output, Task},
        ids::{ContentHash, TaskId},
        work::{Work, WorkError},
    },
    net::{endpoint, greeting::NodeCard, identity::FarmKey, link},
};
use tests::node::{Node, config, farm};

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Classic {
    Nothing,
    Square(i64),
    Negate,
    Sum,
}

impl Work for Classic {
    fn verb(&self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Square(_) => "square",
            Self::Negate => "negate",
            Self::Sum => "sum",
        }
    }

    fn block(&self, inputs: &[Bytes]) -> Result<Bytes, WorkError> {
        let number = |bytes: &Bytes| bytes.numbers::<i64>().map(|n| n[0]);
        Bytes::from_numbers(&[match self {
            Self::Nothing => 0,
            Self::Square(n) => n * n,
            Self::Negate => -number(&inputs[0])?,
            Self::Sum => inputs.iter().map(number).sum::<Result<i64, _>>()?,
        }])
    }
}

fn task(graph: &mut Graph<Classic>, work: Classic, reads: &[TaskId]) -> TaskId {
    let read = |&task: &TaskId| Input::Result { task, range: None };
    graph.task(Task {
        work,
        inputs: reads.iter().map(read).collect(),
        output: Output::Block { bytes: 8 },
        width: 1,
        cost: 1,
        stage: 0,
    })
}

fn empty(count: u32) -> Graph<Classic> {
    let mut graph = Graph::default();
    graph.stage("empty");
    for _ in 0..count {
        task(&mut graph, Classic::Nothing, &[]);
    }
    graph
}

fn classic() -> Graph<Classic> {
    let mut graph = Graph::default();
    graph.stage("classic");
    let mut negated = Vec::new();
    for n in 1..=10_000 {
        let square = task(&mut graph, Classic::Square(n), &[]);
        negated.push(task(&mut graph, Classic::Negate, &[square]));
    }
    let sum = task(&mut graph, Classic::Sum, &negated);
    graph.deliveries.push(sum);
    graph
}

fn tasks(what: &str, graph: &Arc<Graph<Classic>>, nodes: usize) {
    let identity = FarmKey::create()
        .and_then(|key| key.identity())
        .expect("a key");
    let plan = ContentHash::of(what.as_bytes());
    let caches: Vec<_> = (0..nodes)
        .map(|_| tempfile::tempdir().expect("a directory"))
        .collect();
    let running: Vec<Node> = caches
        .iter()
        .map(|dir| Node::start::<Classic>(&identity, 1, dir.path()))
        .collect();
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let farm = farm(&identity, plan, &running.iter().collect::<Vec<_>>());
        let begun = Instant::now();
        let orders = Orders {
            plan,
            config: config(nodes),
            inputs: Arc::new(()),
            spool: None,
            record: None,
            progress_ms_min: 100,
            deliver: &mut |_, _| Ok::<_, Infallible>(None),
            progress: &mut |_| {},
            stop: &AtomicBool::new(false),
            local: None,
        };
        drive(Arc::clone(graph), orders, farm.letters()).expect("nothing can fail");
        best = best.min(begun.elapsed().as_secs_f64());
    }
    let mut embedded = f64::INFINITY;
    for _ in 0..5 {
        let report = run_embedded(
            Arc::clone(graph),
            plan,
            Arc::new(()),
            &EmbeddedOptions::new(nodes as u16, 1 << 30),
            &mut |_, _| Ok::<_, Infallible>(None),
            &mut |_| {},
            &AtomicBool::new(false),
        )
        .expect("nothing can fail");
        embedded = embedded.min(report.elapsed_us as f64 / 1e6);
    }
    let count = graph.tasks.len() as f64;
    println!(
        "{what:<8} {nodes} nodes of 1 core over QUIC: {best:>7.3} s, {:>8.0} tasks/s\n\
         {what:<8} {nodes} threads embedded:         {embedded:>7.3} s, {:>8.0} tasks/s",
        count / best,
        count / embedded
    );
}

/// Counts what comes.
struct Ear(std::sync::mpsc::Sender<u64>);

impl link::Taker for Ear {
    fn frame(&self, frame: Frame) -> bool {
        match frame {
            Frame::Control(_) => true,
            Frame::Bulk { payload, .. } => self.0.send(payload.len() as u64).is_ok(),
        }
    }

    fn end(&self, _: String) {}
}

/// Blocks of 4 MiB from one endpoint to another.
fn transfer(blocks: u32) {
    const BLOCK: usize = 4 << 20;
    let identity = FarmKey::create()
        .and_then(|key| key.identity())
        .expect("a key");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("threads");
    let (counted, counts) = std::sync::mpsc::channel();
    let outbox = runtime.block_on(async {
        let ip = std::net::Ipv4Addr::LOCALHOST.into();
        let server =
            endpoint::listen(&identity, Some(ip), Some(0), Arc::new(|_| None)).expect("a UDP port");
        let address = server.local_addr().expect("bound");
        tokio::spawn(async move {
            let connection = server.accept().await.expect("a call").await.expect("ours");
            let call = link::hear(connection).await.expect("a greeting");
            let called = call.welcome(card()).await.expect("a caller");
            let (connection, _outbox) = called.run(Ear(counted));
            connection.closed().await;
        });
        let calling = endpoint::caller(&identity).expect("a UDP port");
        let called = link::call(
            &calling,
            address,
            &greeting(),
            std::time::Duration::from_secs(5),
        )
        .await
        .expect("a welcome");
        let (nowhere, _) = std::sync::mpsc::channel();
        let (_, outbox) = called.run(Ear(nowhere));
        std::mem::forget(calling);
        outbox
    });
    let payload = BytesMut::zeroed(BLOCK).expect("memory").freeze();
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let begun = Instant::now();
        for task in 0..blocks {
            let bulk = Bulk::delivery(ContentHash([0; 32]), TaskId(task), payload.clone());
            outbox.bulk(&bulk).expect("the link is open");
        }
        let arrived: u64 = (0..blocks).map(|_| counts.recv().expect("a block")).sum();
        assert_eq!(arrived, u64::from(blocks) * BLOCK as u64);
        best = best.min(begun.elapsed().as_secs_f64());
    }
    println!(
        "link     blocks of 4 MiB, checksummed: {:.2} GB/s",
        f64::from(blocks) * BLOCK as f64 / best / 1e9
    );
}

fn greeting() -> shared::net::greeting::Greeting {
    shared::net::greeting::Greeting {
        protocol: shared::farm::message::PROTOCOL,
        release: "bench".to_owned(),
        purpose: shared::net::greeting::Purpose::Status,
    }
}

fn card() -> NodeCard {
    NodeCard {
        id: 0,
        host: "here".to_owned(),
        release: "bench".to_owned(),
        protocol: shared::farm::message::PROTOCOL,
        isa: "none".to_owned(),
        cores: 1,
        memory_bytes: 0,
        load: 0.0,
        cached_blocks: 0,
        cached_bytes: 0,
        cache_bytes_max: 0,
        busy: None,
    }
}

fn main() {
    transfer(64);
    tasks("empty", &Arc::new(empty(100_000)), 1);
    let classic = Arc::new(classic());
    tasks("classic", &classic, 1);
    tasks("classic", &classic, 2);
}
