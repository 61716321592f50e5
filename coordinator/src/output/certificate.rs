//! `certificate.json`: what is known of how good the factors are, and how.
//!
//! With r_i = (A v_i - s_i u_i, A^T u_i - s_i v_i), measured on the factors as they are written, by products in `f64` where
//! the plan works until a tolerance. Norms are in units of the matrix; `residual` is relative to s_i.
//!
//! Where U was not asked for it is not formed: then u_i is A v_i / s_i, r_i = (0, A^T u_i - s_i v_i), and what can be
//! measured on U alone is null. A fixed number of power iterations tells no residual without U: all that follows from
//! it is null.
//!
//! References: Parlett, "The Symmetric Eigenvalue Problem", chapters 4 and 11 (intervals, angles), applied to
//! [0 A; A^T 0]; Wedin 1972 (angles); Halko, Martinsson, Tropp 2011, section 4.3 (random guards).

use std::io::Write;

use serde::Serialize;

use super::staging::Staging;
use crate::{
    factors::{LeftResiduals, Quality},
    failure::Failure,
    job::resolved::Tolerance,
};

/// Name of the file.
pub const CERTIFICATE: &str = "certificate.json";

/// Grows by keys; a key that is there keeps its meaning.
const FORMAT: u32 = 1;

/// How a run ended, as far as the triplets go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// All wanted triplets are within the tolerance.
    Converged,
    /// Not all are: the reads were at their end.
    Unconverged,
    /// No tolerance was asked for.
    Measured,
}

/// See the [module](self).
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Certificate {
    pub format: u32,
    pub status: Status,
    /// The matrix has fewer triplets than were asked for, as far as rounding lets one tell.
    pub rank_deficient: bool,
    pub tolerance: Option<Tolerance>,
    /// Largest error of a wanted triplet, in the tolerance's own kind.
    pub worst: Option<f64>,
    /// Full reads of the matrix.
    pub reads: u32,
    pub sigma: Vec<f64>,
    /// |r_i| / s_i
    pub residual: Option<Vec<f64>>,
    /// |A v_i - s_i u_i|
    pub left_residual: Option<Vec<f64>>,
    /// |A^T u_i - s_i v_i|
    pub right_residual: Option<Vec<f64>>,
    /// A singular value of A lies within so much of s_i: |r_i| / sqrt(2).
    pub sigma_within: Option<Vec<f64>>,
    /// Distance of s_i to the next other one, and to what comes after the last where that is known.
    pub gap: Vec<f64>,
    /// The sine of the angle between (u_i, v_i) and singular vectors of A is at most so much, if the gaps are as they seem:
    /// |r_i| / gap_i. From 1 on, nothing is said: the vectors of a cluster are determined together only.
    pub angle: Option<Vec<f64>>,
    /// s_i^2 / |A|_F^2, and their sum: exact up to rounding.
    pub explained: Vec<f64>,
    pub explained_together: f64,
    /// Variance along each component, s_i^2 / (m - 1), and its share of that of all columns together: what scikit-learn's
    /// PCA calls so. Only where column means were subtracted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explained_variance: Option<Vec<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explained_variance_ratio: Option<Vec<f64>>,
    /// U S V^T are exact factors of A + E with |E|_F at most so much.
    pub backward_error: Option<f64>,
    /// The same over |A|_F.
    pub backward_error_relative: Option<f64>,
    /// What is left of A outside of the factors: sqrt(|A|_F^2 - sum of s_i^2). No singular value of A beyond the s_i is
    /// larger, up to the errors above.
    pub remainder: f64,
    /// max |U^T U - I| and max |V^T V - I|
    pub orthogonality_u: Option<f64>,
    pub orthogonality_v: Option<f64>,
    /// What random directions orthogonal to V have found: outside of V, A has a singular value of at least this. It should
    /// not be above the last wanted one.
    pub guard_sigma: Option<f64>,
    pub guard_passed: Option<bool>,
}

impl Certificate {
    /// # Errors
    /// Resources: the file cannot be written.
    pub fn write(&self, staging: &mut Staging) -> Result<(), Failure> {
        let mut text = serde_json::to_string_pretty(self).map_err(|why| {
            Failure::bug(format!("the certificate cannot be put into words: {why}"))
        })?;
        text.push('\n');
        let mut file = staging.create(CERTIFICATE, 0)?;
        file.write_all(text.as_bytes())
            .map_err(|error| staging.io(CERTIFICATE, &error))
    }

    /// Says what PCA calls variance, of a matrix of so many rows whose columns' means are 0.
    pub fn with_variance(mut self, rows: u64) -> Self {
        let degrees = rows.saturating_sub(1).max(1) as f64;
        let of = self.sigma.iter().map(|s| s * s / degrees);
        self.explained_variance = Some(of.collect());
        self.explained_variance_ratio = Some(self.explained.clone());
        self
    }

    /// `orthogonality` is of the user's U and V.
    pub fn new(
        quality: &Quality,
        tolerance: Option<Tolerance>,
        worst: Option<f64>,
        frobenius_squared: f64,
        transposed: bool,
    ) -> Self {
        let sigma = &quality.sigma;
        let norms = quality.norms();
        let gap: Vec<f64> = (0..sigma.len())
            .map(|i| {
                let above = if i > 0 {
                    sigma[i - 1] - sigma[i]
                } else {
                    f64::INFINITY
                };
                let next = sigma.get(i + 1).or(quality.sigma_after.first());
                above.min(next.map_or(sigma[i], |next| sigma[i] - next))
            })
            .collect();
        let squares: f64 = sigma.iter().map(|s| s * s).sum();
        let backward = norms
            .as_ref()
            .map(|norms| norms.iter().map(|r| r * r).sum::<f64>().sqrt());
        let frobenius = frobenius_squared.sqrt();
        let share = |part: f64| {
            if frobenius_squared > 0.0 {
                part / frobenius_squared
            } else {
                0.0
            }
        };
        let left = match &quality.left_residuals {
            LeftResiduals::Measured(left) => Some(left.clone()),
            LeftResiduals::Rounding(_) | LeftResiduals::Unknown => None,
        };
        let of_left = (left, quality.left_orthogonality);
        let of_right = (
            Some(quality.right_residuals.clone()),
            Some(quality.right_orthogonality),
        );
        let ((left, u), (right, v)) = if transposed {
            (of_right, of_left)
        } else {
            (of_left, of_right)
        };
        let rank_deficient = sigma.len() < quality.requested as usize;
        Self {
            format: FORMAT,
            status: match tolerance {
                None => Status::Measured,
                Some(tolerance) if worst.is_some_and(|worst| worst <= tolerance.value) => {
                    Status::Converged
                }
                Some(_) => Status::Unconverged,
            },
            rank_deficient,
            tolerance,
            worst,
            reads: quality.reads,
            residual: quality.residuals(),
            left_residual: left,
            right_residual: right,
            sigma_within: norms
                .as_ref()
                .map(|norms| norms.iter().map(|r| r / 2f64.sqrt()).collect()),
            angle: norms.as_ref().map(|norms| {
                norms
                    .iter()
                    .zip(&gap)
                    .map(|(r, gap)| if r < gap { r / gap } else { 1.0 })
                    .collect()
            }),
            gap,
            explained: sigma.iter().map(|s| share(s * s)).collect(),
            explained_together: share(squares),
            explained_variance: None,
            explained_variance_ratio: None,
            backward_error: backward,
            backward_error_relative: backward.map(|backward| {
                if frobenius > 0.0 {
                    backward / frobenius
                } else {
                    0.0
                }
            }),
            remainder: (frobenius_squared - squares).max(0.0).sqrt(),
            orthogonality_u: u,
            orthogonality_v: v,
            guard_sigma: quality.guard,
            guard_passed: quality
                .guard
                .zip(sigma.last())
                .map(|(guard, last)| guard <= last * (1.0 + 1e-3)),
            sigma: sigma.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::resolved::ToleranceKind;

    #[test]
    fn bounds_follow_from_residuals_and_gaps() {
        let quality = Quality {
            sigma: vec![4.0, 2.0, 1.9],
            sigma_after: vec![1.0],
            left_residuals: LeftResiduals::Measured(vec![0.0, 0.3, 0.0]),
            right_residuals: vec![0.4, 0.4, 0.2],
            left_orthogonality: Some(1e-15),
            right_orthogonality: 2e-15,
            flipped: vec![false; 3],
            requested: 3,
            reads: 7,
            marks: Vec::new(),
            guard: Some(0.5),
        };
        let tolerance = Tolerance {
            value: 0.26,
            kind: ToleranceKind::Residual,
            max_reads: 9,
        };
        let near = |a: f64, b: f64| (a - b).abs() < 1e-12;
        let second = |list: &Option<Vec<f64>>| list.as_ref().unwrap()[1];
        let c = Certificate::new(&quality, Some(tolerance), Some(0.25), 25.0, false);
        assert_eq!(c.status, Status::Converged);
        assert!(near(second(&c.residual), 0.25));
        assert!(near(second(&c.sigma_within), 0.5 / 2f64.sqrt()));
        assert!(near(c.gap[0], 2.0) && near(c.gap[1], 0.1) && near(c.gap[2], 0.1));
        assert!(near(second(&c.angle), 1.0));
        assert!(near(c.angle.as_ref().unwrap()[0], 0.2));
        let backward = c.backward_error.unwrap();
        assert!(near(backward, (0.16f64 + 0.25 + 0.04).sqrt()));
        assert!(near(c.remainder, (25.0f64 - 16.0 - 4.0 - 3.61).sqrt()));
        assert_eq!(c.guard_passed, Some(true));
        let turned = Certificate::new(&quality, Some(tolerance), Some(0.27), 25.0, true);
        assert_eq!(turned.status, Status::Unconverged);
        assert_eq!(turned.left_residual, c.right_residual);
        assert!(near(turned.orthogonality_u.unwrap(), 2e-15));
        assert_eq!(
            Certificate::new(&quality, None, Some(0.3), 25.0, false).status,
            Status::Measured
        );
    }

    #[test]
    fn nothing_is_said_of_what_was_not_measured() {
        let mut quality = Quality {
            sigma: vec![4.0, 2.0],
            sigma_after: vec![1.0],
            left_residuals: LeftResiduals::Rounding(vec![0.0; 2]),
            right_residuals: vec![0.4, 0.3],
            left_orthogonality: None,
            right_orthogonality: 2e-15,
            flipped: vec![false; 2],
            requested: 2,
            reads: 7,
            marks: Vec::new(),
            guard: None,
        };
        let of =
            |quality: &Quality, transposed| Certificate::new(quality, None, None, 25.0, transposed);
        let c = of(&quality, false);
        assert_eq!(c.left_residual, None);
        assert_eq!(c.residual, Some(vec![0.1, 0.15]));
        assert_eq!((c.orthogonality_u, c.orthogonality_v), (None, Some(2e-15)));
        let c = of(&quality, true);
        assert_eq!(c.right_residual, None);
        assert_eq!((c.orthogonality_u, c.orthogonality_v), (Some(2e-15), None));
        quality.left_residuals = LeftResiduals::Unknown;
        let c = of(&quality, false);
        assert_eq!((c.residual, c.sigma_within, c.angle), (None, None, None));
        assert_eq!((c.backward_error, c.backward_error_relative), (None, None));
        assert_eq!(c.right_residual, Some(vec![0.4, 0.3]));
        let tolerance = Tolerance {
            value: 0.26,
            kind: ToleranceKind::Residual,
            max_reads: 9,
        };
        let c = Certificate::new(&quality, Some(tolerance), None, 25.0, false);
        assert_eq!(c.status, Status::Unconverged);
    }
}
