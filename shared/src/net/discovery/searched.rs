//! What a search has done so far, for people.

use std::{fmt, net::SocketAddr, time::Duration};

use super::{Heard, interfaces::Unfit};
use crate::net::PORTS;

/// The record of a search. Its text says what was asked, what came of it, and what to try.
#[derive(Clone, Debug, Default)]
pub struct Searched {
    pub elapsed: Duration,
    /// Whether anyone was asked who was not named.
    pub discover: bool,
    /// The interface that the user picked.
    pub interface: Option<String>,
    /// Why mDNS does not work.
    pub mdns_trouble: Option<String>,
    pub mdns_answers: u64,
    /// By broadcast.
    pub interfaces: Vec<Asked>,
    pub left_out: Vec<Unfit>,
    /// By name.
    pub hosts: Vec<Asked>,
    pub nodes: Vec<Heard>,
    pub refusals: Vec<Refused>,
}

/// Somewhere that was asked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Asked {
    /// An interface or a host.
    pub name: String,
    pub addresses: Vec<std::net::IpAddr>,
    pub queries: u64,
    pub answers: u64,
    /// Why it could not be asked, or not always.
    pub trouble: Option<String>,
}

/// A node that is there and of no use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    pub host: String,
    pub address: Option<SocketAddr>,
    pub why: String,
}

impl Searched {
    /// Notes why a node is not used.
    pub fn refuse(&mut self, heard: &Heard, why: impl fmt::Display) {
        self.refusals.push(Refused {
            host: heard.host.clone(),
            address: heard.addresses.first().copied(),
            why: why.to_string(),
        });
    }

    /// What was asked and what came of it, a line each.
    pub fn facts(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.discover {
            lines.push(match &self.mdns_trouble {
                Some(trouble) => format!("asked by mDNS for _svdnode._udp: {trouble}"),
                None => format!(
                    "asked by mDNS for _svdnode._udp: {}",
                    answers(self.mdns_answers)
                ),
            });
        }
        let (first, last) = (PORTS.start(), PORTS.end());
        for asked in &self.interfaces {
            lines.push(format!(
                "asked by broadcast on {asked}, UDP ports {first} to {last}: {}",
                asked.outcome()
            ));
        }
        if self.discover && self.interfaces.is_empty() {
            lines.push(match &self.interface {
                Some(name) => format!(
                    "asked nobody by broadcast: there is no interface {name} with an IPv4 network"
                ),
                None => "asked nobody by broadcast: no interface is in an IPv4 network with others"
                    .into(),
            });
        }
        for asked in &self.hosts {
            lines.push(format!("asked {asked}: {}", asked.outcome()));
        }
        let left_out: Vec<_> = self
            .left_out
            .iter()
            .map(|unfit| format!("{} ({})", unfit.name, unfit.why))
            .collect();
        if !left_out.is_empty() {
            lines.push(format!("did not ask on {}", left_out.join(", ")));
        }
        for heard in &self.nodes {
            let told = |refused: &&Refused| {
                refused.host == heard.host && refused.address == heard.addresses.first().copied()
            };
            if heard.id.is_some() && !self.refusals.iter().any(|refused| told(&refused)) {
                lines.push(format!("{heard} is there"));
            }
        }
        for refused in &self.refusals {
            lines.push(match refused.address {
                Some(address) => {
                    format!("{} ({address}) is not used: {}", refused.host, refused.why)
                }
                None => format!("{} is not used: {}", refused.host, refused.why),
            });
        }
        lines
    }

    /// What to try.
    pub fn advice(&self) -> String {
        let (first, last) = (PORTS.start(), PORTS.end());
        if !self.refusals.is_empty() || self.nodes.iter().any(|heard| heard.id.is_some()) {
            return "the reasons above say what to change; `svdjob nodes` shows them again".into();
        }
        let mut parts = vec!["is `svdnode` running on the other machines?".to_owned()];
        if self.discover {
            parts.push(format!(
                "If so, a firewall may drop the queries there or the answers here (UDP {first} to {last}, mDNS 5353), \
                 or a router is in between. `--node HOST` asks a node directly, which passes most of them"
            ));
        }
        if !self.hosts.is_empty() {
            parts.push(format!(
                "Hosts that were named must be reached on UDP {first} to {last}: their firewall must let that in"
            ));
        }
        parts.join(" ")
    }
}

fn answers(number: u64) -> String {
    match number {
        0 => "no answer".into(),
        1 => "1 answer".into(),
        more => format!("{more} answers"),
    }
}

impl Asked {
    fn outcome(&self) -> String {
        match &self.trouble {
            Some(trouble) if self.queries == 0 => trouble.clone(),
            Some(trouble) => format!(
                "{} queries, {} ({trouble})",
                self.queries,
                answers(self.answers)
            ),
            None => format!("{} queries, {}", self.queries, answers(self.answers)),
        }
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        let addresses: Vec<_> = self
            .addresses
            .iter()
            .map(std::net::IpAddr::to_string)
            .filter(|address| *address != self.name)
            .collect();
        if !addresses.is_empty() {
            write!(f, " ({})", addresses.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Searched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {:.1} s:", self.elapsed.as_secs_f64())?;
        for line in self.facts() {
            write!(f, "\n  {line}")?;
        }
        write!(f, "\n{}", self.advice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_for_nobody_says_what_was_asked_and_suspects_a_firewall() {
        let searched = Searched {
            elapsed: Duration::from_millis(3004),
            discover: true,
            interfaces: vec![Asked {
                name: "eth0".into(),
                addresses: vec!["10.77.0.255".parse().unwrap()],
                queries: 50,
                ..Asked::default()
            }],
            left_out: vec![Unfit {
                name: "lo".into(),
                why: "this machine itself",
            }],
            ..Searched::default()
        };
        assert_eq!(
            searched.to_string(),
            "\
after 3.0 s:
  asked by mDNS for _svdnode._udp: no answer
  asked by broadcast on eth0 (10.77.0.255), UDP ports 24740 to 24749: 50 queries, no answer
  did not ask on lo (this machine itself)
is `svdnode` running on the other machines? If so, a firewall may drop the queries there or the answers here \
(UDP 24740 to 24749, mDNS 5353), or a router is in between. `--node HOST` asks a node directly, which passes most of them"
        );
    }

    #[test]
    fn a_refusal_is_told_with_its_reason() {
        let heard = Heard {
            id: Some(1),
            host: "h1".into(),
            addresses: vec!["10.77.0.11:24740".parse().unwrap()],
            ..Heard::default()
        };
        let mut searched = Searched {
            nodes: vec![heard.clone()],
            ..Searched::default()
        };
        assert!(
            searched
                .to_string()
                .contains("h1 (10.77.0.11:24740) is there")
        );
        searched.refuse(&heard, "it belongs to another farm");
        let text = searched.to_string();
        assert!(
            text.contains("h1 (10.77.0.11:24740) is not used: it belongs to another farm"),
            "{text}"
        );
        assert!(!text.contains("is there"), "{text}");
        assert!(!text.contains("firewall"), "{text}");
    }
}
