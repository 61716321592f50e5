//! Entries between reading and sorting: in memory as far as the budget goes, then in one temporary file.
//!
//! A record is `row: u32, column: u32` and a code of one byte, or a value of eight.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::failure::Failure;

use super::problem;

pub(super) const CODED: usize = 9;
pub(super) const WIDE: usize = 16;

/// Bytes of a record.
pub(super) fn width(wide: bool) -> usize {
    if wide { WIDE } else { CODED }
}

#[inline]
pub(super) fn put_coded(out: &mut Vec<u8>, row: u32, column: u32, code: u8) {
    let mut record = [0; CODED];
    record[..8].copy_from_slice(&pair(row, column).to_le_bytes());
    record[8] = code;
    out.extend_from_slice(&record);
}

#[inline]
pub(super) fn put_wide(out: &mut Vec<u8>, row: u32, column: u32, value: f64) {
    let mut record = [0; WIDE];
    record[..8].copy_from_slice(&pair(row, column).to_le_bytes());
    record[8..].copy_from_slice(&value.to_le_bytes());
    out.extend_from_slice(&record);
}

#[inline]
pub(super) fn pair(row: u32, column: u32) -> u64 {
    u64::from(row) | u64::from(column) << 32
}

/// Row and column of a record.
#[inline]
pub(super) fn ids(record: &[u8]) -> (u32, u32) {
    let pair = u64::from_le_bytes(record[..8].try_into().expect("eight bytes"));
    (pair as u32, (pair >> 32) as u32)
}

#[inline]
pub(super) fn wide_value(record: &[u8]) -> f64 {
    f64::from_le_bytes(record[8..WIDE].try_into().expect("eight bytes"))
}

/// Bytes kept somewhere.
pub(super) enum Kept {
    Memory(Box<[u8]>),
    Disk { at: u64, len: usize },
}

impl Kept {
    pub fn len(&self) -> usize {
        match self {
            Self::Memory(bytes) => bytes.len(),
            Self::Disk { len, .. } => *len,
        }
    }
}

/// Where entries are kept.
pub(super) struct Spill {
    file: File,
    path: PathBuf,
    end: AtomicU64,
    /// Bytes that may yet be kept in memory.
    room: AtomicU64,
}

impl Spill {
    pub fn new(dir: &Path, room: u64) -> Result<Self, Failure> {
        let path = dir.join("entries");
        let file = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| problem::writing(&path, &e))?;
        Ok(Self {
            file,
            path,
            end: AtomicU64::new(0),
            room: AtomicU64::new(room),
        })
    }

    pub fn keep(&self, bytes: &[u8]) -> Result<Kept, Failure> {
        let len = bytes.len() as u64;
        let fits = self
            .room
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| {
                room.checked_sub(len)
            })
            .is_ok();
        if fits {
            return Ok(Kept::Memory(bytes.into()));
        }
        let at = self.end.fetch_add(len, Ordering::Relaxed);
        self.write(at, bytes)?;
        Ok(Kept::Disk {
            at,
            len: bytes.len(),
        })
    }

    /// Keeps bytes in the place of others, where they fit there.
    pub fn replace(&self, old: Kept, bytes: &[u8]) -> Result<Kept, Failure> {
        match old {
            Kept::Memory(mut old) if old.len() == bytes.len() => {
                old.copy_from_slice(bytes);
                Ok(Kept::Memory(old))
            }
            Kept::Memory(old) => {
                self.room.fetch_add(old.len() as u64, Ordering::Relaxed);
                drop(old);
                self.keep(bytes)
            }
            Kept::Disk { at, len } if bytes.len() <= len => {
                self.write(at, bytes)?;
                Ok(Kept::Disk {
                    at,
                    len: bytes.len(),
                })
            }
            Kept::Disk { .. } => self.keep(bytes),
        }
    }

    pub fn forget(&self, old: Kept) {
        if let Kept::Memory(old) = old {
            self.room.fetch_add(old.len() as u64, Ordering::Relaxed);
        }
    }

    /// A part of what was kept; `buffer` serves when it must be read.
    pub fn part<'a>(
        &self,
        kept: &'a Kept,
        range: std::ops::Range<usize>,
        buffer: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Failure> {
        match kept {
            Kept::Memory(bytes) => Ok(&bytes[range]),
            Kept::Disk { at, .. } => {
                buffer.resize(range.len(), 0);
                read_at(&self.file, buffer, at + range.start as u64)
                    .map_err(|e| problem::reading_back(&self.path, &e))?;
                Ok(buffer)
            }
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), Failure> {
        write_at(&self.file, bytes, at).map_err(|e| problem::writing(&self.path, &e))
    }
}

#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, at)
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(windows)]
fn read_at(file: &File, mut buffer: &mut [u8], mut at: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                buffer = &mut buffer[n..];
                at += n as u64;
            }
        }
    }
    Ok(())
}

#[cfg(windows)]
fn write_at(file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, at)?;
        bytes = &bytes[n..];
        at += n as u64;
    }
    Ok(())
}
