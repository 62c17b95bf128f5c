//! A FUSE file system that is not ours: `bindfs`, which shows a directory in another place.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::eventually;
use crate::process::Process;

/// Longest wait for the mount to answer, and for its daemon to end.
const WAIT_TIMEOUT: Duration = Duration::from_secs(10);

/// A `bindfs` mount of an empty directory, and its daemon. Both end with this value.
#[derive(Debug)]
pub struct Bindfs {
    process: Process,
    home: TempDir,
}

impl Bindfs {
    /// Mounts, and waits until the mount answers.
    ///
    /// # Errors
    /// When there is no `bindfs`, or the mount does not answer.
    pub fn start() -> anyhow::Result<Self> {
        let home = tempfile::Builder::new().prefix("interceptor-bindfs-").tempdir()?;
        let (source, mounted) = (home.path().join("source"), home.path().join("mnt"));
        fs::create_dir(&source)?;
        fs::create_dir(&mounted)?;
        let below = fs::metadata(&mounted)?.dev();
        // -d: in the foreground, and the log tells the numbers of nodes.
        let mut command = Command::new("bindfs");
        command.arg("-d").arg(&source).arg(&mounted);
        let process = Process::start(command, &home.path().join("log"), WAIT_TIMEOUT, Signal::SIGTERM)?;
        let mut bindfs = Self { process, home };
        eventually("the bindfs mount", WAIT_TIMEOUT, || {
            let running = bindfs.process.ensure_running();
            (running.is_err() || fs::metadata(&mounted).is_ok_and(|found| found.dev() != below)).then_some(())
        })?;
        bindfs.process.ensure_running()?;
        Ok(bindfs)
    }

    /// The mount point.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.home.path().join("mnt")
    }

    /// The directory that is shown.
    #[must_use]
    pub fn source(&self) -> PathBuf {
        self.home.path().join("source")
    }

    /// Sends a signal to the daemon.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// SIGKILL to the daemon. The mount stays, dead, until this value is dropped.
    pub fn kill_daemon(&mut self) {
        self.process.kill();
    }

    /// Puts a file into the directory that is shown, past the mount; gives its path in the mount.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&self, name: &str, content: &[u8]) -> anyhow::Result<PathBuf> {
        fs::write(self.source().join(name), content)?;
        Ok(self.path().join(name))
    }

    /// The kernel's number for a file that has been looked up.
    ///
    /// # Errors
    /// When it has not been.
    pub fn node(&self, path: &Path) -> anyhow::Result<u64> {
        let name = format!("/{}", path.file_name().context("it has a name")?.to_string_lossy());
        let log = fs::read_to_string(self.process.log())?;
        // `LOOKUP /NAME` is answered by `NODEID: N`, with other lines between.
        let mut nodes = HashMap::new();
        let mut asked = None;
        for line in log.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix("LOOKUP ") {
                asked = Some(name);
            } else if let (Some(node), Some(name)) = (line.strip_prefix("NODEID: "), asked) {
                nodes.insert(name, node.parse()?);
            }
        }
        nodes.get(name.as_str()).copied().with_context(|| format!("{name} was not looked up"))
    }
}

impl Drop for Bindfs {
    fn drop(&mut self) {
        self.process.terminate();
        // EINVAL says that nothing is mounted any more.
        let _ = umount2(&self.path(), MntFlags::MNT_DETACH);
    }
}
