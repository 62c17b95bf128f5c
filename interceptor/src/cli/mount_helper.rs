//! `mount.interceptor`: what mount(8) runs for `mount -t interceptor SOURCE DIR -o OPTIONS` and for
//! lines of fstab. The program under another name.
//!
//! The options become those of `interceptor mount` ([`foreign_options`]), and everything that needs
//! no other host is checked. Then the process forks. The child serves, as `interceptor mount` does;
//! its log goes to the journal. The parent waits for one message through a pipe, that the mount
//! answers or why there is none, and ends with the exit code that mount(8) passes on. Until the
//! mount answers the child stays in the parent's process group: behind a mount point of autofs
//! (`x-systemd.automount`) the kernel lets only that group pass, and Ctrl-C reaches both.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use clap::CommandFactory;
use daemon::{logs, output};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork, getppid, pipe2, setsid};

use super::command_line::parse;
use super::foreign_options::{self, TypedOption};
use super::mount::{self, MountPlan};
use super::{Cli, CommandFailure, mount_options, mount_plan};

/// The names under which this program is a helper of mount(8).
pub(super) const NAMES: [&str; 2] = ["mount.interceptor", "mount.fuse.interceptor"];

/// Exit codes of mount(8).
const USAGE_EXIT_CODE: u8 = 1;
const FAILURE_EXIT_CODE: u8 = 32;

/// How long the parent waits for the mount. What a mount waits for has shorter deadlines.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(90);

/// What the child sends when the mount answers. Anything else is an error text.
const MOUNTED: &str = "mounted\n";

/// The longest error text.
const MAX_MESSAGE_BYTES: u64 = 64 << 10;

/// Where programs of the host connect their standard error with the journal.
const JOURNAL: &str = "/run/systemd/journal/stdout";

const USAGE: &str = "\
usage: mount.interceptor SOURCE DIR [-fnsv] [-o OPTION[,OPTION]…]

SOURCE is HOST:PORT[,HOST:PORT]…:/PATH, filers of one cluster and the directory to mount.
OPTIONs are those of `interceptor mount` without the dashes, of mount(8), and of `weed mount`;
log-file=FILE has the log appended to a file. Usually run by mount(8):
  mount -t interceptor filer:8888:/buckets/train /mnt/train -o cache-size=8GiB";

/// The command line of mount(8) for a helper.
#[derive(Debug, Default, PartialEq, Eq)]
struct HelperArguments {
    source: OsString,
    directory: PathBuf,
    options: String,
    /// `-f`: check everything, and mount nothing.
    is_fake: bool,
    /// `-s`: drop options that are unknown.
    is_sloppy: bool,
    /// `-v`
    is_verbose: bool,
}

/// Mounts, and returns when the mount answers or cannot be had. Does not return in the child, which
/// serves.
///
/// # Safety
/// The process must have no other thread.
pub(super) unsafe fn run(arguments: &[OsString]) -> ExitCode {
    let name = arguments.first().map_or(NAMES[0].into(), |name| Path::new(name).display().to_string());
    let name = name.rsplit('/').next().unwrap_or(&name).to_owned();
    let is_help = |argument: &OsString| argument == "-h" || argument == "--help";
    if arguments.len() < 2 || arguments.iter().any(is_help) {
        return match output::print(format_args!("{USAGE}\n")) {
            Ok(()) if arguments.len() > 1 => ExitCode::SUCCESS,
            _ => ExitCode::from(USAGE_EXIT_CODE),
        };
    }
    let prepared = parse_arguments(&arguments[1..]).and_then(|parsed| Ok((prepare(&parsed)?, parsed)));
    let (prepared, parsed) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            output::note(format_args!("{name}: {error:#}"));
            return ExitCode::from(USAGE_EXIT_CODE);
        }
    };
    if parsed.is_fake {
        return ExitCode::SUCCESS;
    }
    let ignored = prepared.ignored.clone();
    // SAFETY: the caller promises that there is no other thread, and nothing since has started one.
    let mounted = unsafe { serve_in_background(prepared) };
    for option in ignored.iter().filter(|_| parsed.is_verbose) {
        output::note(format_args!("{name}: option {option:?} means nothing to a mount that is only read"));
    }
    match mounted {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(format_args!("{name}: {error:#}"));
            ExitCode::from(FAILURE_EXIT_CODE)
        }
    }
}

/// What the child needs to serve.
struct PreparedMount {
    plan: MountPlan,
    filter: tracing_subscriber::EnvFilter,
    log_file: Option<PathBuf>,
    /// Options that mean nothing here.
    ignored: Vec<String>,
}

fn parse_arguments(arguments: &[OsString]) -> anyhow::Result<HelperArguments> {
    let (mut parsed, mut paths) = (HelperArguments::default(), Vec::new());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        // libmount has values in arguments of their own, people write them behind the letter, too.
        let text = argument.to_str().filter(|text| text.starts_with('-') && text.len() > 1);
        let Some(text) = text else {
            paths.push(argument.clone());
            continue;
        };
        let letters = &text[1..];
        match letters.find(['o', 't', 'N']).map(|at| letters.split_at(at)) {
            Some((flags, valued)) => {
                parsed.take_flags(flags)?;
                let (letter, value) = valued.split_at(1);
                let next =
                    if value.is_empty() { rest.next().and_then(|next| next.to_str()) } else { Some(value) };
                parsed.take_value(letter, next.with_context(|| format!("-{letter} needs a value"))?)?;
            }
            None => parsed.take_flags(letters)?,
        }
    }
    let [source, directory] = <[OsString; 2]>::try_from(paths)
        .map_err(|paths| anyhow!("expected SOURCE and DIR, got {} arguments\n{USAGE}", paths.len()))?;
    Ok(HelperArguments { source, directory: directory.into(), ..parsed })
}

impl HelperArguments {
    fn take_flags(&mut self, letters: &str) -> anyhow::Result<()> {
        for letter in letters.chars() {
            match letter {
                'f' => self.is_fake = true,
                's' => self.is_sloppy = true,
                'v' => self.is_verbose = true,
                // There is no mtab to leave alone, and every mount is read-only.
                'n' | 'r' | 'w' => {}
                _ => bail!("unknown option -{letter}\n{USAGE}"),
            }
        }
        Ok(())
    }

    fn take_value(&mut self, letter: &str, value: &str) -> anyhow::Result<()> {
        match letter {
            "o" if self.options.is_empty() => value.clone_into(&mut self.options),
            "o" => self.options = format!("{},{value}", self.options),
            "N" => bail!("-N {value}: run mount(8) in that name space instead (nsenter --mount={value})"),
            // The type, of which there is one.
            _ => {}
        }
        Ok(())
    }
}

/// Translates the options and checks them, as far as this host alone allows it.
fn prepare(parsed: &HelperArguments) -> anyhow::Result<PreparedMount> {
    let mut cli = Cli::command();
    // Until it is built, a command does not know the names of its options.
    cli.build();
    let command = cli.find_subcommand("mount").context("there is no command to mount with")?;
    let mut options = foreign_options::split_list(&parsed.options)?;
    let log_file = take_option(&mut options, "log-file").map(PathBuf::from);
    let translated = foreign_options::translate(&options, command, parsed.is_sloppy)?;

    let mut typed: Vec<OsString> = vec!["interceptor".into(), "mount".into()];
    if let Some((filers, path)) = foreign_options::split_source(&parsed.source) {
        typed.push(format!("--filer={filers}").into());
        typed.extend(path.map(|path| format!("--filer-path={path}").into()));
    } else if !has_any(&options, &["filer", "config"]) {
        bail!(
            "{:?} has no address of a filer: write HOST:PORT:/PATH, such as filer:8888:/buckets",
            parsed.source
        );
    }
    // `mount -a` knows by the source that a line of fstab is mounted.
    if !has_any(&options, &["fsname", "volumeName"]) {
        typed.push([OsStr::new("--fsname="), &parsed.source].into_iter().collect());
    }
    typed.extend(translated.arguments.into_iter().map(OsString::from));
    // The daemon stays in no directory.
    let directory = std::path::absolute(&parsed.directory).context("DIR")?;
    typed.extend(["--".into(), directory.into_os_string()]);

    let (_, line) = parse(&typed).map_err(|error| anyhow!("{}", without_hints(&error.to_string())))?;
    let (mut mount, in_effect) = mount_options(&line).map_err(reason)?;
    mount.make_paths_absolute().context("cannot find the working directory")?;
    let (plan, filter) = mount_plan(mount, in_effect, typed, &line.settings).map_err(reason)?;
    Ok(PreparedMount { plan, filter, log_file, ignored: translated.ignored })
}

fn take_option(options: &mut Vec<TypedOption>, name: &str) -> Option<String> {
    let at = options.iter().position(|option| option.name.replace('_', "-") == name)?;
    options.remove(at).value
}

fn has_any(options: &[TypedOption], names: &[&str]) -> bool {
    options.iter().any(|option| names.contains(&option.name.as_str()))
}

fn reason(failure: CommandFailure) -> anyhow::Error {
    match failure {
        CommandFailure::Usage(text) => anyhow!("{}", without_hints(&text)),
        CommandFailure::Failed(error) => error,
    }
}

/// The first line of what the parser of the command line says: the others are about that.
fn without_hints(text: &str) -> String {
    let first = text.lines().next().unwrap_or_default();
    first.strip_prefix("error: ").unwrap_or(first).to_owned()
}

/// Forks. The child serves and does not return; the parent returns when the mount answers.
///
/// # Safety
/// The process must have no other thread.
unsafe fn serve_in_background(prepared: PreparedMount) -> anyhow::Result<()> {
    let log = open_log(prepared.log_file.as_deref())?;
    let (reports, sender) = pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe")?;
    let parent = Pid::this();
    // SAFETY: the caller promises that there is no other thread, so no lock is held by a thread
    // that the child does not have.
    match unsafe { fork() }.context("cannot start a process")? {
        ForkResult::Parent { child } => {
            drop(sender);
            await_mount(reports, child)
        }
        ForkResult::Child => {
            drop(reports);
            // SAFETY: as for the fork.
            let code = unsafe { serve(prepared, &log, File::from(sender), parent) };
            output::flush();
            std::process::exit(code)
        }
    }
}

/// The child: serves until the mount is gone. Returns the exit code.
///
/// # Safety
/// The process must have no other thread.
unsafe fn serve(mut prepared: PreparedMount, log: &File, sender: File, parent: Pid) -> i32 {
    let begin = || -> anyhow::Result<()> {
        // If the parent ends before the mount answers, the mount is not wanted any more.
        prctl::set_pdeathsig(Signal::SIGTERM)?;
        anyhow::ensure!(getppid() == parent, "the process that mounts has ended");
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        dup2_stderr(log)?;
        Ok(std::env::set_current_dir("/")?)
    };
    let fail = |error: &anyhow::Error| {
        tracing::error!("{error:#}");
        // After the mount has answered, the other end is gone.
        let _ = (&sender).write_all(format!("{error:#}").as_bytes());
    };
    let outcome = begin().context("cannot begin to serve").and_then(|()| {
        logs::start_without_thread(prepared.plan.log_format(), prepared.filter);
        prepared.plan.load_secrets()?;
        // From now on both processes are independent of the one that mounts.
        let on_mounted = || -> anyhow::Result<()> { Ok(setsid().map(drop)?) };
        let mut on_serving = || {
            prctl::set_pdeathsig(None)?;
            setsid()?;
            (&sender).write_all(MOUNTED.as_bytes())
        };
        let plan = prepared.plan.in_background(Box::new(on_mounted));
        // SAFETY: the caller promises what is asked for, and nothing since has started a thread.
        unsafe { mount::supervised(plan, false, &mut on_serving, fail) }
    });
    match outcome {
        Ok(code) if code == ExitCode::SUCCESS => 0,
        Ok(_) => 1,
        Err(error) => {
            fail(&error);
            1
        }
    }
}

/// The parent: waits for the child's message.
fn await_mount(reports: OwnedFd, child: Pid) -> anyhow::Result<()> {
    let deadline = Instant::now() + MOUNT_TIMEOUT;
    let mut message = Vec::new();
    let mut reports = File::from(reports).take(MAX_MESSAGE_BYTES);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let readable = PollFd::new(reports.get_ref().as_fd(), PollFlags::POLLIN);
        match poll(&mut [readable], timeout) {
            Ok(0) => {
                // It unmounts, if it has mounted meanwhile.
                let _ = kill(child, Signal::SIGTERM);
                bail!("the mount does not answer within {} s", MOUNT_TIMEOUT.as_secs());
            }
            Err(nix::errno::Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
            Ok(_) => {}
        }
        let mut piece = [0; 4096];
        let len = reports.read(&mut piece)?;
        message.extend_from_slice(&piece[..len]);
        if message == MOUNTED.as_bytes() {
            return Ok(());
        }
        if len == 0 {
            let text = String::from_utf8_lossy(&message);
            let silent =
                "the daemon ended before the mount answered; its log says why (journalctl -t interceptor)";
            bail!("{}", if text.is_empty() { silent } else { text.trim_end() });
        }
    }
}

/// Where the daemon's log goes: the file, else the journal, else nowhere.
fn open_log(file: Option<&Path>) -> anyhow::Result<File> {
    if let Some(path) = file {
        let opened = OpenOptions::new().append(true).create(true).open(path);
        return opened.with_context(|| format!("log-file={}", path.display()));
    }
    match journal() {
        Ok(stream) => Ok(OwnedFd::from(stream).into()),
        Err(_) => fs::File::options().write(true).open("/dev/null").context("/dev/null"),
    }
}

/// A stream to the journal, as systemd gives one to services: a header, then lines.
fn journal() -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(JOURNAL)?;
    // Identifier, unit, priority of lines without one, whether lines have one, and that copies go
    // neither to syslog, nor to the kernel's log, nor to the console.
    stream.write_all(b"interceptor\n\n6\n0\n0\n0\n0\n")?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &[&str]) -> anyhow::Result<HelperArguments> {
        parse_arguments(&line.iter().map(OsString::from).collect::<Vec<_>>())
    }

    fn refused(options: &str) -> String {
        let line = ["a:1:/x", "/mnt/x", "-o", options];
        prepare(&parsed(&line).unwrap()).err().map_or("taken".into(), |error| format!("{error:#}"))
    }

    #[test]
    fn the_arguments_of_libmount_are_taken() {
        let expected = HelperArguments {
            source: "a:1:/x".into(),
            directory: "/mnt/x".into(),
            options: "rw,cache-size=1GiB,nosuid".into(),
            is_sloppy: true,
            is_verbose: true,
            ..HelperArguments::default()
        };
        let libmount =
            ["a:1:/x", "/mnt/x", "-s", "-v", "-o", "rw,cache-size=1GiB", "-o", "nosuid", "-t", "fuse.x"];
        assert_eq!(parsed(&libmount).unwrap(), expected);
        assert_eq!(parsed(&["-svorw,cache-size=1GiB,nosuid", "a:1:/x", "/mnt/x"]).unwrap(), expected);
        assert!(parsed(&["a:1:/x"]).unwrap_err().to_string().contains("usage:"));
        assert!(parsed(&["a:1:/x", "/mnt", "-q"]).unwrap_err().to_string().contains("-q"));
        assert!(parsed(&["a:1:/x", "/mnt", "-o"]).unwrap_err().to_string().contains("-o needs a value"));
        assert!(parsed(&["a:1:/x", "/mnt", "-N", "/x"]).unwrap_err().to_string().contains("nsenter"));
    }

    #[test]
    fn what_needs_no_other_host_is_checked() {
        for (options, word) in [
            ("cache-size=16MiB,ro,_netdev,nofail,x-systemd.automount,log-file=/x", "taken"),
            ("cacheCapacityMB=64,allowOthers", "taken"),
            ("cache-size=big", "512MiB"),
            ("cache-size=1MiB", "too small"),
            ("cachesize=1GiB", "\"cache-size\""),
            ("filer=b:1", "--filer"),
            ("remount", "unmount it"),
            ("config=/nonexistent/x.toml", "/nonexistent/x.toml"),
            ("log-level=loud", "loud"),
        ] {
            let said = refused(options);
            assert!(said.contains(word) && !said.contains('\n'), "{options}: {said}");
        }
        let without_filer = parsed(&["none", "/mnt"]).unwrap();
        assert!(prepare(&without_filer).err().unwrap().to_string().contains("HOST:PORT:/PATH"));
        let elsewhere = parsed(&["fuse", "/mnt", "-o", "filer=a:1,filer.path=/x"]).unwrap();
        assert!(prepare(&elsewhere).is_ok());
    }

    #[test]
    fn the_parent_passes_on_what_the_child_says() {
        let said = |message: &str| {
            let (reports, sender) = pipe2(OFlag::O_CLOEXEC).unwrap();
            File::from(sender).write_all(message.as_bytes()).unwrap();
            await_mount(reports, Pid::this()).map_err(|error| error.to_string())
        };
        assert_eq!(said(MOUNTED), Ok(()));
        assert_eq!(said("no filer answers"), Err("no filer answers".into()));
        assert!(said("").unwrap_err().contains("journalctl"));
    }
}
