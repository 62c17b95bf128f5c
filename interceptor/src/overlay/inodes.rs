//! The files that the kernel knows, by the number it knows them by.
//!
//! A node is one file of the mount below: its [key](FileKey) and, while it is used, a [descriptor](NodeFile) of it, as long
//! as the kernel may name it. All names of a file are one node. The number of a node is the inode number of the file, so
//! that `stat` shows what the mount below shows; where that cannot be (another device, a number taken meanwhile by a daemon
//! below that gave it to another file) it is one from above [`OWN`].
//!
//! The number becomes another's once the kernel has forgotten the node. So what is remembered of a node for later refers
//! to the node itself.
//!
//! Descriptors of files of the mount below, which nodes have while they are used.
//!
//! They are made with `O_PATH`; what such a descriptor cannot do by itself is done through its name in `/proc`.
//!
//! A descriptor keeps a deleted file's space and the kernel's memory of the file below, and there are only so many. So none
//! is kept for longer than it is of use. Over a local file system nodes that have not been used for [`IDLE_TIMEOUT`] have
//! theirs closed, and come to the file again by its handle, which no other file gets. A FUSE mount below knows handles
//! only while it has the file in memory anyway; there directories are closed when descriptors get short, and found again
//! by their names.

use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{FileType, Mode, OFlags, openat};
use rustix::io::Errno;

use super::attributes::{Attributes, FileKey, proc_path};
use super::content::Content;
use crate::warmup::ticket::NodeInstance;

/// How long the descriptor of a node is kept over a local file system after it was used.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

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

/// The number of the root.
pub(super) const ROOT: u64 = 1;

/// Numbers of our own are the free ones from here on.
const OWN: u64 = 1 << 63;

/// One file.
pub(super) struct Node {
    pub(super) id: u64,
    /// Tells it from others that had the number before.
    pub(super) generation: u64,
    pub(super) file_type: FileType,
    pub(super) key: FileKey,
    /// Device and inode number below.
    number: (u64, u64),
    held: Mutex<Held>,
    descriptors: Arc<Descriptors>,
    /// Where it was found last: the directory, and the name in it.
    home: Mutex<(Weak<Node>, OsString)>,
    /// Whether an open was sent back because the name leads elsewhere.
    doubted: AtomicBool,
    /// Whether a name of it was taken away by way of the layer.
    removed_here: AtomicBool,
    /// What is known of its bytes, if it has some.
    pub(super) content: Content,
}

struct Held {
    file: Option<Arc<NodeFile>>,
    /// When the descriptor was asked for last.
    used: Instant,
}

fn stale() -> io::Error {
    io::Error::from_raw_os_error(libc::ESTALE)
}

impl Node {
    /// This use of its number.
    pub(super) fn instance(&self) -> NodeInstance {
        NodeInstance { node: self.id, serial: self.generation }
    }

    fn new(
        (id, generation): (u64, u64),
        key: FileKey,
        attributes: &Attributes,
        home: (Weak<Node>, OsString),
        descriptors: &Arc<Descriptors>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            generation,
            file_type: attributes.file_type(),
            key,
            number: attributes.number(),
            held: Mutex::new(Held { file: None, used: Instant::now() }),
            descriptors: descriptors.clone(),
            home: Mutex::new(home),
            doubted: AtomicBool::new(false),
            removed_here: AtomicBool::new(false),
            content: Content::default(),
        })
    }

    /// A descriptor of the file, open as long as it is referred to.
    ///
    /// # Errors
    /// `ESTALE` if the file was not held and does not exist any more, or cannot be found again: who came to it by a path
    /// is sent along that path again by the kernel.
    pub(super) fn file(self: &Arc<Self>) -> io::Result<Arc<NodeFile>> {
        if let Some(file) = self.held_file() {
            return Ok(file);
        }
        // Not under the lock, as the mount below may take its time.
        let file = match self.descriptors.open_by_handle(&self.key) {
            Some(opened) => opened?,
            None => self.find_again()?,
        };
        Ok(self.hold(file))
    }

    fn held_file(&self) -> Option<Arc<NodeFile>> {
        let mut held = self.held.lock();
        held.used = Instant::now();
        held.file.clone()
    }

    pub(super) fn has_file(&self) -> bool {
        self.held.lock().file.is_some()
    }

    /// Keeps `file`, unless there is a descriptor already.
    fn hold(self: &Arc<Self>, file: OwnedFd) -> Arc<NodeFile> {
        let file = {
            let mut held = self.held.lock();
            held.used = Instant::now();
            if let Some(held) = &held.file {
                return held.clone();
            }
            let file = NodeFile::new(file, &self.descriptors);
            held.file = Some(file.clone());
            file
        };
        self.descriptors.add(self);
        file
    }

    /// Opens the file by its name, and directories above that are not held by theirs.
    fn find_again(self: &Arc<Self>) -> io::Result<OwnedFd> {
        let mut path = vec![(self.clone(), OsString::new())];
        let mut directory = loop {
            let last = path.len() - 1;
            let (parent, name) = path[last].0.home();
            path[last].1 = name;
            let parent = parent.filter(|_| path.len() <= DEEPEST).ok_or_else(stale)?;
            match parent.held_file() {
                Some(file) => break file,
                None => path.push((parent, OsString::new())),
            }
        };
        while let Some((node, name)) = path.pop() {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = match openat(&*directory, &name, flags, Mode::empty()) {
                Err(Errno::NOENT | Errno::NOTDIR) => return Err(stale()),
                opened => opened?,
            };
            if !node.is(&file)? {
                return Err(stale());
            }
            if path.is_empty() {
                return Ok(file);
            }
            directory = node.hold(file);
        }
        Err(stale())
    }

    /// Whether `file` is this one. A FUSE mount below may have forgotten a directory, and given it another handle since.
    fn is(&self, file: &OwnedFd) -> io::Result<bool> {
        let has_key = FileKey::of(file)? == self.key;
        if self.descriptors.is_local || self.file_type != FileType::Directory {
            return Ok(has_key);
        }
        // What has closed its descriptor may have lost its key to another, too.
        let found = Attributes::of(file)?;
        Ok(found.file_type() == self.file_type && found.number() == self.number)
    }

    /// Closes the descriptor if it has not been used lately. Returns whether it did.
    pub(super) fn close_unused(self: &Arc<Self>) -> bool {
        // The table has it, and the caller.
        let is_idle = |held: &Held| Arc::strong_count(self) <= 2 && held.used.elapsed() >= IDLE_TIMEOUT;
        let Some(file) =
            Some(self.held.lock()).filter(|held| is_idle(held)).and_then(|held| held.file.clone())
        else {
            return false;
        };
        // No handle leads to what has no name any more. A directory takes no space to speak of; what was removed by way
        // of the layer the kernel forgets as soon as nobody uses it.
        let stays = (self.file_type == FileType::Directory || self.is_removed_here())
            && Attributes::of(&*file).is_ok_and(|attributes| attributes.links() == 0);
        drop(file);
        if stays {
            return false;
        }
        let closed = {
            let mut held = self.held.lock();
            // In one step: whoever asks for it meanwhile must find it, or find it gone.
            if is_idle(&held) { held.file.take() } else { None }
        };
        closed.is_some()
    }

    /// A name of it was taken away by way of the layer.
    pub(super) fn removed(&self) {
        self.removed_here.store(true, Ordering::Relaxed);
    }

    fn is_removed_here(&self) -> bool {
        self.removed_here.load(Ordering::Relaxed)
    }

    /// Where it was found last: the directory, unless the kernel has forgotten it, and the name in it.
    pub(super) fn home(&self) -> (Option<Arc<Node>>, OsString) {
        let home = self.home.lock();
        (home.0.upgrade(), home.1.clone())
    }

    /// The names that lead from the root to the file, as far as is known: of a rename by another way one hears at the next lookup.
    pub(super) fn path(&self) -> Option<Vec<OsString>> {
        let mut names = Vec::new();
        let (mut id, mut home) = (self.id, self.home());
        while id != ROOT {
            // Renames may have made a circle of what is remembered.
            if names.len() > DEEPEST {
                return None;
            }
            names.push(home.1);
            let parent = home.0?;
            id = parent.id;
            home = parent.home();
        }
        names.reverse();
        Some(names)
    }

    /// The same for people.
    pub(super) fn shown_path(&self) -> Option<String> {
        Some(self.path()?.iter().fold(String::new(), |path, name| path + "/" + &name.to_string_lossy()))
    }

    /// Whether the file that has its name now is another, and nobody was told of that since it was found.
    pub(super) fn is_replaced_by(&self, other: &FileKey) -> bool {
        self.key != *other && !self.doubted.swap(true, Ordering::Relaxed)
    }

    fn is_at(&self, parent: &Arc<Node>, name: &OsStr) {
        if self.id != ROOT {
            *self.home.lock() = (Arc::downgrade(parent), name.to_owned());
            self.doubted.store(false, Ordering::Relaxed);
        }
    }
}

struct Known {
    node: Arc<Node>,
    /// How often the kernel was told of it, less how often it has forgotten that.
    lookups: u64,
}

struct Table {
    by_id: HashMap<u64, Known>,
    by_key: HashMap<FileKey, u64>,
    /// The device of the root.
    device: u64,
    next_own: u64,
    next_generation: u64,
}

/// All nodes.
pub(super) struct Nodes {
    table: Mutex<Table>,
    descriptors: Arc<Descriptors>,
    /// The number of descriptors at which `crowded` is told.
    most: usize,
    crowded: SyncSender<()>,
    /// Held by the thread that closes descriptors to have one itself.
    relieving: Mutex<()>,
}

/// How many descriptors are closed when one is needed and there is none.
const RELIEF: usize = 1024;

/// A name that the kernel should forget. While this lives its directory keeps the number that it has.
pub(super) struct Forgettable<'a> {
    nodes: &'a Nodes,
    pub(super) directory: u64,
    pub(super) name: OsString,
}

impl Drop for Forgettable<'_> {
    fn drop(&mut self) {
        self.nodes.forget(self.directory, 1);
    }
}

impl Nodes {
    /// Only the root, which is never forgotten. When its files take more than `most` descriptors, `crowded` is told.
    ///
    /// # Errors
    /// When the mount below does not tell which file its root is.
    pub(super) fn new(
        root: OwnedFd,
        attributes: &Attributes,
        is_local: bool,
        most: usize,
        crowded: SyncSender<()>,
    ) -> io::Result<Self> {
        let key = FileKey::of(&root)?;
        let descriptors = Descriptors::new(root.as_fd(), is_local);
        let node = Node::new((ROOT, 0), key.clone(), attributes, Default::default(), &descriptors);
        node.held.lock().file = Some(NodeFile::new(root, &descriptors));
        let table = Mutex::new(Table {
            by_id: HashMap::from([(ROOT, Known { node, lookups: 1 })]),
            by_key: HashMap::from([(key, ROOT)]),
            device: attributes.number().0,
            next_own: OWN,
            next_generation: 1,
        });
        Ok(Self { table, descriptors, most, crowded, relieving: Mutex::new(()) })
    }

    pub(super) fn get(&self, id: u64) -> Option<Arc<Node>> {
        self.table.lock().by_id.get(&id).map(|known| known.node.clone())
    }

    /// The node of the file with this key.
    pub(super) fn known(&self, key: &FileKey) -> Option<Arc<Node>> {
        let table = self.table.lock();
        Some(table.by_key.get(key).and_then(|id| table.by_id.get(id))?.node.clone())
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.table.lock().by_id.len()
    }

    /// The node of a file that was found as `name` in the directory `parent`, counting one lookup of it.
    pub(super) fn found(
        &self,
        (parent, name): (&Arc<Node>, &OsStr),
        file: OwnedFd,
        attributes: &Attributes,
    ) -> io::Result<Arc<Node>> {
        let key = FileKey::of(&file)?;
        let node = self.table.lock().look_up(key, attributes, &self.descriptors);
        node.is_at(parent, name);
        node.hold(file);
        if self.is_crowded() {
            // Full: somebody has said so before.
            let _ = self.crowded.try_send(());
        }
        Ok(node)
    }

    /// The kernel knows the file by another name now, `name` in the directory `parent`, without having looked for it there. Returns its node.
    pub(super) fn moved(&self, key: &FileKey, (parent, name): (&Arc<Node>, &OsStr)) -> Option<Arc<Node>> {
        let node = self.known(key)?;
        node.is_at(parent, name);
        Some(node)
    }

    /// Whether there are more descriptors than there should be.
    pub(super) fn is_crowded(&self) -> bool {
        self.descriptors.count() > self.most
    }

    /// Does what takes a descriptor; if there is none left, closes those that nobody needs now, and does it again.
    pub(super) fn with_descriptor<T>(&self, open: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match open() {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                let _ = self.crowded.try_send(());
                // One thread at a time, and no more than it takes: each looks through the table.
                if let Some(_relieving) = self.relieving.try_lock() {
                    self.close_idle(RELIEF);
                }
                open()
            }
            opened => opened,
        }
    }

    /// Closes descriptors that have not been used for longest and that nobody needs now, and gives the names of files
    /// whose descriptors go when the kernel forgets them: together a quarter of all.
    pub(super) fn relieve(&self) -> Vec<Forgettable<'_>> {
        self.close_idle(self.descriptors.count() / 4)
    }

    /// The same for up to `most` of them.
    fn close_idle(&self, most: usize) -> Vec<Forgettable<'_>> {
        let (mut closed, mut names) = (Vec::new(), Vec::new());
        {
            let mut table = self.table.lock();
            let is_idle = |node: &Arc<Node>| {
                node.id != ROOT && Arc::strong_count(node) == 1 && node.has_file() && !node.is_removed_here()
            };
            let idle = table.by_id.values().map(|known| &known.node).filter(|node| is_idle(node));
            let mut idle: Vec<_> =
                idle.map(|node| (node.held.lock().used, node.generation, node.id)).collect();
            if most < idle.len() {
                idle.select_nth_unstable(most);
                idle.truncate(most);
            }
            for (_, _, id) in idle {
                let Some(Known { node, .. }) = table.by_id.get(&id) else { continue };
                if self.descriptors.finds_by_handle() || node.file_type == FileType::Directory {
                    closed.push(node.held.lock().file.take());
                    continue;
                }
                let (parent, name) = node.home();
                let Some(parent) = parent else { continue };
                // One that the kernel has forgotten may have left its number to another.
                if let Some(known) =
                    table.by_id.get_mut(&parent.id).filter(|it| Arc::ptr_eq(&it.node, &parent))
                {
                    known.lookups += 1;
                    names.push(Forgettable { nodes: self, directory: parent.id, name });
                }
            }
        }
        // Closing a descriptor may ask the mount below, so not under the lock.
        drop(closed);
        names
    }

    /// Closes descriptors that have not been used for a while, where they should not stay.
    pub(super) fn close_unused(&self) {
        self.descriptors.close_unused();
    }

    /// Whether that has to be done.
    pub(super) fn closes_unused(&self) -> bool {
        self.descriptors.finds_by_handle()
    }

    /// The kernel forgot `count` of the lookups it was told of.
    pub(super) fn forget(&self, id: u64, count: u64) {
        let gone = {
            let mut table = self.table.lock();
            let Some(known) = table.by_id.get_mut(&id) else { return };
            known.lookups = known.lookups.saturating_sub(count);
            if known.lookups > 0 || id == ROOT {
                return;
            }
            let gone = table.by_id.remove(&id);
            if let Some(known) = &gone
                && table.by_key.get(&known.node.key) == Some(&id)
            {
                table.by_key.remove(&known.node.key);
            }
            gone
        };
        // Closing a descriptor may ask the mount below, so not under the lock.
        drop(gone);
    }
}

/// Names in a path that is still looked at; `PATH_MAX` has room for as many.
const DEEPEST: usize = 2048;

impl Table {
    /// The node of a file with this key, counting one lookup of it.
    fn look_up(
        &mut self,
        key: FileKey,
        attributes: &Attributes,
        descriptors: &Arc<Descriptors>,
    ) -> Arc<Node> {
        if let Some(known) = self.by_key.get(&key).and_then(|id| self.by_id.get_mut(id))
            && known.node.file_type == attributes.file_type()
            // Without a descriptor nothing has kept the key from becoming another file's.
            && (known.node.has_file() || known.node.number == attributes.number())
        {
            known.lookups += 1;
            return known.node.clone();
        }
        let id = self.free_id(attributes.number());
        let generation = self.next_generation;
        self.next_generation += 1;
        let node = Node::new((id, generation), key.clone(), attributes, Default::default(), descriptors);
        self.by_id.insert(id, Known { node: node.clone(), lookups: 1 });
        self.by_key.insert(key, id);
        node
    }

    fn free_id(&mut self, (device, inode): (u64, u64)) -> u64 {
        if device == self.device && inode > ROOT && !self.by_id.contains_key(&inode) {
            return inode;
        }
        // Files below may have such numbers, too.
        loop {
            self.next_own = self.next_own.checked_add(1).unwrap_or(OWN);
            if !self.by_id.contains_key(&self.next_own) {
                return self.next_own;
            }
        }
    }
}

#[cfg(test)]
impl Nodes {
    /// Of a FUSE mount, without a bound.
    pub(super) fn of_one(root: OwnedFd, attributes: &Attributes) -> Self {
        Self::new(root, attributes, false, usize::MAX, std::sync::mpsc::sync_channel(1).0).unwrap()
    }
}

#[cfg(test)]
mod tests;
