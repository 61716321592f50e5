//! `svdnode`.

fn main() -> std::process::ExitCode {
    shared::platform::be_told_of_long_files();
    node_agent::cli::main()
}
