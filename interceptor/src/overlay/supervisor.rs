//! The parent of the process that serves: it uncovers the mount below when that process dies.
//!
//! A FUSE mount outlives its daemon as a path at which everything fails. A process that is killed cannot clean up, so this one waits for
//! its end and does. Other layers may come to the same path, so the daemon tells by a pipe which mount is its own, before that can be seen. It does nothing else, and so has little reason to die itself; if it does, the daemon is told to stop, by the kernel. Only when both are
//! killed at once does a dead layer stay; `umount -l` removes it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use daemon::output;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getppid, pipe2, setpgid};

use super::FS_TYPE;
use crate::fuse::mountinfo::MountInfo;
use crate::fuse::unmount;

/// Signals that are passed on to the daemon.
const PASSED_ON: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// What the daemon gets when its supervisor has ended: a signal of its own, as the kernel may send
/// several, of which the second SIGTERM would cut short what the first began.
pub const ORPHANED: Signal = Signal::SIGUSR1;

/// Runs `serve`, which returns an exit code, in a child process and waits for its end. If it is not an orderly one, the
/// layer that was reported is removed. Returns the child's exit code in the parent, and does not return in the child.
/// Each of the two calls `begin_logs` first, which may start a thread: there must be none before there are two processes.
///
/// # Safety
/// The process must have no other thread.
///
/// # Errors
/// When there can be no other process.
pub unsafe fn supervise(begin_logs: impl FnOnce(), serve: impl FnOnce(Report) -> u8) -> io::Result<ExitCode> {
    // What is left in it after the child's end is all there is: nothing is waited for.
    let (reports, report) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let report = Report(report.into());
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
            let orphaned = prctl::set_pdeathsig(ORPHANED).is_err() || getppid() != parent;
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&usual), None)?;
            begin_logs();
            let code = if orphaned { 1 } else { serve(report) };
            output::flush();
            std::process::exit(code.into())
        }
        ForkResult::Parent { child } => {
            drop(report);
            begin_logs();
            let code = await_end(child, &awaited)?;
            if code == Some(0) {
                return Ok(ExitCode::SUCCESS);
            }
            let orderly = code.filter(|code| *code <= 2);
            if orderly.is_none() {
                tracing::error!(code, "the process that served is dead");
            }
            if let Some(layer) = reported(reports.into()) {
                remove(&layer);
            }
            Ok(orderly.map_or(ExitCode::FAILURE, ExitCode::from))
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

/// Tells the supervisor which mount is the layer.
#[derive(Debug)]
pub struct Report(File);

impl Report {
    /// The layer is about to get its place, as the mount with the number `id` and of the device `MAJOR:MINOR`.
    pub(super) fn placing(&self, id: u64, device: &str) -> io::Result<()> {
        (&self.0).write_all(format!("{id} {device}\n").as_bytes())
    }

    /// The layer is at its place no more: its numbers may become another's.
    pub(super) fn removed(&self) {
        // Who does not read any more has no use for it.
        let _ = (&self.0).write_all(b"\n");
    }
}

/// The layer of the child that has ended, if it is still there by what was told last.
fn reported(mut reports: File) -> Option<MountInfo> {
    let mut told = String::new();
    // That more could come is no news.
    let _ = reports.read_to_string(&mut told);
    let (id, device) = told.lines().last()?.split_once(' ')?;
    MountInfo::with_id(id.parse().ok()?).filter(|mount| mount.device == device && mount.fs_type == FS_TYPE)
}

/// Takes the layer away, without asking it anything.
fn remove(layer: &MountInfo) {
    // What waits for an answer gets an error now, even if something still holds the connection.
    unmount::abort(layer);
    // It died between the two steps of taking over from another: that would be in the way, and uncover a dead layer at its own end.
    if let Some(old) = layer.covered_by().filter(|mount| mount.fs_type == FS_TYPE) {
        unmount::detach(&old);
    }
    unmount::detach(layer);
    tracing::warn!(path = %layer.path.display(), "removed the layer; what was mounted before is back");
}
