//! What the filer says of files of the mount below, and whether the two agree.
//!
//! An open for reading asks the [`namespace`](crate::namespace), which knows by the filer's events what has not changed, for the entry at the file's path, and
//! compares: the inode number, the size, and the time of modification to the nanosecond. The mount below is asked afresh, after what programs have
//! mapped and changed there was written back, so that whatever a handle has written that was open before we came shows in these. Where filer and mount below
//! agree, reads are answered by our [`reader`](crate::read). Who opens the small files of a directory in their order has the next ones fetched
//! ahead, as in a mount, and the directory [read below](super::open_directory).
//!
//! From then on the path is watched: an event about it, or about a directory above, ends that, as does the end of the stream of events.
//! Files with several names are left to the mount below, since an event names only one of them.

use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::Cluster;
use super::attributes::Attributes;
use super::content::{Basis, Quiet, Served, agree};
use super::inodes::Node;
use super::lower::{AttachError, Lower};
use super::open_directory::ReaddirAhead;
use super::open_file::OpenFile;
use super::version_source::{VersionSource, Whom};
use crate::fuse::MountError;
use crate::fuse::notices::{self, NoticeHandler};
use crate::namespace::next_files::NextFilePrefetcher;
use crate::namespace::{
    Filer, LookupResult, Namespace, NamespaceError, NamespaceOptions, NowOrLater, ROOT, find_root,
};
use crate::read::{FileVersion, Reader};
use crate::seaweed::entry::{Content, Entry, FileKind};
use crate::seaweed::subscribe::{EntryChange, EntryRef, subscribe};
use crate::vital;

/// How long an open waits for the filer before the file is left to the mount below.
const PATIENCE: Duration = Duration::from_secs(1);

/// Changes of the filer that may wait to be handled before its stream is slowed down.
const NOTICES: usize = 1024;

/// The filer's view of the mount below, and what is served by it.
pub(super) struct Entries {
    /// The directory of the filer that the mount below shows.
    root: String,
    namespace: Arc<Namespace>,
    reader: Arc<Reader>,
    runtime: Handle,
    next_files: NextFilePrefetcher,
    readdir_ahead: ReaddirAhead,
    watched: Mutex<Watched>,
}

/// Files that may be served, by their paths on the filer.
#[derive(Default)]
struct Watched {
    files: HashMap<String, Weak<Node>>,
    /// The number of files at which those that the kernel has forgotten are dropped.
    sweep_at: usize,
}

/// What the filer has at a path.
struct Listed {
    version: Arc<FileVersion>,
    entry: Arc<Entry>,
    /// Whether more files of its directory are about to be opened.
    is_walked: bool,
}

impl VersionSource for Entries {
    fn reader(&self) -> &Arc<Reader> {
        &self.reader
    }

    fn runtime(&self) -> &Handle {
        &self.runtime
    }

    fn is_live(&self) -> bool {
        self.namespace.is_live()
    }

    /// The bytes are the cluster's.
    fn serves_direct(&self) -> bool {
        true
    }

    /// Something, if filer and mount below agree on it. Waits for the filer.
    fn find(&self, file: &Arc<OpenFile>, attributes: &Attributes, _: Quiet, whom: Whom) -> Option<Served> {
        if !self.is_live() {
            return None;
        }
        let node = &file.node;
        let names = node.path()?;
        let names: Vec<_> = names.into_iter().map(OsString::into_string).collect::<Result<_, _>>().ok()?;
        let path = names.iter().fold(String::new(), |path, name| path + "/" + name);
        // Before the filer is asked, so that an event that comes after its answer finds it.
        self.watch(path, node);
        let asked =
            self.runtime.block_on(async { tokio::time::timeout(PATIENCE, self.look_up(&names, whom)).await });
        let found = asked.ok()?.ok()??;
        if found.is_walked
            && let (Some(directory), _) = node.home()
        {
            self.readdir_ahead.expect(directory, &self.runtime);
        }
        let has_bytes = matches!(found.entry.content, Content::Chunks(_) | Content::Inline(_));
        let can_be = found.entry.attr.kind == FileKind::File && has_bytes && found.entry.hard_link.is_none();
        if !can_be || !agree(&found.entry, attributes) {
            return None;
        }
        // What is known of a version, such as its layout, is worth keeping.
        let is_same = |before: &Served| matches!(&before.basis, Basis::Entry(entry) if entry.same_content(&found.entry));
        let before = node.content.served().filter(is_same);
        let version = before.map_or(found.version, |before| before.version);
        Some(Served { version, basis: Basis::Entry(found.entry) })
    }
}

impl Entries {
    /// Begins to follow what the filer says of the files of the mount below.
    pub(super) async fn start(lower: &Lower, cluster: Cluster) -> Result<Arc<Self>, AttachError> {
        let Cluster { filer, filer_path, reader, note } = cluster;
        let root = match (filer_path, lower.filer_path()) {
            (Some(given), Some(shown)) if given != shown => {
                return Err(AttachError::OtherDirectory { path: lower.path.clone(), given, shown });
            }
            (Some(path), _) | (None, Some(path)) => path,
            (None, None) => "/".into(),
        };
        let (sender, notices) = mpsc::channel(NOTICES);
        subscribe(filer.clone(), root.clone(), sender);
        let filer: Arc<dyn Filer> = Arc::new(filer);
        let entry = find_root(filer.as_ref(), &root).await.map_err(MountError::from)?;
        let entries = Self::new(filer, root, entry, reader, Handle::current());
        let (followed, notices) = (entries.clone(), note(notices));
        tokio::spawn(vital::task("changes", async move { notices::follow(&*followed, notices).await }));
        Ok(entries)
    }

    /// The view of the directory `root` of the filer, whose entry is `entry`.
    fn new(
        filer: Arc<dyn Filer>,
        root: String,
        entry: Entry,
        reader: Arc<Reader>,
        runtime: Handle,
    ) -> Arc<Self> {
        let options = NamespaceOptions {
            root_path: root.clone(),
            include_system_entries: true,
            ..NamespaceOptions::beside_cache(reader.cache_capacity())
        };
        // The kernel knows other nodes than these, so there is nothing it must be told.
        let (namespace, _) = Namespace::new(filer, entry, options, runtime.clone());
        let next_files = NextFilePrefetcher::new(&reader);
        Arc::new(Self {
            root,
            namespace,
            reader,
            runtime,
            next_files,
            readdir_ahead: ReaddirAhead::new(),
            watched: Mutex::default(),
        })
    }

    /// The entry at a path, and the version of a file that it stands for.
    async fn look_up(&self, names: &[String], whom: Whom) -> Result<Option<Listed>, NamespaceError> {
        let mut id = ROOT;
        for (at, name) in names.iter().enumerate() {
            let found = match self.namespace.lookup(id, name) {
                NowOrLater::Now(found) => found,
                NowOrLater::Later(found) => found.await,
            };
            let stat = match found? {
                LookupResult::Node(stat) => stat,
                LookupResult::Absent(_) => return Ok(None),
            };
            if at + 1 == names.len() {
                let version = self.namespace.version(stat.id);
                let is_walked = whom == Whom::Program
                    && version.as_ref().is_ok_and(|version| version.is_small_and_unread())
                    && self.next_files.follow_walk(&self.namespace, &self.reader, stat.id);
                self.namespace.forget(stat.id, 1);
                return Ok(Some(Listed { version: version?, entry: stat.entry, is_walked }));
            }
            // Directories stay known, and with them what they hold.
            id = stat.id;
        }
        Ok(None)
    }

    /// From now on events about `path` are about `node`. A file that had the path before is not heard of any more, and so not served.
    fn watch(&self, path: String, node: &Arc<Node>) {
        let mut watched = self.watched.lock();
        let before = watched.files.insert(path, Arc::downgrade(node));
        if let Some(before) = before.and_then(|before| before.upgrade()).filter(|it| !Arc::ptr_eq(it, node)) {
            before.content.changes();
        }
        if watched.files.len() >= watched.sweep_at {
            watched.files.retain(|_, node| node.strong_count() > 0);
            watched.sweep_at = (2 * watched.files.len()).max(1024);
        }
    }

    /// Leaves to the mount below what an event is about: a file, or whatever is in a directory.
    fn changed(&self, side: &EntryRef) {
        let directory = side.directory.trim_end_matches('/');
        let Some(below) = directory
            .strip_prefix(self.root.trim_end_matches('/'))
            .filter(|rest| rest.is_empty() || rest.starts_with('/'))
        else {
            return;
        };
        let path = format!("{below}/{}", side.entry.name);
        if side.entry.attr.kind == FileKind::Directory {
            let within = format!("{path}/");
            return self.leave(|path| path.starts_with(&within));
        }
        let left = self.watched.lock().files.remove(&path);
        if let Some(node) = left.and_then(|node| node.upgrade()) {
            node.content.changes();
        }
    }

    fn leave(&self, mut which: impl FnMut(&str) -> bool) {
        let left: Vec<_> = self.watched.lock().files.extract_if(|path, _| which(path)).collect();
        for node in left.into_iter().filter_map(|(_, node)| node.upgrade()) {
            node.content.changes();
        }
    }
}

impl NoticeHandler for Entries {
    const LIVE_MESSAGE: &str = "the filer's events arrive; reads are accelerated";
    const LOST_MESSAGE: &str = "the mount below answers all reads until the filer's events arrive again";

    fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    fn on_lost(&self) {
        self.leave(|_| true);
    }

    fn on_change(&self, change: &EntryChange) {
        self.namespace.apply(change);
        for side in change.old.iter().chain(&change.new) {
            self.changed(side);
        }
    }
}
