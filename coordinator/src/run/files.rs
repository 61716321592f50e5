//! The factors on their way into files.

use shared::{matrix::facts::MatrixFacts, svd::Precision};

use crate::{
    centring::Centring,
    factors::{Quality, Sink},
    failure::Failure,
    job::{resolved, size},
    output::{
        npy::{Layout, VectorReader, VectorWriter, Vectors},
        staging::Staging,
    },
    plan::Plan,
};

fn number(precision: Precision) -> resolved::Precision {
    match precision {
        Precision::F32 => resolved::Precision::F32,
        Precision::F64 => resolved::Precision::F64,
    }
}

/// Whether the factors will fit, told before the passes and not after them.
pub fn check_space(staging: &Staging, facts: &MatrixFacts, plan: &Plan) -> Result<(), Failure> {
    let needed = (facts.rows + facts.columns)
        * u64::from(plan.method.rank_max())
        * plan.method.precision().bytes() as u64
        + 32 * (facts.rows + facts.columns);
    match fs4::available_space(staging.path("")) {
        Ok(free) if free < needed => Err(Failure::resources(format!(
            "the factors need {} in {}, where {} are free",
            size::show(needed),
            staging.directory().display(),
            size::show(free)
        ))
        .help(
            "free some space, choose another directory with --output, or ask for a smaller --rank",
        )),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Means and deviations, in f64 whatever the factors are in.
pub fn write_centring(staging: &mut Staging, centring: &Centring) -> Result<(), Failure> {
    for (name, numbers) in centring.files() {
        let vectors = Vectors {
            count: numbers.len() as u64,
            width: 1,
            precision: resolved::Precision::F64,
            layout: Layout::Line,
        };
        let written = staging.vectors(name, vectors)?.write(0, numbers);
        written.map_err(|why| staging.io(name, &why))?;
    }
    Ok(())
}

/// U.npy, S.npy and Vt.npy, staged. Rows of both factors are written where they belong as they come.
pub struct Files<'a> {
    staging: &'a mut Staging,
    rows: u64,
    columns: u64,
    precision: Precision,
    transposed: bool,
    writers: Option<Writers>,
}

struct Writers {
    left: VectorWriter,
    right: VectorWriter,
}

impl<'a> Files<'a> {
    pub fn new(
        staging: &'a mut Staging,
        facts: &MatrixFacts,
        plan: &Plan,
        transposed: bool,
    ) -> Self {
        Self {
            staging,
            rows: facts.rows,
            columns: facts.columns,
            precision: plan.method.precision(),
            transposed,
            writers: None,
        }
    }

    /// Writes S.npy, and gives U and V the signs that they are to have; all rows have come.
    pub fn finish(self, quality: &Quality) -> Result<(), Failure> {
        if let Some(writers) = &self.writers
            && quality.flipped.iter().any(|flip| *flip)
        {
            self.flip(&writers.left, self.name(true), &quality.flipped)?;
            self.flip(&writers.right, self.name(false), &quality.flipped)?;
        }
        let sigma = &quality.sigma;
        let vectors = Vectors {
            count: sigma.len() as u64,
            width: 1,
            precision: number(self.precision),
            layout: Layout::Line,
        };
        self.staging
            .vectors("S.npy", vectors)?
            .write(0, sigma)
            .map_err(|why| self.staging.io("S.npy", &why))
    }

    /// Changes the signs of columns in place: which they are was known only when all rows had come.
    fn flip(&self, writer: &VectorWriter, name: &str, flipped: &[bool]) -> Result<(), Failure> {
        const PIECE: u64 = 1 << 12;
        let io = |why: std::io::Error| self.staging.io(name, &why);
        let reader = VectorReader::open(&self.staging.path(name)).map_err(io)?;
        let Vectors { count, width, .. } = writer.vectors();
        let mut rows = Vec::new();
        for first in (0..count).step_by(PIECE as usize) {
            let number = PIECE.min(count - first) * width;
            rows.resize(number as usize, 0.0);
            reader.read(first, &mut rows).map_err(io)?;
            for (at, x) in rows.iter_mut().enumerate() {
                if flipped[at % flipped.len()] {
                    *x = -*x;
                }
            }
            writer.write(first, &rows).map_err(io)?;
        }
        Ok(())
    }

    /// The file's name that rows of the left or right factor go to: they are the other way round if the matrix is.
    fn name(&self, left: bool) -> &'static str {
        if left == self.transposed {
            "Vt.npy"
        } else {
            "U.npy"
        }
    }

    fn vectors(&self, left: bool, rank: usize) -> Vectors {
        Vectors {
            count: if left { self.rows } else { self.columns },
            width: rank as u64,
            precision: number(self.precision),
            layout: if left == self.transposed {
                Layout::Columns
            } else {
                Layout::Rows
            },
        }
    }

    fn rows(&mut self, left: bool, first_row: u64, rows: &[u8]) -> Result<(), Failure> {
        let Some(writers) = &self.writers else {
            return Err(Failure::bug("rows came before their number was known"));
        };
        let writer = if left { &writers.left } else { &writers.right };
        let written = match self.precision {
            Precision::F32 => writer.write(first_row, &numbers::<f32>(rows)),
            Precision::F64 => writer.write(first_row, &numbers::<f64>(rows)),
        };
        written.map_err(|why| self.staging.io(self.name(left), &why))
    }
}

/// Bytes as numbers, copied only when they lie badly.
fn numbers<T: bytemuck::Pod>(bytes: &[u8]) -> std::borrow::Cow<'_, [T]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(numbers) => numbers.into(),
        Err(_) => bytemuck::pod_collect_to_vec(bytes).into(),
    }
}

impl Sink for Files<'_> {
    fn begin(&mut self, rank: usize) -> Result<(), Failure> {
        let (left, right) = (self.vectors(true, rank), self.vectors(false, rank));
        let (left_name, right_name) = (self.name(true), self.name(false));
        self.writers = Some(Writers {
            left: self.staging.vectors(left_name, left)?,
            right: self.staging.vectors(right_name, right)?,
        });
        Ok(())
    }

    fn right(&mut self, first_row: u64, rows: &[u8]) -> Result<(), Failure> {
        self.rows(false, first_row, rows)
    }

    fn left(&mut self, first_row: u64, rows: &[u8]) -> Result<(), Failure> {
        self.rows(true, first_row, rows)
    }
}
