//! A call from one process to another: greeting, answer, and then frames both ways.
//!
//! A connection carries one bidirectional stream of control frames, and one stream of blocks in each direction. So
//! messages keep their order, blocks keep theirs, and a long block holds up no message.

use std::{net::SocketAddr, time::Duration};

use quinn::{
    Connection, ConnectionError, Endpoint, ReadExactError, RecvStream, SendStream,
    TransportErrorCode,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::timeout,
};

use super::{
    greeting::{Greeting, NodeCard, Refusal, Reply},
    identity::SERVER_NAME,
};
use crate::farm::{
    bytes::{Bytes, BytesMut},
    frame::{
        BULK_HEAD, CONTROL_BYTES_MAX, CONTROL_HEAD, Frame, FrameError, bulk_lengths, control_length,
    },
    link::Outbox,
    work::WorkError,
};

/// No greeting and no answer to one is longer.
const GREETING_BYTES_MAX: usize = 64 << 10;
/// Whoever calls says why within this time.
const GREETING_TIME: Duration = Duration::from_secs(5);
/// Control frames that are written at once.
const BATCH_BYTES: usize = 64 << 10;

/// Why a link ends that is not broken: the other side has ended its streams.
pub const SAID_ALL: &str = "it has said all";

/// Codes with which connections are closed.
pub mod code {
    use quinn::VarInt;

    /// Nothing more to say.
    pub const DONE: VarInt = VarInt::from_u32(0);
    pub const REFUSED: VarInt = VarInt::from_u32(1);
    /// The other side broke the protocol.
    pub const NONSENSE: VarInt = VarInt::from_u32(2);
    /// The other side was silent for too long.
    pub const SILENT: VarInt = VarInt::from_u32(3);
}

/// Why a call came to nothing.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum CallError {
    #[error("does not answer on UDP {0}: not running, or a firewall between")]
    Silent(SocketAddr),
    #[error("{0}")]
    Stranger(String),
    #[error("{0}")]
    Refused(Refusal),
    #[error("the connection broke: {0}")]
    Lost(String),
}

/// A call that was welcome.
pub struct Called {
    pub connection: Connection,
    pub card: NodeCard,
    send: SendStream,
    recv: RecvStream,
}

/// Says in plain words why a connection could not be made or has ended.
pub fn plain(why: &ConnectionError) -> String {
    let code = match why {
        ConnectionError::TransportError(e) => Some(e.code),
        ConnectionError::ConnectionClosed(e) => Some(e.error_code),
        ConnectionError::VersionMismatch
        | ConnectionError::ApplicationClosed(_)
        | ConnectionError::Reset
        | ConnectionError::TimedOut
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => None,
    };
    // TLS alerts, RFC 8446, 6.2.
    let alert = |n| Some(TransportErrorCode::crypto(n));
    if code.is_some() && (code == alert(48) || code == alert(51)) {
        "belongs to another farm: the farm keys differ".to_owned()
    } else if code.is_some() && code == alert(116) {
        "has no farm key".to_owned()
    } else if code.is_some() && code == alert(45) {
        format!(
            "the certificate that one side was lent is not valid any more, or a clock is wrong ({why})"
        )
    } else if code.is_some() && code == alert(120) {
        "speaks another protocol: it is something else, or of another release".to_owned()
    } else {
        match why {
            ConnectionError::TimedOut => "no word for too long".to_owned(),
            ConnectionError::Reset => "it was restarted".to_owned(),
            ConnectionError::ApplicationClosed(close) if !close.reason.is_empty() => {
                String::from_utf8_lossy(&close.reason).into_owned()
            }
            other => other.to_string(),
        }
    }
}

/// Whether TLS is why: a key, a certificate, a protocol.
pub fn is_about_keys(why: &ConnectionError) -> bool {
    let code = match why {
        ConnectionError::TransportError(e) => e.code,
        ConnectionError::ConnectionClosed(e) => e.error_code,
        ConnectionError::VersionMismatch
        | ConnectionError::ApplicationClosed(_)
        | ConnectionError::Reset
        | ConnectionError::TimedOut
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => return false,
    };
    (0..=255).any(|alert| code == TransportErrorCode::crypto(alert))
}

/// Calls a node and greets it. Nothing takes longer than `within`.
pub async fn call(
    endpoint: &Endpoint,
    address: SocketAddr,
    greeting: &Greeting,
    within: Duration,
) -> Result<Called, CallError> {
    let connecting = endpoint
        .connect(address, SERVER_NAME)
        .map_err(|why| CallError::Lost(why.to_string()))?;
    let connection = match timeout(within, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(why)) => return Err(broken(&why, address)),
        Err(_) => return Err(CallError::Silent(address)),
    };
    // In TLS 1.3 the caller is done before it has been accepted: only an answer tells.
    match timeout(within, greet(&connection, greeting)).await {
        Ok(Ok((Reply::Welcome(card), send, recv))) => Ok(Called {
            connection,
            card: *card,
            send,
            recv,
        }),
        Ok(Ok((Reply::Refused(refusal), ..))) => {
            connection.close(code::DONE, b"");
            Err(CallError::Refused(refusal))
        }
        Ok(Err(broke)) => match connection.close_reason() {
            Some(why) => Err(broken(&why, address)),
            None => {
                connection.close(code::NONSENSE, b"");
                Err(CallError::Lost(broke))
            }
        },
        Err(_) => {
            connection.close(code::SILENT, b"");
            Err(CallError::Silent(address))
        }
    }
}

fn broken(why: &ConnectionError, address: SocketAddr) -> CallError {
    match why {
        ConnectionError::TimedOut => CallError::Silent(address),
        why if is_about_keys(why) => CallError::Stranger(plain(why)),
        why => CallError::Lost(plain(why)),
    }
}

async fn greet(
    connection: &Connection,
    greeting: &Greeting,
) -> Result<(Reply, SendStream, RecvStream), String> {
    let (mut send, mut recv) = connection.open_bi().await.map_err(|e| plain(&e))?;
    send.write_all(&named(greeting))
        .await
        .map_err(|e| e.to_string())?;
    let reply = words(&mut recv).await?;
    Ok((reply, send, recv))
}

/// A message with the names of its fields, as greetings are sent.
fn named<T: Serialize>(message: &T) -> Vec<u8> {
    let body = rmp_serde::to_vec_named(message).expect("messages are plain data");
    crate::farm::frame::control_frame(&body)
}

/// Reads one greeting or answer.
async fn words<T: DeserializeOwned>(recv: &mut RecvStream) -> Result<T, String> {
    let frame = control(recv, GREETING_BYTES_MAX)
        .await
        .map_err(|e| e.to_string())?
        .ok_or("it hung up")?;
    crate::farm::frame::decode_control(&frame).map_err(|e| e.to_string())
}

/// A call that came in; to be answered.
pub struct Incoming {
    pub connection: Connection,
    pub greeting: Greeting,
    send: SendStream,
    recv: RecvStream,
}

/// Hears why somebody calls. A caller that says nothing, or nonsense, is hung up on; the reason is returned.
pub async fn hear(connection: Connection) -> Result<Incoming, String> {
    let heard = timeout(GREETING_TIME, async {
        let (send, mut recv) = connection.accept_bi().await.map_err(|e| plain(&e))?;
        let greeting: Greeting = words(&mut recv).await?;
        Ok((send, recv, greeting))
    })
    .await
    .unwrap_or_else(|_| Err("it said nothing".to_owned()));
    match heard {
        Ok((send, recv, greeting)) => Ok(Incoming {
            connection,
            greeting,
            send,
            recv,
        }),
        Err(why) => {
            connection.close(code::NONSENSE, why.as_bytes());
            Err(why)
        }
    }
}

impl Incoming {
    /// Says no, and waits until that was heard or cannot be.
    pub async fn refuse(mut self, refusal: Refusal) {
        let said = async {
            let _ = self.send.write_all(&named(&Reply::Refused(refusal))).await;
            let _ = self.send.finish();
            self.connection.closed().await;
        };
        let _ = timeout(GREETING_TIME, said).await;
        self.connection.close(code::REFUSED, b"");
    }

    /// Says yes.
    pub async fn welcome(mut self, card: NodeCard) -> Result<Called, String> {
        self.send
            .write_all(&named(&Reply::Welcome(Box::new(card.clone()))))
            .await
            .map_err(|e| e.to_string())?;
        Ok(Called {
            connection: self.connection,
            card,
            send: self.send,
            recv: self.recv,
        })
    }
}

/// Who takes what comes in on a link.
pub trait Taker: Send + Sync + 'static {
    /// False: there is nobody any more who would read it.
    fn frame(&self, frame: Frame) -> bool;
    /// The link has ended, for this reason. Called once.
    fn end(&self, why: String);
}

/// A link with its way out open, and nobody yet who takes what comes in.
pub struct Opened {
    called: Called,
    control: UnboundedReceiver<Vec<u8>>,
    bulk: UnboundedReceiver<(Vec<u8>, Bytes)>,
}

impl Called {
    /// Opens the way out. What is put into the outbox is sent once the link [runs](Opened::run). The queues behind it have
    /// no bound of their own: what is in them is bounded by those who send (open requests, unacknowledged deliveries,
    /// assigned tasks).
    pub fn open(self) -> (Outbox, Opened) {
        let (control, control_queue) = unbounded_channel();
        let (bulk, bulk_queue) = unbounded_channel();
        let connection = self.connection.clone();
        let outbox = Outbox::new(move |frame| match frame {
            Frame::Control(bytes) => control.send(bytes).is_ok(),
            Frame::Bulk { head, payload } => bulk.send((head, payload)).is_ok(),
        })
        .closing(move || connection.close(code::SILENT, b"given up"));
        let opened = Opened {
            called: self,
            control: control_queue,
            bulk: bulk_queue,
        };
        (outbox, opened)
    }

    /// [Opens](Called::open) the link and [runs](Opened::run) it.
    pub fn run(self, taker: impl Taker) -> (Connection, Outbox) {
        let (outbox, opened) = self.open();
        (opened.run(taker), outbox)
    }
}

impl Opened {
    /// Runs the link until one side ends it: what comes goes to `taker`, what is put into the outbox is sent. When all
    /// hands on the outbox are gone, both streams end; whoever has read the other side's streams to their ends hangs up, so
    /// nothing that was sent is lost.
    pub fn run(self, taker: impl Taker) -> Connection {
        let Self {
            called:
                Called {
                    connection,
                    card: _,
                    send,
                    recv,
                },
            control,
            bulk,
        } = self;
        let link = connection.clone();
        tokio::spawn(async move {
            let writers = async {
                let written =
                    tokio::try_join!(write_control(send, control), write_bulk(&link, bulk));
                match written {
                    Err(why) => why,
                    // All is said; the other side hangs up when it has heard it.
                    Ok(_) => plain(&link.closed().await),
                }
            };
            let readers = async {
                match tokio::try_join!(read_control(recv, &taker), read_bulk(&link, &taker)) {
                    Err(why) => why,
                    Ok(_) => SAID_ALL.to_owned(),
                }
            };
            let why = tokio::select! {
                why = readers => why,
                why = writers => why,
            };
            let why = match link.close_reason() {
                None | Some(ConnectionError::LocallyClosed) => why,
                Some(reason) => plain(&reason),
            };
            // The other side learns why; it knows of its own silence.
            match why == SAID_ALL {
                true => link.close(code::DONE, b""),
                false => link.close(code::NONSENSE, why.as_bytes()),
            }
            taker.end(why);
        });
        connection
    }
}

/// One control frame; none at the end of the stream.
async fn control(recv: &mut RecvStream, bytes_max: usize) -> Result<Option<Vec<u8>>, ReadError> {
    let mut frame = vec![0; CONTROL_HEAD];
    match recv.read_exact(&mut frame).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(why) => return Err(why.into()),
    }
    let length = control_length(&frame)?;
    if length > bytes_max {
        return Err(FrameError::TooLong {
            claimed: length as u64,
            limit: bytes_max as u64,
        }
        .into());
    }
    frame.resize(CONTROL_HEAD + length, 0);
    recv.read_exact(&mut frame[CONTROL_HEAD..]).await?;
    Ok(Some(frame))
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("{0}")]
    Stream(#[from] ReadExactError),
    #[error("a frame {0}")]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Memory(#[from] WorkError),
}

/// Reads until the end.
async fn read_control(mut recv: RecvStream, taker: &impl Taker) -> Result<(), String> {
    while let Some(frame) = control(&mut recv, CONTROL_BYTES_MAX)
        .await
        .map_err(|e| e.to_string())?
    {
        if !taker.frame(Frame::Control(frame)) {
            return Err("nobody reads any more".to_owned());
        }
    }
    Ok(())
}

async fn read_bulk(connection: &Connection, taker: &impl Taker) -> Result<(), String> {
    let mut recv = connection.accept_uni().await.map_err(|e| plain(&e))?;
    while let Some(frame) = bulk(&mut recv).await.map_err(|e| e.to_string())? {
        if !taker.frame(frame) {
            return Err("nobody reads any more".to_owned());
        }
    }
    Ok(())
}

async fn bulk(recv: &mut RecvStream) -> Result<Option<Frame>, ReadError> {
    let mut head = vec![0; BULK_HEAD];
    match recv.read_exact(&mut head).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(why) => return Err(why.into()),
    }
    let lengths = bulk_lengths(&head)?;
    head.resize(BULK_HEAD + 8 * lengths.set_words as usize, 0);
    recv.read_exact(&mut head[BULK_HEAD..]).await?;
    // Memory that is claimed and never sent is never touched, so it costs nothing.
    let mut payload = BytesMut::unwritten(lengths.payload as usize)?;
    recv.read_exact(payload.as_bytes_mut()).await?;
    let payload = payload.freeze();
    Ok(Some(Frame::Bulk { head, payload }))
}

async fn write_control(
    mut send: SendStream,
    mut queue: UnboundedReceiver<Vec<u8>>,
) -> Result<(), String> {
    while let Some(mut batch) = queue.recv().await {
        while batch.len() < BATCH_BYTES
            && let Ok(more) = queue.try_recv()
        {
            batch.extend_from_slice(&more);
        }
        send.write_all(&batch).await.map_err(|e| e.to_string())?;
    }
    let _ = send.finish();
    Ok(())
}

async fn write_bulk(
    connection: &Connection,
    mut queue: UnboundedReceiver<(Vec<u8>, Bytes)>,
) -> Result<(), String> {
    let mut stream = None;
    while let Some((head, payload)) = queue.recv().await {
        let send = match &mut stream {
            Some(send) => send,
            none => none.insert(connection.open_uni().await.map_err(|e| plain(&e))?),
        };
        let mut chunks = [head.into(), bytes::Bytes::from_owner(payload)];
        send.write_all_chunks(&mut chunks)
            .await
            .map_err(|e| e.to_string())?;
    }
    // Its end tells the other side that no more blocks come, even if there was none.
    let mut send = match stream {
        Some(send) => send,
        None => connection.open_uni().await.map_err(|e| plain(&e))?,
    };
    let _ = send.finish();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, Ipv4Addr},
        sync::Arc,
    };

    use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

    use super::*;
    use crate::{
        farm::{
            frame::Bulk,
            ids::{ContentHash, TaskId},
            message::{PROTOCOL, ProtocolRange},
        },
        net::{
            endpoint::{caller, listen},
            greeting::{Busy, JobCard, Purpose},
            identity::{FarmKey, Identity},
        },
    };

    const WITHIN: Duration = Duration::from_secs(5);

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
    }

    fn node(identity: &Identity) -> (Endpoint, SocketAddr) {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let endpoint = listen(identity, Some(ip), Some(0), Arc::new(|_| None)).unwrap();
        let address = endpoint.local_addr().unwrap();
        (endpoint, address)
    }

    fn greeting() -> Greeting {
        Greeting {
            protocol: PROTOCOL,
            release: "1.2.3".to_owned(),
            purpose: Purpose::Job(job()),
        }
    }

    fn job() -> JobCard {
        JobCard {
            plan: ContentHash([3; 32]),
            title: "films".to_owned(),
            user: "alice".to_owned(),
            host: "big1".to_owned(),
            run: 1,
            alone: false,
        }
    }

    fn card() -> NodeCard {
        NodeCard {
            id: 7,
            host: "big2".to_owned(),
            release: "1.2.3".to_owned(),
            protocol: PROTOCOL,
            isa: "AVX2".to_owned(),
            cores: 8,
            memory_bytes: 1 << 33,
            load: 0.5,
            cached_blocks: 0,
            cached_bytes: 0,
            cache_bytes_max: 1 << 36,
            busy: None,
        }
    }

    enum Heard {
        Frame(Frame),
        End(String),
    }

    struct Ear(UnboundedSender<Heard>);

    impl Taker for Ear {
        fn frame(&self, frame: Frame) -> bool {
            self.0.send(Heard::Frame(frame)).is_ok()
        }

        fn end(&self, why: String) {
            let _ = self.0.send(Heard::End(why));
        }
    }

    #[test]
    fn messages_and_blocks_keep_their_order_and_the_caller_hangs_up_when_all_is_said() {
        let identity = FarmKey::create().unwrap().identity().unwrap();
        runtime().block_on(async {
            let (endpoint, address) = node(&identity);
            let (ear, mut heard) = unbounded_channel();
            let serving = tokio::spawn(async move {
                let connection = endpoint.accept().await.unwrap().await.unwrap();
                let call = hear(connection).await.unwrap();
                assert_eq!(call.greeting, greeting());
                let (_, outbox) = call.welcome(card()).await.unwrap().run(Ear(ear));
                outbox.control(&"welcome").unwrap();
                (endpoint, outbox)
            });
            let calling = caller(&identity).unwrap();
            let called = call(&calling, address, &greeting(), WITHIN).await.unwrap();
            assert_eq!(called.card, card());
            let (own_ear, mut own) = unbounded_channel();
            let (_, outbox) = called.run(Ear(own_ear));
            let plan = ContentHash([3; 32]);
            let mut sent = Vec::new();
            for n in 0..20_u32 {
                outbox.control(&n).unwrap();
                let bytes = vec![n as u8; 100_000 * (n as usize % 5)];
                let bulk = Bulk::delivery(plan, TaskId(n), Bytes::copy_from(&bytes).unwrap());
                outbox.bulk(&bulk).unwrap();
                sent.push(bulk);
            }
            drop(outbox);
            let (mut numbers, mut blocks) = (Vec::new(), Vec::new());
            let why = loop {
                match heard.recv().await.unwrap() {
                    Heard::Frame(Frame::Control(bytes)) => {
                        numbers.push(crate::farm::frame::decode_control::<u32>(&bytes).unwrap());
                    }
                    Heard::Frame(Frame::Bulk { head, payload }) => {
                        blocks.push(Bulk::decode(&head, payload).unwrap());
                    }
                    Heard::End(why) => break why,
                }
            };
            assert_eq!(numbers, (0..20).collect::<Vec<u32>>(), "{why}");
            assert_eq!(blocks, sent);
            let Some(Heard::Frame(Frame::Control(_))) = own.recv().await else {
                panic!("the answer did not come")
            };
            serving.await.unwrap();
        });
    }

    #[test]
    fn strangers_are_refused_and_both_sides_know_why() {
        let ours = FarmKey::create().unwrap().identity().unwrap();
        let theirs = FarmKey::create().unwrap().identity().unwrap();
        runtime().block_on(async {
            let (endpoint, address) = node(&ours);
            let serving = tokio::spawn(async move {
                endpoint
                    .accept()
                    .await
                    .unwrap()
                    .await
                    .err()
                    .map(|e| plain(&e))
            });
            let calling = caller(&theirs).unwrap();
            let refused = call(&calling, address, &greeting(), WITHIN).await.err();
            let Some(CallError::Stranger(why)) = refused else {
                panic!("{refused:?}")
            };
            assert!(why.contains("another farm"), "{why}");
            let why = serving.await.unwrap().unwrap();
            assert!(why.contains("another farm"), "{why}");
        });
    }

    #[test]
    fn what_was_lent_opens_the_door_until_it_expires() {
        let key = FarmKey::create().unwrap();
        let identity = key.identity().unwrap();
        let expired = std::time::SystemTime::now() - Duration::from_secs(10);
        for (lent, welcome) in [(key.lend(3), true), (key.lend_until(expired), false)] {
            let lent = Identity::from_pem(&lent.unwrap()).unwrap();
            runtime().block_on(async {
                let (endpoint, address) = node(&lent);
                tokio::spawn(async move {
                    while let Some(incoming) = endpoint.accept().await {
                        if let Ok(connection) = incoming.await
                            && let Ok(call) = hear(connection).await
                            && let Ok(called) = call.welcome(card()).await
                        {
                            called.connection.closed().await;
                        }
                    }
                });
                let calling = caller(&identity).unwrap();
                let called = call(&calling, address, &greeting(), WITHIN).await;
                match called {
                    Ok(_) => assert!(welcome),
                    Err(why) => assert!(!welcome && why.to_string().contains("not valid"), "{why}"),
                }
            });
        }
    }

    #[test]
    fn refusals_say_why_whatever_the_release() {
        let identity = FarmKey::create().unwrap().identity().unwrap();
        let refusals = [
            Refusal::Busy(Box::new(Busy {
                job: job(),
                lease_ms: 11_500,
            })),
            Refusal::Protocol {
                release: "9.9".to_owned(),
                understood: ProtocolRange {
                    oldest: 70,
                    newest: 71,
                },
            },
        ];
        let texts = [
            "busy with job films of alice@big1, lease 12 s",
            "it is of release 9.9 and speaks protocols 70 to 71",
        ];
        for (refusal, text) in refusals.into_iter().zip(texts) {
            runtime().block_on(async {
                let (endpoint, address) = node(&identity);
                let said = refusal.clone();
                tokio::spawn(async move {
                    let connection = endpoint.accept().await.unwrap().await.unwrap();
                    hear(connection).await.unwrap().refuse(said).await;
                });
                let calling = caller(&identity).unwrap();
                let why = call(&calling, address, &greeting(), WITHIN).await.err();
                assert_eq!(why, Some(CallError::Refused(refusal)));
                assert!(why.unwrap().to_string().starts_with(text));
            });
        }
    }

    #[test]
    fn nobody_there_is_said_in_time() {
        let identity = FarmKey::create().unwrap().identity().unwrap();
        runtime().block_on(async {
            // Bound, and never read: what a firewall that drops looks like.
            let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let address = silent.local_addr().unwrap();
            let calling = caller(&identity).unwrap();
            let within = Duration::from_millis(300);
            let why = call(&calling, address, &greeting(), within).await.err();
            assert_eq!(why, Some(CallError::Silent(address)));
        });
    }

    /// What members of the farm may send that is no protocol: the link ends with a reason, and nothing else happens.
    #[test]
    fn nonsense_ends_a_link_with_its_reason() {
        let identity = FarmKey::create().unwrap().identity().unwrap();
        let mut oversized = crate::farm::frame::control_frame(&[]);
        oversized[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let truncated = crate::farm::frame::control_frame(&[0; 100])[..50].to_vec();
        for (bytes, text) in [
            (vec![0x55; 100], "mark of its kind"),
            (oversized, "limit"),
            (truncated, "early"),
        ] {
            let identity = identity.clone();
            runtime().block_on(async move {
                let (endpoint, address) = node(&identity);
                let (ear, mut heard) = unbounded_channel();
                tokio::spawn(async move {
                    let connection = endpoint.accept().await.unwrap().await.unwrap();
                    let call = hear(connection).await.unwrap();
                    let (connection, _outbox) = call.welcome(card()).await.unwrap().run(Ear(ear));
                    connection.closed().await;
                });
                let calling = caller(&identity).unwrap();
                let mut called = call(&calling, address, &greeting(), WITHIN).await.unwrap();
                called.send.write_all(&bytes).await.unwrap();
                called.send.finish().unwrap();
                let Some(Heard::End(why)) = heard.recv().await else {
                    panic!("something was understood")
                };
                assert!(why.contains(text), "{why}");
            });
        }
        // Before any greeting, too.
        runtime().block_on(async {
            let (endpoint, address) = node(&identity);
            let serving = tokio::spawn(async move {
                let connection = endpoint.accept().await.unwrap().await.unwrap();
                hear(connection).await.err()
            });
            let calling = caller(&identity).unwrap();
            let connection = calling
                .connect(address, SERVER_NAME)
                .unwrap()
                .await
                .unwrap();
            let (mut send, _recv) = connection.open_bi().await.unwrap();
            send.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            assert!(serving.await.unwrap().is_some());
        });
    }
}
