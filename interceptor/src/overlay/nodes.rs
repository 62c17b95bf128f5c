//! The files that the kernel knows, by the number it knows them by.
//!
//! A node is one file of the mount below: its [key](FileKey) and, while it is used, a [descriptor](NodeFile) of it, as long
//! as the kernel may name it. All names of a file are one node. The number of a node is the inode number of the file, so
//! that `stat` shows what the mount below shows; where that cannot be (another device, a number taken meanwhile by a daemon
//! below that gave it to another file) it is one from above [`OWN`].
//!
//! The number becomes another's once the kernel has forgotten the node. So what is remembered of a node for later refers
//! to the node itself.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;
use rustix::fs::{FileType, Mode, OFlags, openat};
use rustix::io::Errno;

use super::attributes::Attributes;
use super::coherence::Content;
use super::file_key::FileKey;
use super::node_file::{Descriptors, IDLE_TIMEOUT, NodeFile};
use crate::warmup::ticket::NodeInstance;

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

    /// The names that lead from the root to a file, as far as is known: of a rename by another way one hears at the next lookup.
    pub(super) fn path(&self, node: &Node) -> Option<Vec<OsString>> {
        let mut names = Vec::new();
        let (mut id, mut home) = (node.id, node.home());
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
}

impl Nodes {
    /// The same for people.
    pub(super) fn shown_path(&self, node: &Node) -> Option<String> {
        let names = self.path(node)?;
        Some(names.iter().fold(String::new(), |path, name| path + "/" + &name.to_string_lossy()))
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
        Self::new(root, attributes, false, usize::MAX, super::remembered::alarm().0).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn open(path: &std::path::Path) -> (OwnedFd, Attributes) {
        let file: OwnedFd = File::open(path).unwrap().into();
        let attributes = Attributes::of(&file).unwrap();
        (file, attributes)
    }

    /// The nodes of a directory, and one that has been found in it.
    fn nodes_of(dir: &std::path::Path, is_local: bool, name: &str) -> (Nodes, Arc<Node>) {
        let (root, attributes) = open(dir);
        let alarm = crate::overlay::remembered::alarm().0;
        let nodes = Nodes::new(root, &attributes, is_local, usize::MAX, alarm).unwrap();
        let node = find(&nodes, &nodes.get(ROOT).unwrap(), dir, name);
        (nodes, node)
    }

    fn find(nodes: &Nodes, parent: &Arc<Node>, dir: &std::path::Path, name: &str) -> Arc<Node> {
        let (file, attributes) = open(&dir.join(name));
        nodes.found((parent, OsStr::new(name)), file, &attributes).unwrap()
    }

    #[test]
    fn idle_directories_of_a_fuse_mount_are_found_again_by_name_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let outer = dir.path().join("outer");
        fs::create_dir_all(outer.join("inner")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let (nodes, node) = nodes_of(dir.path(), false, "outer");
        let inner = find(&nodes, &node, &outer, "inner").id;
        let file = find(&nodes, &nodes.get(ROOT).unwrap(), dir.path(), "file").id;
        let node = { node }.id;
        let names = nodes.close_idle(usize::MAX);
        assert_eq!(names.iter().map(|name| &*name.name).collect::<Vec<_>>(), ["file"]);
        drop(names);
        assert_eq!(nodes.descriptors.count(), 2, "the root, and the file until the kernel forgets it");
        nodes.forget(file, 1);
        assert_eq!(nodes.descriptors.count(), 1);

        let inner = nodes.get(inner).unwrap();
        let found = Attributes::of(&*inner.file().unwrap()).unwrap();
        assert_eq!(found.number(), open(&outer.join("inner")).1.number());
        assert!(nodes.get(node).unwrap().has_file(), "on the way");
        drop(inner);
        nodes.close_idle(usize::MAX);
        fs::rename(&outer, dir.path().join("elsewhere")).unwrap();
        fs::create_dir(&outer).unwrap();
        let error = nodes.get(node).unwrap().file().err().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "another has its name");
    }

    #[test]
    fn idle_files_of_a_local_file_system_are_closed_and_found_wherever_they_are() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let (nodes, node) = nodes_of(dir.path(), true, "file");
        if nodes.descriptors.open_by_handle(&node.key).is_none() {
            return;
        }
        let id = node.id;
        nodes.close_unused();
        assert!(node.has_file(), "it was used just now");
        let long_ago = Instant::now() - 2 * IDLE_TIMEOUT;
        node.held.lock().used = long_ago;
        let open = node.clone();
        nodes.close_unused();
        assert!(node.has_file(), "somebody has it open");
        drop((open, node));
        nodes.close_unused();
        assert!(!nodes.get(id).unwrap().has_file());
        fs::rename(dir.path().join("file"), dir.path().join("renamed")).unwrap();
        let found = Attributes::of(&*nodes.get(id).unwrap().file().unwrap()).unwrap();
        assert_eq!(found.number(), open_at(dir.path(), "renamed"));
        nodes.close_idle(usize::MAX);
        fs::remove_file(dir.path().join("renamed")).unwrap();
        let error = nodes.get(id).unwrap().file().err().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
    }

    fn open_at(dir: &std::path::Path, name: &str) -> (u64, u64) {
        open(&dir.join(name)).1.number()
    }

    #[test]
    fn a_name_to_be_forgotten_is_of_the_directory_that_had_it() {
        let dir = tempfile::tempdir().unwrap();
        let outer = dir.path().join("outer");
        fs::create_dir(&outer).unwrap();
        fs::write(outer.join("file"), "").unwrap();
        let (nodes, node) = nodes_of(dir.path(), false, "outer");
        find(&nodes, &node, &outer, "file");
        let id = { node }.id;
        let names = nodes.close_idle(usize::MAX);
        assert_eq!((names.len(), names[0].directory), (1, id));
        nodes.forget(id, 1);
        assert!(nodes.get(id).is_some(), "its number may not become another's yet");
        drop(names);
        assert!(nodes.get(id).is_none());
        assert!(nodes.close_idle(usize::MAX).is_empty(), "the number may be another's");
    }

    #[test]
    fn names_of_a_file_are_one_node_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&a, "").unwrap();
        std::fs::hard_link(&a, &b).unwrap();
        let (root, attributes) = open(dir.path());
        let nodes = Nodes::of_one(root, &attributes);
        let find = |path: &std::path::Path| {
            let (file, attributes) = open(path);
            nodes.found((&nodes.get(ROOT).unwrap(), path.file_name().unwrap()), file, &attributes).unwrap()
        };
        let first = find(&a);
        assert_eq!(first.id, open(&a).1.number().1, "the inode number is the node's");
        assert_eq!(find(&b).id, first.id);
        assert_eq!(nodes.path(&first).unwrap(), ["b"]);
        let root = nodes.get(ROOT).unwrap();
        assert_eq!(nodes.moved(&first.key, (&root, "c".as_ref())).unwrap().id, first.id);
        assert_eq!(nodes.path(&first).unwrap(), ["c"]);
        nodes.forget(first.id, 1);
        assert!(nodes.get(first.id).is_some());
        nodes.forget(first.id, 1);
        assert!(nodes.get(first.id).is_none());
        assert_eq!(nodes.len(), 1);
        assert!(find(&a).generation > first.generation);
        nodes.forget(ROOT, 100);
        assert!(nodes.get(ROOT).is_some());
    }

    #[test]
    fn a_number_that_became_another_kind_of_file_is_another_node() {
        let dir = tempfile::tempdir().unwrap();
        let (root, attributes) = open(dir.path());
        let dir_again = File::open(dir.path()).unwrap();
        let nodes = Nodes::of_one(root, &attributes);
        std::fs::write(dir.path().join("file"), "").unwrap();
        let (file, of_file) = open(&dir.path().join("file"));
        let root = nodes.get(ROOT).unwrap();
        let node = nodes.found((&root, OsStr::new("file")), file, &of_file).unwrap();
        // A daemon below gave the number to a directory: as if the table knew the old file under the directory's key.
        let key = FileKey::of(dir_again).unwrap();
        {
            let mut table = nodes.table.lock();
            table.by_key.insert(key, node.id);
        }
        let (directory, of_directory) = open(dir.path());
        let other = nodes.found((&root, OsStr::new("directory")), directory, &of_directory).unwrap();
        assert_ne!(other.id, node.id);
        assert!(nodes.get(node.id).is_some(), "the kernel may still name it");
    }

    #[test]
    fn when_there_are_many_those_go_that_nobody_has_used_for_longest() {
        let dir = tempfile::tempdir().unwrap();
        let (root, attributes) = open(dir.path());
        let (crowded, alarm) = crate::overlay::remembered::alarm();
        let nodes = Nodes::new(root, &attributes, false, 10, crowded).unwrap();
        let (root, mut held) = (nodes.get(ROOT).unwrap(), Vec::new());
        for number in 0..20 {
            let name = format!("{number:02}");
            match number {
                0 => fs::create_dir(dir.path().join(&name)).unwrap(),
                _ => fs::write(dir.path().join(&name), "").unwrap(),
            }
            assert_eq!(alarm.try_recv().is_ok(), number > 9);
            let node = find(&nodes, &root, dir.path(), &name);
            // As an open file does.
            if number == 2 {
                held.push(node);
            }
        }
        let names = nodes.relieve();
        let mut names: Vec<_> = names.iter().map(|forgettable| &*forgettable.name).collect();
        names.sort();
        assert_eq!(names, ["01", "03", "04", "05"], "and the directory");
        assert_eq!(nodes.descriptors.count(), 20);
    }

    #[test]
    fn where_files_are_not_found_by_handle_descriptors_stay() {
        // Another user for the file system, on this thread alone: it takes the right to open by
        // handles away.
        let nobody = nix::unistd::Uid::from_raw(65534);
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let mine = nix::unistd::setfsuid(nobody);
        let (nodes, node) = nodes_of(dir.path(), true, "file");
        nix::unistd::setfsuid(mine);
        assert!(!nodes.descriptors.finds_by_handle());
        node.held.lock().used = Instant::now() - 2 * IDLE_TIMEOUT;
        let id = { node }.id;
        nodes.close_unused();
        let names = nodes.close_idle(usize::MAX);
        assert_eq!(names.len(), 1, "the kernel can forget it");
        assert!(nodes.get(id).unwrap().has_file(), "its name may lead elsewhere by now");
    }

    #[test]
    fn a_directory_without_a_descriptor_may_have_lost_its_key_to_another() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["old", "new"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let (nodes, old) = nodes_of(dir.path(), false, "old");
        let old = { old }.id;
        let key = FileKey::of(File::open(dir.path().join("new")).unwrap()).unwrap();
        // As if the daemon below had given it to the other one.
        nodes.table.lock().by_key.insert(key, old);
        nodes.close_idle(usize::MAX);
        assert!(!nodes.get(old).unwrap().has_file());
        let new = find(&nodes, &nodes.get(ROOT).unwrap(), dir.path(), "new");
        assert_ne!(new.id, old);
        assert_eq!(new.number, open_at(dir.path(), "new"));
    }
}
