//! The command line: parses it, runs the command, and turns the outcome into an exit code.
//!
//! Exit codes: 0 for success, 1 for a failure, 2 for wrong usage.

mod bench;
#[cfg(feature = "verbs")]
mod devices;
mod http;
mod logs;
mod remote;
mod serve;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use daemon::configuration::{ConfigOptions, ConfigurableProgram, LineError};
use daemon::documents::DocumentsOptions;
use daemon::output::{self, OutputError};
use daemon::version::{self, SourceCommit};

const SERVE_EXAMPLES: &str = "\
Examples:
  rdma-engine serve --volume-dir /data/seaweedfs
      Beside `weed volume -dir=/data/seaweedfs`, as the same user.
  rdma-engine serve --config /etc/interceptor/rdma-engine.toml
      Takes options from a file, as  volume-dir = [\"/disk1\", \"/disk2\"]
  rdma-engine serve --volume-dir /disk1 --volume-dir /disk2 --index-dir /ssd/idx --listen 10.0.0.5:18515
      Beside `weed volume -dir=/disk1,/disk2 -dir.idx=/ssd/idx`, for one network.

Reads the volumes' files beside the running server and never writes to them. Where security.toml sets
jwt.signing.read.key, clients must show the tokens that the volume server asks for; where it has
grpc.ca and the certificate of [grpc.volume], clients over the network must speak TLS and show one.
Stays in the foreground. Prints `serving ADDRESS` on standard output when clients may come. Ctrl-C or
SIGTERM ends it; clients then read from the volume server. Exits with 0 after that, 1 after a failure,
2 if the options are wrong.";

const PING_EXAMPLES: &str = "\
Examples:
  rdma-engine ping volume-1
  rdma-engine ping 10.0.0.5:18515 --transport tcp --count 100";

const READ_EXAMPLES: &str = "\
Examples:
  rdma-engine read volume-1 3,01637037d6 > needle
  rdma-engine read volume-1 3,01637037d6 --offset 1MiB --length 4KiB | xxd | head

A needle that is stored compressed comes compressed (pipe it through gunzip); standard error then
says so. A needle that is read as a whole is verified by its checksum.";

const BENCH_EXAMPLES: &str = "\
Examples:
  rdma-engine bench volume-1 3,01637037d6 3,02a1b2c3d4
  rdma-engine bench localhost 3,01637037d6 --sizes 4KiB,1MiB --depths 1,16 --transports local,tcp

Reads ranges at random places of the given needles. After the first round they come from the page
cache of the engine's host: what is measured is the way of the bytes, not the disk.";

const CONFIG_EXAMPLES: &str = "\
Examples:
  rdma-engine config show serve --config /etc/interceptor/rdma-engine.toml
      Prints each option, and whether it is typed, a default, or from which file or variable.
  RDMA_ENGINE_VOLUME_DIR=/disk1,/disk2 rdma-engine config check serve
      Says whether the engine would accept that.

What is typed goes before variables, as RDMA_ENGINE_LISTEN is for --listen; these go before the files
FILE.d/*.toml, of which the last by name goes before the others; these before FILE (--config).
Exits with 0 if the options are right, with 2 if they are wrong.";

/// What can be set elsewhere, and how.
const PROGRAM: ConfigurableProgram<'_> =
    ConfigurableProgram { definition: Cli::command, commands: &["serve"], typed_only: &[], negatable: &[] };

/// Serves the needles of a SeaweedFS volume server faster than the volume server does.
#[derive(Debug, Parser)]
#[command(
    name = "rdma-engine",
    version,
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: logs::LogOptions,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the volumes of a volume server on this host
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(serve::ServeOptions),
    /// Show the RDMA devices of this host, and which would be used
    #[cfg(feature = "verbs")]
    Devices,
    /// Ask an engine whether it is there
    #[command(after_help = PING_EXAMPLES)]
    Ping(remote::PingOptions),
    /// Write the stored bytes of a needle to standard output
    #[command(after_help = READ_EXAMPLES)]
    Read(remote::ReadOptions),
    /// Measure reads of several sizes and depths, over every transport
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(bench::BenchOptions),
    /// Show the options of `serve`, and where they come from
    #[command(after_help = CONFIG_EXAMPLES)]
    Config(ConfigOptions),
    /// Write manual pages and shell completions, for packages
    #[command(hide = true)]
    Documents(DocumentsOptions),
}

/// Runs the command of the arguments; blocks until it is done.
pub(crate) fn main(commit: SourceCommit) -> ExitCode {
    daemon::heap::share_arenas();
    let _flush = output::FlushOnDrop;
    // The parser answers with one line only.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "--version") {
        let features = [("verbs", rdma_engine::HAS_VERBS)];
        let text = version::long_text(env!("CARGO_PKG_VERSION"), commit, &features);
        let printed = output::print(format_args!("rdma-engine {text}\n"));
        return if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let typed: Vec<OsString> = std::env::args_os().collect();
    let cli = match parse(&typed) {
        Ok(cli) => cli,
        Err(LineError::Parser(error)) => return output::explain_usage(&error),
        Err(LineError::Configuration(error)) => return wrong_usage(error),
    };
    if let Err(error) = cli.log.start() {
        output::error(error);
        return ExitCode::from(2);
    }
    match run(cli.command) {
        Ok(code) => code,
        Err(error) if error.downcast_ref::<OutputError>().is_some_and(OutputError::is_closed) => {
            ExitCode::FAILURE
        }
        Err(error) => {
            output::error(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn parse(typed: &[OsString]) -> Result<Cli, LineError> {
    let line = PROGRAM.parse(typed, std::env::vars_os())?;
    Ok(Cli::from_arg_matches(&line.matches)?)
}

fn wrong_usage(error: impl Display) -> ExitCode {
    output::error(format_args!("{error}\n\nFor more information, try '--help'."));
    ExitCode::from(2)
}

fn show_configuration(options: &ConfigOptions) -> anyhow::Result<ExitCode> {
    let line = match options.parse(&PROGRAM, options.line(&PROGRAM)) {
        Ok(line) => line,
        Err(LineError::Parser(error)) => return Ok(output::explain_usage(&error)),
        Err(LineError::Configuration(error)) => return Ok(wrong_usage(error)),
    };
    if let Err(error) = Cli::from_arg_matches(&line.matches)?.log.check() {
        return Ok(wrong_usage(line.settings.wrong("log-level", error.to_string())));
    }
    output::print(format_args!("{}", options.text(&PROGRAM, &line, &BTreeMap::new())))?;
    Ok(ExitCode::SUCCESS)
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // At least two, or a thread that waits for a disk could hand its tasks to no other thread.
        .worker_threads(std::thread::available_parallelism().map_or(2, usize::from).max(2))
        .max_blocking_threads(64)
        .thread_name("rdma-engine")
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async {
        match command {
            Command::Serve(options) => serve::run(options).await?,
            #[cfg(feature = "verbs")]
            Command::Devices => devices::run()?,
            Command::Ping(options) => remote::ping(options).await?,
            Command::Read(options) => remote::read(options).await?,
            Command::Bench(options) => bench::run(options).await?,
            Command::Config(options) => return show_configuration(&options),
            Command::Documents(options) => options.write(Cli::command(), "")?,
        }
        Ok(ExitCode::SUCCESS)
    });
    // Threads that wait for a disk are abandoned.
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_and_durations_are_typed_as_for_a_mount() {
        let line = "rdma-engine serve --volume-dir /x --listen localhost:0 --status-addr localhost:0 \
                    --staging 1.5MiB --max-staging 64MiB --lease 500ms --idle-timeout 2m";
        Cli::try_parse_from(line.split_whitespace()).unwrap();
    }

    #[test]
    fn an_error_says_which_values_are_right() {
        for (line, word) in [
            ("serve", "--volume-dir"),
            ("serve --volume-dir /x --listen 18515", "HOST:PORT"),
            ("serve --volume-dir /x --status-addr x", "none"),
            ("serve --volume-dir /x --lease 10000", "500ms"),
            ("serve --volume-dir /x --idle-timeout 2000m", "1440m"),
            ("serve --volume-dir /x --max-staging 1024", "1 MiB"),
            ("serve --volume-dir /x --max-staging 900TiB", "memory"),
            ("read host 3", "VOLUME,KEYCOOKIE"),
            ("read host 3,01637037d6 --length big", "512MiB"),
            ("bench host", "FID"),
            ("ping host --transport pigeon", "tcp"),
        ] {
            let typed = ["rdma-engine"].into_iter().chain(line.split(' '));
            let error = Cli::try_parse_from(typed).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
