//! Stands in each host of a test's LAN as its first process; see `tests::lan`.

fn main() -> std::process::ExitCode {
    #[cfg(target_os = "linux")]
    return tests::lan::agent::main();
    #[cfg(not(target_os = "linux"))]
    panic!("a LAN of namespaces needs Linux");
}
