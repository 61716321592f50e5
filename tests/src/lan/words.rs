//! What a test and the agents in its LAN say to each other: a line of JSON each.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// From the test to one agent.
#[derive(Serialize, Deserialize, Debug)]
pub struct Order {
    pub id: u64,
    /// The host; empty for the switch.
    pub host: String,
    pub what: What,
}

#[derive(Serialize, Deserialize, Debug)]
pub enum What {
    /// Switch only: makes a host. Its answer carries the host's pid as the switch sees it.
    Host(Birth),
    /// Runs `ip -batch` on this text.
    Ip(String),
    /// Starts a program. Its answer carries the pid.
    Spawn(Program),
    Signal {
        pid: u32,
        signal: i32,
    },
    /// A disk of so many bytes.
    Tmpfs {
        path: PathBuf,
        bytes: u64,
    },
    /// Switches off what makes packets that no wire carries: segments of 64 KiB, checksums left to the card.
    PlainFrames {
        interface: String,
    },
    /// Switch only: from now on `outside` and `inside` are connected by a wire like this.
    Wire {
        inside: String,
        outside: String,
        like: Wire,
    },
    /// The text of a file as the host sees it.
    Read(PathBuf),
    /// A setting of the host's kernel.
    Write {
        path: PathBuf,
        text: String,
    },
}

/// How a host begins.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Birth {
    pub name: String,
    pub folder: PathBuf,
    /// What must stay visible though it may lie under /tmp.
    pub keep: Vec<PathBuf>,
    pub ipv6: bool,
}

#[derive(Serialize, Deserialize, Debug)]
pub struct Program {
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub folder: PathBuf,
    pub stdout: PathBuf,
    pub stderr: PathBuf,
}

/// What becomes of frames between a host and the switch, alike in both directions.
#[derive(Serialize, Deserialize, Clone, Copy, Default, PartialEq, Debug)]
pub struct Wire {
    pub delay_ms: f64,
    /// Up to so much more or less delay, so that frames overtake each other.
    pub jitter_ms: f64,
    pub loss_percent: f64,
    /// No limit when 0.
    pub rate_mbit: f64,
    /// Lets in only what answers something that went out, as workstations' firewalls do.
    pub firewall: bool,
}

/// From an agent to the test.
#[derive(Serialize, Deserialize, Debug)]
pub enum Answer {
    Done {
        id: u64,
        pid: u32,
        text: String,
    },
    Failed {
        id: u64,
        why: String,
    },
    /// A host (or the switch, with an empty name) has its namespaces and waits for orders.
    Ready {
        host: String,
    },
    /// It never will.
    Refused {
        host: String,
        why: String,
    },
    Exited {
        host: String,
        pid: u32,
        code: Option<i32>,
        signal: Option<i32>,
    },
}
