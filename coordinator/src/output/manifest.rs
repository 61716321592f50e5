//! `manifest.json`: what was factored, how, and what the files are.

use std::io::Write;

use serde::Serialize;

use super::staging::{FileFacts, MANIFEST, Staging};
use crate::failure::Failure;
use crate::job::resolved::Job;
use crate::report::summary::{Centred, FarmSummary, Orthogonality, Phase, Rank, Summary};

/// Grows by keys; a key that is there keeps its meaning.
const FORMAT: u32 = 1;

#[derive(Serialize)]
struct Manifest<'a> {
    format: u32,
    svdjob: &'static str,
    job: &'a Job,
    plan: &'a serde_json::Value,
    matrix: Matrix,
    #[serde(skip_serializing_if = "Option::is_none")]
    centring: Option<&'a Centred>,
    rank: Rank,
    sigma: &'a [f64],
    residuals: &'a [f64],
    explained: &'a [f64],
    orthogonality: Orthogonality,
    files: &'a [FileFacts],
    /// Another instruction set may give other last bits.
    isa: &'a str,
    passes: u32,
    seconds: f64,
    phases: &'a [Phase],
    /// Who has worked, if not this process, and what went over each link in each stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    farm: Option<&'a FarmSummary>,
    warnings: &'a [String],
}

#[derive(Serialize)]
struct Matrix {
    rows: u64,
    columns: u64,
    nnz: u64,
    transposed: bool,
    frobenius_squared: f64,
}

/// Seals all files staged so far and adds the manifest that tells of them. Call it last before
/// [`Staging::commit`].
///
/// # Errors
/// Resources: a file cannot be written.
pub fn write(
    staging: &mut Staging,
    job: &Job,
    plan: &serde_json::Value,
    summary: &Summary,
    frobenius_squared: f64,
    isa: &str,
) -> Result<(), Failure> {
    let files = staging.seal()?;
    let manifest = Manifest {
        format: FORMAT,
        svdjob: env!("CARGO_PKG_VERSION"),
        job,
        plan,
        matrix: Matrix {
            rows: summary.rows,
            columns: summary.columns,
            nnz: summary.nnz,
            transposed: summary.transposed,
            frobenius_squared,
        },
        centring: summary.centring.as_ref(),
        rank: summary.rank,
        sigma: &summary.sigma,
        residuals: &summary.residuals,
        explained: &summary.explained,
        orthogonality: summary.orthogonality,
        files: &files,
        isa,
        passes: summary.passes,
        seconds: summary.seconds,
        phases: &summary.phases,
        farm: summary.farm.as_ref(),
        warnings: &summary.warnings,
    };
    let mut text = serde_json::to_string_pretty(&manifest)
        .map_err(|error| Failure::bug(format!("the manifest cannot be put into words: {error}")))?;
    text.push('\n');
    let mut file = staging.create(MANIFEST, 0)?;
    file.write_all(text.as_bytes())
        .map_err(|error| staging.io(MANIFEST, &error))
}

/// The vector instructions that this machine has, as far as they may change the last bits.
pub fn isa() -> String {
    let mut words = vec![std::env::consts::ARCH];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") {
            words.push("avx2");
        }
        if is_x86_feature_detected!("fma") {
            words.push("fma");
        }
        if is_x86_feature_detected!("avx512f") {
            words.push("avx512f");
        }
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("neon") {
        words.push("neon");
    }
    words.join("+")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::overrides::Overrides;
    use crate::job::{diagnostics::Source, resolve::resolve};

    #[test]
    fn the_manifest_tells_of_every_file_but_itself() {
        let root = tempfile::tempdir().unwrap();
        let source = Source {
            name: "factor.toml".into(),
            text: "[matrix]\npath = \"ratings.csv\"\n".into(),
        };
        let job = resolve(source, root.path(), &Overrides::default())
            .unwrap()
            .job;
        let mut staging = Staging::open(root.path(), 0).unwrap();
        staging.create("S.npy", 64).unwrap();
        let summary = Summary {
            sigma: vec![3.0, 2.0],
            residuals: vec![1e-7, f64::NAN],
            ..Summary::default()
        };
        let plan = serde_json::json!({ "passes": 10 });
        write(&mut staging, &job, &plan, &summary, 13.0, &isa()).unwrap();
        staging.commit().unwrap();
        let text = std::fs::read(root.path().join(MANIFEST)).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(manifest["files"].as_array().unwrap().len(), 1);
        assert_eq!(manifest["files"][0]["name"], "S.npy");
        assert_eq!(manifest["files"][0]["bytes"], 64);
        assert_eq!(manifest["job"]["factor"]["precision"], "f32");
        assert_eq!(manifest["plan"]["passes"], 10);
        assert!(manifest["residuals"][1].is_null());
    }
}
