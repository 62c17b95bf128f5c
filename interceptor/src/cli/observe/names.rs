//! What files are called whose FUSE nodes the kernel speaks of.
//!
//! A node has no name outside its daemon. But most daemons show the node's number as the inode's (theirs that do give the root the number 1, the
//! node of every root), and `/proc/PID/fdinfo` has the inode of every open file, and its mount, without asking the daemon.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use super::mounts::FuseMount;

/// The files of a mount that are open somewhere, by inode number. Files of processes that we may not look at are not among them.
pub(super) fn open_files(mount: &FuseMount) -> HashMap<u64, PathBuf> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let descriptors = processes.flat_map(|process| {
        let process = process.path();
        let numbers = fs::read_dir(process.join("fdinfo")).into_iter().flatten().flatten();
        numbers.map(move |number| (number.path(), process.join("fd").join(number.file_name())))
    });
    let named = descriptors.filter_map(|(information, descriptor)| {
        let inode = inode_on(&fs::read_to_string(information).ok()?, mount.id)?;
        Some((inode, fs::read_link(descriptor).ok()?))
    });
    named.collect()
}

/// The inode number, if the file is on that mount.
fn inode_on(information: &str, mount: u64) -> Option<u64> {
    let field = |name: &str| {
        let line = information.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line?.trim().parse::<u64>().ok()
    };
    if field("mnt_id")? == mount { field("ino") } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_mount_have_names() {
        let information = "pos:\t0\nflags:\t0100000\nmnt_id:\t41\nino:\t7\n";
        assert_eq!(inode_on(information, 41), Some(7));
        assert_eq!(inode_on(information, 4), None);
        assert_eq!(inode_on("pos:\t0\n", 41), None);
    }
}
