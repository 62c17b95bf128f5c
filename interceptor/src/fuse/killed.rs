//! Requests whose caller is being killed are answered at once.
//!
//! A process that waits for a FUSE request cannot die before the request is answered, unless the
//! file system handles FUSE_INTERRUPT; fuser answers that with ENOSYS, after which the kernel
//! sends none. FUSE_INTERRUPT also comes for signals that an application handles, and few
//! applications expect EINTR from reading a file. So a request that waits for servers is answered
//! with EINTR only if its caller is going to die: [`killed`] looks for a fatal signal among the
//! pending signals of the waiting thread, as network file systems in the kernel do
//! (`TASK_KILLABLE`). It first looks after [`POLL_INTERVAL`], so a request that is answered soon
//! costs a timer at most.
//!
//! Not detected is the death of a caller in a process namespace that this process cannot see, and
//! of a thread that waits in the kernel for the request of another thread.

use std::fs;
use std::pin::pin;
use std::process;
use std::sync::LazyLock;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tokio::time::sleep;

/// The time between two looks at the pending signals of a caller.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Signals that by default are ignored or stop the process: SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP,
/// SIGTTIN, SIGTTOU, SIGURG and SIGWINCH.
const NON_FATAL_SIGNALS: u64 = mask(&[
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGURG,
    libc::SIGWINCH,
]);
const SIGKILL_MASK: u64 = mask(&[libc::SIGKILL]);

const fn mask(signals: &[i32]) -> u64 {
    let mut mask = 0;
    let mut i = 0;
    while i < signals.len() {
        mask |= 1 << (signals[i] - 1);
        i += 1;
    }
    mask
}

/// Waits for `work`, but no longer than the thread `caller` lives; `None` if `caller` is killed
/// first.
pub(crate) async fn unless_killed<T>(caller: u32, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    tokio::select! {
        biased;
        result = &mut work => Some(result),
        () = killed(caller) => None,
    }
}

/// Resolves when the thread `caller` is going to die or has died; never, if that cannot be seen.
async fn killed(caller: u32) {
    /// Whether the process numbers in `/proc` are those of this process's namespace.
    static PROC_IS_OURS: LazyLock<bool> = LazyLock::new(|| {
        fs::read_link("/proc/self").is_ok_and(|link| link.as_os_str() == process::id().to_string().as_str())
    });
    if caller == 0 {
        std::future::pending::<()>().await;
    }
    loop {
        sleep(POLL_INTERVAL).await;
        match fs::read_to_string(format!("/proc/{caller}/status")) {
            Ok(status) if *PROC_IS_OURS && is_dying(&status) => return,
            Ok(_) => {}
            // Without ESRCH the thread exists and is only hidden from this process.
            Err(_) if kill(Pid::from_raw(caller as i32), None) == Err(Errno::ESRCH) => return,
            Err(_) => {}
        }
    }
}

/// Whether a thread with this `status` has a fatal signal pending.
fn is_dying(status: &str) -> bool {
    let signals = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim_start_matches(':').trim(), 16).ok()
    };
    let read = || {
        let pending = signals("SigPnd")? | signals("ShdPnd")?;
        let spared = signals("SigBlk")? | signals("SigIgn")? | signals("SigCgt")? | NON_FATAL_SIGNALS;
        Some(pending & (SIGKILL_MASK | !spared) != 0)
    };
    read().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    #[test]
    fn only_fatal_signals_count() {
        let status = |pending: u64, shared: u64, blocked: u64, ignored: u64, caught: u64| {
            format!(
                "Name:\tcat\nSigQ:\t0/9\nSigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\n\
                 SigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\nCapInh:\t0\n"
            )
        };
        let [int, quit, chld] = [libc::SIGINT, libc::SIGQUIT, libc::SIGCHLD].map(|signal| mask(&[signal]));
        assert!(!is_dying(&status(0, 0, 0, 0, 0)));
        assert!(
            is_dying(&status(SIGKILL_MASK, 0, 0, 0, 0))
                && is_dying(&status(0, SIGKILL_MASK, SIGKILL_MASK, 0, SIGKILL_MASK))
        );
        assert!(is_dying(&status(0, quit, 0, 0, 0)));
        assert!(!is_dying(&status(0, int, int, 0, 0)), "blocked");
        assert!(!is_dying(&status(0, int, 0, int, 0)), "ignored");
        assert!(!is_dying(&status(0, int, 0, 0, int)), "handled");
        assert!(!is_dying(&status(0, chld, 0, 0, 0)));
        assert!(!is_dying("Name:\tcat\n"));
    }

    #[tokio::test]
    async fn a_dead_caller_ends_the_wait_and_a_live_one_does_not() {
        let mut gone = process::Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        assert_eq!(unless_killed(gone.id(), pending::<()>()).await, None);
        let work = async {
            sleep(3 * POLL_INTERVAL).await;
            7
        };
        assert_eq!(unless_killed(process::id(), work).await, Some(7));
    }
}
