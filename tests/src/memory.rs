//! A control group that limits the memory of a process, and with it the page cache that its reads
//! may fill.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::Context;

/// A control group with a limit, of either version of the controller. Dropping it removes it.
#[derive(Debug)]
pub struct MemoryGroup {
    path: PathBuf,
}

impl MemoryGroup {
    /// One of this name that may use so many bytes, its processes' own memory included.
    ///
    /// # Errors
    /// When this host has no such controller, or does not let us.
    pub fn new(name: &str, bytes: u64) -> anyhow::Result<Self> {
        let name = format!("{name}-{}", std::process::id());
        let first = Path::new("/sys/fs/cgroup/memory");
        let (path, limit) = if first.is_dir() {
            (first.join(name), "memory.limit_in_bytes")
        } else {
            (Path::new("/sys/fs/cgroup").join(name), "memory.max")
        };
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let group = Self { path };
        fs::write(group.path.join(limit), bytes.to_string()).context("no memory controller")?;
        Ok(group)
    }

    /// A group within this one, without a limit of its own. A process enters it by writing `0` to
    /// the returned file.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn nested(&self) -> anyhow::Result<(MemoryGroup, PathBuf)> {
        let path = self.path.join("nested");
        fs::create_dir(&path)?;
        let door = path.join("cgroup.procs");
        Ok((MemoryGroup { path }, door))
    }

    /// Whatever process writes `0` to it becomes a member.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn door(&self) -> anyhow::Result<File> {
        Ok(OpenOptions::new().write(true).open(self.path.join("cgroup.procs"))?)
    }

    /// Bytes that are charged to the group and cannot be dropped.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn bytes_in_use(&self) -> anyhow::Result<u64> {
        let read = |file: &str| fs::read_to_string(self.path.join(file));
        let used =
            read("memory.usage_in_bytes").or_else(|_| read("memory.current"))?.trim().parse::<u64>()?;
        let stat = read("memory.stat")?;
        let is_total = stat.contains("total_inactive_file ");
        let dropped = if is_total {
            ["total_inactive_file ", "total_active_file "]
        } else {
            ["inactive_file ", "active_file "]
        };
        let value = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.parse::<u64>().ok());
        Ok(used.saturating_sub(dropped.iter().filter_map(|name| value(name)).sum()))
    }

    /// Bytes of the page cache that are charged to the group, also for processes that have ended.
    /// The rest of the limit goes to other memory, such as the kernel's own for the group.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn file_bytes(&self) -> anyhow::Result<u64> {
        let told = fs::read_to_string(self.path.join("memory.stat"))?;
        // The first version of the controller calls it a cache.
        let bytes = |line: &str| line.strip_prefix("file ").or(line.strip_prefix("cache "))?.parse().ok();
        told.lines().find_map(bytes).context("memory.stat does not tell of files")
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // It is busy for a moment after its last process has ended.
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}
