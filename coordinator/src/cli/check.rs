//! `svdjob check`.

use std::path::PathBuf;

use serde_json::json;
use shared::net::discovery::HostPort;

use super::{End, Global, out, say};
use crate::job::look::right_factor;
use crate::job::overrides::Overrides;
use crate::job::resolve;
use crate::job::resolved::{
    Accuracy, Center, Duplicates, FactorSpec, Farm, Field, Job, Method, Otherwise, Precision,
    Scale, ToleranceKind, Wanted, Which,
};
use crate::job::span;
use crate::report::numbers::{count, table};
use shared::size;

/// Say whether a job file is right, without running it.
///
/// Reports every problem of the file at once, reads the head of the input, and shows the job with all defaults filled
/// in. Takes the flags of `run`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_long_help = super::EXIT_CODES)]
pub struct CheckArgs {
    /// The job file
    #[arg(value_name = "FILE", default_value = "factor.toml")]
    pub file: PathBuf,

    #[command(flatten)]
    pub overrides: Overrides,
}

/// Checks.
///
/// # Errors
/// See the exit codes.
pub fn run(args: &CheckArgs, global: &Global) -> Result<(), End> {
    let loaded = resolve::load(&args.file, &args.overrides)?;
    loaded.look()?;
    let head = crate::run::head(&loaded.job)?;
    for warning in &loaded.warnings {
        say(&format!("warning: {warning}\n"));
    }
    if global.json {
        let head: serde_json::Map<_, _> = head
            .into_iter()
            .map(|(word, what)| (word, what.into()))
            .collect();
        out::object(&json!({
            "status": "right",
            "code": 0,
            "job": loaded.job,
            "input": head,
            "warnings": loaded.warnings,
        }))?;
        return Ok(());
    }
    let mut text = format!("{} is right.\n\n", args.file.display());
    for line in table(&lines(&loaded.job, head), &[0, 1]) {
        text.push_str(&line);
        text.push('\n');
    }
    out::text(&text)?;
    Ok(())
}

fn farm(farm: &Farm) -> String {
    if farm.embedded {
        return "none: works in this process alone".into();
    }
    let mut parts = Vec::new();
    if farm.discover {
        parts.push(match &farm.interface {
            Some(name) => format!("nodes found on {name}"),
            None => "nodes found on the network".to_owned(),
        });
    }
    parts.extend(farm.nodes.iter().map(HostPort::to_string));
    parts.extend(farm.ssh.iter().map(|host| format!("{host} by SSH")));
    if parts.is_empty() {
        parts.push("nobody".into());
    }
    let otherwise = match farm.otherwise {
        Otherwise::Embedded => "work in this process alone",
        Otherwise::Fail => "fail",
    };
    format!(
        "{}; with fewer than {} after {}: {otherwise}",
        parts.join(", "),
        farm.at_least,
        span::show(farm.window)
    )
}

fn triplets(factor: &FactorSpec) -> String {
    let wanted = match factor.wanted {
        Wanted::Rank(1) => "1 triplet".into(),
        Wanted::Rank(rank) => format!("{} triplets", count(rank.into())),
        Wanted::Energy(share) => format!(
            "as many triplets as explain {} % of the sum of squares",
            // A double would show the rounding of 100 x 0.55.
            (share * 100.0) as f32
        ),
    };
    let precision = match factor.precision {
        Precision::F32 => "f32",
        Precision::F64 => "f64",
    };
    format!(
        "{wanted}, {} more in the sketch, {precision}, seed {}",
        factor.oversample, factor.seed
    )
}

fn accuracy(factor: &FactorSpec) -> String {
    match factor.accuracy {
        Accuracy::Tolerance(tolerance) => {
            let what = match tolerance.kind {
                ToleranceKind::Residual => "every residual is below",
                ToleranceKind::Sigma => "the relative error of every sigma is below",
            };
            format!(
                "until {what} {:e}, at most {} reads",
                tolerance.value,
                count(tolerance.max_reads.into())
            )
        }
        Accuracy::PowerIterations(1) => "whatever 1 power iteration gives".into(),
        Accuracy::PowerIterations(iterations) => {
            format!(
                "whatever {} power iterations give",
                count(iterations.into())
            )
        }
    }
}

fn method(factor: &FactorSpec) -> String {
    let mut parts = vec![match (factor.accuracy, factor.method) {
        (Accuracy::PowerIterations(_), _) => "a sketch and power iterations".to_owned(),
        (_, Method::Auto) => "the one that suits the matrix".to_owned(),
        (_, Method::Krylov) => "block Krylov".to_owned(),
        (_, Method::Exact) => "the whole decomposition".to_owned(),
        (_, Method::Gram) => "by way of the Gram matrix".to_owned(),
    }];
    parts.extend(
        factor
            .block
            .map(|block| format!("blocks of {block} columns")),
    );
    parts.extend(
        factor
            .basis
            .map(|basis| format!("at most {basis} columns of the basis kept")),
    );
    parts.join(", ")
}

fn centring(center: Center) -> String {
    let means = match center {
        Center::None => return "none".into(),
        Center::Columns | Center::ObservedColumns => "means of columns",
        Center::Rows | Center::ObservedRows => "means of rows",
        Center::Both | Center::ObservedBoth => "means of rows and columns",
    };
    let absent = match center {
        Center::ObservedColumns | Center::ObservedRows | Center::ObservedBoth => {
            "absent entries are unknown; only those that are there are moved"
        }
        _ => "absent entries are taken as 0",
    };
    format!("{means} are subtracted; {absent}")
}

fn beginning(job: &Job) -> String {
    match &job.warm_start {
        Some(path) => right_factor(path).display().to_string(),
        None => "a random sketch".into(),
    }
}

fn output(job: &Job) -> String {
    let which = match job.factor.which {
        Which::Usv => "U, S and Vt",
        Which::Sv => "S and Vt",
        Which::S => "S alone",
    };
    format!("{}: {which}", job.directory.display())
}

fn lines(job: &Job, head: Vec<(String, String)>) -> Vec<Vec<String>> {
    let field = |field: &Field| match field {
        Field::Name(name) => name.clone(),
        Field::Number(number) => format!("field {number}"),
    };
    let matrix = &job.matrix;
    let mut lines = vec![("Input".to_owned(), matrix.path.display().to_string())];
    lines.extend(head);
    let values = matrix
        .values
        .as_ref()
        .map_or("none: every line counts 1".into(), field);
    let duplicates = match matrix.duplicates {
        Duplicates::Error => "an error",
        Duplicates::Sum => "summed",
        Duplicates::Mean => "averaged",
        Duplicates::Last => "the last counts",
    };
    let resources = &job.resources;
    lines.extend([
        ("Rows".into(), field(&matrix.rows)),
        ("Columns".into(), field(&matrix.columns)),
        ("Values".into(), values),
        ("Duplicates".into(), duplicates.into()),
        ("Centring".into(), centring(job.factor.center)),
        (
            "Scaling".into(),
            match job.factor.scale {
                Scale::None => "none".into(),
                Scale::Columns => "columns to unit variance".into(),
            },
        ),
        ("Factors".into(), triplets(&job.factor)),
        ("Accuracy".into(), accuracy(&job.factor)),
        ("Method".into(), method(&job.factor)),
        ("Begins with".into(), beginning(job)),
        ("Output".into(), output(job)),
        (
            "Resources".into(),
            format!(
                "{} of memory, {} cores",
                size::show(resources.memory),
                resources.cores
            ),
        ),
        ("Farm".into(), farm(&job.farm)),
        (
            "Cache".into(),
            format!(
                "{}, at most {}",
                resources.cache.display(),
                size::show(resources.cache_max)
            ),
        ),
    ]);
    lines
        .into_iter()
        .map(|(word, what)| vec![word, what])
        .collect()
}
