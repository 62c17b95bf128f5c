//! A process that serves a volume, or a part of it.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use daemon::output;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{self, ChildStdout, Command};
use tokio::time::timeout;

/// The most that is waited for of a line, in bytes; a longer one is passed on in pieces.
const MAX_LINE_LENGTH: usize = 64 << 10;

/// How long a killed process may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_millis(200);

/// A process that was started, and that ends with this one.
pub(super) struct Child {
    name: &'static str,
    process: process::Child,
    output: Option<BufReader<ChildStdout>>,
    /// What has come of a line.
    line: Vec<u8>,
}

impl Child {
    /// Starts `command`, which gets SIGTERM if this process dies. To be called on the first
    /// thread: the kernel watches the thread that starts a process.
    pub(super) fn start(name: &'static str, command: std::process::Command) -> anyhow::Result<Self> {
        let mut command = Command::from(command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let parent = Pid::this();
        let end_with_parent = move || {
            prctl::set_pdeathsig(Signal::SIGTERM)?;
            // It may have died just before.
            if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
        };
        // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
        unsafe {
            command.pre_exec(end_with_parent);
        }
        let mut process = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let output = process.stdout.take().map(BufReader::new);
        Ok(Self { name, process, output, line: Vec::new() })
    }

    /// Resolves when the process has printed a line that begins with `text`.
    ///
    /// # Errors
    /// When it ends without.
    pub(super) async fn printed(&mut self, text: &str) -> anyhow::Result<()> {
        while let Some(line) = self.next_line().await? {
            output::announce(&line);
            if line.starts_with(text) {
                return Ok(());
            }
        }
        let code = self.ended().await?;
        bail!("{} ended with exit code {code}", self.name)
    }

    /// Passes on what the process prints until it has ended. Returns its exit code, as a shell has
    /// it.
    pub(super) async fn ended(&mut self) -> io::Result<u8> {
        while let Some(line) = self.next_line().await? {
            output::announce(line);
        }
        Ok(exit_code(self.process.wait().await?))
    }

    /// SIGTERM, once more after half of `limit`, so that a daemon of ours does not wait for open
    /// files any longer, and SIGKILL at its end.
    pub(super) async fn stop(&mut self, limit: Duration) {
        for _ in 0..2 {
            self.signal(Signal::SIGTERM);
            if timeout(limit / 2, self.process.wait()).await.is_ok() {
                return;
            }
        }
        tracing::warn!("{} does not end within {limit:?}, and is killed", self.name);
        self.signal(Signal::SIGKILL);
        let _ = timeout(KILL_TIMEOUT, self.process.wait()).await;
    }

    fn signal(&self, signal: Signal) {
        // Until it has been waited for, the number is that of no other process.
        if let Some(pid) = self.process.id() {
            let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
        }
    }

    /// The next line without its end; what is no UTF-8 is replaced. `None` at the end of the
    /// output. May be dropped and called again.
    async fn next_line(&mut self) -> io::Result<Option<String>> {
        let Some(output) = &mut self.output else { return Ok(None) };
        let room = MAX_LINE_LENGTH - self.line.len();
        output.take(room as u64).read_until(b'\n', &mut self.line).await?;
        if self.line.is_empty() {
            return Ok(None);
        }
        let line = std::mem::take(&mut self.line);
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        Ok(Some(String::from_utf8_lossy(line).into_owned()))
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    let killed = status.signal().map(|signal| 128 + signal);
    status.code().or(killed).and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Child {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script]);
        Child::start("the script", command).unwrap()
    }

    #[tokio::test]
    async fn lines_are_awaited_and_exit_codes_passed_on() {
        let mut child = shell("echo first; echo ready at /x; exit 7");
        child.printed("ready ").await.unwrap();
        assert_eq!(child.ended().await.unwrap(), 7);
        let error = shell("exit 3").printed("ready ").await.unwrap_err().to_string();
        assert_eq!(error, "the script ended with exit code 3");
        assert_eq!(shell("kill -9 $$").ended().await.unwrap(), 128 + 9);
    }

    #[tokio::test]
    async fn any_output_is_passed_on() {
        let mut child = shell("printf 'a\\377b\\n\\n'; head -c 100000 /dev/zero; printf '\\nready'");
        assert_eq!(child.next_line().await.unwrap().unwrap(), "a\u{fffd}b");
        assert_eq!(child.next_line().await.unwrap().unwrap(), "");
        for length in [MAX_LINE_LENGTH, 100_000 - MAX_LINE_LENGTH] {
            assert_eq!(child.next_line().await.unwrap().unwrap().len(), length);
        }
        child.printed("ready").await.unwrap();
        assert_eq!(child.next_line().await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_does_not_end_is_killed() {
        let mut child = shell("trap '' TERM; echo ready; while :; do sleep 1; done");
        child.printed("ready").await.unwrap();
        child.stop(Duration::from_millis(100)).await;
        assert_eq!(child.process.wait().await.unwrap().signal(), Some(9));
    }
}
