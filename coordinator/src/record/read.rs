//! Reads a record, also one that is being written.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use shared::farm::ids::{AgentId, TaskId};

use super::{Entry, Head, StageEntry, TaskEntry, VERSION, list};
use crate::{
    cache::lock::Lock,
    scheduler::{Moved, Turn},
};

/// Everything that a record says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Record {
    pub head: Head,
    pub names: BTreeMap<AgentId, String>,
    /// With the microseconds since the start.
    pub lives: Vec<(u64, AgentId, Turn)>,
    pub moved: Vec<Moved>,
    pub stages: BTreeMap<u16, StageEntry>,
    pub tasks: BTreeMap<TaskId, TaskEntry>,
    /// Some tasks are left out.
    pub cut: bool,
    pub end: Option<(u64, String)>,
}

/// A record and where it is.
#[derive(Clone, Debug)]
pub struct Found {
    pub path: PathBuf,
    pub record: Record,
    /// Its run goes on.
    pub running: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{}: {why}", path.display())]
    Io { path: PathBuf, why: io::Error },
    #[error("{} is no record of a run", path.display())]
    NoRecord { path: PathBuf },
    #[error(
        "{} is a record of version {version}, by svdjob {release}; this svdjob reads version {VERSION}",
        path.display()
    )]
    Version {
        path: PathBuf,
        version: u32,
        release: String,
    },
}

fn head(text: &str, path: &Path) -> Result<Head, ReadError> {
    let path = path.to_owned();
    // A foreign version may know other lines: only these two words of the first one are relied on.
    let first: Option<serde_json::Value> = text
        .lines()
        .next()
        .and_then(|line| serde_json::from_str(line).ok());
    let Some(first) = first.as_ref().and_then(|first| first.get("Head")) else {
        return Err(ReadError::NoRecord { path });
    };
    let version = first.get("version").and_then(serde_json::Value::as_u64);
    match version.map(u32::try_from) {
        Some(Ok(VERSION)) => {
            serde_json::from_value(first.clone()).map_err(|_| ReadError::NoRecord { path })
        }
        Some(Ok(version)) => Err(ReadError::Version {
            path,
            version,
            release: first["release"].as_str().unwrap_or("?").to_owned(),
        }),
        Some(Err(_)) | None => Err(ReadError::NoRecord { path }),
    }
}

impl Record {
    /// Reads what is whole; a torn line ends it.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let bytes = fs::read(path).map_err(|why| ReadError::Io {
            path: path.to_owned(),
            why,
        })?;
        let text = String::from_utf8_lossy(&bytes);
        let mut record = Self {
            head: head(&text, path)?,
            ..Self::default()
        };
        for line in text.lines().skip(1) {
            let Ok(entry) = serde_json::from_str(line) else {
                break;
            };
            record.add(entry);
        }
        Ok(record)
    }

    fn add(&mut self, entry: Entry) {
        match entry {
            Entry::Head(_) => {}
            Entry::Name { agent, name } => {
                self.names.insert(agent, name);
            }
            Entry::Life { at, agent, turn } => self.lives.push((at, agent, turn)),
            Entry::Moved(moved) => self.moved.push(moved),
            Entry::Stage(stage) => {
                self.stages.insert(stage.stage, stage);
            }
            Entry::Task(mut task) => match self.tasks.get_mut(&task.task) {
                Some(known) => {
                    known.steps.append(&mut task.steps);
                    known.done.append(&mut task.done);
                }
                None => {
                    self.tasks.insert(task.task, task);
                }
            },
            Entry::Cut => self.cut = true,
            Entry::End { at, how } => self.end = Some((at, how)),
        }
    }

    /// What people call an agent.
    pub fn name(&self, agent: AgentId) -> String {
        if agent == AgentId::COORDINATOR {
            return "svdjob".to_owned();
        }
        self.names
            .get(&agent)
            .cloned()
            .unwrap_or_else(|| format!("agent {}", agent.0))
    }
}

fn same(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// The newest record in these caches, of the run whose factors go to `directory` if one is given.
///
/// # Errors
/// When the newest cannot be read.
pub fn find(caches: &[PathBuf], directory: Option<&Path>) -> Result<Option<Found>, ReadError> {
    let mut paths: Vec<PathBuf> = caches.iter().flat_map(|cache| list(cache)).collect();
    paths.sort_by(|a, b| b.file_name().cmp(&a.file_name()));
    for path in paths {
        let record = match Record::read(&path) {
            Ok(record) => record,
            // Whose it is cannot be told.
            Err(ReadError::NoRecord { .. }) => continue,
            Err(why) => return Err(why),
        };
        if directory.is_none_or(|wanted| same(wanted, &record.head.directory)) {
            let running = record.end.is_none() && Lock::is_held(&path);
            return Ok(Some(Found {
                path,
                record,
                running,
            }));
        }
    }
    Ok(None)
}
