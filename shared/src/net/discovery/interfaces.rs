//! On which interfaces nodes are looked for.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Mutex,
    time::{Duration, Instant},
};

use if_addrs::{IfAddr, Interface, get_if_addrs};

/// Networks of containers and virtual machines within this host: nobody is there.
const WITHIN: [&str; 4] = ["docker", "br-", "veth", "virbr"];

/// How long the list of own addresses is believed.
const OWN: Duration = Duration::from_secs(5);

/// Whether an address is one of this machine's. What was sent to a broadcast address was not sent to one: an answer
/// cannot come from there.
pub fn is_own(address: IpAddr) -> bool {
    static KNOWN: Mutex<Option<(Instant, Vec<IpAddr>)>> = Mutex::new(None);
    let address = address.to_canonical();
    let mut known = KNOWN.lock().unwrap_or_else(|poison| poison.into_inner());
    let (at, list) = known.get_or_insert_with(|| (Instant::now(), own()));
    if at.elapsed() >= OWN {
        (*at, *list) = (Instant::now(), own());
    }
    list.contains(&address)
}

fn own() -> Vec<IpAddr> {
    let all = get_if_addrs().unwrap_or_default();
    all.iter().map(Interface::ip).collect()
}

/// An interface that may be asked on.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Fit {
    pub name: String,
    pub address: Ipv4Addr,
    /// The broadcast address of its network; 255.255.255.255 would go by the default route, if anywhere.
    pub broadcast: Ipv4Addr,
}

/// One that may not, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unfit {
    pub name: String,
    pub why: &'static str,
}

/// Why an interface is not used, whatever its addresses are. What the user picked is used, whatever it is.
pub fn unfit(name: &str, loopback: bool, picked: Option<&str>) -> Option<&'static str> {
    match picked {
        Some(picked) if picked == name => None,
        Some(_) => Some("another was picked"),
        None if loopback => Some("this machine itself"),
        None if WITHIN.iter().any(|start| name.starts_with(start)) => Some("containers"),
        None => None,
    }
}

/// The interfaces of this moment.
pub fn list(picked: Option<&str>) -> std::io::Result<(Vec<Fit>, Vec<Unfit>)> {
    Ok(sort(&get_if_addrs()?, picked))
}

fn sort(all: &[Interface], picked: Option<&str>) -> (Vec<Fit>, Vec<Unfit>) {
    let mut fits: Vec<Fit> = Vec::new();
    let mut unfits: Vec<Unfit> = Vec::new();
    for interface in all {
        let name = &interface.name;
        let why = match (
            &interface.addr,
            unfit(name, interface.is_loopback(), picked),
        ) {
            (_, Some(why)) => why,
            (IfAddr::V4(v4), None) if v4.prefixlen < 31 => {
                let fit = Fit {
                    name: name.clone(),
                    address: v4.ip,
                    broadcast: v4.ip | !v4.netmask,
                };
                if !fits.contains(&fit) {
                    fits.push(fit);
                }
                continue;
            }
            (IfAddr::V4(_), None) => "a line between two",
            (IfAddr::V6(_), None) => "no IPv4 address",
        };
        if !unfits.iter().any(|known| known.name == *name) {
            unfits.push(Unfit {
                name: name.clone(),
                why,
            });
        }
    }
    unfits.retain(|unfit| !fits.iter().any(|fit| fit.name == unfit.name));
    (fits, unfits)
}

#[cfg(test)]
mod tests {
    use if_addrs::{IfOperStatus, Ifv4Addr, Ifv6Addr};

    use super::*;

    fn v4(name: &str, ip: [u8; 4], prefixlen: u8) -> Interface {
        let netmask =
            Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(prefixlen)).unwrap_or(0));
        with(
            name,
            IfAddr::V4(Ifv4Addr {
                ip: ip.into(),
                netmask,
                prefixlen,
                broadcast: Some(Ipv4Addr::BROADCAST),
            }),
        )
    }

    fn with(name: &str, addr: IfAddr) -> Interface {
        Interface {
            name: name.into(),
            addr,
            index: Some(1),
            oper_status: IfOperStatus::Up,
            is_p2p: false,
            #[cfg(windows)]
            adapter_name: String::new(),
        }
    }

    #[test]
    fn own_addresses_are_known_and_broadcasts_are_none() {
        assert!(is_own([127, 0, 0, 1].into()));
        assert!(is_own("::ffff:127.0.0.1".parse().unwrap()));
        assert!(!is_own([127, 255, 255, 255].into()));
        assert!(!is_own([192, 0, 2, 1].into()));
    }

    #[test]
    fn only_networks_with_others_in_them_are_asked_on() {
        let v6 = IfAddr::V6(Ifv6Addr {
            ip: std::net::Ipv6Addr::LOCALHOST,
            netmask: std::net::Ipv6Addr::UNSPECIFIED,
            prefixlen: 64,
            broadcast: None,
        });
        let all = [
            v4("lo", [127, 0, 0, 1], 8),
            v4("eth0", [10, 77, 3, 9], 22),
            with("eth0", v6.clone()),
            with("wlan0", v6),
            v4("docker0", [172, 17, 0, 1], 16),
            v4("br-12ab", [172, 18, 0, 1], 16),
            v4("tun0", [10, 8, 0, 1], 32),
            v4("bridge0", [192, 168, 1, 2], 24),
        ];
        let (fits, unfits) = sort(&all, None);
        let fits: Vec<_> = fits
            .iter()
            .map(|fit| (fit.name.as_str(), fit.broadcast.to_string()))
            .collect();
        assert_eq!(
            fits,
            [
                ("eth0", "10.77.3.255".to_owned()),
                ("bridge0", "192.168.1.255".to_owned())
            ]
        );
        let names: Vec<_> = unfits.iter().map(|unfit| unfit.name.as_str()).collect();
        assert_eq!(names, ["lo", "wlan0", "docker0", "br-12ab", "tun0"]);
        let (fits, _) = sort(&all, Some("docker0"));
        assert_eq!(fits.len(), 1);
        assert_eq!(fits[0].broadcast, Ipv4Addr::new(172, 17, 255, 255));
    }
}
