//! `svdjob plan`.

use std::path::PathBuf;

use serde_json::json;

use super::{End, Global, out, run, say, signals};
use crate::job::overrides::Overrides;
use crate::job::resolve;
use crate::job::resolved::{self, Job, ToleranceKind, Wanted};
use crate::plan::Method;
use crate::report::numbers::{about, count, duration, wrap};
use crate::report::progress::{self, Event};
use crate::run::{Outlook, RunOptions, outlook};
use shared::size;
use shared::svd::Precision;

/// Show what a run would do and cost, without running it.
///
/// Reads the input and keeps it prepared in the cache, as a run does, chooses the method, and measures for a moment how
/// fast this machine multiplies. Takes the flags of `run`; asks no node. `svdjob run --plan` repeats what --json writes.
#[derive(clap::Args, Clone, Debug)]
#[command(after_long_help = super::EXIT_CODES)]
pub struct PlanArgs {
    /// The job file
    #[arg(value_name = "FILE", default_value = "factor.toml")]
    pub file: PathBuf,

    /// Read the input anew, even if it is found prepared in the cache
    #[arg(long)]
    pub fresh: bool,

    /// Look at this plan, as `run` would repeat it, instead of choosing one
    #[arg(long, value_name = "PLAN")]
    pub plan: Option<PathBuf>,

    #[command(flatten)]
    pub overrides: Overrides,
}

/// Bytes a second of a link between machines, where nothing better is known.
const LINK: f64 = 100e6;
/// A job of so few seconds is over before it would be shared out.
const SHORT: f64 = 10.0;
/// Where the second column begins.
const KEY: usize = 11;

/// Plans.
///
/// # Errors
/// See the exit codes.
pub fn run(args: &PlanArgs, global: &Global) -> Result<(), End> {
    let mut loaded = resolve::load(&args.file, &args.overrides)?;
    loaded.look()?;
    let repeat = run::repeated(args.plan.as_deref(), &args.overrides, &mut loaded)?;
    let stop = signals::stop_flag()?;
    for warning in &loaded.warnings {
        say(&format!("warning: {warning}\n"));
    }
    let mut observer = progress::observer(global.quiet, global.logs());
    let options = RunOptions {
        fresh: args.fresh,
        repeat,
    };
    let result = outlook(&loaded.job, &options, observer.as_mut(), &stop);
    observer.observe(Event::End);
    drop(observer);
    let outlook = result?;
    for remark in &outlook.planned.remarks {
        say(&format!("warning: {remark}\n"));
    }
    let repeats = options.repeat.is_some();
    if global.json {
        let mut warnings = loaded.warnings;
        warnings.extend(outlook.planned.remarks.iter().cloned());
        return Ok(out::object(&object(
            &loaded.job,
            &outlook,
            &warnings,
            repeats,
        ))?);
    }
    let width = global.stdout_look().width;
    let mut text = String::new();
    for (key, what) in lines(&loaded.job, &outlook, repeats) {
        for (at, line) in wrap(&what, width.saturating_sub(KEY)).iter().enumerate() {
            let key = if at == 0 { key } else { "" };
            text.push_str(format!("{key:<KEY$}{line}").trim_end());
            text.push('\n');
        }
    }
    Ok(out::text(&text)?)
}

fn object(job: &Job, outlook: &Outlook, warnings: &[String], repeats: bool) -> serde_json::Value {
    let plan = &outlook.plan;
    json!({
        "status": "planned",
        "code": 0,
        "svdjob": env!("CARGO_PKG_VERSION"),
        "job": job,
        "matrix": outlook.matrix,
        "plan": {
            "resolved": plan.method,
            "hash": plan.hash.to_string(),
            "why": why(job, outlook, repeats),
        },
        "forecast": outlook.forecast,
        "cores": outlook.cores,
        "memory_needed": outlook.memory_needed,
        "kept_in_memory": outlook.kept_in_memory,
        "one_machine_is_enough": one_machine(outlook),
        "warnings": warnings,
    })
}

fn name(method: &Method) -> &'static str {
    match method {
        Method::Power { .. } => "power iterations from a random sketch",
        Method::Krylov(_) => "block Krylov with thick restart",
        Method::Gram(_) => "eigenvectors of A^T A",
        Method::Exact { .. } => "exact: the whole decomposition, by QR of the matrix itself",
    }
}

fn why(job: &Job, outlook: &Outlook, repeats: bool) -> String {
    if repeats {
        return "the plan of a run before is repeated".into();
    }
    let side = outlook.matrix.rows.min(outlook.matrix.columns);
    match (&outlook.plan.method, job.factor.method) {
        (Method::Power { .. }, _) => "the job counts power iterations".into(),
        (Method::Krylov(_), resolved::Method::Krylov)
        | (Method::Gram(_), resolved::Method::Gram)
        | (Method::Exact { .. }, resolved::Method::Exact) => "the job asks for it".into(),
        (Method::Gram(_), _) => format!(
            "with a shorter side of {}, that takes less time than the reads of a Krylov basis",
            count(side)
        ),
        (Method::Krylov(_), _) => format!(
            "a tolerance is to be reached, and the shorter side, {}, has room for a basis",
            count(side)
        ),
        (Method::Exact { .. }, _) => format!(
            "the shorter side, {}, is too short for a basis of the wanted triplets and some blocks",
            count(side)
        ),
    }
}

/// Why other machines would not help, if they would not.
fn one_machine(outlook: &Outlook) -> Option<String> {
    let forecast = &outlook.forecast;
    let most = f64::from(forecast.reads.unwrap_or(forecast.reads_max)) * forecast.seconds_a_read;
    if most < SHORT {
        return Some(format!("all reads take about {} at most", duration(most)));
    }
    let bytes = forecast.link_bytes_in_a_read + forecast.link_bytes_out_a_read;
    let link = bytes as f64 / LINK;
    (link > forecast.seconds_a_read).then(|| {
        format!(
            "what a node gets and gives a read takes {} at 100 MB/s, the read itself {}",
            duration(link),
            duration(forecast.seconds_a_read)
        )
    })
}

fn lines(job: &Job, outlook: &Outlook, repeats: bool) -> Vec<(&'static str, String)> {
    let (forecast, matrix) = (&outlook.forecast, outlook.matrix);
    let method = &outlook.plan.method;
    let precision = match method {
        Method::Exact { precision, .. } => match precision {
            Precision::F32 => "f64, the factors f32",
            Precision::F64 => "f64",
        },
        Method::Gram(_) => match method.precision() {
            Precision::F32 => "f64, the factors f32",
            Precision::F64 => "f64",
        },
        Method::Krylov(_) => match method.precision() {
            Precision::F32 => {
                "f32 while the basis grows, f64 in the basis and from the verification on; factors f32"
            }
            Precision::F64 => "f64",
        },
        Method::Power { .. } => match method.precision() {
            Precision::F32 => "f32",
            Precision::F64 => "f64",
        },
    };
    let triplets = match job.factor.wanted {
        Wanted::Rank(rank) => format!("{} triplets", count(rank.into())),
        Wanted::Energy(share) => format!(
            "as many triplets as explain {} % of the sum of squares",
            (share * 100.0) as f32
        ),
    };
    let wanted = match *method {
        Method::Krylov(spec) | Method::Gram(spec) => {
            let kind = match spec.tolerance.kind {
                ToleranceKind::Residual => "every residual",
                ToleranceKind::Sigma => "the error of every sigma",
            };
            format!("{triplets}, {kind} below {:e}", spec.tolerance.value)
        }
        Method::Power { .. } | Method::Exact { .. } => triplets,
    };
    let columns = match *method {
        Method::Krylov(spec) => format!(
            "{}blocks of {}, a basis of at most {}, {} to watch for missed directions",
            match spec.start {
                Some(given) => format!("{} of an earlier run to begin with, ", given.columns),
                None => String::new(),
            },
            count(spec.first().into()),
            count(spec.basis.into()),
            spec.guard
        ),
        Method::Gram(spec) => format!(
            "all {} of A^T A, then {}, {} to watch for missed directions",
            count(matrix.rows.min(matrix.columns)),
            count(forecast.basis.into()),
            spec.guard
        ),
        Method::Power { width, .. } => format!("a sketch of {}", count(width.into())),
        Method::Exact { .. } => format!("all {}", count(forecast.basis.into())),
    };
    let reads = match forecast.reads {
        Some(reads) => format!("{reads} of the whole matrix"),
        None => format!(
            "at most {}; how many depends on the spectrum, which nobody knows yet",
            forecast.reads_max
        ),
    };
    let kept = if outlook.kept_in_memory {
        "the blocks are kept in memory"
    } else {
        "the blocks are read from the cache in every pass"
    };
    let cores = match outlook.cores {
        1 => "1 core".to_owned(),
        cores => format!("{cores} cores"),
    };
    let flops = (forecast.flops_a_read + forecast.dense_flops_a_read) as f64;
    let mut lines = vec![
        (
            "Matrix",
            format!(
                "{} rows x {} columns, {} entries{}",
                count(matrix.rows),
                count(matrix.columns),
                count(matrix.nnz),
                if matrix.transposed {
                    "; worked on as its transpose"
                } else {
                    ""
                }
            ),
        ),
        ("Wanted", wanted),
        (
            "Method",
            format!("{}, because {}", name(method), why(job, outlook, repeats)),
        ),
        ("Columns", columns),
        ("Precision", precision.into()),
        ("Reads", reads),
        (
            "A read",
            format!(
                "{} operations, {} of them with the matrix; {} of blocks; about {} on {cores}, by what was measured \
                 on this machine just now",
                about(flops),
                about(forecast.flops_a_read as f64),
                size::show(forecast.cache_bytes_a_read),
                duration(forecast.seconds_a_read)
            ),
        ),
        (
            "Memory",
            format!(
                "at most {} of {}; {kept}",
                size::show(outlook.memory_needed),
                size::show(job.resources.memory)
            ),
        ),
        (
            "With nodes",
            format!(
                "a read sends each {} and gets back {}",
                size::show(forecast.link_bytes_in_a_read),
                size::show(forecast.link_bytes_out_a_read)
            ),
        ),
    ];
    if let Some(reason) = one_machine(outlook) {
        lines.push(("", format!("one machine is enough: {reason}")));
    }
    lines
}
