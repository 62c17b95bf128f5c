//! The FUSE mounts of this host, from the kernel's table: looking at the mount itself could wait for its daemon.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::ebpf::Device;

/// A FUSE mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FuseMount {
    /// The kernel's number for the place, which `/proc/PID/fdinfo` uses too.
    pub(super) id: u64,
    pub(super) path: PathBuf,
    pub(super) device: Device,
}

/// Those mounted at `paths`; all of them without any.
pub(super) fn find(paths: &[PathBuf]) -> anyhow::Result<Vec<FuseMount>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("cannot see what is mounted")?;
    let all: Vec<FuseMount> = table.lines().filter_map(parse).collect();
    if paths.is_empty() {
        if all.is_empty() {
            bail!("there is no FUSE mount on this host");
        }
        return Ok(all);
    }
    let named =
        |path: &PathBuf| topmost(&all, path).with_context(|| format!("no FUSE mount at {}", path.display()));
    paths.iter().map(named).collect()
}

fn topmost(all: &[FuseMount], path: &Path) -> Option<FuseMount> {
    let path = std::path::absolute(path).ok()?;
    all.iter().rfind(|mount| mount.path == path).cloned()
}

/// One line: `36 35 98:0 /root /place options [fields] - type source superoptions`.
fn parse(line: &str) -> Option<FuseMount> {
    let (before, after) = line.split_once(" - ")?;
    let kind = after.split(' ').next()?;
    let mut fields = before.split(' ');
    let id = fields.next()?.parse().ok()?;
    let device = Device::parse(fields.nth(1)?)?;
    let path = unescaped(fields.nth(1)?);
    let fuse = kind == "fuse" || kind == "fuseblk" || kind.starts_with("fuse.");
    fuse.then(|| FuseMount { id, path: path.into(), device })
}

/// The kernel writes blanks, tabs, newlines and backslashes as a backslash and three octal digits.
fn unescaped(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                text.push(byte.into());
                text.push_str(&part[3..]);
            }
            None => {
                text.push('\\');
                text.push_str(part);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuse_mounts_are_told_from_others() {
        let line = |kind| format!("123 30 0:57 / /mnt/my\\040data rw,nosuid shared:9 - {kind} src rw");
        let mount = parse(&line("fuse.weed")).unwrap();
        assert_eq!((mount.id, mount.path, mount.device), (123, "/mnt/my data".into(), Device::new(0, 57)));
        assert!(parse(&line("fuse")).is_some());
        assert_eq!(parse(&line("fusectl")), None);
        assert_eq!(parse(&line("ext4")), None);
        assert_eq!(parse("nonsense"), None);
    }
}
