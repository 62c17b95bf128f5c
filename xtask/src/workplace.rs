//! A directory below `target/` that owns processes and mounts, and outlives a crash of the program
//! that made it.
//!
//! Every process that a verb starts is written to the workplace's state file; mounts below the
//! directory are found in the mount table. Closing the workplace (also by dropping it, so on every
//! error and interrupt) ends the processes, unmounts and removes the directory. If the program is
//! killed instead, the next one to open the same workplace finds the state file and does that
//! first.
//!
//! A lock distinguishes a crashed predecessor from one that still runs. Start times and the boot
//! id in the state distinguish a recorded process from a later one with the same number.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ::tests::tools::target_directory;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::process::ProcessIdentity;

/// How long a daemon may take to end by itself.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct RunRecord {
    boot_id: String,
    processes: Vec<ProcessIdentity>,
}

/// The right to use one directory below `target/`, with everything that was started in it.
pub(crate) struct Workplace {
    directory: PathBuf,
    record: RunRecord,
    _lock: Flock<File>,
}

impl Workplace {
    /// Opens `target/NAME`, empty. First ends and removes what a crashed predecessor left there.
    pub(crate) fn open(name: &str) -> Result<Self> {
        Self::open_at(&target_directory().join(name))
    }

    fn open_at(directory: &Path) -> Result<Self> {
        let lock_path = directory.with_extension("lock");
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let lock =
            File::create(&lock_path).with_context(|| format!("cannot create {}", lock_path.display()))?;
        let lock = match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => {
                bail!("{} is in use: the same command runs already", directory.display())
            }
            Err((_, error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", lock_path.display()));
            }
        };
        let mut workplace =
            Self { directory: directory.to_owned(), record: RunRecord::default(), _lock: lock };
        workplace.take_over()?;
        workplace.record.boot_id = boot_id()?;
        fs::create_dir_all(directory)?;
        workplace.save()?;
        Ok(workplace)
    }

    /// The directory, absolute.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A new, empty directory in the workplace.
    pub(crate) fn make(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    }

    /// Writes down a process that was just started.
    pub(crate) fn owns(&mut self, pid: u32) -> Result<()> {
        self.record.processes.extend(ProcessIdentity::of(pid as i32));
        self.save()
    }

    /// Ends, unmounts and removes everything.
    pub(crate) fn close(mut self) -> Result<()> {
        self.clear()
    }

    fn record_file(&self) -> PathBuf {
        self.directory.join("state.json")
    }

    /// Replaces the state file in one step, so that a crash leaves either the old or the new one.
    fn save(&self) -> Result<()> {
        let new = self.directory.join("state.json.new");
        fs::write(&new, serde_json::to_vec(&self.record)?)?;
        fs::rename(&new, self.record_file()).context("cannot write the state of the run")
    }

    fn take_over(&mut self) -> Result<()> {
        if let Ok(text) = fs::read(self.record_file()) {
            let left: RunRecord = serde_json::from_slice(&text).unwrap_or_default();
            // Numbers and start times of another boot mean nothing now.
            let same_boot = left.boot_id == boot_id()?;
            let running = left.processes.into_iter().filter(|process| same_boot && process.runs());
            self.record = RunRecord { processes: running.collect(), ..RunRecord::default() };
            eprintln!("cleaning up after a run that crashed");
        }
        self.clear()
    }

    fn clear(&mut self) -> Result<()> {
        // Mounts are started after the servers that they read from, so they end first.
        for process in std::mem::take(&mut self.record.processes).into_iter().rev() {
            process.end(STOP_TIMEOUT)?;
            reap(process.pid);
        }
        for mount in mount_points()?.iter().rev().filter(|mount| mount.starts_with(&self.directory)) {
            unmount(mount)?;
        }
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.directory.display()))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            eprintln!("could not clean up: {error:#}");
        }
    }
}

/// Reaps a child of this process. A process of a crashed predecessor is not our child, which is no
/// error.
fn reap(pid: i32) {
    let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
}

/// Unmounts everything at `path`, also if its daemon is dead or a program still has a file open
/// there.
pub(crate) fn unmount(path: &Path) -> Result<()> {
    while is_mounted(path)? {
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(Errno::EPERM) => {
                let done = Command::new("fusermount3").args(["-u", "-z"]).arg(path).status();
                anyhow::ensure!(done.is_ok_and(|s| s.success()), "cannot unmount {}", path.display());
            }
            Err(error) => return Err(error).with_context(|| format!("cannot unmount {}", path.display())),
        }
    }
    Ok(())
}

/// Whether something is mounted exactly at `path`. Reads the mount table and never the mount,
/// which may be dead.
pub(crate) fn is_mounted(path: &Path) -> Result<bool> {
    Ok(mount_points()?.iter().any(|point| point == path))
}

/// All mount points, in the order they were mounted in.
fn mount_points() -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mount table")?;
    Ok(table.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| unescape(point).into()).collect())
}

/// The mount table writes blanks and backslashes as three octal digits.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

fn boot_id() -> Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("cannot read the boot id")?;
    Ok(id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()))
    }

    #[test]
    fn a_crash_is_cleaned_up_by_the_next_one() {
        let directory = scratch("crash");
        let mut first = Workplace::open_at(&directory).unwrap();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        first.owns(child.id()).unwrap();
        assert!(Workplace::open_at(&directory).err().unwrap().to_string().contains("in use"));

        // A crash: the lock goes with the process, nothing else does.
        let record = fs::read(first.record_file()).unwrap();
        first.record = RunRecord::default();
        drop(first);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("state.json"), record).unwrap();

        let second = Workplace::open_at(&directory).unwrap();
        assert!(ProcessIdentity::of(child.id() as i32).is_none());
        // Collected by the clean-up already, since it happens to be a child of this very process.
        let _ = child.wait();
        second.close().unwrap();
        assert!(!directory.exists());
        fs::remove_file(directory.with_extension("lock")).unwrap();
    }

    #[test]
    fn a_damaged_record_file_is_no_obstacle() {
        let directory = scratch("damaged");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("state.json"), b"{\"processes\":[{").unwrap();
        Workplace::open_at(&directory).unwrap().close().unwrap();
        assert!(!directory.exists());
        fs::remove_file(directory.with_extension("lock")).unwrap();
    }

    #[test]
    fn the_mount_table_is_read_with_its_escapes() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
        assert!(is_mounted(Path::new("/proc")).unwrap());
        assert!(!is_mounted(Path::new("/proc/self")).unwrap());
    }
}
