//! `interceptor attach` over an existing mount, and an ext4 of its own to attach to.
//!
//! Both values clean up when dropped, also if their processes have died: a test that panics leaves
//! no mount behind.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::process::Process;
use crate::{StatusPage, eventually};

/// Longest wait for a layer to answer.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for the processes to end by themselves.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// The layer's type in the kernel's table.
const FS_TYPE: &str = "fuse.interceptor-attach";

/// A layer over a mount, and its two processes: the supervisor, which was started, and its child,
/// the worker that serves.
#[derive(Debug)]
pub struct Layer {
    process: Process,
    path: PathBuf,
    status: String,
    home: TempDir,
}

impl Layer {
    /// Attaches to what is mounted on `path` and waits until that is announced.
    ///
    /// # Errors
    /// When the program ends early or is not ready in time; the text has the tail of its log.
    pub fn over<A: Into<OsString>>(path: &Path, args: impl IntoIterator<Item = A>) -> anyhow::Result<Self> {
        Self::started_by(&[], path, args)
    }

    /// The same for a daemon that may have no more than `descriptors` open and may not raise that
    /// limit.
    ///
    /// # Errors
    /// As for [`over`](Self::over).
    pub fn with_descriptors<A: Into<OsString>>(
        descriptors: u64,
        path: &Path,
        args: impl IntoIterator<Item = A>,
    ) -> anyhow::Result<Self> {
        let limit = format!("--nofile={descriptors}:{descriptors}");
        Self::started_by(&["setpriv", "--bounding-set=-sys_resource", "prlimit", &limit], path, args)
    }

    /// The same with the program executed by `wrapper`, which must become it in the same process.
    ///
    /// # Errors
    /// As for [`over`](Self::over).
    pub fn started_by<A: Into<OsString>>(
        wrapper: &[&str],
        path: &Path,
        args: impl IntoIterator<Item = A>,
    ) -> anyhow::Result<Self> {
        let home = tempfile::Builder::new().prefix("interceptor-layer-").tempdir()?;
        // An empty one keeps the host's own settings out.
        fs::write(home.path().join("security.toml"), "")?;
        let process = start(wrapper, home.path(), path, "log", args)?;
        let mut layer = Self { process, path: path.to_owned(), status: String::new(), home };
        layer.await_ready()?;
        Ok(layer)
    }

    /// Starts a successor with these options and waits until it announces that it has taken over;
    /// this value then stands for the successor. Returns the predecessor, which goes on serving
    /// open files.
    ///
    /// # Errors
    /// When the program ends early or is not ready in time; this value then still stands for the
    /// predecessor.
    pub fn restart<A: Into<OsString>>(
        &mut self,
        args: impl IntoIterator<Item = A>,
    ) -> anyhow::Result<Process> {
        let log = format!("log-{}", fs::read_dir(self.home.path())?.count());
        let args = args.into_iter().map(Into::into).chain(["--restart".into()]);
        let old = std::mem::replace(&mut self.process, start(&[], self.home.path(), &self.path, &log, args)?);
        match self.await_ready() {
            Ok(()) => Ok(old),
            Err(error) => {
                self.process = old;
                Err(error)
            }
        }
    }

    fn await_ready(&mut self) -> anyhow::Result<()> {
        let attached = format!("attached {}", self.path.display());
        let status = eventually("the layer", READY_TIMEOUT, || {
            if let Err(error) = self.process.ensure_running() {
                return Some(Err(error));
            }
            let log = fs::read_to_string(self.process.log()).ok()?;
            let mut lines = log.lines().skip_while(|line| *line != attached);
            lines.next()?;
            lines.find_map(|line| line.strip_prefix("status ")).map(|url| Ok(url.to_owned()))
        });
        self.status = status.with_context(|| self.process.log_tail())??;
        Ok(())
    }

    /// The process that was started.
    #[must_use]
    pub fn watcher(&self) -> u32 {
        self.process.pid()
    }

    /// The process that serves.
    ///
    /// # Errors
    /// When it has ended.
    pub fn daemon(&self) -> anyhow::Result<Pid> {
        self.process.worker().context("no process serves")
    }

    /// SIGKILL to the process that serves.
    ///
    /// # Errors
    /// When it has ended.
    pub fn kill_daemon(&self) -> anyhow::Result<()> {
        Ok(kill(self.daemon()?, Signal::SIGKILL)?)
    }

    /// Sends a signal to the process that was started.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// When the program still runs after ten seconds.
    pub fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        self.process.wait(STOP_TIMEOUT)
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// When the program still runs after ten seconds.
    pub fn detach(mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// What the daemon says of itself.
    #[must_use]
    pub fn status_page(&self) -> StatusPage {
        StatusPage::at(self.status.trim_end_matches('/').to_owned())
    }

    /// Bytes that it has given, by their source.
    ///
    /// # Errors
    /// When the daemon does not tell.
    pub fn read_bytes(&self, source: &str) -> anyhow::Result<f64> {
        self.status_page().metric("interceptor_read_bytes_total", &[&format!("source=\"{source}\"")])
    }

    /// Where it says that, as `HOST:PORT`.
    #[must_use]
    pub fn status_address(&self) -> &str {
        self.status.trim_start_matches("http://").trim_end_matches('/')
    }

    /// The output so far.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(self.process.log())?)
    }

    /// Whether a layer is what is seen at `path`.
    #[must_use]
    pub fn is_at(path: &Path) -> bool {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let topmost = table.lines().rfind(|line| line.split(' ').nth(4) == path.to_str());
        topmost.is_some_and(|line| line.contains(&format!(" - {FS_TYPE} ")))
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        self.process.terminate();
        if Self::is_at(&self.path) {
            let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        }
        if std::thread::panicking() {
            eprintln!("the layer's log was {}", self.home.path().join("log").display());
        }
    }
}

fn start<A: Into<OsString>>(
    wrapper: &[&str],
    home: &Path,
    path: &Path,
    log: &str,
    args: impl IntoIterator<Item = A>,
) -> anyhow::Result<Process> {
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    let mut words: Vec<OsString> = wrapper.iter().map(Into::into).collect();
    words.push(crate::mount::interceptor_program()?.into());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).arg("attach");
    if !crate::mount::given(&args, "--status-addr") {
        command.args(["--status-addr", "127.0.0.1:0"]);
    }
    if !crate::mount::given(&args, "--cache-prefault") {
        command.arg(crate::mount::NO_PREFAULT);
    }
    command.args(args).arg(path).current_dir(home).env("HOME", home);
    Process::start(command, &home.join(log), STOP_TIMEOUT, Signal::SIGTERM)
}

/// A bind mount of what is mounted at a path: the same files, past layers that are mounted over
/// the path later.
#[derive(Debug)]
pub struct BindMount {
    home: TempDir,
}

impl BindMount {
    /// What is mounted at `path` now.
    ///
    /// # Errors
    /// When it cannot be mounted a second time.
    pub fn of(path: &Path) -> anyhow::Result<Self> {
        let beside = Self { home: tempfile::Builder::new().prefix("interceptor-beside-").tempdir()? };
        fs::create_dir(beside.path())?;
        mount(Some(path), &beside.path(), None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(beside)
    }

    /// The second place.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.home.path().join("mnt")
    }
}

impl Drop for BindMount {
    fn drop(&mut self) {
        let _ = umount2(&self.path(), MntFlags::MNT_DETACH);
    }
}

/// A new file system in a file, mounted by a loop device.
#[derive(Debug)]
pub struct Disk {
    home: TempDir,
}

impl Disk {
    /// Makes and mounts an ext4 of `size` bytes, open to all users.
    ///
    /// # Errors
    /// When this machine has no `mkfs.ext4` or no loop devices.
    pub fn mount(size: u64) -> anyhow::Result<Self> {
        Self::made_by(size, &["mkfs.ext4", "-q"], &["-o", "loop,acl,user_xattr"])
    }

    /// The same with an ext4 whose directories do not tell the types of what is in them.
    ///
    /// # Errors
    /// When this machine has no `mkfs.ext4` or no loop devices.
    pub fn without_types(size: u64) -> anyhow::Result<Self> {
        Self::made_by(size, &["mkfs.ext4", "-q", "-O", "^filetype"], &["-o", "loop,acl,user_xattr"])
    }

    /// The same with XFS, of 300 MiB at least.
    ///
    /// # Errors
    /// When this machine has no `mkfs.xfs`, no XFS or no loop devices.
    pub fn xfs(size: u64) -> anyhow::Result<Self> {
        Self::made_by(size, &["mkfs.xfs", "-q"], &["-o", "loop"])
    }

    /// The same with NTFS, whose file system is that of a daemon.
    ///
    /// # Errors
    /// When this machine has no `mkntfs` and `ntfs-3g`, or no loop devices.
    pub fn ntfs(size: u64) -> anyhow::Result<Self> {
        Self::made_by(size, &["mkntfs", "-q", "-Q", "-F"], &["-t", "ntfs-3g", "-o", "loop"])
    }

    fn made_by(size: u64, mkfs: &[&str], options: &[&str]) -> anyhow::Result<Self> {
        let home = tempfile::Builder::new().prefix("interceptor-disk-").tempdir()?;
        let (image, at) = (home.path().join("image"), home.path().join("mnt"));
        fs::File::create(&image)?.set_len(size)?;
        fs::create_dir(&at)?;
        let run = |program: &str, args: &[&str], paths: &[&Path]| -> anyhow::Result<()> {
            let output =
                Command::new(program).args(args).args(paths).output().with_context(|| program.to_owned())?;
            ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
            Ok(())
        };
        run(mkfs[0], &mkfs[1..], &[&image])?;
        run("mount", options, &[&image, &at])?;
        let disk = Self { home };
        use std::os::unix::fs::PermissionsExt;
        for path in [disk.home.path(), &disk.path()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
        }
        Ok(disk)
    }

    /// From now on the device fails: what is not in the page cache gives EIO.
    ///
    /// # Errors
    /// When the file below it cannot be cut.
    pub fn cut(&self) -> anyhow::Result<()> {
        Ok(fs::OpenOptions::new().write(true).open(self.home.path().join("image"))?.set_len(0)?)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.home.path().join("mnt")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.path(), MntFlags::MNT_DETACH);
    }
}
