//! New rows in terms of factors that are there: scores A V, or rows of U, A V / s.
//!
//! A row's scores are summed in `f64` in the order of the model's columns, so they depend on that row's entries alone: not
//! on the order of lines, not on the other rows of the input, not on cores or memory. Where the model was made of a centred
//! or scaled matrix, new rows are treated alike.

mod centring;
mod model;

use std::{
    io::Write,
    path::PathBuf,
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use serde::Serialize;
use shared::{
    matrix::{block::RowBlock, facts::BlockFacts},
    size,
};

pub use self::model::Model;
use self::{centring::Shift, model::Mapped};
use crate::{
    cache::{Cache, LoadError},
    failure::Failure,
    ingest::Ingested,
    job::resolved::{MatrixSpec, Resources},
    output::{
        labels,
        npy::{Layout, VectorWriter, Vectors},
        staging::{FileFacts, MANIFEST, Staging},
    },
    report::{
        numbers::count,
        progress::{Event, Observer, Stage, Unit},
    },
    run::{self, BASE_BYTES, TRIES},
};

/// Name of the file.
pub const SCORES: &str = "scores.npy";
/// Rows whose scores are in memory at once, for each core.
const PIECE: usize = 1024;
/// Unknown labels that are named.
const NAMED: usize = 5;

/// What is made of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// A V, as scikit-learn's `TruncatedSVD.transform` gives it.
    Scores,
    /// A V / s: what the row would be in U.
    U,
}

impl What {
    pub const WORDS: [(&str, Self); 2] = [("scores", Self::Scores), ("u", Self::U)];
}

/// What is to be projected, how and where to.
#[derive(Clone, Debug)]
pub struct Wish {
    pub matrix: MatrixSpec,
    pub what: What,
    pub directory: PathBuf,
    pub resources: Resources,
}

/// What a projection was and what came out.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Projected {
    pub rows: u64,
    /// Numbers of each row, k.
    pub rank: u64,
    /// Entries of the input.
    pub entries: u64,
    pub unknown: Unknown,
    pub directory: PathBuf,
    pub warnings: Vec<String>,
}

/// What of the input the model does not know, and what was left out therefore.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Unknown {
    pub columns: u64,
    pub entries: u64,
    /// The first few labels.
    pub labels: Vec<String>,
}

#[derive(Serialize)]
struct Manifest<'a> {
    format: u32,
    svdjob: &'static str,
    /// So that nobody takes it for the manifest of factors.
    kind: &'static str,
    what: What,
    model: &'a std::path::Path,
    /// Of the model's manifest: names the run that made it.
    model_blake3: &'a str,
    input: &'a MatrixSpec,
    rows: u64,
    rank: u64,
    entries: u64,
    unknown: &'a Unknown,
    files: &'a [FileFacts],
}

/// Grows by keys; a key that is there keeps its meaning.
const FORMAT: u32 = 1;

/// Projects the rows of an input, and leaves what comes out in a directory.
///
/// # Errors
/// As told by the code of the failure.
pub fn transform(
    model: &Model,
    wish: &Wish,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Projected, Failure> {
    let cache = Cache::open(&wish.resources.cache, wish.resources.cache_max)?;
    let mut fresh = false;
    for _ in 0..TRIES {
        let staging = Staging::open(&wish.directory, 0)?;
        let ingested = run::ingested(
            &wish.matrix,
            &wish.resources,
            &run::Reading {
                cache: &cache,
                fresh,
                allow_transpose: false,
            },
            observer,
            stop,
        )?;
        let blocks = ingested.inputs.clone();
        match projected(model, wish, &ingested, staging, observer, stop) {
            Ok(done) => return Ok(done),
            Err(Broken::Failed(failure)) => return Err(failure),
            Err(Broken::Block(why)) if why.is_cured_by_ingest() => {
                observer.observe(Event::Warning(format!("{why}; the input is read again")));
                drop(ingested);
                cache.forget(&blocks)?;
                fresh = true;
            }
            Err(Broken::Block(why)) => return Err(Failure::resources(why.to_string())),
        }
    }
    Err(run::damaged_again(&wish.resources))
}

enum Broken {
    Failed(Failure),
    Block(LoadError),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

fn projected(
    model: &Model,
    wish: &Wish,
    ingested: &Ingested,
    mut staging: Staging,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Projected, Broken> {
    let mapped = model.map(&ingested.column_labels)?;
    let unknown: Vec<usize> = mapped.unknown().collect();
    if mapped.known() == 0 {
        return Err(Failure::data(format!(
            "none of the {} column labels of {} is a column of {}: the first are {}",
            count(ingested.column_labels.len() as u64),
            wish.matrix.path.display(),
            model.directory().display(),
            named(ingested, &unknown).join(", ")
        ))
        .help("is it the right model, and is --columns the field that was its columns?")
        .into());
    }
    let threads = threads(model, wish, ingested, &mapped)?;
    let basis = Basis {
        v: model.rows(&mapped)?,
        divisors: match wish.what {
            What::Scores => None,
            What::U => Some(model.sigma()),
        },
        rank: model.rank() as usize,
        slots: mapped.slots(),
        shift: match model.centring() {
            None => None,
            Some(centring) => Some(Shift::new(model, centring, &mapped)?),
        },
    };
    let writer = staging.vectors(
        SCORES,
        Vectors {
            count: ingested.facts.rows,
            width: model.rank(),
            precision: model.precision(),
            layout: Layout::Rows,
        },
    )?;
    observer.observe(Event::Stage(Stage {
        title: "projecting".to_owned(),
        unit: Unit::Entries,
        total: Some(ingested.facts.nnz),
        pass: None,
    }));
    let left_out = walk(
        ingested,
        &basis,
        &writer,
        threads,
        &mut |done| observer.observe(Event::Done(done)),
        stop,
    )
    .map_err(|broken| match broken {
        Stopped::Interrupted => Broken::Failed(Failure::interrupted()),
        Stopped::Block(why) => Broken::Block(why),
        Stopped::Written(why) => Broken::Failed(staging.io(SCORES, &why)),
    })?;
    labels::write(
        &mut staging,
        "rows.csv",
        (0..ingested.row_labels.len()).map(|i| Ok(ingested.row_labels.bytes(i).into_owned())),
    )?;
    let mut done = Projected {
        rows: ingested.facts.rows,
        rank: model.rank(),
        entries: ingested.facts.nnz,
        unknown: Unknown {
            columns: unknown.len() as u64,
            entries: left_out,
            labels: named(ingested, &unknown),
        },
        directory: wish.directory.clone(),
        warnings: Vec::new(),
    };
    done.warnings.extend(left_out_in_words(&done));
    write_manifest(&mut staging, model, wish, &done)?;
    // The last moment at which an interruption leaves the old files.
    if stop.load(Ordering::Relaxed) {
        return Err(Failure::interrupted().into());
    }
    staging.commit()?;
    Ok(done)
}

/// The first of some columns, as people know them.
fn named(ingested: &Ingested, columns: &[usize]) -> Vec<String> {
    let first = columns.iter().take(NAMED);
    first
        .map(|&column| ingested.column_labels.text(column).into_owned())
        .collect()
}

fn left_out_in_words(done: &Projected) -> Option<String> {
    let unknown = &done.unknown;
    (unknown.columns > 0).then(|| {
        let more = if unknown.columns > unknown.labels.len() as u64 {
            ", ..."
        } else {
            ""
        };
        format!(
            "{} of {} entries are left out: the model does not know their {} ({}{more})",
            count(unknown.entries),
            count(done.entries),
            match unknown.columns {
                1 => "column".to_owned(),
                columns => format!("{} columns", count(columns)),
            },
            unknown.labels.join(", ")
        )
    })
}

/// As many of the cores as the memory feeds beside the part of V that is needed.
fn threads(
    model: &Model,
    wish: &Wish,
    ingested: &Ingested,
    mapped: &Mapped,
) -> Result<usize, Failure> {
    let blocks = &ingested.facts.blocks;
    let block = blocks.iter().map(|b| b.bytes).max().unwrap_or(0);
    let number = size_of::<f64>() as u64;
    let v = mapped.known() as u64 * model.rank() * number;
    let needed =
        |threads: u64| BASE_BYTES + v + threads * (block + PIECE as u64 * model.rank() * number);
    let memory = wish.resources.memory;
    if needed(1) > memory {
        return Err(Failure::resources(format!(
            "memory = {} is too little: V of the {} columns that the input has, {} numbers each, takes {}, and all together {}",
            size::show(memory),
            count(mapped.known() as u64),
            model.rank(),
            size::show(v),
            size::show(needed(1))
        ))
        .help(format!(
            "allow --memory \"{} MiB\" or more, or factor with a smaller rank",
            needed(1).div_ceil(1 << 20)
        )));
    }
    let most = wish.resources.cores.clamp(1, blocks.len().max(1));
    Ok((1..=most)
        .rev()
        .find(|&threads| needed(threads as u64) <= memory)
        .unwrap_or(1))
}

fn write_manifest(
    staging: &mut Staging,
    model: &Model,
    wish: &Wish,
    done: &Projected,
) -> Result<(), Failure> {
    let files = staging.seal()?;
    let manifest = Manifest {
        format: FORMAT,
        svdjob: env!("CARGO_PKG_VERSION"),
        kind: "scores",
        what: wish.what,
        model: model.directory(),
        model_blake3: model.blake3(),
        input: &wish.matrix,
        rows: done.rows,
        rank: done.rank,
        entries: done.entries,
        unknown: &done.unknown,
        files: &files,
    };
    let mut text = serde_json::to_string_pretty(&manifest)
        .map_err(|error| Failure::bug(format!("the manifest cannot be put into words: {error}")))?;
    text.push('\n');
    let mut file = staging.create(MANIFEST, 0)?;
    file.write_all(text.as_bytes())
        .map_err(|error| staging.io(MANIFEST, &error))
}

/// The part of V that the input has entries for, and what is divided by.
struct Basis<'a> {
    /// Rows of V one after the other, in the order of the model's columns.
    v: Vec<f64>,
    divisors: Option<&'a [f64]>,
    rank: usize,
    /// Row of `v` of each column of the input.
    slots: &'a [Option<u32>],
    shift: Option<Shift>,
}

enum Stopped {
    Interrupted,
    Block(LoadError),
    Written(std::io::Error),
}

/// Projects all blocks; gives the number of entries in columns that the model does not know.
fn walk(
    ingested: &Ingested,
    basis: &Basis<'_>,
    writer: &VectorWriter,
    threads: usize,
    progress: &mut dyn FnMut(u64),
    stop: &AtomicBool,
) -> Result<u64, Stopped> {
    let blocks = &ingested.facts.blocks;
    let next = AtomicUsize::new(0);
    // One that fails ends the others.
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        for _ in 0..threads {
            let tell = tell.clone();
            let (next, over) = (&next, &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let Some(facts) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) else {
                        break;
                    };
                    let done = project(ingested, facts, basis, writer, stop);
                    if done.is_err() {
                        over.store(true, Ordering::Relaxed);
                    }
                    if tell
                        .send(done.map(|left_out| (facts.nnz, left_out)))
                        .is_err()
                    {
                        break;
                    }
                }
            });
        }
        drop(tell);
        let (mut entries, mut left_out) = (0, 0);
        for done in told {
            let (more, unknown) = done?;
            entries += more;
            left_out += unknown;
            progress(entries);
        }
        Ok(left_out)
    })
}

fn project(
    ingested: &Ingested,
    facts: &BlockFacts,
    basis: &Basis<'_>,
    writer: &VectorWriter,
    stop: &AtomicBool,
) -> Result<u64, Stopped> {
    let bytes = ingested.load(&facts.hash).map_err(Stopped::Block)?;
    let block = RowBlock::parse(bytes).map_err(|why| {
        Stopped::Block(LoadError::Damaged {
            hash: facts.hash,
            why,
        })
    })?;
    let mut entries = block.entries().peekable();
    let mut left_out = 0;
    let (mut terms, mut scores) = (Vec::new(), Vec::new());
    for first in (0..block.rows()).step_by(PIECE) {
        if stop.load(Ordering::Relaxed) {
            return Err(Stopped::Interrupted);
        }
        let rows = first..block.rows().min(first + PIECE);
        scores.clear();
        scores.resize(rows.len() * basis.rank, 0.0);
        for (row, scores) in rows.zip(scores.chunks_exact_mut(basis.rank)) {
            terms.clear();
            while let Some((_, column, value)) = entries.next_if(|entry| entry.0 == row) {
                match basis.slots[column] {
                    Some(slot) => terms.push((slot, value)),
                    None => left_out += 1,
                }
            }
            // Columns of the input are in the order of its own labels, which others of them may change.
            terms.sort_unstable_by_key(|term| term.0);
            let shift = basis.shift.as_ref();
            let mean = shift.map_or(0.0, |shift| shift.entries(&mut terms));
            for &(slot, value) in &terms {
                let at = slot as usize * basis.rank;
                for (score, v) in scores.iter_mut().zip(&basis.v[at..at + basis.rank]) {
                    *score += value * v;
                }
            }
            if let Some(shift) = shift {
                shift.absent(mean, scores);
            }
            for (score, sigma) in scores.iter_mut().zip(basis.divisors.unwrap_or(&[])) {
                *score /= sigma;
            }
        }
        let at = facts.first_row + first as u64;
        writer.write(at, &scores).map_err(Stopped::Written)?;
    }
    Ok(left_out)
}
