//! The parent of the process that serves: it uncovers the mount below when that process dies.
//!
//! A FUSE mount outlives its daemon as a path at which everything fails. A process that is killed cannot clean up, so this one waits for
//! its end and does. It does nothing else, and so has little reason to die itself; if it does, the daemon is told to stop, by the kernel. Only when both are
//! killed at once does a dead layer stay; `umount -l` removes it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getppid, setpgid};

use super::lower::FS_TYPE;
use crate::fuse::mountinfo::MountedAt;
use crate::fuse::unmount;

/// Signals that are passed on to the daemon.
const PASSED_ON: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Runs `serve`, which returns an exit code, in a child process and waits for its end. If it is not an orderly one, the layer over `path` is removed. Returns the
/// child's exit code in the parent, and does not return in the child.
///
/// # Safety
/// The process must have no other thread.
///
/// # Errors
/// When there can be no other process.
pub unsafe fn supervise(path: &Path, serve: impl FnOnce() -> u8) -> io::Result<ExitCode> {
    let layer = Layer::before(path);
    let mut awaited: SigSet = PASSED_ON.into_iter().collect();
    awaited.add(Signal::SIGCHLD);
    let mut usual = SigSet::empty();
    // So that none comes between the fork and the wait.
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&awaited), Some(&mut usual))?;
    let parent = Pid::this();
    // SAFETY: the caller promises that there is no other thread, so that the child finds no lock held by one that it does not have.
    match unsafe { fork() }? {
        ForkResult::Child => {
            // What a terminal sends to all of a group comes to the parent alone, which passes it on once.
            let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
            let orphaned = prctl::set_pdeathsig(Signal::SIGTERM).is_err() || getppid() != parent;
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&usual), None)?;
            let code = if orphaned { 1 } else { serve() };
            std::process::exit(code.into())
        }
        ForkResult::Parent { child } => {
            let code = await_end(child, &awaited)?;
            Ok(match code {
                Some(code @ (0..=2)) => ExitCode::from(code),
                ended => {
                    tracing::error!(code = ended, "the process that served is dead");
                    layer.remove();
                    ExitCode::FAILURE
                }
            })
        }
    }
}

/// Passes signals on until the child has ended. Returns its exit code; `None` if a signal ended it.
fn await_end(child: Pid, awaited: &SigSet) -> io::Result<Option<u8>> {
    loop {
        match awaited.wait()? {
            Signal::SIGCHLD => match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(Some(code.try_into().unwrap_or(u8::MAX))),
                Ok(WaitStatus::Signaled(..)) => return Ok(None),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            },
            // It is there until it has been waited for.
            signal => kill(child, signal)?,
        }
    }
}

/// Where a layer will be.
struct Layer {
    path: PathBuf,
    /// The device that was seen there before.
    covered: Option<String>,
}

impl Layer {
    fn before(path: &Path) -> Self {
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
        let covered = MountedAt::topmost(&path).map(|mount| mount.device);
        Self { path, covered }
    }

    /// Takes the layer away, without asking it anything.
    fn remove(&self) {
        let there = MountedAt::topmost(&self.path);
        let ours =
            |mount: &MountedAt| mount.fs_type == FS_TYPE && Some(&mount.device) != self.covered.as_ref();
        if let Some(mount) = there.filter(ours) {
            // What waits for an answer gets an error now, even if something still holds the connection.
            unmount::abort(&mount);
            unmount::detach(&mount);
            tracing::warn!(path = %self.path.display(), "removed the layer; what was mounted before is back");
        }
    }
}
