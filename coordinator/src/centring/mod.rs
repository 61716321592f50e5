//! Means subtracted and columns scaled without densifying.
//!
//! *Implicit* kinds take absent entries as 0, which move with all others. The matrix worked on is then
//! (A - P Q^T) diag(d), with columns of ones and of row means in P, and stays sparse: blocks of [A | P] are made once from
//! those of A, and the plan maps what it multiplies them with, see [`View`]. *Observed* kinds take absent entries as
//! unknown: only stored values change, by the means of those that are stored, and blocks of the changed values are made.
//!
//! Scaling divides each of the user's columns by its standard deviation (with n, not n - 1, as scikit-learn's
//! `StandardScaler` does): of all entries, or of the stored ones with the observed kinds. One that is constant is left as
//! it is. It is a part of the map where that is possible, and of the blocks' values otherwise: when the columns are the
//! rows of what is worked on, when the values change anyway, and when the deviations are further apart than f32 can tell.
//!
//! Sums are made in twice the precision of `f64`, one row after the other, so neither threads nor a large mean matter.

mod gather;
mod recode;
mod twofold;

use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
use shared::{
    farm::{bytes::Bytes, ids::ContentHash},
    matrix::facts::{MatrixFacts, View},
};

use crate::{
    engine::EngineError,
    failure::Failure,
    farm::Inputs,
    job::resolved::{Center, FactorSpec, Scale, word},
};
use gather::{Model, Sums};

/// Names of the files beside the factors.
pub const COLUMN_MEANS: &str = "column_means.npy";
pub const ROW_MEANS: &str = "row_means.npy";
pub const DEVIATIONS: &str = "column_deviations.npy";

/// What was subtracted and divided by, in the user's own rows and columns.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Centring {
    pub center: Center,
    pub scale: Scale,
    /// From entry (i, j), row_means[i] + column_means[j] - overall_mean is taken; what is not there counts as 0.
    pub column_means: Option<Vec<f64>>,
    pub row_means: Option<Vec<f64>>,
    pub overall_mean: Option<f64>,
    /// What columns were divided by.
    pub deviations: Option<Vec<f64>>,
}

impl Centring {
    /// As a job file says it.
    pub fn words(&self) -> String {
        let center = (self.center != Center::None)
            .then(|| format!("center = {}", word(&Center::WORDS, self.center)));
        let scale = (self.scale != Scale::None)
            .then(|| format!("scale = {}", word(&Scale::WORDS, self.scale)));
        center
            .into_iter()
            .chain(scale)
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// The files that tell of it, each with its numbers.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &[f64])> {
        [
            (COLUMN_MEANS, &self.column_means),
            (ROW_MEANS, &self.row_means),
            (DEVIATIONS, &self.deviations),
        ]
        .into_iter()
        .filter_map(|(name, numbers)| Some((name, numbers.as_deref()?)))
    }
}

/// A matrix, centred and scaled.
pub struct Centred {
    pub facts: MatrixFacts,
    pub centring: Centring,
}

/// Where blocks come from and go to, and who makes them.
pub struct Bench<'a> {
    pub source: &'a dyn Inputs,
    /// Takes a block that was made.
    pub keep: &'a (dyn Fn(Bytes) -> Result<ContentHash, Failure> + Sync),
    pub threads: usize,
    pub stop: &'a AtomicBool,
}

/// How far it is: steps of reading all blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    Means,
    Writing,
}

/// Whether anything is to be done.
pub fn is_wanted(factor: &FactorSpec) -> bool {
    factor.center != Center::None || factor.scale != Scale::None
}

/// Centres and scales the matrix that these facts are of. `transposed`: it is the transpose of the user's. `tick` is told
/// the step and how many blocks of it are done.
///
/// # Errors
/// Blocks that are not there or damaged, no memory or disk for new ones, an interruption.
pub fn centred(
    facts: &MatrixFacts,
    transposed: bool,
    factor: &FactorSpec,
    bench: &Bench<'_>,
    tick: &mut dyn FnMut(Step, usize),
) -> Result<Centred, EngineError> {
    let mut walk = gather::Walk { facts, bench, tick };
    let (of_columns, of_rows, observed) = match factor.center {
        Center::None => (false, false, false),
        Center::Columns => (true, false, false),
        Center::Rows => (false, true, false),
        Center::Both => (true, true, false),
        Center::ObservedColumns => (true, false, true),
        Center::ObservedRows => (false, true, true),
        Center::ObservedBoth => (true, true, true),
    };
    let (of_columns, of_rows) = if transposed {
        (of_rows, of_columns)
    } else {
        (of_columns, of_rows)
    };
    let means = if of_columns || of_rows {
        Some(Sums::gather(&mut walk)?.means(observed))
    } else {
        None
    };
    let mut model = Model::new(facts, means.as_ref(), of_rows, of_columns, observed);
    let deviations = match factor.scale {
        Scale::None => None,
        Scale::Columns => Some(gather::deviations(&mut walk, &model, transposed)?),
    };
    if let Some(deviations) = &deviations {
        model.scale_by(deviations, transposed, facts.max_abs);
    }
    let parts = model.parts(facts);
    let norms = gather::norms(&mut walk, &model, &parts)?;
    let blocks = if model.changes_values() || parts.added() > 0 {
        recode::blocks(&mut walk, &model, &parts)?
    } else {
        facts.blocks.clone()
    };
    let view = (parts.added() > 0 || model.map.is_some()).then(|| View {
        scale: model
            .map
            .clone()
            .unwrap_or_else(|| vec![1.0; facts.columns as usize]),
        loads: model.loads(&parts, facts.columns as usize),
        added: parts.added() as u32,
        column_squares: norms.of_blocks,
        max_abs: norms.max_abs,
    });
    let (mut column_means, mut row_means, overall_mean) = match means {
        None => (None, None, None),
        Some(means) => (
            of_columns.then_some(means.columns),
            of_rows.then_some(means.rows),
            (of_columns && of_rows).then_some(means.overall),
        ),
    };
    if transposed {
        std::mem::swap(&mut column_means, &mut row_means);
    }
    Ok(Centred {
        facts: MatrixFacts {
            blocks,
            encoding: parts.encoding,
            max_abs: if model.changes_values() {
                norms.max_abs
            } else {
                facts.max_abs
            },
            column_squares: norms.of_matrix,
            view,
            ..facts.clone()
        },
        centring: Centring {
            center: factor.center,
            scale: factor.scale,
            column_means,
            row_means,
            overall_mean,
            deviations,
        },
    })
}
