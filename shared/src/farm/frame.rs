//! Frames: how messages and blocks look on a link.
//!
//! ```text
//! control   magic "SVDC" u32 | length u32 | MessagePack
//! bulk      magic "SVDB" u32 | version u16 | kind u16 | flags u32 | rest u32 | request u64 | plan u64 |
//!           set words u64 | length u64 | xxh3 of set and payload u64 | xxh3 of the 56 bytes before u64 |
//!           set words x u64 | payload
//! ```
//!
//! Everything is little-endian. Decoders are fed by strangers: they check before they allocate and never panic.

use serde::{Serialize, de::DeserializeOwned};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{
    bytes::Bytes,
    contributions::Contributions,
    ids::{ContentHash, TaskId},
};

const CONTROL_MAGIC: u32 = u32::from_le_bytes(*b"SVDC");
const BULK_MAGIC: u32 = u32::from_le_bytes(*b"SVDB");
const BULK_VERSION: u16 = 1;
pub const CONTROL_HEAD: usize = 8;
pub const BULK_HEAD: usize = 64;
/// No control message is longer.
pub const CONTROL_BYTES_MAX: usize = 64 << 20;
/// No block is longer.
pub const BULK_BYTES_MAX: u64 = 1 << 40;
/// A partial sum of more contributions (2^28) is refused.
pub const SET_WORDS_MAX: u64 = 1 << 22;

/// Why bytes are not a frame.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    #[error("{found} bytes where at least {wanted} belong")]
    Short { wanted: u64, found: u64 },
    #[error("starts with {0:#010x}, not with the mark of its kind")]
    Magic(u32),
    #[error("has version {0}, which this release does not understand")]
    Version(u16),
    #[error("has kind {0}, which this release does not know")]
    Kind(u16),
    #[error("claims {claimed} bytes, the limit is {limit}")]
    TooLong { claimed: u64, limit: u64 },
    #[error("checksum differs: damaged on the way")]
    Checksum,
    #[error("is not a message: {0}")]
    Message(String),
}

/// What travels on a link.
#[derive(Clone, Debug)]
pub enum Frame {
    Control(Vec<u8>),
    /// Head and set as bytes, the payload not copied.
    Bulk {
        head: Vec<u8>,
        payload: Bytes,
    },
}

/// Serialises a message.
pub fn encode_control<T: Serialize>(message: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    bytes.extend_from_slice(&CONTROL_MAGIC.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    rmp_serde::encode::write(&mut bytes, message).expect("messages are plain data");
    let length = bytes.len() - CONTROL_HEAD;
    assert!(
        length <= CONTROL_BYTES_MAX,
        "a control message of {length} bytes"
    );
    bytes[4..8].copy_from_slice(&(length as u32).to_le_bytes());
    bytes
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// How many bytes follow a control head: what a stream reader has to wait for.
pub fn control_length(head: &[u8]) -> Result<usize, FrameError> {
    if head.len() < CONTROL_HEAD {
        return Err(FrameError::Short {
            wanted: CONTROL_HEAD as u64,
            found: head.len() as u64,
        });
    }
    let magic = u32_at(head, 0);
    if magic != CONTROL_MAGIC {
        return Err(FrameError::Magic(magic));
    }
    let length = u32_at(head, 4) as usize;
    if length > CONTROL_BYTES_MAX {
        return Err(FrameError::TooLong {
            claimed: length as u64,
            limit: CONTROL_BYTES_MAX as u64,
        });
    }
    Ok(length)
}

/// Reads a whole control frame.
pub fn decode_control<T: DeserializeOwned>(frame: &[u8]) -> Result<T, FrameError> {
    let length = control_length(frame)?;
    let body = &frame[CONTROL_HEAD..];
    if body.len() != length {
        return Err(FrameError::Short {
            wanted: length as u64,
            found: body.len() as u64,
        });
    }
    rmp_serde::from_slice(body).map_err(|why| FrameError::Message(why.to_string()))
}

/// What a bulk frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum BulkKind {
    /// An immutable block, asked for.
    Block = 1,
    /// A partial sum of one chunk, asked for; its set comes with it.
    Partial = 2,
    /// A block for the coordinator; `request` is the task.
    Delivery = 3,
    /// The asked one has no such thing.
    Nothing = 4,
}

/// A bulk frame, read.
#[derive(Clone, PartialEq, Debug)]
pub struct Bulk {
    pub kind: BulkKind,
    pub request: u64,
    /// See [`plan_tag`].
    pub plan: u64,
    /// Frames of the same answer still to come.
    pub rest: u32,
    pub set: Contributions,
    pub payload: Bytes,
}

/// The first bytes of a plan's hash: enough to tell a frame of another job from one of this.
pub fn plan_tag(plan: ContentHash) -> u64 {
    u64_at(&plan.0, 0)
}

impl Bulk {
    pub fn delivery(plan: ContentHash, task: TaskId, payload: Bytes) -> Self {
        Self {
            kind: BulkKind::Delivery,
            request: u64::from(task.0),
            plan: plan_tag(plan),
            rest: 0,
            set: Contributions::default(),
            payload,
        }
    }

    pub fn encode(&self) -> Frame {
        let words: &[u8] = bytemuck::cast_slice(self.set.words());
        let mut head = Vec::with_capacity(BULK_HEAD + words.len());
        head.extend_from_slice(&BULK_MAGIC.to_le_bytes());
        head.extend_from_slice(&BULK_VERSION.to_le_bytes());
        head.extend_from_slice(&(self.kind as u16).to_le_bytes());
        head.extend_from_slice(&0_u32.to_le_bytes());
        head.extend_from_slice(&self.rest.to_le_bytes());
        head.extend_from_slice(&self.request.to_le_bytes());
        head.extend_from_slice(&self.plan.to_le_bytes());
        head.extend_from_slice(&(self.set.words().len() as u64).to_le_bytes());
        head.extend_from_slice(&(self.payload.len() as u64).to_le_bytes());
        head.extend_from_slice(&checksum(words, self.payload.as_slice()).to_le_bytes());
        head.extend_from_slice(&xxh3_64(&head).to_le_bytes());
        debug_assert_eq!(head.len(), BULK_HEAD);
        head.extend_from_slice(words);
        Frame::Bulk {
            head,
            payload: self.payload.clone(),
        }
    }

    /// Reads a head with its set, and the payload that came with it.
    pub fn decode(head: &[u8], payload: Bytes) -> Result<Self, FrameError> {
        let lengths = bulk_lengths(head)?;
        let words = &head[BULK_HEAD..];
        if words.len() as u64 != lengths.set_words * 8 {
            return Err(FrameError::Short {
                wanted: lengths.set_words * 8,
                found: words.len() as u64,
            });
        }
        if payload.len() as u64 != lengths.payload {
            return Err(FrameError::Short {
                wanted: lengths.payload,
                found: payload.len() as u64,
            });
        }
        let kind = match u16::from_le_bytes([head[6], head[7]]) {
            1 => BulkKind::Block,
            2 => BulkKind::Partial,
            3 => BulkKind::Delivery,
            4 => BulkKind::Nothing,
            other => return Err(FrameError::Kind(other)),
        };
        if u64_at(head, 48) != checksum(words, payload.as_slice()) {
            return Err(FrameError::Checksum);
        }
        Ok(Self {
            kind,
            rest: u32_at(head, 12),
            request: u64_at(head, 16),
            plan: u64_at(head, 24),
            set: Contributions::from_words(words.chunks_exact(8).map(|w| u64_at(w, 0)).collect()),
            payload,
        })
    }
}

fn checksum(words: &[u8], payload: &[u8]) -> u64 {
    if words.is_empty() {
        return xxh3_64(payload);
    }
    let mut hash = Xxh3::new();
    hash.update(words);
    hash.update(payload);
    hash.digest()
}

/// What follows a bulk head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BulkLengths {
    pub set_words: u64,
    pub payload: u64,
}

/// Checks a bulk head and says what follows: what a stream reader has to wait and allocate for.
pub fn bulk_lengths(head: &[u8]) -> Result<BulkLengths, FrameError> {
    if head.len() < BULK_HEAD {
        return Err(FrameError::Short {
            wanted: BULK_HEAD as u64,
            found: head.len() as u64,
        });
    }
    let magic = u32_at(head, 0);
    if magic != BULK_MAGIC {
        return Err(FrameError::Magic(magic));
    }
    let version = u16::from_le_bytes([head[4], head[5]]);
    if version != BULK_VERSION {
        return Err(FrameError::Version(version));
    }
    if xxh3_64(&head[..56]) != u64_at(head, 56) {
        return Err(FrameError::Checksum);
    }
    let lengths = BulkLengths {
        set_words: u64_at(head, 32),
        payload: u64_at(head, 40),
    };
    for (claimed, limit) in [
        (lengths.set_words, SET_WORDS_MAX),
        (lengths.payload, BULK_BYTES_MAX),
    ] {
        if claimed > limit {
            return Err(FrameError::TooLong { claimed, limit });
        }
    }
    Ok(lengths)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::message::{FromAgent, Hello, PROTOCOL, ToAgent};
    use super::*;

    fn bulk(payload: &[u8], members: &[u32]) -> Bulk {
        let mut set = Contributions::default();
        for &m in members {
            set.insert(m);
        }
        Bulk {
            kind: BulkKind::Partial,
            request: 7,
            plan: 9,
            rest: 2,
            set,
            payload: Bytes::copy_from(payload).unwrap(),
        }
    }

    fn parts(frame: Frame) -> (Vec<u8>, Bytes) {
        match frame {
            Frame::Bulk { head, payload } => (head, payload),
            Frame::Control(_) => unreachable!("a bulk frame"),
        }
    }

    #[test]
    fn a_control_message_returns_as_it_left() {
        let hello = FromAgent::Hello(Hello {
            protocol: PROTOCOL,
            cores: 8,
            disk_bytes: 0,
            memory_bytes: 1 << 30,
            isa: "AVX2".to_owned(),
        });
        let bytes = encode_control(&hello);
        assert_eq!(decode_control::<FromAgent>(&bytes).unwrap(), hello);
        assert!(decode_control::<FromAgent>(&bytes[..bytes.len() - 1]).is_err());
        let mut long = bytes.clone();
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(
            control_length(&long),
            Err(FrameError::TooLong { .. })
        ));
    }

    proptest! {
        #[test]
        fn a_bulk_frame_returns_as_it_left(
            payload in prop::collection::vec(any::<u8>(), 0..300),
            members in prop::collection::btree_set(0_u32..500, 0..20),
        ) {
            let sent = bulk(&payload, &members.into_iter().collect::<Vec<_>>());
            let (head, payload) = parts(sent.encode());
            prop_assert_eq!(Bulk::decode(&head, payload).unwrap(), sent);
        }

        #[test]
        fn any_flipped_bit_is_noticed(at in 0_usize..10_000, bit in 0_u8..8) {
            let (mut head, payload) = parts(bulk(&[1, 2, 3, 4, 5], &[3, 70]).encode());
            let mut payload = payload.as_slice().to_vec();
            let at = at % (head.len() + payload.len());
            if at < head.len() {
                head[at] ^= 1 << bit;
            } else {
                payload[at - head.len()] ^= 1 << bit;
            }
            prop_assert!(Bulk::decode(&head, Bytes::copy_from(&payload).unwrap()).is_err());
        }

        #[test]
        fn garbage_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let payload = Bytes::copy_from(&[]).unwrap();
            prop_assert!(Bulk::decode(&bytes, payload.clone()).is_err());
            prop_assert!(decode_control::<ToAgent<u8>>(&bytes).is_err());
            // With a plausible beginning, garbage reaches the deeper checks.
            let mut framed = encode_control(&0_u8);
            framed.truncate(CONTROL_HEAD);
            framed[4..8].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
            framed.extend_from_slice(&bytes);
            let _ = decode_control::<ToAgent<u8>>(&framed);
            let _ = decode_control::<FromAgent>(&framed);
            let (mut head, _) = parts(bulk(&[], &[]).encode());
            for (to, from) in head[4..56].iter_mut().zip(&bytes) {
                *to = *from;
            }
            let sum = xxh3_64(&head[..56]);
            head[56..64].copy_from_slice(&sum.to_le_bytes());
            let _ = Bulk::decode(&head, payload);
        }
    }
}
