//! Names of files by their FUSE nodes, which is all that the kernel reports.
//!
//! A daemon of ours is asked over its status API, by a thread of its own, for a short time at most
//! ([`DaemonNames`]). It names the files that it sees itself as read most.
//!
//! Other nodes have no name outside of their daemon. But most daemons, ours among them, use the
//! node's number as inode number (all that give the root number 1, the node of every root), and
//! `/proc/PID/fdinfo` has the inode and the mount of every open file, without asking the daemon.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::Context;

use super::mounts::FuseMount;
use crate::cli::http::StatusClient;
use crate::fuse::STATUS_XATTR;

/// How long an answer of a daemon is waited for at a time.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(300);

/// Names of files that are kept: more than are shown at a time.
const MAX_NAMES: usize = 4096;

/// What the daemon of a mount of ours calls the files that are read most.
pub(super) struct DaemonNames {
    mount_point: PathBuf,
    /// The channel of the answer, while a question is under way. A daemon that hangs gets no
    /// second one.
    answer: Option<Receiver<HashMap<u64, PathBuf>>>,
    known: HashMap<u64, PathBuf>,
}

impl DaemonNames {
    /// Nothing is known yet.
    pub(super) fn of(mount: &FuseMount) -> Self {
        Self { mount_point: mount.path.clone(), answer: None, known: HashMap::new() }
    }

    /// The names by node in the daemon's answers until now. Empty if it has no status API, or one
    /// that needs a token.
    pub(super) fn known(&mut self) -> &HashMap<u64, PathBuf> {
        let answer = self.answer.get_or_insert_with(|| ask(self.mount_point.clone()));
        match answer.recv_timeout(ANSWER_TIMEOUT) {
            Ok(names) => {
                self.answer = None;
                // A file keeps its name when others are read more. Few are named at a time.
                if self.known.len() > MAX_NAMES {
                    self.known.clear();
                }
                self.known.extend(names);
            }
            Err(RecvTimeoutError::Disconnected) => self.answer = None,
            Err(RecvTimeoutError::Timeout) => {}
        }
        &self.known
    }
}

fn ask(mount_point: PathBuf) -> Receiver<HashMap<u64, PathBuf>> {
    let (sender, answer) = channel();
    // Without an answer the channel is closed.
    let _ = thread::Builder::new().spawn(move || ask_daemon(&mount_point).map(|names| sender.send(names)));
    answer
}

fn ask_daemon(mount_point: &Path) -> anyhow::Result<HashMap<u64, PathBuf>> {
    let mut value = [0; 64];
    let length = rustix::fs::getxattr(mount_point, STATUS_XATTR, &mut value[..])?;
    let address = std::str::from_utf8(&value[..length])?.to_owned();
    let report = StatusClient::at(address).report()?;
    let hottest = report.activity.context("it sees nothing")?.hottest;
    let named = hottest.into_iter().filter_map(|file| {
        let path = PathBuf::from(file.path?);
        let below = path.strip_prefix(&report.filer_path).unwrap_or(&path);
        Some((file.node, mount_point.join(below.strip_prefix("/").unwrap_or(below))))
    });
    Ok(named.collect())
}

/// The open files of a mount, by inode number; without those of processes that this one may not
/// inspect.
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
