//! What comes over which link, and in which time: for the coordinator, which ships accordingly and tells people.

use std::collections::BTreeMap;

use shared::farm::{ids::AgentId, message::Received, moment::Moment};

#[derive(Debug)]
struct Open {
    questions: u32,
    /// Since when what is open has been waited for, and not been told of.
    since: Moment,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Links {
    open: BTreeMap<AgentId, Open>,
    /// Bytes and microseconds by stage and sender.
    received: BTreeMap<(u16, AgentId), (u64, u64)>,
}

impl Links {
    /// Something is to come from there.
    pub fn asked(&mut self, now: Moment, from: AgentId) {
        let open = self.open.entry(from).or_insert(Open {
            questions: 0,
            since: now,
        });
        open.questions += 1;
    }

    /// Bytes have come. Time counts once, however many questions are open.
    pub fn came(&mut self, now: Moment, stage: u16, from: AgentId, bytes: u64) {
        let us = self.open.get_mut(&from).map_or(0, |open| {
            let us = now.since(open.since);
            open.since = now;
            us
        });
        let sum = self.received.entry((stage, from)).or_default();
        sum.0 += bytes;
        sum.1 += us;
    }

    /// One question is answered, or will not be.
    pub fn closed(&mut self, from: AgentId) {
        if let Some(open) = self.open.get_mut(&from) {
            open.questions -= 1;
            if open.questions == 0 {
                self.open.remove(&from);
            }
        }
    }

    /// What is open is not waited for any more. What has come is told all the same.
    pub fn reset(&mut self) {
        self.open.clear();
    }

    /// What has come since this was last called.
    pub fn take(&mut self) -> Vec<Received> {
        std::mem::take(&mut self.received)
            .into_iter()
            .map(|((stage, from), (bytes, us))| Received {
                stage,
                from,
                bytes,
                us,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_once_for_each_sender_and_only_while_something_is_open() {
        let mut links = Links::default();
        let (big, small) = (AgentId(1), AgentId(2));
        links.asked(Moment(100), big);
        links.asked(Moment(150), big);
        links.asked(Moment(160), small);
        links.came(Moment(300), 7, big, 10);
        links.closed(big);
        links.came(Moment(400), 7, big, 20);
        links.closed(big);
        links.came(Moment(400), 8, small, 5);
        links.closed(small);
        // Nothing was open for 600.
        links.asked(Moment(1000), big);
        links.came(Moment(1001), 8, big, 1);
        let received = |stage, from, bytes, us| Received {
            stage,
            from,
            bytes,
            us,
        };
        assert_eq!(
            links.take(),
            [
                received(7, big, 30, 300),
                received(8, big, 1, 1),
                received(8, small, 5, 240),
            ]
        );
        assert_eq!(links.take(), []);
    }
}
