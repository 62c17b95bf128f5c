//! A directory below `target/` that owns processes and mounts, and outlives a crash of the program that made it.
//!
//! Every process that a verb starts is written down in the workplace's state file; mounts below the directory are found in the mount
//! table. Closing the workplace (also by dropping it, so on every error and interrupt) ends the processes, takes down the
//! mounts and removes the directory. If the program is killed instead, the next one to open the same workplace finds the state file and does that first. A lock
//! tells a crashed predecessor from one that still runs; the start times and the boot id in the state tell a
//! recorded process from a stranger that was given its number since.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ::tests::weed::target_directory;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::process::Identity;

/// How long a daemon may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct State {
    boot_id: String,
    processes: Vec<Identity>,
}

/// The right to use one directory below `target/`, with everything that was started in it.
pub(crate) struct Workplace {
    directory: PathBuf,
    state: State,
    _lock: Flock<File>,
}

impl Workplace {
    /// Opens `target/NAME`, empty. What a crashed predecessor left there is ended and removed first.
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
        let mut place = Self { directory: directory.to_owned(), state: State::default(), _lock: lock };
        place.take_over()?;
        place.state.boot_id = boot_id()?;
        fs::create_dir_all(directory)?;
        place.save()?;
        Ok(place)
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
        self.state.processes.extend(Identity::of(pid as i32));
        self.save()
    }

    /// Ends, unmounts and removes everything.
    pub(crate) fn close(mut self) -> Result<()> {
        self.clear()
    }

    fn state_file(&self) -> PathBuf {
        self.directory.join("state.json")
    }

    /// Replaces the state file in one step, so that a crash leaves either the old or the new one.
    fn save(&self) -> Result<()> {
        let new = self.directory.join("state.json.new");
        fs::write(&new, serde_json::to_vec(&self.state)?)?;
        fs::rename(&new, self.state_file()).context("cannot write the state of the run")
    }

    fn take_over(&mut self) -> Result<()> {
        if let Ok(text) = fs::read(self.state_file()) {
            let left: State = serde_json::from_slice(&text).unwrap_or_default();
            // Numbers and start times of another boot mean nothing now.
            let same_boot = left.boot_id == boot_id()?;
            let running = left.processes.into_iter().filter(|process| same_boot && process.runs());
            self.state = State { processes: running.collect(), ..State::default() };
            eprintln!("cleaning up after a run that crashed");
        }
        self.clear()
    }

    fn clear(&mut self) -> Result<()> {
        // Mounts are started after the servers that they read from, so they end first.
        for process in std::mem::take(&mut self.state.processes).into_iter().rev() {
            process.end(PATIENCE)?;
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

/// Collects the remains of a child of ours; a process of a crashed predecessor is not ours to wait for.
fn reap(pid: i32) {
    let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
}

/// Takes down whatever is mounted at `path`, also if its daemon is dead or a program still has a file open there.
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

/// Whether something is mounted exactly at `path`. Asks the mount table, never the mount, which may be dead.
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
        let state = fs::read(first.state_file()).unwrap();
        first.state = State::default();
        drop(first);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("state.json"), state).unwrap();

        let second = Workplace::open_at(&directory).unwrap();
        assert!(Identity::of(child.id() as i32).is_none());
        // Collected by the clean-up already, since it happens to be a child of this very process.
        let _ = child.wait();
        second.close().unwrap();
        assert!(!directory.exists());
        fs::remove_file(directory.with_extension("lock")).unwrap();
    }

    #[test]
    fn a_damaged_state_file_is_no_obstacle() {
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
