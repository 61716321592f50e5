//! Ratings in, row blocks out, without ever holding them all.
//!
//! 1. Threads take chunks of the input in turn and parse them into records of (row, column, value), each thread with
//!    numbers of its own for the labels it meets. Records stay in memory as far as the budget goes, then in a file.
//! 2. The threads' labels are merged and sorted, which gives every row and column its index: a function of the set of
//!    labels, never of the order of lines or of the timing of threads.
//! 3. Records are sorted by bucket (a run of rows of about a million entries), then each bucket by row and column, cut
//!    into blocks, encoded and written to the [cache](crate::cache).
//!
//! Only labels (about 40 bytes for each row and column, and thread that met it) grow with the matrix.
//!
//! Entries of the same row and column are found in step 3. If the job allows them, the records are then made unique in a
//! pass of their own and step 3 starts over; who has none does not pay.

mod dialect;
mod labels;
pub(crate) mod parallel;
mod parse;
mod problem;
mod sort;
mod source;
mod spill;
mod strict;
#[cfg(test)]
mod tests;
mod values;

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use shared::{farm::ids::ContentHash, matrix::facts::MatrixFacts};

pub use self::{dialect::Delimiter, labels::Labels, source::Packing};
use self::{
    dialect::Plan,
    labels::Axis,
    parallel::Step,
    parse::Local,
    sort::{Bench, Built, Dictionary, Layout, Piece, Twins},
    source::Source,
    spill::Spill,
    values::ValueFacts,
};
use crate::{
    cache::{Cache, CacheInputs, Entry, LoadError, Manifest, Sidecar, SourceIdentity},
    centring::Centring,
    failure::Failure,
    job::resolved::{Duplicates, MatrixSpec},
};
use shared::farm::bytes::Bytes;

/// How to ingest; nothing here changes what comes out, except `allow_transpose`.
pub struct IngestOptions<'a> {
    pub cache: &'a Cache,
    /// Budget of the whole process in bytes; ingest keeps well below it.
    pub memory: u64,
    pub cores: usize,
    /// Read the input even when the cache holds it.
    pub fresh: bool,
    /// Turn a matrix with fewer rows than columns on its side.
    pub allow_transpose: bool,
}

/// What an ingest is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    Reading,
    Sorting,
    Writing,
}

/// How far an ingest is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IngestProgress {
    pub stage: Stage,
    /// Of the file, packed as it is.
    pub bytes_read: u64,
    pub bytes_total: u64,
    pub entries: u64,
    /// Groups of blocks; 0 of 0 while reading.
    pub groups_done: usize,
    pub groups: usize,
}

/// A matrix in the cache, in use as long as `inputs` lives.
#[derive(Debug)]
pub struct Ingested {
    pub facts: MatrixFacts,
    /// Labels of the matrix's rows: the input's columns if `transposed`.
    pub row_labels: Labels,
    pub column_labels: Labels,
    pub transposed: bool,
    /// Nothing was parsed: the cache held it.
    pub reused: bool,
    /// Lines that made an entry.
    pub lines: u64,
    /// Of the input, now; 0 when reused.
    pub bytes_read: u64,
    pub seconds: f64,
    pub inputs: CacheInputs,
    source: SourceIdentity,
    /// What the input holds, where the facts and blocks are those of the centred matrix.
    pub centred: Option<Box<Uncentred>>,
}

/// A matrix before it was centred.
#[derive(Debug)]
pub struct Uncentred {
    pub facts: MatrixFacts,
    pub inputs: CacheInputs,
    pub centring: Centring,
}

impl Ingested {
    /// Reads a block of the matrix.
    pub fn load(&self, hash: &ContentHash) -> Result<Bytes, LoadError> {
        self.inputs.load(hash)
    }

    /// What tells the input's file from what it was before.
    pub(crate) fn source(&self) -> &SourceIdentity {
        &self.source
    }

    fn new(entry: Entry, reused: bool, bytes_read: u64, started: Instant) -> Self {
        let mut facts = entry.manifest.facts;
        facts.column_squares = entry.sidecar.column_squares;
        Self {
            facts,
            row_labels: entry.sidecar.row_labels,
            column_labels: entry.sidecar.column_labels,
            transposed: entry.manifest.transposed,
            reused,
            lines: entry.manifest.lines,
            bytes_read,
            seconds: started.elapsed().as_secs_f64(),
            inputs: entry.inputs,
            source: entry.manifest.source,
            centred: None,
        }
    }
}

/// The head of an input, as `svdjob check` shows it.
#[derive(Clone, Debug)]
pub struct Head {
    pub path: PathBuf,
    pub file_bytes: u64,
    pub packing: Packing,
    pub delimiter: Delimiter,
    /// Names in the first line, if it is a header.
    pub header: Option<Vec<String>>,
    /// Fields of every line.
    pub fields: usize,
    /// Places of the fields that are read, from 1.
    pub row: usize,
    pub column: usize,
    pub value: Option<usize>,
    /// Guessed from the length of the first lines (and for packed files from a usual ratio).
    pub lines_about: u64,
    /// What is wrong with the first lines.
    pub problems: Vec<Failure>,
}

/// Most threads that parse.
const THREADS_MAX: usize = 8;
const CHUNK: u64 = 4 << 20;
/// What one thread needs to sort and encode a bucket.
const SORTING: u64 = 40 << 20;

/// Brings the matrix into the cache, or finds it there.
pub fn ingest(
    spec: &MatrixSpec,
    options: &IngestOptions<'_>,
    progress: &mut dyn FnMut(IngestProgress),
    stop: &AtomicBool,
) -> Result<Ingested, Failure> {
    let started = Instant::now();
    let identity = identify(&spec.path)?;
    let key = identity.key(&format!(
        "{:?} {:?} {:?} {:?} {}",
        spec.rows, spec.columns, spec.values, spec.duplicates, options.allow_transpose
    ));
    if !options.fresh
        && let Some(entry) = options.cache.find(&key)?
    {
        return Ok(Ingested::new(entry, true, 0, started));
    }
    let work = Ingest {
        spec,
        options,
        // Room for the rest of the process.
        memory: options.memory / 10 * 6,
        stop,
    };
    let source = Source::open(spec, CHUNK.min(work.memory / 64).max(64 << 10) as usize)?;
    let staging = options.cache.stage()?;
    work.forecast(&source, staging.path())?;
    let bytes_total = source.file_len;
    let mut state = IngestProgress {
        stage: Stage::Reading,
        bytes_read: 0,
        bytes_total,
        entries: 0,
        groups_done: 0,
        groups: 0,
    };
    let parsed = work.parse(source, staging.path(), &mut state, progress)?;
    let (facts, row_labels, column_labels, transposed) =
        work.sort(parsed, &staging, &mut state, progress)?;
    if identify(&spec.path)? != identity {
        return Err(Failure::data(format!(
            "{} was changed while it was read",
            spec.path.display()
        ))
        .help("run again when it is complete"));
    }
    let (manifest, column_squares) = Manifest::new(identity, facts, transposed, state.entries);
    let sidecar = Sidecar {
        row_labels,
        column_labels,
        column_squares,
    };
    let entry = options.cache.commit(staging, &key, manifest, sidecar)?;
    options.cache.bound()?;
    Ok(Ingested::new(entry, false, state.bytes_read, started))
}

fn identify(path: &Path) -> Result<SourceIdentity, Failure> {
    SourceIdentity::of(path).map_err(|e| problem::opening(path, &e))
}

/// Looks at the head of the input, and at nothing else.
pub fn peek(spec: &MatrixSpec) -> Result<Head, Failure> {
    let mut source = Source::open(spec, CHUNK as usize)?;
    let plan = source.understood.plan;
    let mut problems = Vec::new();
    let whole = memchr::memrchr(b'\n', source.head()).map_or(0, |n| n + 1);
    let mut local = Local::new(1 << 12);
    let first = source.understood.data_line;
    let (mut at, mut line) = (0, first);
    let mut ranges = Vec::new();
    let head = &source.head()[..whole];
    while at < head.len() && problems.len() < 5 {
        let next = dialect::split(plan.delimiter, head, at, &mut ranges).unwrap_or(head.len());
        let record = &head[at..next];
        if let Err(failure) = strict::strict(&spec.path, &plan, record, 0, line, &mut local) {
            problems.push(failure);
        }
        line += memchr::memchr_iter(b'\n', record).count() as u64;
        at = next;
    }
    let lines_about = source.text_len() / source.line_len().max(1) as u64;
    if source.head().iter().all(u8::is_ascii_whitespace) {
        problems.push(no_data(&spec.path, source.understood.header.is_some()));
    }
    Ok(Head {
        path: spec.path.clone(),
        file_bytes: source.file_len,
        packing: source.packing,
        delimiter: plan.delimiter,
        header: source.understood.header.take(),
        fields: plan.fields,
        row: plan.row + 1,
        column: plan.column + 1,
        value: plan.value.map(|v| v + 1),
        lines_about,
        problems,
    })
}

fn no_data(path: &Path, header: bool) -> Failure {
    dialect::empty(
        path,
        if header {
            "holds a header line and no data"
        } else {
            "holds no data"
        },
    )
}

struct Ingest<'a> {
    spec: &'a MatrixSpec,
    options: &'a IngestOptions<'a>,
    memory: u64,
    stop: &'a AtomicBool,
}

/// An input parsed.
struct Parsed {
    spill: Spill,
    pieces: Vec<Piece>,
    rows: Axis,
    columns: Axis,
    /// Lines of each row.
    row_counts: Vec<u64>,
    value_tables: Vec<Vec<f64>>,
    facts: ValueFacts,
}

impl Ingest<'_> {
    /// Refuses to start when the disk cannot hold what will be written.
    fn forecast(&self, source: &Source, dir: &Path) -> Result<(), Failure> {
        let lines = source.text_len() / source.line_len().max(1) as u64;
        let spilled = (lines * spill::CODED as u64).saturating_sub(self.in_memory(self.threads()));
        let needed = spilled + lines * 6;
        let Ok(free) = fs4::available_space(dir) else {
            return Ok(());
        };
        if free < needed {
            return Err(Failure::resources(format!(
                "the disk of {} has {} MB free; reading {} (about {lines} lines) will need about {} MB",
                self.options.cache.path().display(),
                free / 1_000_000,
                self.spec.path.display(),
                needed / 1_000_000,
            ))
            .help("free some space, or name a directory on a larger disk as `resources.cache`"));
        }
        Ok(())
    }

    fn threads(&self) -> usize {
        let parsing = self.memory / (16 << 20);
        self.options
            .cores
            .clamp(1, THREADS_MAX)
            .min(parsing.max(1) as usize)
    }

    fn sorting_threads(&self) -> usize {
        self.threads().min((self.memory / SORTING).max(1) as usize)
    }

    /// Bytes of records that may stay in memory.
    fn in_memory(&self, threads: usize) -> u64 {
        let parsing = threads as u64 * (16 << 20);
        let sorting = self.sorting_threads() as u64 * SORTING;
        // Labels take what they take; leave them a quarter.
        (self.memory / 4 * 3).saturating_sub(parsing.max(sorting))
    }

    fn parse(
        &self,
        source: Source,
        dir: &Path,
        state: &mut IngestProgress,
        progress: &mut dyn FnMut(IngestProgress),
    ) -> Result<Parsed, Failure> {
        let threads = self.threads();
        let spill = Spill::new(dir, self.in_memory(threads))?;
        let plan = source.understood.plan;
        let has_header = source.understood.header.is_some();
        let read = std::sync::Arc::clone(&source.read);
        let entries = AtomicU64::new(0);
        // Small labels are looked up in a table of their own: 4 bytes for each number up to the largest.
        let direct_max = (self.memory / (32 * threads as u64)).clamp(1 << 12, 1 << 24);
        let states: Vec<_> = (0..threads)
            .map(|thread| (thread, Local::new(direct_max), Vec::new()))
            .collect();
        let source = Mutex::new(Some(source));
        let (locals, pieces) = parallel::run(
            states,
            self.stop,
            &mut || {
                progress(IngestProgress {
                    bytes_read: read.load(Ordering::Relaxed),
                    entries: entries.load(Ordering::Relaxed),
                    ..*state
                });
            },
            |(thread, local, buffer), _| {
                let chunk = {
                    let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
                    let Some(open) = source.as_mut() else {
                        return Step::End;
                    };
                    match open.next(buffer) {
                        Ok(Some(chunk)) => chunk,
                        Ok(None) => {
                            *source = None;
                            return Step::End;
                        }
                        Err(failure) => {
                            let number = open.chunks();
                            *source = None;
                            return Step::Done(number, Err(failure));
                        }
                    }
                };
                let before = local.entries;
                let piece = self.parse_chunk(&plan, buffer, &chunk, local, &spill);
                entries.fetch_add(local.entries - before, Ordering::Relaxed);
                let piece = piece.map(|(records, wide)| Piece {
                    records,
                    wide,
                    thread: *thread,
                });
                Step::Done(chunk.number, piece)
            },
        )?;
        state.entries = entries.into_inner();
        state.bytes_read = read.load(Ordering::Relaxed);
        if state.entries == 0 {
            return Err(no_data(&self.spec.path, has_header));
        }
        let mut facts = ValueFacts::none();
        let (mut rows, mut columns) = (Vec::new(), Vec::new());
        let (mut counts, mut value_tables) = (Vec::new(), Vec::new());
        for (_, local, _) in locals {
            facts = facts.join(local.values.facts());
            value_tables.push(local.values.table().to_vec());
            counts.push(local.row_counts);
            rows.push(local.rows.finish());
            columns.push(local.columns.finish());
        }
        let merge = |met, what: &str| {
            labels::merge(met).ok_or_else(|| {
                Failure::data(format!(
                    "{} has more than {} {what}",
                    self.spec.path.display(),
                    u32::MAX - 1
                ))
            })
        };
        let rows = merge(rows, "rows")?;
        let mut row_counts = vec![0; rows.labels.len()];
        for (index_of, counts) in rows.index_of.iter().zip(counts) {
            for (&index, count) in index_of.iter().zip(counts) {
                row_counts[index as usize] += u64::from(count);
            }
        }
        Ok(Parsed {
            spill,
            pieces,
            rows,
            columns: merge(columns, "columns")?,
            row_counts,
            value_tables,
            facts,
        })
    }

    fn parse_chunk(
        &self,
        plan: &Plan,
        buffer: &[u8],
        chunk: &source::Chunk,
        local: &mut Local,
        spill: &Spill,
    ) -> Result<(spill::Kept, bool), Failure> {
        local.begin();
        let data = &buffer[..chunk.len + source::PADDING];
        let at = parse::fast(plan, data, 0, chunk.len, local);
        if at < chunk.len {
            let data = &buffer[..chunk.len];
            strict::strict(&self.spec.path, plan, data, at, chunk.line, local)?;
        }
        if local.entries > u64::from(u32::MAX) - CHUNK {
            return Err(Failure::resources(format!(
                "{} has more lines than {} threads can count",
                self.spec.path.display(),
                self.threads()
            ))
            .help("give the job more cores"));
        }
        Ok((spill.keep(&local.out)?, local.wide))
    }

    fn sort(
        &self,
        parsed: Parsed,
        staging: &crate::cache::Staging,
        state: &mut IngestProgress,
        progress: &mut dyn FnMut(IngestProgress),
    ) -> Result<(MatrixFacts, Labels, Labels, bool), Failure> {
        let Parsed {
            spill,
            pieces,
            rows,
            columns,
            row_counts,
            value_tables,
            facts,
        } = parsed;
        let transposed = self.options.allow_transpose && rows.labels.len() < columns.labels.len();
        let dictionaries: Vec<Dictionary> = rows
            .index_of
            .into_iter()
            .zip(columns.index_of)
            .zip(value_tables)
            .map(|((rows, columns), values)| Dictionary {
                rows,
                columns,
                values,
            })
            .collect();
        let bench = Bench {
            spill: &spill,
            threads: self.sorting_threads(),
            stop: self.stop,
        };
        state.stage = Stage::Sorting;
        let (row_labels, column_labels, counts) = if transposed {
            drop(row_counts);
            let n = columns.labels.len();
            let mut tick = || progress(*state);
            let counts = sort::count_columns(&bench, &pieces, &dictionaries, n, &mut tick)?;
            (columns.labels, rows.labels, counts)
        } else {
            (rows.labels, columns.labels, row_counts)
        };
        let n = column_labels.len();
        let mut given = (pieces, dictionaries, transposed, counts, facts);
        loop {
            let (pieces, dictionaries, transpose, counts, facts) = given;
            let layout = Layout::new(counts, n, &facts);
            state.stage = Stage::Sorting;
            state.groups = layout.buckets.len();
            let partitioned = sort::partition(
                &bench,
                pieces,
                &dictionaries,
                transpose,
                &layout,
                &mut || progress(*state),
            )?;
            drop(dictionaries);
            state.stage = Stage::Writing;
            let built = sort::build(&bench, staging, &partitioned, &layout, &mut |groups_done| {
                progress(IngestProgress {
                    groups_done,
                    ..*state
                });
            })?;
            match built {
                Built::Blocks {
                    blocks,
                    column_squares,
                } => {
                    let facts = MatrixFacts {
                        rows: row_labels.len() as u64,
                        columns: n as u64,
                        nnz: layout.counts.iter().sum(),
                        blocks,
                        encoding: layout.values.encoding,
                        max_abs: facts.max_abs,
                        column_squares,
                        view: None,
                    };
                    return Ok((facts, row_labels, column_labels, transposed));
                }
                Built::Twins(twins) if self.spec.duplicates == Duplicates::Error => {
                    let labels = (
                        row_labels.bytes(twins.row),
                        column_labels.bytes(twins.column as usize),
                    );
                    let (row, column) = if transposed {
                        (labels.1, labels.0)
                    } else {
                        labels
                    };
                    return Err(self.twins(&row, &column));
                }
                Built::Twins(Twins { .. }) => {
                    state.stage = Stage::Sorting;
                    let resolved = sort::resolve(
                        &bench,
                        partitioned,
                        &layout,
                        self.spec.duplicates,
                        &mut || progress(*state),
                    )?;
                    // Blocks written before the first twins were found are made anew.
                    staging.clear_blocks();
                    let same = |len: usize| (0..len as u32).collect();
                    let dictionary = Dictionary {
                        rows: same(row_labels.len()),
                        columns: same(n),
                        values: Vec::new(),
                    };
                    given = (
                        resolved.pieces,
                        vec![dictionary],
                        false,
                        resolved.counts,
                        resolved.facts,
                    );
                }
            }
        }
    }

    /// Names two lines of the same row and column: they are looked for in the input once more.
    fn twins(&self, row: &[u8], column: &[u8]) -> Failure {
        let lines = self.lines_of(row, column);
        let (row, column) = (problem::shown(row), problem::shown(column));
        let help =
            "say what to do with them: `duplicates` is \"error\", \"sum\", \"mean\" or \"last\"";
        match lines {
            Err(failure) if failure.code == crate::failure::ExitCode::Interrupted => failure,
            Ok(lines) if lines.len() == 2 => problem::at(
                &self.spec.path,
                problem::Place {
                    line: lines[1],
                    column: 1,
                },
                format!(
                    "row {row} and column {column} have a second value; the first is in line {}",
                    lines[0]
                ),
            )
            .help(help),
            _ => Failure::data(format!(
                "{}: row {row} and column {column} have two values",
                self.spec.path.display()
            ))
            .help(help),
        }
    }

    fn lines_of(&self, row: &[u8], column: &[u8]) -> Result<Vec<u64>, Failure> {
        let mut source = Source::open(self.spec, CHUNK as usize)?;
        let plan = source.understood.plan;
        let mut buffer = Vec::new();
        let mut lines = Vec::new();
        while let Some(chunk) = source.next(&mut buffer)?
            && lines.len() < 2
        {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Failure::interrupted());
            }
            let data = &buffer[..chunk.len];
            strict::each(&plan, data, 0, |fields, at| {
                let is =
                    |n: usize, label: &[u8]| fields.get(n).is_some_and(|f| f.trim_ascii() == label);
                if lines.len() < 2 && is(plan.row, row) && is(plan.column, column) {
                    lines.push(chunk.line + strict::lines_before(data, at));
                }
                Ok(())
            })?;
        }
        Ok(lines)
    }
}
