//! `svdjob init`.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{End, Global, out, say};
use crate::failure::Failure;
use crate::job::DEFAULTS;
use crate::job::look::Head;

/// Write a commented job file to begin with.
///
/// With the name of a file of ratings, the job file is made to fit its header.
#[derive(clap::Args, Clone, Debug)]
pub struct InitArgs {
    /// A file of ratings to factor
    #[arg(value_name = "RATINGS")]
    pub ratings: Option<PathBuf>,

    /// The job file to write; - is standard output
    #[arg(long, short, value_name = "FILE", default_value = "factor.toml")]
    pub output: PathBuf,

    /// Write it even if there is one already
    #[arg(long)]
    pub force: bool,

    /// Show every key with its default and what it means, and write nothing
    #[arg(long, conflicts_with_all = ["ratings", "output", "force"])]
    pub defaults: bool,
}

/// Writes.
///
/// # Errors
/// Job: there is a job file already. Data: the ratings cannot be read. Resources: the file cannot be written.
pub fn run(args: &InitArgs, global: &Global) -> Result<(), End> {
    if args.defaults {
        out::text(DEFAULTS)?;
        return Ok(());
    }
    let head = match &args.ratings {
        Some(path) => Some(Head::read(path).map_err(|error| {
            Failure::data(format!("{} cannot be read: {error}", path.display()))
        })?),
        None => None,
    };
    let to_stdout = args.output == Path::new("-");
    let base = if to_stdout {
        None
    } else {
        args.output.parent()
    };
    let path = args.ratings.as_deref().unwrap_or(Path::new("ratings.csv"));
    let text = starter(&relative(path, base), head.as_ref());
    if to_stdout {
        out::text(&text)?;
        return Ok(());
    }
    let shown = args.output.display();
    let file = if args.force {
        File::create(&args.output)
    } else {
        File::create_new(&args.output)
    };
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    match written {
        Ok(()) => {
            if !global.quiet {
                say(&format!(
                    "{shown} is written; look it over, then:  svdjob run {shown}\n"
                ));
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(Failure::job(format!("there is a {shown} already"))
                .help("choose another name with --output, or overwrite it with --force")
                .into())
        }
        Err(error) => Err(Failure::resources(format!("{shown} cannot be written: {error}")).into()),
    }
}

/// The path of the ratings as seen from the directory of the job file.
fn relative(path: &Path, base: Option<&Path>) -> String {
    let (Ok(path_whole), Ok(base)) = (
        std::path::absolute(path),
        std::path::absolute(
            base.filter(|b| !b.as_os_str().is_empty())
                .unwrap_or(Path::new(".")),
        ),
    ) else {
        return path.display().to_string();
    };
    let base: PathBuf = base.components().collect();
    match path_whole.strip_prefix(&base) {
        Ok(below) => below.display().to_string(),
        Err(_) => path_whole.display().to_string(),
    }
}

/// The fields by what their names suggest, else the first three.
fn fields(head: &Head) -> [String; 3] {
    if !head.header {
        let value = if head.fields.len() > 2 { "3" } else { "" };
        return ["1".into(), "2".into(), value.into()];
    }
    let find = |words: &[&str], taken: &[&String]| {
        words.iter().find_map(|word| {
            head.fields
                .iter()
                .find(|field| field.to_lowercase().contains(word) && !taken.contains(field))
        })
    };
    let other = |taken: &[&String]| head.fields.iter().find(|field| !taken.contains(field));
    let quoted = |field: &String| toml::Value::String(field.clone()).to_string();
    let row = find(&["user", "row", "customer", "reviewer"], &[]).unwrap_or(&head.fields[0]);
    let column = find(
        &[
            "movie", "item", "col", "product", "film", "book", "track", "artist", "song",
        ],
        &[row],
    )
    .or_else(|| other(&[row]))
    .unwrap_or(row);
    let value = find(
        &[
            "rating", "score", "stars", "value", "count", "plays", "weight",
        ],
        &[row, column],
    )
    .or_else(|| other(&[row, column]));
    [
        quoted(row),
        quoted(column),
        value.map_or(String::new(), quoted),
    ]
}

fn starter(path: &str, head: Option<&Head>) -> String {
    let usual = Head {
        fields: ["userId", "movieId", "rating"].map(String::from).to_vec(),
        second: Vec::new(),
        header: true,
    };
    let head = head.unwrap_or(&usual);
    let [rows, columns, values] = fields(head);
    let path = toml::Value::String(path.to_owned());
    let seen = if head.header {
        format!("its header: {}", head.fields.join(", "))
    } else {
        format!(
            "no header was seen; its first line: {}",
            head.fields.join(", ")
        )
    };
    let values = if values.is_empty() {
        "# values = 3                # the field with the number; left out: every line counts 1"
            .to_owned()
    } else {
        format!("values = {values}\n# Left out, every line counts 1: implicit feedback.")
    };
    format!(
        "\
# A job of svdjob. Run it:  svdjob run <this file>
# Every key with its default:  svdjob init --defaults

[matrix]
path = {path}
# {seen}
rows = {rows}
columns = {columns}
{values}
duplicates = \"error\"        # two lines for one row and column: error | sum | mean | last

[factor]
rank = 50                   # singular triplets wanted
oversample = 10             # extra columns of the sketch: more cost, safer accuracy
tolerance = 1e-2            # the matrix is read until the residual of every triplet is below this
# precision = \"f64\"         # f32 if left out; f64 by itself for a tolerance below 1e-6
seed = 0

[output]
directory = \"factors\"

# [resources]
# memory = \"4 GiB\"          # half of what the machine has, if left out
# cores = 2                 # all, if left out

# [farm]
# nodes = [\"big1\"]          # machines that run svdnode are found by themselves; name those that are not

# [report]
# names = {{ path = \"movies.csv\", label = \"movieId\", name = \"title\" }}
# nearest = [\"Toy Story (1995)\"]
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::diagnostics::{Look, Source};
    use crate::job::overrides::Overrides;
    use crate::job::resolve::resolve;
    use crate::job::resolved::Field;

    fn job(head: Option<&Head>) -> crate::job::resolved::Job {
        let source = Source {
            name: "factor.toml".into(),
            text: starter("a \"strange\" name.csv", head),
        };
        resolve(source, Path::new("/data"), &Overrides::default())
            .unwrap_or_else(|problems| panic!("{}", problems.render(Look::PLAIN)))
            .job
    }

    #[test]
    fn the_starter_is_a_right_job_file_that_fits_the_header() {
        assert_eq!(job(None).matrix.rows, Field::Name("userId".into()));
        let fields = ["timestamp", "item \"x\"", "stars", "reviewer"].map(String::from);
        let head = Head {
            fields: fields.to_vec(),
            second: vec![],
            header: true,
        };
        let matrix = job(Some(&head)).matrix;
        assert_eq!(matrix.path, Path::new("/data/a \"strange\" name.csv"));
        assert_eq!(matrix.rows, Field::Name("reviewer".into()));
        assert_eq!(matrix.columns, Field::Name("item \"x\"".into()));
        assert_eq!(matrix.values, Some(Field::Name("stars".into())));
        let head = Head {
            fields: vec!["1".into(), "2".into()],
            second: vec![],
            header: false,
        };
        let matrix = job(Some(&head)).matrix;
        assert_eq!(matrix.rows, Field::Number(1));
        assert_eq!(matrix.values, None);
    }
}
