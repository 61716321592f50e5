//! What travels between coordinator and agents as control messages. Blocks travel beside them, see [`super::frame`].
//!
//! Messages of one link arrive in order. A `Recall` therefore always overtakes what is assigned after it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{
    graph::{Accumulator, Output},
    ids::{AccumulatorId, AgentId, Attempt, BlockName, ContentHash, RESULT_VERSION, TaskId},
    work::WorkError,
};

/// The versions of this protocol that a side understands, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProtocolRange {
    pub oldest: u16,
    pub newest: u16,
}

/// What this release speaks.
pub const PROTOCOL: ProtocolRange = ProtocolRange {
    oldest: 5,
    newest: 5,
};

impl ProtocolRange {
    /// The newest version that both understand.
    pub fn common(self, other: Self) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

/// Name of bytes within one job. Outside of it, the plan's hash completes the name: see [`Name::outside`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Name {
    /// An input block.
    Input(ContentHash),
    /// What a task yields, or a byte range of it.
    Result {
        task: TaskId,
        range: Option<(u64, u64)>,
    },
    /// One chunk of a complete accumulator; asked of a peer: what the peer has of it.
    Chunk {
        accumulator: AccumulatorId,
        part: u16,
        chunk: u32,
    },
}

impl Name {
    pub fn result(task: TaskId) -> Self {
        Self::Result { task, range: None }
    }

    /// The name that holds beyond this job, where the bytes have one.
    pub fn outside(self, plan: ContentHash) -> Option<BlockName> {
        match self {
            Self::Input(hash) => Some(BlockName::Input(hash)),
            Self::Result { task, range: None } => Some(BlockName::Result {
                plan,
                task,
                version: RESULT_VERSION,
            }),
            Self::Result { range: Some(_), .. } | Self::Chunk { .. } => None,
        }
    }
}

/// An agent's first words.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: ProtocolRange,
    pub cores: u16,
    pub memory_bytes: u64,
    /// Room on its disk for input blocks.
    pub disk_bytes: u64,
    /// The instruction set that its kernels use. Equal ones promise equal bits.
    pub isa: String,
}

/// Where other agents reach an agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Peer {
    pub agent: AgentId,
    pub address: SocketAddr,
}

/// No plan has so many tasks. An input block that the plan as it is reads no more, while the plan will grow, is said to be
/// read again by the task with this number plus that of its last reader: it is kept, for the next pass will read it; and
/// since passes read blocks in the same order, the first ones rather than the last.
pub const LATER: u32 = 1 << 31;

/// One input of an assigned task.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Need {
    pub name: Name,
    pub bytes: u64,
    /// The next task of the plan that reads it, if any: what is needed last is let go first. Of an input block of a plan
    /// that will grow, perhaps a place behind all tasks that there are: see [`LATER`].
    pub again: Option<TaskId>,
    /// Who has it or a part of it, other than the reader.
    pub holders: Vec<AgentId>,
}

/// One try of a task.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Try {
    pub task: TaskId,
    pub attempt: Attempt,
}

/// A task given to an agent.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Assignment<W> {
    pub this: Try,
    pub work: W,
    pub needs: Vec<Need>,
    pub output: Output,
    pub width: u16,
    /// For the account of what came over which link.
    pub stage: u16,
    /// Send the block to the coordinator.
    pub deliver: bool,
}

/// From the coordinator to an agent.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum ToAgent<W> {
    /// Welcome to the job.
    Begin {
        you: AgentId,
        protocol: u16,
        plan: ContentHash,
        accumulators: Vec<Accumulator>,
        /// All input blocks of the plan. The agent answers with those that it [has](FromAgent::Have).
        inputs: Vec<ContentHash>,
        /// Bytes that a running task holds and the agent does not count, for each core.
        open_bytes: u64,
    },
    /// The plan has grown: sums behind those that are known.
    Grow {
        accumulators: Vec<Accumulator>,
    },
    /// Agents that may be named as holders from now on.
    Peers(Vec<Peer>),
    /// Still here.
    Ping,
    /// You were silent for so long that others do your work. Forget all of it, and say hello again.
    Reset,
    /// No common protocol.
    Refuse {
        understood: ProtocolRange,
    },
    Assign(Vec<Assignment<W>>),
    /// Give these back if they have not begun.
    Recall(Vec<Try>),
    /// Nobody will read these any more.
    Drop {
        results: Vec<TaskId>,
        accumulators: Vec<AccumulatorId>,
    },
    /// These blocks have arrived.
    Delivered(Vec<TaskId>),
    /// The job has ended.
    End,
}

/// How an agent is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Read from the cache so far.
    pub loaded_bytes: u64,
    pub tracked_bytes: u64,
    pub tracked_bytes_peak: u64,
    /// Summed over workers.
    pub busy_us: u64,
}

/// What a task waited for at an agent before it began, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Waits {
    /// For memory.
    pub room_us: u32,
    /// For what it reads.
    pub inputs_us: u32,
    /// For a core.
    pub core_us: u32,
    /// From whom the last came of what it read. Nobody: it was here, or on this machine's disk.
    pub last_from: Option<AgentId>,
}

/// A task that is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Done {
    pub this: Try,
    /// Length of the block; none of a fold.
    pub bytes: u64,
    pub took_us: u32,
    pub waits: Waits,
}

/// What has come over one link for the tasks of one stage since the agent last told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Received {
    pub stage: u16,
    pub from: AgentId,
    /// Of blocks, without what carries them.
    pub bytes: u64,
    /// Time in which it waited for anything of that sender, so that bytes and time give a rate.
    pub us: u64,
}

/// An input block that could not be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
#[error("could not read input block {hash}: {why}")]
pub struct InputError {
    pub hash: ContentHash,
    pub kind: InputErrorKind,
    pub why: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum InputErrorKind {
    /// It is not there.
    Missing,
    /// What is there has another hash.
    Corrupt,
    /// The system could not read it.
    Io,
    /// It could not be fetched.
    Link,
}

/// Why a task ends the job.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Cause {
    Work(WorkError),
    Input(InputError),
}

/// From an agent to the coordinator.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum FromAgent {
    Hello(Hello),
    /// Input blocks of the plan that are in its memory or on its disk, as places in [`ToAgent::Begin`]'s list.
    Have(Vec<u32>),
    Done {
        done: Vec<Done>,
        status: Status,
        received: Vec<Received>,
    },
    /// Given back, never begun.
    Returned(Vec<Try>),
    Failed {
        this: Try,
        cause: Cause,
    },
    /// Still here.
    Heartbeat {
        status: Status,
        received: Vec<Received>,
    },
    /// That agent does not answer.
    Unreachable(AgentId),
    /// Send me that: an input block, or what you keep of a task. The answer is a bulk frame with this number, a block or
    /// nothing.
    Fetch(Fetch),
}

/// From one agent to another: send me that. The answer is one or more bulk frames with this number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fetch {
    pub request: u64,
    pub name: Name,
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use proptest::prelude::*;
    use serde::de::DeserializeOwned;

    use super::{
        super::frame::{control_frame, decode_control},
        *,
    };
    use crate::{
        harm::{harmed, largest_allocation},
        svd::SvdWork,
    };

    const THIS: Try = Try {
        task: TaskId(7),
        attempt: Attempt(2),
    };

    fn to_agent() -> Vec<ToAgent<SvdWork>> {
        let hash = ContentHash([200; 32]);
        let accumulator = Accumulator {
            parts: vec![vec![4096, 4096, 17]; 3],
            contributions: 13,
        };
        let need = |name| Need {
            name,
            bytes: 1 << 22,
            again: Some(TaskId(LATER)),
            holders: vec![AgentId(1), AgentId::COORDINATOR],
        };
        let chunk = Name::Chunk {
            accumulator: AccumulatorId(1),
            part: 2,
            chunk: 3,
        };
        let range = Name::Result {
            task: TaskId(8),
            range: Some((5, 500)),
        };
        let assignment = |output| Assignment {
            this: THIS,
            work: SvdWork::Combine {
                width: 60,
                heights: vec![60, 60, 12],
            },
            needs: [Name::Input(hash), chunk, range].map(need).to_vec(),
            output,
            width: 1,
            deliver: true,
            stage: 7,
        };
        let fold = Output::Fold {
            accumulator: AccumulatorId(0),
            parts: (0, 3),
            contribution: 12,
        };
        vec![
            ToAgent::Begin {
                you: AgentId(4),
                protocol: 2,
                plan: hash,
                accumulators: vec![accumulator.clone(); 2],
                inputs: vec![hash; 5],
                open_bytes: 1 << 30,
            },
            ToAgent::Grow {
                accumulators: vec![accumulator],
            },
            ToAgent::Peers(vec![
                Peer {
                    agent: AgentId(1),
                    address: "10.77.0.11:24740".parse().unwrap(),
                },
                Peer {
                    agent: AgentId(2),
                    address: "[fd77::12]:24749".parse().unwrap(),
                },
            ]),
            ToAgent::Ping,
            ToAgent::Reset,
            ToAgent::Refuse {
                understood: PROTOCOL,
            },
            ToAgent::Assign(vec![
                assignment(Output::Block { bytes: 9 }),
                assignment(fold),
            ]),
            ToAgent::Recall(vec![THIS; 9]),
            ToAgent::Drop {
                results: vec![TaskId(u32::MAX); 7],
                accumulators: vec![AccumulatorId(0)],
            },
            ToAgent::Delivered(vec![TaskId(1)]),
            ToAgent::End,
        ]
    }

    fn from_agent() -> Vec<FromAgent> {
        let input = InputError {
            hash: ContentHash([1; 32]),
            kind: InputErrorKind::Corrupt,
            why: "its hash differs".into(),
        };
        let done = Done {
            this: THIS,
            bytes: 1 << 33,
            took_us: 77,
            waits: Waits {
                room_us: 1,
                inputs_us: 300,
                core_us: 70_000,
                last_from: Some(AgentId(2)),
            },
        };
        let received = vec![
            Received {
                stage: 7,
                from: AgentId::COORDINATOR,
                bytes: 1 << 40,
                us: 12,
            };
            3
        ];
        let works = [
            WorkError::BadInput("short".into()),
            WorkError::OutOfMemory { bytes: u64::MAX },
            WorkError::Numbers("infinite".into()),
            WorkError::Panic("oh".into()),
        ];
        let causes = works
            .map(Cause::Work)
            .into_iter()
            .chain([Cause::Input(input)]);
        let mut all = vec![
            FromAgent::Hello(Hello {
                protocol: PROTOCOL,
                cores: 8,
                memory_bytes: 1 << 34,
                disk_bytes: 1 << 36,
                isa: "AVX-512".into(),
            }),
            FromAgent::Have((0..300).collect()),
            FromAgent::Done {
                done: vec![done; 20],
                status: Status::default(),
                received: received.clone(),
            },
            FromAgent::Returned(vec![THIS; 3]),
            FromAgent::Heartbeat {
                status: Status {
                    loaded_bytes: u64::MAX,
                    ..Status::default()
                },
                received,
            },
            FromAgent::Unreachable(AgentId(9)),
            FromAgent::Fetch(Fetch {
                request: 1,
                name: Name::result(TaskId(3)),
            }),
        ];
        all.extend(causes.map(|cause| FromAgent::Failed { this: THIS, cause }));
        all
    }

    fn encoded<T: Serialize>(messages: Vec<T>) -> impl Strategy<Value = Vec<u8>> {
        let all: Vec<Vec<u8>> = messages
            .iter()
            .map(|message| rmp_serde::to_vec(message).unwrap())
            .collect();
        prop::sample::select(all).prop_flat_map(harmed)
    }

    fn read<T: DeserializeOwned + Debug>(body: &[u8]) -> Result<(), TestCaseError> {
        let frame = control_frame(body);
        let (read, most) = largest_allocation(|| decode_control::<T>(&frame));
        // A list that says how long it is gets a mebibyte ahead of what has come, and no more.
        let bound = (1 << 20) + 64 * body.len();
        prop_assert!(most <= bound, "{} bytes at once", most);
        if let Err(why) = read {
            prop_assert!(!why.to_string().is_empty());
        }
        Ok(())
    }

    #[test]
    fn messages_return_as_they_left() {
        for message in to_agent() {
            let bytes = rmp_serde::to_vec(&message).unwrap();
            let read: ToAgent<SvdWork> = decode_control(&control_frame(&bytes)).unwrap();
            assert_eq!(read, message);
        }
        for message in from_agent() {
            let bytes = rmp_serde::to_vec(&message).unwrap();
            let read: FromAgent = decode_control(&control_frame(&bytes)).unwrap();
            assert_eq!(read, message);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn harmed_messages_are_read_without_harm(
            down in encoded(to_agent()),
            up in encoded(from_agent()),
        ) {
            read::<ToAgent<SvdWork>>(&down)?;
            read::<FromAgent>(&up)?;
            // Each in the wrong direction.
            read::<FromAgent>(&down)?;
            read::<ToAgent<SvdWork>>(&up)?;
        }
    }

    #[test]
    fn protocols_meet_at_the_newest_common_version() {
        let range = |oldest, newest| ProtocolRange { oldest, newest };
        assert_eq!(range(1, 3).common(range(2, 5)), Some(3));
        assert_eq!(range(2, 5).common(range(1, 2)), Some(2));
        assert_eq!(range(1, 1).common(range(2, 2)), None);
    }
}
