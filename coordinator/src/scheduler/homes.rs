//! Which input block is at home with which agent.
//!
//! In proportion to cores, later to measured rates, less what a slow link takes of a stage; bounded by the room that agents
//! have; in runs of blocks that follow each other; with those that have them already. A block whose home has it moves only if that gains more, over the passes
//! that are still to come, than shipping it costs.

use std::collections::BTreeMap;

use shared::farm::{
    ids::{AgentId, TaskId},
    moment::Moment,
};

use super::{AgentRow, Scheduler, State, story::Moved};

/// A home may have so much more than its share before measured rates move a block: rates waver.
const SLACK: f64 = 1.0 / 16.0;

/// With fewer tasks done in a stage, what was measured before counts more.
const METERED_MIN: u32 = 4;

struct Share {
    agent: AgentId,
    weight: f64,
    room: usize,
    quota: usize,
    has: usize,
}

/// Largest remainders: what each gets of `count` things by weight, none more than it has room for unless all are full.
fn divide(shares: &mut [Share], count: usize) {
    let mut left = count;
    for bounded in [true, false] {
        let base: Vec<usize> = shares.iter().map(|s| s.quota).collect();
        while left > 0 {
            let open = |s: &Share| !bounded || s.quota < s.room;
            let weight: f64 = shares.iter().filter(|s| open(s)).map(|s| s.weight).sum();
            if weight <= 0.0 {
                break;
            }
            let round = left;
            let mut rests: Vec<(f64, usize)> = Vec::new();
            for (index, share) in shares.iter_mut().enumerate().filter(|(_, s)| open(s)) {
                let exact = round as f64 * share.weight / weight;
                let whole = exact.floor() as usize;
                let room = if bounded {
                    share.room - share.quota
                } else {
                    usize::MAX
                };
                let given = whole.min(room).min(left);
                share.quota += given;
                left -= given;
                if given == whole {
                    rests.push((exact - exact.floor(), index));
                }
            }
            rests.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            for (_, index) in rests {
                let share = &mut shares[index];
                if left > 0 && (!bounded || share.quota < share.room) {
                    share.quota += 1;
                    left -= 1;
                }
            }
        }
        debug_assert!(shares.iter().zip(base).all(|(s, b)| s.quota >= b));
    }
}

impl<W: Clone> Scheduler<W> {
    /// Cost done per microsecond, by all of its cores.
    fn speed(row: &AgentRow) -> Option<f64> {
        let now = (row.meter.us > 0).then(|| row.meter.cost as f64 / row.meter.us as f64);
        let rate = if row.meter.tasks < METERED_MIN {
            row.rate.or(now)
        } else {
            now.or(row.rate)
        };
        rate.map(|rate| rate * f64::from(row.cores))
    }

    pub(super) fn plan_homes(&mut self, now: Moment) {
        let agents: Vec<AgentId> = (0..self.agents.len() as u32)
            .map(AgentId)
            .filter(|a| self.serves(&self.agents[a.0 as usize]))
            .collect();
        let blocks = self.tables.homed.len();
        if agents.len() < 2 || blocks == 0 {
            return;
        }
        let row = |agent: AgentId| &self.agents[agent.0 as usize];
        let bytes: u64 = self
            .tables
            .homed
            .iter()
            .map(|b| self.tables.input_bytes[*b as usize])
            .sum();
        let mean = (bytes / blocks as u64).max(1);
        let speeds: Vec<(f64, u16)> = agents
            .iter()
            .filter_map(|a| Some((Self::speed(row(*a))?, row(*a).cores)))
            .collect();
        let measured = !speeds.is_empty();
        // Those not yet measured count as the others are, core for core.
        let cores: f64 = speeds.iter().map(|(_, cores)| f64::from(*cores)).sum();
        let core = speeds.iter().map(|(speed, _)| speed).sum::<f64>() / cores.max(1.0);
        let alone = |a: AgentId| {
            let cores = f64::from(row(a).cores);
            if measured {
                Self::speed(row(a)).unwrap_or(cores * core)
            } else {
                cores
            }
        };
        let all: f64 = agents.iter().map(|a| alone(*a)).sum();
        let cost = self.planned_stage.map(|s| self.stages[s as usize].cost);
        let weight = |a: AgentId| {
            let others = all - alone(a);
            let without = cost
                .filter(|_| measured && others > 0.0)
                .map(|cost| cost as f64 / others);
            alone(a) * self.time_left(a, without)
        };
        let mut shares: Vec<Share> = agents
            .iter()
            .map(|&agent| Share {
                agent,
                weight: weight(agent),
                room: usize::try_from(row(agent).room_bytes / mean).unwrap_or(usize::MAX),
                quota: 0,
                has: 0,
            })
            .collect();
        divide(&mut shares, blocks);
        let mut share_of = vec![usize::MAX; self.agents.len()];
        for (index, share) in shares.iter().enumerate() {
            share_of[share.agent.0 as usize] = index;
        }
        let best = self.best_ship_rate();
        // Who keeps what: first what it has, in the order of the blocks.
        let left: u64 = self
            .stages
            .iter()
            .map(|s| s.cost.saturating_sub(s.cost_done))
            .sum();
        let each = left as f64 / blocks as f64;
        let mut homes: Vec<Option<AgentId>> = vec![None; self.homes.len()];
        let mut orphans: Vec<u32> = Vec::new();
        for &block in &self.tables.homed {
            let old = self.homes[block as usize];
            let Some(index) = old
                .map(|a| share_of[a.0 as usize])
                .filter(|s| *s < shares.len())
            else {
                orphans.push(block);
                continue;
            };
            let share = &shares[index];
            let slack = if measured {
                (share.quota as f64 * SLACK).ceil() as usize
            } else {
                0
            };
            let has = |s: &Share| self.agents[s.agent.0 as usize].has.contains(block);
            let keep = share.has < share.quota + slack || {
                let ship = self.tables.input_bytes[block as usize] as f64 / best;
                let gains = each / share.weight > ship;
                let here = shares.iter().any(|s| s.has < s.quota && has(s));
                measured && has(share) && !gains && !here
            };
            if keep {
                shares[index].has += 1;
                homes[block as usize] = old;
            } else {
                orphans.push(block);
            }
        }
        // The others to those that have them, then to those that lack some, in runs.
        for only_if_here in [true, false] {
            for share in &mut shares {
                let has = &self.agents[share.agent.0 as usize].has;
                orphans.retain(|&block| {
                    let take = share.has < share.quota && (!only_if_here || has.contains(block));
                    if take {
                        share.has += 1;
                        homes[block as usize] = Some(share.agent);
                    }
                    !take
                });
            }
        }
        // Shares are rounded and some keep more: what is left goes to whoever had it, or to the fastest.
        let fastest = shares.iter().max_by(|a, b| a.weight.total_cmp(&b.weight));
        let fastest = fastest.map(|s| s.agent);
        for block in orphans {
            let old = self.homes[block as usize].filter(|a| share_of[a.0 as usize] < shares.len());
            homes[block as usize] = old.or(fastest);
        }
        let before = std::mem::replace(&mut self.homes, homes);
        let mut moves = BTreeMap::<(Option<AgentId>, AgentId), u32>::new();
        for &block in &self.tables.homed {
            let (from, to) = (before[block as usize], self.homes[block as usize]);
            if let Some(to) = to.filter(|_| from != to) {
                *moves.entry((from, to)).or_default() += 1;
            }
        }
        for ((from, to), blocks) in moves {
            let moved = Moved {
                at_us: now.0,
                blocks,
                from,
                to,
                measured,
            };
            self.story.tell_moved(moved);
        }
        for index in 0..self.tables.homed.len() {
            let block = self.tables.homed[index];
            if self.homes[block as usize] == before[block as usize] {
                continue;
            }
            for at in 0..self.tables.block_readers(block).len() {
                let task = TaskId(self.tables.block_readers(block)[at]);
                if self.tasks[task.0 as usize].state == State::Ready {
                    self.unshelve(task);
                    self.shelve(task);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotas(weights: &[f64], rooms: &[usize], count: usize) -> Vec<usize> {
        let mut shares: Vec<Share> = weights
            .iter()
            .zip(rooms)
            .map(|(&weight, &room)| Share {
                agent: AgentId(0),
                weight,
                room,
                quota: 0,
                has: 0,
            })
            .collect();
        divide(&mut shares, count);
        shares.iter().map(|s| s.quota).collect()
    }

    #[test]
    fn shares_are_whole_and_proportional_and_rooms_bound_them() {
        const ROOM: usize = usize::MAX;
        assert_eq!(quotas(&[1.0, 2.0, 4.0], &[ROOM; 3], 14), [2, 4, 8]);
        assert_eq!(quotas(&[1.0, 2.0, 4.0], &[ROOM; 3], 15), [2, 4, 9]);
        assert_eq!(quotas(&[1.0, 1.0], &[3, ROOM], 10), [3, 7]);
        assert_eq!(quotas(&[1.0, 1.0], &[3, 2], 10).iter().sum::<usize>(), 10);
        assert_eq!(quotas(&[0.3, 0.3, 0.3], &[ROOM; 3], 2), [1, 1, 0]);
    }
}
