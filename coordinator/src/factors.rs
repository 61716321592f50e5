//! From the blocks that a plan delivers to factors: which are wanted, how many triplets are real, how good they are.

use std::collections::HashMap;

use shared::{
    farm::{bytes::Bytes, ids::TaskId, work::WorkError},
    svd::results::Small,
};

use crate::{failure::Failure, plan::Plan};

/// Where rows of the factors go. Rows of both are `rank` numbers in the plan's precision, little-endian, row-major; they
/// come in any order, each once.
pub trait Sink {
    /// How many triplets there are; called once, before any rows.
    fn begin(&mut self, rank: usize) -> Result<(), Failure>;
    /// Rows of V (right) from `first_row` on.
    fn right(&mut self, first_row: u64, rows: &[u8]) -> Result<(), Failure>;
    /// Rows of U (left) from `first_row` on.
    fn left(&mut self, first_row: u64, rows: &[u8]) -> Result<(), Failure>;
}

/// What is known of the factors once all is delivered.
#[derive(Clone, PartialEq, Debug)]
pub struct Quality {
    /// Singular values, descending.
    pub sigma: Vec<f64>,
    /// sqrt(||A v - s u||^2 + ||A^T u - s v||^2) / s of each triplet.
    pub residuals: Vec<f64>,
    /// max |U^T U - I| and max |V^T V - I|.
    pub left_orthogonality: f64,
    pub right_orthogonality: f64,
}

enum Role {
    SmallSvd,
    Right { first: u64 },
    Left { first: u64 },
    LeftResidual,
    RightResidual,
    LeftGram,
    RightGram,
}

/// Takes the deliveries of one run of a plan.
pub struct Collector<'a> {
    plan: &'a Plan,
    frobenius: f64,
    roles: HashMap<TaskId, Role>,
    sink: &'a mut dyn Sink,
    /// Scaled singular values of the triplets that are kept.
    sigma: Option<Vec<f64>>,
    /// Rows that came before the singular values.
    early: Vec<(TaskId, Bytes)>,
    left_squares: Vec<f64>,
    right_squares: Vec<f64>,
    left_gram: Vec<f64>,
    right_gram: Vec<f64>,
}

/// A singular value counts when it stands above what rounding leaves of nothing.
///
/// Products with A err by about u ||A||_F in each column of the basis; what lies below 8 u ||A||_F cannot be told from
/// zero.
fn significant(sigma: &[f64], wanted: usize, roundoff: f64, frobenius: f64) -> usize {
    let floor = 8.0 * roundoff * frobenius;
    sigma[..wanted].iter().take_while(|&&s| s > floor).count()
}

impl<'a> Collector<'a> {
    /// `frobenius_squared` is of A as it is, not scaled.
    pub fn new(plan: &'a Plan, frobenius_squared: f64, sink: &'a mut dyn Sink) -> Self {
        let wanted = &plan.wanted;
        let mut roles = HashMap::from([
            (wanted.small_svd, Role::SmallSvd),
            (wanted.left_residual, Role::LeftResidual),
            (wanted.right_residual, Role::RightResidual),
            (wanted.left_gram, Role::LeftGram),
            (wanted.right_gram, Role::RightGram),
        ]);
        for &(task, slice) in &wanted.right {
            roles.insert(task, Role::Right { first: slice.first });
        }
        for &(task, first, _) in &wanted.left {
            roles.insert(task, Role::Left { first });
        }
        Self {
            plan,
            frobenius: frobenius_squared.sqrt() * 2f64.powi(plan.scale),
            roles,
            sink,
            sigma: None,
            early: Vec::new(),
            left_squares: Vec::new(),
            right_squares: Vec::new(),
            left_gram: Vec::new(),
            right_gram: Vec::new(),
        }
    }

    pub fn deliver(&mut self, task: TaskId, bytes: Bytes) -> Result<(), Failure> {
        let Some(role) = self.roles.get(&task) else {
            return Err(Failure::bug(format!("task {} was not awaited", task.0)));
        };
        let numbers = || -> Result<Vec<f64>, WorkError> { Ok(bytes.numbers::<f64>()?.to_vec()) };
        match role {
            Role::SmallSvd => {
                let small = Small::read(&bytes, self.plan.shape.width as usize).map_err(bug)?;
                let rank = significant(
                    small.sigma,
                    self.plan.rank as usize,
                    self.plan.shape.precision.roundoff(),
                    self.frobenius,
                );
                self.sigma = Some(small.sigma[..rank].to_vec());
                self.sink.begin(rank)?;
                for (task, bytes) in std::mem::take(&mut self.early) {
                    self.deliver(task, bytes)?;
                }
            }
            Role::Right { .. } | Role::Left { .. } if self.sigma.is_none() => {
                self.early.push((task, bytes));
            }
            Role::Right { first } => {
                let rows = self.kept(&bytes);
                self.sink.right(*first, &rows)?;
            }
            Role::Left { first } => {
                let rows = self.kept(&bytes);
                self.sink.left(*first, &rows)?;
            }
            Role::LeftResidual => self.left_squares = numbers().map_err(bug)?,
            Role::RightResidual => self.right_squares = numbers().map_err(bug)?,
            Role::LeftGram => self.left_gram = numbers().map_err(bug)?,
            Role::RightGram => self.right_gram = numbers().map_err(bug)?,
        }
        Ok(())
    }

    /// The rows without the columns that are noise.
    fn kept<'b>(&self, bytes: &'b Bytes) -> std::borrow::Cow<'b, [u8]> {
        let rank = self.sigma.as_ref().map_or(0, Vec::len);
        let number = self.plan.shape.precision.bytes();
        let (whole, kept) = (self.plan.rank as usize * number, rank * number);
        if whole == kept {
            return bytes.as_slice().into();
        }
        let mut rows = Vec::with_capacity(bytes.len() / whole * kept);
        for row in bytes.as_slice().chunks_exact(whole) {
            rows.extend_from_slice(&row[..kept]);
        }
        rows.into()
    }

    /// What the factors are worth; to be called when everything is delivered.
    pub fn finish(self) -> Result<Quality, Failure> {
        let scaled = self
            .sigma
            .ok_or_else(|| Failure::bug("the singular values were not delivered"))?;
        let k = self.plan.rank as usize;
        if [&self.left_squares, &self.right_squares]
            .iter()
            .any(|s| s.len() != k)
        {
            return Err(Failure::bug("the residuals were not delivered"));
        }
        let residuals = scaled
            .iter()
            .zip(self.left_squares.iter().zip(&self.right_squares))
            .map(|(&s, (&left, &right))| (left + right).sqrt() / s)
            .collect();
        let undo = 2f64.powi(-self.plan.scale);
        let orthogonality = |gram: &[f64]| {
            (0..scaled.len())
                .flat_map(|i| (0..scaled.len()).map(move |j| (i, j)))
                .map(|(i, j)| (gram[i * k + j] - f64::from(u8::from(i == j))).abs())
                .fold(0.0, f64::max)
        };
        Ok(Quality {
            residuals,
            left_orthogonality: orthogonality(&self.left_gram),
            right_orthogonality: orthogonality(&self.right_gram),
            sigma: scaled.iter().map(|s| s * undo).collect(),
        })
    }
}

fn bug(why: WorkError) -> Failure {
    Failure::bug(why.to_string())
}
