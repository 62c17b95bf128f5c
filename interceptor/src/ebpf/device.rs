//! Device numbers, by which the kernel tells mounts apart.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The device number of a mounted file system, as the kernel keeps it: 12 bits of major number, 20 of minor. `stat` shows the same in
/// another arrangement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Device(u32);

impl Device {
    /// That of the file system that `path` is on. Asks the file system's daemon if it is a FUSE mount, as long as that takes.
    ///
    /// # Errors
    /// When the path cannot be looked at.
    pub fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::from_stat(fs::metadata(path)?.dev()))
    }

    /// From the `st_dev` of anything on it.
    pub fn from_stat(dev: u64) -> Self {
        Self::new(libc::major(dev), libc::minor(dev))
    }

    /// From its two numbers, as `/proc/self/mountinfo` has them.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self(major << 20 | minor & 0xf_ffff)
    }

    /// From `MAJOR:MINOR`, as [`Display`](fmt::Display) writes it.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once(':')?;
        Some(Self::new(major.parse().ok()?, minor.parse().ok()?))
    }

    /// As the kernel keeps it.
    pub(super) const fn in_kernel(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0 >> 20, self.0 & 0xf_ffff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_arrangements_are_the_same() {
        for (major, minor) in [(0, 0), (0, 57), (0, 300), (0, 70_000), (259, 3)] {
            let device = Device::new(major, minor);
            assert_eq!(Device::from_stat(libc::makedev(major, minor)), device);
            assert_eq!(device.to_string(), format!("{major}:{minor}"));
            assert_eq!(Device::parse(&device.to_string()), Some(device));
        }
    }
}
