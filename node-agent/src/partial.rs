//! Partial sums held by an agent: accumulator parts, each in one or more copies, each copy with the set of
//! contributions in it. A task that folds holds a copy of each of its parts alone; a second copy costs memory and exists
//! only where a worker would otherwise stand idle.

use rustc_hash::FxHashMap;
use shared::farm::{contributions::Contributions, graph::Accumulator, ids::AccumulatorId};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyState {
    Free,
    /// A running task adds to it.
    Busy,
    /// It has been read: nothing is added to it any more.
    Sealed,
}

#[derive(Clone, Debug)]
pub struct PartCopy {
    pub state: CopyState,
    /// Its memory exists.
    pub open: bool,
    pub set: Contributions,
}

#[derive(Debug, Default)]
pub struct Partials {
    accumulators: Vec<Accumulator>,
    copies: FxHashMap<(AccumulatorId, u16), Vec<PartCopy>>,
}

impl Partials {
    pub fn new(accumulators: Vec<Accumulator>) -> Self {
        Self {
            accumulators,
            copies: FxHashMap::default(),
        }
    }

    /// There are more, behind those that are known.
    pub fn grow(&mut self, accumulators: Vec<Accumulator>) {
        self.accumulators.extend(accumulators);
    }

    pub fn accumulator(&self, id: AccumulatorId) -> &Accumulator {
        &self.accumulators[id.0 as usize]
    }

    pub fn part_bytes(&self, id: AccumulatorId, part: u16) -> u64 {
        8 * self.accumulator(id).part_len(part) as u64
    }

    pub fn copies(&self, id: AccumulatorId, part: u16) -> &[PartCopy] {
        self.copies.get(&(id, part)).map_or(&[], Vec::as_slice)
    }

    fn free(&self, id: AccumulatorId, part: u16) -> Option<usize> {
        self.copies(id, part)
            .iter()
            .position(|c| c.state == CopyState::Free)
    }

    /// Bytes of the copies that would have to be added before a task could fold into all these parts.
    pub fn lacking(&self, id: AccumulatorId, parts: (u16, u16)) -> u64 {
        (parts.0..parts.1)
            .filter(|&p| self.free(id, p).is_none())
            .map(|p| self.part_bytes(id, p))
            .sum()
    }

    /// Bytes of the copies that have to be added before any task could ever fold into these parts.
    pub fn missing(&self, id: AccumulatorId, parts: (u16, u16)) -> u64 {
        (parts.0..parts.1)
            .filter(|&p| self.alive(id, p) == 0)
            .map(|p| self.part_bytes(id, p))
            .sum()
    }

    fn alive(&self, id: AccumulatorId, part: u16) -> usize {
        self.copies(id, part)
            .iter()
            .filter(|c| c.state != CopyState::Sealed)
            .count()
    }

    /// Adds a copy to each part that has none to fold into.
    pub fn promise(&mut self, id: AccumulatorId, parts: (u16, u16)) {
        for part in parts.0..parts.1 {
            if self.alive(id, part) == 0 {
                self.add(id, part);
            }
        }
    }

    /// Adds a copy to each part that has none free.
    pub fn add_lacking(&mut self, id: AccumulatorId, parts: (u16, u16)) {
        for part in parts.0..parts.1 {
            if self.free(id, part).is_none() {
                self.add(id, part);
            }
        }
    }

    fn add(&mut self, id: AccumulatorId, part: u16) {
        self.copies.entry((id, part)).or_default().push(PartCopy {
            state: CopyState::Free,
            open: false,
            set: Contributions::default(),
        });
    }

    /// Takes a free copy of each part; for each, its number and whether its memory exists.
    pub fn take(&mut self, id: AccumulatorId, parts: (u16, u16)) -> Vec<(u16, bool)> {
        (parts.0..parts.1)
            .map(|part| {
                let at = self.free(id, part).expect("looked for before");
                let copy = &mut self.copies.get_mut(&(id, part)).expect("has copies")[at];
                copy.state = CopyState::Busy;
                (at as u16, std::mem::replace(&mut copy.open, true))
            })
            .collect()
    }

    /// The task that had taken them has added its contribution.
    pub fn give_back(
        &mut self,
        id: AccumulatorId,
        parts: (u16, u16),
        taken: &[(u16, bool)],
        contribution: u32,
    ) {
        for (part, &(at, _)) in (parts.0..parts.1).zip(taken) {
            // Dropped meanwhile: a job that is being torn down.
            let Some(copies) = self.copies.get_mut(&(id, part)) else {
                continue;
            };
            let copy = &mut copies[at as usize];
            copy.state = CopyState::Free;
            let fresh = copy.set.insert(contribution);
            debug_assert!(fresh, "contribution {contribution} was added twice");
        }
    }

    /// The task that had taken them has failed and added nothing.
    pub fn take_back(&mut self, id: AccumulatorId, parts: (u16, u16), taken: &[(u16, bool)]) {
        for (part, &(at, open)) in (parts.0..parts.1).zip(taken) {
            let Some(copies) = self.copies.get_mut(&(id, part)) else {
                continue;
            };
            let copy = &mut copies[at as usize];
            copy.state = CopyState::Free;
            copy.open = open;
        }
    }

    /// Everything that is here of a part, never to be added to again. `None` while a task is adding to it.
    pub fn seal(&mut self, id: AccumulatorId, part: u16) -> Option<Vec<(u16, Contributions)>> {
        let Some(copies) = self.copies.get_mut(&(id, part)) else {
            return Some(Vec::new());
        };
        if copies.iter().any(|c| c.state == CopyState::Busy) {
            return None;
        }
        let mut sealed = Vec::new();
        for (at, copy) in copies.iter_mut().enumerate() {
            if !copy.set.is_empty() {
                copy.state = CopyState::Sealed;
                sealed.push((at as u16, copy.set.clone()));
            }
        }
        Some(sealed)
    }

    /// Drops all copies; the bytes that they took.
    pub fn forget(&mut self, id: AccumulatorId) -> u64 {
        let Some(accumulator) = self.accumulators.get(id.0 as usize) else {
            return 0;
        };
        let mut bytes = 0;
        for part in 0..accumulator.parts.len() as u16 {
            if let Some(copies) = self.copies.remove(&(id, part)) {
                bytes += copies.len() as u64 * self.part_bytes(id, part);
            }
        }
        bytes
    }
}
