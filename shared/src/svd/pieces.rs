//! A basis as it stands: slices of several arrays side by side, in f32 or f64, and products with them.

use super::{Inputs, Precision, krylov::Columns};
use crate::{
    farm::{
        bytes::{Bytes, BytesMut},
        work::WorkError,
    },
    linalg::{
        real::Real,
        single,
        tall::{self, Tall},
    },
};

/// Slices of arrays side by side, as they stand.
pub(super) enum Pieces<'a> {
    Single(Vec<Tall<'a, f32>>),
    Double(Vec<Tall<'a>>),
}

pub(super) fn pieces<'a, T: Real>(
    inputs: &mut Inputs<'a>,
    rows: usize,
    widths: &[u32],
) -> Result<Vec<Tall<'a, T>>, WorkError> {
    widths
        .iter()
        .map(|&width| {
            let width = width as usize;
            let numbers = inputs.numbers::<T>(rows * width)?;
            Ok(Tall { numbers, width })
        })
        .collect()
}

impl<'a> Pieces<'a> {
    pub(super) fn of(
        held: Precision,
        inputs: &mut Inputs<'a>,
        rows: usize,
        widths: &[u32],
    ) -> Result<Self, WorkError> {
        Ok(match held {
            Precision::F32 => Self::Single(pieces(inputs, rows, widths)?),
            Precision::F64 => Self::Double(pieces(inputs, rows, widths)?),
        })
    }

    /// X^T W
    pub(super) fn cross(
        &self,
        rows: usize,
        w: &Columns,
        width: usize,
    ) -> Result<Vec<f64>, WorkError> {
        let count = rows * width;
        match (self, w.held()) {
            (Self::Single(x), Precision::F32) => {
                let numbers = w.numbers(count)?;
                Ok(single::cross_in_single(rows, x, Tall { numbers, width }))
            }
            (Self::Single(x), Precision::F64) => {
                let numbers = w.numbers(count)?;
                Ok(single::cross(rows, x, Tall { numbers, width }))
            }
            (Self::Double(x), Precision::F64) => {
                let numbers = w.numbers(count)?;
                Ok(tall::cross(rows, x, Tall { numbers, width }))
            }
            (Self::Double(_), Precision::F32) => Err(WorkError::BadInput(
                "a basis of f64 has nothing to do with one of f32".to_owned(),
            )),
        }
    }

    /// W <- W - X C
    pub(super) fn deflate(&self, rows: usize, c: &[f64], width: usize, w: &mut [f64]) {
        match self {
            Self::Single(x) => {
                let less: Vec<f64> = c.iter().map(|x| -x).collect();
                single::add_product(rows, x, &less, width, w);
            }
            Self::Double(x) => tall::deflate(rows, x, c, width, w),
        }
    }

    /// X C
    pub(super) fn product(&self, rows: usize, c: &[f64], width: usize, out: &mut [f64]) {
        match self {
            Self::Single(x) => {
                out.fill(0.0);
                single::add_product(rows, x, c, width, out);
            }
            Self::Double(x) => tall::multiply(rows, x, c, width, out),
        }
    }

    /// X C as a block.
    pub(super) fn combined(
        &self,
        rows: usize,
        c: &[f64],
        width: usize,
        out: Precision,
    ) -> Result<Bytes, WorkError> {
        if out == Precision::F64 {
            let mut all = BytesMut::unwritten_for::<f64>(rows * width)?;
            self.product(rows, c, width, all.numbers_mut());
            return Ok(all.freeze());
        }
        let mut product = vec![0.0; rows * width];
        self.product(rows, c, width, &mut product);
        held_as(out, &product)
    }
}

/// Numbers as a block of that precision.
pub(super) fn held_as(out: Precision, numbers: &[f64]) -> Result<Bytes, WorkError> {
    match out {
        Precision::F64 => Bytes::from_numbers(numbers),
        Precision::F32 => {
            let mut all = BytesMut::unwritten_for::<f32>(numbers.len())?;
            single::rounded::<f32>(numbers, all.numbers_mut());
            Ok(all.freeze())
        }
    }
}
