//! A cable in user space between a host's plug and the switch: delay, loss, a rate, a firewall, for kernels without netem.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{RecvFlags, SendFlags, recv, send},
};

use super::words::Wire;
use crate::Random;

/// Frames of a slow cable wait in a queue like a switch port's; what finds it full is lost.
const QUEUE_BYTES: usize = 256 << 10;
/// How long a firewall remembers who was spoken to.
const REMEMBER: Duration = Duration::from_secs(120);

/// One direction.
struct Way {
    from: OwnedFd,
    to: OwnedFd,
    waiting: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
    bytes: usize,
    /// When the cable has carried all that was put on it.
    free: Instant,
}

impl Way {
    fn new(from: OwnedFd, to: OwnedFd) -> Self {
        Self {
            from,
            to,
            waiting: BinaryHeap::new(),
            bytes: 0,
            free: Instant::now(),
        }
    }

    fn put(&mut self, frame: &[u8], now: Instant, number: u64, like: Wire, random: &mut Random) {
        if random.unit() * 100.0 < like.loss_percent {
            return;
        }
        let mut due = now;
        if like.rate_mbit > 0.0 {
            if self.bytes + frame.len() > QUEUE_BYTES {
                return;
            }
            let takes = frame.len() as f64 * 8.0 / (like.rate_mbit * 1e6);
            self.free = self.free.max(now) + Duration::from_secs_f64(takes);
            due = self.free;
        }
        let late = like.delay_ms + (2.0 * random.unit() - 1.0) * like.jitter_ms;
        due += Duration::from_secs_f64(late.max(0.0) / 1e3);
        self.bytes += frame.len();
        self.waiting.push(Reverse((due, number, frame.to_vec())));
    }

    fn deliver(&mut self, now: Instant) {
        while let Some(Reverse((due, ..))) = self.waiting.peek()
            && *due <= now
        {
            let Some(Reverse((.., frame))) = self.waiting.pop() else {
                return;
            };
            self.bytes -= frame.len();
            // A full queue behind the cable loses frames, as it does in a switch.
            let _ = send(&self.to, &frame, SendFlags::DONTWAIT);
        }
    }
}

/// Carries frames between the interfaces until one of them is gone. `like` may change at any time.
pub fn carry(inside: &str, outside: &str, like: Arc<Mutex<Wire>>) -> io::Result<()> {
    let (inside, outside) = (
        super::system::frames(inside)?,
        super::system::frames(outside)?,
    );
    let mut ways = [
        Way::new(inside.try_clone()?, outside.try_clone()?),
        Way::new(outside, inside),
    ];
    let mut random = Random(u64::from(std::process::id()));
    let mut firewall = Firewall::default();
    let mut buffer = vec![0; 65_600];
    let mut number = 0;
    std::thread::Builder::new()
        .name("wire".into())
        .spawn(move || {
            loop {
                let now = Instant::now();
                let next = ways
                    .iter()
                    .filter_map(|way| way.waiting.peek())
                    .map(|Reverse((due, ..))| due.saturating_duration_since(now))
                    .min();
                let next = next.map(|time| Timespec {
                    tv_sec: time.as_secs() as i64,
                    tv_nsec: time.subsec_nanos().into(),
                });
                let mut heard = [
                    PollFd::new(&ways[0].from, PollFlags::IN),
                    PollFd::new(&ways[1].from, PollFlags::IN),
                ];
                match poll(&mut heard, next.as_ref()) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(_) => return,
                }
                let heard = heard.map(|fd| !fd.revents().is_empty());
                let now = Instant::now();
                let like = *like.lock().expect("nobody panics with this lock");
                for (direction, way) in ways.iter_mut().enumerate() {
                    for _ in 0..if heard[direction] { 64 } else { 0 } {
                        let len = match recv(&way.from, &mut *buffer, RecvFlags::DONTWAIT) {
                            Ok((len, _)) => len,
                            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => break,
                            // Down for now, or gone with its host.
                            Err(rustix::io::Errno::NETDOWN) => {
                                std::thread::sleep(Duration::from_millis(1));
                                break;
                            }
                            Err(_) => return,
                        };
                        let frame = &buffer[..len];
                        if !like.firewall || firewall.lets(frame, direction == 0, now) {
                            number += 1;
                            way.put(frame, now, number, like, &mut random);
                        }
                    }
                    way.deliver(Instant::now());
                }
            }
        })?;
    Ok(())
}

/// Lets out everything and in what answers it; multicast and answers to a broadcast answer nothing in this sense.
#[derive(Default)]
struct Firewall {
    /// Who inside spoke to whom outside, and when last.
    spoken: HashMap<(Side, Side), Instant>,
}

/// Protocol, address, port.
type Side = (u8, [u8; 16], u16);

impl Firewall {
    fn lets(&mut self, frame: &[u8], out: bool, now: Instant) -> bool {
        let Some((from, to)) = sides(frame) else {
            return out || !is_ip(frame);
        };
        let (inside, outside) = if out { (from, to) } else { (to, from) };
        if out {
            self.spoken.insert((inside, outside), now);
            return true;
        }
        match self.spoken.get_mut(&(inside, outside)) {
            Some(last) if now.duration_since(*last) < REMEMBER => {
                *last = now;
                true
            }
            _ => false,
        }
    }
}

const ETHERNET: usize = 14;

/// IPv6's neighbour discovery is not meant here: without it there is no IPv6 at all, like ARP in IPv4.
fn is_ip(frame: &[u8]) -> bool {
    match frame.get(12..ETHERNET) {
        Some([0x08, 0x00]) => true,
        Some([0x86, 0xdd]) => frame.get(ETHERNET + 6) != Some(&58),
        _ => false,
    }
}

/// Source and destination of UDP and TCP; of other IPv4 protocols without ports.
fn sides(frame: &[u8]) -> Option<(Side, Side)> {
    let packet = frame.get(ETHERNET..)?;
    let (protocol, from, to, rest) = match frame.get(12..ETHERNET)? {
        [0x08, 0x00] => {
            let rest = packet.get(usize::from(packet.first()? & 15) * 4..)?;
            let address = |at: usize| {
                let mut long = [0; 16];
                long[..4].copy_from_slice(packet.get(at..at + 4)?);
                Some(long)
            };
            (*packet.get(9)?, address(12)?, address(16)?, rest)
        }
        [0x86, 0xdd] => {
            let address = |at: usize| packet.get(at..at + 16)?.try_into().ok();
            (
                *packet.get(6)?,
                address(8)?,
                address(24)?,
                packet.get(40..)?,
            )
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes(rest.get(at..at + 2)?.try_into().ok()?));
    match i32::from(protocol) {
        libc::IPPROTO_UDP | libc::IPPROTO_TCP => {
            Some(((protocol, from, port(0)?), (protocol, to, port(2)?)))
        }
        libc::IPPROTO_ICMP => Some(((protocol, from, 0), (protocol, to, 0))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(from: [u8; 4], from_port: u16, to: [u8; 4], to_port: u16) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET + 28];
        frame[12] = 8;
        let packet = &mut frame[ETHERNET..];
        packet[0] = 0x45;
        packet[9] = 17;
        packet[12..16].copy_from_slice(&from);
        packet[16..20].copy_from_slice(&to);
        packet[20..22].copy_from_slice(&from_port.to_be_bytes());
        packet[22..24].copy_from_slice(&to_port.to_be_bytes());
        frame
    }

    #[test]
    fn a_firewall_lets_in_answers_only() {
        let (us, them, all) = ([10, 0, 0, 1], [10, 0, 0, 2], [10, 0, 0, 255]);
        let mut firewall = Firewall::default();
        let now = Instant::now();
        assert!(!firewall.lets(&udp(them, 7, us, 9), false, now));
        assert!(firewall.lets(&udp(us, 9, all, 7), true, now));
        // The answer to a broadcast comes from an address that was never spoken to.
        assert!(!firewall.lets(&udp(them, 7, us, 9), false, now));
        assert!(firewall.lets(&udp(us, 9, them, 7), true, now));
        assert!(firewall.lets(&udp(them, 7, us, 9), false, now));
        assert!(!firewall.lets(&udp(them, 8, us, 9), false, now));
        assert!(!firewall.lets(&udp(them, 7, us, 9), false, now + 2 * REMEMBER));
        let mut arp = vec![0; 42];
        (arp[12], arp[13]) = (8, 6);
        assert!(firewall.lets(&arp, false, now));
        assert!(!firewall.lets(&udp(them, 7, us, 9)[..30], false, now));
    }
}
