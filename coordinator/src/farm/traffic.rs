//! Which bytes have gone over which link in which stage.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shared::farm::ids::AgentId;

/// Bytes from one to another, without what carries them (QUIC adds a few per cent).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LinkBytes {
    pub from: AgentId,
    pub to: AgentId,
    /// Input blocks, results and sums.
    pub blocks: u64,
    /// Messages.
    pub control: u64,
}

/// See the module. What comes to an agent is counted by its own word, what it had not told of when it was lost is not in it;
/// deliveries and messages are counted here, messages in the stage that is the first not done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    stages: BTreeMap<u16, Links>,
}

/// By sender and receiver, bytes of blocks and of messages.
type Links = BTreeMap<(AgentId, AgentId), (u64, u64)>;

impl Traffic {
    pub fn blocks(&mut self, stage: u16, from: AgentId, to: AgentId, bytes: u64) {
        self.link(stage, from, to).0 += bytes;
    }

    pub fn control(&mut self, stage: u16, from: AgentId, to: AgentId, bytes: u64) {
        self.link(stage, from, to).1 += bytes;
    }

    fn link(&mut self, stage: u16, from: AgentId, to: AgentId) -> &mut (u64, u64) {
        let links = self.stages.entry(stage).or_default();
        links.entry((from, to)).or_default()
    }

    /// What went over each link in a stage.
    pub fn of(&self, stage: u16) -> Vec<LinkBytes> {
        let links = self.stages.get(&stage).into_iter().flatten();
        links
            .map(|(&(from, to), &(blocks, control))| LinkBytes {
                from,
                to,
                blocks,
                control,
            })
            .collect()
    }
}

/// The same, summed over the nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Sums {
    /// Blocks that the coordinator has sent and received.
    pub sent: u64,
    pub received: u64,
    /// Its messages, both ways.
    pub control: u64,
    /// Blocks from node to node.
    pub between_nodes: u64,
}

impl Sums {
    pub fn of(links: &[LinkBytes]) -> Self {
        let mut sums = Self::default();
        for link in links {
            sums.control += link.control;
            let side = if link.from == AgentId::COORDINATOR {
                &mut sums.sent
            } else if link.to == AgentId::COORDINATOR {
                &mut sums.received
            } else {
                &mut sums.between_nodes
            };
            *side += link.blocks;
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_by_stage_and_link_and_summed_by_kind() {
        let me = AgentId::COORDINATOR;
        let (a, b) = (AgentId(0), AgentId(1));
        let mut traffic = Traffic::default();
        traffic.blocks(2, me, a, 10);
        traffic.blocks(2, me, a, 5);
        traffic.control(2, me, a, 1);
        traffic.blocks(2, a, b, 100);
        traffic.blocks(2, b, me, 7);
        traffic.control(3, b, me, 9);
        let sums = Sums {
            sent: 15,
            received: 7,
            control: 1,
            between_nodes: 100,
        };
        assert_eq!(Sums::of(&traffic.of(2)), sums);
        assert_eq!(traffic.of(2).len(), 3);
        assert_eq!(Sums::of(&traffic.of(3)).control, 9);
        assert_eq!(traffic.of(4), []);
    }
}
