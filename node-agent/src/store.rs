//! Which blocks an agent has in memory, which are coming, and what they weigh. Names and numbers only; the bytes
//! themselves are in [`crate::hands`].
//!
//! A block is *wanted* by tasks in the queue and *pinned* by those that were admitted. What is neither owned (computed
//! here) nor pinned may be evicted: first what was to be read by a task that others have got, then what is read again
//! last. For passes over the same blocks in the same order that keeps the first blocks rather than the last ones, so
//! that memory for half of the blocks saves nearly half of the reading. What a plan that will grow reads again nobody
//! knows when counts as read after everything else, in the order of its last readers ([`LATER`]): it is not dropped, and
//! goes first, the block read last before the others. When the plan has grown, what is read again for certain comes before
//! it.
//!
//! [`LATER`]: shared::farm::message::LATER

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;
use shared::farm::{ids::TaskId, message::Name};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Absent,
    Coming,
    Here,
}

#[derive(Clone, Debug)]
struct Entry {
    state: State,
    bytes: u64,
    owned: bool,
    pins: u32,
    wants: u32,
    /// The next reader, as far as is known; `u32::MAX` when there is none.
    next: u32,
}

impl Entry {
    fn evictable(&self) -> bool {
        self.state == State::Here && !self.owned && self.pins == 0
    }

    fn pinned_bytes(&self) -> u64 {
        if self.pins > 0 && !self.owned {
            self.bytes
        } else {
            0
        }
    }

    fn unneeded(&self) -> bool {
        self.evictable() && self.wants == 0 && self.next == u32::MAX
    }
}

#[derive(Debug)]
pub struct Store {
    budget: u64,
    tracked: u64,
    peak: u64,
    entries: FxHashMap<Name, Entry>,
    evictable: BTreeSet<(u32, Name)>,
    evictable_bytes: u64,
    /// Of blocks not computed here that admitted tasks read or wait for.
    pinned_bytes: u64,
}

impl Store {
    pub fn new(budget: u64) -> Self {
        Self {
            budget,
            tracked: 0,
            peak: 0,
            entries: FxHashMap::default(),
            evictable: BTreeSet::new(),
            evictable_bytes: 0,
            pinned_bytes: 0,
        }
    }

    pub fn budget(&self) -> u64 {
        self.budget
    }

    pub fn set_budget(&mut self, budget: u64) {
        self.budget = budget;
    }

    pub fn tracked(&self) -> u64 {
        self.tracked
    }

    pub fn peak(&self) -> u64 {
        self.peak
    }

    /// Counts bytes that are no block: outputs to come, partial sums, answers of peers. What is reserved on trial leaves
    /// no trace in the peak: see [`Store::hold`].
    pub fn reserve(&mut self, bytes: u64) {
        self.tracked += bytes;
    }

    /// What is counted now is really held.
    pub fn hold(&mut self) {
        self.peak = self.peak.max(self.tracked);
    }

    pub fn release(&mut self, bytes: u64) {
        debug_assert!(self.tracked >= bytes, "released more than was reserved");
        self.tracked = self.tracked.saturating_sub(bytes);
    }

    pub fn fits(&self, bytes: u64) -> bool {
        self.tracked.saturating_add(bytes) <= self.budget
    }

    /// Whether so much more fits when at most a quarter of what may be evicted is. A worker that would stand idle is worth
    /// a few blocks read again, but not the reading ahead.
    pub fn fits_with_few_evicted(&self, bytes: u64) -> bool {
        let least = self.tracked - self.evictable_bytes;
        self.fits(bytes)
            || (bytes <= self.evictable_bytes / 4 && least.saturating_add(bytes) <= self.budget)
    }

    pub fn state(&self, name: &Name) -> State {
        self.entries.get(name).map_or(State::Absent, |e| e.state)
    }

    /// Whether the block was computed here.
    pub fn owns(&self, name: &Name) -> bool {
        self.entries
            .get(name)
            .is_some_and(|e| e.owned && e.state == State::Here)
    }

    fn change<R>(&mut self, name: Name, change: impl FnOnce(&mut Entry) -> R) -> R {
        let entry = self.entries.entry(name).or_insert(Entry {
            state: State::Absent,
            bytes: 0,
            owned: false,
            pins: 0,
            wants: 0,
            next: u32::MAX,
        });
        let before = entry.evictable().then_some((entry.next, entry.bytes));
        let pinned = entry.pinned_bytes();
        let result = change(entry);
        self.pinned_bytes = self.pinned_bytes - pinned + entry.pinned_bytes();
        let after = entry.evictable().then_some((entry.next, entry.bytes));
        if before != after {
            if let Some((rank, bytes)) = before {
                self.evictable.remove(&(rank, name));
                self.evictable_bytes -= bytes;
            }
            if let Some((rank, bytes)) = after {
                self.evictable.insert((rank, name));
                self.evictable_bytes += bytes;
            }
        }
        result
    }

    /// A task in the queue reads it.
    pub fn want(&mut self, name: Name, bytes: u64, task: TaskId) {
        self.change(name, |e| {
            if e.state == State::Absent {
                e.bytes = bytes;
            }
            e.next = e.next.min(task.0);
            e.wants += 1;
        });
    }

    /// That task has read it; the next one to do so, of all tasks of the plan, is `again`. True when the block was
    /// dropped because there is none.
    pub fn was_read(&mut self, name: Name, task: TaskId, again: Option<TaskId>) -> bool {
        self.change(name, |e| {
            if e.next <= task.0 {
                e.next = again.map_or(u32::MAX, |t| t.0);
            }
        });
        self.unwant(name)
    }

    /// That task is gone from the queue. True when the block was dropped because nobody will read it.
    pub fn unwant(&mut self, name: Name) -> bool {
        let useless = self.change(name, |e| {
            e.wants -= 1;
            match e.state {
                State::Absent => e.wants == 0,
                State::Coming => false,
                State::Here => e.unneeded(),
            }
        });
        useless && self.forget(name)
    }

    pub fn pin(&mut self, name: Name) {
        self.change(name, |e| e.pins += 1);
    }

    pub fn unpin(&mut self, name: Name) {
        self.change(name, |e| e.pins -= 1);
    }

    pub fn pins(&self, name: &Name) -> u32 {
        self.entries.get(name).map_or(0, |e| e.pins)
    }

    /// It is being fetched; its room is taken from now on.
    pub fn coming(&mut self, name: Name) {
        let bytes = self.change(name, |e| {
            debug_assert_eq!(e.state, State::Absent);
            e.state = State::Coming;
            e.bytes
        });
        self.reserve(bytes);
    }

    /// It will not come after all.
    pub fn not_coming(&mut self, name: Name) {
        let bytes = self.change(name, |e| {
            debug_assert_eq!(e.state, State::Coming);
            e.state = State::Absent;
            e.bytes
        });
        self.release(bytes);
    }

    /// It is here and weighs this much.
    pub fn arrived(&mut self, name: Name, bytes: u64) {
        let before = self.change(name, |e| {
            debug_assert_eq!(e.state, State::Coming);
            e.state = State::Here;
            std::mem::replace(&mut e.bytes, bytes)
        });
        self.release(before);
        self.reserve(bytes);
        self.hold();
    }

    /// It was computed here.
    pub fn own(&mut self, name: Name, bytes: u64) {
        let before = self.change(name, |e| {
            let before = match e.state {
                State::Absent => 0,
                State::Coming | State::Here => e.bytes,
            };
            e.state = State::Here;
            e.owned = true;
            e.bytes = bytes;
            before
        });
        self.release(before);
        self.reserve(bytes);
        self.hold();
    }

    /// Tasks in the queue read it.
    pub fn wanted(&self, name: &Name) -> bool {
        self.entries.get(name).is_some_and(|e| e.wants > 0)
    }

    /// Nobody else will read it, or others read it elsewhere. True when it was dropped; what is read here by tasks in the
    /// queue stays until they have.
    pub fn release_block(&mut self, name: Name) -> bool {
        if !self.wanted(&name) {
            return self.forget(name);
        }
        self.change(name, |e| {
            e.owned = false;
            e.next = u32::MAX;
        });
        false
    }

    /// Keeps the input blocks that are here and forgets everything else. Nothing may be on its way.
    pub fn reset(&mut self) {
        let kept = self
            .entries
            .iter()
            .filter(|(name, entry)| matches!(name, Name::Input(_)) && entry.state == State::Here)
            .map(|(name, entry)| (*name, entry.bytes))
            .collect::<Vec<_>>();
        let (budget, peak) = (self.budget, self.peak);
        *self = Self::new(budget);
        self.peak = peak;
        for (name, bytes) in kept {
            self.change(name, |e| {
                e.state = State::Here;
                e.bytes = bytes;
            });
            self.reserve(bytes);
        }
    }

    /// Drops it. True when it was here.
    pub fn forget(&mut self, name: Name) -> bool {
        let Some(entry) = self.entries.remove(&name) else {
            return false;
        };
        if entry.evictable() {
            self.evictable.remove(&(entry.next, name));
            self.evictable_bytes -= entry.bytes;
        }
        match entry.state {
            State::Absent => false,
            State::Coming => {
                self.release(entry.bytes);
                false
            }
            State::Here => {
                self.release(entry.bytes);
                true
            }
        }
    }

    /// Bytes of the blocks not computed here that admitted tasks read or wait for.
    pub fn pinned_bytes(&self) -> u64 {
        self.pinned_bytes
    }

    /// Evicts until the budget holds, if it can be made to hold; otherwise nothing is evicted. What was to be read
    /// before `first`, the first task in the queue, goes first: others have read it.
    pub fn shrink(&mut self, first: TaskId, evicted: &mut Vec<Name>) -> bool {
        if self.tracked - self.evictable_bytes > self.budget {
            return false;
        }
        while self.tracked > self.budget {
            evicted.extend(self.evict(first));
        }
        true
    }

    /// Evicts whatever may be.
    pub fn evict_all(&mut self) -> Vec<Name> {
        std::iter::from_fn(|| self.evict(TaskId(0))).collect()
    }

    fn evict(&mut self, first: TaskId) -> Option<Name> {
        let passed = self.evictable.first().filter(|(next, _)| *next < first.0);
        let &(_, name) = passed.or_else(|| self.evictable.last())?;
        let (bytes, wanted) = self.change(name, |e| {
            e.state = State::Absent;
            (e.bytes, e.wants > 0)
        });
        self.release(bytes);
        if !wanted {
            self.entries.remove(&name);
        }
        Some(name)
    }

    /// Here, and nobody is known to read it again.
    pub fn unneeded(&self, name: &Name) -> bool {
        self.entries.get(name).is_some_and(Entry::unneeded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: u32) -> Name {
        Name::result(TaskId(n))
    }

    /// Task 0 has read it; task `again` will.
    fn have(store: &mut Store, n: u32, bytes: u64, again: Option<u32>) {
        store.want(name(n), bytes, TaskId(0));
        store.coming(name(n));
        store.arrived(name(n), bytes);
        store.was_read(name(n), TaskId(0), again.map(TaskId));
    }

    #[test]
    fn what_is_read_again_last_goes_first_and_pins_hold() {
        let mut store = Store::new(100);
        have(&mut store, 1, 40, Some(10));
        have(&mut store, 2, 40, Some(30));
        have(&mut store, 3, 20, Some(20));
        store.pin(name(2));
        assert_eq!(store.pinned_bytes(), 40);
        store.reserve(30);
        let mut evicted = Vec::new();
        assert!(store.shrink(TaskId(5), &mut evicted));
        assert_eq!(evicted, [name(3), name(1)]);
        assert_eq!(store.tracked(), 70);
        store.reserve(50);
        evicted.clear();
        assert!(
            !store.shrink(TaskId(5), &mut evicted),
            "what is pinned stays"
        );
        store.unpin(name(2));
        assert!(store.shrink(TaskId(5), &mut evicted));
        assert_eq!(evicted, [name(2)]);
        assert_eq!((store.tracked(), store.peak()), (80, 100));
    }

    #[test]
    fn what_others_have_read_goes_before_and_useless_blocks_go_at_once() {
        let mut store = Store::new(50);
        have(&mut store, 1, 30, Some(5));
        have(&mut store, 2, 20, Some(90));
        store.reserve(10);
        let mut evicted = Vec::new();
        assert!(store.shrink(TaskId(7), &mut evicted));
        assert_eq!(
            evicted,
            [name(1)],
            "task 5 is not in the queue: it has passed by"
        );
        have(&mut store, 3, 10, None);
        assert_eq!(store.state(&name(3)), State::Absent);
        assert_eq!(store.tracked(), 30);
    }
    #[test]
    fn what_a_growth_may_read_stays_and_the_first_blocks_longest() {
        use shared::farm::message::LATER;
        let mut store = Store::new(60);
        for n in 1..=3 {
            store.want(name(n), 20, TaskId(n));
            store.coming(name(n));
            store.arrived(name(n), 20);
            assert!(!store.was_read(name(n), TaskId(n), Some(TaskId(LATER + n))));
        }
        let mut evicted = Vec::new();
        store.reserve(10);
        assert!(store.shrink(TaskId(4), &mut evicted));
        assert_eq!(evicted, [name(3)]);
        // The plan has grown: tasks 11 and 12 read the blocks, and nobody after 12.
        store.want(name(1), 20, TaskId(11));
        store.want(name(2), 20, TaskId(12));
        assert!(!store.was_read(name(1), TaskId(11), Some(TaskId(LATER + 11))));
        assert!(store.was_read(name(2), TaskId(12), None));
        evicted.clear();
        store.reserve(40);
        assert!(store.shrink(TaskId(13), &mut evicted));
        assert_eq!(evicted, [name(1)]);
    }
}
