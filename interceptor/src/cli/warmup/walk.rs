//! Finds the files that arguments, or lines of a list, name, with the rights of the calling user.
//!
//! A thread of its own walks ahead of the daemon, so that the total is known early; the channel
//! bounds how far ahead.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use nix::unistd::{AccessFlags, access};

use crate::cli::mount_address::explain;

/// Files that may have been found and not yet taken.
const FOUND_CAPACITY: usize = 1 << 16;

/// Where to look.
#[derive(Debug, Clone)]
pub(super) enum WarmupArgument {
    /// At a file or a tree.
    Path(PathBuf),
    /// At those that standard input names, each ended by this byte.
    List(u8),
}

/// Something that was found.
#[derive(Debug)]
pub(super) enum WalkItem {
    /// A regular file.
    File {
        /// Which argument named it.
        argument: usize,
        /// Where it is.
        path: PathBuf,
    },
    /// Something that cannot be used.
    Problem {
        /// Which argument named it, or the tree that it is in.
        argument: usize,
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// How much has been found so far, in bytes where it is no number of files.
#[derive(Debug, Default)]
pub(super) struct WalkTotals {
    pub(super) files: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// Whether that is all.
    pub(super) complete: AtomicBool,
}

/// Says why a file or directory is in no mount of ours, if so.
type RejectFile = fn(&File) -> Result<(), String>;

/// Walks all of `arguments`, in order, except those that `reject` rejects. The thread ends when
/// the receiver is dropped.
pub(super) fn start(
    arguments: Vec<WarmupArgument>,
    reject: RejectFile,
) -> io::Result<(Receiver<WalkItem>, Arc<WalkTotals>)> {
    let (sender, receiver) = sync_channel(FOUND_CAPACITY);
    let totals = Arc::new(WalkTotals::default());
    let walk = TreeWalk { sender, totals: totals.clone(), reject };
    std::thread::Builder::new().name("walk".into()).spawn(move || {
        // An error means that the receiver was dropped.
        let all =
            arguments.iter().enumerate().try_for_each(|(number, argument)| walk.argument(number, argument));
        if all.is_ok() {
            walk.totals.complete.store(true, Ordering::Relaxed);
        }
    })?;
    Ok((receiver, totals))
}

/// Opens a file so that the descriptor keeps meaning this file, without reading it or following a
/// link to it.
pub(super) fn hold(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)
}

/// The receiver was dropped.
struct ReceiverDropped;

struct TreeWalk {
    sender: SyncSender<WalkItem>,
    totals: Arc<WalkTotals>,
    reject: RejectFile,
}

impl TreeWalk {
    fn argument(&self, number: usize, argument: &WarmupArgument) -> Result<(), ReceiverDropped> {
        match argument {
            WarmupArgument::Path(path) => self.named(number, path),
            WarmupArgument::List(end) => {
                for name in io::stdin().lock().split(*end) {
                    match name {
                        Ok(name) if name.is_empty() => {}
                        Ok(name) => self.named(number, &PathBuf::from(std::ffi::OsString::from_vec(name)))?,
                        Err(error) => {
                            return self.problem(number, Path::new("standard input"), error.to_string());
                        }
                    }
                }
                Ok(())
            }
        }
    }

    /// Takes a named file or tree. A link is followed, unlike one that is found in a tree. Trees
    /// outside of our mounts are not walked.
    fn named(&self, argument: usize, path: &Path) -> Result<(), ReceiverDropped> {
        let held = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path);
        let found = held.and_then(|file| Ok((file.metadata()?, file)));
        let (meta, file) = match found {
            Ok((meta, file)) if meta.is_dir() || meta.is_file() => (meta, file),
            Ok(_) => return self.problem(argument, path, "neither a file nor a directory".into()),
            Err(error) => return self.problem(argument, path, explain(&error)),
        };
        if let Err(reason) = (self.reject)(&file) {
            return self.problem(argument, path, reason);
        }
        if meta.is_dir() {
            return self.tree(argument, path.to_owned(), meta.dev());
        }
        match fs::canonicalize(path) {
            Ok(path) => self.file(argument, path, meta.len()),
            Err(error) => self.problem(argument, path, explain(&error)),
        }
    }

    fn tree(&self, argument: usize, root: PathBuf, device: u64) -> Result<(), ReceiverDropped> {
        let mut directories = vec![root];
        while let Some(directory) = directories.pop() {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) => {
                    self.problem(argument, &directory, explain(&error))?;
                    continue;
                }
            };
            let mut below = Vec::new();
            for entry in entries {
                let (path, meta) = match entry.and_then(|entry| Ok((entry.path(), entry.metadata()?))) {
                    Ok(found) => found,
                    // It was there a moment ago.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => {
                        self.problem(argument, &directory, explain(&error))?;
                        break;
                    }
                };
                if meta.is_dir() && meta.dev() == device {
                    below.push(path);
                } else if meta.is_file() && meta.dev() == device {
                    self.file(argument, path, meta.len())?;
                }
            }
            // Taken from the end: in the order of the listing.
            directories.extend(below.into_iter().rev());
        }
        Ok(())
    }

    fn file(&self, argument: usize, path: PathBuf, size: u64) -> Result<(), ReceiverDropped> {
        if let Err(errno) = access(&path, AccessFlags::R_OK) {
            return self.problem(argument, &path, explain(&errno.into()));
        }
        self.totals.files.fetch_add(1, Ordering::Relaxed);
        self.totals.bytes.fetch_add(size, Ordering::Relaxed);
        self.send(WalkItem::File { argument, path })
    }

    fn problem(&self, argument: usize, path: &Path, reason: String) -> Result<(), ReceiverDropped> {
        self.send(WalkItem::Problem { argument, path: path.to_owned(), reason })
    }

    fn send(&self, found: WalkItem) -> Result<(), ReceiverDropped> {
        self.sender.send(found).map_err(|_| ReceiverDropped)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn found(paths: Vec<PathBuf>) -> (Vec<(usize, PathBuf)>, Vec<String>, Arc<WalkTotals>) {
        let (found, totals) =
            start(paths.into_iter().map(WarmupArgument::Path).collect(), |_| Ok(())).unwrap();
        let (mut files, mut problems) = (Vec::new(), Vec::new());
        for found in found {
            match found {
                WalkItem::File { argument, path } => files.push((argument, path)),
                WalkItem::Problem { path, reason, .. } => {
                    problems.push(format!("{}: {reason}", path.display()));
                }
            }
        }
        files.sort();
        (files, problems, totals)
    }

    #[test]
    fn trees_and_files_are_found_once_and_links_in_trees_are_not_followed() {
        let home = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(home.path()).unwrap();
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        fs::write(root.join("a/one"), "1").unwrap();
        fs::write(root.join("a/b/c/two"), "22").unwrap();
        symlink(root.join("a/one"), root.join("a/b/link")).unwrap();
        symlink(&root, root.join("a/b/loop")).unwrap();
        let (files, problems, totals) =
            found(vec![root.join("a"), root.join("a/b/link"), root.join("none"), "/dev/null".into()]);
        let expected = [(0, root.join("a/b/c/two")), (0, root.join("a/one")), (1, root.join("a/one"))];
        assert_eq!(files, expected);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(
            problems[0].contains("No such file") && problems[1].contains("neither a file"),
            "{problems:?}"
        );
        assert_eq!((totals.files.load(Ordering::Relaxed), totals.bytes.load(Ordering::Relaxed)), (3, 4));
    }
}
