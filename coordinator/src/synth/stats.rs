//! What was drawn, counted.

use std::fmt;

use super::model::Model;

/// Counts of one thread.
pub struct Tally {
    columns: Vec<u32>,
    half_stars: [u64; 11],
}

impl Tally {
    pub fn new(columns: u32) -> Self {
        Self {
            columns: vec![0; columns as usize],
            half_stars: [0; 11],
        }
    }

    #[inline]
    pub fn count(&mut self, column: u32, half_stars: u8) {
        self.columns[column as usize] += 1;
        self.half_stars[usize::from(half_stars)] += 1;
    }

    pub fn add(&mut self, other: &Self) {
        for (sum, count) in self.columns.iter_mut().zip(&other.columns) {
            *sum += count;
        }
        for (sum, count) in self.half_stars.iter_mut().zip(&other.half_stars) {
            *sum += count;
        }
    }
}

/// The shape of what was drawn.
#[derive(Clone, PartialEq, Debug)]
pub struct Statistics {
    pub rows: usize,
    pub columns: usize,
    pub entries: u64,
    /// Entries of the shortest, the median and the longest row.
    pub row: [u32; 3],
    /// The same of columns.
    pub column: [u32; 3],
    /// Share of the entries in the 1,000 longest columns.
    pub top_1000: f64,
    /// Share of the entries in the longest tenth of the columns.
    pub top_tenth: f64,
    pub mean: f64,
    /// Share of 0.5, 1.0, ... 5.0 among the values.
    pub histogram: [f64; 10],
}

impl Statistics {
    pub fn new(model: &Model, tally: &Tally) -> Self {
        let mut columns = tally.columns.clone();
        columns.sort_unstable();
        let mut rows = model.lengths.clone();
        rows.sort_unstable();
        let entries: u64 = columns.iter().map(|&c| u64::from(c)).sum();
        let share = |count: usize| {
            let top: u64 = columns
                .iter()
                .rev()
                .take(count)
                .map(|&c| u64::from(c))
                .sum();
            top as f64 / entries as f64
        };
        let three = |sorted: &[u32]| {
            [
                sorted[0],
                sorted[sorted.len() / 2],
                sorted[sorted.len() - 1],
            ]
        };
        let sum: u64 = (0..)
            .zip(&tally.half_stars)
            .map(|(value, count)| value * count)
            .sum();
        Self {
            rows: rows.len(),
            columns: columns.len(),
            entries,
            row: three(&rows),
            column: three(&columns),
            top_1000: share(1000),
            top_tenth: share(columns.len().div_ceil(10)),
            mean: sum as f64 / (2 * entries) as f64,
            histogram: std::array::from_fn(|i| tally.half_stars[i + 1] as f64 / entries as f64),
        }
    }
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cells = self.rows as f64 * self.columns as f64;
        writeln!(
            f,
            "{} x {}, {} entries, {:.3} % full",
            self.rows,
            self.columns,
            self.entries,
            100.0 * self.entries as f64 / cells
        )?;
        let [least, median, most] = self.row;
        writeln!(
            f,
            "entries of a row:     least {least}, median {median}, most {most}"
        )?;
        let [least, median, most] = self.column;
        writeln!(
            f,
            "entries of a column:  least {least}, median {median}, most {most}"
        )?;
        if self.columns > 1000 {
            writeln!(
                f,
                "top 1,000 columns:    {:.1} % of the entries",
                100.0 * self.top_1000
            )?;
        }
        writeln!(
            f,
            "top tenth of columns: {:.1} % of the entries",
            100.0 * self.top_tenth
        )?;
        writeln!(f, "mean value:           {:.3}", self.mean)?;
        for (i, share) in self.histogram.iter().enumerate() {
            let bar = "#".repeat((200.0 * share).round() as usize);
            writeln!(
                f,
                "  {:.1}  {:4.1} %  {bar}",
                (i + 1) as f64 / 2.0,
                100.0 * share
            )?;
        }
        Ok(())
    }
}
