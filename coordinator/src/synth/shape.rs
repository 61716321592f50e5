//! What is to be made: the size of the matrix and how its entries spread.

use clap::ValueEnum;

use crate::failure::Failure;

/// A data set whose size and habits are imitated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Like {
    /// MovieLens 25M: 162,541 x 59,047 with 25,000,095 entries; about 690 MB of text
    Ml25m,
    /// The Netflix Prize: 480,189 x 17,770 with 100,480,507 entries; about 2.7 GB of text
    Netflix,
    /// MovieLens 1M: 6,040 x 3,706 with 1,000,209 entries; about 25 MB of text
    Small,
    /// A shape of your own: give --rows, --columns and --entries
    Custom,
}

/// Size and spread.
#[derive(Clone, PartialEq, Debug)]
pub struct Shape {
    pub rows: u32,
    pub columns: u32,
    pub entries: u64,
    /// Entries that every row has at least.
    pub row_min: u32,
    /// Standard deviation of the logarithm of what a row has beyond that.
    pub spread: f64,
    /// Popularity of a column is (its rank + `head`)^-`fall`, the law of Zipf and Mandelbrot.
    pub head: f64,
    pub fall: f64,
}

impl Shape {
    pub fn ml25m() -> Self {
        Self {
            rows: 162_541,
            columns: 59_047,
            entries: 25_000_095,
            row_min: 20,
            spread: 1.35,
            head: 250.0,
            fall: 1.84,
        }
    }

    pub fn netflix() -> Self {
        Self {
            rows: 480_189,
            columns: 17_770,
            entries: 100_480_507,
            row_min: 1,
            spread: 1.25,
            head: 250.0,
            fall: 2.2,
        }
    }

    pub fn small() -> Self {
        Self {
            rows: 6_040,
            columns: 3_706,
            entries: 1_000_209,
            row_min: 20,
            spread: 1.14,
            head: 280.0,
            fall: 2.0,
        }
    }

    /// A shape of the caller's, with habits between those of the data sets above.
    pub fn custom(rows: u32, columns: u32, entries: u64) -> Result<Self, Failure> {
        let fewest = u64::from(rows.max(columns));
        let most = u64::from(rows) * u64::from(columns);
        if rows == 0 || columns == 0 {
            return Err(Failure::job(
                "a matrix needs at least one row and one column",
            ));
        }
        if columns > COLUMNS_MAX {
            return Err(Failure::job(format!(
                "--columns {columns} is more than {COLUMNS_MAX}, the most synth makes"
            )));
        }
        if entries < fewest || entries > most {
            return Err(Failure::job(format!(
                "{rows} x {columns} cannot hold {entries} entries: every row and every column has at least one, and \
                 no pair stands twice"
            ))
            .help(format!("give --entries between {fewest} and {most}")));
        }
        let mean = entries / u64::from(rows);
        Ok(Self {
            rows,
            columns,
            entries,
            row_min: (mean / 8).clamp(1, 20) as u32,
            spread: 1.3,
            head: (f64::from(columns) / 10.0).clamp(1.0, 250.0),
            fall: 2.0,
        })
    }

    /// Entries that a row has at most: six tenths of the columns, or more where the mean asks for it.
    pub fn row_max(&self) -> u32 {
        let mean = self.entries.div_ceil(u64::from(self.rows));
        let columns = u64::from(self.columns);
        (columns * 6 / 10).max((2 * mean).min(columns)) as u32
    }
}

/// Bounds the memory that the columns' tables take: about 100 bytes each.
const COLUMNS_MAX: u32 = 50_000_000;
