//! The factors on their way into files.

use shared::{matrix::facts::MatrixFacts, svd::Precision};

use crate::{
    centring::{COLUMN_MEANS, Centring, DEVIATIONS, ROW_MEANS},
    factors::{Quality, Sink},
    failure::Failure,
    job::{resolved, size},
    output::{
        certificate::CERTIFICATE,
        npy::{Layout, VectorReader, VectorWriter, Vectors},
        staging::Staging,
    },
    plan::{Plan, Sides},
};

fn number(precision: Precision) -> resolved::Precision {
    match precision {
        Precision::F32 => resolved::Precision::F32,
        Precision::F64 => resolved::Precision::F64,
    }
}

/// All that a run may leave, but for the manifest.
pub const NAMES: &[&str] = &[
    "U.npy",
    "S.npy",
    "Vt.npy",
    "rows.csv",
    "columns.csv",
    COLUMN_MEANS,
    ROW_MEANS,
    DEVIATIONS,
    CERTIFICATE,
];

/// Whether the factors will fit, told before the passes and not after them.
pub fn check_space(staging: &Staging, facts: &MatrixFacts, plan: &Plan) -> Result<(), Failure> {
    let side = |wanted: bool, rows: u64| if wanted { rows } else { 0 };
    let needed = (side(plan.sides.left, facts.rows) + side(plan.sides.right, facts.columns))
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

/// S.npy, and U.npy and Vt.npy where they are wanted, staged. Rows of both factors are written where they belong as they come.
pub struct Files<'a> {
    staging: &'a mut Staging,
    rows: u64,
    columns: u64,
    precision: Precision,
    transposed: bool,
    writers: Option<Writers>,
}

struct Writers {
    left: Option<VectorWriter>,
    right: Option<VectorWriter>,
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
            for (writer, left) in [(&writers.left, true), (&writers.right, false)] {
                if let Some(writer) = writer {
                    self.flip(writer, self.name(left), &quality.flipped)?;
                }
            }
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
        let Some(writer) = writer else {
            return Err(Failure::bug("rows came of a factor that is not wanted"));
        };
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
    fn begin(&mut self, rank: usize, sides: Sides) -> Result<(), Failure> {
        let mut writer = |wanted: bool, left: bool| {
            let (name, vectors) = (self.name(left), self.vectors(left, rank));
            wanted
                .then(|| self.staging.vectors(name, vectors))
                .transpose()
        };
        self.writers = Some(Writers {
            left: writer(sides.left, true)?,
            right: writer(sides.right, false)?,
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
