//! What happened to every task, when. Sixteen bytes a transition: always on, so that a run that has failed can still be
//! asked.

use std::fmt;

use shared::farm::{
    ids::{AgentId, TaskId},
    moment::Moment,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transition {
    Ready,
    Assigned(AgentId),
    Recalled(AgentId),
    Returned(AgentId),
    Done(AgentId),
    Delivered(AgentId),
    Failed(AgentId),
    /// In the spool from now on.
    Kept,
    /// Given to another agent, too: the first one takes long.
    Doubled(AgentId),
    /// The agent was lost while it had the task.
    Lost(AgentId),
    /// It was done, but what it had yielded is lost and needed.
    Undone,
}

#[derive(Clone, Copy, Debug)]
struct Line {
    at: Moment,
    task: TaskId,
    what: Transition,
}

/// The log of all transitions.
#[derive(Clone, Debug, Default)]
pub struct Story {
    lines: Vec<Line>,
}

impl Story {
    pub fn tell(&mut self, at: Moment, task: TaskId, what: Transition) {
        self.lines.push(Line { at, task, what });
    }

    pub fn len(&self) -> usize {
        self.lines.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// All that happened to one task.
    pub fn of(&self, task: TaskId) -> TaskStory {
        TaskStory(
            self.lines
                .iter()
                .filter(|l| l.task == task)
                .map(|l| (l.at, l.what))
                .collect(),
        )
    }
}

/// The story of one task, one line a transition.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TaskStory(pub Vec<(Moment, Transition)>);

impl fmt::Display for TaskStory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (at, what)) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{:>12.6} s  ", at.0 as f64 / 1e6)?;
            match what {
                Transition::Ready => write!(f, "ready"),
                Transition::Assigned(a) => write!(f, "assigned to agent {}", a.0),
                Transition::Recalled(a) => write!(f, "asked back from agent {}", a.0),
                Transition::Returned(a) => write!(f, "given back by agent {}", a.0),
                Transition::Done(a) => write!(f, "done by agent {}", a.0),
                Transition::Delivered(a) => write!(f, "delivered by agent {}", a.0),
                Transition::Failed(a) => write!(f, "failed at agent {}", a.0),
                Transition::Kept => write!(f, "kept"),
                Transition::Doubled(a) => write!(f, "given to agent {}, too", a.0),
                Transition::Lost(a) => write!(f, "lost with agent {}", a.0),
                Transition::Undone => write!(f, "to be done again: what it had yielded is lost"),
            }?;
        }
        Ok(())
    }
}
