//! Which tasks get memory, and which of those that are ready a worker takes.

use shared::farm::{graph::Output, ids::TaskId};

use super::{Action, Agent, FoldKey, Job, Stage, Target};
use crate::store::State;

/// Very short tasks are handed to a worker in bundles of about this much work.
const BUNDLE_US: f64 = 200.0;
const BUNDLE_MAX: usize = 128;

fn fold_key(output: &Output) -> Option<FoldKey> {
    match output {
        Output::Block { .. } => None,
        Output::Fold {
            accumulator, parts, ..
        } => Some((*accumulator, parts.0, parts.1)),
    }
}

impl<W: Clone> Agent<W> {
    pub(super) fn advance(&mut self) {
        self.return_misfits();
        while let Some(&task) = self.waiting.first() {
            if !self.admit(task) {
                self.blocked = Some(task);
                break;
            }
            self.blocked = None;
        }
        self.return_misfits();
        self.dispatch();
    }

    /// Takes room for everything that a task needs, and sets its inputs on their way; or leaves all as it was.
    fn admit(&mut self, task: TaskId) -> bool {
        let queued = &self.queue[&task];
        let sources = queued.sources.clone();
        let mut coming = Vec::new();
        for (index, source) in sources.iter().enumerate() {
            self.store.pin(source.name);
            if self.store.state(&source.name) == State::Absent {
                self.store.coming(source.name);
                coming.push(index);
            }
        }
        let (block, sums) = match queued.output {
            Output::Block { bytes } => (bytes, 0),
            Output::Fold {
                accumulator, parts, ..
            } => (0, self.partials.missing(accumulator, parts)),
        };
        self.store.reserve(block + sums);
        let mut evicted = Vec::new();
        // To read ahead, blocks that will be read again are only evicted for a quarter of the memory, or for what
        // the workers need next.
        let ahead = self.store.pinned_bytes() > self.store.budget() / 4
            && self.admitted > 2 * self.workers.len()
            && !self.store.fits(0);
        let first = *self.queue.first_key_value().expect("not empty").0;
        let fits = !ahead && self.store.shrink(first, &mut evicted);
        for name in evicted {
            self.actions.push_back(Action::Forget(name));
        }
        if !fits {
            if self.admitted + self.running > 0 {
                self.store.release(block + sums);
                for index in coming {
                    self.store.not_coming(sources[index].name);
                }
                for source in &sources {
                    self.store.unpin(source.name);
                }
                return false;
            }
            for name in self.store.evict_all() {
                self.actions.push_back(Action::Forget(name));
            }
            self.actions.push_back(Action::Overrun {
                task,
                tracked: self.store.tracked(),
                budget: self.store.budget(),
            });
        }
        self.store.hold();
        if let Some((accumulator, first, last)) = fold_key(&queued.output) {
            self.partials.promise(accumulator, (first, last));
        }
        let mut missing = 0;
        for source in &sources {
            if self.store.state(&source.name) != State::Here {
                self.waiters.entry(source.name).or_default().push(task);
                missing += 1;
            }
        }
        self.waiting.remove(&task);
        self.admitted += 1;
        let queued = self.queue.get_mut(&task).expect("in the queue");
        queued.reserved = block;
        queued.stage = Stage::Admitted { missing };
        queued.waits.room_us = queued.waited(self.now);
        let of_stage = queued.of_stage;
        let holders = std::mem::take(&mut queued.holders);
        if missing == 0 {
            self.ready(task);
        }
        for index in coming {
            self.fetch(sources[index].name, &holders[index], of_stage);
        }
        true
    }

    pub(super) fn ready(&mut self, task: TaskId) {
        let queued = self.queue.get_mut(&task).expect("in the queue");
        queued.stage = Stage::Ready;
        queued.waits.inputs_us = queued.waited(self.now);
        match fold_key(&queued.output) {
            None => self.ready_blocks.insert(task),
            Some(key) => self.ready_folds.entry(key).or_default().insert(task),
        };
    }

    pub(super) fn unready(&mut self, task: TaskId, output: &Output) {
        match fold_key(output) {
            None => {
                self.ready_blocks.remove(&task);
            }
            Some(key) => {
                if let Some(group) = self.ready_folds.get_mut(&key) {
                    group.remove(&task);
                    if group.is_empty() {
                        self.ready_folds.remove(&key);
                    }
                }
            }
        }
    }

    fn dispatch(&mut self) {
        // First those workers that can go on with the part that is warm in their cache, then the others.
        for affine in [true, false] {
            let mut at = self.idle.len();
            while at > 0 && self.free_cores > 0 {
                at -= 1;
                let worker = self.idle[at];
                let last = self.workers[worker as usize].last;
                let task = if affine {
                    last.and_then(|key| self.same_part(key))
                } else {
                    self.any_ready()
                };
                let Some(task) = task else {
                    if affine {
                        continue;
                    }
                    return;
                };
                self.idle.remove(at);
                self.run(worker, task);
            }
        }
    }

    fn fits_cores(&self, task: TaskId) -> bool {
        self.queue[&task].width <= self.free_cores
    }

    /// The next task that adds to the parts that a worker has just added to. While memory is short, only among the
    /// nearer half of what is admitted: otherwise all parts of all blocks would become free at the same moment, and
    /// nothing could be read while they are computed.
    fn same_part(&self, key: FoldKey) -> Option<TaskId> {
        let group = self.ready_folds.get(&key)?;
        let &task = group.first()?;
        let near = match (self.blocked, self.queue.first_key_value()) {
            (Some(blocked), Some((first, _))) => {
                let half = blocked.0.saturating_sub(first.0) / 2;
                task.0 <= first.0 + half
            }
            (None, _) | (_, None) => true,
        };
        let free = self.extra_bytes(&key) == 0;
        (near && free && self.fits_cores(task) && !self.held_for_wide()).then_some(task)
    }

    /// Memory for the copies that a fold would need beyond the one of each part that has to be: none when it can have
    /// those.
    fn extra_bytes(&self, &(accumulator, first, last): &FoldKey) -> u64 {
        let lacking = self.partials.lacking(accumulator, (first, last));
        let missing = self.partials.missing(accumulator, (first, last));
        if lacking == missing { 0 } else { lacking }
    }

    /// A wide task waits for enough cores only so long while narrower ones pass it.
    fn held_for_wide(&self) -> bool {
        self.passed_over > 2 * u32::from(self.config.cores)
    }

    /// The first task, in the order of the plan, that a worker may begin. Folds whose parts are all taken come last, and
    /// only if memory allows another copy.
    fn any_ready(&mut self) -> Option<TaskId> {
        let mut best: Option<TaskId> = None;
        let mut wide: Option<TaskId> = None;
        let mut extra: Option<TaskId> = None;
        let better = |task: TaskId, than: Option<TaskId>| than.is_none_or(|t| task < t);
        let groups = self.ready_folds.iter().filter_map(|(key, group)| {
            let lacking = self.extra_bytes(key);
            group.first().map(|task| (*task, lacking))
        });
        for (task, lacking) in self
            .ready_blocks
            .first()
            .map(|t| (*t, 0))
            .into_iter()
            .chain(groups)
        {
            if !self.fits_cores(task) {
                if better(task, wide) {
                    wide = Some(task);
                }
            } else if lacking == 0 {
                if better(task, best) {
                    best = Some(task);
                }
            } else if better(task, extra) && self.store.fits_with_few_evicted(lacking) {
                extra = Some(task);
            }
        }
        let chosen = best.or(extra);
        if wide.is_some_and(|w| better(w, chosen)) {
            if self.held_for_wide() {
                return None;
            }
            self.passed_over += u32::from(chosen.is_some());
        }
        chosen
    }

    fn run(&mut self, worker: u16, task: TaskId) {
        let mut tasks = vec![task];
        if self.ready_blocks.contains(&task) && self.queue[&task].width == 1 {
            let each = self.block_us.unwrap_or(f64::MAX).max(1.0);
            let share = self.ready_blocks.len().div_ceil(self.workers.len());
            let count = ((BUNDLE_US / each) as usize)
                .clamp(1, BUNDLE_MAX)
                .min(share);
            let more = self
                .ready_blocks
                .range((std::ops::Bound::Excluded(task), std::ops::Bound::Unbounded));
            tasks.extend(
                more.take(count.saturating_sub(1))
                    .filter(|t| self.queue[t].width == 1),
            );
        }
        // A bundle runs one after the other: one core.
        for task in &tasks[1..] {
            self.queue.get_mut(task).expect("in the queue").width = 0;
        }
        let jobs = tasks.iter().map(|t| self.start(worker, *t)).collect();
        self.actions.push_back(Action::Run { worker, jobs });
    }

    fn start(&mut self, worker: u16, task: TaskId) -> Job<W> {
        let queued = self.queue.get_mut(&task).expect("in the queue");
        debug_assert_eq!(queued.stage, Stage::Ready);
        queued.stage = Stage::Running;
        queued.waits.core_us = queued.waited(self.now);
        if queued.width > 1 {
            self.passed_over = 0;
        }
        self.free_cores -= queued.width;
        self.admitted -= 1;
        self.running += 1;
        let work = queued.work.take().expect("not begun before");
        let (this, inputs) = (queued.this, queued.sources.clone());
        let key = fold_key(&queued.output);
        let target = match key {
            None => {
                self.ready_blocks.remove(&task);
                Target::Block
            }
            Some((accumulator, first, last)) => {
                let lacking = self.partials.lacking(accumulator, (first, last));
                if lacking > 0 {
                    self.store.reserve(lacking);
                    let mut evicted = Vec::new();
                    let next = *self.queue.first_key_value().expect("not empty").0;
                    self.store.shrink(next, &mut evicted);
                    for name in evicted {
                        self.actions.push_back(Action::Forget(name));
                    }
                    self.store.hold();
                    self.partials.add_lacking(accumulator, (first, last));
                }
                let copies = self.partials.take(accumulator, (first, last));
                let queued = self.queue.get_mut(&task).expect("in the queue");
                queued.taken = copies.clone();
                let output = queued.output.clone();
                self.unready(task, &output);
                Target::Fold {
                    accumulator,
                    first,
                    copies,
                }
            }
        };
        self.workers[worker as usize].last = key;
        Job {
            this,
            work,
            inputs,
            target,
        }
    }
}
