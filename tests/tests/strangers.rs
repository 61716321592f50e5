//! Those who may call and are of no use, or of ill will: real programs on one side, this process on the other, on
//! loopback.

use std::{
    io::{BufRead, BufReader, Read},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use shared::{
    farm::{
        frame::{Frame, control_frame, encode_control},
        ids::{AgentId, ContentHash},
        message::{Fetch, Name, PROTOCOL, ProtocolRange, ToAgent},
    },
    net::{
        endpoint::{caller, listen},
        greeting::{Greeting, JobCard, Purpose, Refusal},
        identity::{FarmKey, Identity},
        link::{CallError, Called, Taker, call, hear},
    },
};
use tokio::runtime::{Builder, Runtime};

const WITHIN: Duration = Duration::from_secs(5);
const FUTURE: ProtocolRange = ProtocolRange {
    oldest: 70,
    newest: 71,
};

fn program(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().expect("a path");
    path.pop();
    path.pop();
    let program = path.join(name);
    assert!(
        program.exists(),
        "{} is not built: `cargo build --release --workspace`",
        program.display()
    );
    program
}

struct Farm {
    folder: tempfile::TempDir,
    identity: Identity,
    runtime: Runtime,
}

impl Farm {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = FarmKey::create().unwrap();
        key.write(&folder.path().join("farm.pem")).unwrap();
        Self {
            identity: key.identity().unwrap(),
            folder,
            runtime: Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(program(name));
        command
            .current_dir(self.folder.path())
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("SVDJOB_FARM_KEY", self.path("farm.pem"))
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    fn node(&self) -> Node {
        let log = self.path("node.log");
        let mut child = self
            .command("svdnode")
            .args(["--no-advertise", "--listen", "127.0.0.1:0", "-v"])
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        let address = line
            .split_whitespace()
            .find_map(|word| word.trim_end_matches(',').parse().ok())
            .unwrap_or_else(|| panic!("no address in {line:?}"));
        Node {
            child,
            address,
            log,
        }
    }

    fn call(&self, node: &Node, greeting: &Greeting) -> Result<Called, CallError> {
        self.runtime.block_on(async {
            let endpoint = caller(&self.identity).unwrap();
            call(&endpoint, node.address, greeting, WITHIN).await
        })
    }
}

struct Node {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Node {
    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn greeting(purpose: Purpose) -> Greeting {
    Greeting {
        protocol: PROTOCOL,
        release: "9.9".to_owned(),
        purpose,
    }
}

fn job() -> JobCard {
    JobCard {
        plan: ContentHash([5; 32]),
        title: "films".to_owned(),
        user: "mallory".to_owned(),
        host: "here".to_owned(),
        run: 1,
        alone: false,
    }
}

/// Waits for the end of a link.
struct Ear(tokio::sync::mpsc::UnboundedSender<String>);

impl Taker for Ear {
    fn frame(&self, _: Frame) -> bool {
        true
    }

    fn end(&self, why: String) {
        let _ = self.0.send(why);
    }
}

fn serves_on(farm: &Farm, node: &Node) {
    let called = farm.call(node, &greeting(Purpose::Status)).ok().unwrap();
    assert_eq!(called.card.busy, None);
}

#[test]
fn a_coordinator_of_another_version_is_refused_and_the_node_says_so() {
    let farm = Farm::new();
    let node = farm.node();
    let mut future = greeting(Purpose::Job(job()));
    future.protocol = FUTURE;
    let refused = farm.call(&node, &future).err();
    let Some(CallError::Refused(Refusal::Protocol { understood, .. })) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(understood, PROTOCOL);
    serves_on(&farm, &node);
    assert!(
        node.log().contains("release 9.9 speaks protocols 70 to 71"),
        "{}",
        node.log()
    );
}

#[test]
fn a_node_of_another_version_is_named_with_its_reason() {
    let farm = Farm::new();
    let address = farm.runtime.block_on(async {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let endpoint = listen(&farm.identity, Some(ip), Some(0), Arc::new(|_| None)).unwrap();
        let address = endpoint.local_addr().unwrap();
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                if let Ok(connection) = incoming.await
                    && let Ok(call) = hear(connection).await
                {
                    let refusal = Refusal::Protocol {
                        release: "9.9".to_owned(),
                        understood: FUTURE,
                    };
                    call.refuse(refusal).await;
                }
            }
        });
        address
    });
    std::fs::write(farm.path("r.csv"), "u,i,r\n1,1,5\n1,2,3\n2,1,4\n3,2,1\n").unwrap();
    std::fs::write(
        farm.path("factor.toml"),
        "[matrix]\npath = \"r.csv\"\nrows = \"u\"\ncolumns = \"i\"\nvalues = \"r\"\n[factor]\nrank = 1\n",
    )
    .unwrap();
    let node = address.to_string();
    let out = farm
        .command("svdjob")
        .args([
            "run",
            "--no-discover",
            "--otherwise",
            "fail",
            "--window",
            "2s",
        ])
        .args(["--node", &node])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(5), "{stderr}");
    assert!(
        stderr.contains("release 9.9") && stderr.contains("70 to 71"),
        "{stderr}"
    );
}

#[test]
fn a_member_that_talks_nonsense_ends_its_own_job_and_no_more() {
    let farm = Farm::new();
    let node = farm.node();
    let plan = job().plan;
    let begin = encode_control(&ToAgent::<u8>::Begin {
        you: AgentId(0),
        protocol: PROTOCOL.newest,
        plan,
        accumulators: Vec::new(),
        inputs: Vec::new(),
        open_bytes: 0,
    });
    // After a good beginning: garbage, a message that is none, one of a task that does not exist.
    let unknown = encode_control(&ToAgent::<u8>::Drop {
        results: Vec::new(),
        accumulators: vec![shared::farm::ids::AccumulatorId(77)],
    });
    for nonsense in [control_frame(&[0xc1; 40]), vec![0x55; 64], unknown] {
        let called = farm
            .call(&node, &greeting(Purpose::Job(job())))
            .ok()
            .unwrap();
        let (ear, mut end) = tokio::sync::mpsc::unbounded_channel();
        let _inside = farm.runtime.enter();
        let (_, outbox) = called.run(Ear(ear));
        outbox.frame(Frame::Control(begin.clone())).unwrap();
        outbox.frame(Frame::Control(nonsense)).unwrap();
        drop(outbox);
        farm.runtime.block_on(async {
            let ended = tokio::time::timeout(WITHIN, end.recv()).await;
            assert!(matches!(ended, Ok(Some(_))), "the link does not end");
        });
        // It may need a moment to notice that the job is over.
        let begun = std::time::Instant::now();
        while farm
            .call(&node, &greeting(Purpose::Status))
            .is_ok_and(|c| c.card.busy.is_some())
        {
            assert!(begun.elapsed() < WITHIN, "still busy\n{}", node.log());
        }
        serves_on(&farm, &node);
    }
}

#[test]
fn a_peer_of_no_job_is_refused() {
    let farm = Farm::new();
    let node = farm.node();
    let purpose = Purpose::Peer {
        plan: ContentHash([1; 32]),
        from: AgentId(3),
    };
    let refused = farm.call(&node, &greeting(purpose)).err();
    assert_eq!(refused, Some(CallError::Refused(Refusal::OtherJob)));
    serves_on(&farm, &node);
}

#[test]
fn without_a_key_a_node_says_where_it_looked_and_what_brings_one() {
    let farm = Farm::new();
    let mut child = farm
        .command("svdnode")
        .env_remove("SVDJOB_FARM_KEY")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let status = child.wait().unwrap();
    let mut text = String::new();
    child.stderr.unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(status.code(), Some(5), "{text}");
    assert!(text.contains("farm.pem") && text.contains("scp "), "{text}");
    assert!(Path::new(&farm.path("farm.pem")).exists());
}

#[test]
fn a_question_for_what_cannot_be_is_no_panic() {
    let farm = Farm::new();
    let node = farm.node();
    let owner = farm
        .call(&node, &greeting(Purpose::Job(job())))
        .ok()
        .unwrap();
    let _inside = farm.runtime.enter();
    let (ear, _end) = tokio::sync::mpsc::unbounded_channel();
    let (_, outbox) = owner.run(Ear(ear));
    outbox
        .control(&ToAgent::<u8>::Begin {
            you: AgentId(0),
            protocol: PROTOCOL.newest,
            plan: job().plan,
            accumulators: Vec::new(),
            inputs: Vec::new(),
            open_bytes: 0,
        })
        .unwrap();
    let peer = farm
        .call(
            &node,
            &greeting(Purpose::Peer {
                plan: job().plan,
                from: AgentId(9),
            }),
        )
        .ok()
        .unwrap();
    let (ear, mut end) = tokio::sync::mpsc::unbounded_channel();
    let (_, questions) = peer.run(Ear(ear));
    let name = Name::Chunk {
        accumulator: shared::farm::ids::AccumulatorId(3),
        part: 1,
        chunk: 9,
    };
    questions.control(&Fetch { request: 1, name }).unwrap();
    drop(questions);
    farm.runtime.block_on(async {
        let ended = tokio::time::timeout(WITHIN, end.recv()).await;
        assert!(matches!(ended, Ok(Some(_))), "the link does not end");
    });
    let card = farm
        .call(&node, &greeting(Purpose::Status))
        .ok()
        .unwrap()
        .card;
    assert!(card.busy.is_some(), "the job goes on\n{}", node.log());
    drop(outbox);
    assert!(!node.log().contains("panicked"), "{}", node.log());
}
