//! Work of an ingest spread over threads, in order of its number, with one failure however many happen.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use crate::failure::Failure;

/// How often progress is shown.
const TICK: Duration = Duration::from_millis(50);

/// Whether the work goes on: seen by every thread.
pub(crate) struct Signal<'a> {
    stop: &'a AtomicBool,
    /// Of the first piece of work that failed; later ones need not be started.
    failed: AtomicUsize,
}

impl<'a> Signal<'a> {
    pub fn new(stop: &'a AtomicBool) -> Self {
        Self {
            stop,
            failed: AtomicUsize::new(usize::MAX),
        }
    }

    /// Fails when the run was interrupted, or when work with a lower number than `number` failed.
    pub fn check(&self, number: usize) -> Result<(), Failure> {
        if self.stop.load(Ordering::Relaxed) || self.failed.load(Ordering::Relaxed) < number {
            return Err(Failure::interrupted());
        }
        Ok(())
    }
}

/// Runs `work` for every thread until it returns `None`. It gets the thread's own state and yields the number of the
/// piece that it did. The failure returned is that of the lowest number, whatever the timing.
///
/// Every number below that of a failed piece must have been taken up before it.
pub(crate) fn run<S: Send, T: Send>(
    states: Vec<S>,
    stop: &AtomicBool,
    tick: &mut dyn FnMut(),
    work: impl Fn(&mut S, &Signal<'_>) -> Step<T> + Sync,
) -> Result<(Vec<S>, Vec<T>), Failure> {
    let signal = Signal::new(stop);
    let results = Mutex::new((Vec::new(), None::<(usize, Failure)>));
    let (alive, all_done) = mpsc::channel::<()>();
    let states = std::thread::scope(|scope| {
        let threads: Vec<_> = states
            .into_iter()
            .map(|mut state| {
                let alive = alive.clone();
                let (signal, results, work) = (&signal, &results, &work);
                scope.spawn(move || {
                    let _alive = alive;
                    loop {
                        if stop.load(Ordering::Relaxed)
                            || signal.failed.load(Ordering::Relaxed) != usize::MAX
                        {
                            break;
                        }
                        match work(&mut state, signal) {
                            Step::End => break,
                            Step::Done(number, Ok(result)) => {
                                let mut all =
                                    results.lock().unwrap_or_else(PoisonError::into_inner);
                                all.0.push((number, result));
                            }
                            Step::Done(number, Err(failure)) => {
                                let mut all =
                                    results.lock().unwrap_or_else(PoisonError::into_inner);
                                signal.failed.fetch_min(number, Ordering::Relaxed);
                                if all.1.as_ref().is_none_or(|(n, _)| number < *n) {
                                    all.1 = Some((number, failure));
                                }
                                break;
                            }
                        }
                    }
                    state
                })
            })
            .collect();
        drop(alive);
        while all_done.recv_timeout(TICK) == Err(mpsc::RecvTimeoutError::Timeout) {
            tick();
        }
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
            .collect()
    });
    let (mut done, failure) = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    if stop.load(Ordering::Relaxed) {
        return Err(Failure::interrupted());
    }
    if let Some((_, failure)) = failure {
        return Err(failure);
    }
    done.sort_unstable_by_key(|(number, _)| *number);
    Ok((states, done.into_iter().map(|(_, t)| t).collect()))
}

/// What a thread did.
pub(crate) enum Step<T> {
    Done(usize, Result<T, Failure>),
    /// There is nothing left.
    End,
}

/// [`run`] for pieces numbered from 0 to `count`.
pub(crate) fn each<S: Send, T: Send>(
    states: Vec<S>,
    count: usize,
    stop: &AtomicBool,
    tick: &mut dyn FnMut(),
    work: impl Fn(&mut S, usize, &Signal<'_>) -> Result<T, Failure> + Sync,
) -> Result<Vec<T>, Failure> {
    let next = AtomicUsize::new(0);
    run(states, stop, tick, |state, signal| {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= count {
            return Step::End;
        }
        Step::Done(number, work(state, number, signal))
    })
    .map(|(_, results)| results)
}
