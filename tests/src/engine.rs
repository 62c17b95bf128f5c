//! An `rdma-engine serve` beside a volume server of a cluster.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::eventually;
use crate::process::{self, Process};

/// Longest wait for an engine to listen, and for it to end by itself.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A running engine; it ends when it is dropped.
#[derive(Debug)]
pub struct Engine {
    process: Process,
    volumes: PathBuf,
    security: PathBuf,
    address: String,
    status: String,
    directory: TempDir,
}

/// The `rdma-engine` program: beside the running test program.
///
/// # Errors
/// When it was not built.
pub fn program() -> anyhow::Result<PathBuf> {
    process::built("rdma-engine")
}

impl Engine {
    /// Starts an engine for the volumes in the directory `volumes`, with the settings in the file
    /// `security`, on free ports. `wrapper` is a command line that execs the engine or ends with
    /// it, or nothing.
    pub(crate) fn start(wrapper: &[String], volumes: PathBuf, security: PathBuf) -> anyhow::Result<Engine> {
        let directory = tempfile::Builder::new().prefix("rdma-engine-").tempdir()?;
        let (process, address, status) =
            launch(wrapper, directory.path(), &volumes, &security, "127.0.0.1:0")?;
        Ok(Engine { process, volumes, security, address, status, directory })
    }

    /// `127.0.0.1:PORT`, where clients connect.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// `http://127.0.0.1:PORT`, where it tells what it does.
    #[must_use]
    pub fn status_url(&self) -> &str {
        &self.status
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for the end; gives whether it was a success.
    ///
    /// # Errors
    /// When it goes on running.
    pub fn wait(&mut self) -> anyhow::Result<bool> {
        Ok(self.process.wait(STOP_TIMEOUT)?.success())
    }

    /// Starts it again on the same address after [`Engine::kill`].
    ///
    /// # Errors
    /// See [`Cluster::start_engine`](crate::Cluster::start_engine).
    pub fn restart(&mut self) -> anyhow::Result<()> {
        let (process, _, status) =
            launch(&[], self.directory.path(), &self.volumes, &self.security, &self.address)?;
        (self.process, self.status) = (process, status);
        Ok(())
    }

    /// The body of a GET of `path` on the status address.
    ///
    /// # Errors
    /// When it is not answered with 200.
    pub fn get(&self, path: &str) -> anyhow::Result<String> {
        let url = format!("{}{path}", self.status);
        Ok(ureq::get(&url).call().context(url)?.body_mut().read_to_string()?)
    }

    /// The value of a sample of `/metrics`, by all that stands before it on its line.
    ///
    /// # Errors
    /// When there is none.
    pub fn metric(&self, sample: &str) -> anyhow::Result<u64> {
        let text = self.get("/metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("no {sample} in\n{text}"))?.parse()?)
    }

    /// Runs `rdma-engine` with these arguments and the cluster's `security.toml`, and returns its
    /// output.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, args: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(program()?);
        command.args(args).current_dir(self.security.parent().context("a file lies in a directory")?);
        command.env("HOME", self.directory.path()).stdin(Stdio::null());
        Ok(command.output()?)
    }
}

fn launch(
    wrapper: &[String],
    directory: &Path,
    volumes: &Path,
    security: &Path,
    listen: &str,
) -> anyhow::Result<(Process, String, String)> {
    let log = directory.join("log");
    let program = program()?;
    let mut words = wrapper.iter().map(OsStr::new).chain([program.as_os_str()]);
    let mut command = Command::new(words.next().context("there is a program at least")?);
    command.args(words).args(["serve", "--listen", listen, "--status-addr", "127.0.0.1:0"]);
    command.arg("--volume-dir").arg(volumes).arg("--security").arg(security);
    // Standard output goes there too.
    fs::write(&log, "")?;
    let mut process = Process::start(command, &log, STOP_TIMEOUT, Signal::SIGKILL)?;
    let mut ended = None;
    let line = |word: &str| {
        let text = fs::read_to_string(&log).ok()?;
        let found =
            text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' ').map(str::to_owned));
        // A line that is still being written has no end.
        found.filter(|_| text.ends_with('\n'))
    };
    let lines = eventually("the address of an engine", READY_TIMEOUT, || {
        if let Err(error) = process.ensure_running() {
            ended = Some(error);
            return Some((String::new(), String::new()));
        }
        Some((line("serving")?, line("status")?))
    });
    if let Some(error) = ended {
        return Err(error);
    }
    let (address, status) = lines.with_context(|| process.log_tail())?;
    Ok((process, address, status))
}
