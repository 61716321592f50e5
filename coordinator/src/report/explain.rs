//! The account of a run for people: `svdjob explain`.

use std::collections::{BTreeMap, BTreeSet};

use shared::farm::ids::{AgentId, TaskId};

use super::numbers::{duration, percent, table, wrap};
use crate::{
    farm::traffic::Sums,
    job::size,
    record::{Found, Record, Share, StageEntry, Why},
    scheduler::{Transition, Turn},
};

/// What is asked about.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Question {
    /// Stages with this in their names, or with this number.
    pub stage: Option<String>,
    pub task: Option<u32>,
    /// Nodes of this name.
    pub node: Option<String>,
}

fn seconds(us: u64) -> String {
    duration(us as f64 / 1e6)
}

fn clock(us: u64) -> String {
    format!("{:>9.3} s", us as f64 / 1e6)
}

impl Question {
    /// Whether it is about this stage.
    pub fn asks_stage(&self, stage: &StageEntry) -> bool {
        self.stage.as_ref().is_none_or(|wanted| {
            wanted.parse() == Ok(stage.stage)
                || stage.name.to_lowercase().contains(&wanted.to_lowercase())
        })
    }

    /// Whether it is about this agent.
    pub fn asks_node(&self, record: &Record, agent: AgentId) -> bool {
        let wanted = self.node.as_ref();
        wanted.is_none_or(|wanted| record.name(agent) == *wanted)
    }
}

/// All of the account that is asked for, in lines of so many characters.
pub fn render(found: &Found, question: &Question, width: usize) -> String {
    folded(&account(found, question, width), width)
}

/// Breaks lines that are too long; what goes on stands below the words, not below the time before them.
fn folded(text: &str, width: usize) -> String {
    let mut out = String::new();
    for line in text.lines() {
        if line.chars().count() <= width {
            out.push_str(line);
            out.push('\n');
            continue;
        }
        let words = line.trim_start();
        let indent = line.len() - words.len();
        let timed = words.starts_with(|c: char| c.is_ascii_digit());
        let (head, words) = match words.find(" s  ").filter(|_| timed) {
            Some(clock) => words.split_at(clock + 4),
            None => ("", words),
        };
        let hang = match head.len() {
            0 => indent + 2,
            head => indent + head,
        };
        for (i, part) in wrap(words, width.saturating_sub(hang)).iter().enumerate() {
            let part = part.trim_end();
            out.push_str(&match i {
                0 => format!("{:indent$}{head}{part}\n", ""),
                _ => format!("{:hang$}{part}\n", ""),
            });
        }
    }
    out
}

fn account(found: &Found, question: &Question, width: usize) -> String {
    let record = &found.record;
    if let Some(task) = question.task {
        return task_story(record, TaskId(task));
    }
    let mut text = top(found);
    let stages: Vec<&StageEntry> = record
        .stages
        .values()
        .filter(|stage| question.asks_stage(stage))
        .collect();
    text.push_str(&nodes(record, &stages, question));
    text.push_str(&lives(record, question));
    if stages.len() <= 1 || question.stage.is_some() {
        for stage in stages {
            text.push_str(&one_stage(record, stage, question));
        }
    } else {
        text.push_str(&all_stages(record, &stages, width));
    }
    if record.cut {
        text.push_str("\nThe record is full: ordinary tasks are left out of it.\n");
    }
    text
}

fn top(found: &Found) -> String {
    let record = &found.record;
    let how = match (&record.end, found.running) {
        (Some((at, how)), _) => format!("{how} after {}", seconds(*at)),
        (None, true) => "goes on".to_owned(),
        (None, false) => "was killed, or could not write its record to the end".to_owned(),
    };
    let by = if record.head.farm {
        "by a farm"
    } else {
        "in one process"
    };
    format!(
        "Run        {} -> {}, {by}; {how}\nRecord     {}\n",
        record.head.input.display(),
        record.head.directory.display(),
        found.path.display()
    )
}

/// Summed over stages: by name, for a node that was lost and came back is another agent.
#[derive(Default)]
struct Worked {
    cores: u16,
    shares: Vec<Share>,
}

/// Why cores stood idle, the gravest first.
fn reasons(record: &Record, shares: &[Share]) -> String {
    let sum = |of: fn(&Share) -> u64| shares.iter().map(of).sum::<u64>();
    let senders: BTreeSet<String> = shares
        .iter()
        .filter_map(|share| share.idle.inputs_from)
        .map(|agent| record.name(agent))
        .collect();
    let inputs = if senders.is_empty() {
        "what tasks read was on its way from its own disk".to_owned()
    } else {
        let senders: Vec<String> = senders.into_iter().collect();
        format!("what tasks read was on its way from {}", senders.join(", "))
    };
    let mut all = [
        (sum(|s| s.idle.absent_us), "it was not there".to_owned()),
        (sum(|s| s.idle.inputs_us), inputs),
        (sum(|s| s.idle.room_us), "its memory was full".to_owned()),
        (
            sum(|s| s.idle.nothing_us),
            "there was nothing for it to do".to_owned(),
        ),
    ];
    all.sort_by_key(|(us, _)| std::cmp::Reverse(*us));
    let told: Vec<String> = all
        .into_iter()
        .filter(|(us, _)| *us >= 1000)
        .map(|(us, why)| format!("{} {why}", seconds(us)))
        .collect();
    if told.is_empty() {
        "hardly".to_owned()
    } else {
        told.join("; ")
    }
}

fn nodes(record: &Record, stages: &[&StageEntry], question: &Question) -> String {
    let mut worked = BTreeMap::<String, Worked>::new();
    for share in stages.iter().flat_map(|stage| &stage.agents) {
        let node = worked.entry(record.name(share.agent)).or_default();
        node.cores = node.cores.max(share.cores);
        node.shares.push(*share);
    }
    let cores: u32 = worked.values().map(|w| u32::from(w.cores)).sum();
    let busy = |w: &Worked| w.shares.iter().map(|s| s.busy_us).sum::<u64>();
    let all: u64 = worked.values().map(busy).sum();
    let mut rows = vec![
        ["node", "cores", "of cores", "of work", "tasks", "busy"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut idle = Vec::new();
    for (name, node) in &worked {
        if question.node.as_ref().is_some_and(|wanted| wanted != name) {
            continue;
        }
        rows.push(vec![
            name.clone(),
            node.cores.to_string(),
            percent(f64::from(node.cores) / f64::from(cores.max(1))),
            percent(busy(node) as f64 / all.max(1) as f64),
            node.shares.iter().map(|s| s.tasks).sum::<u64>().to_string(),
            seconds(busy(node)),
        ]);
        idle.push(format!(
            "  {name} was idle (seconds of a core): {}",
            reasons(record, &node.shares)
        ));
    }
    let mut text = "\nWho has worked\n".to_owned();
    for line in table(&rows, &[0]).iter().chain(&idle) {
        text.push_str(line);
        text.push('\n');
    }
    text
}

fn turn(turn: Turn) -> String {
    match turn {
        Turn::Hello {
            cores,
            memory_bytes,
            ..
        } => format!(
            "joined with {cores} cores and {} of memory",
            size::show(memory_bytes)
        ),
        Turn::Serves { blocks } => {
            format!("is given work from now on; it has {blocks} of the input blocks")
        }
        Turn::Silent { us } => format!(
            "silent for {}: others do its work, and it is to begin anew",
            seconds(us)
        ),
        Turn::Shunned { us } => format!(
            "others cannot reach it: it begins anew and gets nothing for {}",
            seconds(us)
        ),
        Turn::Ended => "lost: its link has ended".to_owned(),
        Turn::GivenUp { us } => format!("lost: silent for {}, given up", seconds(us)),
        Turn::SlowLink { bytes_per_s } => format!(
            "slow: its link carries no more than {}/s, so it is given only what gains more than shipping costs",
            size::show(bytes_per_s)
        ),
        Turn::LinkAgain => "not slow any more: its link is fast enough, or tried anew".to_owned(),
    }
}

/// What happened to nodes, where homes went, and what was lost with whom.
fn lives(record: &Record, question: &Question) -> String {
    let mut lines: Vec<(u64, String)> = Vec::new();
    for &(at, agent, what) in &record.lives {
        if question.asks_node(record, agent) {
            lines.push((at, format!("{} {}", record.name(agent), turn(what))));
        }
    }
    for moved in &record.moved {
        let asked = question.asks_node(record, moved.to)
            || moved
                .from
                .is_some_and(|from| question.asks_node(record, from));
        if asked {
            let to = record.name(moved.to);
            let blocks = match moved.blocks {
                1 => "1 input block is".to_owned(),
                n => format!("{n} input blocks are"),
            };
            let why = match (moved.from, moved.measured) {
                (None, _) => String::new(),
                (Some(from), true) => {
                    format!(", no longer with {}: by measured rates", record.name(from))
                }
                (Some(from), false) => format!(
                    ", no longer with {}: somebody has come or gone",
                    record.name(from)
                ),
            };
            lines.push((moved.at_us, format!("{blocks} at home with {to}{why}")));
        }
    }
    lines.sort();
    let mut text = "\nWhat happened to them\n".to_owned();
    for (at, line) in lines {
        text.push_str(&format!("{}  {line}\n", clock(at)));
    }
    let mut redone = BTreeMap::<AgentId, u64>::new();
    for (agent, count) in record.stages.values().flat_map(|s| &s.redone) {
        *redone.entry(*agent).or_default() += count;
    }
    for (agent, count) in redone {
        if question.asks_node(record, agent) {
            text.push_str(&lost(record, agent, count));
        }
    }
    text
}

fn lost(record: &Record, agent: AgentId, count: u64) -> String {
    let tasks = if count == 1 {
        "1 task was".to_owned()
    } else {
        format!("{count} tasks were")
    };
    if agent == AgentId::COORDINATOR {
        return format!("{tasks} done again: not found in the spool\n");
    }
    format!("{tasks} done again: lost with {}\n", record.name(agent))
}

fn all_stages(record: &Record, stages: &[&StageEntry], width: usize) -> String {
    let mut rows = vec![
        ["stage", "", "time", "tasks", "busy"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut bytes = vec![
        ["sent", "received", "control", "node to node"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut waits = vec!["longest wait".to_owned()];
    for stage in stages {
        let sums = Sums::of(&stage.links);
        let wall = stage.ended.saturating_sub(stage.began);
        let cores: u64 = stage.agents.iter().map(|a| u64::from(a.cores)).sum();
        let busy: u64 = stage.agents.iter().map(|a| a.busy_us).sum();
        let tasks = if stage.done == stage.tasks {
            stage.tasks.to_string()
        } else {
            format!("{} of {}", stage.done, stage.tasks)
        };
        rows.push(vec![
            stage.stage.to_string(),
            stage.name.clone(),
            seconds(wall),
            tasks,
            percent(busy as f64 / (wall * cores).max(1) as f64),
        ]);
        let shown = [sums.sent, sums.received, sums.control, sums.between_nodes];
        bytes.push(shown.map(|bytes| size::show(bytes).to_string()).to_vec());
        let longest = stage.longest.first().filter(|wait| wait.us >= 1000);
        waits.push(longest.map_or_else(String::new, |wait| {
            format!("{} {}", seconds(wait.us), why(record, wait.why))
        }));
    }
    let whole: Vec<Vec<String>> = rows
        .iter()
        .zip(&bytes)
        .zip(&waits)
        .map(|((row, bytes), wait)| [&row[..], bytes, std::slice::from_ref(wait)].concat())
        .collect();
    let mut lines = table(&whole, &[0, 1, 9]);
    if lines.iter().any(|line| line.chars().count() > width) {
        lines = below_each_other(&rows, &bytes, &waits, record.head.farm);
    }
    let mut text = if record.head.farm {
        "\nStages (bytes: svdjob has sent and received, its messages, node to node)\n".to_owned()
    } else {
        "\nStages\n".to_owned()
    };
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    text.push_str("\n`--stage NAME`, `--node NAME` and `--task NUMBER` tell more.\n");
    text
}

/// The same where lines are short: what does not fit stands in a line below. Bytes cross no link in one process.
fn below_each_other(
    rows: &[Vec<String>],
    bytes: &[Vec<String>],
    waits: &[String],
    farm: bool,
) -> Vec<String> {
    let mut lines = Vec::new();
    for (i, line) in table(rows, &[0, 1]).into_iter().enumerate() {
        lines.push(line);
        if i == 0 {
            continue;
        }
        if farm {
            let told = bytes[0].iter().zip(&bytes[i]);
            let told: Vec<String> = told
                .map(|(what, bytes)| format!("{what} {bytes}"))
                .collect();
            lines.push(format!("       {}", told.join(", ")));
        }
        if !waits[i].is_empty() {
            lines.push(format!("       longest wait {}", waits[i]));
        }
    }
    lines
}

fn why(record: &Record, why: Why) -> String {
    match why {
        Why::Nobody => "for a node: none was there".to_owned(),
        Why::Busy => "to be given out: all nodes had enough to do".to_owned(),
        Why::Room => "for memory".to_owned(),
        Why::Inputs(Some(from)) => format!("for inputs from {}", record.name(from)),
        Why::Inputs(None) => "for inputs from the disk or other tasks".to_owned(),
        Why::Core => "for a core of its node".to_owned(),
    }
}

fn one_stage(record: &Record, stage: &StageEntry, question: &Question) -> String {
    let mut text = format!(
        "\nStage {}: {}, {} from {}, {} of {} tasks\n",
        stage.stage,
        stage.name,
        seconds(stage.ended.saturating_sub(stage.began)),
        clock(stage.began).trim_start(),
        stage.done,
        stage.tasks
    );
    for (count, what) in [
        (stage.taken, "taken from another's home by idle nodes"),
        (stage.recalled, "asked back"),
        (stage.returned, "given back"),
        (
            stage.doubled,
            "given to two nodes, because the first took long",
        ),
    ] {
        if count > 0 {
            text.push_str(&format!("  {count} {what}\n"));
        }
    }
    for (agent, count) in &stage.redone {
        text.push_str(&format!("  {}", lost(record, *agent, *count)));
    }
    if !stage.longest.is_empty() {
        text.push_str("Longest waits\n");
    }
    for wait in &stage.longest {
        if question.asks_node(record, wait.agent) {
            text.push_str(&format!(
                "  task {} ({}) at {}: {} {}\n",
                wait.task.0,
                wait.verb,
                record.name(wait.agent),
                seconds(wait.us),
                why(record, wait.why)
            ));
        }
    }
    if !stage.links.is_empty() {
        text.push_str("Bytes over each link, without what carries them\n");
    }
    for link in &stage.links {
        if question.asks_node(record, link.from) || question.asks_node(record, link.to) {
            text.push_str(&format!(
                "  {} -> {}: {} of blocks, {} of messages\n",
                record.name(link.from),
                record.name(link.to),
                size::show(link.blocks),
                size::show(link.control)
            ));
        }
    }
    text
}

/// Where and when a task ran, and why more than once.
fn task_story(record: &Record, task: TaskId) -> String {
    let Some(entry) = record.tasks.get(&task) else {
        return format!(
            "nothing is recorded of task {}{}\n",
            task.0,
            if record.cut {
                ": the record was full, it was an ordinary one or there is none"
            } else {
                ": it has not begun, was kept from a run before, or there is none"
            }
        );
    };
    let stage = record
        .stages
        .get(&entry.stage)
        .map_or_else(|| format!("stage {}", entry.stage), |s| s.name.clone());
    let mut text = format!("Task {} ({}) of {stage}\n", task.0, entry.verb);
    let mut done = entry.done.iter();
    for &(at, what) in &entry.steps {
        let words = what.words(&|agent| record.name(agent));
        text.push_str(&format!("{}  {words}\n", clock(at)));
        let Some(done) = (match what {
            Transition::Done(_) => done.next(),
            Transition::Ready
            | Transition::Taken(_)
            | Transition::Assigned(_)
            | Transition::Recalled(..)
            | Transition::Returned(_)
            | Transition::Delivered(_)
            | Transition::Failed(_)
            | Transition::Kept
            | Transition::Doubled(_)
            | Transition::Lost(_)
            | Transition::Undone(_) => None,
        }) else {
            continue;
        };
        let waits = done.waits;
        text.push_str(&format!(
            "             there it waited {} for memory, {} {}, {} for a core, and ran {}\n",
            seconds(u64::from(waits.room_us)),
            seconds(u64::from(waits.inputs_us)),
            why(record, Why::Inputs(waits.last_from)),
            seconds(u64::from(waits.core_us)),
            seconds(u64::from(done.took_us)),
        ));
    }
    text
}
