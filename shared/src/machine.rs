//! What this machine, or the container around this process, grants it.

use std::path::{Path, PathBuf};

/// Assumed where the system does not tell.
const MEMORY_UNKNOWN: u64 = 4 << 30;

/// Cores that this process may run on: affinity and CPU quota are respected.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Cores that this process may run on, two threads of one core counted once: sparse products are bound by memory, and the
/// second thread of a core brings none.
pub fn physical_cores() -> usize {
    let allowed = cores();
    physical_of(Path::new("/sys/devices/system/cpu"), &affinity())
        .map_or(allowed, |physical| physical.clamp(1, allowed))
}

#[cfg(target_os = "linux")]
fn affinity() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else {
        return Vec::new();
    };
    (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|&cpu| set.is_set(cpu))
        .collect()
}

#[cfg(not(target_os = "linux"))]
fn affinity() -> Vec<usize> {
    Vec::new()
}

/// How many cores these processors are threads of, where the system tells.
fn physical_of(root: &Path, processors: &[usize]) -> Option<usize> {
    let mut cores = std::collections::BTreeSet::new();
    for cpu in processors {
        let file = root.join(format!("cpu{cpu}/topology/thread_siblings_list"));
        cores.insert(std::fs::read_to_string(file).ok()?);
    }
    (!cores.is_empty()).then_some(cores.len())
}

/// Load average of the last minute, where the system tells.
pub fn load() -> Option<f32> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// This machine's name, as it calls itself. It is shown to people, never looked up.
pub fn host() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

/// Who runs this process.
pub fn user() -> String {
    ["USER", "LOGNAME", "USERNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()))
        .unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
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
    fn two_threads_of_a_core_count_once() {
        let root = tempfile::tempdir().unwrap();
        for (cpu, siblings) in [(0, "0,2"), (1, "1,3"), (2, "0,2"), (3, "1,3")] {
            let dir = root.path().join(format!("cpu{cpu}/topology"));
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("thread_siblings_list"), siblings).unwrap();
        }
        assert_eq!(physical_of(root.path(), &[0, 1, 2, 3]), Some(2));
        assert_eq!(physical_of(root.path(), &[0, 2]), Some(1));
        assert_eq!(physical_of(root.path(), &[0, 7]), None);
        assert!((1..=cores()).contains(&physical_cores()));
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
