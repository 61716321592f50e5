//! `svdjob run`.

use std::path::{Path, PathBuf};

use super::{End, Global, out, say, signals};
use crate::failure::Failure;
use crate::job::overrides::Overrides;
use crate::job::resolve::{self, Loaded};
use crate::job::resolved::{Accuracy, FactorSpec, Method, Precision};
use crate::plan::{COLUMNS_MAX, SPLIT_READS};
use crate::report::progress::{self, Event};
use crate::report::{json, summary::Summary, terminal};
use crate::run::{Repeat, RunOptions};

/// Factor a matrix as a job file says.
///
/// Reads the ratings once, keeps them prepared in the cache, finds its leading singular triplets in a few passes over
/// that, and writes them: A is close to U S V^T. Same matrix, job and seed give the same factors bit for bit, whatever the
/// memory and the cores.
#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = format!("{AFTER_SHORT}\n\nMore with --help: where things go, the defaults, exit codes."),
    after_long_help = format!("{AFTER_SHORT}\n\n{AFTER_LONG}\n\n{}", super::EXIT_CODES),
)]
pub struct RunArgs {
    /// The job file; `svdjob init ratings.csv` writes one to begin with
    #[arg(value_name = "FILE", default_value = "factor.toml")]
    pub file: PathBuf,

    /// Read the input anew, even if it is found prepared in the cache, and do not go on from where a run before was stopped
    #[arg(long)]
    pub fresh: bool,

    /// Repeat the plan in this manifest.json, or in what `svdjob plan --json` has written, instead of choosing one
    #[arg(long, value_name = "PLAN")]
    pub plan: Option<PathBuf>,

    #[command(flatten)]
    pub overrides: Overrides,
}

const AFTER_SHORT: &str = "\
Examples:
  svdjob run factor.toml                        factor as the file says
  svdjob run factor.toml -k 100 -o factors100   more triplets, elsewhere
  svdjob run factor.toml --memory \"4 GiB\" -j 8  stay within 4 GiB, on 8 cores
  svdjob run factor.toml --json > result.json   the result for a script
  svdjob run factor.toml --plan factors/manifest.json -o again
                                                the same plan, the same bits";

const AFTER_LONG: &str = "\
Where things go:
  factors   [output] directory, \"factors\" beside the job file if not given:
            U.npy (m x k), S.npy (k), Vt.npy (k x n), rows.csv and columns.csv
            (index and label), certificate.json, manifest.json. They appear together when the
            run is done; a run that fails or is stopped leaves the old ones.
  stdout    the result: a table, or one JSON object with --json
  stderr    progress, warnings, errors
  cache     the prepared input, for the next run on the same file:
            [resources] cache, or the user's cache directory if not given;
            `svdjob cache ls` shows what is there

The job file:
  [matrix] path is all it must say. Every other key has a default, in a
  commented file inside this program: `svdjob init --defaults` shows it.
  Flags stand above the file, the file stands above the defaults. Paths in the
  file are relative to the file, paths in flags to the current directory.

Ctrl-C stops a run cleanly; a second one stops it at once. What it has done so
far is kept in the cache: the same command goes on from there.";

/// The plan to repeat, whose wishes take the place of the job's.
///
/// # Errors
/// Job: there is none, or a flag says something else.
pub fn repeated(
    plan: Option<&Path>,
    flags: &Overrides,
    loaded: &mut Loaded,
) -> Result<Option<Repeat>, Failure> {
    let Some(path) = plan else {
        return Ok(None);
    };
    let repeat = Repeat::read(path)?;
    repeat.agrees(flags)?;
    loaded.job.factor = repeat.factor();
    Ok(Some(repeat))
}

/// Does the job.
///
/// # Errors
/// See the exit codes.
pub fn run(args: &RunArgs, global: &Global) -> Result<(), End> {
    let mut loaded = resolve::load(&args.file, &args.overrides)?;
    loaded.look()?;
    let repeat = repeated(args.plan.as_deref(), &args.overrides, &mut loaded)?;
    let stop = signals::stop_flag()?;
    for warning in &loaded.warnings {
        say(&format!("warning: {warning}\n"));
    }
    let mut observer = progress::observer(global.quiet, global.logs());
    let options = RunOptions {
        fresh: args.fresh,
        repeat,
    };
    let result = crate::run::run(&loaded.job, &options, observer.as_mut(), &stop);
    observer.observe(Event::End);
    drop(observer);
    let mut summary = result?;
    for warning in &summary.warnings {
        say(&format!("warning: {warning}\n"));
    }
    summary.warnings.splice(0..0, loaded.warnings);
    if global.json {
        out::object(&json::done(&summary))?;
    } else {
        out::text(&terminal::render(&summary, global.stdout_look()))?;
    }
    if summary.is_unconverged() {
        return Err(End::Unconverged(advice(&summary, &loaded.job.factor)));
    }
    Ok(())
}

/// What may be done where the tolerance was not reached. A run that stops with more reads left than the longest end takes has not
/// stopped for want of them.
fn advice(summary: &Summary, factor: &FactorSpec) -> &'static str {
    let exhausted = match factor.accuracy {
        Accuracy::Tolerance(tolerance) => summary.passes + SPLIT_READS >= tolerance.max_reads,
        Accuracy::PowerIterations(_) => false,
    };
    let short = summary.rows.min(summary.columns) <= COLUMNS_MAX;
    match (factor.precision, factor.method) {
        _ if exhausted => "allow more reads with --max-reads, or a larger tolerance",
        (Precision::F32, _) => {
            "factors in f32 hold no better: --precision f64, or a larger tolerance"
        }
        (Precision::F64, Method::Auto | Method::Krylov | Method::Gram) if short => {
            "A^T A tells no better in f64: --method exact needs none, or a larger tolerance"
        }
        (Precision::F64, _) => "f64 tells no better: a larger tolerance",
    }
}
