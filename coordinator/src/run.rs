//! The run itself: input to blocks, blocks to factors, factors to files.

mod centred;
mod farm;
mod files;
mod inputs;
mod planned;
mod start;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Instant, SystemTime},
};

use serde_json::json;
use shared::{
    farm::{bytes::Bytes, graph::Graph},
    linalg::simd,
    matrix::facts::MatrixFacts,
    platform,
    svd::SvdWork,
};

pub use self::planned::{Outlook, Repeat, outlook};
use self::{
    files::Files,
    inputs::FromCache,
    planned::{planned, too_little},
    start::WithStart,
};
use crate::{
    cache::Cache,
    engine::{self, EngineError, Hands, Place, Workers},
    factors::Quality,
    failure::Failure,
    farm::{Inputs, Progress, RunReport, remote::Farm},
    ingest::{self, IngestOptions, IngestProgress, Ingested},
    job::{
        resolved::{Job, MatrixSpec, Resources},
        size,
    },
    library,
    output::{certificate::Certificate, labels, manifest, staging::Staging},
    plan::{Mark, Plan},
    record,
    report::{
        nearest,
        numbers::count,
        progress::{Event, Observer, Pass, Stage, Unit},
        summary::{Centred, Orthogonality, Phase, Rank, Summary, peak_memory},
    },
    scheduler::{Scheduler, SchedulerConfig},
    spool::Spool,
};

/// How to go about a job, beside what the job says.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct RunOptions {
    /// Read the input anew even if it is found prepared in the cache, and forget what a run before has kept.
    pub fresh: bool,
    /// Repeat this plan instead of choosing one. The job's wishes are those of the plan already.
    pub repeat: Option<Repeat>,
}

/// Bytes of this process that neither grow with the matrix nor are counted: code, stacks, buffers of files.
pub(crate) const BASE_BYTES: u64 = 32 << 20;
/// Tries when a cached block turns out damaged.
pub(crate) const TRIES: u32 = 3;

/// Does the job and leaves the factors in its directory. `stop` is looked at often; once it is set, the run ends with
/// [`Failure::interrupted`] and leaves nothing behind.
///
/// # Errors
/// As told by the code of the failure.
pub fn run(
    job: &Job,
    options: &RunOptions,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Summary, Failure> {
    let started = Instant::now();
    let cache = Cache::open(&job.resources.cache, job.resources.cache_max)?;
    let mut warnings = Vec::new();
    let mut fresh = options.fresh;
    for attempt in 0..TRIES {
        // First of all, whether there is a place for the result.
        let staging = Staging::open(&job.directory, 0)?;
        let reading = Reading {
            cache: &cache,
            fresh,
            allow_transpose: true,
        };
        let ingested = ingested(&job.matrix, &job.resources, &reading, observer, stop)?;
        let blocks = ingested.inputs.clone();
        let keeping = Keeping {
            spools: cache.spools(),
            records: cache.records(),
            forget: options.fresh && attempt == 0,
        };
        let repeat = options.repeat.as_ref();
        let ended = match centred::centred(job, ingested, &reading, observer, stop) {
            Ok(ingested) => factored(job, ingested, repeat, staging, &keeping, observer, stop)?,
            Err(error) => Ended::broken(error)?,
        };
        match ended {
            Ended::Done(mut summary) => {
                summary.seconds = started.elapsed().as_secs_f64();
                summary.peak_memory = peak_memory();
                summary.warnings.splice(0..0, warnings);
                return Ok(*summary);
            }
            Ended::Damaged(why) => {
                let warning = format!("{why}; the input is prepared anew");
                observer.observe(Event::Warning(warning.clone()));
                warnings.push(warning);
                cache.forget(&blocks)?;
                fresh = true;
            }
        }
    }
    Err(damaged_again(&job.resources))
}

pub(crate) fn damaged_again(resources: &Resources) -> Failure {
    Failure::resources(format!(
        "blocks in the cache {} were damaged again after {TRIES} tries",
        resources.cache.display()
    ))
    .help("the disk or the memory may be failing; try another place with --cache")
}

/// How an input is brought into the cache.
pub(crate) struct Reading<'a> {
    pub cache: &'a Cache,
    pub fresh: bool,
    pub allow_transpose: bool,
}

/// Brings an input into the cache or finds it there, and tells how far that is.
pub(crate) fn ingested(
    matrix: &MatrixSpec,
    resources: &Resources,
    reading: &Reading<'_>,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Ingested, Failure> {
    let options = IngestOptions {
        cache: reading.cache,
        memory: resources.memory,
        cores: resources.cores,
        fresh: reading.fresh,
        allow_transpose: reading.allow_transpose,
    };
    let name = matrix.path.file_name().map_or_else(
        || matrix.path.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    );
    let mut at = None;
    let ingested = ingest::ingest(
        matrix,
        &options,
        &mut |progress: IngestProgress| {
            if at != Some(progress.stage) {
                at = Some(progress.stage);
                observer.observe(Event::Stage(ingest_stage(&name, &progress)));
            }
            observer.observe(Event::Done(match progress.stage {
                ingest::Stage::Reading => progress.bytes_read,
                ingest::Stage::Sorting | ingest::Stage::Writing => progress.groups_done as u64,
            }));
        },
        stop,
    )?;
    if ingested.reused {
        observer.observe(Event::Stage(Stage {
            title: format!("{name} is in the cache, nothing to read"),
            unit: Unit::Tasks,
            total: None,
            pass: None,
        }));
    }
    Ok(ingested)
}

fn ingest_stage(name: &str, progress: &IngestProgress) -> Stage {
    let (title, unit, total) = match progress.stage {
        ingest::Stage::Reading => (format!("reading {name}"), Unit::Bytes, progress.bytes_total),
        ingest::Stage::Sorting => ("sorting".to_owned(), Unit::Tasks, progress.groups as u64),
        ingest::Stage::Writing => (
            "writing blocks".to_owned(),
            Unit::Tasks,
            progress.groups as u64,
        ),
    };
    Stage {
        title,
        unit,
        total: Some(total),
        pass: None,
    }
}

/// How the numerical part ended.
enum Ended {
    Done(Box<Summary>),
    /// A block of the cache is missing or damaged.
    Damaged(String),
}

impl Ended {
    fn broken(error: EngineError) -> Result<Self, Failure> {
        match error {
            EngineError::Failed(failure) => Err(failure),
            EngineError::Block(why) if inputs::is_cured_by_ingest(&why) => {
                Ok(Self::Damaged(why.to_string()))
            }
            EngineError::Block(why) => Err(Failure::resources(why.to_string())),
        }
    }
}

fn factored(
    job: &Job,
    ingested: Ingested,
    repeat: Option<&Repeat>,
    mut staging: Staging,
    keeping: &Keeping,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Ended, Failure> {
    let facts = &ingested.facts;
    let (plan, planned, start) = planned(job, &ingested, repeat)?;
    for remark in &planned.remarks {
        observer.observe(Event::Warning(remark.clone()));
    }
    files::check_space(&staging, facts, &plan)?;
    let spool = keeping.open(&plan);
    let farm = farm::gather(job, &plan, spool.is_some(), observer, stop)?;
    let hands = match &farm {
        Some(_) => None,
        None => Some(hands(job, facts, &plan, planned.least)?),
    };
    let place = Place {
        workers: match (&farm, &hands) {
            (Some(farm), _) => Workers::Farm(farm),
            (None, Some(hands)) => Workers::Here(hands),
            (None, None) => unreachable!("one of the two is there"),
        },
        spool,
        record: Some(record::Place {
            folder: keeping.records.clone(),
            head: record::Head {
                version: record::VERSION,
                release: env!("CARGO_PKG_VERSION").to_owned(),
                started_ms: now_ms(),
                directory: job.directory.clone(),
                input: job.matrix.path.clone(),
                plan: plan.hash.to_string(),
                farm: farm.is_some(),
            },
        }),
    };
    let resumed = place.spool.as_ref().and_then(|spool| resumes(&plan, spool));
    if let Some(resumed) = &resumed {
        observer.observe(Event::Note(resumed.clone()));
    }
    let mut blocks: Arc<dyn Inputs> = Arc::new(FromCache(ingested.inputs.clone()));
    if let Some(start) = start {
        blocks = Arc::new(WithStart { blocks, start });
    }

    staging.supersede(files::NAMES);
    let mut stages = Stages::new(&plan, observer);
    let mut left = farm::Left::default();
    let mut files = Files::new(&mut staging, facts, &plan, ingested.transposed);
    let ran = engine::factor(
        &plan,
        ingested.transposed,
        Arc::clone(&blocks),
        &place,
        &mut files,
        &mut |progress, marks| {
            if let Some(farm) = &farm {
                stages.notes(farm.news());
                let now = Instant::now();
                if let Some(event) = left.tell(now, progress.agents) {
                    stages.observer.observe(event);
                }
                if left.is_over(now, job.farm.otherwise) {
                    stop.store(true, Ordering::Relaxed);
                }
            }
            stages.tell(progress, marks);
        },
        stop,
    );
    stages.notes(farm.as_ref().map_or_else(Vec::new, Farm::news));
    if ran.is_err() && left.is_over(Instant::now(), job.farm.otherwise) {
        return Err(farm::left());
    }
    let (quality, report) = match ran {
        Ok(done) => done,
        Err(error) => return Ended::broken(error),
    };
    files.finish(&quality)?;
    if let Some(uncentred) = &ingested.centred {
        files::write_centring(&mut staging, &uncentred.centring)?;
    }

    let (users_rows, users_columns) = if ingested.transposed {
        (&ingested.column_labels, &ingested.row_labels)
    } else {
        (&ingested.row_labels, &ingested.column_labels)
    };
    let (with_u, with_v) = job.factor.which.written();
    for (name, of, wanted) in [
        ("rows.csv", users_rows, with_u),
        ("columns.csv", users_columns, with_v),
    ] {
        if !wanted {
            continue;
        }
        labels::write(
            &mut staging,
            name,
            (0..of.len()).map(|i| Ok(of.bytes(i).into_owned())),
        )?;
    }
    let turned = ingested.transposed;
    let certificate = library::certificate(&quality, &job.factor, facts, turned);
    certificate.write(&mut staging)?;
    let mut summary = summary(job, &ingested, &quality, certificate, &report);
    if let Some(farm) = &farm {
        summary.warnings.extend(farm::unlike(&farm.members()));
    }
    summary.farm = farm
        .as_ref()
        .map(|farm| farm::summary(&farm.members(), &report));
    summary.resumed = resumed;
    summary.warnings.extend(planned.remarks.iter().cloned());
    if !job.report.nearest.is_empty() && with_v {
        let counts = match &ingested.centred {
            Some(uncentred) => {
                let blocks = FromCache(uncentred.inputs.clone());
                inputs::column_counts(&blocks, &uncentred.facts, ingested.transposed)
            }
            None => inputs::column_counts(blocks.as_ref(), facts, ingested.transposed),
        };
        let counts = counts.map_err(|why| Failure::resources(why.to_string()))?;
        let (found, warnings) = nearest::report(
            &job.report,
            &staging.path(""),
            &quality.sigma,
            Some(&counts),
        )?;
        summary.nearest = found;
        summary.warnings.extend(warnings);
    }
    manifest::write(
        &mut staging,
        job,
        &described(&plan, facts, &quality, &report, planned.cut),
        &summary,
        facts.frobenius_squared(),
        &format!("{} ({})", manifest::isa(), simd::isa().name()),
    )?;
    // The last moment at which an interruption leaves the old files.
    if stop.load(std::sync::atomic::Ordering::Relaxed) {
        return Err(Failure::interrupted());
    }
    staging.commit()?;
    if let Some(spool) = &place.spool {
        spool.remove();
    }
    Ok(Ended::Done(Box::new(summary)))
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// Where results are kept for a run after this one, should it not end well.
struct Keeping {
    spools: PathBuf,
    records: PathBuf,
    /// Forget what a run before has kept.
    forget: bool,
}

impl Keeping {
    /// No spool is no failure: the run only cannot be gone on with.
    fn open(&self, plan: &Plan) -> Option<Arc<Spool>> {
        match Spool::open(&self.spools, plan.hash) {
            Ok(Some(spool)) => {
                if self.forget {
                    spool.clear();
                }
                Some(Arc::new(spool))
            }
            Ok(None) => {
                tracing::info!("another run of the same job keeps its results; this one does not");
                None
            }
            Err(why) => {
                tracing::warn!("results are not kept for another run: {why}");
                None
            }
        }
    }
}

/// Where a run goes on that was broken off, if anything of it is kept.
fn resumes(plan: &Plan, spool: &Spool) -> Option<String> {
    let kept = spool.kept();
    if kept.is_empty() {
        return None;
    }
    let config = SchedulerConfig::default();
    let graph = grown(plan, spool);
    let scheduler = Scheduler::new(graph, plan.hash, config, Some(&kept), &kept);
    let mut left = scheduler.stages().iter().filter(|s| !s.is_done());
    let next = left.clone().find(|s| is_pass(&s.name));
    let at = next.or_else(|| left.next()).map_or("the end", |s| &s.name);
    Some(format!(
        "resuming at {at}, {} tasks kept by a run before",
        kept.len()
    ))
}

fn cores_fed(job: &Job, plan: &Plan) -> usize {
    (1..=job.resources.cores.max(1))
        .rev()
        .find(|&cores| BASE_BYTES + plan.memory_needed(cores) <= job.resources.memory)
        .unwrap_or(1)
}

/// As many of the job's cores as its memory feeds. `least`: what the smallest plan takes.
fn hands(job: &Job, facts: &MatrixFacts, plan: &Plan, least: u64) -> Result<Hands, Failure> {
    let memory = job.resources.memory;
    if BASE_BYTES + plan.memory_needed(1) > memory {
        return Err(too_little(memory, facts, plan, least));
    }
    let cores = cores_fed(job, plan);
    // What tasks have open is not counted by the agent's store, so it is kept back.
    let open = plan.memory_of_tasks(cores);
    // Nor is what ingest has left behind.
    platform::give_back_memory();
    let base = platform::resident_bytes().map_or(BASE_BYTES, |now| now.max(BASE_BYTES));
    let freed = platform::freed_worth_keeping(memory);
    platform::keep_freed(freed as usize);
    Ok(Hands::one(
        cores,
        memory.saturating_sub(base + open + freed),
    ))
}

fn summary(
    job: &Job,
    ingested: &Ingested,
    quality: &Quality,
    certificate: Certificate,
    report: &RunReport,
) -> Summary {
    let facts = &ingested.facts;
    let (rows, columns) = if ingested.transposed {
        (facts.columns, facts.rows)
    } else {
        (facts.rows, facts.columns)
    };
    let mut phases = vec![Phase {
        name: "input".to_owned(),
        seconds: ingested.seconds,
    }];
    let mut pass_seconds = 0.0;
    for stage in &report.stages {
        let seconds = stage.wall_us() as f64 / 1e6;
        if is_pass(&stage.name) {
            pass_seconds += seconds;
        }
        phases.push(Phase {
            name: stage.name.clone(),
            seconds,
        });
    }
    Summary {
        rows,
        columns,
        nnz: facts.nnz,
        transposed: ingested.transposed,
        rank: Rank {
            requested: quality.requested,
            got: quality.sigma.len() as u32,
        },
        explained: certificate.explained.clone(),
        sigma: quality.sigma.clone(),
        residuals: certificate.residual.clone().unwrap_or_default(),
        which: job.factor.which,
        orthogonality: Orthogonality {
            u: certificate.orthogonality_u,
            v: certificate.orthogonality_v,
        },
        passes: quality.reads,
        pass_seconds,
        phases,
        ingest_reused: ingested.reused,
        directory: job.directory.clone(),
        certificate: Some(certificate),
        centring: ingested
            .centred
            .as_ref()
            .map(|uncentred| Centred::of(&uncentred.centring)),
        ..Summary::default()
    }
}

/// Whether a stage reads the whole matrix.
fn is_pass(stage: &str) -> bool {
    stage.contains("pass")
}

/// The resolved plan, as the manifest keeps it.
fn described(
    plan: &Plan,
    facts: &MatrixFacts,
    quality: &Quality,
    report: &RunReport,
    cut: Option<(u32, u32)>,
) -> serde_json::Value {
    json!({
        "resolved": plan.method,
        "before_memory_cut": cut.map(|(basis, block)| json!({ "basis": basis, "block": block })),
        "hash": plan.hash.to_string(),
        "scale_exponent": plan.scale(),
        "blocks": facts.blocks.len(),
        "values": facts.encoding.kind(),
        "tasks": report.tasks,
        "reads": quality.reads,
        "marks": quality.marks,
    })
}

/// A stage's name, with how good the triplets were when last looked at.
fn titled(name: &str, marks: &[Mark]) -> String {
    match marks.last().and_then(|mark| mark.worst) {
        Some(worst) if worst.is_finite() => format!("{name}, worst error so far {worst:.1e}"),
        Some(_) | None => name.to_owned(),
    }
}

/// The plan as far as a run before had come, by what it has kept.
fn grown(plan: &Plan, spool: &Spool) -> Arc<Graph<SvdWork>> {
    let mut graph = Arc::clone(&plan.graph);
    let Some(mut pilot) = plan.pilot() else {
        return graph;
    };
    let mut next = 0;
    while let Some(&task) = graph.deliveries.get(next) {
        next += 1;
        let told: Option<Bytes> = spool.read(task, None);
        if let Some(Ok(Some(longer))) = told.map(|told| pilot.take(task, &told)) {
            graph = longer;
        }
    }
    graph
}

/// Turns the farm's progress into events for people.
struct Stages<'a> {
    /// Full reads of A, where their number is known.
    reads: Option<u32>,
    at: Option<usize>,
    observer: &'a mut dyn Observer,
}

impl<'a> Stages<'a> {
    fn new(plan: &Plan, observer: &'a mut dyn Observer) -> Self {
        Self {
            reads: plan.reads(),
            at: None,
            observer,
        }
    }

    fn notes(&mut self, lines: Vec<String>) {
        for line in lines {
            self.observer.observe(Event::Note(line));
        }
    }

    fn tell(&mut self, progress: &Progress, marks: &[Mark]) {
        let Some(at) = progress.stages.iter().position(|s| !s.is_done()) else {
            return;
        };
        let stage = &progress.stages[at];
        if self.at != Some(at) {
            self.at = Some(at);
            let passes = progress.stages[..=at].iter().filter(|s| is_pass(&s.name));
            let number = passes.count() as u32;
            self.observer.observe(Event::Stage(Stage {
                title: titled(&stage.name, marks),
                unit: Unit::Tasks,
                total: Some(stage.tasks),
                pass: is_pass(&stage.name).then_some(Pass {
                    number,
                    of: self.reads,
                }),
            }));
        }
        self.observer.observe(Event::Done(stage.tasks_done));
    }
}

/// What the head of the input tells, as pairs of a word and what it is: size, fields, header.
///
/// # Errors
/// Data: the input is not there or not as the job says.
pub fn head(job: &Job) -> Result<Vec<(String, String)>, Failure> {
    let head = ingest::peek(&job.matrix)?;
    if let Some(problem) = head.problems.into_iter().next() {
        return Err(problem);
    }
    Ok(vec![
        (
            "Size".to_owned(),
            format!(
                "{}, about {} lines",
                size::show(head.file_bytes),
                count(head.lines_about)
            ),
        ),
        (
            "Fields".to_owned(),
            format!("{}, separated by {}", head.fields, head.delimiter.name()),
        ),
        (
            "Header".to_owned(),
            head.header
                .map_or_else(|| "none".to_owned(), |names| names.join(", ")),
        ),
    ])
}
