//! A look at the files that a job names, before any work: so that a misspelt name is shown where it stands.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::diagnostics::{Problem, Problems, nearest};
use super::resolve::{LoadError, Loaded};
use super::resolved::Field;
use crate::failure::{ExitCode, Failure};

/// Bytes of the head that are looked at.
const HEAD: u64 = 1 << 16;

/// The first lines of a delimited text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// Of the first line.
    pub fields: Vec<String>,
    /// Of the second.
    pub second: Vec<String>,
    /// Whether the first line looks like names.
    pub header: bool,
}

impl Head {
    /// Reads the head of a file, through gzip or zstd.
    ///
    /// # Errors
    /// As of the file.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut magic = Vec::new();
        (&mut file).take(4).read_to_end(&mut magic)?;
        let whole = io::Cursor::new(magic.clone()).chain(BufReader::new(file));
        let mut bytes = Vec::new();
        let read = match magic.as_slice() {
            [0x1f, 0x8b, ..] => flate2::read::MultiGzDecoder::new(whole)
                .take(HEAD)
                .read_to_end(&mut bytes),
            [0x28, 0xb5, 0x2f, 0xfd] => zstd::Decoder::new(whole)?
                .take(HEAD)
                .read_to_end(&mut bytes),
            _ => whole.take(HEAD).read_to_end(&mut bytes),
        };
        match read {
            // Enough for two lines may have come before the damage, which others will find.
            Err(error) if bytes.is_empty() => Err(error),
            _ => Ok(Self::of(&bytes)),
        }
    }

    fn of(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_start_matches('\u{feff}');
        let mut lines = text.lines().filter(|line| !line.trim().is_empty());
        let first = lines.next().unwrap_or("");
        let split = ["::", "\t", ",", ";", "|"]
            .into_iter()
            .find(|delimiter| first.contains(delimiter));
        let fields_of = |line: &str| -> Vec<String> {
            match split {
                None => line.split_whitespace().map(str::to_owned).collect(),
                Some("::") => line.split("::").map(str::to_owned).collect(),
                Some(byte) => {
                    let mut reader = csv::ReaderBuilder::new()
                        .has_headers(false)
                        .delimiter(byte.as_bytes()[0])
                        .from_reader(line.as_bytes());
                    let mut record = csv::StringRecord::new();
                    match reader.read_record(&mut record) {
                        Ok(true) => record.iter().map(|field| field.trim().to_owned()).collect(),
                        _ => Vec::new(),
                    }
                }
            }
        };
        let fields = fields_of(first);
        let second = lines.next().map(fields_of).unwrap_or_default();
        let number = |field: &String| field.trim().parse::<f64>().is_ok();
        let header = fields.len() >= 2
            && !fields.iter().any(number)
            && (second.is_empty() || second.iter().any(number));
        Self {
            fields,
            second,
            header,
        }
    }
}

impl Loaded {
    /// Sees whether the files that the job names are there and have the fields that it names.
    ///
    /// # Errors
    /// All that is wrong, at its place in the job file where it stands there; of the code for data, or that for the job
    /// where only fields are misnamed.
    pub fn look(&self) -> Result<(), LoadError> {
        let mut problems = Vec::new();
        let mut code = ExitCode::Job;
        let file = &self.file;

        let matrix = &self.job.matrix;
        let written = file.matrix.path.as_ref();
        let from_file = written.filter(|_| !self.input_from_flag);
        match existing(&matrix.path) {
            Err(wrong) => {
                code = ExitCode::Data;
                match from_file {
                    Some(path) => problems.push(wrong.at(path.span(), "the input")),
                    None => return Err(LoadError::Unreadable(wrong.failure("the input"))),
                }
            }
            Ok(()) => {
                if let Ok(head) = Head::read(&matrix.path) {
                    let fields = [&file.matrix.rows, &file.matrix.columns, &file.matrix.values];
                    for field in fields.into_iter().flatten() {
                        problems.extend(misnamed(field, &head, &matrix.path));
                    }
                }
            }
        }
        if let Some(start) = &self.job.warm_start
            && let Err(wrong) = existing(&right_factor(start))
        {
            code = ExitCode::Data;
            let written = file.factor.warm_start.as_ref();
            match written.filter(|_| !self.start_from_flag) {
                Some(path) => problems.push(wrong.at(path.span(), START)),
                None => return Err(LoadError::Unreadable(wrong.failure(START))),
            }
        }
        if let (Some(names), Some(spec)) = (&file.report.names, &self.job.report.names) {
            match existing(&spec.path) {
                Err(wrong) => {
                    code = ExitCode::Data;
                    problems.push(wrong.at(names.path.span(), "the file of names"));
                }
                Ok(()) => {
                    if let Ok(head) = Head::read(&spec.path) {
                        for field in [&names.label, &names.name].into_iter().flatten() {
                            problems.extend(misnamed(field, &head, &spec.path));
                        }
                    }
                }
            }
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(LoadError::Problems(Problems {
            source: self.source.clone(),
            list: problems,
            code,
        }))
    }
}

/// What people are told that `warm_start` is.
const START: &str = "what to begin with";

/// The file that `warm_start` means: itself, or the one in a directory of factors.
pub fn right_factor(start: &Path) -> PathBuf {
    if start.is_dir() {
        start.join("Vt.npy")
    } else {
        start.to_owned()
    }
}

/// What is wrong with a file.
struct Wrong {
    what: String,
    help: Option<String>,
}

impl Wrong {
    fn at(self, span: Range<usize>, role: &str) -> Problem {
        let problem = Problem::new(span, format!("{role} cannot be read"), self.what);
        match self.help {
            Some(help) => problem.help(help),
            None => problem,
        }
    }

    fn failure(self, role: &str) -> Failure {
        let failure = Failure::data(format!("{role} cannot be read: {}", self.what));
        match self.help {
            Some(help) => failure.help(help),
            None => failure,
        }
    }
}

fn existing(path: &Path) -> Result<(), Wrong> {
    let shown = path.display();
    let wrong = |what: String, help: Option<String>| Err(Wrong { what, help });
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => wrong(format!("{shown} is a directory"), None),
        Ok(_) => match File::open(path) {
            Ok(_) => Ok(()),
            Err(error) => wrong(format!("{shown}: {error}"), None),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
                return wrong(format!("there is no {shown}"), None);
            };
            if !directory.is_dir() {
                let help = format!("there is no directory {} either", directory.display());
                return wrong(format!("there is no {shown}"), Some(help));
            }
            let others: Vec<String> = std::fs::read_dir(directory)
                .into_iter()
                .flatten()
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .collect();
            let near = nearest(&name.to_string_lossy(), others.iter().map(String::as_str))
                .map(|near| format!("did you mean {near:?}?"));
            wrong(format!("there is no {shown}"), near)
        }
        Err(error) => wrong(format!("{shown}: {error}"), None),
    }
}

/// A field that the file does not have.
fn misnamed(field: &Spanned<Field>, head: &Head, path: &Path) -> Option<Problem> {
    let shown = path.file_name().unwrap_or(path.as_os_str()).display();
    match field.get_ref() {
        Field::Name(name) if head.header && !head.fields.contains(name) => {
            let fields = head.fields.iter().map(String::as_str);
            let label = match nearest(name, fields) {
                Some(near) => format!("did you mean {near:?}?"),
                None => "no such name in the header".into(),
            };
            Some(
                Problem::new(
                    field.span(),
                    format!("{shown} has no field {name:?}"),
                    label,
                )
                .help(format!("its header has {}", head.fields.join(", "))),
            )
        }
        Field::Number(number) if !head.fields.is_empty() && *number > head.fields.len() => {
            Some(Problem::new(
                field.span(),
                format!("{shown} has no field {number}"),
                format!("its first line has {} fields", head.fields.len()),
            ))
        }
        Field::Name(_) | Field::Number(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_understood() {
        for (text, fields, header) in [
            (
                "\u{feff}userId,movieId,rating\n1,2,3.5\n",
                &["userId", "movieId", "rating"][..],
                true,
            ),
            ("1::2::5::978300760\n", &["1", "2", "5", "978300760"], false),
            ("u\tb c\t3\n", &["u", "b c", "3"], false),
            ("a  b   1\n", &["a", "b", "1"], false),
            ("\"a,b\",c,2\n", &["a,b", "c", "2"], false),
            ("user;item\nanna;7\n", &["user", "item"], true),
            ("anna,bread\nbert,milk\n", &["anna", "bread"], false),
            ("", &[], false),
        ] {
            let head = Head::of(text.as_bytes());
            assert_eq!(head.fields, fields, "{text:?}");
            assert_eq!(head.header, header, "{text:?}");
        }
    }
}
