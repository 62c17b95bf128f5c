//! Requests whose caller was killed.
//!
//! A process that waits for a FUSE request cannot die before the request is answered, unless the file system listens to
//! FUSE_INTERRUPT; fuser answers that with ENOSYS, after which the kernel sends none. FUSE_INTERRUPT also comes for signals
//! that an application handles, and EINTR from reading a file is more than most of them expect. So what waits for servers is
//! answered with EINTR only if its caller is going to die: [`killed`] looks for a fatal signal among those that are pending for the
//! thread that waits, as network file systems in the kernel do (`TASK_KILLABLE`). The first look is after
//! [`POLL_INTERVAL`], so that requests which are answered soon pay for a timer at most.
//!
//! Not found out is the death of a caller in a process namespace that this one cannot see, and of a thread that waits in the
//! kernel for another one's request.

use std::fs;
use std::pin::pin;
use std::process;
use std::sync::LazyLock;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tokio::time::sleep;

/// From one look at a caller to the next.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Signals that do nothing or stop the process unless they are handled: SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU,
/// SIGURG and SIGWINCH.
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

/// Waits for `work`, but no longer than the thread `caller` lives: `None` if that is killed first.
pub(crate) async fn unless_killed<T>(caller: u32, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    tokio::select! {
        biased;
        result = &mut work => Some(result),
        () = killed(caller) => None,
    }
}

/// Waits until the thread `caller` is going to die, or has died; for ever, if that cannot be seen.
async fn killed(caller: u32) {
    /// Whether `/proc` shows the processes by the numbers that the kernel gives this one.
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
            // It may only be hidden from this process.
            Err(_) if kill(Pid::from_raw(caller as i32), None) == Err(Errno::ESRCH) => return,
            Err(_) => {}
        }
    }
}

/// Whether a thread with this `status` has a signal pending that will kill it.
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
    fn only_signals_that_kill_count() {
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
    async fn who_is_gone_is_not_waited_for_and_who_lives_is() {
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
