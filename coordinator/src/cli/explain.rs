//! `svdjob explain`.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::{End, Global, out};
use crate::{
    failure::Failure,
    job::{machine, overrides::Overrides, resolve},
    output::staging::MANIFEST,
    record::{Found, find},
    report::explain::{Question, render},
};

/// Tell why a run went as it went.
///
/// Every run keeps a record of what its tasks waited for and what happened to its nodes, in the cache. This tells of the
/// newest one, or of the one that is asked for; also while it goes on.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  svdjob explain                      the newest run
  svdjob explain factor.toml          the newest run of this job
  svdjob explain --node big2          why was big2 hardly used?
  svdjob explain --stage \"power pass 5\"
                                      why did it take so long?
  svdjob explain --task 117           where did it run, and why twice?")]
pub struct ExplainArgs {
    /// A job file, or a folder of factors; the newest run if not given
    #[arg(value_name = "RUN")]
    pub run: Option<PathBuf>,

    /// Only stages with this in their name, or of this number
    #[arg(long, value_name = "STAGE")]
    pub stage: Option<String>,

    /// The story of this task
    #[arg(long, value_name = "NUMBER")]
    pub task: Option<u32>,

    /// Only this node
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,

    /// Directory of the cache; that of the job, or the user's, if not given
    #[arg(long, value_name = "DIR", env = "SVDJOB_CACHE")]
    pub cache: Option<PathBuf>,
}

/// The cache that a manifest names.
fn named(folder: &Path) -> Option<PathBuf> {
    let text = std::fs::read(folder.join(MANIFEST)).ok()?;
    let manifest: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let path = manifest.pointer("/job/resources/cache")?.as_str()?;
    Some(PathBuf::from(path))
}

fn found(args: &ExplainArgs) -> Result<Found, End> {
    let mut caches = vec![args.cache.clone().unwrap_or_else(machine::cache_directory)];
    let mut wanted = None;
    match &args.run {
        Some(folder) if folder.is_dir() => {
            caches.extend(named(folder));
            wanted = Some(std::path::absolute(folder).unwrap_or_else(|_| folder.clone()));
        }
        Some(file) => {
            let job = resolve::load(file, &Overrides::default())?.job;
            caches.push(job.resources.cache);
            wanted = Some(job.directory);
        }
        None => {
            // The job here may have a cache of its own.
            let here = Path::new("factor.toml");
            let job = here
                .exists()
                .then(|| resolve::load(here, &Overrides::default()).ok());
            caches.extend(job.flatten().map(|loaded| loaded.job.resources.cache));
        }
    }
    caches.sort();
    caches.dedup();
    let found = find(&caches, wanted.as_deref())
        .map_err(|why| Failure::job(why.to_string()).help("run the job again with this svdjob"))?;
    let places: Vec<String> = caches.iter().map(|c| c.display().to_string()).collect();
    found.ok_or_else(|| {
        let whose = wanted.map_or_else(String::new, |directory| {
            format!(" whose factors go to {}", directory.display())
        });
        Failure::job(format!(
            "there is no record of a run{whose} in {}",
            places.join(" or ")
        ))
        .help("the newest 16 runs of a cache are kept; --cache names another")
        .into()
    })
}

/// Tells.
///
/// # Errors
/// Job: there is no such record, or it is of another version, or nothing of it was asked for.
pub fn run(args: &ExplainArgs, global: &Global) -> Result<(), End> {
    let found = found(args)?;
    let record = &found.record;
    let question = Question {
        stage: args.stage.clone(),
        task: args.task,
        node: args.node.clone(),
    };
    if let Some(node) = &args.node
        && !record.names.values().any(|name| name == node)
    {
        let names: std::collections::BTreeSet<&str> =
            record.names.values().map(String::as_str).collect();
        let names: Vec<&str> = names.into_iter().collect();
        return Err(
            Failure::job(format!("no node {node} has worked for this run"))
                .help(format!("these have: {}", names.join(", ")))
                .into(),
        );
    }
    if let Some(stage) = &args.stage
        && !record.stages.values().any(|s| question.asks_stage(s))
    {
        return Err(Failure::job(format!(
            "this run has no stage {stage}, or has not come to it"
        ))
        .help("`svdjob explain` without --stage lists them")
        .into());
    }
    if !global.json {
        let width = global.stdout_look().width.clamp(40, 200);
        return Ok(out::text(&render(&found, &question, width))?);
    }
    let stages: Vec<_> = record
        .stages
        .values()
        .filter(|stage| question.asks_stage(stage))
        .collect();
    let names: Vec<_> = record
        .names
        .iter()
        .map(|(agent, name)| json!({ "agent": agent, "name": name }))
        .collect();
    let lives: Vec<_> = record
        .lives
        .iter()
        .filter(|(_, agent, _)| question.asks_node(record, *agent))
        .map(|(at, agent, turn)| json!({ "at": at, "agent": agent, "turn": turn }))
        .collect();
    let tasks: Vec<_> = record
        .tasks
        .values()
        .filter(|task| args.task.is_none_or(|wanted| wanted == task.task.0))
        .filter(|task| stages.iter().any(|stage| stage.stage == task.stage))
        .collect();
    out::object(&json!({
        "record": found.path,
        "running": found.running,
        "run": record.head,
        "end": record.end,
        "names": names,
        "lives": lives,
        "moved": record.moved,
        "stages": stages,
        "tasks": tasks,
        "cut": record.cut,
    }))?;
    Ok(())
}
