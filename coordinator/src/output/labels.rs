//! `rows.csv` and `columns.csv`: which label stands at which index.

use std::io::{self, BufWriter};
use std::path::Path;

use super::staging::Staging;
use crate::failure::Failure;

/// Writes `index,label`, one line each, indices from 0.
///
/// # Errors
/// Resources: the file cannot be written. An error of the iterator is one of reading, and is told so.
pub fn write<L: AsRef<[u8]>>(
    staging: &mut Staging,
    name: &str,
    labels: impl IntoIterator<Item = io::Result<L>>,
) -> Result<(), Failure> {
    let file = staging.create(name, 0)?;
    let mut writer = csv::Writer::from_writer(BufWriter::with_capacity(1 << 18, file));
    let failed = |error: csv::Error| match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        _ => io::Error::other("the label cannot be written"),
    };
    let line = || -> Result<(), (bool, io::Error)> {
        let written = |error| (true, failed(error));
        writer.write_record(["index", "label"]).map_err(written)?;
        for (index, label) in labels.into_iter().enumerate() {
            let label = label.map_err(|error| (false, error))?;
            writer
                .write_record([index.to_string().as_bytes(), label.as_ref()])
                .map_err(written)?;
        }
        writer.flush().map_err(|error| (true, error))
    };
    match line() {
        Ok(()) => Ok(()),
        Err((true, error)) => Err(staging.io(name, &error)),
        Err((false, error)) => Err(Failure::resources(format!(
            "the labels for {name} cannot be read: {error}"
        ))),
    }
}

/// Reads the labels back in order, without keeping them: index and label of each. How many there are.
///
/// # Errors
/// What is wrong with the file, in words.
pub fn walk(path: &Path, mut each: impl FnMut(u64, &[u8])) -> Result<u64, String> {
    let mut reader = csv::Reader::from_path(path).map_err(|error| error.to_string())?;
    let mut record = csv::ByteRecord::new();
    let mut count = 0u64;
    while reader
        .read_byte_record(&mut record)
        .map_err(|error| error.to_string())?
    {
        if record.get(0) != Some(count.to_string().as_bytes()) {
            return Err(format!("expected index {count} next"));
        }
        let Some(label) = record.get(1) else {
            return Err(format!("index {count} has no label"));
        };
        each(count, label);
        count += 1;
    }
    Ok(count)
}

/// Reads the labels back in order. What is not UTF-8 is replaced, for this serves to show them.
///
/// # Errors
/// As of the file; `InvalidData` where it is no such file.
pub fn read(path: &Path) -> io::Result<Vec<String>> {
    let mut reader = csv::Reader::from_path(path)?;
    let mut labels = Vec::new();
    for record in reader.byte_records() {
        let record = record?;
        let label = record
            .get(1)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        labels.push(String::from_utf8_lossy(label).into_owned());
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_come_back_whatever_they_hold() {
        let root = tempfile::tempdir().unwrap();
        let mut staging = Staging::open(root.path(), 0).unwrap();
        let labels = ["1", "a,b", "say \"x\"", "", "é", " two\nlines"];
        write(&mut staging, "rows.csv", labels.iter().map(Ok)).unwrap();
        staging.commit().unwrap();
        let path = root.path().join("rows.csv");
        assert_eq!(read(&path).unwrap(), labels);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("index,label\n0,1\n1,\"a,b\"\n"), "{text}");
    }
}
