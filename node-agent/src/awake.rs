//! Waiting without sleep.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long a thread of a run in one process waits awake. Between two steps of a plan on a small matrix cores wait some hundred
/// microseconds for each other. To be woken takes a good part of that, in virtual machines all of it, and no work is done
/// by those who sleep that long once.
pub const MOMENT: Duration = Duration::from_micros(500);

/// Looks again and again until there is something, for no longer than `wait`. Whoever else wants the core gets it.
pub fn awake<T>(wait: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        let found = look();
        if found.is_some() || begun.elapsed() >= wait {
            return found;
        }
        thread::yield_now();
    }
}
