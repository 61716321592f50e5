//! Answers agents that ask the coordinator for bytes: input blocks, and results that it keeps. On threads of its own, so
//! that the loop of the run never waits for a disk.

use std::{
    sync::Arc,
    thread::{Builder, JoinHandle},
};

use crossbeam_channel::{Sender, unbounded};
use shared::farm::{
    bytes::Bytes,
    contributions::Contributions,
    frame::{Bulk, BulkKind, plan_tag},
    ids::{ContentHash, TaskId},
    link::Outbox,
    message::{Fetch, Name},
};

use super::Inputs;

/// Blocks read at once: enough for a disk to have something to do.
const THREADS: usize = 2;

/// Results that the coordinator keeps: a task's block, or a range of it.
pub type Kept = dyn Fn(TaskId, Option<(u64, u64)>) -> Option<Bytes> + Send + Sync;

/// See the module. Its queue is bounded by those who ask: an agent has a few requests open.
pub struct Librarian {
    requests: Option<Sender<(Outbox, Fetch)>>,
    threads: Vec<JoinHandle<()>>,
}

impl Librarian {
    pub fn start(
        plan: ContentHash,
        inputs: &Arc<dyn Inputs>,
        kept: &Arc<Kept>,
    ) -> std::io::Result<Self> {
        let (requests, queue) = unbounded::<(Outbox, Fetch)>();
        let mut threads = Vec::new();
        for thread in 0..THREADS {
            let (queue, inputs, kept) = (queue.clone(), Arc::clone(inputs), Arc::clone(kept));
            threads.push(
                Builder::new()
                    .name(format!("librarian-{thread}"))
                    .spawn(move || {
                        for (outbox, fetch) in queue {
                            let answer = answer(plan, &fetch, inputs.as_ref(), kept.as_ref());
                            // Whoever is gone needs no answer.
                            let _ = outbox.bulk(&answer);
                        }
                    })?,
            );
        }
        Ok(Self {
            requests: Some(requests),
            threads,
        })
    }

    /// Answers into this outbox, soon.
    pub fn ask(&self, outbox: Outbox, fetch: Fetch) {
        if let Some(requests) = &self.requests {
            let _ = requests.send((outbox, fetch));
        }
    }
}

impl Drop for Librarian {
    fn drop(&mut self) {
        self.requests = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn answer(plan: ContentHash, fetch: &Fetch, inputs: &dyn Inputs, kept: &Kept) -> Bulk {
    let found = match fetch.name {
        Name::Input(hash) => inputs
            .load(&hash)
            .inspect_err(|why| tracing::warn!("{why}"))
            .ok(),
        Name::Result { task, range } => kept(task, range),
        Name::Chunk { .. } => None,
    };
    let (kind, payload) = match found {
        Some(bytes) => (BulkKind::Block, bytes),
        None => (
            BulkKind::Nothing,
            Bytes::copy_from(&[]).expect("no bytes at all"),
        ),
    };
    Bulk {
        kind,
        request: fetch.request,
        plan: plan_tag(plan),
        rest: 0,
        set: Contributions::default(),
        payload,
    }
}
