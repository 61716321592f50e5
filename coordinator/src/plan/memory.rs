//! What a plan takes of memory, and what is made of one that takes too much.

use shared::{
    farm::work::WorkError,
    matrix::facts::MatrixFacts,
    svd::{
        Precision, Shape,
        layout::{ARITY, Panels, slices},
    },
};

use super::{Method, gram, ground::Ground, krylov::GROUP, tall_slices};

/// A method, and what memory has changed of it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Fitted {
    pub method: Method,
    /// Columns of basis and block as they were chosen first, if they have been cut.
    pub cut: Option<(u32, u32)>,
    /// Bytes that the smallest plan of this kind needs on one core.
    pub least: u64,
}

impl Method {
    /// The same method with the largest basis that `memory` holds; with smaller blocks, where not even the least basis of
    /// the larger ones fits. Nothing is cut where that would not help. A function of matrix, method and memory alone.
    ///
    /// # Errors
    /// No memory for what the plan is made from.
    pub fn fitted(self, facts: &MatrixFacts, memory: u64) -> Result<Fitted, WorkError> {
        let ground = Ground::new(facts)?;
        let chosen = needed(&ground, &self, 1);
        let mut fitted = Fitted {
            method: self,
            cut: None,
            least: chosen,
        };
        let spec = match self {
            Self::Krylov(spec) => spec,
            Self::Gram(spec) if chosen > memory => {
                let other = Self::Krylov(spec).fitted(facts, memory)?;
                return Ok(Fitted {
                    least: other.least.min(chosen),
                    ..other
                });
            }
            Self::Gram(_) | Self::Power { .. } | Self::Exact { .. } => return Ok(fitted),
        };
        let keep = spec.keep(match spec.wanted {
            super::resolved::Wanted::Rank(rank) => rank,
            super::resolved::Wanted::Energy(_) => 1,
        });
        let of = |block: u32, basis: u32| {
            Self::Krylov(super::KrylovSpec {
                block,
                basis,
                ..spec
            })
        };
        let least_basis = |block: u32| {
            let first = super::KrylovSpec { block, ..spec }.first();
            (keep + 2 * first).min(spec.basis)
        };
        let smallest = of(GROUP.min(spec.block), least_basis(GROUP.min(spec.block)));
        fitted.least = needed(&ground, &smallest, 1).min(chosen);
        if chosen <= memory {
            return Ok(fitted);
        }
        let blocks = (1..=spec.block / GROUP).rev().map(|groups| groups * GROUP);
        let fits = blocks
            .filter(|&block| least_basis(block) <= spec.basis)
            .find_map(|block| {
                (least_basis(block)..=spec.basis)
                    .rev()
                    .filter(|basis| basis % GROUP == 0)
                    .map(|basis| of(block, basis))
                    .find(|method| needed(&ground, method, 1) <= memory)
            });
        if let Some(method) = fits {
            fitted.method = method;
            fitted.cut = Some((spec.basis, spec.block));
        }
        Ok(fitted)
    }
}

/// Bytes that must be in memory at once on one machine with so many cores.
pub fn needed(ground: &Ground, method: &Method, cores: usize) -> u64 {
    let block = ground.blocks.iter().map(|b| b.bytes).max().unwrap_or(0);
    let blocks = (cores as u64 + 1) * block + of_tasks(ground, method, cores);
    let n = ground.columns;
    // Panels stand twice while they are spread, and the map beside them.
    let viewed = u64::from(ground.view().is_some());
    let map = n * 8 * ground.view().map_or(0, |added| 1 + added);
    let blocks = blocks + map;
    match *method {
        // X as slices and as panels, Z as integers, the leaves' Q in f64, the trees.
        Method::Power { .. } | Method::Exact { .. } => {
            let shape = fixed_shape(ground, method);
            let padded = Panels::of(shape).padded() as u64;
            let number = shape.precision.bytes() as u64;
            let width = u64::from(shape.width);
            let trees = 16 * width * width * 8 * (1 + ground.blocks.len() as u64 / ARITY as u64);
            n * (padded * ((2 + viewed) * number + 8) + width * 8) + trees + blocks
        }
        Method::Krylov(spec) | Method::Gram(spec) => {
            // Blocks are as wide as the first one.
            let (d, b) = (u64::from(spec.basis), u64::from(spec.first()));
            let l = u64::from(spec.keep(method.rank_max()) + spec.guard);
            let written = spec.precision.bytes() as u64;
            let held = if ground.is_blurred() { 8 } else { written };
            // Z as integers and as numbers, what is left of it, and its Q.
            let reading = n * (held * (d + b) + 8 * (4 + viewed) * b);
            let restart = n * held * (d + l + b);
            // V and the guard as slices and panels, and Z; then V and V', without and with signs, and panels.
            let ends = match ground.view() {
                Some(_) => 8,
                None => held,
            };
            let panels = ends * (1 + viewed);
            let ending = n * l * (ends + panels + 8).max(ends + panels + 2 * written);
            let krylov = reading.max(restart).max(ending) + 6 * d * d * 8;
            let before = match method {
                // A copy of the sum for each core, and one that is added to it.
                Method::Gram(_) => {
                    (cores as u64 + 1) * gram::sum_bytes(n + ground.view().unwrap_or(0))
                }
                Method::Krylov(_) | Method::Power { .. } | Method::Exact { .. } => 0,
            };
            krylov.max(before) + blocks
        }
    }
}

/// See [`memory_of_a_node`](super::Plan::memory_of_a_node).
pub fn of_a_node(ground: &Ground, method: &Method) -> u64 {
    let block = ground.blocks.iter().map(|b| b.bytes).max().unwrap_or(0);
    let shape = fixed_shape(ground, method);
    let number = shape.precision.bytes() as u64;
    let panels = ground.columns * Panels::of(shape).padded() as u64 * number;
    block + panels + of_tasks(ground, method, 1)
}

fn fixed_shape(ground: &Ground, method: &Method) -> Shape {
    match *method {
        Method::Power {
            width, precision, ..
        } => ground.shape(width, precision),
        Method::Exact { .. } => ground.shape(ground.columns as u32, Precision::F64),
        Method::Krylov(spec) | Method::Gram(spec) => {
            let keep = spec.keep(method.rank_max());
            ground.shape(keep + spec.guard, Precision::F64)
        }
    }
}

/// Bytes that `cores` running tasks have open for themselves: Y, the QR's copy of it, its Q twice, Q_i, and panels of
/// it.
pub fn of_tasks(ground: &Ground, method: &Method, cores: usize) -> u64 {
    let shape = fixed_shape(ground, method);
    let sides = match method {
        Method::Krylov(_) | Method::Gram(_) => tall_slices(ground.columns),
        Method::Power { .. } | Method::Exact { .. } => slices(shape),
    };
    let blocks = ground.blocks.iter().map(|b| u64::from(b.rows));
    let rows = blocks
        .chain(sides.iter().map(|s| 2 * u64::from(s.rows)))
        .max()
        .unwrap_or(0);
    let padded = Panels::of(shape).padded() as u64;
    let products = cores as u64 * rows * padded * shape.precision.bytes() as u64 * 6;
    match method {
        Method::Gram(_) => products.max(gram::eigen_bytes(ground.columns)),
        Method::Krylov(_) | Method::Power { .. } | Method::Exact { .. } => products,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        job::{
            diagnostics::Source,
            overrides::Overrides,
            resolve::resolve,
            resolved::{FactorSpec, Wanted},
        },
        memory::blocks_of,
    };

    /// As a job file says that says nothing.
    fn factor(rank: u32) -> FactorSpec {
        let source = Source {
            name: "factor.toml".into(),
            text: "[matrix]\npath = \"ratings.csv\"\n".into(),
        };
        let job = resolve(source, std::path::Path::new("/"), &Overrides::default());
        FactorSpec {
            wanted: Wanted::Rank(rank),
            ..job.unwrap().job.factor
        }
    }

    fn facts(rows: usize, columns: usize) -> MatrixFacts {
        let mut matrix = sprs::TriMat::new((rows, columns));
        for row in 0..rows {
            for step in 0..5 {
                matrix.add_triplet(row, (row * 7 + step * 131) % columns, 1.0 + step as f64);
            }
        }
        blocks_of(matrix.to_csr::<usize>().view()).unwrap().0
    }

    #[test]
    fn a_basis_takes_the_place_of_a_gram_matrix_that_does_not_fit() {
        let facts = facts(6000, 1000);
        let ground = Ground::new(&facts).unwrap();
        let mut factor = factor(50);
        factor.method = crate::job::resolved::Method::Gram;
        let chosen = Method::choose(&facts, &factor);
        assert!(matches!(chosen, Method::Gram(_)), "{chosen:?}");
        let most = needed(&ground, &chosen, 1);
        assert!(most > gram::eigen_bytes(1000));
        assert_eq!(chosen.fitted(&facts, most).unwrap().method, chosen);
        let fitted = chosen.fitted(&facts, most - 1).unwrap();
        assert!(matches!(fitted.method, Method::Krylov(_)), "{fitted:?}");
        assert!(needed(&ground, &fitted.method, 1) < most);
    }

    #[test]
    fn the_largest_basis_that_fits_is_taken_and_nothing_is_refused_that_fits() {
        let facts = facts(6000, 5000);
        let ground = Ground::new(&facts).unwrap();
        let chosen = Method::choose(&facts, &factor(50));
        let Method::Krylov(spec) = chosen else {
            panic!("{chosen:?}");
        };
        let most = needed(&ground, &chosen, 1);
        let whole = chosen.fitted(&facts, most).unwrap();
        assert_eq!((whole.method, whole.cut), (chosen, None));
        assert!(whole.least < most);
        let mut before = (spec.block, spec.basis);
        let step = (most - whole.least) / 23;
        for memory in (0..=23).map(|i| most - i * step) {
            let fitted = chosen.fitted(&facts, memory).unwrap();
            assert_eq!(fitted, chosen.fitted(&facts, memory).unwrap());
            let Method::Krylov(now) = fitted.method else {
                panic!("{fitted:?}");
            };
            assert!(needed(&ground, &fitted.method, 1) <= memory);
            assert!(now.basis >= now.block * 2 + now.keep(50));
            assert_eq!((now.basis % GROUP, now.block % GROUP), (0, 0));
            assert!(now.block < before.0 || (now.block, now.basis) <= before);
            before = (now.block, now.basis);
        }
        let hopeless = chosen.fitted(&facts, whole.least - 1).unwrap();
        assert_eq!((hopeless.method, hopeless.cut), (chosen, None));
    }
}
