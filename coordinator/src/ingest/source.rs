//! The input as a run of chunks, each ending where a record ends.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    dialect::{self, Delimiter, Understood},
    problem::{self, Place},
};
use crate::{failure::Failure, job::resolved::MatrixSpec};

/// Bytes after a chunk that a parser may look at: zeros.
pub(super) const PADDING: usize = 64;
/// Bytes that dialect and header are made out from.
const HEAD: usize = 256 << 10;
/// The longest record.
const RECORD_MAX: usize = 64 << 20;

/// How an input is packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    fn name(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
        }
    }
}

struct Counted {
    file: File,
    bytes: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.bytes.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// An open input whose head was understood.
pub(super) struct Source {
    path: PathBuf,
    reader: Box<dyn Read + Send>,
    pub packing: Packing,
    /// Bytes of the file.
    pub file_len: u64,
    /// Read from the file so far.
    pub read: Arc<AtomicU64>,
    unpacked: u64,
    pub understood: Understood,
    chunk: usize,
    rest: Vec<u8>,
    ended: bool,
    number: usize,
    line: u64,
}

/// A chunk: whole records.
pub(super) struct Chunk {
    pub number: usize,
    /// Of its first record.
    pub line: u64,
    /// Bytes; [`PADDING`] zeros follow in the buffer.
    pub len: usize,
}

impl Source {
    pub fn open(spec: &MatrixSpec, chunk: usize) -> Result<Self, Failure> {
        let path = &spec.path;
        let meta = fs::metadata(path).map_err(|e| problem::opening(path, &e))?;
        if meta.is_dir() {
            return Err(problem::directory(path));
        }
        let mut file = File::open(path).map_err(|e| problem::opening(path, &e))?;
        let mut magic = Vec::new();
        let reading = |e: &io::Error| problem::reading(path, None, 0, e);
        (&mut file)
            .take(4)
            .read_to_end(&mut magic)
            .map_err(|e| reading(&e))?;
        let packing = match magic.as_slice() {
            [] => return Err(dialect::empty(path, "is empty")),
            [0x1f, 0x8b, ..] => Packing::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd] => Packing::Zstd,
            _ => Packing::Plain,
        };
        io::Seek::rewind(&mut file).map_err(|e| reading(&e))?;
        let read = Arc::new(AtomicU64::new(0));
        let counted = Counted {
            file,
            bytes: Arc::clone(&read),
        };
        let reader: Box<dyn Read + Send> = match packing {
            Packing::Plain => Box::new(counted),
            Packing::Gzip => Box::new(flate2::read::MultiGzDecoder::new(counted)),
            Packing::Zstd => Box::new(zstd::Decoder::new(counted).map_err(|e| reading(&e))?),
        };
        let mut source = Self {
            path: path.clone(),
            reader,
            packing,
            file_len: meta.len(),
            read,
            unpacked: 0,
            understood: Understood {
                plan: dialect::Plan {
                    delimiter: Delimiter::Blanks,
                    fields: 0,
                    row: 0,
                    column: 0,
                    value: None,
                },
                header: None,
                data_at: 0,
                data_line: 1,
            },
            chunk,
            rest: Vec::new(),
            ended: false,
            number: 0,
            line: 1,
        };
        let mut head = vec![0; HEAD];
        let len = source.fill(&mut head, 0, HEAD)?;
        head.truncate(len);
        source.understood = dialect::understand(path, spec, &head, source.ended)?;
        head.drain(..source.understood.data_at);
        source.line = source.understood.data_line;
        source.rest = head;
        Ok(source)
    }

    /// Bytes of text in the file, as far as it can be told before unpacking.
    pub fn text_len(&self) -> u64 {
        match self.packing {
            Packing::Plain => self.file_len,
            Packing::Gzip | Packing::Zstd => self.file_len.saturating_mul(4),
        }
    }

    /// Mean length of the first data lines.
    pub fn line_len(&self) -> usize {
        let lines = memchr::memchr_iter(b'\n', &self.rest).count();
        self.rest.len() / lines.max(1)
    }

    /// The first data lines.
    pub fn head(&self) -> &[u8] {
        &self.rest
    }

    /// Reads on into `buffer[from..to]` until it is full or the input ends; gives where it stopped.
    fn fill(&mut self, buffer: &mut [u8], from: usize, to: usize) -> Result<usize, Failure> {
        let mut at = from;
        while at < to && !self.ended {
            match self.reader.read(&mut buffer[at..to]) {
                Ok(0) => self.ended = true,
                Ok(n) => {
                    at += n;
                    self.unpacked += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    return Err(problem::reading(
                        &self.path,
                        self.packing.name(),
                        self.unpacked,
                        &e,
                    ));
                }
            }
        }
        Ok(at)
    }

    /// The next chunk, in `buffer`; `None` at the end.
    pub fn next(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Chunk>, Failure> {
        let mut filled = self.rest.len();
        let mut wanted = self.chunk.max(filled);
        if buffer.len() < wanted + PADDING {
            buffer.resize(wanted + PADDING, 0);
        }
        buffer[..filled].copy_from_slice(&self.rest);
        let len = loop {
            filled = self.fill(buffer, filled, wanted)?;
            if self.ended {
                break filled;
            }
            match last_end(self.understood.plan.delimiter, &buffer[..filled]) {
                Some(end) => break end,
                None if wanted > RECORD_MAX => {
                    return Err(problem::at(
                        &self.path,
                        Place {
                            line: self.line,
                            column: 1,
                        },
                        format!("no line ends within {} MiB", RECORD_MAX >> 20),
                    )
                    .help("a quoted field is perhaps not closed, or the file is not text"));
                }
                None => {
                    wanted *= 2;
                    buffer.resize(wanted + PADDING, 0);
                }
            }
        };
        self.rest.clear();
        self.rest.extend_from_slice(&buffer[len..filled]);
        if len == 0 {
            return Ok(None);
        }
        let mut len = len;
        if self.ended && !matches!(buffer[len - 1], b'\n') {
            buffer.resize(buffer.len().max(len + 1 + PADDING), 0);
            buffer[len] = b'\n';
            len += 1;
        }
        buffer[len..len + PADDING].fill(0);
        let chunk = Chunk {
            number: self.number,
            line: self.line,
            len,
        };
        self.number += 1;
        self.line += memchr::memchr_iter(b'\n', &buffer[..len]).count() as u64;
        Ok(Some(chunk))
    }

    /// Chunks handed out so far.
    pub fn chunks(&self) -> usize {
        self.number
    }
}

/// Where the last whole record ends in data that start with a record.
fn last_end(delimiter: Delimiter, data: &[u8]) -> Option<usize> {
    if let Delimiter::Byte(_) = delimiter
        && memchr::memchr(b'"', data).is_some()
    {
        let mut fields = Vec::new();
        let mut at = 0;
        // A record that reaches the end of the data may go on.
        while let Some(next) = dialect::split(delimiter, data, at, &mut fields)
            && next < data.len()
        {
            at = next;
        }
        return (at > 0).then_some(at);
    }
    memchr::memrchr(b'\n', data).map(|n| n + 1)
}
