//! The UDP socket of a process, QUIC on it, and beacons beside it.
//!
//! One port serves both: a datagram whose first byte has its two upper bits clear is no QUIC packet (RFC 9000, 17.2 and
//! 17.3: the fixed bit), so it goes to whoever answers beacons. One port is one hole in a firewall.

use std::{
    fmt, io,
    io::IoSliceMut,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use quinn::{
    AsyncUdpSocket, ClientConfig, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig,
    Runtime, ServerConfig, TokioRuntime, TransportConfig, UdpPoller, VarInt,
    udp::{RecvMeta, Transmit},
};
use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac;
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    beacon,
    discovery::interfaces::is_own,
    identity::{Identity, KeyErrorKind},
};

/// Asked of the system for each direction; it grants what it allows (net.core.rmem_max, wmem_max). With the usual 208 KiB
/// a burst overflows, and every loss halves the sending rate.
const SOCKET_BUFFER: usize = 8 << 20;
/// Bytes that may be on their way on one stream and on one connection: bandwidth times delay of 10 Gbit/s over 5 ms.
const STREAM_WINDOW: u32 = 8 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;
const SEND_WINDOW: u64 = 16 << 20;
/// Streams that the other side may have open: control and blocks, one each, and a few to spare.
const STREAMS_MAX: u32 = 8;
/// The largest datagram tried for: loopback and jumbo frames carry it. Ten of them, as GSO sends at once, must stay below
/// 64 KiB, or nothing gets through at all.
const DATAGRAM_MAX: u16 = 6_500;
/// Handshakes under way at once; strangers wait in line.
const HANDSHAKES_MAX: usize = 64;

/// After so long without a packet a connection is over. Longer than a lease, so that the lease decides.
pub const IDLE: Duration = Duration::from_secs(15);
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// Answers beacons: what was asked, what to say.
pub type Answerer = dyn Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("could not listen on UDP {address}: {why}")]
    Bind { address: SocketAddr, why: io::Error },
    #[error("could not listen on any of the UDP ports {first} to {last}: {why}")]
    AllTaken {
        first: u16,
        last: u16,
        why: io::Error,
    },
    #[error("could not use UDP: {0}")]
    Io(#[from] io::Error),
    #[error("could not prove who this is: {0}")]
    Key(#[from] KeyErrorKind),
}

fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(DATAGRAM_MAX);
    transport
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE).expect("some seconds")))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(SEND_WINDOW)
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS_MAX))
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(discovery));
    Arc::new(transport)
}

/// The reset key and the connection ids are functions of the farm's key: a node that was restarted tells its old
/// callers so with its first packet, and they need not wait until the connection is idle for too long.
fn endpoint_config(identity: &Identity) -> Result<EndpointConfig, EndpointError> {
    let secret = identity.reset_secret();
    let ids = u64::from_le_bytes(secret[..8].try_into().expect("eight bytes"));
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &secret)));
    config
        .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(ids)))
        // The fixed bit tells beacons from packets.
        .grease_quic_bit(false)
        .max_udp_payload_size(DATAGRAM_MAX)
        .map_err(|why| io::Error::other(why.to_string()))?;
    Ok(config)
}

/// How to call with this identity.
pub fn client_config(identity: &Identity) -> Result<ClientConfig, KeyErrorKind> {
    let mut config = ClientConfig::new(Arc::new(identity.client()?));
    config.transport_config(transport());
    Ok(config)
}

fn server_config(identity: &Identity) -> Result<ServerConfig, KeyErrorKind> {
    let mut config = ServerConfig::with_crypto(Arc::new(identity.server()?));
    config
        .transport_config(transport())
        .max_incoming(HANDSHAKES_MAX);
    Ok(config)
}

fn socket(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    tracing::debug!(
        %address,
        receive_bytes = socket.recv_buffer_size().unwrap_or(0),
        send_bytes = socket.send_buffer_size().unwrap_or(0),
        "UDP buffers"
    );
    Ok(socket.into())
}

/// Every interface: IPv6 with IPv4 in it, or IPv4 alone where there is no IPv6.
pub fn anywhere(port: u16) -> [SocketAddr; 2] {
    [
        (IpAddr::V6(Ipv6Addr::UNSPECIFIED), port).into(),
        (IpAddr::V4(Ipv4Addr::UNSPECIFIED), port).into(),
    ]
}

/// An endpoint that only calls.
pub fn caller(identity: &Identity) -> Result<Endpoint, EndpointError> {
    let mut last = io::Error::other("no address");
    for address in anywhere(0) {
        match socket(address) {
            Ok(socket) => {
                let runtime = Arc::new(TokioRuntime);
                let mut endpoint =
                    Endpoint::new(endpoint_config(identity)?, None, socket, runtime)?;
                endpoint.set_default_client_config(client_config(identity)?);
                return Ok(endpoint);
            }
            Err(why) => last = why,
        }
    }
    Err(last.into())
}

/// An endpoint that is called and calls. Without a port it takes the first free one of [`super::PORTS`].
pub fn listen(
    identity: &Identity,
    ip: Option<IpAddr>,
    port: Option<u16>,
    answer: Arc<Answerer>,
) -> Result<Endpoint, EndpointError> {
    let ports = port.map_or(super::PORTS, |p| p..=p);
    let mut last = None;
    for port in ports.clone() {
        let candidates = ip.map_or_else(|| anywhere(port).to_vec(), |ip| vec![(ip, port).into()]);
        for address in candidates {
            match socket(address) {
                Ok(socket) => return on(socket, identity, answer),
                Err(why) => last = Some((address, why)),
            }
        }
    }
    let (address, why) = last.expect("at least one port");
    Err(match port {
        Some(_) => EndpointError::Bind { address, why },
        None => EndpointError::AllTaken {
            first: *ports.start(),
            last: *ports.end(),
            why,
        },
    })
}

fn on(
    socket: std::net::UdpSocket,
    identity: &Identity,
    answer: Arc<Answerer>,
) -> Result<Endpoint, EndpointError> {
    let inner = TokioRuntime.wrap_udp_socket(socket)?;
    let mut endpoint = Endpoint::new_with_abstract_socket(
        endpoint_config(identity)?,
        Some(server_config(identity)?),
        Arc::new(WithBeacons { inner, answer }),
        Arc::new(TokioRuntime),
    )?;
    endpoint.set_default_client_config(client_config(identity)?);
    Ok(endpoint)
}

/// A UDP socket that answers beacons by itself and hands on everything else.
struct WithBeacons {
    inner: Arc<dyn AsyncUdpSocket>,
    answer: Arc<Answerer>,
}

impl fmt::Debug for WithBeacons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl WithBeacons {
    fn beacons(&self, from: &RecvMeta, datagrams: &[u8]) {
        for datagram in datagrams.chunks(from.stride.max(1)) {
            if let Some(reply) = (self.answer)(datagram) {
                // If it is lost, they will ask again.
                let _ = self.inner.try_send(&Transmit {
                    destination: from.addr,
                    ecn: None,
                    contents: &reply,
                    segment_size: None,
                    // What came by broadcast cannot be answered from where it was sent to.
                    src_ip: from.dst_ip.filter(|ip| is_own(*ip)),
                });
            }
        }
    }
}

impl AsyncUdpSocket for WithBeacons {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.inner.poll_recv(cx, bufs, meta))?;
        for (meta, buf) in meta.iter_mut().zip(bufs).take(count) {
            let datagrams = &buf[..meta.len];
            if beacon::is_beacon(datagrams) {
                self.beacons(meta, datagrams);
                // Nothing is left of it for QUIC.
                meta.len = 0;
            }
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
