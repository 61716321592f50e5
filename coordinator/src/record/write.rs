//! Writes a record in the background. Nothing of it holds up a run: what the thread has no time for waits in the story.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{Builder, JoinHandle},
};

use shared::farm::{
    ids::{AgentId, TaskId},
    moment::Moment,
};

use super::{
    BYTES_MAX, DoneEntry, Entry, ORDINARY_MAX, Place, RECORDS_MAX, TASKS_MAX, TaskEntry,
    account::Account, list,
};
use crate::{
    cache::lock::Lock,
    farm::traffic::Traffic,
    scheduler::{Chapter, StageProgress, Transition},
};

/// Batches that wait for the thread.
const BATCHES_MAX: usize = 2;

/// Stage and verb of a task.
pub type About = Arc<dyn Fn(TaskId) -> (u16, &'static str) + Send + Sync>;

/// What is new.
pub struct Batch {
    pub now: Moment,
    pub chapter: Chapter,
    pub about: About,
    pub stages: Vec<StageProgress>,
    pub names: Vec<(AgentId, String)>,
    pub traffic: Traffic,
    /// The run has ended so.
    pub end: Option<String>,
}

/// The thread that writes.
pub struct Recorder {
    batches: Option<SyncSender<Batch>>,
    thread: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Begins a record and removes old ones.
    pub fn start(place: &Place) -> io::Result<Self> {
        fs::create_dir_all(&place.folder)?;
        let plan: String = place.head.plan.chars().take(16).collect();
        let name = format!("{:014}-{plan}.jsonl", place.head.started_ms);
        let path = place.folder.join(name);
        let mut writer = Writer::create(&path)?;
        // Whether it is held tells whether the run goes on.
        let lock = Lock::try_exclusive(&path)?;
        writer.put(&Entry::Head(place.head.clone()), BYTES_MAX)?;
        if let Some(cache) = place.folder.parent().and_then(Path::parent) {
            for old in list(cache).into_iter().skip(RECORDS_MAX) {
                let _ = fs::remove_file(old);
            }
        }
        let (batches, receiver) = sync_channel(BATCHES_MAX);
        let thread = Builder::new().name("recorder".to_owned()).spawn(move || {
            let _lock = lock;
            work(&mut writer, &receiver);
        })?;
        Ok(Self {
            batches: Some(batches),
            thread: Some(thread),
        })
    }

    /// Takes what is new, if there is time for it; else gives it back.
    pub fn take(&self, batch: Batch) -> Option<Batch> {
        match self.batches.as_ref()?.try_send(batch) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => None,
            Err(TrySendError::Full(batch)) => Some(batch),
        }
    }

    /// Takes the last of it, however long that takes.
    pub fn finish(mut self, batch: Batch) {
        if let Some(batches) = self.batches.take() {
            let _ = batches.send(batch);
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.batches = None;
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the recorder's thread panicked");
        }
    }
}

pub(super) struct Writer {
    file: File,
    path: PathBuf,
    written: u64,
    cut: bool,
}

impl Writer {
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::create(path)?,
            path: path.to_owned(),
            written: 0,
            cut: false,
        })
    }

    /// Appends a line, unless the record would exceed `most` bytes then.
    fn put(&mut self, entry: &Entry, most: u64) -> io::Result<bool> {
        let mut line = serde_json::to_vec(entry).map_err(io::Error::other)?;
        line.push(b'\n');
        if self.written + line.len() as u64 > most {
            return Ok(false);
        }
        self.file.write_all(&line)?;
        self.written += line.len() as u64;
        Ok(true)
    }

    fn cut(&mut self) -> io::Result<()> {
        if !std::mem::replace(&mut self.cut, true) {
            self.put(&Entry::Cut, BYTES_MAX)?;
        }
        Ok(())
    }

    /// Writes what a batch brings.
    pub fn batch(&mut self, account: &mut Account, batch: &Batch) -> io::Result<()> {
        account.read(batch);
        for (agent, name) in &batch.names {
            let (agent, name) = (*agent, name.clone());
            self.put(&Entry::Name { agent, name }, BYTES_MAX)?;
        }
        for line in &batch.chapter.turns {
            let (at, agent, turn) = (line.at.0, line.agent, line.what);
            self.put(&Entry::Life { at, agent, turn }, BYTES_MAX)?;
        }
        for moved in &batch.chapter.moved {
            self.put(&Entry::Moved(*moved), BYTES_MAX)?;
        }
        for stage in account.tell(batch) {
            if !self.put(&Entry::Stage(stage), BYTES_MAX)? {
                self.cut()?;
            }
        }
        for entry in tasks(batch) {
            let most = if ordinary(&entry) {
                ORDINARY_MAX
            } else {
                TASKS_MAX
            };
            if !self.put(&Entry::Task(entry), most)? {
                self.cut()?;
            }
        }
        if let Some(how) = &batch.end {
            let (at, how) = (batch.now.0, how.clone());
            self.put(&Entry::End { at, how }, u64::MAX)?;
        }
        Ok(())
    }
}

/// What is new of each task.
fn tasks(batch: &Batch) -> impl Iterator<Item = TaskEntry> {
    let mut tasks = BTreeMap::<TaskId, TaskEntry>::new();
    let new = |task| {
        let (stage, verb) = (batch.about)(task);
        TaskEntry {
            task,
            stage,
            verb: verb.to_owned(),
            steps: Vec::new(),
            done: Vec::new(),
        }
    };
    for line in &batch.chapter.lines {
        let entry = tasks.entry(line.task).or_insert_with(|| new(line.task));
        entry.steps.push((line.at.0, line.what));
    }
    for waited in &batch.chapter.waited {
        let entry = tasks.entry(waited.task).or_insert_with(|| new(waited.task));
        entry.done.push(DoneEntry {
            at: waited.at.0,
            agent: waited.agent,
            waits: waited.waits,
            took_us: waited.took_us,
        });
    }
    tasks.into_values()
}

/// Whether nothing happened to a task that anybody would ask about.
fn ordinary(entry: &TaskEntry) -> bool {
    entry.steps.iter().all(|(_, what)| match what {
        Transition::Ready
        | Transition::Assigned(_)
        | Transition::Done(_)
        | Transition::Delivered(_)
        | Transition::Kept => true,
        Transition::Taken(_)
        | Transition::Recalled(..)
        | Transition::Returned(_)
        | Transition::Failed(_)
        | Transition::Doubled(_)
        | Transition::Lost(_)
        | Transition::Undone(_) => false,
    })
}

fn work(writer: &mut Writer, batches: &Receiver<Batch>) {
    let mut account = Account::new();
    for batch in batches {
        if let Err(why) = writer.batch(&mut account, &batch) {
            tracing::info!("the record {} ends here: {why}", writer.path.display());
            return;
        }
    }
}
