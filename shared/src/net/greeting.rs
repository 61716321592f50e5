//! The first words on a connection, before any job: who calls and why, and whether that is welcome.
//!
//! They are MessagePack maps with names, so that releases that share nothing else still understand each other's refusal.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::farm::{
    ids::{AgentId, ContentHash},
    message::ProtocolRange,
};

/// A coordinator that says nothing for so long has left its nodes; a node that says nothing for so long is gone.
pub const LEASE_MS: u64 = 12_000;

/// A job, as others are told of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JobCard {
    pub plan: ContentHash,
    /// What its owner calls it: the job file's name.
    pub title: String,
    pub user: String,
    pub host: String,
    /// Tells one run of it from the next.
    pub run: u64,
    /// Its owner knows that no earlier run of it is alive: a node that still works for one may be taken from it.
    pub alone: bool,
}

impl JobCard {
    /// Whether `self` goes on with what the other has begun and left.
    pub fn succeeds(&self, other: &Self) -> bool {
        self.alone
            && self.run != other.run
            && (self.plan, &self.user, &self.host) == (other.plan, &other.user, &other.host)
    }
}

impl fmt::Display for JobCard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}@{}", self.title, self.user, self.host)
    }
}

/// Why somebody calls.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Purpose {
    /// To ask how the node is.
    Status,
    /// To work on a job. What follows is [`ToAgent`](crate::farm::message::ToAgent) and
    /// [`FromAgent`](crate::farm::message::FromAgent).
    Job(JobCard),
    /// An agent of the same job, to ask for blocks.
    Peer { plan: ContentHash, from: AgentId },
}

/// The caller's first words.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Greeting {
    pub protocol: ProtocolRange,
    pub release: String,
    pub purpose: Purpose,
}

/// A node, as it describes itself.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NodeCard {
    /// Drawn anew at every start.
    pub id: u64,
    pub host: String,
    pub release: String,
    pub protocol: ProtocolRange,
    pub isa: String,
    pub cores: u16,
    pub memory_bytes: u64,
    /// Load average of the last minute, of the whole machine.
    pub load: f32,
    pub cached_blocks: u64,
    pub cached_bytes: u64,
    pub cache_bytes_max: u64,
    pub busy: Option<Busy>,
}

/// Whom a node works for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Busy {
    pub job: JobCard,
    /// After so long without a word from that job's owner the node is free.
    pub lease_ms: u64,
}

/// The answer to a greeting.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Reply {
    Welcome(Box<NodeCard>),
    Refused(Refusal),
}

/// Why a call is not welcome.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error(
        "it is of release {release} and speaks protocols {} to {}, this is release {} and speaks {} to {}: install the same release on both",
        understood.oldest, understood.newest, env!("CARGO_PKG_VERSION"),
        crate::farm::message::PROTOCOL.oldest, crate::farm::message::PROTOCOL.newest
    )]
    Protocol {
        release: String,
        understood: ProtocolRange,
    },
    #[error("busy with job {}, lease {} s", .0.job, .0.lease_ms.div_ceil(1000))]
    Busy(Box<Busy>),
    #[error("it is about to stop")]
    Stopping,
    #[error("it does not work on that job")]
    OtherJob,
    #[error("it has too many connections already")]
    TooMany,
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use proptest::prelude::*;
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::{
        farm::{
            frame::{control_frame, decode_control},
            message::PROTOCOL,
        },
        harm::{harmed, largest_allocation},
    };

    fn job() -> JobCard {
        JobCard {
            plan: ContentHash([9; 32]),
            title: "films".into(),
            user: "alice".into(),
            host: "ws".into(),
            run: 1 << 60,
            alone: true,
        }
    }

    fn greetings() -> Vec<Greeting> {
        let peer = Purpose::Peer {
            plan: ContentHash([9; 32]),
            from: AgentId(3),
        };
        [Purpose::Status, Purpose::Job(job()), peer]
            .into_iter()
            .map(|purpose| Greeting {
                protocol: PROTOCOL,
                release: "0.1.0".into(),
                purpose,
            })
            .collect()
    }

    fn replies() -> Vec<Reply> {
        let busy = Busy {
            job: job(),
            lease_ms: 12_000,
        };
        let card = NodeCard {
            id: u64::MAX,
            host: "h1".into(),
            release: "0.1.0".into(),
            protocol: PROTOCOL,
            isa: "AVX2".into(),
            cores: 8,
            memory_bytes: 1 << 40,
            load: 0.5,
            cached_blocks: 3,
            cached_bytes: 4,
            cache_bytes_max: 5,
            busy: Some(busy.clone()),
        };
        let refusals = [
            Refusal::Protocol {
                release: "0.2.0".into(),
                understood: PROTOCOL,
            },
            Refusal::Busy(Box::new(busy)),
            Refusal::Stopping,
            Refusal::OtherJob,
            Refusal::TooMany,
        ];
        let refused = refusals.into_iter().map(Reply::Refused);
        std::iter::once(Reply::Welcome(Box::new(card)))
            .chain(refused)
            .collect()
    }

    fn encoded<T: Serialize>(words: Vec<T>) -> impl Strategy<Value = Vec<u8>> {
        let encode = |words: &T| rmp_serde::to_vec_named(words).unwrap();
        let all: Vec<Vec<u8>> = words.iter().map(encode).collect();
        prop::sample::select(all).prop_flat_map(harmed)
    }

    fn heard<T: DeserializeOwned + Debug>(body: &[u8]) -> Result<(), TestCaseError> {
        let frame = control_frame(body);
        let (read, most) = largest_allocation(|| decode_control::<T>(&frame));
        prop_assert!(most <= 64 << 10, "{} bytes at once", most);
        if let Err(why) = read {
            prop_assert!(!why.to_string().is_empty());
        }
        Ok(())
    }

    #[test]
    fn first_words_return_as_they_left() {
        for words in greetings() {
            let bytes = rmp_serde::to_vec_named(&words).unwrap();
            let read: Greeting = decode_control(&control_frame(&bytes)).unwrap();
            assert_eq!(read, words);
        }
        for words in replies() {
            let bytes = rmp_serde::to_vec_named(&words).unwrap();
            let read: Reply = decode_control(&control_frame(&bytes)).unwrap();
            assert_eq!(read, words);
        }
    }

    proptest! {
        #[test]
        fn harmed_first_words_are_heard_without_harm(
            greeting in encoded(greetings()),
            reply in encoded(replies()),
        ) {
            heard::<Greeting>(&greeting)?;
            heard::<Reply>(&reply)?;
            // Each in place of the other.
            heard::<Reply>(&greeting)?;
            heard::<Greeting>(&reply)?;
        }
    }
}
