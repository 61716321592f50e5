//! What only some systems have, each with a fallback, so that the rest of the code needs no `cfg`.

// Miri knows no mappings; elsewhere the allocator's are good enough.
#[cfg(all(target_os = "linux", not(miri)))]
mod regions;

use std::{
    ptr::NonNull,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

#[cfg(all(target_os = "linux", not(miri)))]
use regions::Piece;

/// Zeroed memory on a 64-byte boundary, from 64 KiB up in huge pages where the system has them. When dropped it goes back to
/// the system, or into the store of [`keep_freed`].
pub struct Pages {
    start: NonNull<u8>,
    len: usize,
    /// Bytes there are: more than were asked for, where something longer had been kept.
    room: usize,
    from: Source,
}

enum Source {
    Empty,
    Heap(std::alloc::Layout),
    #[cfg(all(target_os = "linux", not(miri)))]
    Piece {
        _owned: Piece,
    },
}

// SAFETY: Pages owns its memory alone and hands it out only under the borrow of itself.
unsafe impl Send for Pages {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Pages {}

const ALIGN: usize = 64;
#[repr(align(64))]
struct CacheLine;
const _: () = assert!(align_of::<CacheLine>() == ALIGN);
/// Blocks live long and beside each other; among what tasks allocate for a moment they would tear the allocator's memory into
/// pieces that it cannot give back.
const MAPPED_FROM: usize = 64 << 10;

impl Pages {
    /// As [`zeroed`](Self::zeroed), but memory that was kept holds what it held: for those who write all of it anyway.
    pub fn unwritten(len: usize) -> Option<Self> {
        take_kept(len).or_else(|| Self::made(len))
    }

    /// `None` when the system refuses.
    pub fn zeroed(len: usize) -> Option<Self> {
        if let Some(mut kept) = take_kept(len) {
            kept.as_mut_slice().fill(0);
            return Some(kept);
        }
        Self::made(len)
    }

    /// What is only kept is given up before anything is refused.
    fn made(len: usize) -> Option<Self> {
        Self::fresh(len).or_else(|| let_go().then(|| Self::fresh(len)).flatten())
    }

    fn fresh(len: usize) -> Option<Self> {
        if len == 0 {
            return Some(Self {
                start: NonNull::<CacheLine>::dangling().cast(),
                len: 0,
                room: 0,
                from: Source::Empty,
            });
        }
        #[cfg(all(target_os = "linux", not(miri)))]
        if len >= MAPPED_FROM {
            let piece = Piece::new(len)?;
            return Some(Self {
                start: piece.start(),
                len,
                room: len,
                from: Source::Piece { _owned: piece },
            });
        }
        let layout = std::alloc::Layout::from_size_align(len, ALIGN).ok()?;
        // SAFETY: the layout has a non-zero size.
        let start = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
        Some(Self {
            start,
            len,
            room: len,
            from: Source::Heap(layout),
        })
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: start..start+len, len being no more than room, is memory of this object, initialised (zeroed) at its making.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and &mut self makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Pages {
    /// Gives the memory back to the system.
    fn release(&mut self) {
        match std::mem::replace(&mut self.from, Source::Empty) {
            Source::Empty => {}
            // SAFETY: allocated by this object with this layout, and nothing of it is used after this.
            Source::Heap(layout) => unsafe { std::alloc::dealloc(self.start.as_ptr(), layout) },
            #[cfg(all(target_os = "linux", not(miri)))]
            Source::Piece { .. } => {}
        }
        self.len = 0;
        self.room = 0;
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        SLACK_BYTES.fetch_sub(self.room - self.len, Ordering::Relaxed);
        if self.room >= KEPT_FROM && KEEP_BYTES.load(Ordering::Relaxed) >= self.room {
            let from = std::mem::replace(&mut self.from, Source::Empty);
            keep(Self {
                start: self.start,
                len: self.room,
                room: self.room,
                from,
            });
        } else {
            self.release();
        }
    }
}

/// What was dropped and not given back, oldest first, so that the next of about its length need not be mapped and faulted in
/// anew: tasks of a kind make blocks of a few lengths over and over.
static KEPT: Mutex<Vec<Pages>> = Mutex::new(Vec::new());
static KEEP_BYTES: AtomicUsize = AtomicUsize::new(0);
/// Of those in use, what is longer than was asked for. It counts as kept.
static SLACK_BYTES: AtomicUsize = AtomicUsize::new(0);
/// Shorter ones are left to the allocator.
const KEPT_FROM: usize = MAPPED_FROM;

/// Lets so many bytes of dropped [`Pages`] stay, to be used again. None is the default. What stays counts as memory of the
/// process like everything else.
pub fn keep_freed(bytes: usize) {
    KEEP_BYTES.store(bytes, Ordering::Relaxed);
    let over = {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        beyond(&mut kept, bytes)
    };
    free(over);
}

/// How much of a memory budget is worth letting stay for [`keep_freed`]: blocks of the few lengths that come and go, but no
/// large share of a small budget.
pub fn freed_worth_keeping(budget: u64) -> u64 {
    const FREED_BYTES: u64 = 96 << 20;
    (budget / 16).min(FREED_BYTES)
}

fn take_kept(len: usize) -> Option<Pages> {
    if len < KEPT_FROM || KEEP_BYTES.load(Ordering::Relaxed) < len {
        return None;
    }
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let at = best(kept.iter().map(|pages| pages.room), len)?;
    let mut pages = kept.remove(at);
    SLACK_BYTES.fetch_add(pages.room - len, Ordering::Relaxed);
    pages.len = len;
    Some(pages)
}

/// Which of these rooms suits so many bytes: the shortest that holds them, and no more than a quarter more. Of several the
/// last, which may still be in a cache.
fn best(rooms: impl Iterator<Item = usize>, len: usize) -> Option<usize> {
    let fitting = rooms
        .enumerate()
        .filter(|(_, room)| (len..=len + len / 4).contains(room));
    let (at, _) = fitting.min_by_key(|&(at, room)| (room, usize::MAX - at))?;
    Some(at)
}

/// Gives back all that is kept; false when there was nothing.
fn let_go() -> bool {
    let all = std::mem::take(&mut *KEPT.lock().unwrap_or_else(PoisonError::into_inner));
    let some = !all.is_empty();
    free(all);
    some
}

fn keep(pages: Pages) {
    let over = {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(pages);
        beyond(&mut kept, KEEP_BYTES.load(Ordering::Relaxed))
    };
    free(over);
}

/// Takes out the oldest until no more than `bytes` are left.
fn beyond(kept: &mut Vec<Pages>, bytes: usize) -> Vec<Pages> {
    let slack = SLACK_BYTES.load(Ordering::Relaxed);
    let mut total: usize = kept.iter().map(|pages| pages.room).sum();
    let mut count = 0;
    while count < kept.len() && total + slack > bytes {
        total -= kept[count].room;
        count += 1;
    }
    kept.drain(..count).collect()
}

/// Gives pages back to the system, whatever is kept.
fn free(pages: Vec<Pages>) {
    for mut pages in pages {
        pages.release();
    }
}

/// Gives memory that the allocator holds free back to the system, where it can: between two parts of a program that need
/// memory in different sizes, what the first one had would otherwise stay resident.
pub fn give_back_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim has no precondition and may be called from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Makes the allocator return allocations of 4 MiB and more to the system when they are freed. Left to itself it keeps them
/// once it has seen some, and a program with a budget cannot afford that. (Smaller ones come again a moment later: returned
/// each time, they cost a fifth of a run in page faults.) To be called once, before threads start.
pub fn return_large_allocations() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets a parameter of the allocator; no other thread is there yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 16 << 20);
    }
}

/// Makes a file that may grow no more (`ulimit -f`) an error, where the system would end the process without a word.
pub fn be_told_of_long_files() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: a signal that is ignored runs no code.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Bytes of this process that are in memory now, where the system tells.
pub fn resident_bytes() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
        let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
        Some(pages * rustix::param::page_size() as u64)
    }
    #[cfg(not(target_os = "linux"))]
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_aligned_and_writable() {
        for len in [
            0,
            1,
            63,
            64,
            1000,
            MAPPED_FROM - 1,
            MAPPED_FROM,
            1 << 20,
            (10 << 20) + 3,
        ] {
            let mut pages = Pages::zeroed(len).unwrap();
            assert_eq!(pages.as_slice().len(), len);
            assert_eq!(pages.as_slice().as_ptr().align_offset(ALIGN), 0);
            assert!(pages.as_slice().iter().all(|&b| b == 0));
            pages.as_mut_slice().fill(7);
            assert!(pages.as_slice().iter().all(|&b| b == 7));
        }
    }

    #[test]
    fn what_is_kept_comes_back_zeroed_and_is_bounded() {
        let len = 2 * KEPT_FROM + 64;
        keep_freed(3 * len);
        for round in 0..4 {
            let mut all: Vec<Pages> = (0..5).map(|_| Pages::zeroed(len).unwrap()).collect();
            for pages in &mut all {
                assert!(pages.as_slice().iter().all(|&b| b == 0), "round {round}");
                pages.as_mut_slice().fill(9);
            }
        }
        let bytes = |kept: &[Pages]| kept.iter().map(|p| p.room).sum::<usize>();
        assert!(bytes(&KEPT.lock().unwrap()) <= 3 * len);
        // Perhaps in what was kept, if another test has not taken it.
        let mut shorter = Pages::zeroed(len - len / 8).unwrap();
        assert_eq!(shorter.as_slice().len(), len - len / 8);
        assert!(shorter.as_slice().iter().all(|&b| b == 0));
        shorter.as_mut_slice().fill(9);
        drop(shorter);
        keep_freed(0);
        assert_eq!(bytes(&KEPT.lock().unwrap()), 0);
    }

    #[test]
    fn what_is_kept_serves_for_what_is_little_shorter() {
        let rooms = [1000, 100, 125, 126, 100, 80];
        let of = |len| best(rooms.into_iter(), len);
        assert_eq!(of(100), Some(4));
        assert_eq!(of(101), Some(2));
        assert_eq!(of(126), Some(3));
        assert_eq!(of(127), None);
        assert_eq!(of(799), None);
        assert_eq!(of(800), Some(0));
        assert_eq!(of(1001), None);
        // Longer by more than a quarter.
        assert_eq!(of(63), None);
    }

    #[test]
    fn an_absurd_length_is_refused_not_fatal() {
        assert!(Pages::zeroed(usize::MAX / 2).is_none());
    }
}
