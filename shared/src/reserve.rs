//! A reserve of memory: what small allocations get when the system refuses them.
//!
//! A task asks for its blocks in a way that can be refused, and then fails alone. Whatever else is allocated (a list, a
//! message, a frame of the transport) cannot be refused in stable Rust: the process would end. The few kilobytes of which
//! that is usually about come out of the reserve instead, and the next task that begins finds it spent and fails with a
//! name. Address space is all that the reserve costs: its pages are never touched.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ptr::null_mut,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering},
};

const RESERVE_BYTES: usize = 8 << 20;
/// A longer request is no matter of a few kilobytes: it may fail, and without the reserve being spent for it.
const SMALL_BYTES: usize = 1 << 20;
const RESERVE: Layout = match Layout::from_size_align(RESERVE_BYTES, 16) {
    Ok(layout) => layout,
    Err(_) => panic!("a layout of fixed numbers"),
};

static HELD: AtomicPtr<u8> = AtomicPtr::new(null_mut());
/// Whether this process keeps a reserve at all.
static KEPT: AtomicBool = AtomicBool::new(false);
static REFUSED: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator with the reserve behind it. For `#[global_allocator]` of a program, which calls [`keep`].
pub struct Reserved;

// SAFETY: every call goes to System with the caller's own layout and is answered with what System says; the second call
// follows only when the first has yielded nothing.
unsafe impl GlobalAlloc for Reserved {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract, which is the same.
        or_from_reserve(layout.size(), || unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        or_from_reserve(layout.size(), || unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above; a realloc that fails leaves the old memory as it was, so it may be asked for again.
        or_from_reserve(size, || unsafe { System.realloc(start, layout, size) })
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(start, layout) }
    }
}

#[inline]
fn or_from_reserve(bytes: usize, allocate: impl Fn() -> *mut u8) -> *mut u8 {
    let start = allocate();
    if start.is_null() && bytes <= SMALL_BYTES {
        spend(bytes);
        return allocate();
    }
    start
}

#[cold]
fn spend(bytes: usize) {
    let held = HELD.swap(null_mut(), Ordering::AcqRel);
    // Spent already, perhaps a moment ago by another thread, and then there is room now.
    if !held.is_null() {
        REFUSED.store(bytes, Ordering::Relaxed);
        // SAFETY: what HELD holds was allocated by System with this layout, and whoever swaps it out alone has it.
        unsafe { System.dealloc(held, RESERVE) }
    }
}

/// Keeps a reserve from now on; false when the system has not even that.
pub fn keep() -> bool {
    KEPT.store(true, Ordering::Relaxed);
    refill()
}

fn refill() -> bool {
    if !HELD.load(Ordering::Acquire).is_null() {
        return true;
    }
    // SAFETY: the layout has a size.
    let new = unsafe { System.alloc(RESERVE) };
    if new.is_null() {
        return false;
    }
    let before = HELD.compare_exchange(null_mut(), new, Ordering::AcqRel, Ordering::Acquire);
    if before.is_err() {
        // SAFETY: allocated above, and nobody else has seen it.
        unsafe { System.dealloc(new, RESERVE) }
    }
    true
}

/// Bytes of the request for which the reserve was spent, while it cannot be filled again: no time to begin anything.
pub fn spent() -> Option<u64> {
    (KEPT.load(Ordering::Relaxed) && !refill()).then(|| REFUSED.load(Ordering::Relaxed) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// One test: the reserve is one for the process.
    #[test]
    fn a_small_request_is_served_from_the_reserve_and_a_large_one_is_refused() {
        assert_eq!(spent(), None, "none is kept yet");
        assert!(keep());
        let asked = Cell::new(0);
        let allocate = |refusals: usize| {
            asked.set(asked.get() + 1);
            if asked.get() > refusals {
                std::ptr::dangling_mut()
            } else {
                null_mut()
            }
        };
        assert!(!or_from_reserve(100, || allocate(0)).is_null());
        assert!(!HELD.load(Ordering::Relaxed).is_null(), "not needed");
        asked.set(0);
        assert!(or_from_reserve(SMALL_BYTES + 1, || allocate(1)).is_null());
        assert!(!HELD.load(Ordering::Relaxed).is_null(), "not for that");
        asked.set(0);
        assert!(!or_from_reserve(12_000, || allocate(1)).is_null());
        assert!(HELD.load(Ordering::Relaxed).is_null());
        assert_eq!(REFUSED.load(Ordering::Relaxed), 12_000);
        asked.set(0);
        assert!(or_from_reserve(12_000, || allocate(9)).is_null(), "spent");
        assert_eq!(spent(), None, "filled again");
        assert!(!HELD.load(Ordering::Relaxed).is_null());
    }
}
