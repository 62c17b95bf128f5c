//! Descriptors of files of the mount below, which nodes have while they are used.
//!
//! They are made with `O_PATH`; what such a descriptor cannot do by itself is done through its name in `/proc`.
//!
//! A descriptor keeps a deleted file's space and the kernel's memory of the file below, and there are only so many. So none
//! is kept for longer than it is of use. Over a local file system nodes that have not been used for [`IDLE_TIMEOUT`] have
//! theirs closed, and come to the file again by its handle, which no other file gets. A FUSE mount below knows handles
//! only while it has the file in memory anyway; there directories are closed when descriptors get short, and found again
//! by their names.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};

use super::file_key::FileKey;
use super::nodes::Node;

/// How long the descriptor of a node is kept over a local file system after it was used.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// A path that leads to the file itself, whatever its name has become; links are not followed further. It is good as long
/// as the descriptor is open.
pub(super) fn proc_path(file: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// A descriptor of a file (`O_PATH`), which counts as long as it is open.
pub(super) struct NodeFile {
    file: OwnedFd,
    descriptors: Arc<Descriptors>,
}

impl NodeFile {
    pub(super) fn new(file: OwnedFd, descriptors: &Arc<Descriptors>) -> Arc<Self> {
        descriptors.open.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { file, descriptors: descriptors.clone() })
    }
}

impl Drop for NodeFile {
    fn drop(&mut self) {
        self.descriptors.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AsFd for NodeFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The descriptors of all nodes.
pub(super) struct Descriptors {
    /// Whether the mount below is a file system of this host's kernel.
    pub(super) is_local: bool,
    /// By it files are opened by their handles, where that is possible.
    by_handle: Option<OwnedFd>,
    open: AtomicUsize,
    /// Nodes that have one and should lose it when they are not used any more, those that got it first in front.
    used: Mutex<VecDeque<Weak<Node>>>,
}

impl Descriptors {
    /// Of a mount below with this root.
    pub(super) fn new(root: BorrowedFd<'_>, is_local: bool) -> Arc<Self> {
        let by_handle = if is_local { opens_by_handle(root).ok() } else { None };
        let (open, used) = (AtomicUsize::new(0), Mutex::default());
        Arc::new(Self { is_local, by_handle, open, used })
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Whether files are found again by their handles. Where they are not, as in a container without
    /// that right, descriptors are kept: names may lead elsewhere by then.
    pub(super) fn finds_by_handle(&self) -> bool {
        self.by_handle.is_some()
    }

    /// Opens a file by its handle; `None` where that is not possible.
    pub(super) fn open_by_handle(&self, key: &FileKey) -> Option<io::Result<OwnedFd>> {
        Some(key.open(self.by_handle.as_ref()?))
    }

    /// `node` has one from now on.
    pub(super) fn add(&self, node: &Arc<Node>) {
        if self.finds_by_handle() {
            self.used.lock().push_back(Arc::downgrade(node));
        }
    }

    /// Closes those of nodes that have not been used for [`IDLE_TIMEOUT`].
    pub(super) fn close_unused(&self) {
        let count = self.used.lock().len();
        for _ in 0..count {
            let Some(next) = self.used.lock().pop_front() else { return };
            let Some(node) = next.upgrade() else { continue };
            if !node.close_unused() && node.has_file() {
                self.used.lock().push_back(next);
            }
        }
    }
}

/// The descriptor by which the files of the mount with this root are opened by their handles, if this process may do so.
fn opens_by_handle(root: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mount = rustix::fs::open(proc_path(root), flags, Mode::empty())?;
    FileKey::of(root)?.open(&mount)?;
    Ok(mount)
}
