//! A process that evaluates one script for its parent.

/// As the `rhizome` binary has it: the limits of memory are tried with the allocator that is used.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    rhizome_engine::sandbox_main()
}
