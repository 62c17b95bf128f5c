//! How a supervised process ends: as a whole, or with threads that stay stuck in the kernel.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::poll::PollTimeout;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How often a worker is looked at whose first thread is gone.
const DYING_INTERVAL_MS: u16 = 10;

/// How often a worker is looked at that seems to live. The kernel tells of the end of a process,
/// and not of that of its first thread while others are left.
const LIVING_INTERVAL_MS: u16 = 200;

/// How often in a row all threads of a worker must be found waiting in the kernel.
const STUCK_AFTER: u32 = 10;

/// Waits for all children that have ended, workers that were stuck among them. Returns how `worker`
/// has ended, if it has: its exit code, or `None` if a signal ended it.
pub(super) fn reap(worker: Pid) -> io::Result<Option<Option<u8>>> {
    let mut ended = None;
    loop {
        let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, Some(code.try_into().unwrap_or(u8::MAX))),
            Ok(WaitStatus::Signaled(pid, ..)) => (pid, None),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(ended),
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        if pid == worker {
            ended = Some(code);
        }
    }
}

/// Watches for the end of a worker's first thread, and for others that do not end then.
pub(super) struct DyingWorker {
    worker: Pid,
    is_leader_gone: bool,
    seen_stuck: u32,
}

impl DyingWorker {
    pub(super) fn new(worker: Pid) -> Self {
        Self { worker, is_leader_gone: false, seen_stuck: 0 }
    }

    /// How long to wait for other events before [`is_stuck`](Self::is_stuck) is called again.
    pub(super) fn timeout(&self) -> PollTimeout {
        if self.is_leader_gone { DYING_INTERVAL_MS.into() } else { LIVING_INTERVAL_MS.into() }
    }

    /// Whether the first thread has ended, and all others have been waiting in the kernel for some
    /// time, where no signal reaches them. None of them runs code of the program any more.
    pub(super) fn is_stuck(&mut self) -> bool {
        let leader = self.worker.to_string();
        self.is_leader_gone = self.is_leader_gone || matches!(self.state(&leader), Some('Z' | 'X'));
        if !self.is_leader_gone {
            return false;
        }
        let threads = fs::read_dir(format!("/proc/{}/task", self.worker)).into_iter().flatten().flatten();
        let names = threads.filter_map(|thread| thread.file_name().into_string().ok());
        let others = names.filter(|thread| *thread != leader);
        let states: Vec<_> = others.filter_map(|thread| self.state(&thread)).collect();
        let all_wait = !states.is_empty() && states.iter().all(|state| matches!(state, 'D' | 'Z' | 'X'));
        self.seen_stuck = if all_wait { self.seen_stuck + 1 } else { 0 };
        self.seen_stuck >= STUCK_AFTER
    }

    fn state(&self, thread: &str) -> Option<char> {
        let stat = fs::read_to_string(format!("/proc/{}/task/{thread}/stat", self.worker)).ok()?;
        // Behind the name, which is in parentheses and may have any others in it.
        stat.rsplit(')').next()?.trim_start().chars().next()
    }
}
