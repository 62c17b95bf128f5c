//! `interceptor warmup`: makes the daemon of a mount load files into its cache, count them there,
//! or evict them.
//!
//! [`walk`] finds the files, on a thread of its own. They are taken in batches: each file is held
//! open until the mount has given a ticket for it, and with the tickets a batch becomes a job of
//! the daemon ([`daemon`]). Two jobs are under way at a time, so that the daemon is never idle.

mod daemon;
mod progress;
mod summary;
mod walk;

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use ::daemon::{address, output};
use anyhow::Context;
use clap::{Args, ValueEnum};

use daemon::{DaemonClient, DaemonRegistry};
use progress::WarmupProgress;
use summary::Summary;
use walk::{WalkItem, WarmupArgument};

use super::signals::{INTERRUPTED_EXIT_CODE, noted_signals};
use crate::cli::mount_address::explain;
use crate::cli::untrusted::plain;
use crate::telemetry::access;
use crate::warmup::wire::{FileProblem, FileResult, JobReport, JobRequest, JobState, WarmupAction};

/// Files in one job. They are all held open for a moment, of which 1024 are usually allowed.
const BATCH_FILES: usize = 256;
/// Jobs at a time.
const MAX_JOBS: usize = 2;
/// How often the progress is asked for, and a Ctrl-C noticed.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Loads files into the cache of their mount ahead of a job, reports what is cached, or evicts it.
#[derive(Debug, Clone, Args)]
pub(super) struct WarmupOptions {
    /// Files and trees of a mount; `-` reads such paths from standard input, one a line
    #[arg(value_name = "PATH", required = true)]
    path: Vec<PathBuf>,

    /// Only say what share is in the cache
    #[arg(long, conflicts_with_all = ["evict", "force"])]
    check: bool,

    /// Give up what is in the cache
    #[arg(long, conflicts_with = "force")]
    evict: bool,

    /// Push out of the cache what is used least if there is no room
    #[arg(long)]
    force: bool,

    /// Where to load them to: the memory of the daemon, or the disk of its --disk-cache, on which
    /// what is used least makes room
    #[arg(long, value_name = "WHERE", default_value = "memory", conflicts_with_all = ["check", "evict", "force"])]
    to: WarmupTarget,

    /// The paths on standard input end with a zero byte instead of a line's end
    #[arg(short = '0', long)]
    null: bool,

    /// Where the daemon's status API listens [default: the mount says it]
    #[arg(long, value_name = "HOST:PORT", value_parser = address::host_port)]
    status_addr: Option<String>,

    /// The file with the token that the daemon was given with the same option
    #[arg(long, value_name = "FILE")]
    status_token_file: Option<PathBuf>,

    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
}

/// Where files are loaded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum WarmupTarget {
    /// The daemon's cache.
    Memory,
    /// Its disk cache.
    Disk,
}

impl WarmupOptions {
    fn action(&self) -> WarmupAction {
        match (self.check, self.evict, self.to) {
            (true, ..) => WarmupAction::Check,
            (_, true, _) => WarmupAction::Evict,
            (.., WarmupTarget::Memory) => WarmupAction::Fetch,
            (.., WarmupTarget::Disk) => WarmupAction::FetchToDisk,
        }
    }

    fn arguments(&self) -> Vec<WarmupArgument> {
        let end = if self.null { 0 } else { b'\n' };
        let argument = |path: &PathBuf| match path.as_os_str().as_encoded_bytes() {
            b"-" => WarmupArgument::List(end),
            _ => WarmupArgument::Path(path.clone()),
        };
        self.path.iter().map(argument).collect()
    }
}

/// Does it, and prints the outcome on standard output.
pub(super) fn run(options: &WarmupOptions) -> anyhow::Result<ExitCode> {
    let interrupted = noted_signals()?;
    let token = options.status_token_file.as_deref().map(access::text).transpose()?;
    let action = options.action();
    let (found, totals) =
        walk::start(options.arguments(), daemon::is_served).context("cannot start a thread")?;
    let verb = match action {
        WarmupAction::Fetch | WarmupAction::FetchToDisk => "warming",
        WarmupAction::Check => "checking",
        WarmupAction::Evict => "giving up",
    };
    let mut run = WarmupRun {
        action,
        force: options.force,
        daemons: DaemonRegistry::new(options.status_addr.clone(), token.as_deref()),
        progress: WarmupProgress::new(verb, totals.clone()),
        summary: Summary::new(action, options.force, &options.path),
        jobs: VecDeque::new(),
        asked_bytes: 0,
        interrupted,
    };
    let outcome = run.all(&found);
    let stopped = outcome.is_err() || run.is_interrupted();
    if stopped {
        run.cancel();
    }
    run.progress.end();
    outcome?;
    if options.json {
        output::print(format_args!("{}\n", run.summary.json()))?;
    } else {
        output::print(run.summary.text(stopped, &totals))?;
    }
    Ok(match (stopped, run.summary.is_good()) {
        (true, _) => ExitCode::from(INTERRUPTED_EXIT_CODE),
        (false, true) => ExitCode::SUCCESS,
        (false, false) => ExitCode::FAILURE,
    })
}

/// A file that was found.
struct FoundFile {
    argument: usize,
    path: PathBuf,
    /// Its inode number, which a file that replaces it does not have.
    node: u64,
    size: u64,
}

/// A job that a daemon has accepted.
struct DaemonJob {
    daemon: Arc<DaemonClient>,
    files: Vec<FoundFile>,
    report: JobReport,
}

/// Files that will be a job, held so that each can be asked for its ticket.
#[derive(Default)]
struct Batch {
    daemon: Option<Arc<DaemonClient>>,
    files: Vec<FoundFile>,
    held: Vec<File>,
}

struct WarmupRun {
    action: WarmupAction,
    force: bool,
    daemons: DaemonRegistry,
    progress: WarmupProgress,
    summary: Summary,
    jobs: VecDeque<DaemonJob>,
    /// Bytes of all files that jobs were begun for.
    asked_bytes: u64,
    interrupted: Arc<AtomicBool>,
}

impl WarmupRun {
    /// Sees to everything that is found, until it is interrupted or the cache is full.
    fn all(&mut self, found: &Receiver<WalkItem>) -> anyhow::Result<()> {
        let mut batch = Batch::default();
        while !self.is_over() {
            match found.recv_timeout(POLL_INTERVAL) {
                Ok(WalkItem::File { argument, path }) => self.take(&mut batch, argument, path)?,
                Ok(WalkItem::Problem { argument, path, reason }) => {
                    self.problem(argument, &path.display().to_string(), &reason);
                }
                // What has been found need not wait for what is slow to come.
                Err(RecvTimeoutError::Timeout) => {
                    self.begin(&mut batch)?;
                    self.look(Duration::ZERO)?;
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.begin(&mut batch)?;
                    break;
                }
            }
        }
        while !self.jobs.is_empty() && !self.is_interrupted() {
            self.look(POLL_INTERVAL)?;
        }
        Ok(())
    }

    /// Adds a file to the batch. The batch becomes a job once it is large enough or the file is of
    /// another mount.
    fn take(&mut self, batch: &mut Batch, argument: usize, path: PathBuf) -> anyhow::Result<()> {
        let Some((daemon, meta, file)) = self.hold(argument, &path) else { return Ok(()) };
        if batch.daemon.as_ref().is_some_and(|other| other.device != daemon.device) {
            self.begin(batch)?;
        }
        batch.daemon = Some(daemon);
        batch.files.push(FoundFile { argument, path, node: meta.ino(), size: meta.len() });
        batch.held.push(file);
        if batch.files.len() >= BATCH_FILES { self.begin(batch) } else { Ok(()) }
    }

    /// A file, held, with the daemon of its mount. If it cannot be used, that has been counted.
    fn hold(&mut self, argument: usize, path: &Path) -> Option<(Arc<DaemonClient>, Metadata, File)> {
        let held = walk::hold(path).and_then(|file| Ok((file.metadata()?, file)));
        let reason = match held {
            Ok((meta, file)) if meta.is_file() => match self.daemons.of(&file) {
                Ok(daemon) => return Some((daemon, meta, file)),
                Err(reason) => reason,
            },
            Err(error) if error.kind() != ErrorKind::NotFound => explain(&error),
            Ok(_) | Err(_) => {
                self.summary.vanished();
                return None;
            }
        };
        self.problem(argument, &path.display().to_string(), &reason);
        None
    }

    /// Makes a job of what is in the portion, once there are not too many.
    fn begin(&mut self, batch: &mut Batch) -> anyhow::Result<()> {
        let Batch { daemon: Some(daemon), files, held } = std::mem::take(batch) else { return Ok(()) };
        while self.jobs.len() >= MAX_JOBS && !self.is_over() {
            self.look(POLL_INTERVAL)?;
        }
        if self.is_over() {
            return Ok(());
        }
        let (files, tickets) = self.prove(files, &held);
        if files.is_empty() {
            return Ok(());
        }
        let report = daemon.begin(&JobRequest {
            action: self.action,
            device: daemon.device.clone(),
            tickets,
            force: self.force,
            held_bytes: if self.force { self.asked_bytes } else { 0 },
        })?;
        // From here on the daemon holds the files.
        drop(held);
        self.asked_bytes += files.iter().map(|file| file.size).sum::<u64>();
        self.jobs.push_back(DaemonJob { daemon, files, report });
        Ok(())
    }

    /// The files that have a ticket, and the tickets, which expire. Counts the other files.
    fn prove(&mut self, files: Vec<FoundFile>, held: &[File]) -> (Vec<FoundFile>, Vec<String>) {
        let mut proved = (Vec::with_capacity(files.len()), Vec::with_capacity(files.len()));
        for (file, held) in files.into_iter().zip(held) {
            match daemon::read_ticket(held) {
                Ok(ticket) => {
                    proved.0.push(file);
                    proved.1.push(ticket);
                }
                Err(_) if has_changed(&file) => self.summary.vanished(),
                Err(error) => self.problem(file.argument, &file.path.display().to_string(), &explain(&error)),
            }
        }
        proved
    }

    /// Asks how the jobs stand, waiting for the oldest, and counts what has ended.
    fn look(&mut self, wait: Duration) -> anyhow::Result<()> {
        for (number, job) in self.jobs.iter_mut().enumerate() {
            let wait = if number == 0 { wait } else { Duration::ZERO };
            job.report = job.daemon.report(&job.report.id, wait)?;
        }
        while self.jobs.front().is_some_and(|job| job.report.state != JobState::Running) {
            let Some(job) = self.jobs.pop_front() else { break };
            anyhow::ensure!(job.report.state == JobState::Done, "the daemon has cancelled the job");
            // If that fails, it is forgotten in half a minute.
            let _ = job.daemon.cancel(&job.report.id);
            self.count(&job);
        }
        self.show();
        Ok(())
    }

    fn count(&mut self, job: &DaemonJob) {
        self.summary.moved(job.report.bytes_moved);
        for (file, result) in job.files.iter().zip(&job.report.results) {
            let reason = match result.problem {
                None | Some(FileProblem::Full) => None,
                Some(FileProblem::Gone | FileProblem::Unreadable) if has_changed(file) => {
                    self.summary.vanished();
                    continue;
                }
                Some(FileProblem::Gone) => Some("the daemon does not know it"),
                Some(FileProblem::TooLarge) => Some("a block of it takes more than a quarter of the cache"),
                Some(FileProblem::Unreadable) => Some("cannot be read; the daemon's log says why"),
                Some(FileProblem::Encrypted) => {
                    Some("is encrypted by the S3 gateway and cannot be read here")
                }
                Some(FileProblem::NoDisk) => {
                    Some("the daemon fills no disk cache; --disk-cache DIR has it do so")
                }
                Some(FileProblem::NotKept) => Some(
                    "the disk cache has no room for it, its disk fails, or it is encrypted in the cluster",
                ),
                Some(FileProblem::NotServed) => Some("has changed lately, or is left to the mount below"),
                Some(FileProblem::NotPermitted) => {
                    Some("only its owner, root and the user of the daemon may have it given up")
                }
            };
            let size = if result.problem == Some(FileProblem::NotServed) { file.size } else { result.size };
            self.summary.file(file.argument, &FileResult { size, ..*result });
            if let Some(reason) = reason {
                self.problem(file.argument, &file.path.display().to_string(), reason);
            }
        }
    }

    fn problem(&mut self, argument: usize, path: &str, reason: &str) {
        if let Some(line) = self.summary.problem(argument, &plain(path), &plain(reason)) {
            self.progress.say(&line);
        }
    }

    fn show(&mut self) {
        let (mut files, mut bytes) = self.summary.seen();
        for job in &self.jobs {
            files += job.report.files_done;
            bytes += job.report.bytes_done;
        }
        self.progress.show(files, bytes);
    }

    /// Has the daemons stop, and counts how far they came.
    fn cancel(&mut self) {
        for job in std::mem::take(&mut self.jobs) {
            let Ok(report) = job.daemon.cancel(&job.report.id) else { continue };
            if report.state == JobState::Done {
                self.count(&DaemonJob { report, ..job });
            } else {
                self.summary.unfinished(report.files_done, report.bytes_done, report.bytes_moved);
            }
        }
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    fn is_over(&self) -> bool {
        self.is_interrupted() || self.summary.is_full()
    }
}

/// Whether the file was deleted or replaced.
fn has_changed(file: &FoundFile) -> bool {
    match std::fs::symlink_metadata(&file.path) {
        Ok(meta) => meta.ino() != file.node,
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: WarmupOptions,
    }

    fn typed(line: &[&str]) -> Result<WarmupOptions, String> {
        let line = Line::try_parse_from([&["warmup"], line].concat());
        line.map(|line| line.options).map_err(|error| error.to_string())
    }

    #[test]
    fn a_dash_is_a_list() {
        let options = typed(&["-0", "/mnt/a", "-"]).unwrap();
        let arguments = options.arguments();
        assert!(
            matches!(&arguments[..], [WarmupArgument::Path(_), WarmupArgument::List(0)]),
            "{arguments:?}"
        );
        assert!(matches!(typed(&["-"]).unwrap().arguments()[..], [WarmupArgument::List(b'\n')]));
    }

    #[test]
    fn one_thing_at_a_time() {
        assert_eq!(typed(&["--check", "/a"]).unwrap().action(), WarmupAction::Check);
        assert_eq!(typed(&["--evict", "/a"]).unwrap().action(), WarmupAction::Evict);
        assert_eq!(typed(&["--force", "/a"]).unwrap().action(), WarmupAction::Fetch);
        assert_eq!(typed(&["--to", "disk", "/a"]).unwrap().action(), WarmupAction::FetchToDisk);
        assert!(typed(&["--to", "disk", "--force", "/a"]).is_err());
        for wrong in
            [&["--check", "--evict", "/a"], &["--check", "--force", "/a"], &["--evict", "--force", "/a"]]
        {
            assert!(typed(wrong).unwrap_err().contains("cannot be used with"), "{wrong:?}");
        }
        assert!(typed(&[]).unwrap_err().contains("PATH"));
    }
}
