//! The `interceptor` program.

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    interceptor::cli::main(env::args_os(), option_env!("SOURCE_COMMIT"))
}
