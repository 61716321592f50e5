//! What is to be known before blocks are made anew: means, deviations, norms.

use std::sync::atomic::Ordering;

use shared::{
    linalg::fixed::power_of_two,
    matrix::{
        block::{CODED_COLUMNS_MAX, CODES, RowBlock},
        encode::Encoding,
        facts::{BlockFacts, MatrixFacts},
    },
};

use super::{Bench, Step, twofold::Twofold};
use crate::{
    engine::EngineError,
    failure::Failure,
    farm::{InputError, InputErrorKind},
};

/// A column deviates if its standard deviation is more than so much of its root mean square: less is rounding.
const CONSTANT: f64 = 1.0 / (1u64 << 44) as f64;
/// Deviations below so much of the largest entry do not fit beside it into the range of f32.
const RANGE: f64 = 1.0 / (1u64 << 60) as f64;
/// A power of two in the table of codes is good enough as the unit if it is not below so much of the largest entry.
const UNIT_LEAST: f64 = 1.0 / 256.0;
/// A number of f64 takes so many of f32.
const PIECES: usize = 3;

/// Reads all blocks in order.
pub struct Walk<'a> {
    pub facts: &'a MatrixFacts,
    pub bench: &'a Bench<'a>,
    pub tick: &'a mut dyn FnMut(Step, usize),
}

/// A block of the source.
pub fn load(bench: &Bench<'_>, facts: &BlockFacts) -> Result<RowBlock, InputError> {
    let bytes = bench.source.load(&facts.hash)?;
    RowBlock::parse(bytes).map_err(|why| InputError {
        hash: facts.hash,
        kind: InputErrorKind::Corrupt,
        why: why.to_string(),
    })
}

/// Rows of a block, one after the other: its place within the block, columns and values.
pub fn rows(block: &RowBlock, mut each: impl FnMut(usize, &[u32], &[f64])) {
    let mut entries = block.entries().peekable();
    let (mut columns, mut values) = (Vec::new(), Vec::new());
    for row in 0..block.rows() {
        columns.clear();
        values.clear();
        while let Some((_, column, value)) = entries.next_if(|entry| entry.0 == row) {
            columns.push(column as u32);
            values.push(value);
        }
        each(row, &columns, &values);
    }
}

impl Walk<'_> {
    fn each(&mut self, mut take: impl FnMut(usize, &[u32], &[f64])) -> Result<(), EngineError> {
        for (done, facts) in self.facts.blocks.iter().enumerate() {
            if self.bench.stop.load(Ordering::Relaxed) {
                return Err(Failure::interrupted().into());
            }
            (self.tick)(Step::Means, done);
            let block = load(self.bench, facts).map_err(EngineError::Block)?;
            let first = facts.first_row as usize;
            rows(&block, |row, columns, values| {
                take(first + row, columns, values);
            });
        }
        Ok(())
    }

    fn sides(&self) -> (usize, usize) {
        (self.facts.rows as usize, self.facts.columns as usize)
    }
}

/// Sums and counts of stored entries.
pub struct Sums {
    rows: Vec<(Twofold, u64)>,
    columns: Vec<(Twofold, u64)>,
}

pub struct Means {
    pub rows: Vec<f64>,
    pub columns: Vec<f64>,
    pub overall: f64,
}

impl Sums {
    pub fn gather(walk: &mut Walk<'_>) -> Result<Self, EngineError> {
        let (m, n) = walk.sides();
        let mut sums = Self {
            rows: vec![<(Twofold, u64)>::default(); m],
            columns: vec![<(Twofold, u64)>::default(); n],
        };
        walk.each(|row, columns, values| {
            let of_row = &mut sums.rows[row];
            for (&column, &value) in columns.iter().zip(values) {
                let of_column = &mut sums.columns[column as usize];
                for of in [&mut *of_row, of_column] {
                    of.0.take(value);
                    of.1 += 1;
                }
            }
        })?;
        Ok(sums)
    }

    /// Of the stored entries alone if `observed`; 0 of none.
    pub fn means(&self, observed: bool) -> Means {
        let (m, n) = (self.rows.len() as u64, self.columns.len() as u64);
        let mean = |sum: Twofold, stored: u64, all: u64| {
            let count = if observed { stored } else { all };
            if count > 0 {
                sum.over(count as f64).value()
            } else {
                0.0
            }
        };
        let of = |sums: &[(Twofold, u64)], all: u64| {
            let means = sums.iter().map(|&(sum, stored)| mean(sum, stored, all));
            means.collect()
        };
        let total = self.rows.iter().fold(Twofold::default(), |t, s| t + s.0);
        let stored = self.rows.iter().map(|s| s.1).sum();
        Means {
            rows: of(&self.rows, n),
            columns: of(&self.columns, m),
            overall: mean(total, stored, m * n),
        }
    }
}

/// (A - alpha 1^T - 1 beta^T) with factors, rows and columns as they are worked on.
pub struct Model {
    observed: bool,
    /// alpha, taken from rows.
    rows: Option<Vec<f64>>,
    /// beta, taken from columns.
    columns: Option<Vec<f64>>,
    /// Factors of values.
    row_factors: Option<Vec<f64>>,
    column_factors: Option<Vec<f64>>,
    /// d of the map.
    pub map: Option<Vec<f64>>,
}

impl Model {
    pub fn new(
        facts: &MatrixFacts,
        means: Option<&Means>,
        of_rows: bool,
        of_columns: bool,
        observed: bool,
    ) -> Self {
        let rows = means.filter(|_| of_rows).map(|means| means.rows.clone());
        let columns = means.filter(|_| of_columns).map(|means| {
            let twice = if of_rows { means.overall } else { 0.0 };
            means.columns.iter().map(|mean| mean - twice).collect()
        });
        debug_assert_eq!(facts.view, None);
        Self {
            observed,
            rows,
            columns,
            row_factors: None,
            column_factors: None,
            map: None,
        }
    }

    pub fn scale_by(&mut self, deviations: &[f64], transposed: bool, max_abs: f64) {
        let factors = deviations.iter().map(|deviation| 1.0 / deviation).collect();
        let far = deviations.iter().any(|&d| d < RANGE * max_abs);
        if transposed {
            self.row_factors = Some(factors);
        } else if self.observed || far {
            self.column_factors = Some(factors);
        } else {
            self.map = Some(factors);
        }
    }

    pub fn changes_values(&self) -> bool {
        self.observed || self.row_factors.is_some() || self.column_factors.is_some()
    }

    fn alpha(&self, row: usize) -> f64 {
        self.rows.as_ref().map_or(0.0, |means| means[row])
    }

    fn beta(&self, column: usize) -> f64 {
        self.columns.as_ref().map_or(0.0, |means| means[column])
    }

    fn row_factor(&self, row: usize) -> f64 {
        self.row_factors.as_ref().map_or(1.0, |f| f[row])
    }

    fn column_factor(&self, column: usize) -> f64 {
        self.column_factors.as_ref().map_or(1.0, |f| f[column])
    }

    fn moved(&self, row: usize, column: usize, value: f64) -> f64 {
        if self.observed {
            value - (self.alpha(row) + self.beta(column))
        } else {
            value
        }
    }

    /// What becomes of a stored entry.
    pub fn value(&self, row: usize, column: usize, value: f64) -> f64 {
        self.moved(row, column, value) * self.row_factor(row) * self.column_factor(column)
    }

    /// What of the means goes into columns of their own, and how values are stored.
    pub fn parts(&self, facts: &MatrixFacts) -> Parts {
        let implicit = !self.observed;
        let ones = implicit && self.columns.is_some();
        let means = self.rows.as_deref().filter(|_| implicit);
        let mut parts = Parts {
            unit: ones.then(|| unit(facts)),
            pieces: usize::from(means.is_some()),
            encoding: facts.encoding.clone(),
        };
        if self.changes_values() {
            parts.encoding = Encoding::F64;
            return parts;
        }
        let single = |x: f64| f64::from(x as f32) == x;
        let singles = match &facts.encoding {
            Encoding::Coded(table) => table.iter().all(|&x| single(x)),
            Encoding::F32 => true,
            Encoding::F64 => false,
        } && parts.unit.is_none_or(single);
        if let Some(means) = means {
            // Three numbers of f32 hold one of f64, which leaves all values in half of its bytes.
            let exact = |x: f64| (0..PIECES).map(|e| piece(x, e, PIECES)).sum::<f64>() == x;
            if singles && means.iter().all(|&x| exact(x)) {
                parts.encoding = Encoding::F32;
                parts.pieces = (1..=PIECES)
                    .find(|&n| {
                        means
                            .iter()
                            .all(|&x| (n..PIECES).all(|e| piece(x, e, PIECES) == 0.0))
                    })
                    .unwrap_or(PIECES);
            } else {
                parts.encoding = Encoding::F64;
            }
        } else if let (Encoding::Coded(table), Some(unit)) = (&facts.encoding, parts.unit) {
            let mut table = table.clone();
            if !table.contains(&unit) {
                table.push(unit);
                table.sort_by(f64::total_cmp);
            }
            parts.encoding = if table.len() <= CODES && facts.columns + 1 < CODED_COLUMNS_MAX {
                Encoding::Coded(table)
            } else if singles {
                Encoding::F32
            } else {
                Encoding::F64
            };
        } else if let (Encoding::F32, false) = (&facts.encoding, singles) {
            parts.encoding = Encoding::F64;
        }
        parts
    }

    /// Row i of P.
    pub fn added(&self, parts: &Parts, row: usize) -> impl Iterator<Item = f64> {
        let factor = self.row_factor(row);
        let alpha = self.alpha(row) * factor;
        let pieces = parts.pieces;
        let unit = parts.unit.map(|unit| unit * factor);
        unit.into_iter()
            .chain((0..pieces).map(move |e| piece(alpha, e, pieces)))
    }

    /// Q of so many columns, row-major.
    pub fn loads(&self, parts: &Parts, columns: usize) -> Vec<f64> {
        let mut loads = Vec::with_capacity(columns * parts.added());
        for column in 0..columns {
            let factor = self.column_factor(column);
            loads.extend(parts.unit.map(|unit| self.beta(column) * factor / unit));
            loads.extend((0..parts.pieces).map(|_| factor));
        }
        loads
    }
}

/// Columns that stand beside those of the matrix.
pub struct Parts {
    /// What stands in the column of ones instead of 1: a power of two about as large as the entries.
    pub unit: Option<f64>,
    /// Columns that together hold the means of rows.
    pub pieces: usize,
    pub encoding: Encoding,
}

impl Parts {
    pub fn added(&self) -> usize {
        usize::from(self.unit.is_some()) + self.pieces
    }
}

/// Piece e of so many: the number itself if it is the only one, what f32 holds of the rest otherwise.
fn piece(x: f64, e: usize, pieces: usize) -> f64 {
    if pieces == 1 {
        return x;
    }
    let mut rest = x;
    for _ in 0..e {
        rest -= f64::from(rest as f32);
    }
    f64::from(rest as f32)
}

fn unit(facts: &MatrixFacts) -> f64 {
    let max_abs = if facts.max_abs > 0.0 {
        facts.max_abs
    } else {
        1.0
    };
    let power = |x: f64| x > 0.0 && x.log2().fract() == 0.0 && x.log2().exp2() == x;
    let coded = match &facts.encoding {
        Encoding::Coded(table) => table
            .iter()
            .copied()
            .rfind(|&x| power(x) && x >= UNIT_LEAST * max_abs),
        Encoding::F32 | Encoding::F64 => None,
    };
    coded.unwrap_or_else(|| power_of_two(max_abs.log2().floor() as i32))
}

/// Standard deviation of each of the user's columns after centring; 1 for one that is constant.
pub fn deviations(
    walk: &mut Walk<'_>,
    model: &Model,
    transposed: bool,
) -> Result<Vec<f64>, EngineError> {
    let (m, n) = walk.sides();
    let (count, across) = if transposed { (m, n) } else { (n, m) };
    // By the user's columns: what is taken from all of one, and from each that crosses it.
    let own = |at: usize| {
        if transposed {
            model.alpha(at)
        } else {
            model.beta(at)
        }
    };
    let other = |at: usize| {
        if transposed {
            model.beta(at)
        } else {
            model.alpha(at)
        }
    };
    /// Of the stored entries of a column.
    #[derive(Clone, Copy, Default)]
    struct Stored {
        count: u64,
        sum: Twofold,
        squares: Twofold,
        with_other: Twofold,
    }
    let mut stored = vec![Stored::default(); count];
    walk.each(|row, columns, values| {
        for (&column, &value) in columns.iter().zip(values) {
            let column = column as usize;
            let (at, across) = if transposed {
                (row, column)
            } else {
                (column, row)
            };
            let value = model.moved(row, column, value);
            let stored = &mut stored[at];
            stored.count += 1;
            stored.sum.take(value);
            stored.squares.take_product(value, value);
            if !model.observed {
                stored.with_other.take_product(value, other(across));
            }
        }
    })?;
    let (mut others, mut other_squares) = (Twofold::default(), Twofold::default());
    if !model.observed {
        for at in 0..across {
            others.take(other(at));
            other_squares.take_product(other(at), other(at));
        }
    }
    let deviation = |(at, stored): (usize, &Stored)| {
        let (all, sum, squares, raw);
        if model.observed {
            all = stored.count as f64;
            (sum, squares, raw) = (stored.sum, stored.squares, stored.squares);
        } else {
            all = across as f64;
            let own = own(at);
            // sum of (a - own - other) and of its square
            let taken = others + Twofold::product(own, all);
            sum = stored.sum - taken;
            let mixed = stored.with_other + stored.sum.times(own);
            let taken =
                other_squares + others.times(2.0 * own) + Twofold::product(own, own).times(all);
            squares = stored.squares - mixed.times(2.0) + taken;
            raw = stored.squares + taken;
        }
        if all == 0.0 {
            return 1.0;
        }
        let variance = (squares - sum.square().over(all)).over(all).value();
        let least = CONSTANT * CONSTANT * raw.value() / all;
        if variance > least {
            variance.sqrt()
        } else {
            1.0
        }
    };
    Ok(stored.iter().enumerate().map(deviation).collect())
}

/// Sums of squares of columns, and the largest value.
pub struct Norms {
    /// Of (A - P Q^T) diag(d).
    pub of_matrix: Vec<f64>,
    /// Of [A | P].
    pub of_blocks: Vec<f64>,
    pub max_abs: f64,
}

pub fn norms(walk: &mut Walk<'_>, model: &Model, parts: &Parts) -> Result<Norms, EngineError> {
    let (m, n) = walk.sides();
    /// Of a column: with itself, the column of ones, the means of rows.
    #[derive(Clone, Copy, Default)]
    struct Products {
        own: Twofold,
        ones: Twofold,
        means: Twofold,
    }
    let ones = |row: usize| parts.unit.map_or(0.0, |unit| unit * model.row_factor(row));
    let means = |row: usize| {
        if parts.pieces > 0 {
            model.alpha(row) * model.row_factor(row)
        } else {
            0.0
        }
    };
    let mut products = vec![Products::default(); n];
    let mut max_abs = 0.0f64;
    walk.each(|row, columns, values| {
        let (ones, means) = (ones(row), means(row));
        for (&column, &value) in columns.iter().zip(values) {
            let column = column as usize;
            let value = model.value(row, column, value);
            max_abs = max_abs.max(value.abs());
            let products = &mut products[column];
            products.own.take_product(value, value);
            if ones != 0.0 {
                products.ones.take_product(value, ones);
            }
            if means != 0.0 {
                products.means.take_product(value, means);
            }
        }
    })?;
    let [mut ones_ones, mut ones_means, mut means_means] = [Twofold::default(); 3];
    let mut of_added = vec![Twofold::default(); parts.added()];
    for row in 0..m {
        ones_ones.take_product(ones(row), ones(row));
        ones_means.take_product(ones(row), means(row));
        means_means.take_product(means(row), means(row));
        for (sum, x) in of_added.iter_mut().zip(model.added(parts, row)) {
            sum.take_product(x, x);
            max_abs = max_abs.max(x.abs());
        }
    }
    let of_matrix = products.iter().enumerate().map(|(column, products)| {
        let factor = model.column_factor(column);
        let q1 = parts
            .unit
            .map_or(0.0, |unit| model.beta(column) * factor / unit);
        let q2 = if parts.pieces > 0 { factor } else { 0.0 };
        let mixed = products.ones.times(q1) + products.means.times(q2);
        let taken = ones_ones.times(q1).times(q1)
            + ones_means.times(2.0 * q1).times(q2)
            + means_means.times(q2).times(q2);
        let squares = (products.own - mixed.times(2.0) + taken).value().max(0.0);
        let d = model.map.as_ref().map_or(1.0, |d| d[column]);
        squares * d * d
    });
    let of_matrix = of_matrix.collect();
    let own = products.iter().map(|products| products.own);
    Ok(Norms {
        of_matrix,
        of_blocks: own.chain(of_added).map(Twofold::value).collect(),
        max_abs,
    })
}
