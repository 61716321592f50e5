//! Writes kept blocks in the background.
//!
//! Its queue is bounded by the agents: each sends only a few blocks ahead of those that it was told are kept.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{Builder, JoinHandle},
};

use shared::farm::{
    bytes::Bytes,
    ids::{AgentId, TaskId},
};

use crate::spool::Spool;

enum Errand {
    Keep(AgentId, TaskId),
    Forget(TaskId),
}

/// What became of a block.
pub enum Outcome {
    Kept {
        agent: AgentId,
        task: TaskId,
    },
    Lost {
        agent: AgentId,
        task: TaskId,
    },
    /// The disk takes nothing more.
    Full(io::Error),
}

/// The thread and what it has to do.
pub struct Keeper {
    spool: Arc<Spool>,
    errands: Option<Sender<Errand>>,
    outcomes: Receiver<Outcome>,
    open: usize,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub fn start(spool: Arc<Spool>) -> io::Result<Self> {
        let (errands, receiver) = channel();
        let (sender, outcomes) = channel();
        let shelf = Arc::clone(&spool);
        let thread = Builder::new()
            .name("keeper".to_owned())
            .spawn(move || work(&shelf, &receiver, &sender))?;
        Ok(Self {
            spool,
            errands: Some(errands),
            outcomes,
            open: 0,
            thread: Some(thread),
        })
    }

    /// Can be fetched from now on, and is on disk soon.
    pub fn keep(&mut self, agent: AgentId, task: TaskId, block: Bytes) {
        self.spool.accept(task, block);
        self.open += 1;
        self.send(Errand::Keep(agent, task));
    }

    /// After everything that was to be kept before.
    pub fn forget(&mut self, task: TaskId) {
        self.send(Errand::Forget(task));
    }

    fn send(&self, errand: Errand) {
        if let Some(errands) = &self.errands {
            // A keeper that is gone has panicked: the run goes on without.
            let _ = errands.send(errand);
        }
    }

    /// Blocks are on their way to the disk.
    pub fn is_busy(&self) -> bool {
        self.open > 0
    }

    pub fn outcomes(&mut self) -> Vec<Outcome> {
        let outcomes: Vec<Outcome> = self.outcomes.try_iter().collect();
        for outcome in &outcomes {
            match outcome {
                Outcome::Kept { .. } | Outcome::Lost { .. } => self.open -= 1,
                Outcome::Full(_) => {}
            }
        }
        outcomes
    }
}

impl Drop for Keeper {
    /// What was accepted is written.
    fn drop(&mut self) {
        self.errands = None;
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the keeper's thread panicked");
        }
    }
}

fn work(spool: &Spool, errands: &Receiver<Errand>, outcomes: &Sender<Outcome>) {
    let mut full = false;
    for errand in errands {
        let outcome = match errand {
            Errand::Forget(task) => {
                // What was to replace it may not have been written.
                if !full {
                    spool.forget(task);
                }
                continue;
            }
            Errand::Keep(agent, task) if full => {
                spool.refuse(task);
                Outcome::Lost { agent, task }
            }
            Errand::Keep(agent, task) => match spool.write(task) {
                Ok(()) => Outcome::Kept { agent, task },
                Err(why) => {
                    full = true;
                    let _ = outcomes.send(Outcome::Full(why));
                    Outcome::Lost { agent, task }
                }
            },
        };
        let _ = outcomes.send(outcome);
    }
}
