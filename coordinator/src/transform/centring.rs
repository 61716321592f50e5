//! What centring and scaling of the model do to a new row.
//!
//! Column means, their mean and deviations are those of the model's own rows; a row's mean is the new row's. With V as it is
//! and x a new row, scores are sum_j (x_j - r - c_j) V_j / d_j. Absent entries count in it unless they are unknown, so their
//! part is summed over all of the model's columns once: scores = sum of stored x_j V_j / d_j, less C + r R.

use super::model::{Mapped, Model};
use crate::{centring::Centring, failure::Failure, job::resolved::Center};

/// Rows of V in memory at once.
const PIECE: usize = 1024;

/// For the columns that an input has.
pub struct Shift {
    center: Center,
    /// Columns of the model.
    columns: f64,
    /// Of the columns that the input has: c_j, and 1 / d_j.
    means: Vec<f64>,
    factors: Vec<f64>,
    /// R and C, numbers of each triplet.
    of_row: Vec<f64>,
    of_columns: Vec<f64>,
}

impl Shift {
    /// # Errors
    /// Resources: V cannot be read.
    pub fn new(model: &Model, centring: &Centring, mapped: &Mapped) -> Result<Self, Failure> {
        let columns = model.columns();
        let overall = centring.overall_mean.unwrap_or(0.0);
        let mean = |j: usize| {
            let means = centring.column_means.as_ref();
            means.map_or(0.0, |means| means[j] - overall)
        };
        let factor = |j: usize| {
            let deviations = centring.deviations.as_ref();
            deviations.map_or(1.0, |deviations| 1.0 / deviations[j])
        };
        let rank = model.rank() as usize;
        let (mut of_row, mut of_columns) = (vec![0.0; rank], vec![0.0; rank]);
        if matches!(
            centring.center,
            Center::Columns | Center::Rows | Center::Both
        ) {
            let mut rows = Vec::new();
            for first in (0..columns).step_by(PIECE) {
                let last = columns.min(first + PIECE);
                rows.resize((last - first) * rank, 0.0);
                model.read_rows(first as u64, &mut rows)?;
                for (j, row) in (first..last).zip(rows.chunks_exact(rank)) {
                    for (c, v) in row.iter().enumerate() {
                        of_row[c] += factor(j) * v;
                        of_columns[c] += mean(j) * factor(j) * v;
                    }
                }
            }
        }
        let known = || mapped.columns().iter().map(|&j| j as usize);
        Ok(Self {
            center: centring.center,
            columns: columns as f64,
            means: known().map(mean).collect(),
            factors: known().map(factor).collect(),
            of_row,
            of_columns,
        })
    }

    /// Changes the values of a row's entries, given by their columns' places; tells what its mean is.
    pub fn entries(&self, terms: &mut [(u32, f64)]) -> f64 {
        let sum: f64 = terms.iter().map(|term| term.1).sum();
        let mean = match self.center {
            Center::None | Center::Columns | Center::ObservedColumns => 0.0,
            Center::Rows | Center::Both => sum / self.columns,
            Center::ObservedRows | Center::ObservedBoth => sum / terms.len().max(1) as f64,
        };
        let observed = match self.center {
            Center::None | Center::Columns | Center::Rows | Center::Both => false,
            Center::ObservedColumns | Center::ObservedRows | Center::ObservedBoth => true,
        };
        for (slot, value) in terms {
            let slot = *slot as usize;
            if observed {
                *value -= mean + self.means[slot];
            }
            *value *= self.factors[slot];
        }
        mean
    }

    /// Takes away what absent entries have moved to, and those that are there with them.
    pub fn absent(&self, mean: f64, scores: &mut [f64]) {
        for ((score, row), columns) in scores.iter_mut().zip(&self.of_row).zip(&self.of_columns) {
            *score -= columns + mean * row;
        }
    }
}
