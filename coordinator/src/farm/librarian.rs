//! Answers agents that ask the coordinator for a block, without the loop having to wait for a disk.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{Builder, JoinHandle},
};

use shared::farm::{
    bytes::{Bytes, BytesMut},
    contributions::Contributions,
    frame::{Bulk, BulkKind, plan_tag},
    ids::{ContentHash, TaskId},
    link::Outbox,
    message::{Fetch, Name},
};

use super::Inputs;
use crate::spool::Spool;

/// Questions that wait; whoever asks more is told that there is nothing.
const QUESTIONS_MAX: usize = 1 << 16;

pub struct Librarian {
    plan: ContentHash,
    questions: Option<Sender<(Outbox, Fetch)>>,
    /// Those that wait. (A channel of bounded length would take the memory of all of them at once.)
    waiting: Arc<AtomicUsize>,
    missing: Receiver<TaskId>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Librarian {
    pub fn start(
        plan: ContentHash,
        inputs: Arc<dyn Inputs>,
        spool: Option<Arc<Spool>>,
    ) -> io::Result<Self> {
        let (questions, receiver) = channel::<(Outbox, Fetch)>();
        let waiting = Arc::new(AtomicUsize::new(0));
        let less = Arc::clone(&waiting);
        let (sender, missing) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = Builder::new().name("librarian".to_owned()).spawn(move || {
            for (outbox, fetch) in receiver {
                less.fetch_sub(1, Ordering::Relaxed);
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let block = find(inputs.as_ref(), spool.as_deref(), &sender, fetch.name);
                // Whoever is gone needs no answer.
                let _ = outbox.bulk(&answer(plan, fetch.request, block));
            }
        })?;
        Ok(Self {
            plan,
            questions: Some(questions),
            waiting,
            missing,
            stop,
            thread: Some(thread),
        })
    }

    /// The answer goes to the outbox: a block, or nothing.
    pub fn fetch(&self, outbox: &Outbox, fetch: Fetch) {
        let asked = match &self.questions {
            Some(questions) if self.waiting.load(Ordering::Relaxed) < QUESTIONS_MAX => {
                self.waiting.fetch_add(1, Ordering::Relaxed);
                questions.send((outbox.clone(), fetch)).is_ok()
            }
            Some(_) | None => false,
        };
        if !asked {
            let _ = outbox.bulk(&answer(self.plan, fetch.request, None));
        }
    }

    /// What the spool should have had and has not.
    pub fn missing(&self) -> Vec<TaskId> {
        self.missing.try_iter().collect()
    }
}

impl Drop for Librarian {
    /// One answer is finished, the others are not wanted any more. The spool is free then.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.questions = None;
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the librarian's thread panicked");
        }
    }
}

fn find(
    inputs: &dyn Inputs,
    spool: Option<&Spool>,
    missing: &Sender<TaskId>,
    name: Name,
) -> Option<Bytes> {
    match name {
        Name::Input(hash) => inputs
            .load(&hash)
            .map_err(|why| tracing::warn!("{why}"))
            .ok(),
        Name::Result { task, range } => {
            let block = spool.and_then(|spool| spool.read(task, range));
            if block.is_none() {
                let _ = missing.send(task);
            }
            block
        }
        Name::Chunk { .. } => None,
    }
}

fn answer(plan: ContentHash, request: u64, block: Option<Bytes>) -> Bulk {
    let (kind, payload) = match block {
        Some(block) => (BulkKind::Block, block),
        None => (
            BulkKind::Nothing,
            BytesMut::zeroed(0).expect("nothing").freeze(),
        ),
    };
    Bulk {
        kind,
        request,
        plan: plan_tag(plan),
        rest: 0,
        set: Contributions::default(),
        payload,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use shared::farm::frame::Frame;

    use super::*;

    #[test]
    fn inputs_and_kept_results_are_answered_and_what_is_missing_is_told() {
        let spools = tempfile::tempdir().unwrap();
        let plan = ContentHash([3; 32]);
        let spool = Arc::new(Spool::open(spools.path(), plan).unwrap().unwrap());
        let block = |content: &[u8]| Bytes::copy_from(content).unwrap();
        spool.keep(TaskId(4), block(b"result")).unwrap();
        let hash = ContentHash::of(b"input");
        let inputs: Arc<dyn Inputs> = Arc::new(HashMap::from([(hash, block(b"input"))]));
        let librarian = Librarian::start(plan, inputs, Some(Arc::clone(&spool))).unwrap();
        let (sender, answers) = channel();
        let outbox = Outbox::into_mailbox(sender, |frame| frame);
        let result = |task, range| Name::Result {
            task: TaskId(task),
            range,
        };
        let top = 1 << 63;
        let questions = [
            (top + 1, Name::Input(hash), Some(&b"input"[..])),
            (2, Name::Input(ContentHash([0; 32])), None),
            (3, result(4, None), Some(b"result")),
            (4, result(4, Some((1, 3))), Some(b"es")),
            (5, result(9, None), None),
        ];
        for (request, name, _) in questions {
            librarian.fetch(&outbox, Fetch { request, name });
        }
        for (request, _, wanted) in questions {
            let Frame::Bulk { head, payload } = answers.recv().unwrap() else {
                panic!("not a block");
            };
            let bulk = Bulk::decode(&head, payload).unwrap();
            assert_eq!((bulk.request, bulk.plan), (request, plan_tag(plan)));
            let found = (bulk.kind == BulkKind::Block).then(|| bulk.payload.as_slice().to_vec());
            assert_eq!(found.as_deref(), wanted);
        }
        assert_eq!(librarian.missing(), [TaskId(9)]);
        drop(librarian);
        assert_eq!(Arc::strong_count(&spool), 1, "nobody else holds the spool");
    }
}
