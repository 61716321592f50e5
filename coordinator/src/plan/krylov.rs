//! The plan that works until a tolerance: block Krylov on A^T A with thick restart, then one read in `f64` that says what
//! was reached, and one that forms U. See [`shared::svd::krylov`] and [`shared::svd::polish`] for the tasks.
//!
//! The plan grows while it runs. What comes next is decided by the [`Pilot`] from delivered numbers alone, which are the
//! same on any farm, so the graph is, too; and a run that was broken off comes to the same graph when it is told the same
//! numbers again.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shared::{
    farm::{
        bytes::Bytes,
        graph::{Checkpoint, Graph, Input},
        ids::{AccumulatorId, ContentHash, TaskId},
        work::WorkError,
    },
    svd::{
        Precision, Shape, Slice, SvdWork,
        krylov::{GUARD, KrylovWork, REFILL, Random, RitzLayout, START, Step},
        layout::{Panels, f64s},
        polish::{PolishWork, Polished},
    },
};

mod groups;

pub(super) use groups::Array;
use groups::{Columns, held_bytes, task_of, whole_sum};

use super::{
    Sides, Spectrum, Wanted,
    fixed::{Builder, Left},
    ground::{Ground, add, whole},
    marks::{Mark, stalls},
};
use crate::{
    failure::Failure,
    job::resolved::{self, Tolerance, ToleranceKind},
};

/// What the method is to do, all numbers filled in.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct KrylovSpec {
    pub wanted: resolved::Wanted,
    /// p: triplets beyond those wanted that are kept at a restart and polished with them.
    pub oversample: u32,
    /// Columns of a block.
    pub block: u32,
    /// Most columns of the basis.
    pub basis: u32,
    /// Columns that watch for a missed direction.
    pub guard: u32,
    pub tolerance: Tolerance,
    /// Of the first reads, and of the factors.
    pub precision: Precision,
    pub seed: u64,
    /// Factors of an earlier run to begin with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Given>,
}

/// The first columns of V of an earlier run, as the first block of a basis.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Given {
    pub columns: u32,
    /// Of the hashes of its slices.
    #[serde(with = "hexadecimal")]
    pub hash: ContentHash,
}

/// A hash as text.
mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use shared::farm::ids::ContentHash;

    pub fn serialize<S: Serializer>(hash: &ContentHash, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(hash)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ContentHash, D::Error> {
        let text = String::deserialize(from)?;
        ContentHash::parse(&text).ok_or_else(|| D::Error::custom("expected 64 hexadecimal digits"))
    }
}

/// Widths of blocks are multiples of this: no panel has padding.
pub const GROUP: u32 = 16;
/// The estimate after each read is to be this much better than the tolerance: the last read, in `f64`, decides.
const MARGIN: f64 = 0.97;
/// So many reads, or more where many have been taken, may lie between two solutions of the small eigenproblem.
const STEPS_MAX: u32 = 4;
/// Of theta_1: what lies below cannot be told from rounding of reads in that precision.
pub(super) fn blind_below(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 2f64.powi(-20),
        Precision::F64 => 2f64.powi(-44),
    }
}
/// Of ||A||_F^2: when no more than this is left outside of the basis, the spectrum has ended as far as A^T A can tell.
fn ended_below(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 2f64.powi(-16),
        Precision::F64 => 2f64.powi(-42),
    }
}
/// A basis that was nearly orthonormal when scaled has eigenvalues above this; below, two split reads are taken.
const LAMBDA_MIN: f64 = 0.25;

/// Range pass, projection pass, lift pass.
pub const SPLIT_READS: u32 = 3;

/// Whether eigenvalues of A^T A go on falling where rounding takes over: the vectors there are half noise, and two split reads
/// bring them on by sigma_{l+1} / sigma_k only. Where the spectrum has a gap there, it has ended, and they are exact.
pub(super) fn fades(theta: &[f64]) -> bool {
    let (from, to) = (2f64.powi(-49), 2f64.powi(-28));
    let mut shares = theta.iter().map(|t| t / theta[0]);
    shares.any(|share| share > from && share < to)
}

/// What the small eigenproblem costs in operations of a read: of its own there are fewer, but half of them are slow.
fn solve_cost(d: u32) -> u64 {
    9 * u64::from(d).pow(3)
}

impl KrylovSpec {
    /// l for k triplets.
    pub fn keep(&self, rank: u32) -> u32 {
        (rank + self.oversample.max(1)).next_multiple_of(GROUP)
    }

    /// Columns of the first block, of which at least 8 are random: a direction that was nothing in the earlier matrix must
    /// be found, too.
    pub fn first(&self) -> u32 {
        self.start.map_or(self.block, |given| {
            (given.columns + GROUP)
                .next_multiple_of(GROUP)
                .max(self.block)
        })
    }

    /// The most columns of an earlier V that may be taken: no more than a restart would keep of them, and such that a
    /// basis as large as planned has room for blocks of their width.
    pub fn takes(&self, columns: u32, side: u64) -> u32 {
        let goal = match self.wanted {
            resolved::Wanted::Rank(rank) => rank,
            resolved::Wanted::Energy(_) => self.basis / 4,
        };
        let keep = self.keep(goal);
        let fits = |&columns: &u32| {
            let hash = ContentHash([0; 32]);
            let first = Self {
                start: Some(Given { columns, hash }),
                ..*self
            }
            .first();
            first == self.block
                || keep + 2 * first <= self.basis
                    && u64::from(self.basis + first + self.guard) <= side
        };
        (1..=columns.min(keep)).rev().find(fits).unwrap_or(1)
    }
}

enum Awaited {
    /// theta and residuals.
    Report {
        task: TaskId,
        layout: RitzLayout,
    },
    Verdict {
        task: TaskId,
        rank: u32,
        end: End,
    },
    Nothing,
}

/// What the last read has left for those after it.
struct End {
    v: Array,
    guard: Array,
    shape: Shape,
    polished: TaskId,
    right: Vec<TaskId>,
    right_residual: TaskId,
    signs: TaskId,
}

/// What a read has found out for T.
struct Found {
    step: Step,
    /// C1, C2, R1, R2 of [`KrylovWork::Ritz`]
    parts: [Input; 4],
    checkpoint: u16,
    stage: u16,
}

impl Found {
    /// Those that made the parts, each once.
    fn tasks(&self) -> Vec<TaskId> {
        let mut tasks: Vec<TaskId> = self.parts.iter().filter_map(task_of).collect();
        tasks.sort_unstable();
        tasks.dedup();
        tasks
    }
}

/// Decides what comes next.
pub struct Pilot {
    pub(super) ground: Ground,
    pub(super) spec: KrylovSpec,
    sides: Sides,
    /// The state is that of A^T A itself, see [`gram`](super::gram).
    pub(super) gram: bool,
    /// Of what is written.
    slices: Vec<Slice>,
    pub(super) graph: Graph<SvdWork>,
    precision: Precision,
    /// The arrays that T speaks of, and the next one, which does not stand in T yet.
    pub(super) basis: Vec<Array>,
    next: Array,
    /// T when it was last solved, and its columns.
    t: Option<(Input, TaskId, u32)>,
    /// What reads since then have found out.
    found: Vec<Found>,
    state_checkpoint: Option<u16>,
    /// The last solved state.
    pub(super) solved: Option<(TaskId, RitzLayout)>,
    /// One more read than the solved state knows of has been planned.
    ahead: bool,
    steps: u32,
    refilled: u32,
    pub(super) reads: u32,
    awaited: Awaited,
    wanted: Option<Wanted>,
    pub(super) marks: Vec<Mark>,
    /// Marks before the precision changed.
    since: usize,
    guard_sigma: Option<f64>,
    /// The worst error that a verdict has told of a basis in `f64`.
    judged: Option<f64>,
    lacks_energy: Option<f64>,
}

/// Row slices of the Krylov method's arrays: of 2,048 rows, and no more than 512 where that allows it; of few rows, so many
/// that two cores have the same to do, and as long as each other.
pub fn tall_slices(columns: u64) -> Vec<Slice> {
    let rows = match columns {
        0..=1024 => 1024,
        1025..=8192 => {
            let count = 2 * columns.div_ceil(2048);
            columns.div_ceil(count).next_multiple_of(32)
        }
        _ => columns.div_ceil(512).next_multiple_of(1024).max(2048),
    };
    (0..columns.div_ceil(rows))
        .map(|s| Slice {
            first: s * rows,
            rows: rows.min(columns - s * rows) as u32,
        })
        .collect()
}

impl Pilot {
    /// `start`: a block a slice, if the spec begins with such.
    pub fn new(ground: Ground, spec: KrylovSpec, sides: Sides, start: Option<&[Input]>) -> Self {
        let mut pilot = Self::idle(ground, spec, sides);
        pilot.start(start);
        pilot.read();
        pilot.solve();
        pilot.hold();
        pilot
    }

    /// Begins with the eigenvectors of A^T A.
    pub fn of_gram(ground: Ground, spec: KrylovSpec, sides: Sides) -> Self {
        let mut pilot = Self::idle(ground, spec, sides);
        pilot.precision = Precision::F64;
        pilot.begin_gram();
        pilot.hold();
        pilot
    }

    fn idle(ground: Ground, spec: KrylovSpec, sides: Sides) -> Self {
        let slices = tall_slices(ground.columns);
        Self {
            slices,
            graph: Graph {
                open: true,
                ..Graph::default()
            },
            precision: if ground.is_blurred() {
                Precision::F64
            } else {
                spec.precision
            },
            basis: Vec::new(),
            next: Array::default(),
            t: None,
            found: Vec::new(),
            state_checkpoint: None,
            solved: None,
            ahead: false,
            steps: 0,
            refilled: 0,
            reads: 0,
            awaited: Awaited::Nothing,
            wanted: None,
            marks: Vec::new(),
            since: 0,
            guard_sigma: None,
            judged: None,
            lacks_energy: None,
            gram: false,
            ground,
            spec,
            sides,
        }
    }

    /// The graph as grown so far.
    pub fn graph(&self) -> Arc<Graph<SvdWork>> {
        Arc::new(self.graph.clone())
    }

    /// Where the factors are, once that is known.
    pub fn wanted(&self) -> Option<&Wanted> {
        self.wanted.as_ref()
    }

    /// What was known when.
    pub fn marks(&self) -> &[Mark] {
        &self.marks
    }

    /// Reads of A, all of those in the graph.
    pub fn reads(&self) -> u32 {
        self.reads
    }

    /// The guard's singular value in the last read: a lower bound of what lies outside of V. Of the scaled matrix.
    pub fn guard(&self) -> Option<f64> {
        self.guard_sigma
    }

    /// Hears of a delivered block. Some graph: it has grown.
    ///
    /// # Errors
    /// The wanted energy takes more triplets than the basis has columns.
    pub fn take(
        &mut self,
        task: TaskId,
        block: &Bytes,
    ) -> Result<Option<Arc<Graph<SvdWork>>>, Failure> {
        let bug = |why: WorkError| Failure::bug(why.to_string());
        match std::mem::replace(&mut self.awaited, Awaited::Nothing) {
            Awaited::Report {
                task: awaited,
                layout,
            } if awaited == task => {
                let told: Vec<f64> = block.numbers().map_err(bug)?.to_vec();
                let (theta, residuals) = told.split_at(layout.d);
                if std::mem::take(&mut self.gram) {
                    self.decide_gram(theta);
                } else {
                    self.decide(theta, residuals)?;
                }
            }
            Awaited::Verdict {
                task: awaited,
                rank,
                end,
            } if awaited == task => {
                let told: &[f64] = block.numbers().map_err(bug)?;
                self.judge(rank, end, told);
            }
            other => {
                self.awaited = other;
                return Ok(None);
            }
        }
        self.hold();
        Ok(Some(self.graph()))
    }

    fn d(&self) -> u32 {
        self.basis.iter().map(|a| a.width).sum()
    }

    /// Most columns of the basis as it stands: of f64, after f32, half as many, but no fewer than a restart goes on from.
    fn basis_max(&self) -> u32 {
        let given = self.spec.basis;
        if self.precision == self.spec.precision || self.ground.is_blurred() {
            return given;
        }
        let least = match self.spec.wanted {
            resolved::Wanted::Rank(rank) => self.spec.keep(rank) + 2 * self.next.width,
            resolved::Wanted::Energy(_) => given,
        };
        (given / 2).max(least).min(given)
    }

    /// Says what later growths may read.
    fn hold(&mut self) {
        let mut held: Vec<TaskId> = Vec::new();
        match &self.awaited {
            Awaited::Report { .. } => {
                let arrays = self.basis.iter().chain([&self.next]);
                held.extend(arrays.flat_map(|a| a.tasks.iter().copied()));
                held.extend(self.t.map(|(_, task, _)| task));
                held.extend(self.found.iter().flat_map(Found::tasks));
                held.extend(self.solved.map(|(task, _)| task));
            }
            Awaited::Verdict { end, .. } => {
                held.extend(end.v.tasks.iter().chain(&end.guard.tasks));
                held.extend(&end.right);
                held.extend([end.polished, end.signs, end.right_residual]);
            }
            Awaited::Nothing => {}
        }
        held.sort_unstable();
        held.dedup();
        self.graph.held = held;
        self.graph.open = self.wanted.is_none();
    }

    // What comes next.

    /// After a report: eigenvalues of T, and the norms of A^T A v - theta v.
    fn decide(&mut self, theta: &[f64], residuals: &[f64]) -> Result<(), Failure> {
        let d = theta.len();
        let ahead = self.ahead;
        let squares = self.ground.frobenius_squared;
        let known: f64 = theta.iter().map(|t| t.max(0.0)).sum();
        let rank = match self.spec.wanted {
            resolved::Wanted::Rank(rank) => Some(rank),
            resolved::Wanted::Energy(share) => {
                let mut sum = 0.0;
                theta
                    .iter()
                    .position(|t| {
                        sum += t;
                        sum >= share * squares
                    })
                    .map(|at| at as u32 + 1)
            }
        };
        let errors: Vec<f64> = theta
            .iter()
            .zip(residuals)
            .map(|(t, r)| if *t > 0.0 { r / t } else { f64::INFINITY })
            .collect();
        let sigma: Vec<f64> = theta.iter().map(|t| t.max(0.0).sqrt()).collect();
        let errors = in_kind(self.spec.tolerance.kind, &errors, &sigma);
        let worst = rank
            .filter(|&k| k as usize <= d)
            .map(|k| errors[..k as usize].iter().copied().fold(0.0, f64::max));
        self.marks.push(Mark {
            reads: self.reads - u32::from(ahead),
            basis: d as u32,
            worst,
        });
        let tolerance = self.spec.tolerance.value;
        let goal = rank.unwrap_or(d as u32);
        let full = self.d() + self.next.width > self.basis_max();
        let room = self.spec.keep(goal) as usize;

        // Rounding is relative to what cancels where something is subtracted.
        let blur = self.ground.blur();
        let ended = squares - known <= ended_below(self.precision) * blur * squares;
        let settled = d >= (goal + 2 * self.spec.block) as usize;
        let wanted = &theta[..d.min(goal as usize)];
        let blind = ended
            || settled
                && wanted
                    .iter()
                    .any(|t| *t <= blind_below(self.precision) * blur * theta[0]);
        let smallest = wanted.last().map_or(1.0, |t| t.max(1e-300));
        let noise = Precision::F64.roundoff() * blur * theta[0] / smallest;
        let splits = noise > tolerance / 20.0;
        let ending = if blind || splits {
            SPLIT_READS
        } else {
            1 + self.lifts()
        };
        let last = self.reads + 1 + ending > self.spec.tolerance.max_reads;
        let stalled = !last
            && worst.is_some_and(|worst| worst > MARGIN * tolerance)
            && stalls(
                &self.marks[self.since..],
                self.precision.roundoff() * blur * theta[0] / smallest,
            );
        if self.precision == Precision::F32 && (blind || stalled) {
            self.again_in_f64(room.min(d) as u32);
            return Ok(());
        }
        // A^T A has no more to tell.
        if stalled || blind && (d >= room || full || last) {
            self.end_split(goal.min(d as u32), room.min(d) as u32, theta);
            return Ok(());
        }
        match worst {
            Some(worst) if worst <= MARGIN * tolerance || last => {
                let keep = room.min(d) as u32;
                if splits {
                    self.end_split(goal, keep, theta);
                } else {
                    self.end(goal, keep, theta);
                }
            }
            None if last && rank.is_some() => {
                self.end_split(goal.min(d as u32), room.min(d) as u32, theta)
            }
            None if (last || full) && rank.is_none() => {
                self.lacks_energy = Some(known / squares);
                return Err(self.too_little_energy(d, known / squares));
            }
            _ => {
                let (count, enough) = match worst {
                    Some(worst) => self.steps_ahead(worst, tolerance),
                    None => (
                        goal.saturating_sub(d as u32).div_ceil(self.next.width),
                        false,
                    ),
                };
                if full {
                    self.restart(room.min(d) as u32);
                }
                let fits = (self.basis_max().saturating_sub(self.d())) / self.next.width;
                let after = self.reads + ending;
                let left = self.spec.tolerance.max_reads.saturating_sub(after);
                let count = count.min(fits).min(left).max(1);
                // The read that has been planned already is one of them.
                self.ahead = false;
                for _ in u32::from(ahead)..count {
                    self.read();
                }
                self.solve();
                if !enough {
                    self.read_ahead(ending);
                }
            }
        }
        Ok(())
    }

    /// Operations of a read for a basis of so many columns.
    fn read_cost(&self, d: u32) -> u64 {
        let width = u64::from(self.next.width);
        let nnz: u64 = self.ground.blocks.iter().map(|b| b.nnz).sum();
        4 * nnz * width + 8 * self.ground.columns * u64::from(d) * width
    }

    /// Where the small eigenproblem takes longer than a read, the next read is not made to wait for what it says; if that is
    /// the end, the read was for nothing.
    fn read_ahead(&mut self, ending: u32) {
        let (d, width) = (self.d(), self.next.width);
        let room = d + 2 * width <= self.basis_max();
        let last = self.reads + 1 + ending >= self.spec.tolerance.max_reads;
        if solve_cost(d) > self.read_cost(d) && room && !last {
            self.read();
            self.ahead = true;
        }
    }

    /// Reads until the tolerance is worth looking for again, and whether it is expected to be met then: by how fast the error
    /// has fallen since the mark before, and by how it falls in a basis that grows, its logarithm about as the square of the
    /// reads.
    ///
    /// What is one read too many costs a read, what is one too few a solution of the small eigenproblem: the dearer of both
    /// is avoided.
    fn steps_ahead(&self, worst: f64, tolerance: f64) -> (u32, bool) {
        let before = self.marks.iter().rev().skip(1).find_map(|mark| {
            mark.worst
                .filter(|w| w.is_finite())
                .map(|worst| (mark.reads, worst))
        });
        let (Some((reads, before)), true) = (before, worst.is_finite()) else {
            return (2, false);
        };
        let now = self.marks.last().map_or(self.reads, |mark| mark.reads);
        let fallen = (before / worst).ln() / f64::from((now - reads).max(1));
        if fallen <= 0.0 {
            return (2, false);
        }
        let goal = MARGIN * tolerance;
        let mut left = (worst / goal).ln() / fallen;
        if worst < 1.0 {
            left = left.min(f64::from(now) * ((goal.ln() / worst.ln()).sqrt() - 1.0));
        }
        let max = self.basis_max();
        let d =
            (f64::from(self.d()) + left * f64::from(self.next.width)).min(f64::from(max)) as u32;
        if solve_cost(d) > self.read_cost(d) {
            let count = (left.ceil() as u32).clamp(1, now.max(STEPS_MAX));
            (count, f64::from(count) >= left)
        } else {
            let count = ((0.75 * left) as u32).clamp(1, (now / 2).max(STEPS_MAX));
            (count, false)
        }
    }

    fn too_little_energy(&self, d: usize, share: f64) -> Failure {
        let resolved::Wanted::Energy(wanted) = self.spec.wanted else {
            return Failure::bug("no energy was asked for");
        };
        Failure::job(format!(
            "energy = {wanted} takes more than {d} triplets: {d} hold {:.1} % of the sum of squares",
            100.0 * share
        ))
        .help("ask for less energy, or for a rank; `basis` allows more columns where there is memory")
    }

    /// After the last read in `f64`: is it good enough to be lifted?
    fn judge(&mut self, rank: u32, end: End, told: &[f64]) {
        let (l, k) = (end.v.width as usize, rank as usize);
        let (sigma, rest) = told.split_at(l);
        let (lambda_min, guard, squares) = (rest[0], rest[1], &rest[2..]);
        self.guard_sigma = Some(guard);
        let errors: Vec<f64> = squares
            .iter()
            .zip(sigma)
            .map(|(square, sigma)| square.sqrt() / sigma.max(1e-300))
            .collect();
        let errors = in_kind(self.spec.tolerance.kind, &errors, sigma);
        let worst = errors[..k].iter().copied().fold(0.0, f64::max);
        self.marks.push(Mark {
            reads: self.reads,
            basis: l as u32,
            worst: Some(worst),
        });
        let missed = guard > sigma[k - 1] * (1.0 + self.spec.tolerance.value.min(1e-3));
        let last = self.reads + 3 + self.lifts() > self.spec.tolerance.max_reads;
        // T said that it was enough, and f64 has been tried before: what is written in f32 is no better.
        let rounded = self.judged.is_some_and(|before| worst > before / 2.0);
        if lambda_min < LAMBDA_MIN {
            let stage = self.graph.stage("V for split reads");
            let panels = self.panels(&[&end.v, &end.guard], end.shape, end.shape.precision, stage);
            self.split(rank, end.shape, &panels, false);
        } else if last || !missed && (worst <= self.spec.tolerance.value || rounded) {
            self.finish(rank, &end);
        } else {
            self.judged = (self.precision == Precision::F64).then_some(worst);
            let next = match (missed, self.precision) {
                (false, Precision::F64) => end.v,
                (true, _) => self.join(&end.v, Some(&end.guard)),
                (false, Precision::F32) => self.join(&end.v, None),
            };
            self.begin_in_f64(next);
            self.read();
            self.solve();
        }
    }

    // The stages.

    /// X_1, orthonormal.
    fn start(&mut self, start: Option<&[Input]>) {
        let stage = self.graph.stage("start");
        let width = self.spec.first();
        let random = self.random(START, 0);
        let drawn = match (self.spec.start, start) {
            (Some(given), Some(start)) => self.begin(start, given.columns, width, random, stage),
            (Some(_) | None, _) => self.draw(width, random, stage),
        };
        let (array, _) = self.orthonormal(&drawn, width, self.precision, stage);
        self.next = self.keep(array, Vec::new());
    }

    fn random(&self, stream: u32, first: u32) -> Random {
        Random {
            columns: self.ground.columns,
            seed: self.spec.seed,
            stream,
            first,
        }
    }

    /// One read, and what is new of it as the next block of the basis.
    fn read(&mut self) {
        self.reads += 1;
        self.steps += 1;
        let width = self.next.width;
        let shape = self.ground.shape(width, self.precision);
        let stage = self.graph.stage(format!("pass {}", self.reads));
        let next = std::mem::take(&mut self.next);
        let panels = self.read_panels(&next, shape, stage);
        let (sum, extra) = self.power(&panels, shape, stage);
        let stage = self.graph.stage(format!("basis {}", self.reads));
        let z = self.of_sum(sum, shape, extra);

        self.basis.push(next);
        let d = self.d();
        // By the recurrence A^T A X_q lies in the last two blocks and the next one, but for rounding.
        let near = self.basis.len().saturating_sub(2);
        let local: u32 = self.basis[near..].iter().map(|a| a.width).sum();
        let norm = self.ground.norm(self.precision);
        let bits = 59 - 2 * norm;
        let sum = self.cross(near, &z, bits, stage);
        let refill = self.random(REFILL, self.refilled);
        self.refilled += width;
        let leaves = self.fresh(near, (sum, bits), &z, refill, stage);
        // T alone waits for it.
        let c1 = self.cross_out(sum, local * width, bits, stage);
        let (q, r1) = self.climb(&leaves, width, self.precision, stage);
        let sum = self.cross(0, &q, 59, stage);
        let (array, c2, r2) = match self.precision {
            Precision::F32 => self.next_by_pythagoras(sum, &q, stage),
            Precision::F64 => {
                let full = Precision::F64;
                let w = self.deflate(0, (sum, 59), &q, full, stage);
                let c2 = self.cross_out(sum, d * width, 59, stage);
                let (array, r2) = self.orthonormal(&w, width, full, stage);
                (array, c2, r2)
            }
        };
        self.next = self.keep(array, Vec::new());

        let mut found = Found {
            step: Step { local, width },
            parts: [c1, c2, r1, r2],
            checkpoint: 0,
            stage,
        };
        found.checkpoint = self.checkpoint(found.tasks(), Vec::new());
        self.found.push(found);
    }

    /// The eigenvalues of T with all that reads have found out.
    fn solve(&mut self) {
        let d = self.d();
        let keep = self.ritz_keep(d);
        let layout = RitzLayout::of(d as usize, keep as usize);
        let found = std::mem::take(&mut self.found);
        let stage = found.last().map_or(0, |found| found.stage);
        let mut inputs: Vec<Input> = self.t.iter().map(|(t, ..)| *t).collect();
        inputs.extend(found.iter().flat_map(|found| found.parts));
        let work = KrylovWork::Ritz {
            before: self.t.map_or(0, |(.., columns)| columns),
            steps: found.iter().map(|found| found.step).collect(),
            keep,
        };
        let task = self.add(work, inputs, layout.total(), solve_cost(d), stage);
        let t = Input::Result {
            task,
            range: Some(layout.t()),
        };
        self.t = Some((t, task, d));
        let mut supersedes: Vec<u16> = found.iter().map(|found| found.checkpoint).collect();
        supersedes.extend(self.state_checkpoint);
        self.state_checkpoint = Some(self.checkpoint(vec![task], supersedes));
        self.report(task, layout, stage);
    }

    /// The second round where rounding is that of f32 anyway: the triangle of Q - X C follows from C alone. Also C and that
    /// triangle.
    fn next_by_pythagoras(
        &mut self,
        sum: AccumulatorId,
        q: &Columns,
        stage: u16,
    ) -> (Array, Input, Input) {
        let (before, width) = (self.d(), q.width);
        let (d, w) = (before as usize, width as usize);
        let work = KrylovWork::Pythagoras {
            before,
            width,
            bits: 59,
        };
        let bytes = f64s(d + 2 * w, w);
        let cost = 2 * bytes * u64::from(width);
        let small = self.add(work, vec![whole_sum(sum)], bytes, cost, stage);
        let widths = self.widths(0);
        let mut tasks = Vec::new();
        for (s, inputs_of_q) in q.slices.iter().enumerate() {
            let slice = self.slices[s];
            let mut inputs = vec![whole(small)];
            inputs.extend(self.slices_of_basis(0, s));
            inputs.extend(inputs_of_q);
            let work = KrylovWork::Next {
                slice,
                widths: widths.clone(),
                given: q.given,
                width,
            };
            let bytes = held_bytes(slice.rows, width, Precision::F32);
            let cost = 2 * u64::from(slice.rows) * u64::from(before) * u64::from(width);
            tasks.push(self.add(work, inputs, bytes, cost, stage));
        }
        let part = |from: usize, to: usize| Input::Result {
            task: small,
            range: Some((f64s(from, w), f64s(to, w))),
        };
        let array = Array::of(tasks, width, Precision::F32);
        (array, part(0, d), part(d, d + w))
    }

    /// What a solved state says is delivered.
    pub(super) fn report(&mut self, task: TaskId, layout: RitzLayout, stage: u16) {
        self.solved = Some((task, layout));
        let bytes = layout.told().1 - layout.told().0;
        let range = Some(layout.told());
        let inputs = vec![Input::Result { task, range }];
        let told = self.add(KrylovWork::Tell { bytes }, inputs, bytes, 1, stage);
        self.deliver(told);
        self.awaited = Awaited::Report { task: told, layout };
    }

    /// Eigenvectors that a solved state carries.
    pub(super) fn ritz_keep(&self, d: u32) -> u32 {
        match self.spec.wanted {
            resolved::Wanted::Rank(rank) => self.spec.keep(rank).min(d),
            resolved::Wanted::Energy(_) => d,
        }
    }

    pub(super) fn checkpoint_state(&mut self, task: TaskId) {
        let before = self.state_checkpoint;
        self.state_checkpoint = Some(self.checkpoint(vec![task], before.into_iter().collect()));
    }

    fn checkpoint(&mut self, tasks: Vec<TaskId>, supersedes: Vec<u16>) -> u16 {
        self.graph
            .checkpoints
            .push(Checkpoint { tasks, supersedes });
        (self.graph.checkpoints.len() - 1) as u16
    }

    fn deliver(&mut self, task: TaskId) {
        self.graph.deliveries.push(task);
        // Never superseded: another run comes to the same graph by them.
        self.checkpoint(vec![task], Vec::new());
    }

    /// Array with a checkpoint of its own.
    fn keep(&mut self, mut array: Array, supersedes: Vec<u16>) -> Array {
        array.checkpoint = Some(self.checkpoint(array.tasks.clone(), supersedes));
        array
    }

    /// X W for the first eigenvectors: V, which takes the place of the basis.
    pub(super) fn rotate(
        &mut self,
        keep: u32,
        stage: u16,
        supersede_next: bool,
        out: Precision,
    ) -> Array {
        let (ritz, layout) = self.solved.expect("a report comes from a solved state");
        let mut supersedes = Vec::new();
        if std::mem::take(&mut self.ahead) {
            supersedes.extend(self.basis.pop().and_then(|array| array.checkpoint));
        }
        supersedes.extend(self.found.drain(..).map(|found| found.checkpoint));
        let keep_of = layout.keep as u32;
        let vectors = Input::Result {
            task: ritz,
            range: Some(layout.vectors()),
        };
        let vectors = if keep == keep_of {
            vectors
        } else {
            let work = KrylovWork::Columns {
                rows: layout.d as u32,
                width: keep_of,
                keep,
            };
            let bytes = f64s(layout.d, keep as usize);
            whole(self.add(work, vec![vectors], bytes, bytes, stage))
        };
        if self.basis.is_empty() {
            // The basis is the identity.
            return self.cut(vectors, keep);
        }
        let widths = self.widths(0);
        let held = self.basis[0].held;
        let mut tasks = Vec::new();
        for s in 0..self.slices.len() {
            let rows = self.slices[s].rows;
            let mut inputs = vec![vectors];
            inputs.extend(self.slices_of_basis(0, s));
            let work = KrylovWork::Rotate {
                rows,
                widths: widths.clone(),
                held,
                keep,
                out,
            };
            let cost = 2 * u64::from(rows) * (layout.d as u64) * u64::from(keep);
            tasks.push(self.add(work, inputs, held_bytes(rows, keep, out), cost, stage));
        }
        supersedes.extend(self.basis.iter().filter_map(|a| a.checkpoint));
        if supersede_next {
            supersedes.extend(self.next.checkpoint);
            supersedes.extend(self.state_checkpoint.take());
        }
        self.keep(Array::of(tasks, keep, out), supersedes)
    }

    /// An array that stands in one block, f64[n x width].
    fn cut(&self, whole: Input, width: u32) -> Array {
        let slice = |slice: &Slice| {
            let Input::Result { task, range } = whole else {
                unreachable!("eigenvectors are a result");
            };
            let start = range.map_or(0, |(start, _)| start) + slice.first * f64s(1, width as usize);
            let bytes = f64s(slice.rows as usize, width as usize);
            Input::Result {
                task,
                range: Some((start, start + bytes)),
            }
        };
        Array {
            slices: self.slices.iter().map(slice).collect(),
            tasks: task_of(&whole).into_iter().collect(),
            width,
            held: Precision::F64,
            checkpoint: None,
        }
    }

    /// Thick restart: the basis becomes its best `keep` Ritz vectors, and the next block goes on from there.
    fn restart(&mut self, keep: u32) {
        let stage = self
            .graph
            .stage(format!("restart after pass {}", self.reads));
        let (ritz, layout) = self.solved.expect("a report comes from a solved state");
        let v = self.rotate(keep, stage, false, self.precision);
        let theta = Input::Result {
            task: ritz,
            range: Some(layout.theta()),
        };
        let work = KrylovWork::Restart {
            length: layout.d as u32,
            keep,
        };
        let t = self.add(
            work,
            vec![theta],
            f64s(keep as usize, keep as usize),
            1,
            stage,
        );
        self.checkpoint_state(t);
        self.basis = vec![v];
        self.t = Some((whole(t), t, keep));
    }

    /// f32 does not see far enough: what it has found is the first block of a new basis in `f64`.
    fn again_in_f64(&mut self, keep: u32) {
        let stage = self
            .graph
            .stage(format!("restart in f64 after pass {}", self.reads));
        let v = self.rotate(keep, stage, true, Precision::F64);
        // Orthonormal to more than f32 tells.
        let (next, _) = self.orthonormal(&v.slices, v.width, Precision::F64, stage);
        let next = self.keep(next, v.checkpoint.into_iter().collect());
        self.begin_in_f64(next);
        self.read();
        self.solve();
    }

    fn begin_in_f64(&mut self, next: Array) {
        self.precision = Precision::F64;
        self.since = self.marks.len();
        self.basis.clear();
        self.t = None;
        self.found.clear();
        self.solved = None;
        self.next = next;
    }

    /// V (and the guard), made orthonormal, as the first block of a basis in `f64`.
    fn join(&mut self, v: &Array, guard: Option<&Array>) -> Array {
        let stage = self.graph.stage("V in f64, and what was missed");
        let arrays: Vec<&Array> = [v].into_iter().chain(guard).collect();
        let widths: Vec<u32> = arrays.iter().map(|a| a.width).collect();
        let width = widths.iter().sum();
        let mut joined = Vec::new();
        for s in 0..self.slices.len() {
            let rows = self.slices[s].rows;
            let work = KrylovWork::Join {
                rows,
                widths: widths.clone(),
                held: v.held,
            };
            let bytes = held_bytes(rows, width, Precision::F64);
            let inputs = arrays.iter().map(|a| a.slices[s]).collect();
            joined.push(whole(self.add(work, inputs, bytes, bytes, stage)));
        }
        let (array, _) = self.orthonormal(&joined, width, Precision::F64, stage);
        self.keep(array, v.checkpoint.into_iter().collect())
    }

    /// The last read but one: V and the guard in `f64`, their products, V' and its residuals, and the verdict.
    pub(super) fn end(&mut self, rank: u32, keep: u32, theta: &[f64]) {
        let stage = self
            .graph
            .stage(format!("basis of {keep} after pass {}", self.reads));
        let (ritz, layout) = self.solved.expect("a report comes from a solved state");
        // Numbers of f32 are exact in what follows, but where L comes between them and the blocks. U = A V / sigma of such
        // numbers has sigma_1 / sigma_k roundings of them in it, and A^T U as many again.
        let spread = theta[0] / theta[rank as usize - 1].max(1e-300);
        let rounding = 2.0 * Precision::F32.roundoff() / (self.ground.columns as f64).sqrt();
        let fine = spread * rounding > self.spec.tolerance.value / 8.0;
        let held = match (self.precision, self.ground.view()) {
            (Precision::F32, None) if !fine => Precision::F32,
            (Precision::F32, _) | (Precision::F64, _) => Precision::F64,
        };
        let v = self.rotate(keep, stage, true, held);
        let g = self.spec.guard;
        let guard = self.beside(&v, g, stage);

        self.reads += 1;
        let stage = self.graph.stage("verification pass");
        let shape = self.ground.shape(keep + g, Precision::F64);
        let norm = self.ground.norm(Precision::F64);
        let theta = Input::Result {
            task: ritz,
            range: Some(layout.theta()),
        };
        let work = PolishWork::Weights {
            basis: keep,
            guard: g,
            norm,
            least: norm
                - match self.precision {
                    Precision::F32 => 10,
                    Precision::F64 => 22,
                },
        };
        let weights = self.add_polish(work, vec![theta], f64s(1, (keep + g) as usize), 1, stage);
        // V makes up for the eigenvectors, but not for the eigenvalues.
        if let Some(of_v) = v.checkpoint {
            self.graph.checkpoints[usize::from(of_v)]
                .tasks
                .push(weights);
        }
        let panels = self.panels(&[&v, &guard], shape, held, stage);
        let (sum, extra) = self.verify(&panels, whole(weights), shape, held, stage);
        let stage = self.graph.stage("polish");
        let guard_gram = self.guard_gram(sum, shape, extra, stage);
        let work = PolishWork::Polish {
            basis: keep,
            guard: g,
        };
        let gram = Input::Fold {
            accumulator: sum,
            part: Panels::of(shape).len() as u16,
            chunk: 0,
        };
        let polished = self.add_polish(
            work,
            vec![gram, whole(weights), guard_gram],
            Polished::bytes(keep as usize),
            40 * u64::from(keep).pow(3),
            stage,
        );
        let head = f64s(3, rank as usize);
        let (k, number) = (rank as usize, self.spec.precision.bytes() as u64);
        let mut right = Vec::new();
        for s in 0..self.slices.len() {
            let slice = self.slices[s];
            let rows = u64::from(slice.rows);
            let work = PolishWork::Right {
                shape,
                slice,
                held,
                extra,
                basis: keep,
                rank,
                out: self.spec.precision,
            };
            let mut inputs = vec![whole(polished), v.slices[s]];
            inputs.extend(self.sum_inputs(sum, shape, s));
            let bytes = head + rows * u64::from(rank) * number;
            let cost = 4 * rows * u64::from(keep) * u64::from(rank);
            right.push(self.add_polish(work, inputs, bytes, cost, stage));
        }
        let range = |tasks: &[TaskId], from: usize, to: usize| {
            let range = Some((f64s(from, k), f64s(to, k)));
            tasks
                .iter()
                .map(|&task| Input::Result { task, range })
                .collect::<Vec<_>>()
        };
        let peaks = range(&right, 0, 2);
        let squares = range(&right, 2, 3);
        let graph = &mut self.graph;
        let signs = add(graph, SvdWork::Signs { rank }, peaks, f64s(k, 1), 1, stage);
        let right_residual = add(graph, SvdWork::Sum { rank }, squares, f64s(k, 1), 1, stage);
        let work = PolishWork::Verdict { basis: keep, rank };
        let bytes = f64s(1, keep as usize + 2 + k);
        let inputs = vec![whole(polished), whole(right_residual)];
        let verdict = self.add_polish(work, inputs, bytes, 1, stage);
        self.deliver(verdict);
        let mut kept = right.clone();
        kept.extend([polished, signs, right_residual]);
        self.checkpoint(kept, Vec::new());
        self.awaited = Awaited::Verdict {
            task: verdict,
            rank,
            end: End {
                v,
                guard,
                shape,
                polished,
                right,
                right_residual,
                signs,
            },
        };
    }

    /// Reads that U takes after the last one in `f64`.
    fn lifts(&self) -> u32 {
        u32::from(self.sides.left)
    }

    /// Random columns, orthogonal to V.
    pub(super) fn beside(&mut self, v: &Array, width: u32, stage: u16) -> Array {
        let random = self.random(GUARD, self.reads * width);
        let drawn = Columns::held(&self.draw(width, random, stage), width, Precision::F64);
        self.basis = vec![v.clone()];
        let sum = self.cross(0, &drawn, 59, stage);
        let slices = self.deflate(0, (sum, 59), &drawn, v.held, stage);
        Array::of(slices.iter().filter_map(task_of).collect(), width, v.held)
    }

    /// V with its signs, and U where it is wanted. Where it is not, ||A v - s u|| needs no measuring: with u = A v / s,
    /// which the last read has made orthonormal, it is rounding.
    fn finish(&mut self, rank: u32, end: &End) {
        let (k, number) = (rank as usize, self.spec.precision.bytes() as u64);
        let stage = self.graph.stage("V");
        let shape = Shape {
            width: rank,
            precision: self.spec.precision,
            ..end.shape
        };
        let head = f64s(3, k);
        let mut right = Vec::new();
        for (s, &task) in end.right.iter().enumerate() {
            let slice = self.slices[s];
            let bytes = u64::from(slice.rows) * u64::from(rank) * number;
            let v = Input::Result {
                task,
                range: Some((head, head + bytes)),
            };
            let work = SvdWork::SignedSlice { shape, slice };
            let inputs = vec![v, whole(end.signs)];
            right.push((
                add(&mut self.graph, work, inputs, bytes, bytes, stage),
                slice,
            ));
        }
        let mut builder = Builder::new(&self.ground, shape, &mut self.graph);
        let right_gram = builder.gram_sum(rank, right.len());
        for (s, &(task, slice)) in right.iter().enumerate() {
            builder.gram(right_gram, rank, whole(task), slice.rows, s, stage);
        }
        let right_gram = builder.gram_out(right_gram, rank, stage);
        // What is delivered cannot be delivered again by a task of an older growth.
        let right_residual = builder.add(
            SvdWork::Sum { rank },
            vec![whole(end.right_residual)],
            f64s(k, 1),
            1,
            stage,
        );
        let bytes = Polished::bytes(end.v.width as usize);
        let work = SvdWork::Krylov(KrylovWork::Tell { bytes });
        let spectrum = builder.add(work, vec![whole(end.polished)], bytes, 1, stage);
        let mut wanted = Wanted {
            spectrum: Spectrum::Polished {
                task: spectrum,
                basis: end.v.width,
            },
            rank,
            rows: self.spec.precision,
            left_head: f64s(1, k),
            right: Vec::new(),
            left: Vec::new(),
            left_residual: None,
            right_residual,
            left_as_written: end.v.held == Precision::F32,
            left_gram: None,
            right_gram,
        };
        if self.sides.left {
            self.lift(&mut wanted, end, shape, &right);
        }
        if self.sides.right {
            wanted.right = right;
        }
        Builder::new(&self.ground, shape, &mut self.graph).deliver(&wanted);
        self.wanted = Some(wanted);
    }

    /// U block by block. `right`: V' with its signs.
    fn lift(&mut self, wanted: &mut Wanted, end: &End, shape: Shape, right: &[(TaskId, Slice)]) {
        self.reads += 1;
        let rank = wanted.rank;
        let (k, number) = (rank as usize, self.spec.precision.bytes() as u64);
        let stage = self.graph.stage("lift pass");
        let written = end.v.held == Precision::F32;
        let (read, panels) = if written {
            let read = self.ground.shape(rank, Precision::F64);
            let tasks = right.iter().map(|(task, _)| *task).collect();
            let v = Array::of(tasks, rank, Precision::F32);
            (read, self.panels(&[&v], read, Precision::F32, stage))
        } else {
            let arrays = [&end.v, &end.guard];
            let panels = self.panels(&arrays, end.shape, Precision::F64, stage);
            (end.shape, panels)
        };
        let mut left = Vec::new();
        let mut squares = Vec::new();
        let head = f64s(1, k);
        let mut builder = Builder::new(&self.ground, shape, &mut self.graph);
        let left_gram = builder.gram_sum(rank, self.ground.blocks.len());
        for i in 0..self.ground.blocks.len() {
            let block = &self.ground.blocks[i];
            let (rows, nnz) = (u64::from(block.rows), block.nnz);
            let scale = self.ground.block_scale;
            let basis = end.v.width;
            let mut inputs = vec![self.ground.block_input(i)];
            let work = if written {
                inputs.push(whole(end.polished));
                inputs.extend(&panels);
                PolishWork::LiftWritten {
                    scale,
                    shape: self.ground.read(read),
                    basis,
                }
            } else {
                inputs.extend(&panels);
                inputs.extend([whole(end.polished), whole(end.signs)]);
                PolishWork::Lift {
                    scale,
                    shape: self.ground.read(read),
                    basis,
                    rank,
                    out: self.spec.precision,
                }
            };
            let bytes = rows * u64::from(rank) * number;
            let width = u64::from(read.width);
            let dense = if written { 0 } else { 4 * rows * width };
            let cost = 2 * nnz * width + dense * u64::from(rank);
            let work = SvdWork::Polish(work);
            let mut builder = Builder::new(&self.ground, shape, &mut self.graph);
            let u = builder.add(work, inputs, head + bytes, cost, stage);
            left.push((u, block.first_row, block.rows));
            squares.push(Input::Result {
                task: u,
                range: Some((0, head)),
            });
            let rows_of_u = Input::Result {
                task: u,
                range: Some((head, head + bytes)),
            };
            builder.gram(left_gram, rank, rows_of_u, block.rows, i, stage);
        }
        let mut builder = Builder::new(&self.ground, shape, &mut self.graph);
        let left_residual = builder.add(SvdWork::Sum { rank }, squares, f64s(k, 1), 1, stage);
        wanted.left_gram = Some(builder.gram_out(left_gram, rank, stage));
        wanted.left_residual = Some(left_residual);
        wanted.left = left;
    }

    /// The way that needs no square of A: V, then two split reads and the lift.
    fn end_split(&mut self, rank: u32, keep: u32, theta: &[f64]) {
        let stage = self
            .graph
            .stage(format!("basis of {keep} after pass {}", self.reads));
        let v = self.rotate(keep, stage, true, Precision::F64);
        let shape = self.ground.shape(keep, Precision::F64);
        let panels = self.panels(&[&v], shape, Precision::F64, stage);
        self.split(rank, shape, &panels, !fades(theta));
    }

    /// With two reads more before, where there may be, if the space is not `sharp`.
    pub(super) fn split(&mut self, rank: u32, shape: Shape, panels: &[Input], sharp: bool) {
        self.reads += SPLIT_READS;
        let left = if self.sides.left {
            Left::Delivered
        } else {
            Left::Measured
        };
        let refined = !sharp && self.reads + 2 <= self.spec.tolerance.max_reads;
        let mut builder = Builder::new(&self.ground, shape, &mut self.graph);
        let better = refined.then(|| builder.refine(panels));
        let panels = better.as_deref().unwrap_or(panels);
        self.wanted = Some(builder.split(rank, panels, self.sides.right, left));
        self.reads += 2 * u32::from(refined);
    }
}

/// Relative residuals as errors of the tolerance's kind. The error of a singular value is about the square of the residual
/// over the gap to its neighbours, and never more than the residual.
pub fn in_kind(kind: ToleranceKind, residuals: &[f64], sigma: &[f64]) -> Vec<f64> {
    let gap = |i: usize| {
        let above = if i > 0 {
            sigma[i - 1] - sigma[i]
        } else {
            f64::INFINITY
        };
        let below = sigma.get(i + 1).map_or(0.0, |next| sigma[i] - next);
        above.min(below)
    };
    residuals
        .iter()
        .enumerate()
        .map(|(i, &residual)| match kind {
            ToleranceKind::Residual => residual,
            ToleranceKind::Sigma => residual.min(residual * residual * sigma[i] / gap(i)),
        })
        .collect()
}
