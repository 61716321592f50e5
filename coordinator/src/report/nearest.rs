//! Which columns are most like a given one: the cosine between columns of S V^T, that is between rows of V scaled by
//! the singular values.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use super::summary::{Nearest, Neighbour};
use crate::failure::Failure;
use crate::job::diagnostics;
use crate::job::resolved::{Field, NamesSpec, ReportSpec};
use crate::output::labels;
use crate::output::npy::VectorReader;

/// Neighbours shown of each column.
const SHOWN: usize = 5;
/// A column with fewer entries is near to others by chance.
pub const ENTRIES_MIN: u64 = 20;
/// Numbers read at once.
const BLOCK: u64 = 1 << 16;

/// Neighbours of the columns that `spec` asks for, from the files of a finished run in `directory`, and warnings about
/// those that are not there. `entries` tells how many entries each column has; columns with fewer than
/// [`ENTRIES_MIN`] are left out.
///
/// # Errors
/// Data: the file of names is not as the job says. Resources: the factors cannot be read back.
pub fn report(
    spec: &ReportSpec,
    directory: &Path,
    sigma: &[f64],
    entries: Option<&[u64]>,
) -> Result<(Vec<Nearest>, Vec<String>), Failure> {
    if spec.nearest.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let back = |name: &str, error: io::Error| {
        let path = directory.join(name);
        Failure::resources(format!("{} cannot be read back: {error}", path.display()))
    };
    let labels =
        labels::read(&directory.join("columns.csv")).map_err(|e| back("columns.csv", e))?;
    let names = match &spec.names {
        Some(spec) => read_names(spec)?,
        None => HashMap::new(),
    };
    let shown: Vec<&str> = labels
        .iter()
        .map(|label| names.get(label).unwrap_or(label).as_str())
        .collect();

    let mut warnings = Vec::new();
    let mut wanted = Vec::new();
    for request in &spec.nearest {
        match find(request, &shown, &labels, entries) {
            Ok(column) => wanted.push(column),
            Err(near) => {
                let near = near.map_or(String::new(), |near| format!("; did you mean {near:?}?"));
                warnings.push(format!("no column is called {request:?}{near}"));
            }
        }
    }
    let vectors = VectorReader::open(&directory.join("Vt.npy")).map_err(|e| back("Vt.npy", e))?;
    let found = neighbours(&vectors, sigma, &wanted, entries).map_err(|e| back("Vt.npy", e))?;
    let found = wanted
        .iter()
        .zip(found)
        .map(|(&of, near)| Nearest {
            of: shown[of].to_owned(),
            neighbours: near
                .into_iter()
                .map(|(column, cosine)| Neighbour {
                    name: shown[column].to_owned(),
                    cosine,
                })
                .collect(),
        })
        .collect();
    Ok((found, warnings))
}

/// For each wanted column its [`SHOWN`] nearest others with their cosines, the nearest first.
///
/// # Errors
/// As of the file; `InvalidData` where its width is not the number of singular values.
pub fn neighbours(
    vectors: &VectorReader,
    sigma: &[f64],
    wanted: &[usize],
    entries: Option<&[u64]>,
) -> io::Result<Vec<Vec<(usize, f64)>>> {
    let mut found: Vec<Vec<(usize, f64)>> = vec![Vec::new(); wanted.len()];
    let width = sigma.len();
    if vectors.vectors().width != width as u64 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    if width == 0 || wanted.is_empty() {
        return Ok(found);
    }
    let unit = |vector: &mut [f64]| {
        for (x, s) in vector.iter_mut().zip(sigma) {
            *x *= s;
        }
        let norm = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
        for x in vector.iter_mut() {
            *x /= norm;
        }
        norm > 0.0
    };
    let mut queries = vec![0.0; wanted.len() * width];
    for (&column, query) in wanted.iter().zip(queries.chunks_exact_mut(width)) {
        vectors.read(column as u64, query)?;
        unit(query);
    }
    let count = vectors.vectors().count;
    let step = (BLOCK / width as u64).max(1);
    let mut block = Vec::new();
    for first in (0..count).step_by(step as usize) {
        block.resize((count - first).min(step) as usize * width, 0.0);
        vectors.read(first, &mut block)?;
        for (column, vector) in (first as usize..).zip(block.chunks_exact_mut(width)) {
            let few = entries
                .and_then(|entries| entries.get(column))
                .is_some_and(|&entries| entries < ENTRIES_MIN);
            if few || !unit(vector) {
                continue;
            }
            for ((query, &of), best) in queries.chunks_exact(width).zip(wanted).zip(&mut found) {
                if of == column {
                    continue;
                }
                let cosine: f64 = query.iter().zip(vector.iter()).map(|(a, b)| a * b).sum();
                // A comparison with a number that is none is false: such are never taken.
                let enters = best.len() < SHOWN || best.last().is_some_and(|last| cosine > last.1);
                if cosine.is_finite() && enters {
                    let at = best.partition_point(|&(_, other)| other >= cosine);
                    best.insert(at, (column, cosine));
                    best.truncate(SHOWN);
                }
            }
        }
    }
    Ok(found)
}

/// The column with this name or label, else the name that is nearest.
fn find<'a>(
    request: &str,
    shown: &[&'a str],
    labels: &[String],
    entries: Option<&[u64]>,
) -> Result<usize, Option<&'a str>> {
    // Two columns may have one name; the one with more entries is meant.
    let weight = |column: usize| entries.and_then(|entries| entries.get(column)).copied();
    let best = |matches: &dyn Fn(usize) -> bool| {
        (0..shown.len())
            .filter(|&column| matches(column))
            .max_by_key(|&column| (weight(column), std::cmp::Reverse(column)))
    };
    let lower = request.to_lowercase();
    if let Some(column) = best(&|column| shown[column] == request)
        .or_else(|| best(&|column| labels[column] == request))
        .or_else(|| best(&|column| shown[column].to_lowercase() == lower))
    {
        return Ok(column);
    }
    let begins = best(&|column| shown[column].to_lowercase().starts_with(&lower));
    match begins {
        Some(column) => Err(Some(shown[column])),
        None => Err(diagnostics::nearest(request, shown.iter().copied())),
    }
}

/// Label to name.
fn read_names(spec: &NamesSpec) -> Result<HashMap<String, String>, Failure> {
    let path = spec.path.display();
    let wrong = |error: csv::Error| {
        Failure::data(format!("the file of names {path} cannot be read: {error}"))
    };
    let by_name = [&spec.label, &spec.name]
        .iter()
        .any(|field| matches!(field, Field::Name(_)));
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(by_name)
        .flexible(true)
        .delimiter(delimiter(&spec.path))
        .from_path(&spec.path)
        .map_err(wrong)?;
    let header = if by_name {
        reader.byte_headers().map_err(wrong)?.clone()
    } else {
        csv::ByteRecord::new()
    };
    let place =
        |field: &Field| match field {
            Field::Number(number) => Ok(number - 1),
            Field::Name(name) => {
                let bare = |field: &[u8]| {
                    let text = String::from_utf8_lossy(field);
                    text.trim_start_matches('\u{feff}').trim().to_owned()
                };
                let fields: Vec<String> = header.iter().map(bare).collect();
                fields.iter().position(|field| field == name).ok_or_else(|| {
                let failure = Failure::data(format!(
                    "the header of the file of names {path} has no field {name:?}; it has {}",
                    fields.join(", ")
                ));
                match diagnostics::nearest(name, fields.iter().map(String::as_str)) {
                    Some(near) => failure.help(format!("did you mean {near:?}?")),
                    None => failure,
                }
            })
            }
        };
    let (label, name) = (place(&spec.label)?, place(&spec.name)?);
    let mut names = HashMap::new();
    let mut record = csv::ByteRecord::new();
    while reader.read_byte_record(&mut record).map_err(wrong)? {
        if let (Some(label), Some(name)) = (record.get(label), record.get(name)) {
            let text = |field: &[u8]| String::from_utf8_lossy(field).trim().to_owned();
            names.insert(text(label), text(name));
        }
    }
    Ok(names)
}

/// What separates the fields of the first line.
fn delimiter(path: &Path) -> u8 {
    use std::io::Read;
    let mut head = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        let _ = file.take(1 << 12).read_to_end(&mut head);
    }
    let line = head.split(|&byte| byte == b'\n').next().unwrap_or(&[]);
    [b'\t', b',', b';', b'|']
        .into_iter()
        .find(|delimiter| line.contains(delimiter))
        .unwrap_or(b',')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::resolved::Precision;
    use crate::output::npy::{Layout, Vectors};
    use crate::output::staging::Staging;

    /// Six columns, two directions: films 0 to 2 lie along the first, 3 to 5 along the second.
    fn run(spec: &ReportSpec, entries: Option<&[u64]>) -> (Vec<Nearest>, Vec<String>) {
        let root = tempfile::tempdir().unwrap();
        let mut staging = Staging::open(root.path(), 0).unwrap();
        let vectors = Vectors {
            count: 6,
            width: 2,
            precision: Precision::F32,
            layout: Layout::Columns,
        };
        let writer = staging.vectors("Vt.npy", vectors).unwrap();
        let v = [
            1.0, 0.0, 0.9, 0.1, 0.8, 0.3, 0.0, 1.0, 0.1, 0.9, 0.0, 0.0f64,
        ];
        writer.write(0, &v).unwrap();
        let names = ["10", "20", "30", "40", "50", "60"];
        labels::write(&mut staging, "columns.csv", names.iter().map(Ok)).unwrap();
        staging.commit().unwrap();
        report(spec, root.path(), &[2.0, 1.0], entries).unwrap()
    }

    #[test]
    fn the_nearest_come_first_and_the_column_itself_does_not() {
        let spec = ReportSpec {
            names: None,
            nearest: vec!["10".into(), "40".into()],
        };
        let (nearest, warnings) = run(&spec, None);
        assert!(warnings.is_empty());
        let of = |at: usize| -> Vec<&str> {
            let list = nearest[at].neighbours.iter();
            list.map(|neighbour| neighbour.name.as_str()).collect()
        };
        assert_eq!(of(0), ["20", "30", "50", "40"]);
        assert_eq!(of(1), ["50", "30", "20", "10"]);
        let cosine = nearest[0].neighbours[0].cosine;
        let expected = 1.8 / f64::hypot(1.8, 0.1);
        assert!((cosine - expected).abs() < 1e-6, "{cosine}");
    }

    #[test]
    fn columns_with_few_entries_are_left_out() {
        let spec = ReportSpec {
            names: None,
            nearest: vec!["10".into()],
        };
        let (nearest, _) = run(&spec, Some(&[1, 19, 20, 20, 20, 20]));
        assert_eq!(nearest[0].neighbours[0].name, "30");
    }

    #[test]
    fn names_are_used_and_unknown_ones_told_with_the_nearest() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("movies.csv");
        std::fs::write(
            &path,
            "movieId,title\n10,Heat (1995)\n20,\"Good, the Bad (1966)\"\n",
        )
        .unwrap();
        let spec = ReportSpec {
            names: Some(NamesSpec {
                path: path.clone(),
                label: Field::Name("movieId".into()),
                name: Field::Number(2),
            }),
            nearest: ["heat (1995)", "Good", "Haet (1995)", "30", "Zardoz"]
                .map(String::from)
                .to_vec(),
        };
        let (nearest, warnings) = run(&spec, None);
        assert_eq!(nearest.len(), 2);
        assert_eq!(nearest[0].of, "Heat (1995)");
        assert_eq!(nearest[0].neighbours[0].name, "Good, the Bad (1966)");
        assert_eq!(
            warnings,
            [
                "no column is called \"Good\"; did you mean \"Good, the Bad (1966)\"?",
                "no column is called \"Haet (1995)\"; did you mean \"Heat (1995)\"?",
                "no column is called \"Zardoz\"",
            ]
        );
        let spec = NamesSpec {
            path,
            label: Field::Name("movieid".into()),
            name: Field::Name("title".into()),
        };
        let failure = read_names(&spec).unwrap_err();
        assert_eq!(failure.help.as_deref(), Some("did you mean \"movieId\"?"));
    }
}
