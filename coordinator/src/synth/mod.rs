//! `svdjob synth`: matrices like those of ratings, of any shape, for trying and sizing.
//!
//! Every row has its own stream of chance, named by the seed and the row's number, and every entry its own word. So
//! rows can be drawn in any order by any number of threads and the bytes are the same, and nothing of the matrix is
//! ever kept but one block a thread.

mod alias;
pub mod chance;
pub mod draw;
pub mod model;
mod output;
mod rows;
pub mod shape;
mod shuffle;
pub mod stats;
#[cfg(test)]
mod tests;
mod text;
mod turns;

use std::{
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    thread,
    time::Instant,
};

use clap::Args;

use self::{
    draw::Hand,
    model::Model,
    output::{Output, Packing},
    rows::Block,
    shape::{Like, Shape},
    stats::{Statistics, Tally},
    turns::{Early, in_order},
};
use crate::failure::Failure;

/// Make a matrix like those of ratings, as MovieLens's CSV, of any size.
///
/// Rows are users, columns films. Some users rate much more than others (log-normal), some films are rated much more
/// than others (Zipf-Mandelbrot, in shuffled columns), users differ in the topics they like, and ratings of 0.5 to 5
/// stars follow users, films, twelve hidden directions of taste, and noise. No pair stands twice, every row and
/// every column has an entry, and the number of entries is exact.
///
/// The same seed gives the same bytes on any number of threads. The matrix is never in memory: a few megabytes for each
/// thread are, and about 100 bytes for each column.
#[derive(Args, Clone, Debug)]
pub struct SynthArgs {
    /// What the matrix is to be like
    #[arg(value_enum)]
    pub like: Like,

    /// Rows (users) of a custom matrix
    #[arg(long, value_name = "M", required_if_eq("like", "custom"))]
    pub rows: Option<u32>,

    /// Columns (films) of a custom matrix
    #[arg(long, value_name = "N", required_if_eq("like", "custom"))]
    pub columns: Option<u32>,

    /// Entries (ratings) of a custom matrix; at least as many as rows and as columns
    #[arg(long, value_name = "COUNT", required_if_eq("like", "custom"))]
    pub entries: Option<u64>,

    /// Another seed gives another matrix of the same kind
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,

    /// Where to write; packed if the name ends in .gz or .zst; - is standard output
    ///
    /// The file appears under its name when it is whole.
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    pub output: PathBuf,

    /// Lines in random order instead of user by user
    ///
    /// The order is that of a hash of the pair, over the whole file. Takes no disk and up to 400 MB more memory: the
    /// matrix is drawn again for every eight million lines, so a large one takes several times as long.
    #[arg(long)]
    pub shuffle: bool,

    /// Say on standard error how the entries spread over rows, columns and values
    #[arg(long)]
    pub stats: bool,

    /// Threads to draw with; all cores if not given. Never changes the result
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
}

impl SynthArgs {
    fn shape(&self) -> Result<Shape, Failure> {
        let preset = match self.like {
            Like::Ml25m => Shape::ml25m(),
            Like::Netflix => Shape::netflix(),
            Like::Small => Shape::small(),
            Like::Custom => {
                let (Some(rows), Some(columns), Some(entries)) =
                    (self.rows, self.columns, self.entries)
                else {
                    return Err(Failure::job(
                        "a custom matrix needs --rows, --columns and --entries",
                    ));
                };
                return Shape::custom(rows, columns, entries);
            }
        };
        if self.rows.is_some() || self.columns.is_some() || self.entries.is_some() {
            return Err(
                Failure::job("--rows, --columns and --entries are for a custom matrix")
                    .help("say `svdjob synth custom` with all three, or leave them out"),
            );
        }
        Ok(preset)
    }
}

/// `svdjob synth`.
pub fn run(args: &SynthArgs, stop: &AtomicBool) -> Result<(), Failure> {
    let shape = args.shape()?;
    if args.output == Path::new("-") && io::stdout().is_terminal() {
        return Err(Failure::job(format!(
            "this would write {} lines to the terminal",
            shape.entries
        ))
        .help("give --output FILE, or send standard output to a program"));
    }
    let begun = Instant::now();
    let mut output = Output::open(Some(&args.output), shape.entries * LINE_BYTES)?;
    let threads = match args.threads {
        Some(threads) => usize::from(threads),
        None => thread::available_parallelism().map_or(1, usize::from),
    };
    let model = Model::new(shape, args.seed);
    let order = if args.shuffle {
        Order::Shuffled
    } else {
        Order::ByRow
    };
    let packing = output.packing;
    let tally = match write(&model, threads, order, packing, stop, |bytes| {
        output.write(bytes)
    }) {
        Ok(tally) => tally,
        Err(Early::Stopped) => return Err(Failure::interrupted()),
        Err(Early::Write(error)) if output.closed_by_reader(&error) => return Ok(()),
        Err(Early::Write(error)) => return Err(output.failure(&error)),
    };
    let megabytes = output.written as f64 / 1e6;
    let name = output.finish()?;
    let mut talk = format!(
        "{} x {} with {} entries: {megabytes:.1} MB to {name} in {:.1} s\n",
        model.shape.rows,
        model.shape.columns,
        model.shape.entries,
        begun.elapsed().as_secs_f64()
    );
    if args.stats {
        talk += &Statistics::new(&model, &tally).to_string();
    }
    // Nobody is left to tell when standard error is gone.
    let _ = io::stderr().write_all(talk.as_bytes());
    Ok(())
}

/// Bytes of a line, about.
const LINE_BYTES: u64 = 28;
/// Entries that a thread draws and writes at a time: about 3.5 MB of text.
const BLOCK_ENTRIES: u64 = 1 << 17;

/// In which order the lines stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Row by row, columns ascending.
    ByRow,
    /// By a hash of row and column.
    Shuffled,
}

/// Writes the whole matrix as CSV through `sink`.
fn write(
    model: &Model,
    threads: usize,
    order: Order,
    packing: Packing,
    stop: &AtomicBool,
    mut sink: impl FnMut(&[u8]) -> io::Result<()> + Send,
) -> Result<Tally, Early> {
    let mut pages = Vec::new();
    let mut header = Vec::new();
    sink(packing.pack(text::HEADER, &mut header)).map_err(Early::Write)?;
    let blocks = rows::blocks(&model.lengths, BLOCK_ENTRIES);
    match order {
        Order::ByRow => {
            let worker = || (Hand::new(model), Page::new(model, packing));
            let workers = in_order(
                threads,
                blocks.len(),
                stop,
                worker,
                |(hand, page), block| {
                    page.clear();
                    each_row(model, hand, &blocks[block], |hand, row| {
                        for &column in hand.columns() {
                            page.push(model, row, hand.entry(column, hand.word(column)));
                        }
                    });
                    page.bytes()
                },
                sink,
            )?;
            pages.extend(workers.into_iter().map(|(_, page)| page));
        }
        Order::Shuffled => {
            shuffle::write(model, threads, packing, &blocks, stop, sink, &mut pages)?
        }
    }
    let mut tally = Tally::new(model.shape.columns);
    for page in &pages {
        tally.add(&page.tally);
    }
    Ok(tally)
}

/// Draws the rows of `block` one after another.
fn each_row(model: &Model, hand: &mut Hand, block: &Block, mut f: impl FnMut(&Hand, u32)) {
    let mut start = block.start;
    for row in block.rows.clone() {
        hand.draw(row, start);
        start += u64::from(model.lengths[row as usize]);
        f(hand, row);
    }
}

/// Text in the making, one a thread.
struct Page {
    text: Vec<u8>,
    packed: Vec<u8>,
    packing: Packing,
    tally: Tally,
}

impl Page {
    fn new(model: &Model, packing: Packing) -> Self {
        Self {
            text: Vec::new(),
            packed: Vec::new(),
            packing,
            tally: Tally::new(model.shape.columns),
        }
    }

    fn clear(&mut self) {
        self.text.clear();
    }

    #[inline]
    fn push(&mut self, model: &Model, row: u32, entry: draw::Entry) {
        self.tally.count(entry.column, entry.half_stars);
        text::push(
            &mut self.text,
            row,
            model.labels[entry.column as usize],
            entry,
        );
    }

    fn bytes(&mut self) -> &[u8] {
        self.packing.pack(&self.text, &mut self.packed)
    }
}
