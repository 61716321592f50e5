//! Datagrams by which nodes are asked for and answer. They share a node's port with QUIC.
//!
//! Nothing in them is believed: they say where to call, and the call's handshake proves who is there. A query is padded
//! to the size of the longest answer, so nobody can use a node to make much traffic out of little.
//!
//! ```text
//! both      magic 4 | version 1 | kind 1 | nonce 8 | fingerprint 8
//! query     ... zeros up to QUERY_BYTES
//! answer    ... id 8 | memory 8 | oldest 2 | newest 2 | cores 2 | port 2 | flags 1 | release 1 + n | host 1 + n
//! ```
//!
//! Numbers are little-endian. Later versions may only add to the end, so every version can be read as the first.

use super::identity::Fingerprint;
use crate::farm::message::ProtocolRange;

/// Begins with two zero bits; QUIC version 1 sets one of the two in every datagram.
const MAGIC: [u8; 4] = *b"\x1asvd";
const VERSION: u8 = 1;
const QUERY: u8 = 1;
const ANSWER: u8 = 2;
const BUSY: u8 = 1;

/// Every query has so many bytes; no answer has more.
pub const QUERY_BYTES: usize = 256;
/// What an answer has room for.
pub const RELEASE_BYTES_MAX: usize = 32;
pub const HOST_BYTES_MAX: usize = 63;

/// What a node tells anyone who asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Advert {
    /// Drawn anew at every start.
    pub id: u64,
    pub fingerprint: Fingerprint,
    pub protocol: ProtocolRange,
    pub release: String,
    pub host: String,
    pub cores: u16,
    pub memory_bytes: u64,
    pub port: u16,
    pub busy: bool,
}

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Query {
    /// Comes back in the answer.
    pub nonce: u64,
    /// The asker's farm. Nodes of other farms answer too: a user is told of them.
    pub fingerprint: Fingerprint,
}

/// Whether a datagram is none of QUIC's.
pub fn is_beacon(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|byte| byte & 0xC0 == 0)
}

/// Writes a query.
pub fn query(query: Query) -> Vec<u8> {
    let mut bytes = head(QUERY, query);
    bytes.resize(QUERY_BYTES, 0);
    bytes
}

/// Reads a query; `None` for whatever else it may be.
pub fn read_query(datagram: &[u8]) -> Option<Query> {
    let (kind, query, _) = read_head(datagram)?;
    (kind == QUERY).then_some(query)
}

/// The answer to a datagram, if it is a query. It is never longer than what it answers.
pub fn answer(datagram: &[u8], me: &Advert) -> Option<Vec<u8>> {
    let Query { nonce, .. } = read_query(datagram)?;
    let mut bytes = head(
        ANSWER,
        Query {
            nonce,
            fingerprint: me.fingerprint,
        },
    );
    bytes.extend(me.id.to_le_bytes());
    bytes.extend(me.memory_bytes.to_le_bytes());
    for short in [me.protocol.oldest, me.protocol.newest, me.cores, me.port] {
        bytes.extend(short.to_le_bytes());
    }
    bytes.push(if me.busy { BUSY } else { 0 });
    for (text, max) in [(&me.release, RELEASE_BYTES_MAX), (&me.host, HOST_BYTES_MAX)] {
        let text = within(text, max);
        bytes.push(text.len() as u8);
        bytes.extend(text.as_bytes());
    }
    (bytes.len() <= datagram.len()).then_some(bytes)
}

/// Reads an answer and the nonce of its query; `None` for whatever else it may be.
pub fn read_answer(datagram: &[u8]) -> Option<(u64, Advert)> {
    let (kind, Query { nonce, fingerprint }, mut rest) = read_head(datagram)?;
    if kind != ANSWER {
        return None;
    }
    let rest = &mut rest;
    let advert = Advert {
        id: u64::from_le_bytes(take(rest)?),
        fingerprint,
        memory_bytes: u64::from_le_bytes(take(rest)?),
        protocol: ProtocolRange {
            oldest: u16::from_le_bytes(take(rest)?),
            newest: u16::from_le_bytes(take(rest)?),
        },
        cores: u16::from_le_bytes(take(rest)?),
        port: u16::from_le_bytes(take(rest)?),
        busy: take::<1>(rest)?[0] & BUSY != 0,
        release: take_text(rest, RELEASE_BYTES_MAX)?,
        host: take_text(rest, HOST_BYTES_MAX)?,
    };
    Some((nonce, advert))
}

/// A stranger's text, fit for a terminal.
pub(super) fn harmless(text: &str) -> String {
    let letter = |c: char| if c.is_control() { '?' } else { c };
    text.chars().map(letter).collect()
}

/// The start of a text that has at most so many bytes.
pub(super) fn within(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn head(kind: u8, Query { nonce, fingerprint }: Query) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(QUERY_BYTES);
    bytes.extend(MAGIC);
    bytes.extend([VERSION, kind]);
    bytes.extend(nonce.to_le_bytes());
    bytes.extend(fingerprint.0);
    bytes
}

fn read_head(datagram: &[u8]) -> Option<(u8, Query, &[u8])> {
    let mut rest = datagram.strip_prefix(&MAGIC)?;
    let [version, kind] = take(&mut rest)?;
    let query = Query {
        nonce: u64::from_le_bytes(take(&mut rest)?),
        fingerprint: Fingerprint(take(&mut rest)?),
    };
    (version >= VERSION).then_some((kind, query, rest))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, left) = rest.split_first_chunk()?;
    *rest = left;
    Some(*taken)
}

fn take_text(rest: &mut &[u8], max: usize) -> Option<String> {
    let [length] = take(rest)?;
    let (text, left) = rest.split_at_checked(usize::from(length))?;
    *rest = left;
    let text = std::str::from_utf8(text).ok()?;
    (text.len() <= max).then(|| harmless(text))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn advert() -> impl Strategy<Value = Advert> {
        let numbers = any::<(u64, [u8; 8], u16, u16, u16, u64, u16, bool)>();
        (numbers, ".{0,40}", ".{0,80}").prop_map(
            |((id, print, oldest, newest, cores, memory_bytes, port, busy), release, host)| {
                Advert {
                    id,
                    fingerprint: Fingerprint(print),
                    protocol: ProtocolRange { oldest, newest },
                    release,
                    host,
                    cores,
                    memory_bytes,
                    port,
                    busy,
                }
            },
        )
    }

    fn asked() -> impl Strategy<Value = Query> {
        any::<(u64, [u8; 8])>().prop_map(|(nonce, print)| Query {
            nonce,
            fingerprint: Fingerprint(print),
        })
    }

    proptest! {
        #[test]
        fn a_query_returns_as_it_was_written(asked in asked()) {
            let bytes = query(asked);
            prop_assert!(is_beacon(&bytes));
            prop_assert_eq!(bytes.len(), QUERY_BYTES);
            prop_assert_eq!(read_query(&bytes), Some(asked));
            prop_assert_eq!(read_answer(&bytes), None);
        }

        #[test]
        fn an_answer_returns_as_it_was_written_but_for_long_texts(me in advert(), asked in asked()) {
            let bytes = answer(&query(asked), &me).unwrap();
            prop_assert!(is_beacon(&bytes));
            prop_assert!(bytes.len() <= QUERY_BYTES);
            let (nonce, read) = read_answer(&bytes).unwrap();
            prop_assert_eq!(nonce, asked.nonce);
            prop_assert!(harmless(&me.host).starts_with(&read.host));
            prop_assert!(harmless(&me.release).starts_with(&read.release));
            let (release, host) = (read.release.clone(), read.host.clone());
            prop_assert_eq!(read, Advert { release, host, ..me });
        }

        #[test]
        fn no_answer_is_longer_than_its_query(me in advert(), asked in asked(), kept in 0..=QUERY_BYTES) {
            let query = query(asked);
            if let Some(bytes) = answer(&query[..kept], &me) {
                prop_assert!(bytes.len() <= kept);
            }
        }

        #[test]
        fn what_is_cut_short_is_none(me in advert(), asked in asked(), part in 0.0..1.0) {
            let bytes = answer(&query(asked), &me).unwrap();
            let kept = (bytes.len() as f64 * part) as usize;
            prop_assert_eq!(read_answer(&bytes[..kept]), None);
        }

        #[test]
        fn what_comes_after_the_first_version_is_passed_over(me in advert(), more in prop::collection::vec(any::<u8>(), 0..64)) {
            let asked = Query { nonce: 1, fingerprint: me.fingerprint };
            let mut bytes = answer(&query(asked), &me).unwrap();
            let first = read_answer(&bytes);
            bytes[MAGIC.len()] = VERSION + 1;
            bytes.extend(more);
            prop_assert_eq!(read_answer(&bytes), first);
        }

        #[test]
        fn garbage_is_read_without_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..300), me in advert(), known in any::<bool>()) {
            if known && bytes.len() > MAGIC.len() {
                bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
            }
            let _ = is_beacon(&bytes);
            let _ = answer(&bytes, &me);
            if let Some((_, advert)) = read_answer(&bytes) {
                prop_assert!(!advert.host.chars().any(char::is_control));
            }
        }
    }

    #[test]
    fn an_answer_is_not_answered() {
        let me = Advert {
            id: 1,
            fingerprint: Fingerprint([7; 8]),
            protocol: crate::farm::message::PROTOCOL,
            release: "0.1.0".into(),
            host: "h1".into(),
            cores: 2,
            memory_bytes: 1 << 30,
            port: 24740,
            busy: false,
        };
        let asked = Query {
            nonce: 1,
            fingerprint: me.fingerprint,
        };
        let bytes = answer(&query(asked), &me).unwrap();
        assert_eq!(answer(&bytes, &me), None);
    }
}
