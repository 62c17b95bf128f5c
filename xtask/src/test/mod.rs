//! `cargo xtask test`: every tier of tests, one summary.
//!
//! All test programs are built in one go, then run one after the other:
//!
//! 1. the unit tests of the crates;
//! 2. raw FUSE requests for five minutes, during which the tests of the model checker are built;
//!    these, and the examples of the documentation;
//! 3. the end-to-end suites, one at a time, because their servers and mounts would disturb each
//!    other;
//! 4. in the virtual machine, the tests that need an RDMA device: verbs themselves, and mounts
//!    that read by them.
//!
//! Temporary files of the tests lie in a workplace, and orphaned processes become children of this
//! one, so nothing stays behind even when a test is killed.

mod tally;

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use self::tally::Tally;
use crate::cargo::{self, BuiltProgram};
use crate::fuzz;
use crate::interrupt::{self, POLL_INTERVAL};
use crate::process::{self, ProcessIdentity};
use crate::setup;
use crate::vm::{self, GuestSetup, Kernel};
use crate::workplace::Workplace;

/// How long one test program may run.
const PROGRAM_TIMEOUT: Duration = Duration::from_secs(25 * 60);

/// How long both file systems are tried with raw FUSE requests.
const FUZZ_SECONDS: u64 = 300;

/// How long a guest may run.
const GUEST_TIMEOUT: Duration = Duration::from_secs(20 * 60);

/// The tests that need two guests.
const TWO_GUESTS: &str = "two_guests::";
/// The suites that compare bytes, which must hold whatever the cache keeps and wherever bytes come
/// from.
const COMPARISONS: [&str; 5] = ["codecs", "manifests", "replaced", "sizes", "written_by_mount"];

/// The conditions under which those are run again, as environment variables that the mounts of
/// tests heed. The smallest cache possible holds a fraction of what the suites read; one of 48 MiB
/// hardly more, but some of it as resident files.
const CONDITIONS: [&[EnvironmentVariable]; 4] = [
    &[("MOUNT_OPTIONS", "--cache-size 16MiB --no-passthrough")],
    &[("MOUNT_OPTIONS", "--cache-size 48MiB")],
    &[("MOUNT_ENGINES", "local")],
    &[("MOUNT_ENGINES", "tcp"), ("MOUNT_OPTIONS", "--no-passthrough")],
];

/// A variable of the environment, and its value.
type EnvironmentVariable = (&'static str, &'static str);

/// The suites that mount in a guest, where engines are asked over RDMA, each with what of it: a
/// guest is slow and has little memory. Its kernel attaches all eBPF programs, where that of the
/// host may be locked down. One of them attaches to system calls, which every process makes.
const IN_GUESTS: [(&str, &[&str], GuestSetup); 4] = [
    ("hostile", &["verbs::"], ONE_GUEST),
    ("ladder", &["--skip", "what_is_no_engine_does_no_harm"], ONE_GUEST),
    ("sizes", &["--skip", "a_file_of_one_gibibyte"], ONE_GUEST),
    ("trace", &["calls_"], GuestSetup { pair: false, cpus_in_turn: true }),
];

const ONE_GUEST: GuestSetup = GuestSetup { pair: false, cpus_in_turn: false };
const A_PAIR: GuestSetup = GuestSetup { pair: true, cpus_in_turn: false };

/// Options of the test harness. What a machine lacked when the suites were built it may have now,
/// and a guest has: ignored tests run too, and check for themselves whether they can.
const HARNESS_OPTIONS: [&str; 3] = ["--show-output", "--test-threads=2", "--include-ignored"];

/// Longest line that is passed on whole, characters.
const MAX_LINE_CHARS: usize = 1000;

/// What the verb takes.
#[derive(clap::Args)]
pub(crate) struct TestOptions {
    /// Leave out the suites that start servers and mount file systems
    #[arg(long)]
    no_e2e: bool,
    /// Leave out the virtual machine, and with it what needs an RDMA device
    #[arg(long)]
    no_vm: bool,
    /// Run only the tests whose name contains one of these
    filter: Vec<String>,
}

/// The verb.
pub(crate) fn command(options: &TestOptions) -> Result<()> {
    let prepared = setup::ensure()?;
    setup::ensure_for_tests();
    if !options.no_e2e {
        setup::suites::ensure();
        setup::axe::ensure();
    }
    let interceptor = cargo::build_interceptor()?;
    let mut programs = cargo::build_tests()?;
    // Examples and programs are built with the tests that need them, but they are none.
    programs.retain(|built| built.is_test);
    interrupt::check()?;
    process::adopt_orphans()?;

    let mut session = TestSession::begin()?;
    let temporary = session.workplace.make("tmp")?;
    let prepare = |mut command: Command| {
        command
            .env("WEED_BIN", &prepared.weed)
            .env("INTERCEPTOR_BIN", &interceptor)
            .env("TMPDIR", &temporary);
        command
    };
    let (verbs, mut programs): (Vec<_>, Vec<_>) = programs.into_iter().partition(is_verbs_suite);
    if options.no_vm {
        // There it says that it is skipped, or runs if this host has a device.
        programs.extend(verbs.iter().cloned());
    }
    let is_suite = |built: &BuiltProgram| built.package == "tests" && built.kind == "test";
    // The fast tiers first: what they find explains what the suites would show.
    programs.sort_by_key(|built| (is_suite(built), built.package.clone(), built.target.clone()));
    let (suites, fast): (Vec<_>, Vec<_>) = programs.into_iter().partition(is_suite);

    for program in &fast {
        session.run(&name(program), prepare(test_command(program, options)))?;
    }
    let has_fuzzer =
        |built: &&BuiltProgram| (built.package.as_str(), built.kind.as_str()) == ("interceptor", "lib");
    if options.filter.is_empty() {
        // The fuzzer leaves the CPUs time, and its clock stands still while it gets none.
        session.build_in_background(interleavings(&["--no-run"]))?;
        for program in fast.iter().filter(has_fuzzer) {
            let mut command = prepare(test_command(program, options));
            command.arg(fuzz::TESTS);
            fuzz::for_seconds(&mut command, FUZZ_SECONDS);
            session.run("raw FUSE requests", command)?;
        }
        session.wait_for_build()?;
        let command = interleavings(&["--", "--show-output", "cache::interleavings"]);
        session.run("interleavings of the cache", prepare(command))?;
    }
    let mut examples = cargo::cargo();
    examples.args(["test", "--doc", "--workspace", "--release", "--quiet", "--", "--show-output"]);
    examples.args(&options.filter);
    session.run("examples in the documentation", prepare(examples))?;
    for program in suites.iter().filter(|_| !options.no_e2e) {
        session.run(&name(program), prepare(test_command(program, options)))?;
    }
    for variables in CONDITIONS {
        let condition: Vec<String> =
            variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let condition = condition.join(", ");
        let is_compared = |suite: &&BuiltProgram| COMPARISONS.contains(&suite.target.as_str());
        let wanted = options.filter.is_empty() && !options.no_e2e;
        for suite in suites.iter().filter(|_| wanted).filter(is_compared) {
            let mut command = prepare(test_command(suite, options));
            command.envs(variables.iter().copied());
            session.run(&format!("{} with {condition}", name(suite)), command)?;
        }
    }
    if !options.no_vm {
        let mut programs = verbs;
        programs.extend(suites.into_iter().filter(|_| !options.no_e2e));
        let weed = &prepared.weed;
        session.run_in_guests(&programs, weed, Kernel::default(), &options.filter)?;
    }

    if options.no_e2e {
        println!("The end-to-end suites were left out (--no-e2e).");
    }
    session.conclude()
}

/// `cargo xtask vm test`: only what runs in the virtual machine.
pub(crate) fn in_guests(kernel: Kernel) -> Result<()> {
    let prepared = setup::ensure()?;
    cargo::build_interceptor()?;
    let programs: Vec<BuiltProgram> =
        cargo::build_tests()?.into_iter().filter(|built| built.is_test).collect();
    interrupt::check()?;
    process::adopt_orphans()?;
    let mut session = TestSession::begin()?;
    session.run_in_guests(&programs, &prepared.weed, kernel, &[])?;
    session.conclude()
}

/// Builds and runs the tests of the model checker, which takes the place of the locks, so that they
/// are a build of their own.
fn interleavings(arguments: &[&str]) -> Command {
    let mut command = cargo::cargo();
    command.args(["test", "--release", "--quiet", "--package", "interceptor", "--features", "shuttle"]);
    command.arg("--lib").args(arguments);
    command
}

/// Test programs that run one after the other, and what they have shown so far.
struct TestSession {
    workplace: Workplace,
    total: Tally,
    background: Option<Child>,
}

fn is_verbs_suite(built: &BuiltProgram) -> bool {
    (built.package.as_str(), built.kind.as_str(), built.target.as_str()) == ("rdma-engine", "test", "verbs")
}

fn name(program: &BuiltProgram) -> String {
    format!("{} {} {}", program.package, program.kind, program.target)
}

fn test_command(program: &BuiltProgram, options: &TestOptions) -> Command {
    let mut command = Command::new(&program.program);
    command.current_dir(&program.directory).env("CARGO_MANIFEST_DIR", &program.directory);
    command.args(HARNESS_OPTIONS).args(&options.filter);
    command
}

impl TestSession {
    fn begin() -> Result<Self> {
        Ok(Self { workplace: Workplace::open("test")?, total: Tally::default(), background: None })
    }

    /// Runs one test program to its end and adds its results to `total`.
    fn run(&mut self, name: &str, mut command: Command) -> Result<()> {
        println!("\n== {name}");
        let started = Instant::now();
        let (output, input) = std::io::pipe()?;
        command.stdout(input.try_clone()?).stderr(input).stdin(std::process::Stdio::null());
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        // Holds the writing ends, without which the reader would never see the end.
        drop(command);
        self.workplace.owns(child.id())?;

        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        let mut tally = Tally::default();
        let mut ended = None;
        loop {
            match lines.recv_timeout(POLL_INTERVAL) {
                Ok(line) => {
                    if tally.line(&line) {
                        println!("{}", shortened(&line));
                    }
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => {}
                // A daemon that a test left behind may hold the pipe open; the end of the program
                // counts.
                Err(RecvTimeoutError::Timeout) if ended.is_none() => {}
                Err(RecvTimeoutError::Timeout) => break,
            }
            if ended.is_some() {
                break;
            }
            if interrupt::requested() || started.elapsed() > PROGRAM_TIMEOUT {
                end(&mut child)?;
                process::end_orphans(&self.background());
                interrupt::check()?;
            }
            ended = child.try_wait()?;
            thread::sleep(if ended.is_some() { Duration::ZERO } else { POLL_INTERVAL });
        }
        println!("{name}: {} s", started.elapsed().as_secs());
        let left = process::end_orphans(&self.background());
        if left > 0 {
            println!("{left} processes were left behind by {name} and ended");
        }
        let status = ended.context("the test program was not waited for")?;
        if started.elapsed() > PROGRAM_TIMEOUT {
            println!("{name} was ended after {} s", PROGRAM_TIMEOUT.as_secs());
        }
        self.total.add(name, tally, status.success());
        Ok(())
    }

    /// Has Cargo build while programs run.
    fn build_in_background(&mut self, mut command: Command) -> Result<()> {
        let child = command.spawn().context("cannot start cargo")?;
        self.workplace.owns(child.id())?;
        self.background = Some(child);
        Ok(())
    }

    /// Waits for what is built in the background. If it cannot be built, that is found when it is
    /// to run.
    fn wait_for_build(&mut self) -> Result<()> {
        self.background.take().map_or(Ok(()), |mut child| process::wait(&mut child).map(drop))
    }

    /// The processes that no test program has left behind.
    fn background(&self) -> Vec<i32> {
        self.background.iter().map(|child| child.id() as i32).collect()
    }

    /// Runs the tests that need an RDMA device: the suite of verbs in one guest, its tests of a
    /// network between hosts in two, and mounts that read from engines.
    fn run_in_guests(
        &mut self,
        programs: &[BuiltProgram],
        weed: &Path,
        kernel: Kernel,
        filter: &[String],
    ) -> Result<()> {
        if let Err(error) = vm::prepare(kernel) {
            interrupt::check()?;
            let skip = format!("skipped: the tests of verbs: there is no virtual machine: {error:#}");
            println!("\n{skip}");
            self.total.line(&skip);
            return Ok(());
        }
        let mut run_one = |program: &BuiltProgram, setup: GuestSetup, engines: bool, choice: &[&str]| {
            let mut command = vm::command_line(kernel, setup, GUEST_TIMEOUT)?;
            if engines {
                // A guest has no environment but what its command line gives it.
                command.args(["env", "MOUNT_ENGINES=verbs"]);
                command.arg([OsStr::new("WEED_BIN="), weed.as_os_str()].join(OsStr::new("")));
            }
            command.arg(&program.program).args(HARNESS_OPTIONS).args(choice).args(filter);
            command.current_dir(&program.directory);
            let guests = if setup.pair { "two guests" } else { "a guest" };
            self.run(&format!("{} in {guests} with kernel {kernel}", name(program)), command)
        };
        for program in programs.iter().filter(|built| is_verbs_suite(built)) {
            run_one(program, ONE_GUEST, false, &["--skip", TWO_GUESTS])?;
            // A filter of the user's narrows the first; of the second there are few.
            if filter.is_empty() {
                run_one(program, A_PAIR, false, &[TWO_GUESTS])?;
            }
        }
        for (suite, choice, setup) in IN_GUESTS {
            let is_it =
                |built: &&BuiltProgram| (built.package.as_str(), built.target.as_str()) == ("tests", suite);
            for program in programs.iter().filter(is_it).filter(|_| filter.is_empty()) {
                run_one(program, setup, true, choice)?;
            }
        }
        Ok(())
    }

    /// Cleans up and prints what there was.
    fn conclude(self) -> Result<()> {
        self.workplace.close()?;
        print!("{}", self.total.report());
        println!("{}", self.total.closing_line());
        ensure!(self.total.succeeded(), "the tests failed");
        Ok(())
    }
}

/// The line, or its beginning if it is one of those that print a whole buffer.
fn shortened(line: &str) -> Cow<'_, str> {
    match line.char_indices().nth(MAX_LINE_CHARS) {
        Some((cut, _)) => format!("{} ... ({} bytes more)", &line[..cut], line.len() - cut).into(),
        None => line.into(),
    }
}

fn end(child: &mut Child) -> Result<()> {
    match ProcessIdentity::of(child.id() as i32) {
        Some(identity) => identity.end(Duration::from_secs(5)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_buffer_is_cut() {
        assert_eq!(shortened("short"), "short");
        let long = "ü".repeat(MAX_LINE_CHARS + 3);
        let cut = shortened(&long);
        assert!(cut.starts_with("üü") && cut.ends_with("ü ... (6 bytes more)"));
        assert_eq!(shortened(&long[..2 * MAX_LINE_CHARS]), &long[..2 * MAX_LINE_CHARS]);
    }
}
