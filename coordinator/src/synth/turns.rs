//! Work done by many threads and written in one order.

use std::{
    io,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

/// Why the work ended early.
#[derive(Debug)]
pub enum Early {
    Stopped,
    Write(io::Error),
}

struct Turn<W> {
    /// The piece to be written next.
    next: usize,
    /// Nobody needs to wait any more.
    over: bool,
    failed: Option<io::Error>,
    write: W,
}

/// Makes pieces `0..count` on `threads` threads, each with its own worker, and writes them in the order of their
/// numbers. A thread that is early waits for its turn, so at most one piece a thread is in memory. Gives the workers back.
pub fn in_order<T: Send>(
    threads: usize,
    count: usize,
    stop: &AtomicBool,
    worker: impl Fn() -> T + Sync,
    make: impl for<'t> Fn(&'t mut T, usize) -> &'t [u8] + Sync,
    write: impl FnMut(&[u8]) -> io::Result<()> + Send,
) -> Result<Vec<T>, Early> {
    let taken = AtomicUsize::new(0);
    let turns = Turns {
        turn: Mutex::new(Turn {
            next: 0,
            over: false,
            failed: None,
            write,
        }),
        moved: Condvar::new(),
    };
    let run = || {
        let _guard = OverOnPanic(&turns);
        let mut worker = worker();
        loop {
            let piece = taken.fetch_add(1, Ordering::Relaxed);
            if piece >= count {
                return worker;
            }
            if stop.load(Ordering::Relaxed) {
                turns.end();
                return worker;
            }
            let bytes = make(&mut worker, piece);
            if !turns.write(piece, bytes) {
                return worker;
            }
        }
    };
    let workers = thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(count)).map(|_| scope.spawn(run)).collect();
        let mut workers = vec![run()];
        for other in others {
            workers.push(
                other
                    .join()
                    .unwrap_or_else(|p| std::panic::resume_unwind(p)),
            );
        }
        workers
    });
    let turn = turns
        .turn
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    match turn.failed {
        Some(error) => Err(Early::Write(error)),
        None if turn.next < count => Err(Early::Stopped),
        None => Ok(workers),
    }
}

struct Turns<W> {
    turn: Mutex<Turn<W>>,
    moved: Condvar,
}

impl<W: FnMut(&[u8]) -> io::Result<()>> Turns<W> {
    /// Writes `piece` when its turn comes; false when no turn will come any more.
    fn write(&self, piece: usize, bytes: &[u8]) -> bool {
        let mut turn = self
            .moved
            .wait_while(self.lock(), |turn| turn.next != piece && !turn.over)
            .unwrap_or_else(PoisonError::into_inner);
        if turn.over {
            return false;
        }
        match (turn.write)(bytes) {
            Ok(()) => turn.next += 1,
            Err(error) => {
                turn.failed = Some(error);
                turn.over = true;
            }
        }
        self.moved.notify_all();
        !turn.over
    }
}

impl<W> Turns<W> {
    fn lock(&self) -> MutexGuard<'_, Turn<W>> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.lock().over = true;
        self.moved.notify_all();
    }
}

/// A thread that panics would leave the others waiting for its turn.
struct OverOnPanic<'t, W>(&'t Turns<W>);

impl<W> Drop for OverOnPanic<'_, W> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(
        threads: usize,
        stop: &AtomicBool,
        full_at: usize,
    ) -> (Vec<u8>, Result<Vec<Vec<u8>>, Early>) {
        let mut out = Vec::new();
        let result = in_order(
            threads,
            100,
            stop,
            Vec::new,
            |mine: &mut Vec<u8>, piece| {
                mine.push(piece as u8);
                &mine[mine.len() - 1..]
            },
            |bytes| {
                if out.len() == full_at {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                out.extend_from_slice(bytes);
                Ok(())
            },
        );
        (out, result)
    }

    #[test]
    fn pieces_are_written_in_order_and_workers_come_back() {
        for threads in [1, 2, 5] {
            let (out, workers) = numbers(threads, &AtomicBool::new(false), 1000);
            assert_eq!(out, (0..100).collect::<Vec<u8>>());
            assert_eq!(workers.unwrap().iter().map(Vec::len).sum::<usize>(), 100);
        }
    }

    #[test]
    fn a_full_disk_or_a_stop_ends_every_thread() {
        let (out, result) = numbers(3, &AtomicBool::new(false), 40);
        assert_eq!(out.len(), 40);
        assert!(matches!(result, Err(Early::Write(e)) if e.kind() == io::ErrorKind::StorageFull));
        let (out, result) = numbers(3, &AtomicBool::new(true), 1000);
        assert!(out.is_empty());
        assert!(matches!(result, Err(Early::Stopped)));
    }
}
