//! The supervisor: the parent process, which unmounts the overlay when the serving process dies.
//!
//! A FUSE mount outlives its daemon as a path at which every call fails, and a killed process
//! cannot clean up. So the parent waits for its end and does. Other overlays may come to the same
//! path. So the daemon tells the supervisor through a pipe which mount is its own, before programs
//! can reach it. The supervisor does nothing else, and has little reason to die itself. If it
//! does, the kernel signals the daemon to stop. Only if both are killed at once, a dead overlay
//! stays; `umount -l` removes it.

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

/// Signals that are forwarded to the daemon.
const FORWARDED_SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// The daemon's parent-death signal. It is a signal of its own: the kernel may send several, and a
/// second SIGTERM would cut the grace period short.
pub const ORPHANED: Signal = Signal::SIGUSR1;

/// Runs `serve`, which returns an exit code, in a child process and waits for its end. If the
/// child dies, unmounts the overlay that it reported. Returns the child's exit code in the parent,
/// and does not return in the child. Both processes call `begin_logs` first: it may start a
/// thread, which must not exist before the fork.
///
/// # Safety
/// The process must have no other thread.
///
/// # Errors
/// The child process cannot be started or waited for.
pub unsafe fn supervise(
    begin_logs: impl FnOnce(),
    serve: impl FnOnce(MountReporter) -> u8,
) -> io::Result<ExitCode> {
    // Non-blocking: after the child's end the pipe holds all that it reported.
    let (reports, sender) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let reporter = MountReporter(sender.into());
    let mut awaited: SigSet = FORWARDED_SIGNALS.into_iter().collect();
    awaited.add(Signal::SIGCHLD);
    let mut usual = SigSet::empty();
    // Blocked, so that no signal is lost between fork and wait.
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&awaited), Some(&mut usual))?;
    let parent = Pid::this();
    // SAFETY: the caller promises that there is no other thread, so no lock is held by a thread
    // that the child does not have.
    match unsafe { fork() }? {
        ForkResult::Child => {
            // A process group of its own: signals of a terminal reach the parent alone, which
            // forwards them once.
            let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
            let orphaned = prctl::set_pdeathsig(ORPHANED).is_err() || getppid() != parent;
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&usual), None)?;
            begin_logs();
            let code = if orphaned { 1 } else { serve(reporter) };
            output::flush();
            std::process::exit(code.into())
        }
        ForkResult::Parent { child } => {
            drop(reporter);
            begin_logs();
            let code = await_end(child, &awaited)?;
            if code == Some(0) {
                return Ok(ExitCode::SUCCESS);
            }
            let orderly = code.filter(|code| *code <= 2);
            if orderly.is_none() {
                tracing::error!(code, "the process that served is dead");
            }
            if let Some(overlay) = last_reported(reports.into()) {
                remove(&overlay);
            }
            Ok(orderly.map_or(ExitCode::FAILURE, ExitCode::from))
        }
    }
}

/// Forwards signals until the child has ended. Returns its exit code; `None` if a signal ended it.
fn await_end(child: Pid, awaited: &SigSet) -> io::Result<Option<u8>> {
    loop {
        match awaited.wait()? {
            Signal::SIGCHLD => match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(Some(code.try_into().unwrap_or(u8::MAX))),
                Ok(WaitStatus::Signaled(..)) => return Ok(None),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            },
            // Until it has been waited for, the child's pid is not reused.
            signal => kill(child, signal)?,
        }
    }
}

/// The pipe on which the daemon tells the supervisor which mount is its own.
#[derive(Debug)]
pub struct MountReporter(File);

impl MountReporter {
    /// The overlay is about to be mounted, with mount id `id` and device `MAJOR:MINOR`.
    pub(super) fn mounting(&self, id: u64, device: &str) -> io::Result<()> {
        (&self.0).write_all(format!("{id} {device}\n").as_bytes())
    }

    /// The overlay is unmounted: its numbers may be reused.
    pub(super) fn removed(&self) {
        // It fails only after the supervisor's end.
        let _ = (&self.0).write_all(b"\n");
    }
}

/// The mount that the child reported last, if it still exists.
fn last_reported(mut reports: File) -> Option<MountInfo> {
    let mut lines = String::new();
    // An error means that the pipe is empty.
    let _ = reports.read_to_string(&mut lines);
    let (id, device) = lines.lines().last()?.split_once(' ')?;
    MountInfo::with_id(id.parse().ok()?).filter(|mount| mount.device == device && mount.fs_type == FS_TYPE)
}

/// Unmounts the overlay, without a request to its daemon.
fn remove(overlay: &MountInfo) {
    // First abort, so that pending requests fail even if a process still holds the connection.
    unmount::abort(overlay);
    // The daemon may have died between the two steps of `--restart`. The old overlay would be in
    // the way, and its end would uncover a dead one.
    if let Some(old) = overlay.covered_by().filter(|mount| mount.fs_type == FS_TYPE) {
        unmount::detach(&old);
    }
    unmount::detach(overlay);
    tracing::warn!(path = %overlay.path.display(), "removed the layer; what was mounted before is back");
}
