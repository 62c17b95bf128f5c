//! A mount on a fresh directory: `interceptor mount`, or `weed mount` to write through and to
//! compare with.
//!
//! The value owns the daemon and the mount point. Dropping it asks the daemon to end, kills it
//! after a while, and takes the mount point down even when the daemon is dead: a test that panics
//! leaves no mount behind.
//!
//! Three environment variables change the mounts of a suite:
//! * `MOUNT_UNDER_TEST=weed` makes [`Mount::builder`] start `weed mount`, which shows what the
//!   real SeaweedFS holds where a suite and `interceptor` disagree;
//! * `MOUNT_OPTIONS`, words parted by spaces, go to each `interceptor mount` before its own
//!   options;
//! * `MOUNT_ENGINES`, the name of a transport, starts engines beside the volume servers, and each
//!   `interceptor mount` asks them.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::Context;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;

use crate::process::{self, Process};
use crate::{Cluster, StatusPage, eventually, tools};

/// Longest wait for a mount to answer.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for a daemon to end by itself.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Keeps mounts that live for a few reads from touching all of their memory.
pub(crate) const NO_PREFAULT: &str = "--cache-prefault=off";

/// Which program mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `interceptor mount`, read-only.
    Interceptor,
    /// `weed mount`, writable.
    Weed,
}

/// What shall be mounted and how.
#[derive(Clone, Debug)]
pub struct MountBuilder {
    kind: Kind,
    filers: String,
    filer_path: String,
    mount_point: Option<PathBuf>,
    security: Option<PathBuf>,
    program: Option<PathBuf>,
    wrapper: Vec<OsString>,
    args: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
}

impl MountBuilder {
    /// Which program will mount, for options that the two spell differently.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Makes the mount ask an engine beside each volume server, over `transport`; starts the
    /// engines if need be.
    #[must_use]
    pub fn engines(self, cluster: &Cluster, transport: &str) -> Self {
        let beside = cluster.volume_servers().iter().zip(cluster.engines());
        let pairs =
            beside.map(|(server, engine)| format!("--engine={}={}", server.address(), engine.address()));
        self.args(["--transport", transport]).args(pairs)
    }

    /// Mounts this directory of the filer instead of `/`.
    #[must_use]
    pub fn filer_path(mut self, path: &str) -> Self {
        path.clone_into(&mut self.filer_path);
        self
    }

    /// Mounts on this directory, which stays, instead of a temporary one.
    #[must_use]
    pub fn mount_point(mut self, path: &Path) -> Self {
        self.mount_point = Some(path.to_owned());
        self
    }

    /// Runs the daemon with this `security.toml` instead of the cluster's.
    #[must_use]
    pub fn security(mut self, content: &Path) -> Self {
        self.security = Some(content.to_owned());
        self
    }

    /// Mounts with this build of `interceptor` instead of the one under test.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// Starts `interceptor` through this program, which must exec it in the same process, as
    /// `setpriv` and `unshare` do.
    #[must_use]
    pub fn wrapped_in<A: Into<OsString>>(mut self, command: impl IntoIterator<Item = A>) -> Self {
        self.wrapper = command.into_iter().map(Into::into).collect();
        self
    }

    /// Adds an argument of the mounting program.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments of the mounting program.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Runs the daemon without the cluster's `security.toml`.
    #[must_use]
    pub fn no_security(mut self) -> Self {
        self.security = None;
        self
    }

    /// Sets a variable in the daemon's environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Starts the daemon and waits until the mount answers.
    ///
    /// # Errors
    /// When the program is missing, ends early or is not ready in time; the text has the tail of
    /// its log.
    pub fn start(self) -> anyhow::Result<Mount> {
        let home = tempfile::Builder::new().prefix("interceptor-mount-").tempdir()?;
        let mount_point = match self.mount_point {
            Some(path) => path,
            None => {
                let path = home.path().join("mnt");
                fs::create_dir(&path)?;
                path
            }
        };
        let cache = home.path().join("cache");
        fs::create_dir(&cache)?;
        // An empty one keeps the host's own settings out.
        let security = match &self.security {
            Some(path) => fs::read(path).with_context(|| format!("reading {}", path.display()))?,
            None => Vec::new(),
        };
        fs::write(home.path().join("security.toml"), security)?;
        let mut command = match self.kind {
            Kind::Interceptor => {
                let is_under_test = self.program.is_none();
                let mut program = self.wrapper;
                program.push(self.program.map_or_else(interceptor_program, Ok)?.into());
                let mut command = Command::new(&program[0]);
                command.args(&program[1..]);
                command.args(["mount", "--filer", &self.filers, "--filer-path", &self.filer_path]);
                command.args(["--status-addr", "127.0.0.1:0"]);
                // Another build may not know the options.
                if is_under_test {
                    command.args(options_under_test(&self.args));
                }
                command.args(self.args).arg(&mount_point);
                command
            }
            Kind::Weed => {
                let mut command = Command::new(tools::weed()?);
                command.arg("mount");
                command.arg(format!("-filer={}", self.filers));
                command.arg(format!("-filer.path={}", self.filer_path));
                command.arg(option("-dir=", &mount_point));
                command.arg(option("-cacheDir=", &cache));
                command.arg("-localSocket=socket");
                command.args(self.args);
                command
            }
        };
        command.current_dir(home.path()).env("HOME", home.path()).envs(self.environment);
        let log = home.path().join("log");
        let below = device(&mount_point)?;
        let process = Process::start(command, &log, STOP_TIMEOUT, Signal::SIGTERM)?;
        let mut mount = Mount { process, kind: self.kind, mount_point, status: None, home };
        mount.await_ready(below)?;
        Ok(mount)
    }
}

/// A mounted file system and its daemon.
#[derive(Debug)]
pub struct Mount {
    process: Process,
    kind: Kind,
    mount_point: PathBuf,
    status: Option<String>,
    home: TempDir,
}

impl Mount {
    /// The mount that the suites examine: `interceptor mount`, unless `MOUNT_UNDER_TEST` is
    /// `weed`.
    #[must_use]
    pub fn builder(cluster: &Cluster) -> MountBuilder {
        Mount::of(cluster, kind_under_test())
    }

    /// `weed mount`, to write through or to compare with.
    #[must_use]
    pub fn weed(cluster: &Cluster) -> MountBuilder {
        Mount::of(cluster, Kind::Weed)
    }

    /// `interceptor mount` on a filer that is given by address and need not exist.
    #[must_use]
    pub fn interceptor(filers: &str) -> MountBuilder {
        MountBuilder {
            kind: Kind::Interceptor,
            filers: filers.to_owned(),
            filer_path: "/".into(),
            mount_point: None,
            security: None,
            program: None,
            wrapper: Vec::new(),
            args: Vec::new(),
            environment: Vec::new(),
        }
    }

    fn of(cluster: &Cluster, kind: Kind) -> MountBuilder {
        let security = Some(cluster.directory().join("security.toml"));
        let builder = MountBuilder { kind, security, ..Mount::interceptor(&cluster.filer_addresses()) };
        match std::env::var("MOUNT_ENGINES") {
            Ok(transport) if kind == Kind::Interceptor => builder.engines(cluster, &transport),
            _ => builder,
        }
    }

    /// The mount point.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// The file at `path` (absolute, as the filer names it) in this mount, if the mount is of `/`.
    #[must_use]
    pub fn file(&self, path: &str) -> PathBuf {
        self.mount_point.join(path.trim_start_matches('/'))
    }

    /// Which program mounts.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The id of the process that serves.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.worker().map_or_else(|| self.process.pid(), |worker| worker.as_raw().cast_unsigned())
    }

    /// The id of the process that was started.
    #[must_use]
    pub fn watcher(&self) -> u32 {
        self.process.pid()
    }

    /// SIGKILL to the process that serves. Another one takes over.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_daemon(&self) -> anyhow::Result<()> {
        Ok(kill(self.process.worker().context("no process serves")?, Signal::SIGKILL)?)
    }

    /// `http://127.0.0.1:PORT` of the status page; only `interceptor` has one.
    #[must_use]
    pub fn status_url(&self) -> Option<&str> {
        self.status.as_deref()
    }

    /// The daemon's output so far.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log(&self) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.process.log())?).into_owned())
    }

    /// The log, once `text` is in it: a daemon writes it after the event.
    ///
    /// # Errors
    /// When that takes longer than ten seconds.
    pub fn log_with(&self, text: &str) -> anyhow::Result<String> {
        let found = || self.log().ok().filter(|log| log.contains(text));
        eventually(&format!("{text:?} in the log"), Duration::from_secs(10), found)
    }

    /// The status page.
    ///
    /// # Errors
    /// When there is none.
    pub fn status_page(&self) -> anyhow::Result<StatusPage> {
        self.status.clone().map(StatusPage::at).context("this mount has no status page")
    }

    /// GETs a path of the status page: the HTTP status and the body.
    ///
    /// # Errors
    /// When there is no status page or it does not answer.
    pub fn status(&self, path: &str) -> anyhow::Result<(u16, String)> {
        self.status_page()?.get(path)
    }

    /// The sum of a metric's samples whose labels contain all of `labels` (each as
    /// `name="value"`).
    ///
    /// # Errors
    /// When there is no status page or it does not answer.
    pub fn metric(&self, name: &str, labels: &[&str]) -> anyhow::Result<f64> {
        self.status_page()?.metric(name, labels)
    }

    /// SIGKILL to both processes of the daemon. The mount point stays, dead, until this value is
    /// dropped.
    pub fn kill(&mut self) {
        self.process.kill_with_worker();
    }

    /// Sends the daemon a signal.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits for the daemon's end.
    ///
    /// # Errors
    /// When it still runs after a multiple of the ten seconds that a daemon may take.
    pub fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        self.process.wait(STOP_TIMEOUT)
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// When the daemon still runs after ten seconds.
    pub fn stop(mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Whether the daemon runs.
    pub fn is_running(&mut self) -> bool {
        self.process.exited().is_none()
    }

    fn await_ready(&mut self, below: u64) -> anyhow::Result<()> {
        let mounted = format!("mounted {}", self.mount_point.display());
        let (process, status, path, kind) =
            (&mut self.process, &mut self.status, &self.mount_point, self.kind);
        let mut ended = None;
        let result = eventually("the mount", READY_TIMEOUT, || {
            if let Err(error) = process.ensure_running() {
                ended = Some(error);
                return Some(());
            }
            match kind {
                Kind::Weed => (device(path).ok()? != below && fs::read_dir(path).is_ok()).then_some(()),
                Kind::Interceptor => {
                    let log = fs::read_to_string(process.log()).ok()?;
                    let mut lines = log.lines().skip_while(|line| *line != mounted);
                    lines.next()?;
                    let url = lines.find_map(|line| line.strip_prefix("status "))?;
                    *status = Some(url.trim_end_matches('/').to_owned());
                    Some(())
                }
            }
        });
        match ended {
            Some(error) => Err(error),
            None => result.with_context(|| format!("log of the daemon:\n{}", process.log_tail())),
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.process.terminate();
        // Ours, or what a dead daemon has left; EINVAL says that nothing is mounted.
        let _ = umount2(&self.mount_point, MntFlags::MNT_DETACH);
        if std::thread::panicking() {
            eprintln!("the mount was in {}", self.home.path().display());
        }
    }
}

/// The `interceptor` program: `INTERCEPTOR_BIN`, else the one beside the running program in
/// cargo's target directory.
///
/// # Errors
/// When there is none; the text names `cargo build --release`.
pub fn interceptor_program() -> anyhow::Result<PathBuf> {
    if let Some(given) = std::env::var_os("INTERCEPTOR_BIN") {
        let path = PathBuf::from(given);
        anyhow::ensure!(path.is_file(), "INTERCEPTOR_BIN names {}, which is no file", path.display());
        return Ok(path);
    }
    process::built("interceptor")
}

/// Whether this option is among `args`.
pub(crate) fn given(args: &[OsString], option: &str) -> bool {
    args.iter().any(|arg| arg.to_str().is_some_and(|arg| arg.split('=').next() == Some(option)))
}

/// The options of `MOUNT_OPTIONS`, with their values, but for those that a test gives itself.
fn options_under_test(own: &[OsString]) -> Vec<String> {
    let options = std::env::var("MOUNT_OPTIONS").unwrap_or_default();
    let mut is_own = false;
    let is_left = |word: &&str| {
        if word.starts_with("--") {
            is_own = given(own, word.split('=').next().unwrap_or(word));
        }
        !is_own
    };
    let mut left: Vec<String> = options.split_whitespace().filter(is_left).map(str::to_owned).collect();
    if !given(own, "--cache-prefault") && !options.contains("--cache-prefault") {
        left.push(NO_PREFAULT.into());
    }
    left
}

fn kind_under_test() -> Kind {
    match std::env::var("MOUNT_UNDER_TEST").as_deref() {
        Ok("weed") => Kind::Weed,
        _ => Kind::Interceptor,
    }
}

fn option(name: &str, path: &Path) -> OsString {
    let mut option = OsString::from(name);
    option.push(path);
    option
}

fn device(path: &Path) -> std::io::Result<u64> {
    Ok(fs::metadata(path)?.dev())
}
