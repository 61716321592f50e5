//! Lines that are not plain: quotes, blanks around fields, signs, exponents; and lines that are wrong, which are named by
//! file, line and column.

use std::path::Path;

use super::{
    dialect::{self, Delimiter, Plan},
    parse::{Local, Wrong},
    problem::{self, Place},
};
use crate::failure::Failure;

/// Parses the records of `data[start..]`; `line` is the number of the first line of `data`.
pub(super) fn strict(
    path: &Path,
    plan: &Plan,
    data: &[u8],
    start: usize,
    line: u64,
    local: &mut Local,
) -> Result<(), Failure> {
    each(plan, data, start, |fields, at| {
        if fields.len() != plan.fields {
            if fields.len() == 1 && fields.get(0).is_some_and(|f| f.trim_ascii().is_empty()) {
                return Ok(());
            }
            return Err(problem::at(
                path,
                Place {
                    line: line + lines_before(data, at),
                    column: 1,
                },
                format!(
                    "expected {} fields apart by {}, found {}",
                    plan.fields,
                    plan.delimiter.name(),
                    fields.len()
                ),
            )
            .help("every line has as many fields as the first; a field that holds the delimiter is quoted"));
        }
        let field = |n: usize| fields.get(n).unwrap_or_default();
        local
            .accept(field(plan.row), field(plan.column), plan.value.map(field))
            .map_err(|wrong| explain(path, plan, data, at, line, wrong))
    })
}

/// Fields of a record, however it was split.
pub(super) trait Fields {
    fn len(&self) -> usize;
    fn get(&self, n: usize) -> Option<&[u8]>;
}

impl Fields for csv::ByteRecord {
    fn len(&self) -> usize {
        self.len()
    }
    fn get(&self, n: usize) -> Option<&[u8]> {
        self.get(n)
    }
}

struct Raw<'a> {
    data: &'a [u8],
    ranges: &'a [std::ops::Range<usize>],
}

impl Fields for Raw<'_> {
    fn len(&self) -> usize {
        self.ranges.len()
    }
    fn get(&self, n: usize) -> Option<&[u8]> {
        self.ranges.get(n).map(|r| &self.data[r.clone()])
    }
}

/// Calls `take` with the fields of each record, and with the byte where it starts (or where blank lines before it do).
pub(super) fn each(
    plan: &Plan,
    data: &[u8],
    start: usize,
    mut take: impl FnMut(&dyn Fields, usize) -> Result<(), Failure>,
) -> Result<(), Failure> {
    match plan.delimiter {
        Delimiter::Byte(delimiter) => {
            let mut reader = csv::ReaderBuilder::new()
                .has_headers(false)
                .flexible(true)
                .delimiter(delimiter)
                .from_reader(&data[start..]);
            let mut record = csv::ByteRecord::new();
            while reader
                .read_byte_record(&mut record)
                .map_err(|e| Failure::bug(format!("the csv reader failed in memory: {e}")))?
            {
                let at = record.position().map_or(0, |p| p.byte() as usize);
                take(&record, start + at)?;
            }
        }
        Delimiter::Colons | Delimiter::Blanks => {
            let mut ranges = Vec::new();
            let mut at = start;
            while at < data.len() {
                let next =
                    dialect::split(plan.delimiter, data, at, &mut ranges).unwrap_or(data.len());
                if ranges.len() > 1 || !ranges[0].is_empty() {
                    take(
                        &Raw {
                            data,
                            ranges: &ranges,
                        },
                        at,
                    )?;
                }
                at = next;
            }
        }
    }
    Ok(())
}

/// Line ends before the record at `at`, which blank lines may precede.
pub(super) fn lines_before(data: &[u8], at: usize) -> u64 {
    line_ends(&data[..skip_line_ends(data, at)])
}

fn line_ends(data: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', data).count() as u64
}

fn skip_line_ends(data: &[u8], at: usize) -> usize {
    at + data[at..]
        .iter()
        .take_while(|b| matches!(b, b'\n' | b'\r'))
        .count()
}

fn explain(path: &Path, plan: &Plan, data: &[u8], at: usize, line: u64, wrong: Wrong) -> Failure {
    let at = skip_line_ends(data, at);
    let mut ranges = Vec::new();
    let _ = dialect::split(plan.delimiter, data, at, &mut ranges);
    let field = match wrong {
        Wrong::NoRow => plan.row,
        Wrong::NoColumn => plan.column,
        Wrong::NoValue | Wrong::NotANumber | Wrong::NotFinite => plan.value.unwrap_or(0),
    };
    let range = ranges.get(field).cloned().unwrap_or(at..at);
    let before = &data[at..range.start];
    let line_start = memchr::memrchr(b'\n', before).map_or(0, |n| n + 1);
    let place = Place {
        line: line + line_ends(&data[..range.start]),
        column: 1 + String::from_utf8_lossy(&before[line_start..])
            .chars()
            .count(),
    };
    let text = dialect::unquoted(&data[range]);
    let shown = problem::shown(&text);
    let (what, help) = match wrong {
        Wrong::NoRow => (
            "the row's label is empty".to_owned(),
            "give every line a row label, or take the line out",
        ),
        Wrong::NoColumn => (
            "the column's label is empty".to_owned(),
            "give every line a column label, or take the line out",
        ),
        Wrong::NoValue => (
            "the value is empty".to_owned(),
            "leave out lines without a value; without `values` every line counts 1",
        ),
        Wrong::NotANumber if text.contains(&b',') => (
            format!("expected a number, found {shown}"),
            "decimals are written with a point",
        ),
        Wrong::NotANumber => (
            format!("expected a number, found {shown}"),
            "check which field holds the values; a header line is expected only as the first",
        ),
        Wrong::NotFinite => (
            format!("expected a finite number, found {shown}"),
            "take out lines whose value is unknown: a sparse matrix leaves them out",
        ),
    };
    problem::at(path, place, what).help(help)
}
