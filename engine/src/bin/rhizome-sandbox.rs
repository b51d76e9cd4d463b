//! A process that evaluates one script for its parent.

fn main() -> std::process::ExitCode {
    rhizome_engine::sandbox_main()
}
