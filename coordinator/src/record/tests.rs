use std::{fs, sync::Arc};

use shared::farm::moment::Moment;

use super::*;
use crate::{
    farm::traffic::Traffic,
    scheduler::{Chapter, LifeLine, Line, StageProgress, Waited},
};

const ME: AgentId = AgentId::COORDINATOR;

fn place(cache: &Path, started_ms: u64) -> Place {
    Place {
        folder: cache.join("v1/records"),
        head: Head {
            version: VERSION,
            release: "1.2.3".to_owned(),
            started_ms,
            directory: cache.join("factors"),
            plan: "0123456789abcdef0123".to_owned(),
            ..Head::default()
        },
    }
}

/// Two agents of one core; agent 1 waits for what agent 0 has, is lost, and its task is done again by agent 0.
fn batch(end: Option<&str>) -> Batch {
    let line = |at, task, what| Line {
        at: Moment(at),
        task: TaskId(task),
        what,
    };
    let life = |at, agent, what| LifeLine {
        at: Moment(at),
        agent: AgentId(agent),
        what,
    };
    let hello = Turn::Hello {
        cores: 1,
        memory_bytes: 1 << 30,
        disk_bytes: 0,
    };
    let serves = Turn::Serves { blocks: 3 };
    let waited = |at, task, agent, inputs_us, took_us| Waited {
        at: Moment(at),
        task: TaskId(task),
        agent: AgentId(agent),
        waits: Waits {
            inputs_us,
            last_from: (inputs_us > 0).then_some(AgentId(0)),
            ..Waits::default()
        },
        took_us,
    };
    let (a, b) = (AgentId(0), AgentId(1));
    let mut traffic = Traffic::default();
    traffic.blocks(0, ME, a, 1000);
    traffic.blocks(0, a, b, 50);
    Batch {
        now: Moment(10_000),
        chapter: Chapter {
            turns: vec![
                life(0, 0, hello),
                life(0, 0, serves),
                life(0, 1, hello),
                life(0, 1, serves),
                life(6000, 1, Turn::Silent { us: 2_000_000 }),
            ],
            lines: vec![
                line(0, 0, Transition::Ready),
                line(0, 0, Transition::Assigned(a)),
                line(0, 1, Transition::Ready),
                line(0, 1, Transition::Assigned(b)),
                line(4000, 0, Transition::Done(a)),
                line(5000, 1, Transition::Done(b)),
                line(6000, 1, Transition::Undone(b)),
                line(6000, 1, Transition::Ready),
                line(6000, 1, Transition::Assigned(a)),
                line(10_000, 1, Transition::Done(a)),
            ],
            waited: vec![
                waited(4000, 0, 0, 0, 4000),
                waited(5000, 1, 1, 3000, 2000),
                waited(10_000, 1, 0, 0, 4000),
            ],
            moved: vec![],
        },
        about: Arc::new(|_| (0, "square")),
        stages: vec![StageProgress {
            name: "only".to_owned(),
            tasks: 2,
            tasks_done: 2,
            began: Some(Moment(0)),
            ended: Some(Moment(10_000)),
            ..StageProgress::default()
        }],
        names: vec![(a, "big1".to_owned()), (b, "big2".to_owned())],
        traffic,
        end: end.map(str::to_owned),
    }
}

fn written(cache: &Path) -> PathBuf {
    Recorder::start(&place(cache, 7))
        .unwrap()
        .finish(batch(Some("done")));
    list(cache)[0].clone()
}

#[test]
fn a_record_tells_who_did_what_and_why_cores_were_idle() {
    let cache = tempfile::tempdir().unwrap();
    written(cache.path());
    let caches = [cache.path().to_owned()];
    let factors = cache.path().join("factors");
    let found = find(&caches, Some(&factors)).unwrap().unwrap();
    assert!(!found.running);
    let record = found.record;
    assert_eq!(record.end, Some((10_000, "done".to_owned())));
    let stage = &record.stages[&0];
    assert_eq!((stage.tasks, stage.done), (2, 2));
    assert_eq!(stage.redone, [(AgentId(1), 1)]);
    let [first, second] = stage.agents[..] else {
        panic!("{stage:?}")
    };
    assert_eq!((first.tasks, first.busy_us), (2, 8000));
    assert_eq!((second.tasks, second.busy_us), (1, 2000));
    // It ran from 3,000 to 5,000, waited before, had nothing until it was lost, and was not there then.
    let idle = Idle {
        absent_us: 4000,
        inputs_us: 3000,
        inputs_from: Some(AgentId(0)),
        room_us: 0,
        nothing_us: 1000,
    };
    assert_eq!(second.idle, idle);
    assert_eq!(stage.longest[0].us, 3000);
    assert_eq!(stage.longest[0].why, Why::Inputs(Some(AgentId(0))));
    assert_eq!(stage.links.len(), 2);
    let task = &record.tasks[&TaskId(1)];
    assert_eq!(task.steps.len(), 7);
    assert_eq!(task.done.len(), 2);
    let elsewhere = find(&caches, Some(Path::new("/elsewhere"))).unwrap();
    assert!(elsewhere.is_none());
}

#[test]
fn a_torn_tail_is_no_harm_and_what_is_being_written_is_read() {
    let cache = tempfile::tempdir().unwrap();
    let recorder = Recorder::start(&place(cache.path(), 7)).unwrap();
    let caches = [cache.path().to_owned()];
    let found = find(&caches, None).unwrap().unwrap();
    assert!(found.running && found.record.end.is_none());
    recorder.finish(batch(Some("done")));
    let path = &list(cache.path())[0];
    let whole = fs::read(path).unwrap();
    for cut in [1, 2, 30, 200, 1000] {
        fs::write(path, &whole[..whole.len() - cut]).unwrap();
        let record = Record::read(path).unwrap();
        assert_eq!(record.head.release, "1.2.3");
        assert_eq!(record.end.is_some(), cut == 1, "only the line feed is gone");
    }
    fs::write(path, b"\xff\xfe").unwrap();
    assert!(matches!(
        Record::read(path),
        Err(ReadError::NoRecord { .. })
    ));
    assert!(find(&caches, None).unwrap().is_none());
}

#[test]
fn a_foreign_version_is_refused_in_words() {
    let cache = tempfile::tempdir().unwrap();
    let path = written(cache.path());
    let text = fs::read_to_string(&path).unwrap();
    let foreign = text.replacen("\"version\":1", "\"version\":7", 1);
    fs::write(&path, foreign).unwrap();
    let why = find(&[cache.path().to_owned()], None).unwrap_err();
    let told = why.to_string();
    assert!(
        told.contains("version 7, by svdjob 1.2.3") && told.contains("reads version 1"),
        "{told}"
    );
}

#[test]
fn a_record_is_bounded_and_ordinary_tasks_go_first() {
    let cache = tempfile::tempdir().unwrap();
    let recorder = Recorder::start(&place(cache.path(), 7)).unwrap();
    let mut long = batch(Some("done"));
    let ordinary = long.chapter.lines[0];
    let lost = Line {
        what: Transition::Lost(AgentId(1)),
        ..ordinary
    };
    let (ordinary_tasks, lost_tasks) = (100_000, 100);
    long.chapter
        .lines
        .extend((0..ordinary_tasks + lost_tasks).map(|n| Line {
            task: TaskId(10 + n),
            ..if n < ordinary_tasks { ordinary } else { lost }
        }));
    recorder.finish(long);
    let path = &list(cache.path())[0];
    let bytes = fs::metadata(path).unwrap().len();
    assert!(bytes < BYTES_MAX, "{bytes} bytes");
    let record = Record::read(path).unwrap();
    assert!(record.cut && record.end.is_some());
    assert!(record.tasks.len() < ordinary_tasks as usize);
    let last = TaskId(10 + ordinary_tasks + lost_tasks - 1);
    assert!(
        record.tasks.contains_key(&last),
        "what is not ordinary stays"
    );
}

#[test]
fn the_oldest_records_go() {
    let cache = tempfile::tempdir().unwrap();
    for n in 0..RECORDS_MAX as u64 + 5 {
        Recorder::start(&place(cache.path(), n))
            .unwrap()
            .finish(batch(None));
    }
    let left = list(cache.path());
    assert_eq!(left.len(), RECORDS_MAX);
    let newest = Record::read(&left[0]).unwrap();
    assert_eq!(newest.head.started_ms, RECORDS_MAX as u64 + 4);
}
