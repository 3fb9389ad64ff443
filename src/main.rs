//! Parse, run, exit code: nothing else.

// Many threads make and drop many small things.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    doe::cli::main()
}
