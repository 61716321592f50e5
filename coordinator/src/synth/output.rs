//! Where the text goes: a file under a temporary name, or standard output; packed if the name says so.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use tempfile::NamedTempFile;

use crate::failure::Failure;

/// How pieces of text are packed. Each piece is packed alone: gzip and zstd files may be a row of such pieces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    fn of(path: &Path) -> Self {
        match path.extension().and_then(OsStr::to_str) {
            Some("gz") => Self::Gzip,
            Some("zst") => Self::Zstd,
            _ => Self::Plain,
        }
    }

    /// `text` packed, by way of `packed`.
    pub fn pack<'t>(self, text: &'t [u8], packed: &'t mut Vec<u8>) -> &'t [u8] {
        packed.clear();
        match self {
            Self::Plain => return text,
            Self::Gzip => {
                let mut encoder = GzEncoder::new(&mut *packed, Compression::new(4));
                encoder
                    .write_all(text)
                    .and_then(|()| encoder.finish().map(drop))
                    .expect("memory takes every byte");
            }
            Self::Zstd => {
                zstd::stream::copy_encode(text, &mut *packed, 3).expect("memory takes every byte");
            }
        }
        packed
    }
}

/// An open output. Dropped without [`finish`](Output::finish), it leaves no file.
pub struct Output {
    pub packing: Packing,
    pub written: u64,
    name: String,
    sink: Sink,
}

enum Sink {
    Stdout(io::Stdout),
    /// What is no file and cannot be renamed over: a pipe, a device.
    Special(File),
    File(NamedTempFile, PathBuf),
}

impl Output {
    /// `None` and `-` are standard output. `plain_bytes` is what the text will take about.
    pub fn open(path: Option<&Path>, plain_bytes: u64) -> Result<Self, Failure> {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else {
            return Ok(Self {
                packing: Packing::Plain,
                written: 0,
                name: "standard output".into(),
                sink: Sink::Stdout(io::stdout()),
            });
        };
        let name = path.display().to_string();
        let packing = Packing::of(path);
        // A link is followed, so that it stays one.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let failed = |error: io::Error| Failure::resources(format!("cannot write {name}: {error}"));
        let sink = match fs::metadata(&path) {
            Ok(there) if there.is_dir() => {
                return Err(
                    Failure::resources(format!("cannot write {name}: it is a directory"))
                        .help("give --output the name of a file"),
                );
            }
            Ok(there) if !there.is_file() => {
                Sink::Special(File::options().write(true).open(&path).map_err(failed)?)
            }
            _ => {
                let directory = match path.parent() {
                    Some(parent) if parent != Path::new("") => parent,
                    _ => Path::new("."),
                };
                if packing == Packing::Plain
                    && let Ok(free) = fs4::available_space(directory)
                    && free < plain_bytes
                {
                    return Err(Failure::resources(format!(
                        "{name} will take about {} MB and {} MB are free there",
                        plain_bytes / 1_000_000,
                        free / 1_000_000
                    ))
                    .help(
                        "give --output a name on another disk, or one that ends in .zst or .gz",
                    ));
                }
                let mut builder = tempfile::Builder::new();
                builder.prefix(".synth-").suffix(".part");
                #[cfg(unix)]
                builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
                Sink::File(builder.tempfile_in(directory).map_err(failed)?, path)
            }
        };
        Ok(Self {
            packing,
            written: 0,
            name,
            sink,
        })
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.sink {
            Sink::Stdout(out) => out.write_all(bytes)?,
            Sink::Special(file) => file.write_all(bytes)?,
            Sink::File(file, _) => file.write_all(bytes)?,
        }
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// A reader that has seen enough, as `head` has.
    pub fn closed_by_reader(&self, error: &io::Error) -> bool {
        !matches!(self.sink, Sink::File(..)) && error.kind() == io::ErrorKind::BrokenPipe
    }

    pub fn failure(&self, error: &io::Error) -> Failure {
        let failure = Failure::resources(format!(
            "cannot write {} beyond {} MB: {error}",
            self.name,
            self.written / 1_000_000
        ));
        match error.kind() {
            io::ErrorKind::StorageFull => failure
                .help("give --output a name on another disk, or one that ends in .zst or .gz"),
            _ => failure,
        }
    }

    /// Puts the file in its place. Gives its name as people know it.
    pub fn finish(self) -> Result<String, Failure> {
        match self.sink {
            Sink::Stdout(mut out) => out.flush(),
            Sink::Special(_) => Ok(()),
            Sink::File(file, path) => file.persist(&path).map(drop).map_err(|error| error.error),
        }
        .map_err(|error| Failure::resources(format!("cannot write {}: {error}", self.name)))?;
        Ok(self.name)
    }
}
