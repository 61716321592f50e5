//! Immutable, shared, aligned bytes: what blocks are made of in memory.
//!
//! Kernels read blocks as slices of numbers, so every buffer starts on a 64-byte boundary; large ones lie in huge pages
//! where the system has them (random rows of a panel cost a quarter more in 4 KiB pages).

use std::{fmt, ops::Range, sync::Arc};

use bytemuck::Pod;

use super::work::WorkError;
use crate::platform::Pages;

/// A growing hand to fill with bytes, then [`freeze`](BytesMut::freeze).
pub struct BytesMut {
    pages: Pages,
    len: usize,
}

impl BytesMut {
    /// Zeroed bytes. An allocation that the system refuses is an error, not an abort.
    pub fn zeroed(len: usize) -> Result<Self, WorkError> {
        Self::of(Pages::zeroed(len), len)
    }

    /// Bytes that hold whatever was there: for those who write all of them. Clearing memory first cost as much as filling
    /// it.
    pub fn unwritten(len: usize) -> Result<Self, WorkError> {
        Self::of(Pages::unwritten(len), len)
    }

    fn of(pages: Option<Pages>, len: usize) -> Result<Self, WorkError> {
        let pages = pages.ok_or(WorkError::OutOfMemory { bytes: len as u64 })?;
        Ok(Self { pages, len })
    }

    /// Zeroed room for `count` numbers.
    pub fn zeroed_for<T: Pod>(count: usize) -> Result<Self, WorkError> {
        Self::zeroed(bytes_of::<T>(count)?)
    }

    /// Room for `count` numbers; see [`unwritten`](Self::unwritten).
    pub fn unwritten_for<T: Pod>(count: usize) -> Result<Self, WorkError> {
        Self::unwritten(bytes_of::<T>(count)?)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.pages.as_slice()[..self.len]
    }

    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        &mut self.pages.as_mut_slice()[..len]
    }

    /// The whole as numbers. Panics when the length is not a multiple of their size.
    pub fn numbers_mut<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.as_bytes_mut())
    }

    pub fn freeze(self) -> Bytes {
        let len = self.len;
        Bytes {
            pages: Arc::new(self.pages),
            range: 0..len,
        }
    }
}

fn bytes_of<T>(count: usize) -> Result<usize, WorkError> {
    let bytes = count.checked_mul(size_of::<T>());
    bytes.ok_or(WorkError::OutOfMemory { bytes: u64::MAX })
}

/// Immutable bytes; cloning and slicing cost nothing.
#[derive(Clone)]
pub struct Bytes {
    pages: Arc<Pages>,
    range: Range<usize>,
}

impl Bytes {
    pub fn copy_from(bytes: &[u8]) -> Result<Self, WorkError> {
        let mut new = BytesMut::unwritten(bytes.len())?;
        new.as_bytes_mut().copy_from_slice(bytes);
        Ok(new.freeze())
    }

    /// Copies numbers into a new block.
    pub fn from_numbers<T: Pod>(numbers: &[T]) -> Result<Self, WorkError> {
        Self::copy_from(bytemuck::cast_slice(numbers))
    }

    pub fn len(&self) -> usize {
        self.range.len()
    }

    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.pages.as_slice()[self.range.clone()]
    }

    /// A part of it. Panics when the range reaches beyond the end.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.len(),
            "range {range:?} of {} bytes",
            self.len()
        );
        Self {
            pages: Arc::clone(&self.pages),
            range: self.range.start + range.start..self.range.start + range.end,
        }
    }

    /// The whole as numbers, when its length and place allow.
    pub fn numbers<T: Pod>(&self) -> Result<&[T], WorkError> {
        bytemuck::try_cast_slice(self.as_slice()).map_err(|why| {
            WorkError::BadInput(format!(
                "{} bytes cannot be read as {}: {why}",
                self.len(),
                std::any::type_name::<T>()
            ))
        })
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({} bytes)", self.len())
    }
}
