//! Versions from a cluster's filer, for files on which filer and lower mount agree.
//!
//! An open for reading looks up the entry at the file's path in a [`namespace`](crate::namespace),
//! which stays current by the filer's events. It compares the entry's inode number, size and
//! mtime, to the nanosecond, with the lower file's. Those are fetched anew, after mapped changes
//! were written back, so that they include writes of handles that were open before the overlay
//! came. If they match, the [`reader`](crate::read) answers. When small files of a directory are
//! opened in turn, the next ones are fetched ahead, as in a mount, and the directory is [read
//! below](super::open_directory).
//!
//! From then on the path is watched. An event about it or about a parent directory, and the end of
//! the event stream, hand reads back to the lower mount. That also answers alone for files with
//! several hard links, since an event names only one of them.

use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::Cluster;
use super::attributes::Attributes;
use super::content::{ChangeToken, ServedVersion, VersionBasis, entry_matches};
use super::error::AttachError;
use super::inodes::Inode;
use super::lower::LowerMount;
use super::open_directory::ReaddirAhead;
use super::open_file::OpenFile;
use super::version_source::{OpenIntent, VersionSource};
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

/// How long an open waits for the filer. After that the lower mount answers.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);

/// How many events of the filer may queue before its stream is throttled.
const NOTICE_CAPACITY: usize = 1024;

/// The filer's view of the lower mount.
pub(super) struct FilerSource {
    /// The directory of the filer that the lower mount shows.
    root: String,
    namespace: Arc<Namespace>,
    reader: Arc<Reader>,
    runtime: Handle,
    next_files: NextFilePrefetcher,
    readdir_ahead: ReaddirAhead,
    watched: Mutex<WatchedPaths>,
}

/// Files that may be served, by path relative to the mounted directory.
#[derive(Default)]
struct WatchedPaths {
    files: HashMap<String, Weak<Inode>>,
    /// The number of files at which those of forgotten inodes are dropped.
    sweep_threshold: usize,
}

/// What the filer has at a path.
struct ResolvedEntry {
    version: Arc<FileVersion>,
    entry: Arc<Entry>,
    /// Whether files of the directory are being opened in turn.
    is_sequential_walk: bool,
}

impl VersionSource for FilerSource {
    fn reader(&self) -> &Arc<Reader> {
        &self.reader
    }

    fn runtime(&self) -> &Handle {
        &self.runtime
    }

    fn is_live(&self) -> bool {
        self.namespace.is_live()
    }

    /// `O_DIRECT` asks for the lower mount's bytes, which are the cluster's.
    fn serves_direct(&self) -> bool {
        true
    }

    /// A version, if filer and lower mount agree on the file.
    fn find(
        &self,
        file: &Arc<OpenFile>,
        attributes: &Attributes,
        _: ChangeToken,
        intent: OpenIntent,
    ) -> Option<ServedVersion> {
        if !self.is_live() {
            return None;
        }
        let inode = &file.inode;
        let names = inode.path()?;
        let names: Vec<_> = names.into_iter().map(OsString::into_string).collect::<Result<_, _>>().ok()?;
        let path = names.iter().fold(String::new(), |path, name| path + "/" + name);
        // Before the filer is asked, so that an event that follows its answer is not missed.
        self.watch(path, inode);
        let answer = self
            .runtime
            .block_on(async { tokio::time::timeout(LOOKUP_TIMEOUT, self.look_up(&names, intent)).await });
        let found = answer.ok()?.ok()??;
        if found.is_sequential_walk
            && let (Some(directory), _) = inode.dentry()
        {
            self.readdir_ahead.read_ahead(directory, &self.runtime);
        }
        let has_bytes = matches!(found.entry.content, Content::Chunks(_) | Content::Inline(_));
        let is_servable =
            found.entry.attr.kind == FileKind::File && has_bytes && found.entry.hard_link.is_none();
        if !is_servable || !entry_matches(&found.entry, attributes) {
            return None;
        }
        // Keeps the version that was served before, with its resolved layout, if the content is
        // the same.
        let is_same = |before: &ServedVersion| matches!(&before.basis, VersionBasis::FilerEntry(entry) if entry.same_content(&found.entry));
        let before = inode.content.served().filter(is_same);
        let version = before.map_or(found.version, |before| before.version);
        Some(ServedVersion { version, basis: VersionBasis::FilerEntry(found.entry) })
    }
}

impl FilerSource {
    /// Subscribes to the filer's events about the mounted directory, and starts to follow them.
    pub(super) async fn start(lower: &LowerMount, cluster: Cluster) -> Result<Arc<Self>, AttachError> {
        let Cluster { filer, filer_path, reader, observe_notices } = cluster;
        let root = match (filer_path, lower.filer_path()) {
            (Some(given), Some(shown)) if given != shown => {
                return Err(AttachError::OtherDirectory { path: lower.path.clone(), given, shown });
            }
            (Some(path), _) | (None, Some(path)) => path,
            (None, None) => "/".into(),
        };
        let (sender, notices) = mpsc::channel(NOTICE_CAPACITY);
        subscribe(filer.clone(), root.clone(), sender);
        let filer: Arc<dyn Filer> = Arc::new(filer);
        reader.metrics().slow_reads().followers().set_root(&root);
        let entry = find_root(filer.as_ref(), &root).await.map_err(MountError::from)?;
        let source = Self::new(filer, root, entry, reader, Handle::current());
        let (followed, notices) = (source.clone(), observe_notices(notices));
        tokio::spawn(vital::task("changes", async move { notices::follow(&*followed, notices).await }));
        Ok(source)
    }

    /// A view of the filer's directory `root`, whose entry is `entry`.
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
        // The kernel does not know this namespace's nodes, so it needs no invalidations.
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

    /// The entry at a path, and its version.
    async fn look_up(
        &self,
        names: &[String],
        intent: OpenIntent,
    ) -> Result<Option<ResolvedEntry>, NamespaceError> {
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
                let is_sequential_walk = intent == OpenIntent::Read
                    && version.as_ref().is_ok_and(|version| version.is_small_and_unread())
                    && self.next_files.follow_walk(&self.namespace, &self.reader, stat.id);
                self.namespace.forget(stat.id, 1);
                return Ok(Some(ResolvedEntry { version: version?, entry: stat.entry, is_sequential_walk }));
            }
            // Directories are not forgotten, so that what they hold stays known.
            id = stat.id;
        }
        Ok(None)
    }

    /// Applies events about `path` to `inode` from now on. An inode that had the path before is no
    /// longer served.
    fn watch(&self, path: String, inode: &Arc<Inode>) {
        let mut watched = self.watched.lock();
        let before = watched.files.insert(path, Arc::downgrade(inode));
        if let Some(before) = before.and_then(|before| before.upgrade()).filter(|it| !Arc::ptr_eq(it, inode))
        {
            before.content.mark_changed();
        }
        if watched.files.len() >= watched.sweep_threshold {
            watched.files.retain(|_, inode| inode.strong_count() > 0);
            watched.sweep_threshold = (2 * watched.files.len()).max(1024);
        }
    }

    /// Hands to the lower mount the reads of the file that an event is about, or of all files in a
    /// directory.
    fn invalidate(&self, side: &EntryRef) {
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
            return self.invalidate_where(|path| path.starts_with(&within));
        }
        let removed = self.watched.lock().files.remove(&path);
        if let Some(inode) = removed.and_then(|inode| inode.upgrade()) {
            inode.content.mark_changed();
        }
    }

    fn invalidate_where(&self, mut which: impl FnMut(&str) -> bool) {
        let removed: Vec<_> = self.watched.lock().files.extract_if(|path, _| which(path)).collect();
        for inode in removed.into_iter().filter_map(|(_, inode)| inode.upgrade()) {
            inode.content.mark_changed();
        }
    }
}

impl NoticeHandler for FilerSource {
    const LIVE_MESSAGE: &str = "the filer's events arrive; reads are accelerated";
    const LOST_MESSAGE: &str = "the mount below answers all reads until the filer's events arrive again";

    fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    fn on_lost(&self) {
        self.invalidate_where(|_| true);
    }

    fn on_change(&self, change: &EntryChange) {
        self.namespace.apply(change);
        for side in change.old.iter().chain(&change.new) {
            self.invalidate(side);
        }
    }
}
