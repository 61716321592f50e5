//! How the fields of a line are told apart, and which of them matter.

use std::{ops::Range, path::Path};

use super::problem::{self, Place};
use crate::{
    failure::Failure,
    job::resolved::{Field, MatrixSpec},
};

/// What stands between two fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delimiter {
    /// Fields may be quoted, as in RFC 4180.
    Byte(u8),
    /// `::`
    Colons,
    /// Runs of spaces and tabs.
    Blanks,
}

impl Delimiter {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Byte(b'\t') => "tab",
            Self::Byte(b';') => "semicolon",
            Self::Byte(b'|') => "bar",
            Self::Byte(_) => "comma",
            Self::Colons => "two colons",
            Self::Blanks => "blanks",
        }
    }

    /// Tried in this order.
    const KNOWN: [Self; 6] = [
        Self::Colons,
        Self::Byte(b'\t'),
        Self::Byte(b','),
        Self::Byte(b';'),
        Self::Byte(b'|'),
        Self::Blanks,
    ];
}

/// Fields that are read of every line, from 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    pub delimiter: Delimiter,
    /// Of every line.
    pub fields: usize,
    pub row: usize,
    pub column: usize,
    pub value: Option<usize>,
}

/// The head of an input, understood.
#[derive(Clone, Debug)]
pub(super) struct Understood {
    pub plan: Plan,
    pub header: Option<Vec<String>>,
    /// Where the first data line starts: byte in the head, and line.
    pub data_at: usize,
    pub data_line: u64,
}

/// Splits the record that starts at `start`: the raw ranges of its fields, quotes included. Gives where the next record
/// starts, or `None` when a quoted field does not end in `data`.
pub(super) fn split(
    delimiter: Delimiter,
    data: &[u8],
    start: usize,
    fields: &mut Vec<Range<usize>>,
) -> Option<usize> {
    fields.clear();
    let line_end =
        |from: usize| memchr::memchr2(b'\n', b'\r', &data[from..]).map_or(data.len(), |n| from + n);
    let next = |end: usize| match data.get(end..) {
        Some([b'\r', b'\n', ..]) => end + 2,
        Some([_, ..]) => end + 1,
        _ => end,
    };
    match delimiter {
        Delimiter::Byte(d) => {
            let mut at = start;
            loop {
                let field = at;
                if data.get(at) == Some(&b'"') {
                    at += 1;
                    loop {
                        at += memchr::memchr(b'"', &data[at..])? + 1;
                        if data.get(at) != Some(&b'"') {
                            break;
                        }
                        at += 1;
                    }
                }
                at = memchr::memchr3(d, b'\n', b'\r', &data[at..]).map_or(data.len(), |n| at + n);
                fields.push(field..at);
                if data.get(at) != Some(&d) {
                    return Some(next(at));
                }
                at += 1;
            }
        }
        Delimiter::Colons => {
            let end = line_end(start);
            let mut field = start;
            for at in memchr::memmem::find_iter(&data[start..end], b"::") {
                fields.push(field..start + at);
                field = start + at + 2;
            }
            fields.push(field..end);
            Some(next(end))
        }
        Delimiter::Blanks => {
            let end = line_end(start);
            let blank = |b: u8| b == b' ' || b == b'\t';
            let mut at = start;
            while at < end {
                if blank(data[at]) {
                    at += 1;
                    continue;
                }
                let field = at;
                while at < end && !blank(data[at]) {
                    at += 1;
                }
                fields.push(field..at);
            }
            if fields.is_empty() {
                fields.push(start..end);
            }
            Some(next(end))
        }
    }
}

/// The text of a raw field: blanks and quotes taken off.
pub(super) fn unquoted(raw: &[u8]) -> Vec<u8> {
    let raw = raw.trim_ascii();
    match raw {
        [b'"', inner @ .., b'"'] => {
            let mut out = Vec::with_capacity(inner.len());
            let mut skip = false;
            for &b in inner {
                if b == b'"' && !skip {
                    skip = true;
                    continue;
                }
                skip = false;
                out.push(b);
            }
            out.trim_ascii().to_vec()
        }
        _ => raw.to_vec(),
    }
}

/// The first records of a head, blank lines left out: fields, byte and line where each starts.
fn records(
    delimiter: Delimiter,
    head: &[u8],
    at: usize,
    whole: bool,
    max: usize,
) -> Vec<(Vec<Vec<u8>>, usize, u64)> {
    let mut all = Vec::new();
    let (mut at, mut line) = (at, 1);
    let mut ranges = Vec::new();
    while at < head.len() && all.len() < max {
        let Some(next) = split(delimiter, head, at, &mut ranges) else {
            break;
        };
        // The last line of a head may go on beyond it.
        if next == head.len() && !whole && head.last() != Some(&b'\n') {
            break;
        }
        let fields: Vec<_> = ranges.iter().map(|r| unquoted(&head[r.clone()])).collect();
        if fields.len() > 1 || !fields[0].is_empty() {
            all.push((fields, at, line));
        }
        line += memchr::memchr_iter(b'\n', &head[at..next]).count() as u64;
        at = next;
    }
    all
}

pub(super) fn is_number(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|t| t.parse::<f64>().is_ok())
}

/// Makes out delimiter, header and fields. `head` is the first bytes of the input, `whole` when there are no more.
pub(super) fn understand(
    path: &Path,
    spec: &MatrixSpec,
    head: &[u8],
    whole: bool,
) -> Result<Understood, Failure> {
    let start = refuse_strangers(path, head)?;
    let by_name = [Some(&spec.rows), Some(&spec.columns), spec.values.as_ref()]
        .into_iter()
        .flatten()
        .any(|f| matches!(f, Field::Name(_)));
    let wanted = [Some(&spec.rows), Some(&spec.columns), spec.values.as_ref()]
        .into_iter()
        .flatten()
        .map(|f| match f {
            Field::Number(n) => *n,
            Field::Name(_) => 1,
        })
        .max()
        .unwrap_or(1)
        .max(if spec.values.is_some() { 3 } else { 2 });
    // Agreement of the first lines on their number of fields, in thousandths.
    let mut best: Option<(usize, Delimiter)> = None;
    for delimiter in Delimiter::KNOWN {
        let lines = records(delimiter, head, start, whole, 40);
        let Some((first, ..)) = lines.first() else {
            continue;
        };
        if first.len() < 2 {
            continue;
        }
        let agree = lines
            .iter()
            .filter(|(f, ..)| f.len() == first.len())
            .count();
        let enough = if first.len() >= wanted { 10_000 } else { 0 };
        let score = enough + agree * 1000 / lines.len();
        if best.is_none_or(|(s, _)| score > s) {
            best = Some((score, delimiter));
        }
    }
    let Some((_, delimiter)) = best else {
        if head[start..].iter().all(u8::is_ascii_whitespace) {
            return Err(empty(path, "holds nothing"));
        }
        return Err(problem::at(
            path,
            Place { line: 1, column: 1 },
            "the first line is one field only",
        )
        .help("lines are fields apart by comma, tab, semicolon, bar, '::' or blanks: row, column and perhaps a value"));
    };
    let lines = records(delimiter, head, start, whole, 2);
    let (first, first_at, first_line) = &lines[0];
    let names: Vec<String> = first
        .iter()
        .map(|f| String::from_utf8_lossy(f).into_owned())
        .collect();
    let resolve = |field: &Field, what: &str| match field {
        Field::Number(n) if (1..=first.len()).contains(n) => Ok(n - 1),
        Field::Number(n) => Err(problem::at(
            path,
            Place {
                line: *first_line,
                column: 1,
            },
            format!(
                "the {what} are field {n}, but the line has {} fields apart by {}",
                first.len(),
                delimiter.name()
            ),
        )
        .help("fields are numbered from 1")),
        Field::Name(name) => {
            let mut found = names.iter().enumerate().filter(|(_, n)| *n == name.trim());
            match (found.next(), found.next()) {
                (Some((at, _)), None) => Ok(at),
                (Some(_), Some(_)) => Err(problem::at(
                    path,
                    Place {
                        line: *first_line,
                        column: 1,
                    },
                    format!("there are two columns named {name:?}"),
                )
                .help("give the column by its number, from 1")),
                (None, _) => Err(problem::unknown_column(path, name, what, &names)),
            }
        }
    };
    let plan = Plan {
        delimiter,
        fields: first.len(),
        row: resolve(&spec.rows, "rows")?,
        column: resolve(&spec.columns, "columns")?,
        value: spec
            .values
            .as_ref()
            .map(|f| resolve(f, "values"))
            .transpose()?,
    };
    if plan.row == plan.column
        || plan
            .value
            .is_some_and(|v| v == plan.row || v == plan.column)
    {
        return Err(Failure::job(
            "rows, columns and values must be different fields of the input",
        ));
    }
    let is_id = |f: &Vec<u8>| !f.is_empty() && f.iter().all(u8::is_ascii_digit);
    let has_header = by_name
        || match (plan.value, lines.get(1)) {
            (Some(v), _) => {
                !first[v].is_empty() && !is_number(&first[v]) && !is_id(&first[plan.row])
            }
            (None, Some((second, ..))) => [plan.row, plan.column]
                .iter()
                .any(|&f| !is_id(&first[f]) && second.get(f).is_some_and(is_id)),
            (None, None) => false,
        };
    let (data_at, data_line) = if has_header {
        let mut ranges = Vec::new();
        let next = split(delimiter, head, *first_at, &mut ranges).unwrap_or(head.len());
        let lines = memchr::memchr_iter(b'\n', &head[*first_at..next]).count() as u64;
        (next, first_line + lines)
    } else {
        (start, 1)
    };
    Ok(Understood {
        plan,
        header: has_header.then_some(names),
        data_at,
        data_line,
    })
}

pub(super) fn empty(path: &Path, what: &str) -> Failure {
    Failure::data(format!("{} {what}", path.display()))
        .help("a matrix needs at least one line of row, column and value")
}

/// Refuses what is no text; gives where the text starts.
fn refuse_strangers(path: &Path, head: &[u8]) -> Result<usize, Failure> {
    let refuse = |what: &str, help: &str| {
        Err(Failure::data(format!("{} {what}", path.display())).help(help.to_owned()))
    };
    if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
        return refuse("is UTF-16 text", "save it as UTF-8");
    }
    if head.starts_with(b"PK\x03\x04") {
        return refuse(
            "is a zip archive",
            "unpack it, or pack it with gzip or zstd",
        );
    }
    if head.starts_with(b"PAR1") || head.starts_with(b"\x89HDF") {
        return refuse("is not text", "export it as CSV");
    }
    if memchr::memchr(0, head).is_some() {
        return refuse("is not text: it holds zero bytes", "export it as CSV");
    }
    Ok(if head.starts_with(b"\xef\xbb\xbf") {
        3
    } else {
        0
    })
}
