//! `svdjob transform`.

use std::path::{Path, PathBuf};

use serde_json::json;
use shared::size;

use super::{End, Global, out, say, signals};
use crate::{
    failure::Failure,
    job::{
        diagnostics::Source,
        overrides::{self, Overrides},
        resolve::resolve,
        resolved::{Duplicates, Field, Job, MatrixSpec},
        size::Memory,
    },
    report::{
        numbers::{count, table},
        progress::{self, Event},
    },
    transform::{self, Model, Projected, What, Wish},
};

/// Project new rows with the factors of an earlier run.
///
/// Reads triples of row, column and value, and writes for each row its scores A V: k numbers, as scikit-learn's
/// TruncatedSVD.transform gives them. Columns are found by their labels; entries in columns that the model does not know
/// are left out with a warning. The scores of a row depend on its own entries alone.
#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = format!("{AFTER_SHORT}\n\nMore with --help: where things go, exit codes."),
    after_long_help = format!("{AFTER_SHORT}\n\n{AFTER_LONG}\n\n{}", super::EXIT_CODES),
)]
pub struct TransformArgs {
    /// Directory of the factors: Vt.npy, S.npy, columns.csv, manifest.json
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,

    /// Delimited text of the new rows' entries, as `[matrix] path` of a job
    #[arg(value_name = "INPUT")]
    pub input: PathBuf,

    /// Directory for the scores; "scores" beside the input if not given
    #[arg(long, short = 'o', value_name = "DIR")]
    pub output: Option<PathBuf>,

    /// What to write of each row: its scores A V, or A V / S, its row of U
    #[arg(long, value_name = "WHAT", default_value = "scores", value_parser = overrides::words(&What::WORDS))]
    pub what: What,

    /// Field of the rows' labels: a name in the header or a number from 1; the model's if not given
    #[arg(long, value_name = "FIELD", value_parser = field)]
    pub rows: Option<Field>,

    /// Field of the columns' labels; the model's if not given
    #[arg(long, value_name = "FIELD", value_parser = field)]
    pub columns: Option<Field>,

    /// Field of the values; the model's if not given
    #[arg(long, value_name = "FIELD", value_parser = field)]
    pub values: Option<Field>,

    /// Every line counts 1, whatever the model was made of
    #[arg(long, conflicts_with = "values")]
    pub no_values: bool,

    /// What to do with two lines for one row and column; as for the model if not given
    #[arg(long, value_name = "RULE", value_parser = overrides::duplicates())]
    pub duplicates: Option<Duplicates>,

    /// Memory to stay within, such as "4 GiB" or "50 %"
    #[arg(long, value_name = "SIZE", value_parser = overrides::memory)]
    pub memory: Option<Memory>,

    /// Cores to work on
    #[arg(long, short = 'j', value_name = "N", value_parser = overrides::cores)]
    pub cores: Option<usize>,

    /// Directory for prepared input, to be found again by later runs
    #[arg(long, value_name = "DIR", env = "SVDJOB_CACHE")]
    pub cache: Option<PathBuf>,

    /// Bound of that directory
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub cache_max: Option<u64>,
}

const AFTER_SHORT: &str = "\
Examples:
  svdjob transform factors new.csv                 scores/scores.npy beside new.csv
  svdjob transform factors new.csv -o out          elsewhere
  svdjob transform factors new.csv --what u        rows of U instead
  svdjob transform factors new.tsv --rows 2 --columns 1 --values 3
                                                   fields by number";

const AFTER_LONG: &str = "\
Where things go:
  scores    scores.npy (rows x k, in the precision of the factors), rows.csv
            (index and label), manifest.json. They appear together when all is
            done; what fails or is stopped leaves the old ones.
  stdout    the result, or one JSON object with --json
  stderr    progress, warnings, errors
  cache     the prepared input, as that of `svdjob run`

The input may be larger than memory. What must fit is V of those columns that
the input has: 8 bytes x columns x k.";

fn field(text: &str) -> Result<Field, String> {
    match text.parse::<usize>() {
        Ok(0) => Err("fields are counted from 1".into()),
        Ok(number) => Ok(Field::Number(number)),
        Err(_) if text.is_empty() => Err("expected a name or a number".into()),
        Err(_) => Ok(Field::Name(text.to_owned())),
    }
}

/// Projects.
///
/// # Errors
/// See the exit codes.
pub fn run(args: &TransformArgs, global: &Global) -> Result<(), End> {
    let model = Model::open(&args.model)?;
    let (job, mut warnings) = job(args)?;
    let from = model.matrix();
    let or = |flag: &Option<Field>, model: &Field| flag.clone().unwrap_or_else(|| model.clone());
    let wish = Wish {
        matrix: MatrixSpec {
            path: job.matrix.path,
            rows: or(&args.rows, &from.rows),
            columns: or(&args.columns, &from.columns),
            values: match &args.values {
                Some(values) => Some(values.clone()),
                None => from.values.clone().filter(|_| !args.no_values),
            },
            duplicates: args.duplicates.unwrap_or(from.duplicates),
        },
        what: args.what,
        directory: directory(args)?,
        resources: job.resources,
    };
    for warning in &warnings {
        say(&format!("warning: {warning}\n"));
    }
    let stop = signals::stop_flag()?;
    let mut observer = progress::observer(global.quiet, global.logs());
    let result = transform::transform(&model, &wish, observer.as_mut(), &stop);
    observer.observe(Event::End);
    drop(observer);
    let mut done = result?;
    for warning in &done.warnings {
        say(&format!("warning: {warning}\n"));
    }
    warnings.append(&mut done.warnings);
    done.warnings = warnings;
    if global.json {
        let mut object = json!({ "status": "done", "code": 0, "what": wish.what });
        if let (Ok(serde_json::Value::Object(result)), Some(object)) =
            (serde_json::to_value(&done), object.as_object_mut())
        {
            object.extend(result);
        }
        out::object(&object)?;
    } else {
        out::text(&text(&done, &args.model, wish.what))?;
    }
    Ok(())
}

/// A job of nothing but this input: for the defaults of everything that is not said.
fn job(args: &TransformArgs) -> Result<(Job, Vec<String>), End> {
    let source = Source {
        name: "the command line".into(),
        text: "[matrix]\n".into(),
    };
    let flags = Overrides {
        input: Some(args.input.clone()),
        memory: args.memory,
        cores: args.cores,
        cache: args.cache.clone(),
        cache_max: args.cache_max,
        ..Overrides::default()
    };
    let loaded = resolve(source, Path::new(""), &flags).map_err(End::Problems)?;
    Ok((loaded.job, loaded.warnings))
}

/// Where the scores go: never among factors, which have files of the same names.
fn directory(args: &TransformArgs) -> Result<PathBuf, Failure> {
    let chosen = match &args.output {
        Some(directory) => directory.clone(),
        None => args.input.with_file_name("scores"),
    };
    if ["S.npy", "Vt.npy"]
        .iter()
        .any(|name| chosen.join(name).exists())
    {
        return Err(Failure::job(format!(
            "{} holds factors, whose rows.csv and manifest.json the scores would replace",
            chosen.display()
        ))
        .help("choose another directory with --output"));
    }
    Ok(std::path::absolute(&chosen).unwrap_or(chosen))
}

fn text(done: &Projected, model: &Path, what: What) -> String {
    let rows = done.rows;
    let lines = [
        (
            "Projected",
            format!(
                "{} {}, {} entries, with the {} triplets of {}",
                count(rows),
                if rows == 1 { "row" } else { "rows" },
                count(done.entries),
                done.rank,
                model.display()
            ),
        ),
        (
            match what {
                What::Scores => "Scores",
                What::U => "U",
            },
            format!(
                "{}: {} ({rows} x {}), rows.csv, manifest.json",
                done.directory.display(),
                transform::SCORES,
                done.rank
            ),
        ),
    ];
    let lines: Vec<Vec<String>> = lines
        .into_iter()
        .map(|(word, what)| vec![word.to_owned(), what])
        .collect();
    let mut text = table(&lines, &[0, 1]).join("\n");
    text.push('\n');
    text
}
