//! What can be wrong with an input, and the words for it.

use std::{fmt::Write, io, path::Path};

use crate::failure::Failure;

/// A place in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub line: u64,
    /// From 1, in characters.
    pub column: usize,
}

pub(super) fn at(path: &Path, place: Place, what: impl AsRef<str>) -> Failure {
    Failure::data(format!(
        "{}:{}:{}: {}",
        path.display(),
        place.line,
        place.column,
        what.as_ref()
    ))
}

/// A field as it is shown: quoted, without control characters, not too long.
pub(super) fn shown(field: &[u8]) -> String {
    let text = String::from_utf8_lossy(field);
    let mut short: String = text.chars().take(40).collect();
    if text.chars().count() > 40 {
        short.push('…');
    }
    format!("{short:?}")
}

pub(super) fn opening(path: &Path, e: &io::Error) -> Failure {
    let shown = path.display();
    match e.kind() {
        io::ErrorKind::NotFound => Failure::data(format!("{shown} does not exist"))
            .help("`matrix.path` is relative to the directory of the job file"),
        io::ErrorKind::PermissionDenied => {
            Failure::resources(format!("{shown} may not be read: {e}"))
                .help("give yourself permission to read it")
        }
        _ => Failure::resources(format!("could not read {shown}: {e}")),
    }
}

pub(super) fn directory(path: &Path) -> Failure {
    Failure::data(format!("{} is a directory", path.display()))
        .help("`matrix.path` wants one file of (row, column, value) lines")
}

/// A failure to read on, perhaps in the midst of unpacking.
pub(super) fn reading(path: &Path, packed: Option<&str>, done: u64, e: &io::Error) -> Failure {
    let shown = path.display();
    match packed {
        Some(how) if e.raw_os_error().is_none() => match e.kind() {
            io::ErrorKind::UnexpectedEof => Failure::data(format!(
                "{shown}: the {how} data end too early, after {done} unpacked bytes: the file was cut off"
            ))
            .help("copy or download it again"),
            _ => Failure::data(format!(
                "{shown}: the {how} data are damaged after {done} unpacked bytes: {e}"
            ))
            .help("copy or download it again"),
        },
        _ => Failure::resources(format!(
            "could not read {shown} beyond byte {done}: {e}"
        )),
    }
}

pub(super) fn writing(path: &Path, e: &io::Error) -> Failure {
    let dir = path.parent().unwrap_or(path);
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Failure::resources(format!("the disk is full: {e}, writing {}", path.display()))
                .help("free some space, or name a directory on a larger disk as `resources.cache`")
        }
        _ => Failure::resources(format!("could not write {}: {e}", path.display())).help(format!(
            "check that {} can be written to, or name another directory as `resources.cache`",
            dir.display()
        )),
    }
}

pub(super) fn reading_back(path: &Path, e: &io::Error) -> Failure {
    Failure::resources(format!("could not read back {}: {e}", path.display()))
}

/// Says which of `names` was perhaps meant, and lists them.
pub(super) fn unknown_column(path: &Path, wanted: &str, what: &str, names: &[String]) -> Failure {
    let mut help = String::new();
    let near = names
        .iter()
        .map(|n| {
            let (a, b) = (n.to_lowercase(), wanted.to_lowercase());
            (strsim::damerau_levenshtein(&a, &b), n)
        })
        .min()
        .filter(|(distance, name)| *distance <= 1 + name.chars().count().max(wanted.len()) / 3);
    if let Some((_, near)) = near {
        let _ = write!(help, "did you mean {near:?}? ");
    }
    help.push_str("the columns are ");
    for (i, name) in names.iter().take(20).enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        let _ = write!(help, "{comma}{name:?}");
    }
    if names.len() > 20 {
        let _ = write!(help, " and {} more", names.len() - 20);
    }
    help.push_str("; a column can also be given by its number, from 1");
    at(
        path,
        Place { line: 1, column: 1 },
        format!("there is no column named {wanted:?} for the {what}"),
    )
    .help(help)
}
