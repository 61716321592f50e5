//! For tests of decoders: valid encodings with accidents in them, and how much a decoder asks of memory. Tests of other crates
//! take this file in by its path.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use proptest::{prelude::*, sample::Index};

/// Bytes changed, cut out, put in and cut off, one to five times; now and then nothing is left of what was valid.
pub fn harmed(valid: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let accident = (any::<Index>(), any::<u8>(), 0..6);
    let accidents = prop::collection::vec(accident, 1..6).prop_map(move |accidents| {
        let mut bytes = valid.clone();
        for (at, value, kind) in accidents {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            let run = usize::from(value % 16).min(bytes.len() - at);
            match kind {
                0 => bytes[at] = value,
                1 => bytes[at] ^= 1 << (value % 8),
                2 => bytes[at..at + run].fill(0xff),
                3 => drop(bytes.drain(at..at + run)),
                4 => drop(bytes.splice(at..at, std::iter::repeat_n(value, run))),
                _ => bytes.truncate(at),
            }
        }
        bytes
    });
    prop_oneof![
        20 => accidents,
        1 => prop::collection::vec(any::<u8>(), 0..300),
    ]
}

/// The system's allocator, watched.
pub struct Watched;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

/// The result, and the largest piece of memory that was asked for on the way.
pub fn largest_allocation<T>(work: impl FnOnce() -> T) -> (T, usize) {
    LARGEST.set(0);
    let result = work();
    (result, LARGEST.get())
}

fn note(bytes: usize) {
    // A thread that is ending is not watched any more.
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(bytes)));
}

// SAFETY: all is done by the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: as above.
        unsafe { System.realloc(start, layout, size) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;
