//! Speaks a little UDP, so that the rig can be tried without anything of the farm.
//!
//! `lan-probe echo PORT [GROUP]` answers every datagram with itself; in a multicast group too, if one is named.
//! `lan-probe ask ADDRESS:PORT COUNT EVERY_MS` sends that many and tells of each answer; ends early when one host has
//! answered all.
//! `lan-probe blast ADDRESS:PORT BYTES` sends that much at once in datagrams of 1,000 bytes and waits a second for echoes.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["echo", port] => echo(port, None),
        ["echo", port, group] => echo(port, Some(group.parse().expect("a group"))),
        ["ask", to, count, every] => ask(
            to.parse().expect("an address"),
            count.parse().expect("a count"),
            Duration::from_millis(every.parse().expect("milliseconds")),
        ),
        ["blast", to, bytes] => blast(
            to.parse().expect("an address"),
            bytes.parse().expect("bytes"),
        ),
        _ => {
            panic!("echo PORT [GROUP] | ask ADDRESS:PORT COUNT EVERY_MS | blast ADDRESS:PORT BYTES")
        }
    }
}

fn echo(port: &str, group: Option<Ipv4Addr>) {
    let port: u16 = port.parse().expect("a port");
    let socket = UdpSocket::bind(("0.0.0.0", port)).expect("a free port");
    if let Some(group) = group {
        let own = own_address();
        socket
            .join_multicast_v4(&group, &own)
            .expect("a group to join");
    }
    println!("listening");
    let mut buffer = [0; 2000];
    loop {
        let (len, from) = socket.recv_from(&mut buffer).expect("a datagram");
        println!("heard {len} bytes from {from}");
        // Nobody to answer is no reason to stop.
        let _ = socket.send_to(&buffer[..len], from);
    }
}

/// The address that the way to the switch's net begins at.
fn own_address() -> Ipv4Addr {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
    socket.connect("10.77.0.1:9").expect("a way to the switch");
    match socket.local_addr().expect("bound").ip() {
        std::net::IpAddr::V4(address) => address,
        std::net::IpAddr::V6(address) => panic!("{address} is not of version 4"),
    }
}

fn ask(to: SocketAddr, count: u32, every: Duration) {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
    socket.set_broadcast(true).expect("broadcasts are allowed");
    let one = match to.ip() {
        std::net::IpAddr::V4(to) => !to.is_multicast() && to.octets()[3] != 255,
        std::net::IpAddr::V6(to) => !to.is_multicast(),
    };
    let start = Instant::now();
    let mut sent = Vec::new();
    let mut answers = 0;
    let mut buffer = [0; 2000];
    println!("asking");
    while sent.len() < count as usize
        || start.elapsed() < every * count + Duration::from_millis(300)
    {
        if one && answers == count {
            break;
        }
        if sent.len() < count as usize && start.elapsed() >= every * sent.len() as u32 {
            let number = sent.len() as u32;
            sent.push(Instant::now());
            if let Err(why) = socket.send_to(&number.to_be_bytes(), to) {
                println!("not sent: {why}");
            }
        }
        socket
            .set_read_timeout(Some(Duration::from_millis(2)))
            .expect("a timeout");
        if let Ok((4, from)) = socket.recv_from(&mut buffer) {
            answers += 1;
            let number = u32::from_be_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]);
            let took = sent[number as usize].elapsed().as_secs_f64() * 1e3;
            println!("answer {number} from {} after {took:.2} ms", from.ip());
        }
    }
    println!("answers {answers} of {count}");
}

fn blast(to: SocketAddr, bytes: usize) {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
    socket.connect(to).expect("a way");
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .expect("a timeout");
    let start = Instant::now();
    for _ in 0..bytes / 1000 {
        // A full queue loses it.
        let _ = socket.send(&[0; 1000]);
    }
    let mut buffer = [0; 2000];
    let (mut back, mut last) = (0, start);
    while let Ok(len) = socket.recv(&mut buffer) {
        back += len;
        last = Instant::now();
    }
    println!(
        "back {back} in {} ms",
        last.duration_since(start).as_millis()
    );
}
