//! From the blocks that a plan delivers to factors: which are wanted, how many triplets are real, how good they are.

use std::{collections::HashMap, sync::Arc};

use shared::{
    farm::{bytes::Bytes, graph::Graph, ids::TaskId, work::WorkError},
    svd::{Precision, SvdWork, polish::Polished, results::Small},
};

use crate::{
    failure::Failure,
    plan::{Mark, Pilot, Plan, Sides, Spectrum, Wanted},
};

/// Where rows of the factors go. Rows of both are `rank` numbers in the plan's precision, little-endian, row-major; they
/// come in any order, each once.
pub trait Sink {
    /// How many triplets there are, and which rows will come; called once, before any rows.
    fn begin(&mut self, rank: usize, sides: Sides) -> Result<(), Failure>;
    /// Rows of V (right) from `first_row` on.
    fn right(&mut self, first_row: u64, rows: &[u8]) -> Result<(), Failure>;
    /// Rows of U (left) from `first_row` on.
    fn left(&mut self, first_row: u64, rows: &[u8]) -> Result<(), Failure>;
}

/// What is known of ||A v - s u||.
#[derive(Clone, PartialEq, Debug)]
pub enum LeftResiduals {
    /// Of each triplet, in units of the matrix.
    Measured(Vec<f64>),
    /// U has not been formed: it is A V / s, so that nothing is left but what rounding V to f32 may add.
    Rounding(Vec<f64>),
    /// It takes a pass that was not made.
    Unknown,
}

/// What is known of the factors once all is delivered.
#[derive(Clone, PartialEq, Debug)]
pub struct Quality {
    /// Singular values, descending.
    pub sigma: Vec<f64>,
    /// Singular values that come after those wanted, as far as they are known: what gaps are measured to.
    pub sigma_after: Vec<f64>,
    /// ||A v - s u|| and ||A^T u - s v|| of each triplet, with what rounding to f32 may add to them.
    pub left_residuals: LeftResiduals,
    pub right_residuals: Vec<f64>,
    /// max |U^T U - I|, if U was formed, and max |V^T V - I|.
    pub left_orthogonality: Option<f64>,
    pub right_orthogonality: f64,
    /// Columns of U and V that change their sign when the matrix is the transpose of the user's: so that the largest entry
    /// of each of the user's right singular vectors is positive.
    pub flipped: Vec<bool>,
    /// Triplets asked for; fewer are there when the matrix has a smaller rank.
    pub requested: u32,
    /// Full reads of A.
    pub reads: u32,
    /// What was known after each read, where a plan works until a tolerance.
    pub marks: Vec<Mark>,
    /// A lower bound of the largest singular value outside of V, where a plan watches for one.
    pub guard: Option<f64>,
}

impl Quality {
    /// sqrt(||A v - s u||^2 + ||A^T u - s v||^2) of each triplet, if it is known.
    pub fn norms(&self) -> Option<Vec<f64>> {
        match &self.left_residuals {
            LeftResiduals::Measured(left) | LeftResiduals::Rounding(left) => {
                let both = left.iter().zip(&self.right_residuals);
                Some(both.map(|(left, right)| left.hypot(*right)).collect())
            }
            LeftResiduals::Unknown => None,
        }
    }

    /// The same over s.
    pub fn residuals(&self) -> Option<Vec<f64>> {
        let norms = self.norms()?;
        Some(norms.iter().zip(&self.sigma).map(|(r, s)| r / s).collect())
    }
}

enum Role {
    Spectrum(Spectrum),
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
    pilot: Option<Pilot>,
    wanted: Option<Wanted>,
    roles: HashMap<TaskId, Role>,
    sink: &'a mut dyn Sink,
    /// Scaled singular values: of the triplets that are kept, and of those after the wanted ones.
    sigma: Option<(Vec<f64>, Vec<f64>)>,
    requested: u32,
    /// Where U is the user's V: of each column, its largest entry so far, and that one's row.
    peaks: Option<Vec<(f64, u64)>>,
    /// Rows that came before the singular values.
    early: Vec<(TaskId, Bytes)>,
    left_squares: Option<Vec<f64>>,
    right_squares: Vec<f64>,
    left_gram: Option<Vec<f64>>,
    right_gram: Vec<f64>,
}

/// A singular value counts when it stands above what rounding leaves of nothing.
///
/// Products with A err by about u ||A||_F in each column of the basis; what lies below 8 u ||A||_F cannot be told from
/// zero. Of what is `written` in f32, a column of V has 2^-24 / sqrt(n) of any other direction in it: below so much of
/// ||A||_F more of A V is that than what was meant.
fn significant(
    sigma: &[f64],
    wanted: usize,
    roundoff: f64,
    frobenius: f64,
    written: Precision,
    height: u64,
) -> usize {
    let rounded = match written {
        Precision::F32 => written.roundoff() / (height as f64).sqrt(),
        Precision::F64 => 0.0,
    };
    let floor = (8.0 * roundoff).max(rounded) * frobenius;
    let wanted = wanted.min(sigma.len());
    sigma[..wanted].iter().take_while(|&&s| s > floor).count()
}

impl<'a> Collector<'a> {
    /// `transposed`: the plan's matrix is the transpose of the user's, so U is the user's V and its entries decide on signs.
    pub fn new(plan: &'a Plan, transposed: bool, sink: &'a mut dyn Sink) -> Self {
        let mut collector = Self {
            plan,
            pilot: plan.pilot(),
            wanted: None,
            roles: HashMap::new(),
            sink,
            sigma: None,
            requested: 0,
            peaks: transposed.then(Vec::new),
            early: Vec::new(),
            left_squares: None,
            right_squares: Vec::new(),
            left_gram: None,
            right_gram: Vec::new(),
        };
        if let Some(wanted) = plan.wanted() {
            collector.await_factors(wanted.clone());
        }
        collector
    }

    fn await_factors(&mut self, wanted: Wanted) {
        self.roles.extend([
            (wanted.spectrum.task(), Role::Spectrum(wanted.spectrum)),
            (wanted.right_residual, Role::RightResidual),
            (wanted.right_gram, Role::RightGram),
        ]);
        let left = wanted.left_residual.map(|task| (task, Role::LeftResidual));
        self.roles.extend(left);
        let left = wanted.left_gram.map(|task| (task, Role::LeftGram));
        self.roles.extend(left);
        for &(task, slice) in &wanted.right {
            self.roles.insert(task, Role::Right { first: slice.first });
        }
        for &(task, first, _) in &wanted.left {
            self.roles.insert(task, Role::Left { first });
        }
        self.wanted = Some(wanted);
    }

    /// Takes a delivered block; some graph when the plan has grown by it.
    ///
    /// # Errors
    /// What the sink says, and what the plan finds impossible.
    pub fn deliver(
        &mut self,
        task: TaskId,
        bytes: Bytes,
    ) -> Result<Option<Arc<Graph<SvdWork>>>, Failure> {
        if self.roles.contains_key(&task) {
            self.take(task, bytes)?;
            return Ok(None);
        }
        let Some(pilot) = &mut self.pilot else {
            return Err(Failure::bug(format!("task {} was not awaited", task.0)));
        };
        let grown = pilot.take(task, &bytes)?;
        if self.wanted.is_none()
            && let Some(wanted) = pilot.wanted().cloned()
        {
            self.await_factors(wanted);
        }
        Ok(grown)
    }

    /// What was known after each read so far.
    pub fn marks(&self) -> &[Mark] {
        self.pilot.as_ref().map_or(&[], Pilot::marks)
    }

    fn take(&mut self, task: TaskId, bytes: Bytes) -> Result<(), Failure> {
        let numbers = || -> Result<Vec<f64>, WorkError> { Ok(bytes.numbers::<f64>()?.to_vec()) };
        match self.roles[&task] {
            Role::Spectrum(spectrum) => {
                let (sigma, reads_in) = match spectrum {
                    Spectrum::Small { width, .. } => {
                        let small = Small::read(&bytes, width as usize).map_err(bug)?;
                        (small.sigma.to_vec(), self.wanted().rows)
                    }
                    Spectrum::Polished { basis, .. } => {
                        let polished = Polished::read(&bytes, basis as usize).map_err(bug)?;
                        (polished.sigma.to_vec(), Precision::F64)
                    }
                };
                let asked = self.plan.asked(&sigma, self.wanted().rank);
                self.requested = self.plan.requested(asked);
                let asked = asked as usize;
                let written = self.plan.method.precision();
                let (bulk, (_, n)) = (self.plan.bulk(), self.plan.heights());
                let rank = significant(&sigma, asked, reads_in.roundoff(), bulk, written, n);
                let after = sigma[asked.min(sigma.len())..].to_vec();
                self.sigma = Some((sigma[..rank].to_vec(), after));
                self.sink.begin(rank, self.plan.sides)?;
                for (task, bytes) in std::mem::take(&mut self.early) {
                    self.take(task, bytes)?;
                }
            }
            Role::Right { .. } | Role::Left { .. } if self.sigma.is_none() => {
                self.early.push((task, bytes));
            }
            Role::Right { first } => {
                let rows = self.kept(bytes.as_slice())?;
                self.sink.right(first, &rows)?;
            }
            Role::Left { first } => {
                let head = self.wanted().left_head as usize;
                let rows = self.kept(&bytes.as_slice()[head..])?.into_owned();
                self.look_at(first, &rows);
                self.sink.left(first, &rows)?;
            }
            Role::LeftResidual => self.left_squares = Some(numbers().map_err(bug)?),
            Role::RightResidual => self.right_squares = numbers().map_err(bug)?,
            Role::LeftGram => self.left_gram = Some(numbers().map_err(bug)?),
            Role::RightGram => self.right_gram = numbers().map_err(bug)?,
        }
        Ok(())
    }

    fn look_at(&mut self, first: u64, rows: &[u8]) {
        let (Some(peaks), Some((sigma, _))) = (&mut self.peaks, &self.sigma) else {
            return;
        };
        peaks.resize(sigma.len(), (0.0, u64::MAX));
        let mut look = |at: usize, x: f64| {
            let row = first + (at / sigma.len()) as u64;
            let (best, best_row) = &mut peaks[at % sigma.len()];
            // Rows come in any order; the lowest wins a tie.
            if x.abs() > best.abs() || (x.abs() == best.abs() && row < *best_row) {
                (*best, *best_row) = (x, row);
            }
        };
        match self.plan.method.precision() {
            Precision::F32 => bytemuck::pod_collect_to_vec::<u8, f32>(rows)
                .iter()
                .enumerate()
                .for_each(|(at, x)| look(at, f64::from(*x))),
            Precision::F64 => bytemuck::pod_collect_to_vec::<u8, f64>(rows)
                .iter()
                .enumerate()
                .for_each(|(at, x)| look(at, *x)),
        }
    }

    fn wanted(&self) -> &Wanted {
        self.wanted.as_ref().expect("roles come with it")
    }

    /// The rows without the columns that are noise, in the precision of the factors.
    fn kept<'b>(&self, rows: &'b [u8]) -> Result<std::borrow::Cow<'b, [u8]>, Failure> {
        let rank = self.sigma.as_ref().map_or(0, |(sigma, _)| sigma.len());
        let wanted = self.wanted();
        let (from, to) = (wanted.rows, self.plan.method.precision());
        let (whole, kept) = (wanted.rank as usize * from.bytes(), rank * from.bytes());
        if whole == kept && from == to {
            return Ok(rows.into());
        }
        let mut out = Vec::with_capacity(rows.len() / whole * rank * to.bytes());
        for row in rows.chunks_exact(whole) {
            match (from, to) {
                (Precision::F64, Precision::F32) => {
                    let numbers: Vec<f64> = bytemuck::pod_collect_to_vec(&row[..kept]);
                    out.extend(numbers.iter().flat_map(|&x| (x as f32).to_le_bytes()));
                }
                (Precision::F32, Precision::F64) => {
                    return Err(Failure::bug("factors in f32 where f64 was asked for"));
                }
                (Precision::F32, Precision::F32) | (Precision::F64, Precision::F64) => {
                    out.extend_from_slice(&row[..kept]);
                }
            }
        }
        Ok(out.into())
    }

    /// What the factors are worth; to be called when everything is delivered.
    pub fn finish(self) -> Result<Quality, Failure> {
        let (Some((scaled, after)), Some(wanted)) = (self.sigma, self.wanted) else {
            return Err(Failure::bug("the singular values were not delivered"));
        };
        let k = wanted.rank as usize;
        let delivered = |squares: &Vec<f64>| squares.len() == k;
        if !delivered(&self.right_squares)
            || self.left_squares.is_some() != wanted.left_residual.is_some()
            || !self.left_squares.iter().all(delivered)
        {
            return Err(Failure::bug("the residuals were not delivered"));
        }
        // Factors in f32 are rounded after what a residual is measured on: a little of each triplet's vectors goes into all
        // others, and A makes it large where it goes into a large one. Of a column of errors e_i and a vector v_j the Gram
        // matrix of what is written tells v_j e_i + v_i e_j, two numbers of like size: its square, and twice what is usual in
        // that row, are more than the square of one of them but in a case of a hundred.
        let (u_height, v_height) = self.plan.heights();
        let unseen = |height: u64| match (wanted.rows, self.plan.method.precision()) {
            (Precision::F64, Precision::F32) => 2f64.powi(-48) * (2.0 / 3.0) / height as f64,
            (Precision::F32, _) | (Precision::F64, Precision::F64) => 0.0,
        };
        let rounding = |gram: Option<&[f64]>, height: u64| -> Vec<f64> {
            let (Some(gram), Precision::F32) = (gram, self.plan.method.precision()) else {
                return vec![0.0; k];
            };
            let others = |i: usize| (0..scaled.len()).filter(move |&j| j != i);
            let square = |i: usize, j: usize| gram[i * k + j].powi(2) + unseen(height);
            let usual: Vec<f64> = (0..scaled.len())
                .map(|j| others(j).map(|i| square(i, j)).sum::<f64>() / others(j).count() as f64)
                .collect();
            let of = |i: usize| {
                others(i)
                    .map(|j| scaled[j].powi(2) * (square(i, j) + 2.0 * usual[j]))
                    .sum()
            };
            (0..k).map(of).collect()
        };
        let measured = wanted.left_as_written && self.left_squares.is_some();
        let of_v = (!measured).then_some(self.right_gram.as_slice());
        let of_v = rounding(of_v, v_height);
        let of_u = rounding(self.left_gram.as_deref(), u_height);
        let undo = 2f64.powi(-self.plan.scale());
        let orthogonality = |gram: &[f64]| {
            (0..scaled.len())
                .flat_map(|i| (0..scaled.len()).map(move |j| (i, j)))
                .map(|(i, j)| (gram[i * k + j] - f64::from(u8::from(i == j))).abs())
                .fold(0.0, f64::max)
        };
        let norms = |squares: &[f64], rounding: &[f64]| {
            squares[..scaled.len()]
                .iter()
                .zip(rounding)
                .map(|(square, more)| (square + more).sqrt() * undo)
                .collect()
        };
        Ok(Quality {
            left_residuals: match (&self.left_squares, wanted.spectrum) {
                (Some(squares), _) => LeftResiduals::Measured(norms(squares, &of_v)),
                (None, Spectrum::Polished { .. }) => {
                    LeftResiduals::Rounding(norms(&vec![0.0; k], &of_v))
                }
                (None, Spectrum::Small { .. }) => LeftResiduals::Unknown,
            },
            right_residuals: norms(&self.right_squares, &of_u),
            left_orthogonality: self.left_gram.as_deref().map(orthogonality),
            right_orthogonality: orthogonality(&self.right_gram),
            sigma: scaled.iter().map(|s| s * undo).collect(),
            sigma_after: after.iter().map(|s| s * undo).collect(),
            flipped: match self.peaks {
                Some(peaks) if self.plan.sides.left => {
                    peaks.iter().map(|(peak, _)| *peak < 0.0).collect()
                }
                Some(_) | None => vec![false; scaled.len()],
            },
            requested: self.requested,
            reads: self
                .plan
                .reads()
                .or_else(|| self.pilot.as_ref().map(Pilot::reads))
                .unwrap_or(0),
            marks: self
                .pilot
                .as_ref()
                .map_or(Vec::new(), |p| p.marks().to_vec()),
            guard: self
                .pilot
                .as_ref()
                .and_then(Pilot::guard)
                .map(|guard| guard * undo),
        })
    }
}

fn bug(why: WorkError) -> Failure {
    Failure::bug(why.to_string())
}
