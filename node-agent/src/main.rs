//! `svdnode`.

fn main() -> std::process::ExitCode {
    node_agent::cli::main()
}
