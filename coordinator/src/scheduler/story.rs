//! What happened, when: to every task, to every agent, to the homes of input blocks. A few words a line: always on, so
//! that a run that has failed can still be asked, and one that goes on can be looked at.

use std::fmt;

use serde::{Deserialize, Serialize};
use shared::farm::{
    ids::{AgentId, TaskId},
    message::Waits,
    moment::Moment,
};

/// Why a task was asked back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Recall {
    /// Somebody else stood idle.
    Idle,
    /// Another was faster.
    Beaten,
    /// Whoever had what it reads was lost.
    HolderLost,
    /// What it reads takes too long to come there.
    SlowLink,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Transition {
    Ready,
    /// It was at home with this agent, which had more left than it takes to ship and do it elsewhere.
    Taken(AgentId),
    Assigned(AgentId),
    Recalled(AgentId, Recall),
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
    /// It was done, but what it had yielded is needed and was lost with this agent; the coordinator: with its spool.
    Undone(AgentId),
}

/// What happened to a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Line {
    pub at: Moment,
    pub task: TaskId,
    pub what: Transition,
}

/// What a task that is done had waited for at its agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Waited {
    pub at: Moment,
    pub task: TaskId,
    pub agent: AgentId,
    pub waits: Waits,
    pub took_us: u32,
}

/// What happened to an agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Turn {
    Hello {
        cores: u16,
        memory_bytes: u64,
        disk_bytes: u64,
    },
    /// It has said how many of the plan's input blocks it has, and is given work from now on.
    Serves { blocks: u32 },
    /// It has said nothing for so long: others do its work, and it is told to begin anew.
    Silent { us: u64 },
    /// Others cannot reach it: it begins anew, and gets nothing for so long.
    Shunned { us: u64 },
    /// Its link has ended.
    Ended,
    /// It was silent for too long and is given up.
    GivenUp { us: u64 },
    /// Its link is so slow that it is given only what takes longer to compute than to ship.
    SlowLink { bytes_per_s: u64 },
    /// Its link is fast enough, or is to be tried again.
    LinkAgain,
}

/// One turn in the life of an agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LifeLine {
    pub at: Moment,
    pub agent: AgentId,
    pub what: Turn,
}

/// Input blocks that found another home.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Moved {
    /// Microseconds since the start.
    pub at_us: u64,
    pub blocks: u32,
    /// `None`: they had none.
    pub from: Option<AgentId>,
    pub to: AgentId,
    /// By measured rates; else because somebody has come or gone.
    pub measured: bool,
}

/// The log of a run.
#[derive(Clone, Debug, Default)]
pub struct Story {
    lines: Vec<Line>,
    waited: Vec<Waited>,
    turns: Vec<LifeLine>,
    moved: Vec<Moved>,
}

/// How far somebody has read a story.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mark {
    lines: usize,
    waited: usize,
    turns: usize,
    moved: usize,
}

/// A part of a story.
#[derive(Clone, Debug, Default)]
pub struct Chapter {
    pub lines: Vec<Line>,
    pub waited: Vec<Waited>,
    pub turns: Vec<LifeLine>,
    pub moved: Vec<Moved>,
}

impl Story {
    pub fn tell(&mut self, at: Moment, task: TaskId, what: Transition) {
        self.lines.push(Line { at, task, what });
    }

    pub fn tell_waited(&mut self, waited: Waited) {
        self.waited.push(waited);
    }

    pub fn tell_turn(&mut self, at: Moment, agent: AgentId, what: Turn) {
        self.turns.push(LifeLine { at, agent, what });
    }

    pub fn tell_moved(&mut self, moved: Moved) {
        self.moved.push(moved);
    }

    pub fn len(&self) -> usize {
        self.lines.len()
    }

    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// What has been told since `mark`, which is moved on.
    pub fn since(&self, mark: &mut Mark) -> Chapter {
        let chapter = Chapter {
            lines: self.lines[mark.lines..].to_vec(),
            waited: self.waited[mark.waited..].to_vec(),
            turns: self.turns[mark.turns..].to_vec(),
            moved: self.moved[mark.moved..].to_vec(),
        };
        *mark = Mark {
            lines: self.lines.len(),
            waited: self.waited.len(),
            turns: self.turns.len(),
            moved: self.moved.len(),
        };
        chapter
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

impl Recall {
    fn words(self) -> &'static str {
        match self {
            Self::Idle => "others stood idle",
            Self::Beaten => "another was faster",
            Self::HolderLost => "what it reads was lost",
            Self::SlowLink => "what it reads takes too long to come there",
        }
    }
}

impl Transition {
    /// In words, with agents called as `name` says.
    pub fn words(self, name: &dyn Fn(AgentId) -> String) -> String {
        match self {
            Self::Ready => "ready".to_owned(),
            Self::Taken(a) => format!(
                "taken from {}, which had more left than that costs",
                name(a)
            ),
            Self::Assigned(a) => format!("assigned to {}", name(a)),
            Self::Recalled(a, why) => format!("asked back from {}: {}", name(a), why.words()),
            Self::Returned(a) => format!("given back by {}", name(a)),
            Self::Done(a) => format!("done by {}", name(a)),
            Self::Delivered(a) if a == AgentId::COORDINATOR => {
                "delivered by a run before".to_owned()
            }
            Self::Delivered(a) => format!("delivered by {}", name(a)),
            Self::Failed(a) => format!("failed at {}", name(a)),
            Self::Kept => "kept".to_owned(),
            Self::Doubled(a) => format!("given to {}, too: the first takes long", name(a)),
            Self::Lost(a) => format!("lost with {}", name(a)),
            Self::Undone(a) if a == AgentId::COORDINATOR => {
                "to be done again: what it had yielded is not in the spool".to_owned()
            }
            Self::Undone(a) => {
                format!(
                    "to be done again: what it had yielded was lost with {}",
                    name(a)
                )
            }
        }
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
            let words = what.words(&|agent| format!("agent {}", agent.0));
            write!(f, "{:>12.6} s  {words}", at.0 as f64 / 1e6)?;
        }
        Ok(())
    }
}
