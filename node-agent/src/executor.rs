//! Threads: workers that compute, and a few that read and add.

use std::{
    panic,
    sync::{Arc, mpsc},
    thread::{self, Builder, JoinHandle},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, unbounded};
use shared::farm::{
    bytes::Bytes,
    ids::ContentHash,
    message::{InputError, Name},
    work::{Work, WorkError},
};

use crate::{
    awake::awake,
    hands::{Loaded, Yielded, add},
    inputs::Inputs,
};

/// What threads report.
pub enum Report {
    Ran {
        worker: u16,
        /// With the time each took, in microseconds.
        yielded: Vec<(Yielded, u64)>,
    },
    Loaded {
        hash: ContentHash,
        /// With whether a link was crossed for it.
        outcome: Result<(Bytes, bool), InputError>,
    },
    Gathered {
        name: Name,
        outcome: Result<Bytes, WorkError>,
    },
}

enum Errand {
    Load(ContentHash),
    Add(Name, Vec<Bytes>),
}

/// Threads beside the workers, and how long a worker waits awake.
#[derive(Clone, Copy, Debug)]
pub struct Threads {
    pub io: usize,
    pub awake: Duration,
}

/// The threads of one agent. Their queues are bounded by the agent: one run per worker, a few loads, one sum per chunk
/// that an admitted task waits for.
pub struct Executor<W> {
    workers: Vec<Sender<Vec<Loaded<W>>>>,
    errands: Sender<Errand>,
    threads: Vec<JoinHandle<()>>,
}

impl<W: Work> Executor<W> {
    pub fn start<M: Send + 'static>(
        cores: u16,
        Threads { io, awake: idle }: Threads,
        inputs: &Arc<dyn Inputs>,
        mailbox: &mpsc::Sender<M>,
        wrap: impl Fn(Report) -> M + Clone + Send + 'static,
    ) -> std::io::Result<Self> {
        let mut threads = Vec::new();
        let mut workers = Vec::new();
        for worker in 0..cores {
            let (sender, receiver) = unbounded::<Vec<Loaded<W>>>();
            let (mailbox, wrap) = (mailbox.clone(), wrap.clone());
            workers.push(sender);
            threads.push(
                Builder::new()
                    .name(format!("worker-{worker}"))
                    .spawn(move || {
                        while let Some(bundle) = awake(idle, || receiver.try_recv().ok())
                            .or_else(|| receiver.recv().ok())
                        {
                            let yielded = run(bundle);
                            if mailbox.send(wrap(Report::Ran { worker, yielded })).is_err() {
                                return;
                            }
                        }
                    })?,
            );
        }
        let (errands, receiver) = unbounded();
        for thread in 0..io {
            let receiver: Receiver<Errand> = receiver.clone();
            let inputs = Arc::clone(inputs);
            let (mailbox, wrap) = (mailbox.clone(), wrap.clone());
            threads.push(Builder::new().name(format!("io-{thread}")).spawn(move || {
                for errand in receiver {
                    let report = match errand {
                        Errand::Load(hash) => Report::Loaded {
                            hash,
                            outcome: inputs.fetch(&hash),
                        },
                        Errand::Add(name, pieces) => Report::Gathered {
                            name,
                            outcome: add(&pieces),
                        },
                    };
                    if mailbox.send(wrap(report)).is_err() {
                        return;
                    }
                }
            })?);
        }
        Ok(Self {
            workers,
            errands,
            threads,
        })
    }

    pub fn run(&self, worker: u16, bundle: Vec<Loaded<W>>) {
        // A worker that is gone has panicked outside of a task: the join below will say so.
        let _ = self.workers[worker as usize].send(bundle);
    }

    pub fn load(&self, hash: ContentHash) {
        let _ = self.errands.send(Errand::Load(hash));
    }

    pub fn add(&self, name: Name, pieces: Vec<Bytes>) {
        let _ = self.errands.send(Errand::Add(name, pieces));
    }
}

impl<W> Drop for Executor<W> {
    /// Lets every thread finish what it has begun: whatever the end, none outlives this.
    fn drop(&mut self) {
        self.workers.clear();
        // Nobody hears the other end of this one.
        self.errands = unbounded().0;
        let ends: Vec<_> = self.threads.drain(..).map(JoinHandle::join).collect();
        if let Some(why) = ends.into_iter().find_map(Result::err)
            && !thread::panicking()
        {
            panic::resume_unwind(why);
        }
    }
}

fn run<W: Work>(bundle: Vec<Loaded<W>>) -> Vec<(Yielded, u64)> {
    let mut yielded = Vec::with_capacity(bundle.len());
    let mut before = Instant::now();
    for job in bundle {
        let done = job.run();
        let after = Instant::now();
        yielded.push((done, (after - before).as_micros() as u64));
        before = after;
    }
    yielded
}
