//! The command line: parses it, runs the subcommand, and turns the outcome into an exit code.
//!
//! Exit codes: 0 if all went well, 1 if something failed, 2 if the command line or the
//! configuration file is wrong.

mod attach;
mod check;
mod command_line;
mod doctor;
mod figures;
mod fitted_text;
mod foreign_options;
mod host;
mod http;
mod kernel_watcher;
mod list;
mod local_mounts;
mod miss_ratio_chart;
mod mount;
mod mount_address;
mod mount_helper;
mod mounts_api;
mod observe;
mod options;
mod profile;
mod reload;
mod server_events;
mod signals;
mod status;
mod status_place;
mod top;
mod trace;
mod unmount;
mod untrusted;
mod warmup;
mod weed;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use daemon::configuration::{ConfigOptions, ConfiguredLine, LineError, Settings};
use daemon::documents::DocumentsOptions;
use daemon::logs;
use daemon::output::{self, OutputError};
use daemon::size::ByteSize;
use daemon::version::{self, SourceCommit};
use tracing_subscriber::EnvFilter;

use attach::AttachOptions;
use check::CheckOptions;
use command_line::parse;
use doctor::DoctorOptions;
use foreign_options::ForeignOptionError;
use list::ListOptions;
use mount::MountPlan;
use observe::ObserveOptions;
use options::{MountOptions, OptionError};
use profile::ProfileOptions;
use reload::ReloadOptions;
use status::StatusOptions;
use top::TopOptions;
use trace::TraceOptions;
use unmount::UnmountOptions;
use warmup::WarmupOptions;

use crate::ebpf;

const MOUNT_EXAMPLES: &str = "\
Examples:
  interceptor mount --filer filer:8888 /mnt/data
      Mounts everything the filer has.
  interceptor mount --filer a:8888,b:8888 --filer-path /buckets/train --cache-size 16GiB /mnt/train
      Mounts one directory with a large cache; while filer a does not answer, b is asked.
  interceptor mount --config /etc/interceptor.toml /mnt/data
      Takes options from a file:
          filer = [\"filer-a:8888\", \"filer-b:8888\"]
          cache-size = \"16GiB\"
          allow-other = true

Stays in the foreground. When the mount answers, prints `mounted MOUNTPOINT` and `status URL` on
standard output.
Ctrl-C or SIGTERM unmounts; a second one does not wait for open files. Exits with 0 after an unmount,
1 after a failure, 2 if the options are wrong.";

const ATTACH_EXAMPLES: &str = "\
Examples:
  interceptor attach /mnt/data
      Puts a layer over what is mounted on /mnt/data; programs that use the path go on. What is
      read from a FUSE mount is kept in memory.
  interceptor attach --filer filer:8888 --cache-size 8GiB /mnt/data
      Over a `weed mount`: what is read comes from the cluster, by way of a cache; what is written
      goes to the `weed mount`.
  interceptor attach --restart --filer filer:8888 --cache-size 16GiB /mnt/data
      Takes over from the one that is attached, with another program or other options.

Stays in the foreground. When the layer answers, prints `attached PATH` and `status URL` on standard
output. Ctrl-C or SIGTERM takes it away: the mount below is there at once, and files that are open are
served until they are closed or --grace is over; a second signal does not wait for them. Exits with 0
after that, 1 after a failure, 2 if the options are wrong. Takes root.";

const OBSERVE_EXAMPLES: &str = "\
Examples:
  interceptor observe
  interceptor observe /mnt/data --interval 1s
  interceptor observe /mnt/data --for 30s --json | jq .page_cache_hit_ratio

Takes root, or CAP_BPF and CAP_PERFMON. Files have names where a daemon
of interceptor tells them, or while they are open.";

const CHECK_EXAMPLES: &str = "\
Examples:
  interceptor check
  interceptor check --filer filer:8888
  interceptor check --filer filer:8888 --engine volume:8080=engine:18515

With a filer, also says whether its volume servers and the engines beside them answer. Options that
tell where those are mean what they mean for `interceptor mount`.

Exits with 0 if a mount is possible, else with 1.";

const DOCTOR_EXAMPLES: &str = "\
Examples:
  interceptor doctor --filer filer:8888 --filer-path /buckets/train
      Looks at what `interceptor check` looks at, lists the directory, and reads a file of it from
      each source: over HTTP, and from the engines over each transport.
  interceptor doctor --config /etc/interceptor.toml --json | jq .reads
  interceptor doctor --filer filer:8888 --bundle report.tar.gz
      Writes an archive for a bug report, too, and prints what is in it.

Reads up to 64 MiB from each source, for 2 seconds at most. The last line is the verdict. The archive has
paths of files, addresses and what running mounts say of themselves; keys, tokens and passwords are taken out.

Exits with 0 if a mount is possible and files can be read, else with 1.";

const STATUS_EXAMPLES: &str = "\
Examples:
  interceptor status
  interceptor status /mnt/data --all
  interceptor status --json | jq .cache

The same is at http://127.0.0.1:9650/ for a browser and at /metrics for Prometheus.";

const TRACE_EXAMPLES: &str = "\
Examples:
  interceptor trace /mnt/data
  interceptor trace /mnt/data/train/shard-7 --for 1m
  interceptor trace --json /mnt/data | jq 'select(.kind == \"read\" and .seconds > 0.1) | .steps'

A line has how long it took, the file, offset and length, and the thread that reads. `read` is a request
to the daemon, with `memory` or what it waited for: each request to a server, how long that took, and when
its first byte came. `call` is the call of an application from its begin to its end (eBPF), after the reads
of its requests; what the kernel answers by itself (page cache, passthrough) has a call only. A summary
follows on standard error. Exits with 0, with 130 after Ctrl-C, or with 1 if the daemon ends meanwhile.";

const PROFILE_EXAMPLES: &str = "\
Examples:
  interceptor profile /mnt/data
  interceptor profile /mnt/data/train --for 1m --by process
  interceptor profile --json /mnt/data | jq '.files[] | select(.count > 1000)'

What took longest in total comes first. A time is from the arrival of a request at the daemon to its
answer; requests overlap, so times may add up to more than went by. What the kernel answers by itself
(page cache, names that it remembers, passthrough) is not there: `interceptor observe` and `status` count
reads of that kind. Process 0 is the kernel, which releases files on its own. Exits with 0, also after
Ctrl-C.";

const LIST_EXAMPLES: &str = "\
Examples:
  interceptor list
  interceptor list --json | jq -r '.[].mount_point'

Lists what this process sees of the kernel's mount table; a daemon in a container has its mounts there.";

const UNMOUNT_EXAMPLES: &str = "\
Examples:
  interceptor unmount /mnt/data
  interceptor unmount --lazy /mnt/data

Does what `umount` does, but takes away nothing else than a mount or a layer of interceptor, and waits
for the daemon to end. Exits with 0 after that, 1 after a failure.";

const RELOAD_EXAMPLES: &str = "\
Examples:
  interceptor reload /mnt/data

Does what SIGHUP to the daemon does, and says what came of it: security.toml with the files that it names,
the files of --status-token-file, --status-tls-cert and --status-tls-key, and of a mount log-level in
the configuration file are read anew. A file that cannot be used changes nothing. Other options take
`interceptor mount --restart` or `attach --restart`. Exits with 0 if everything was read, else with 1.";

const CONFIG_EXAMPLES: &str = "\
Examples:
  interceptor config show mount --config /etc/interceptor/mnt-train.toml
      Prints each option, and whether it is typed, a default, or from which file or variable.
  INTERCEPTOR_CACHE_SIZE=8GiB interceptor config check mount --filer filer:8888
      Says whether a mount would accept that.

What is typed goes before variables, as INTERCEPTOR_CACHE_SIZE is for --cache-size; these go before the files
FILE.d/*.toml, of which the last by name goes before the others; these before FILE (--config).
Exits with 0 if the options are right, 2 if they are wrong, 1 if a file with keys or tokens cannot be used.";

const TOP_KEYS: &str = "\
Keys:
  Tab, 1 to 5   files, readers, servers, incidents, findings
  ?             what the keys and words mean
  s             sort by the next column
  /             show only what has the text that is typed; Enter keeps it, Esc clears it
  p             pause and go on
  q, Ctrl-C     quit";

const WARMUP_EXAMPLES: &str = "\
Examples:
  interceptor warmup /mnt/data/train
      Fetches all files of a tree.
  find /mnt/data -name '*.tar' -print0 | interceptor warmup -0 -
      Fetches the files that a list names.
  interceptor warmup --check /mnt/data/train /mnt/data/val
      Says what share of each is in the cache.

Takes free memory only, and leaves an eighth of the cache for what is read meanwhile; --force makes room.
Ctrl-C stops the daemon's work on it, too. Exits with 0 if everything is as it was asked for, 1 if something
did not fit or could not be read, 2 if the options are wrong, 130 after Ctrl-C.";

/// Fast, transparent reads of SeaweedFS.
#[derive(Debug, Parser)]
#[command(
    name = "interceptor",
    version,
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount a directory tree of a filer, read-only
    #[command(after_help = MOUNT_EXAMPLES)]
    Mount(Box<MountOptions>),
    /// Put a layer over a mount that exists, without unmounting it
    #[command(after_help = ATTACH_EXAMPLES)]
    Attach(Box<AttachOptions>),
    /// Bring files or trees of a mount into its cache, check what is there, or give it up
    #[command(after_help = WARMUP_EXAMPLES)]
    Warmup(WarmupOptions),
    /// Show what is read on any FUSE mount of this host, as the kernel sees it
    #[command(after_help = OBSERVE_EXAMPLES)]
    Observe(ObserveOptions),
    /// Watch a running mount in the terminal
    #[command(after_help = TOP_KEYS)]
    Top(TopOptions),
    /// Print what a running mount says of itself
    #[command(after_help = STATUS_EXAMPLES)]
    Status(StatusOptions),
    /// Show each read of a file or tree while it is answered, and what it waited for
    #[command(after_help = TRACE_EXAMPLES)]
    Trace(TraceOptions),
    /// Count what is asked of a mount, by operation, file and process
    #[command(after_help = PROFILE_EXAMPLES)]
    Profile(ProfileOptions),
    /// List the mounts and attached paths of this host
    #[command(after_help = LIST_EXAMPLES)]
    List(ListOptions),
    /// Unmount a mount, or take a layer away, and wait for its daemon
    #[command(after_help = UNMOUNT_EXAMPLES)]
    Unmount(UnmountOptions),
    /// Have a daemon read its keys, certificates, tokens and log level anew
    #[command(after_help = RELOAD_EXAMPLES)]
    Reload(ReloadOptions),
    /// Say what this host can do for a mount
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckOptions),
    /// Test everything that a mount needs, reads included; write an archive for a bug report
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor(DoctorOptions),
    /// Show the options of a command, and where they come from
    #[command(after_help = CONFIG_EXAMPLES)]
    Config(ConfigOptions),
    /// Write manual pages and shell completions, for packages
    #[command(hide = true)]
    Documents(DocumentsOptions),
}

/// Completes mount points for bash.
const BASH_MOUNT_POINTS: &str = include_str!("mount_points.bash");

/// What went wrong, by the exit code it means.
#[derive(Debug, thiserror::Error)]
enum CommandFailure {
    /// The options cannot be meant.
    #[error("{0}")]
    Usage(String),
    /// It did not work.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

/// Does what the arguments (with the program's name in front) say; blocks until it is done. To be
/// called before the process has a second thread.
pub fn main(arguments: impl IntoIterator<Item = OsString>, commit: SourceCommit) -> ExitCode {
    ::daemon::heap::share_arenas();
    let _flush = output::FlushOnDrop;
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    if is_called(&arguments, &mount_helper::NAMES) {
        // SAFETY: nothing so far has started a thread, and `main` is called before anything could.
        return unsafe { mount_helper::run(&arguments) };
    }
    if is_called(&arguments, &[weed::NAME]) {
        return weed::run(&arguments);
    }
    if asks_for_version(&arguments) {
        let printed = output::print(format_args!("interceptor {}\n", version_text(commit)));
        return if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let mut ignored = Vec::new();
    if arguments.get(1).is_some_and(|command| command == "mount") {
        match understand_foreign_options(&mut arguments) {
            Ok(options) => ignored = options,
            Err(error) => {
                output::error(format_args!(
                    "{error}\n\nFor more information, try 'interceptor mount --help'."
                ));
                return ExitCode::from(2);
            }
        }
    }
    let outcome = match parse(&arguments) {
        Ok((cli, line)) => run(&cli.command, &line, &arguments, ignored, commit),
        Err(LineError::Parser(error)) => return output::explain_usage(&error),
        Err(LineError::Configuration(error)) => Err(CommandFailure::usage(error)),
    };
    match outcome {
        Ok(code) => code,
        Err(CommandFailure::Usage(text)) => {
            output::error(format_args!("{text}\n\nFor more information, try '--help'."));
            ExitCode::from(2)
        }
        Err(CommandFailure::Failed(error))
            if error.downcast_ref::<OutputError>().is_some_and(OutputError::is_closed) =>
        {
            ExitCode::FAILURE
        }
        Err(CommandFailure::Failed(error)) => {
            output::error(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(
    command: &Command,
    line: &ConfiguredLine,
    typed: &[OsString],
    ignored: Vec<String>,
    commit: SourceCommit,
) -> Result<ExitCode, CommandFailure> {
    let done = |outcome: anyhow::Result<()>| Ok(outcome.map(|()| ExitCode::SUCCESS)?);
    match command {
        // SAFETY: nothing so far has started a thread, and `main` is called before anything could.
        Command::Mount(_) => unsafe { run_mount(typed, line, ignored) },
        Command::Attach(_) => run_attach(line),
        Command::Warmup(options) => Ok(warmup::run(options)?),
        Command::Status(options) => done(status::run(options)),
        Command::Top(options) => done(top::run(options)),
        Command::Observe(options) => done(observe::run(options)),
        Command::Trace(options) => Ok(trace::run(options)?),
        Command::Profile(options) => Ok(profile::run(options)?),
        Command::List(options) => done(list::run(options)),
        Command::Unmount(options) => done(unmount::run(options)),
        Command::Reload(options) => done(reload::run(options)),
        Command::Check(options) => Ok(check::run(options)?),
        Command::Doctor(options) => Ok(doctor::run(options, line, &version_text(commit))?),
        Command::Config(options) => command_line::run(options),
        Command::Documents(options) => Ok(write_documents(options)?),
    }
}

/// Whether the program, with its name in front of the arguments, was run under one of these names.
fn is_called(arguments: &[OsString], names: &[&str]) -> bool {
    let name = arguments.first().and_then(|program| Path::new(program).file_name());
    name.is_some_and(|name| names.iter().any(|other| name == *other))
}

/// Version, commit and features.
fn version_text(commit: SourceCommit) -> String {
    let features = [("ebpf", ebpf::is_built_in()), ("verbs", rdma_engine::HAS_VERBS)];
    version::long_text(env!("CARGO_PKG_VERSION"), commit, &features)
}

/// Whether `--version` is typed, which the parser answers with one line only.
fn asks_for_version(arguments: &[OsString]) -> bool {
    arguments.get(1).is_some_and(|argument| argument == "--version")
}

/// Has options in the spelling of mount(8) and of `weed mount` replaced by those of `interceptor
/// mount`. Returns those that mean nothing here.
fn understand_foreign_options(arguments: &mut Vec<OsString>) -> Result<Vec<String>, ForeignOptionError> {
    let program = built();
    let command = program.find_subcommand("mount").expect("the command exists");
    let (translated, ignored) = foreign_options::translate_arguments(&arguments[2..], command)?;
    arguments.splice(2.., translated);
    Ok(ignored)
}

/// The command line. Until it is built, a command does not know the names of its options.
fn built() -> clap::Command {
    let mut program = Cli::command();
    program.build();
    program
}

fn write_documents(options: &DocumentsOptions) -> anyhow::Result<ExitCode> {
    options.write(Cli::command(), BASH_MOUNT_POINTS).context("cannot write manual pages and completions")?;
    Ok(ExitCode::SUCCESS)
}

/// Mounts. Options in `ignored` mean nothing.
///
/// # Safety
/// The process must have no other thread.
unsafe fn run_mount(
    typed: &[OsString],
    line: &ConfiguredLine,
    ignored: Vec<String>,
) -> Result<ExitCode, CommandFailure> {
    let (options, in_effect) = mount_options(line)?;
    let (mut plan, filter) = mount_plan(options, in_effect, typed.to_vec(), &line.settings)?;
    plan.load_secrets()?;
    if plan.is_restart() {
        plan.restart(typed)?;
        return Ok(ExitCode::SUCCESS);
    }
    logs::start_without_thread(plan.log_format(), filter);
    for option in ignored {
        tracing::warn!("option {option:?} means nothing to a mount that is only read");
    }
    let fail = |error: &anyhow::Error| output::error(format_args!("{error:#}"));
    // SAFETY: the caller promises what is asked for, and nothing since has started a thread.
    Ok(unsafe { mount::supervised(plan, true, &mut || Ok(()), fail) }?)
}

/// What is possible with these options, and what is to be logged. An error names the place of what
/// is wrong.
fn mount_plan(
    options: MountOptions,
    in_effect: BTreeMap<String, String>,
    typed: Vec<OsString>,
    settings: &Settings,
) -> Result<(MountPlan, EnvFilter), CommandFailure> {
    let wrong = |option: &str, reason: String| CommandFailure::Usage(settings.wrong(option, reason));
    let filter = logs::filter(options.log.log_level.as_deref())
        .map_err(|error| wrong("log-level", error.to_string()))?;
    let plan = MountPlan::new(options, in_effect, typed)
        .map_err(|error| wrong(error.option(), error.to_string()))?;
    Ok((plan, filter))
}

fn run_attach(line: &ConfiguredLine) -> Result<ExitCode, CommandFailure> {
    let (name, matches) = line.matches.subcommand().expect("clap requires a subcommand");
    let program = built();
    let (options, cache_size) = attach_options(line)?;
    let in_effect = options::shown(program.find_subcommand(name).expect("it has been parsed"), matches);
    // SAFETY: nothing so far has started a thread, and `main` is called before anything could.
    unsafe { attach::run(&options, cache_size, in_effect) }
}

/// The options of `interceptor attach`, which fit together, and how much memory the cache may take.
fn attach_options(line: &ConfiguredLine) -> Result<(AttachOptions, ByteSize), CommandFailure> {
    let (_, matches) = line.matches.subcommand().expect("clap requires a subcommand");
    let mut options = AttachOptions::from_arg_matches(matches).map_err(CommandFailure::usage)?;
    options.is_default_status_addr = has_default_status_addr(matches);
    let wrong =
        |error: OptionError| CommandFailure::Usage(line.settings.wrong(error.option(), error.to_string()));
    let cache_size = options.check().map_err(wrong)?;
    Ok((options, cache_size))
}

/// The options of `interceptor mount`, and the same as text.
fn mount_options(line: &ConfiguredLine) -> Result<(MountOptions, BTreeMap<String, String>), CommandFailure> {
    let (name, matches) = line.matches.subcommand().expect("clap requires a subcommand");
    let program = built();
    let command = program.find_subcommand(name).expect("it has been parsed");
    let mut options = MountOptions::from_arg_matches(matches).map_err(CommandFailure::usage)?;
    options.is_default_status_addr = has_default_status_addr(matches);
    let in_effect = options::in_effect(&options, command, matches);
    Ok((options, in_effect))
}

fn has_default_status_addr(matches: &ArgMatches) -> bool {
    matches.value_source("status_addr") == Some(ValueSource::DefaultValue)
}

/// A path that was typed, so that it can be found from any directory.
fn shown_path(typed: &Path) -> PathBuf {
    if typed.is_absolute() {
        return typed.to_owned();
    }
    // The daemon of a mount is not asked for links on the way to its mount point.
    std::fs::canonicalize(typed).or_else(|_| std::path::absolute(typed)).unwrap_or_else(|_| typed.to_owned())
}

impl CommandFailure {
    fn usage(error: impl std::fmt::Display) -> Self {
        Self::Usage(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn typed(line: &[&str]) -> Result<MountOptions, String> {
        let typed: Vec<OsString> = ["interceptor", "mount"].iter().chain(line).map(OsString::from).collect();
        let (_, line) = parse(&typed).map_err(|error| error.to_string())?;
        mount_options(&line).map(|(options, _)| options).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_switch_may_have_a_value_and_need_not() {
        assert_eq!(typed(&["/mnt"]).unwrap().mount.allow_other, None);
        assert_eq!(typed(&["--allow-other", "/mnt"]).unwrap().mount.allow_other, Some(true));
        assert_eq!(typed(&["--allow-other=false", "/mnt"]).unwrap().mount.allow_other, Some(false));
        assert!(typed(&["--nonempty", "/mnt"]).unwrap().mount.nonempty);
    }

    #[test]
    fn a_switch_is_turned_off_by_its_value_or_by_its_negation() {
        let is_on = |line: &[&str]| typed(&[line, &["/mnt"]].concat()).map(|options| options.mount.ebpf);
        assert_eq!(is_on(&[]), Ok(true));
        for off in ["--ebpf=false", "--no-ebpf", "--no-ebpf=true"] {
            assert_eq!(is_on(&[off]), Ok(false), "{off}");
        }
        for on in ["--ebpf", "--ebpf=true", "--no-ebpf=false"] {
            assert_eq!(is_on(&[on]), Ok(true), "{on}");
        }
        for wrong in ["--no-ebpf=perhaps", "--no-threads", "--no-nonempty"] {
            assert!(is_on(&[wrong]).is_err(), "{wrong}");
        }
        assert_eq!(typed(&["--", "--no-ebpf"]).unwrap().mountpoint, PathBuf::from("--no-ebpf"));
    }

    #[test]
    fn a_file_may_have_either_name_of_a_switch() {
        let with_file = |text: &str, typed_too: &[&str]| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            writeln!(file, "filer = \"a:1\"\n{text}").unwrap();
            let config = ["--config", file.path().to_str().unwrap()];
            typed(&[&config, typed_too, &["/mnt"]].concat()).map(|options| options.mount.passthrough)
        };
        for off in ["passthrough = false", "no-passthrough = true"] {
            assert_eq!(with_file(off, &[]), Ok(false), "{off}");
            assert_eq!(with_file(off, &["--passthrough"]), Ok(true), "{off}");
        }
        for on in ["passthrough = true", "no-passthrough = false"] {
            assert_eq!(with_file(on, &[]), Ok(true), "{on}");
            assert_eq!(with_file(on, &["--no-passthrough"]), Ok(false), "{on}");
        }
        let error = with_file("no-passthrough = \"perhaps\"", &[]).unwrap_err();
        assert!(error.contains("line 2") && error.contains("perhaps"), "{error}");
    }

    #[test]
    fn a_file_fills_in_what_is_not_typed() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "filer = [\"a:1\", \"b:2\"]\ncache-size = \"2GiB\"\nnonempty = true").unwrap();
        let config = file.path().to_str().unwrap();
        let options = typed(&["--config", config, "--cache-size=1GiB", "--", "/mnt"]).unwrap();
        assert_eq!(options.fetch.cache_size, Some(ByteSize(1 << 30)));
        assert_eq!(options.filer.as_ref().map(|filers| filers.0.len()), Some(2));
        assert!(options.mount.nonempty);
        assert_eq!(options.mountpoint.to_str(), Some("/mnt"));
    }

    #[test]
    fn a_wrong_file_names_its_line() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "filer = \"a:1\"\nread-retry-time = \"soon\"").unwrap();
        let error = typed(&["--config", file.path().to_str().unwrap(), "/mnt"]).unwrap_err();
        assert!(error.contains("line 2") && error.contains("500ms"), "{error}");
    }

    #[test]
    fn a_value_that_is_wrong_on_this_host_names_its_line() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "filer = \"a:1\"\ncache-size = 64").unwrap();
        let path = file.path().to_str().unwrap();
        let refused = |line: &[&str]| {
            let typed: Vec<OsString> =
                ["interceptor", "mount"].iter().chain(line).map(OsString::from).collect();
            // SAFETY: it fails before it starts a process.
            unsafe { run_mount(&typed, &parse(&typed).unwrap().1, Vec::new()) }.unwrap_err().to_string()
        };
        let error = refused(&["--config", path, "/mnt"]);
        assert!(error.contains(&format!("{path}, line 2: --cache-size 64 B is too small")), "{error}");
        let error = refused(&["--config", path, "--cache-size", "65", "/mnt"]);
        assert!(error.starts_with("--cache-size 65 B is too small"), "{error}");
    }

    #[test]
    fn wrong_values_say_what_is_right() {
        for (option, word) in [
            ("--filer=filer", "HOST:PORT"),
            ("--cache-size=big", "512MiB"),
            ("--filer-path=x", "absolute"),
            ("--volume-server-access=proxy", "filerProxy"),
            ("--map-uid=1", "LOCAL:FILER"),
            ("--uid=root", "invalid digit"),
            ("--uid=4294967295", "is not in 0.."),
            ("--gid=-1", "is not in 0.."),
            ("--file-mode=888", "octal"),
            ("--dir-mode=rwx", "octal"),
            ("--umask=10000", "octal"),
            ("--status-addr=9650", "127.0.0.1:9650"),
            ("--transport=pigeon", "auto"),
            ("--concurrent-readers=0", "1..=4096"),
            ("--read-retry-time=0s", "100ms"),
            ("--map-gid=1:5,2:5", "id 5"),
        ] {
            let error = typed(&[option, "/mnt"]).unwrap_err();
            assert!(error.contains(word), "{option}: {error}");
        }
        for (line, word) in [
            (&["status", "--status-addr=nonsense"][..], "127.0.0.1:9650"),
            (&["top", "--status-addr=:9650"], "127.0.0.1:9650"),
            (&["top", "--interval=0s"], "100ms"),
            (&["observe", "--interval=0s"], "100ms"),
            (&["warmup", "--status-addr=9650", "/mnt/x"], "127.0.0.1:9650"),
        ] {
            let typed: Vec<OsString> = ["interceptor"].iter().chain(line).map(OsString::from).collect();
            let error = parse(&typed).err().unwrap();
            assert!(error.to_string().contains(word), "{line:?}: {error}");
        }
    }
}
