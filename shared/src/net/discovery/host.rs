//! Nodes that a user names.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use serde::{Serialize, Serializer};

/// `HOST` or `HOST:PORT`. Without a port, a node may be on any of [`PORTS`](crate::net::PORTS).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct HostPort {
    pub host: String,
    pub port: Option<u16>,
}

impl HostPort {
    /// The ports to ask, in the order to ask them.
    pub fn ports(&self) -> std::ops::RangeInclusive<u16> {
        match self.port {
            Some(port) => port..=port,
            None => crate::net::PORTS,
        }
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest
                .split_once(']')
                .ok_or("the bracket of an IPv6 address is not closed")?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(expected()),
            }
        } else if text.split('%').next().is_some_and(is_v6) {
            (text, None)
        } else {
            match text.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        if text.contains('@') {
            return Err("a user belongs to SSH only: `ssh` starts nodes, `node` finds them".into());
        }
        let v6 = host.split('%').next().is_some_and(is_v6);
        let letter = |c: char| c.is_alphanumeric() || "-._".contains(c);
        if host.is_empty() || !(v6 || host.chars().all(letter)) {
            return Err(expected());
        }
        let port = match port.map(str::parse::<u16>) {
            None => None,
            Some(Ok(port)) if port > 0 => Some(port),
            Some(_) => return Err("a port is a number from 1 to 65535".into()),
        };
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

fn is_v6(text: &str) -> bool {
    text.parse::<Ipv6Addr>().is_ok()
}

fn expected() -> String {
    "expected HOST or HOST:PORT, such as \"big1\" or \"10.0.0.5:24741\"".into()
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) if self.host.contains(':') => write!(f, "[{}]:{port}", self.host),
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

impl Serialize for HostPort {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_as_people_write_them() {
        for (text, host, port) in [
            ("big1", "big1", None),
            (" big1.example.org:7 ", "big1.example.org", Some(7)),
            ("10.0.0.5:24741", "10.0.0.5", Some(24741)),
            ("::1", "::1", None),
            ("fe80::1%eth0", "fe80::1%eth0", None),
            ("[fd77::13]", "fd77::13", None),
            ("[fd77::13]:24740", "fd77::13", Some(24740)),
        ] {
            let read: HostPort = text.parse().unwrap();
            assert_eq!((read.host.as_str(), read.port), (host, port), "{text}");
            assert_eq!(read.to_string().parse(), Ok(read), "{text}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "expected HOST"),
            (":7", "expected HOST"),
            ("a b", "expected HOST"),
            ("http://big1", "1 to 65535"),
            ("big1/x", "expected HOST"),
            ("big1:", "1 to 65535"),
            ("big1:0", "1 to 65535"),
            ("big1:70000", "1 to 65535"),
            ("[::1", "not closed"),
            ("[::1]7", "expected HOST"),
            ("alice@big1", "SSH only"),
        ] {
            let error = text.parse::<HostPort>().unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
