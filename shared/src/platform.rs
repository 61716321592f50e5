//! What only some systems have, each with a fallback, so that the rest of the code needs no `cfg`.

use std::ptr::NonNull;

/// Zeroed memory on a 64-byte boundary; from 1 MiB up its own mapping, in huge pages where the system has them, given
/// back to the system when dropped.
pub struct Pages {
    start: NonNull<u8>,
    len: usize,
    from: Source,
}

enum Source {
    Empty,
    Heap(std::alloc::Layout),
    #[cfg(unix)]
    Mapping {
        base: NonNull<std::ffi::c_void>,
        len: usize,
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
const HUGE: usize = 2 << 20;
const MAPPED_FROM: usize = 1 << 20;

impl Pages {
    /// `None` when the system refuses.
    pub fn zeroed(len: usize) -> Option<Self> {
        if len == 0 {
            return Some(Self {
                start: NonNull::<CacheLine>::dangling().cast(),
                len: 0,
                from: Source::Empty,
            });
        }
        #[cfg(unix)]
        if len >= MAPPED_FROM {
            return Self::mapped(len);
        }
        let layout = std::alloc::Layout::from_size_align(len, ALIGN).ok()?;
        // SAFETY: the layout has a non-zero size.
        let start = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
        Some(Self {
            start,
            len,
            from: Source::Heap(layout),
        })
    }

    #[cfg(unix)]
    fn mapped(len: usize) -> Option<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
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
        // SAFETY: skip < HUGE, so start..start+len lies inside the mapping of len + HUGE bytes.
        let start = unsafe { base.cast::<u8>().add(skip) };
        #[cfg(target_os = "linux")]
        // SAFETY: the range lies inside the mapping made above; the advice changes no content. Refusal does no harm.
        let _ = unsafe {
            rustix::mm::madvise(
                start.as_ptr().cast(),
                len,
                rustix::mm::Advice::LinuxHugepage,
            )
        };
        Some(Self {
            start,
            len,
            from: Source::Mapping { base, len: whole },
        })
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: start..start+len is memory of this object, initialised (zeroed) at its making.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and &mut self makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        match self.from {
            Source::Empty => {}
            // SAFETY: allocated by this object with this layout.
            Source::Heap(layout) => unsafe { std::alloc::dealloc(self.start.as_ptr(), layout) },
            #[cfg(unix)]
            // SAFETY: mapped by this object with this base and length.
            Source::Mapping { base, len } => unsafe {
                let _ = rustix::mm::munmap(base.as_ptr(), len);
            },
        }
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

/// Makes the allocator return every large allocation to the system when it is freed. Left to itself it keeps them once
/// it has seen some, and a program with a budget cannot afford that. To be called once, before threads start.
pub fn return_large_allocations() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets a parameter of the allocator; no other thread is there yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10);
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
            5 * HUGE + 3,
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
    fn an_absurd_length_is_refused_not_fatal() {
        assert!(Pages::zeroed(usize::MAX / 2).is_none());
    }
}
