//! The plan before the run: chosen for the matrix and what memory holds, or repeated from a run before.

use std::{path::Path, sync::atomic::AtomicBool};

use serde::{Deserialize, Serialize};
use shared::matrix::facts::MatrixFacts;

use super::{
    BASE_BYTES, Reading, RunOptions,
    centred::centred,
    ingested,
    start::{Earlier, Start},
};
use crate::{
    cache::Cache,
    engine::EngineError,
    failure::Failure,
    ingest::Ingested,
    job::{
        overrides::Overrides,
        resolved::{Accuracy, FactorSpec, Job, Wanted},
        size,
    },
    library,
    plan::{Forecast, Method, Plan, Sides},
    report::progress::Observer,
};

/// A plan of a run before, with the wishes that it was made from. It stands in a manifest and in what
/// `svdjob plan --json` writes.
#[derive(Clone, PartialEq, Debug, Deserialize)]
pub struct Repeat {
    plan: Resolved,
    job: Wishes,
    matrix: Shape,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
struct Resolved {
    resolved: Method,
    hash: String,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
struct Wishes {
    factor: FactorSpec,
}

/// As the user has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Shape {
    pub rows: u64,
    pub columns: u64,
    pub nnz: u64,
    pub transposed: bool,
}

impl Shape {
    fn of(ingested: &Ingested) -> Self {
        let facts = &ingested.facts;
        let (rows, columns) = if ingested.transposed {
            (facts.columns, facts.rows)
        } else {
            (facts.rows, facts.columns)
        };
        Self {
            rows,
            columns,
            nnz: facts.nnz,
            transposed: ingested.transposed,
        }
    }
}

impl Repeat {
    /// Reads `manifest.json`, or what `svdjob plan --json` has written.
    ///
    /// # Errors
    /// Job: it is not there, or has no plan.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let name = path.display();
        let text = std::fs::read(path)
            .map_err(|why| Failure::job(format!("the plan {name} cannot be read: {why}")))?;
        serde_json::from_slice(&text).map_err(|why| {
            Failure::job(format!("{name} holds no plan of this release: {why}"))
                .help("give a manifest.json, or what `svdjob plan --json` has written")
        })
    }

    pub fn factor(&self) -> FactorSpec {
        self.job.factor
    }

    /// Flags may say again what the plan says, and nothing else.
    ///
    /// # Errors
    /// Job: names the flag.
    pub fn agrees(&self, flags: &Overrides) -> Result<(), Failure> {
        let plan = &self.job.factor;
        let (iterations, tolerance) = match plan.accuracy {
            Accuracy::PowerIterations(iterations) => (Some(iterations), None),
            Accuracy::Tolerance(tolerance) => (None, Some(tolerance)),
        };
        let energy = match plan.wanted {
            Wanted::Energy(share) => Some(share),
            Wanted::Rank(_) => None,
        };
        fn other<T: PartialEq>(flag: Option<T>, plan: Option<T>) -> bool {
            flag.is_some() && flag != plan
        }
        let contradicting = [
            ("--rank", other(flags.rank, plan.rank())),
            ("--energy", other(flags.energy, energy)),
            (
                "--oversample",
                other(flags.oversample, Some(plan.oversample)),
            ),
            (
                "--tolerance",
                other(flags.tolerance, tolerance.map(|t| t.value)),
            ),
            (
                "--tolerance-kind",
                other(flags.tolerance_kind, tolerance.map(|t| t.kind)),
            ),
            (
                "--max-reads",
                other(flags.max_reads, tolerance.map(|t| t.max_reads)),
            ),
            (
                "--power-iterations",
                other(flags.power_iterations, iterations),
            ),
            ("--method", other(flags.method, Some(plan.method))),
            ("--block", other(flags.block, plan.block)),
            ("--basis", other(flags.basis, plan.basis)),
            ("--precision", other(flags.precision, Some(plan.precision))),
            ("--seed", other(flags.seed, Some(plan.seed))),
            ("--which", other(flags.which, Some(plan.which))),
            ("--center", other(flags.center, Some(plan.center))),
            ("--scale", other(flags.scale, Some(plan.scale))),
        ];
        match contradicting.iter().find(|(_, contradicts)| *contradicts) {
            Some((flag, _)) => Err(Failure::job(format!(
                "{flag} contradicts the plan that is to be repeated"
            ))
            .help("leave out the flag, or --plan")),
            None => Ok(()),
        }
    }

    fn fits(&self, ingested: &Ingested) -> Result<(), Failure> {
        let (plan, here) = (self.matrix, Shape::of(ingested));
        if plan == here {
            return Ok(());
        }
        let told = |shape: Shape| {
            format!(
                "{} x {} with {} entries",
                shape.rows, shape.columns, shape.nnz
            )
        };
        Err(Failure::job(format!(
            "the plan does not fit: it is for a matrix of {}, and this one is {}",
            told(plan),
            told(here)
        ))
        .help("leave out --plan, and one is made for this matrix"))
    }
}

/// What is to be told of how a plan came about.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Planned {
    pub remarks: Vec<String>,
    /// Bytes that the smallest plan of this kind takes on one core.
    pub least: u64,
    /// Columns of basis and block before memory cut them.
    pub cut: Option<(u32, u32)>,
}

pub fn planned(
    job: &Job,
    ingested: &Ingested,
    repeat: Option<&Repeat>,
) -> Result<(Plan, Planned, Option<Start>), Failure> {
    let facts = &ingested.facts;
    let memory = job.resources.memory;
    let refused = |why: shared::farm::work::WorkError| Failure::resources(why.to_string());
    if let Some(repeat) = repeat {
        repeat.fits(ingested)?;
    }
    library::check(facts, &job.factor)?;
    let mut told = Planned::default();
    let mut start = None;
    let method = match repeat {
        Some(repeat) => {
            start = begun_again(job, ingested, &repeat.plan.resolved, &mut told)?;
            repeat.plan.resolved
        }
        None => {
            let mut chosen = Method::choose(facts, &job.factor);
            if let Some(path) = &job.warm_start {
                start = begun(path, ingested, &mut chosen, &mut told)?;
            }
            let fitted = chosen
                .fitted(facts, memory.saturating_sub(BASE_BYTES))
                .map_err(refused)?;
            told.least = BASE_BYTES + fitted.least;
            told.cut = fitted.cut;
            if let (Method::Gram(_), Method::Krylov(_)) = (chosen, fitted.method) {
                told.remarks.push(format!(
                    "A^T A does not fit into memory = {}: a Krylov basis takes its place",
                    size::show(memory)
                ));
            }
            if let (Some((basis, block)), Method::Krylov(now)) = (fitted.cut, fitted.method) {
                let blocks = if now.block < block {
                    format!(", and its blocks from {block} to {}", now.block)
                } else {
                    String::new()
                };
                told.remarks.push(format!(
                    "the basis was cut from {basis} to {} columns{blocks} to fit memory = {}: more reads may be needed",
                    now.basis,
                    size::show(memory)
                ));
            }
            fitted.method
        }
    };
    let side = facts.rows.min(facts.columns);
    if u64::from(method.rank_max()) > side {
        return Err(Failure::job(format!(
            "the plan asks for {} triplets of a matrix that has at most {side}",
            method.rank_max()
        )));
    }
    let sides = Sides::of(job.factor.which, ingested.transposed);
    let inputs = start.as_ref().map(|start| start.inputs.clone());
    let plan = Plan::of(facts, method, sides, inputs).map_err(refused)?;
    if let Some(repeat) = repeat {
        told.least = BASE_BYTES + plan.memory_needed(1);
        if repeat.plan.hash != plan.hash.to_string() {
            told.remarks
                .push("the plan was made for a matrix of this shape with other entries".to_owned());
        }
    }
    Ok((plan, told, start))
}

/// Lets a method begin with factors of an earlier run, if it begins with anything.
fn begun(
    path: &Path,
    ingested: &Ingested,
    method: &mut Method,
    told: &mut Planned,
) -> Result<Option<Start>, Failure> {
    let spec = match method {
        Method::Krylov(spec) => spec,
        Method::Power { .. } => {
            return Err(Failure::job(
                "warm_start with power_iterations is not possible: so many passes from a random sketch are what is asked for",
            )
            .help("ask for a tolerance in place of power_iterations, or leave out warm_start"));
        }
        Method::Exact { .. } | Method::Gram(_) => {
            told.remarks.push(
                "warm_start is not used: the exact method and that of A^T A need nothing to begin with"
                    .to_owned(),
            );
            return Ok(None);
        }
    };
    let mut earlier = Earlier::open(path, ingested)?;
    told.remarks.extend(earlier.remark.take());
    let columns = spec.takes(earlier.columns(), ingested.facts.columns);
    let (start, given) = earlier.start(columns)?;
    spec.start = Some(given);
    Ok(Some(start))
}

/// The factors that a plan to be repeated begins with.
fn begun_again(
    job: &Job,
    ingested: &Ingested,
    method: &Method,
    told: &mut Planned,
) -> Result<Option<Start>, Failure> {
    let given = match method {
        Method::Krylov(spec) => spec.start,
        Method::Power { .. } | Method::Exact { .. } | Method::Gram(_) => None,
    };
    match (given, &job.warm_start) {
        (None, None) => Ok(None),
        (None, Some(_)) => {
            told.remarks.push(
                "warm_start is not used: the plan that is repeated begins without it".to_owned(),
            );
            Ok(None)
        }
        (Some(_), None) => Err(Failure::job(
            "the plan begins with factors of an earlier run, and the job names none",
        )
        .help("name them: warm_start in the job file, or --warm-start")),
        (Some(given), Some(path)) => {
            let earlier = Earlier::open(path, ingested)?;
            let wrong = || {
                Failure::job(format!(
                    "the plan began with other factors than those in {}",
                    path.display()
                ))
                .help("give the factors that it began with, or leave out --plan")
            };
            if earlier.columns() < given.columns {
                return Err(wrong());
            }
            let (start, here) = earlier.start(given.columns)?;
            if here == given {
                Ok(Some(start))
            } else {
                Err(wrong())
            }
        }
    }
}

pub fn too_little(memory: u64, facts: &MatrixFacts, plan: &Plan, least: u64) -> Failure {
    Failure::resources(format!(
        "memory = {} is too little for rank {} of this {} x {} matrix: it needs {}",
        size::show(memory),
        plan.method.rank_max(),
        facts.rows,
        facts.columns,
        size::show(least)
    ))
    .help(format!(
        "set memory = \"{} MiB\" or more, or ask for a smaller rank",
        least.div_ceil(1 << 20)
    ))
}

/// What a run would do.
pub struct Outlook {
    pub plan: Plan,
    pub planned: Planned,
    pub matrix: Shape,
    pub forecast: Forecast,
    /// Cores that memory feeds.
    pub cores: usize,
    /// Of the process, with so many cores.
    pub memory_needed: u64,
    /// All row blocks stay in memory between reads.
    pub kept_in_memory: bool,
}

/// Prepares the input where that is not done yet, and plans. Nobody else is asked.
///
/// # Errors
/// As of a run.
pub fn outlook(
    job: &Job,
    options: &RunOptions,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Outlook, Failure> {
    let cache = Cache::open(&job.resources.cache, job.resources.cache_max)?;
    let reading = Reading {
        cache: &cache,
        fresh: options.fresh,
        allow_transpose: true,
    };
    let ingested = ingested(&job.matrix, &job.resources, &reading, observer, stop)?;
    let ingested =
        centred(job, ingested, &reading, observer, stop).map_err(|error| match error {
            EngineError::Failed(failure) => failure,
            EngineError::Block(why) => Failure::resources(why.to_string()),
        })?;
    let (plan, planned, _) = planned(job, &ingested, options.repeat.as_ref())?;
    let memory = job.resources.memory;
    let needed = |cores| BASE_BYTES + plan.memory_needed(cores);
    if needed(1) > memory {
        return Err(too_little(memory, &ingested.facts, &plan, planned.least));
    }
    let cores = super::cores_fed(job, &plan);
    let first = ingested
        .facts
        .blocks
        .first()
        .ok_or_else(|| Failure::data("the matrix has no entries"))?;
    let broken = |why: String| Failure::resources(why);
    let block = ingested
        .inputs
        .load(&first.hash)
        .map_err(|why| broken(why.to_string()))?;
    let forecast = plan
        .forecast(&block, cores)
        .map_err(|why| broken(why.to_string()))?;
    Ok(Outlook {
        matrix: Shape::of(&ingested),
        memory_needed: needed(cores),
        kept_in_memory: needed(cores) + forecast.blocks_bytes <= memory,
        plan,
        planned,
        forecast,
        cores,
    })
}
