//! `svdjob`: see [`coordinator::cli`].

fn main() -> std::process::ExitCode {
    shared::platform::return_large_allocations();
    shared::platform::be_told_of_long_files();
    coordinator::cli::main()
}
