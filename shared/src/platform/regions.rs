//! Address space in huge pages, from which blocks are cut one after the other.
//!
//! A block of some hundred KiB is too short for a huge page of its own, and in small ones its first writing costs more than
//! what is written: in a virtual machine some microseconds a page.

use std::{
    ffi::c_void,
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::{
    mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap},
    param::page_size,
};

const HUGE: usize = 2 << 20;
/// Resident only as far as pieces reach.
const REGION: usize = 16 << 20;
/// Longer ones waste little of a mapping of their own.
const LONGEST: usize = 4 << 20;

/// A mapping. Its content is zero where no piece was cut, and where pieces were given back.
struct Region {
    base: NonNull<c_void>,
    whole: usize,
    start: NonNull<u8>,
}

// SAFETY: only addresses; what lies there belongs to the pieces.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    fn new(len: usize) -> Option<Self> {
        // Room to start on a huge page.
        let whole = len.checked_add(HUGE)?;
        // SAFETY: a new private mapping at an address of the system's choice touches no other memory.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                whole,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .ok()
        .and_then(NonNull::new)?;
        let skip = base.as_ptr().cast::<u8>().align_offset(HUGE);
        // SAFETY: skip is below HUGE, so start..start+len lies inside the mapping of len + HUGE bytes.
        let start = unsafe { base.cast::<u8>().add(skip) };
        // SAFETY: the range lies inside the mapping made above; the advice changes no content. Refusal does no harm.
        let _ = unsafe { madvise(start.as_ptr().cast(), len, Advice::LinuxHugepage) };
        Some(Self { base, whole, start })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped by this object with this base and length; every piece has kept it from being dropped.
        unsafe {
            let _ = munmap(self.base.as_ptr(), self.whole);
        }
    }
}

/// Zeroed memory of a region, for one owner. When dropped it goes back to the system; its place is used again when the
/// whole region is.
pub(super) struct Piece {
    region: Arc<Region>,
    start: NonNull<u8>,
    /// Whole pages.
    len: usize,
}

/// The region that pieces are cut from now, and how far it is cut.
static CURRENT: Mutex<Option<(Arc<Region>, usize)>> = Mutex::new(None);

impl Piece {
    /// At least `len` bytes. `None` when the system refuses.
    pub(super) fn new(len: usize) -> Option<Self> {
        // What is given back is whole pages: of 64 KiB on some machines.
        let len = len.checked_next_multiple_of(page_size())?;
        let piece = if len > LONGEST {
            Self::of(&Arc::new(Region::new(len)?), 0, len)
        } else {
            Self::cut(len)?
        };
        piece.populate();
        Some(piece)
    }

    fn cut(len: usize) -> Option<Self> {
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((region, used)) = &mut *current {
            // Nobody else has a share of it: all pieces were given back, and it is zero.
            if Arc::get_mut(region).is_some() {
                *used = 0;
            }
            if REGION - *used >= len {
                *used += len;
                return Some(Self::of(region, *used - len, len));
            }
        }
        let Some(region) = Region::new(REGION) else {
            // Where address space is short, just what is needed.
            return Some(Self::of(&Arc::new(Region::new(len)?), 0, len));
        };
        let region = Arc::new(region);
        let piece = Self::of(&region, 0, len);
        *current = Some((region, len));
        Some(piece)
    }

    fn of(region: &Arc<Region>, at: usize, len: usize) -> Self {
        // SAFETY: the callers have at + len within the region, and give each part of it to one piece.
        let start = unsafe { region.start.add(at) };
        Self {
            region: Arc::clone(region),
            start,
            len,
        }
    }

    /// All of a block is written soon, often by a sum that reads first: a page would be faulted in twice, and flushed from
    /// what the other cores know of it. Systems that know this advice spare the faults; others refuse it, which does no
    /// harm.
    fn populate(&self) {
        // SAFETY: the range is this piece's, where the advice writes nothing but the zeros that are there.
        let _ = unsafe {
            madvise(
                self.start.as_ptr().cast(),
                self.len,
                Advice::LinuxPopulateWrite,
            )
        };
    }

    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // What has a region of its own goes with it.
        if Arc::get_mut(&mut self.region).is_some() {
            return;
        }
        // SAFETY: the range is this piece's, nobody uses it after this, and whole pages are given back. The region counts
        // on zeros being there, which for a private mapping is what the advice promises.
        let given = unsafe { madvise(self.start.as_ptr().cast(), self.len, Advice::LinuxDontNeed) };
        if given.is_err() {
            // SAFETY: as above.
            unsafe { self.start.as_ptr().write_bytes(0, self.len) };
        }
    }
}
