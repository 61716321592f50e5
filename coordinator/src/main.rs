//! `svdjob`: see [`coordinator::cli`].

fn main() -> std::process::ExitCode {
    shared::platform::return_large_allocations();
    coordinator::cli::main()
}
