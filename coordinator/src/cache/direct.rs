//! Reads past the page cache, so that blocks do not fill twice the memory they are budgeted, at a fraction of the CPU.

use std::path::Path;

/// Fills `buffer` with the `len` bytes of a file. `false`: not possible here, read it the plain way. The buffer starts on
/// a page and its length is a whole number of pages.
#[cfg(target_os = "linux")]
pub(super) fn read(path: &Path, buffer: &mut [u8], len: usize) -> bool {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECT;
    let Ok(file) = rustix::fs::open(path, flags, Mode::empty()) else {
        return false;
    };
    let mut done = 0;
    while done < len {
        match rustix::io::pread(&file, &mut buffer[done..], done as u64) {
            // A read that ends within the file but not on a page cannot be continued.
            Ok(n) if n > 0 && (done + n >= len || n.is_multiple_of(4096)) => done += n,
            Err(rustix::io::Errno::INTR) => {}
            _ => return false,
        }
    }
    true
}

#[cfg(not(target_os = "linux"))]
pub(super) fn read(_: &Path, _: &mut [u8], _: usize) -> bool {
    false
}
