//! `svdjob`: see [`coordinator::cli`].

#[global_allocator]
static ALLOCATOR: shared::reserve::Reserved = shared::reserve::Reserved;

fn main() -> std::process::ExitCode {
    shared::platform::return_large_allocations();
    shared::reserve::keep();
    shared::platform::be_told_of_long_files();
    coordinator::cli::main()
}
