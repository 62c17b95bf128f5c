//! A directory of the filer, mounted by one of two programs.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cluster::tail;
use crate::interrupt::{self, TICK};
use crate::workplace::{Workplace, is_mounted, unmount};

/// How long a mount may take to appear.
const START: Duration = Duration::from_secs(30);

/// A mount that answers. The workplace takes it down if [`Mounted::unmount`] does not.
pub(crate) struct Mounted {
    child: Child,
    /// The mount point.
    pub(crate) root: PathBuf,
}

impl Mounted {
    /// Mounts with `interceptor mount`; its status page answers on `status`.
    pub(crate) fn interceptor(
        place: &mut Workplace,
        program: &Path,
        filer: &str,
        path: &str,
        status: &str,
    ) -> Result<Self> {
        let root = place.make("mount")?;
        let mut command = Command::new(program);
        command.args(["mount", "--filer", filer, "--filer-path", path, "--cache-size", "2GiB"]);
        command.args(["--status-addr", status]).arg(&root);
        Self::start(place, "interceptor", command, root)
    }

    /// Mounts with `weed mount`, its chunk cache as large as ours and empty.
    pub(crate) fn weed(place: &mut Workplace, program: &Path, filer: &str, path: &str) -> Result<Self> {
        let root = place.make("weed-mount")?;
        let cache = place.make("weed-cache")?;
        std::fs::remove_dir_all(&cache)?;
        let cache = place.make("weed-cache")?;
        let mut command = Command::new(program);
        command
            .args(["mount", "-cacheCapacityMB=2048", "-localSocket=weed-mount.sock"])
            .arg(format!("-filer={filer}"))
            .arg(format!("-filer.path={path}"))
            .arg(format!("-dir={}", root.display()))
            .arg(format!("-cacheDir={}", cache.display()));
        Self::start(place, "weed-mount", command, root)
    }

    fn start(place: &mut Workplace, name: &str, mut command: Command, root: PathBuf) -> Result<Self> {
        let mut child = place.start(name, &mut command)?;
        let started = Instant::now();
        while !is_mounted(&root)? {
            interrupt::check()?;
            if let Some(status) = child.try_wait()? {
                bail!("{name} ended ({status}):\n{}", tail(&place.log(name)));
            }
            if started.elapsed() > START {
                bail!("{name} has mounted nothing after {} s:\n{}", START.as_secs(), tail(&place.log(name)));
            }
            thread::sleep(Duration::from_millis(5));
        }
        let root_answers = root.clone();
        interrupt::guard("the first look at the mount", START, move || {
            std::fs::metadata(&root_answers).map(drop).with_context(|| root_answers.display().to_string())
        })?;
        Ok(Self { child, root })
    }

    /// Process id of the daemon.
    pub(crate) fn daemon(&self) -> i32 {
        self.child.id() as i32
    }

    /// Fails if the daemon has ended.
    pub(crate) fn check(&mut self, place: &Workplace, name: &str) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{name} ended ({status}):\n{}", tail(&place.log(name))),
        }
    }

    /// Takes the mount down and waits until the daemon has ended.
    pub(crate) fn unmount(mut self, place: &mut Workplace) -> Result<()> {
        place.stop(&mut self.child)?;
        unmount(&self.root)
    }
}

/// A loopback address for a status page: the one that users know if it is free, else any.
pub(crate) fn status_address() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:9650")
        .or_else(|_| TcpListener::bind("127.0.0.1:0"))
        .context("no loopback port is free")?;
    Ok(listener.local_addr()?.to_string())
}

/// Waits until the user interrupts or the mount's daemon ends.
pub(crate) fn stay(mounted: &mut Mounted, place: &Workplace) -> Result<()> {
    loop {
        interrupt::check()?;
        mounted.check(place, "interceptor")?;
        thread::sleep(TICK);
    }
}
