//! Answers agents that ask the coordinator for a block, without the loop having to wait for a disk.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel},
    },
    thread::Builder,
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
    questions: SyncSender<(Outbox, Fetch)>,
    missing: Receiver<TaskId>,
}

impl Librarian {
    /// The thread ends by itself when the librarian is dropped; nobody waits for a disk then.
    pub fn start(
        plan: ContentHash,
        inputs: Arc<dyn Inputs>,
        spool: Option<Arc<Spool>>,
    ) -> io::Result<Self> {
        let (questions, receiver) = sync_channel::<(Outbox, Fetch)>(QUESTIONS_MAX);
        let (sender, missing) = channel();
        Builder::new().name("librarian".to_owned()).spawn(move || {
            for (outbox, fetch) in receiver {
                let block = find(inputs.as_ref(), spool.as_deref(), &sender, fetch.name);
                // Whoever is gone needs no answer.
                let _ = outbox.bulk(&answer(plan, fetch.request, block));
            }
        })?;
        Ok(Self {
            plan,
            questions,
            missing,
        })
    }

    /// The answer goes to the outbox: a block, or nothing.
    pub fn fetch(&self, outbox: &Outbox, fetch: Fetch) {
        match self.questions.try_send((outbox.clone(), fetch)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                let _ = outbox.bulk(&answer(self.plan, fetch.request, None));
            }
        }
    }

    /// What the spool should have had and has not.
    pub fn missing(&self) -> Vec<TaskId> {
        self.missing.try_iter().collect()
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
