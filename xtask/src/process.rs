//! Programs that are run to their end, and processes that are recognised again later.

use std::fs;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::time::ClockId;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::interrupt::{self, POLL_INTERVAL};

/// What tells one process from every other of the same boot: its id together with its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessIdentity {
    pub(crate) pid: i32,
    /// Clock ticks after boot, field 22 of `/proc/PID/stat`.
    pub(crate) start_ticks: u64,
}

impl ProcessIdentity {
    /// The process that has `pid` now; `None` if there is none, or only a zombie.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = ProcessStat::read(pid)?;
        (stat.state != 'Z').then_some(Self { pid, start_ticks: stat.start_ticks })
    }

    /// Whether exactly this process still runs.
    pub(crate) fn runs(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Ends the process: sends SIGTERM, and SIGKILL after `timeout`. Does nothing if it has
    /// ended.
    pub(crate) fn end(&self, timeout: Duration) -> Result<()> {
        for (signal, timeout) in [(Signal::SIGTERM, timeout), (Signal::SIGKILL, Duration::from_secs(5))] {
            let asked = Instant::now();
            if !self.runs() {
                return Ok(());
            }
            match kill(Pid::from_raw(self.pid), signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot end process {}", self.pid));
                }
            }
            while self.runs() && asked.elapsed() < timeout {
                thread::sleep(Duration::from_millis(10));
            }
        }
        anyhow::ensure!(!self.runs(), "process {} outlived SIGKILL", self.pid);
        Ok(())
    }
}

/// The fields of `/proc/PID/stat` that are used here.
struct ProcessStat {
    state: char,
    parent: i32,
    start_ticks: u64,
}

impl ProcessStat {
    fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The command name may contain spaces and parentheses, so fields are counted from the last
    /// `)`.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_ascii_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Self {
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            start_ticks: number(19)?,
        })
    }
}

/// Processor time that a process and its threads have used, the ended ones too, in seconds, by the
/// scheduler's clock: `/proc/PID/stat` counts in clock ticks, which are long for a turn of a bench.
pub(crate) fn cpu_seconds(pid: i32) -> Result<f64> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid));
    let clock = clock.with_context(|| format!("process {pid} is gone"))?;
    Ok(Duration::from(clock.now()?).as_secs_f64())
}

/// Makes this process the parent of every descendant whose own parent ends, so that
/// [`end_orphans`] finds them.
pub(crate) fn adopt_orphans() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context("cannot become the reaper of orphans")
}

/// Ends all children of this process that are not in `own`: those that a program under test left
/// behind. Returns how many.
pub(crate) fn end_orphans(own: &[i32]) -> usize {
    let me = nix::unistd::getpid().as_raw();
    let mut ended = 0;
    let Ok(processes) = fs::read_dir("/proc") else { return 0 };
    for pid in processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let ours = ProcessStat::read(pid).is_some_and(|stat| stat.parent == me) && !own.contains(&pid);
        if ours {
            if let Some(identity) = ProcessIdentity::of(pid) {
                ended += usize::from(identity.end(Duration::from_secs(5)).is_ok());
            }
            // Reaps the zombie; an error only means that it was reaped already.
            let _ = nix::sys::wait::waitpid(Pid::from_raw(pid), Some(nix::sys::wait::WaitPidFlag::WNOHANG));
        }
    }
    ended
}

/// Waits for `child`. On an interrupt the child is ended first.
pub(crate) fn wait(child: &mut Child) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            interrupt::check()?;
            return Ok(status);
        }
        if interrupt::requested() {
            if let Some(identity) = ProcessIdentity::of(child.id() as i32) {
                identity.end(Duration::from_secs(10))?;
            }
            child.wait()?;
            interrupt::check()?;
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Runs a program with our terminal and fails unless it exits with 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let name = describe(command);
    let mut child = command.spawn().with_context(|| format!("cannot start `{name}`"))?;
    let status = wait(&mut child)?;
    anyhow::ensure!(status.success(), "`{name}` failed: {status}");
    Ok(())
}

/// Whether a program can be started and exits with 0. Its output is dropped.
pub(crate) fn succeeds(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

/// The command as one would type it.
pub(crate) fn describe(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;

    use super::*;

    #[test]
    fn a_command_name_may_look_like_fields() {
        let line = "7 (a) R (b c) S 3 7 7 0 -1 4194304 1 2 3 4 50 25 0 0 20 0 5 0 987654 1000 2 3";
        let stat = ProcessStat::parse(line).unwrap();
        assert_eq!((stat.state, stat.parent, stat.start_ticks), ('S', 3, 987654));
        assert!(ProcessStat::parse("7 (short) S 3").is_none());
        assert!(ProcessStat::parse("nonsense").is_none());
    }

    #[test]
    fn a_process_is_known_by_its_start_time_too() {
        let me = ProcessIdentity::of(std::process::id() as i32).unwrap();
        assert!(me.runs());
        assert!(!ProcessIdentity { start_ticks: me.start_ticks + 1, ..me }.runs());
    }

    #[test]
    fn a_stubborn_process_is_killed_and_a_stranger_is_left_alone() {
        let mut child = Command::new("sh")
            .args(["-c", "trap '' TERM; echo deaf; read never"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut heard = [0; 5];
        child.stdout.take().unwrap().read_exact(&mut heard).unwrap();
        let identity = ProcessIdentity::of(child.id() as i32).unwrap();
        ProcessIdentity { start_ticks: identity.start_ticks + 1, ..identity }.end(Duration::ZERO).unwrap();
        assert!(identity.runs());
        identity.end(Duration::from_millis(20)).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
}
