//! How the error falls from read to read, and whether it still does.

use serde::{Deserialize, Serialize};

/// What was known after a read.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Mark {
    pub reads: u32,
    /// Columns of the basis.
    pub basis: u32,
    /// The worst error among the wanted triplets, in the tolerance's own kind; none while there are fewer.
    pub worst: Option<f64>,
}

/// Marks whose distance tells whether the error still falls; less is the noise of a restart.
const STALL_READS: u32 = 3;
/// Reads after which it is not to be nearly where it was, however slow it has been.
const STILL_READS: u32 = 8;
const STILL: f64 = 0.9;

/// Whether the error has stopped falling, where rounding may be why: it falls by less than half of what all reads before have
/// brought on average, or not at all for a while. Rounding leaves an error of about `most`, a roundoff times
/// theta_1 / theta_k, and with most matrices far less; some rows have it add up.
pub fn stalls(marks: &[Mark], most: f64) -> bool {
    let told = |mark: &Mark| {
        let worst = mark.worst.filter(|worst| *worst < 1.0)?;
        Some((f64::from(mark.reads), worst.ln()))
    };
    let told: Vec<(f64, f64)> = marks.iter().filter_map(told).collect();
    let (Some(&first), Some(&now)) = (told.first(), told.last()) else {
        return false;
    };
    let ago = |reads: u32| {
        let mut before = told.iter().rev();
        before.find(|mark| mark.0 + f64::from(reads) <= now.0)
    };
    let still = ago(STILL_READS).is_some_and(|before| now.1 > before.1 + STILL.ln());
    let slow = ago(STALL_READS).is_some_and(|before| {
        let rate = |from: (f64, f64), to: (f64, f64)| (from.1 - to.1) / (to.0 - from.0);
        before.0 > first.0 && 2.0 * rate(*before, now) < rate(first, *before)
    });
    now.1 < most.ln() && slow || now.1 < (16.0 * most).ln() && still
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Marks of these errors, a read apart.
    fn stalled(errors: &[f64], most: f64) -> bool {
        let marks: Vec<Mark> = (1..)
            .zip(errors)
            .map(|(reads, &worst)| Mark {
                reads,
                basis: 8 * reads,
                worst: Some(worst),
            })
            .collect();
        stalls(&marks, most)
    }

    #[test]
    fn an_error_that_falls_has_not_stalled_however_slowly() {
        let falling = |rate: f64| (0..30).map(|i| rate.powi(i) / 2.0).collect::<Vec<_>>();
        for rate in [0.1, 0.5, 0.9, 0.97] {
            for reads in 0..30 {
                assert!(!stalled(&falling(rate)[..reads], 1.0), "{rate}, {reads}");
            }
        }
        assert!(!stalls(&[], 1.0));
    }

    #[test]
    fn an_error_that_stays_has_stalled_only_where_rounding_may_be_why() {
        let errors: Vec<f64> = (0..20).map(|i| 0.1f64.powi(i).max(1e-6)).collect();
        assert!(!stalled(&errors[..8], 1e-5));
        assert!(stalled(&errors[..12], 1e-5));
        assert!(!stalled(&errors[..12], 1e-7));
        // What never fell is given longer, and a floor that has added up.
        let flat = [2e-4; 20];
        assert!(!stalled(&flat[..8], 1e-4));
        assert!(stalled(&flat, 1e-4));
        assert!(!stalled(&flat, 1e-6));
    }
}
