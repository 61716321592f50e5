//! What this machine, or the container around this process, grants it.

use std::path::{Path, PathBuf};

/// Assumed where the system does not tell.
const MEMORY_UNKNOWN: u64 = 4 << 30;

/// Cores that this process may run on: affinity and CPU quota are respected.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Bytes of memory that this process may use at most: the machine's, or the tightest limit of its control groups.
pub fn memory() -> u64 {
    let machine = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| total_of_meminfo(&text));
    let group = std::fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| limit_of_groups(&text, Path::new("/sys/fs/cgroup")));
    match (machine, group) {
        (Some(machine), Some(group)) => machine.min(group),
        (Some(bytes), None) | (None, Some(bytes)) => bytes,
        (None, None) => MEMORY_UNKNOWN,
    }
}

/// The user's cache directory for this program; a place among temporary files where there is no home.
pub fn cache_directory() -> PathBuf {
    use etcetera::BaseStrategy;
    match etcetera::choose_base_strategy() {
        Ok(base) => base.cache_dir().join("svdjob"),
        Err(_) => std::env::temp_dir().join("svdjob-cache"),
    }
}

fn total_of_meminfo(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The tightest limit on the way from the process's group up to the root, in version 2 or 1 of control groups.
fn limit_of_groups(own: &str, root: &Path) -> Option<u64> {
    let mut limits = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (base, file) = if controllers.is_empty() {
            (root.to_path_buf(), "memory.max")
        } else if controllers.split(',').any(|c| c == "memory") {
            (root.join("memory"), "memory.limit_in_bytes")
        } else {
            continue;
        };
        // Inside a container the path may be that of the host: the walk then starts at what exists.
        for group in Path::new(path.trim_start_matches('/')).ancestors() {
            let limit = std::fs::read_to_string(base.join(group).join(file)).ok();
            limits.extend(limit.and_then(|text| text.trim().parse::<u64>().ok()));
        }
    }
    // Version 1 says "no limit" with a number near 2^63.
    limits.into_iter().filter(|&bytes| bytes < 1 << 60).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_a_core_and_some_memory() {
        assert!(cores() >= 1);
        assert!(memory() >= 1 << 20);
    }

    #[test]
    fn total_memory_is_read() {
        let text = "MemTotal:       24656384 kB\nMemFree: 1 kB\n";
        assert_eq!(total_of_meminfo(text), Some(24_656_384 * 1024));
        assert_eq!(total_of_meminfo("nothing"), None);
    }

    #[test]
    fn the_tightest_group_limits() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::write(root.path().join("a/memory.max"), "1073741824\n").unwrap();
        std::fs::write(inner.join("memory.max"), "max\n").unwrap();
        assert_eq!(limit_of_groups("0::/a/b\n", root.path()), Some(1 << 30));
        std::fs::write(inner.join("memory.max"), "536870912\n").unwrap();
        assert_eq!(limit_of_groups("0::/a/b\n", root.path()), Some(1 << 29));
        assert_eq!(limit_of_groups("0::/\n", root.path()), None);
        let old = root.path().join("memory");
        std::fs::create_dir_all(&old).unwrap();
        std::fs::write(old.join("memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        assert_eq!(limit_of_groups("4:cpu,memory:/\n", root.path()), None);
        std::fs::write(old.join("memory.limit_in_bytes"), "1048576\n").unwrap();
        assert_eq!(
            limit_of_groups("4:cpu,memory:/gone\n", root.path()),
            Some(1 << 20)
        );
    }
}
