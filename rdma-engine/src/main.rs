//! The `rdma-engine` program: runs beside a volume server and serves its needles; and the tools to try one out.

#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
