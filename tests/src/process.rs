//! Child processes that cannot outlive the test program.
//!
//! Every child asks the kernel to be signalled when its parent dies (`PR_SET_PDEATHSIG`), so that
//! even a killed test program leaves no server behind. The kernel means the parent *thread*: a
//! child started by a test's own thread would die with that test, although the cluster may be
//! shared by the suite. One thread, which never ends, therefore starts them all.
//!
//! Standard output and error go to a log file; its tail is part of every error.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use crate::patience;

/// How much of a log an error shows, in bytes.
const LOG_TAIL_BYTES: u64 = 2048;

/// A running program, its log, and the promise that it ends with this value.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
    grace: Duration,
}

impl Process {
    /// Starts `command` with its output appended to `log`. When the value is dropped the program
    /// gets SIGTERM and, `grace` later, SIGKILL; when this program dies it gets `orphan_signal`.
    ///
    /// # Errors
    /// When the log cannot be opened or the program cannot be started.
    pub fn start(
        mut command: Command,
        log: &Path,
        grace: Duration,
        orphan_signal: Signal,
    ) -> anyhow::Result<Process> {
        let name = command.get_program().to_string_lossy().into_owned();
        let out = File::options().create(true).append(true).open(log).context("opening a log file")?;
        let err = out.try_clone()?;
        // A process group of its own: a Ctrl-C reaches only the program that started it, which
        // ends its children in order.
        command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(move || Ok(prctl::set_pdeathsig(orphan_signal)?));
        }
        let child = spawn(command).with_context(|| format!("starting {name}"))?;
        Ok(Process { child, name, log: log.to_owned(), grace })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process that serves: the first child, if the program is the supervisor of one.
    pub fn worker(&self) -> Option<Pid> {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let children = fs::read_to_string(children).ok()?;
        children.split_whitespace().next()?.parse().ok().map(Pid::from_raw)
    }

    /// The log file.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The end of the log, for error texts.
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }

    /// How the program ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// An error, with the tail of the log, if the program has ended.
    ///
    /// # Errors
    /// See above.
    pub fn ensure_running(&mut self) -> anyhow::Result<()> {
        match self.exited() {
            None => Ok(()),
            Some(status) => anyhow::bail!("{} ended early ({status}):\n{}", self.name, self.log_tail()),
        }
    }

    /// Sends `signal`; does nothing if the program has ended. After SIGSTOP it is stopped when
    /// this returns, which on a busy host may take a while.
    pub fn signal(&mut self, signal: Signal) {
        if self.exited().is_none() {
            let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
            while signal == Signal::SIGSTOP && !self.stands_still() && self.exited().is_none() {
                thread::yield_now();
            }
        }
    }

    /// Whether all of its threads are stopped.
    fn stands_still(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id())).into_iter().flatten().flatten();
        // Behind the name, which is in parentheses and may have any others in it.
        let stopped = |stat: String| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T"));
        let mut stats = threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
        stats.all(stopped)
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When the program still runs after the [`patience`] that `limit` asks for. It is left
    /// running.
    pub fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let limit = patience(limit);
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.exited() {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                anyhow::bail!("{} still runs after {limit:?}:\n{}", self.name, self.log_tail());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }

    /// SIGKILL to the program and to the process that it supervises, at once as far as they can
    /// tell, and waits for the end of the program.
    pub fn kill_with_worker(&mut self) {
        self.signal(Signal::SIGSTOP);
        let Some(worker) = self.worker() else { return self.kill() };
        let _ = kill(worker, Signal::SIGKILL);
        // It is dead when its parent could wait for it, which keeps its number until then, and none
        // of its other threads is left.
        let stat = || fs::read_to_string(format!("/proc/{worker}/stat")).unwrap_or_default();
        let is_zombie = || stat().rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z"));
        let threads = || fs::read_dir(format!("/proc/{worker}/task")).into_iter().flatten().count();
        while !is_zombie() || threads() > 1 {
            thread::yield_now();
        }
        self.kill();
    }

    /// SIGTERM, then SIGKILL when the grace is over.
    pub fn terminate(&mut self) {
        self.signal(Signal::SIGTERM);
        if self.wait(self.grace).is_err() {
            self.kill();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.terminate();
        if thread::panicking() {
            eprintln!("--- log of {} (pid {}):\n{}", self.name, self.child.id(), self.log_tail());
        }
    }
}

/// A program of this workspace, beside the running test program.
///
/// # Errors
/// When it was not built.
pub(crate) fn built(name: &str) -> anyhow::Result<PathBuf> {
    let running = std::env::current_exe()?;
    let mut directory = running.parent().context("the running program has no directory")?;
    if directory.ends_with("deps") {
        directory = directory.parent().context("deps has no parent")?;
    }
    let path = directory.join(name);
    anyhow::ensure!(path.is_file(), "there is no {}; run `cargo build --release`", path.display());
    Ok(path)
}

/// The beginning of a command that execs another, with standard error redirected in the syntax of
/// the shell: `>/dev/full`.
pub fn with_stderr(redirection: &str) -> [String; 4] {
    ["sh".into(), "-c".into(), format!("exec \"$@\" 2{redirection}"), "sh".into()]
}

/// A named pipe, `fifo` in `directory`. The returned file is both ends of it, so the pipe stays
/// full until the file is read.
///
/// # Errors
/// When it cannot be made.
pub fn undrained_pipe(directory: &Path) -> anyhow::Result<(PathBuf, File)> {
    let path = directory.join("fifo");
    mkfifo(&path, Mode::S_IRWXU)?;
    let file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path)?;
    Ok((path, file))
}

/// The end of a text file, for error texts.
pub fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = fs::metadata(path)?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_else(|error| format!("(no log: {error})"))
}

type SpawnRequest = (Command, mpsc::Sender<std::io::Result<Child>>);

fn spawn(command: Command) -> std::io::Result<Child> {
    static SPAWNER: LazyLock<mpsc::Sender<SpawnRequest>> = LazyLock::new(|| {
        let (orders, inbox) = mpsc::channel::<SpawnRequest>();
        thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                for (mut command, answer) in inbox {
                    let _ = answer.send(command.spawn());
                }
            })
            .expect("a thread can be started");
        orders
    });
    let (answer, child) = mpsc::channel();
    SPAWNER.send((command, answer)).expect("the spawner never ends");
    child.recv().expect("the spawner answers every order")
}
