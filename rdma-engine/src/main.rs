//! The `rdma-engine` program: serves the needles of the volume server beside it, and has tools to
//! try an engine out.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main(option_env!("SOURCE_COMMIT"))
}
