//! The file system of `interceptor attach`: an overlay over a mount that exists. The path stays
//! the same, and programs that use it go on.
//!
//! ```text
//!  program ── open("/mnt/data/f") ──► kernel ──► overlay, a FUSE mount on /mnt/data
//!                                                   │ filesystem: requests
//!                                   tree, open_file, open_directory: the same call on a descriptor
//!                                                   ▼
//!                                   a detached clone of the lower mount ──► its daemon or disk
//! ```
//!
//! * [`lower`] inspects the lower mount, rejects those over which an overlay cannot be correct,
//!   clones it, and mounts the overlay over it.
//! * [`inodes`] are the files that the kernel references, with a descriptor each while in use.
//!   With one, no file is found by path, so renames above and below do not matter. [`inode_limit`]
//!   bounds their number.
//! * [`filesystem`] translates requests. [`tree`] serves those on names and attributes,
//!   [`open_file`] and [`open_directory`] those on handles. [`credentials`] gives new files their
//!   owner.
//! * A [`version_source`] decides at each open which files a [`Reader`] can serve instead of the
//!   lower mount: [`filer_source`] those of a cluster, [`lower_source`] those whose bytes are
//!   cached from the lower mount. Start there for where reads come from.
//! * [`content`] keeps reads coherent with the lower mount.
//!
//! **Start and end.** Mounting over a path and unmounting are atomic for programs: every open
//! meets the overlay or the lower mount. To end, the overlay is unmounted first, which uncovers
//! the lower mount. It then serves open files until they are closed or a grace period is over. The
//! same happens when another process unmounts it, as a new overlay with `--restart` does. When the
//! serving process dies, the supervisor unmounts the overlay.
//!
//! **Errors** are those of the lower mount, unchanged. If that hangs, requests for it hang as they
//! would without the overlay.

mod attributes;
mod content;
mod credentials;
mod error;
mod filer_source;
mod filesystem;
#[cfg(test)]
mod fuzz;
mod inode_limit;
mod inodes;
mod lower;
mod lower_source;
mod open_directory;
mod open_file;
mod tree;
mod version_source;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuser::SessionACL;
use futures::FutureExt;
use futures::future::BoxFuture;
use nix::sys::stat::{Mode, umask};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

pub use error::AttachError;

use self::filer_source::FilerSource;
use self::filesystem::OverlayFs;
use self::inodes::{FdLimits, Inode};
use self::lower::{CachePolicy, LowerMount};
use self::lower_source::LowerSource;
use self::tree::LowerTree;
use self::version_source::{OpenIntent, VersionSource};
use crate::cache::Cache;
use crate::cache::arena::ArenaError;
use crate::fuse::MountError;
use crate::fuse::affinity::ThreadAffinity;
use crate::fuse::cpu_latency::CpuLatencyQos;
use crate::fuse::device::{self, DetachedMount, MountParams};
use crate::fuse::handles::Handles;
use crate::fuse::mountinfo::MountInfo;
use crate::fuse::request_tracker::RequestTracker;
use crate::fuse::session::{FuseConnection, RunningSession, first_answer};
use crate::fuse::supervisor::SupervisorLink;
use crate::fuse::{SessionEnd, unmount};
use crate::namespace::NodeId;
use crate::read::{FileVersion, Reader};
use crate::seaweed::filer::FilerClient;
use crate::seaweed::subscribe::Notice;
use crate::telemetry::Metrics;
use crate::warmup::ticket::{NodeInstance, TicketIssuer};
use crate::warmup::wire::FileProblem;
use crate::warmup::{PinnedVersion, WarmupFile};

/// The overlay's type in `/proc/self/mountinfo`.
pub(crate) const FS_TYPE: &str = "fuse.interceptor-attach";

/// [`FS_TYPE`] without `fuse.`.
const SUBTYPE: &str = "interceptor-attach";

/// Local file systems of which the kernel checks all rights by mode bits and access control lists,
/// as it does for the overlay.
pub(crate) const LOCAL_FS_TYPES: [&str; 9] =
    ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "tmpfs"];

/// What to attach to, and how.
#[derive(Debug, Clone)]
pub struct OverlayOptions {
    /// The mount point of the lower mount.
    pub path: PathBuf,
    /// Whether to replace the overlay that is mounted there. Without it there must be none.
    pub restart: bool,
    /// Request threads, each of which may block on the lower mount.
    pub threads: usize,
    /// The kernel's readahead for sequential readers, in KiB.
    pub read_ahead_kib: u32,
    /// Whether to keep CPUs out of deep sleep while a program makes small requests in turn, if
    /// that is possible.
    pub keep_awake: bool,
}

/// What may answer reads, beside the lower mount.
pub enum ReadSource {
    /// Nothing else.
    Lower,
    /// The cluster that the lower mount shows.
    Cluster(Cluster),
    /// A cache of what was read from the lower mount.
    LowerCache {
        /// Whether also over local file systems, whose pages the kernel has as near.
        always: bool,
        /// Makes the cache, if it is of use.
        cache: Box<dyn FnOnce() -> Result<Arc<Cache>, ArenaError> + Send>,
    },
}

/// A cluster that the lower mount shows, and the means to read it.
pub struct Cluster {
    /// The cluster's filer.
    pub filer: FilerClient,
    /// The filer's directory that is mounted. Without it, the one that the lower mount's source
    /// names.
    pub filer_path: Option<String>,
    /// Fetches and caches.
    pub reader: Arc<Reader>,
    /// Passes on the filer's events, and records them for the status.
    pub observe_notices: Box<dyn FnOnce(mpsc::Receiver<Notice>) -> mpsc::Receiver<Notice> + Send>,
}

/// The lower mount, for logs.
#[derive(Debug, Clone)]
pub struct LowerInfo {
    /// Its source in `/proc/self/mountinfo`.
    pub source: String,
    /// Its type there.
    pub fs_type: String,
}

/// A mounted overlay that answers. Unmounts when dropped.
pub struct Overlay {
    at: MountInfo,
    lower: LowerInfo,
    tree: Arc<LowerTree>,
    source: Option<Arc<dyn VersionSource>>,
    status_api: Arc<OnceLock<SocketAddr>>,
    tickets: Arc<TicketIssuer>,
    session: RunningSession,
    supervisor: Arc<SupervisorLink>,
}

impl Overlay {
    /// Mounts an overlay that answers at `options.path`, and tells the supervisor through
    /// `supervisor` which mount it is.
    ///
    /// Sets the process's umask to 0 and raises its limit on open files, since inodes hold
    /// descriptors.
    ///
    /// # Errors
    /// What is in the way, and what to do about it. Then nothing was mounted, and an
    /// overlay that was to be replaced goes on.
    pub async fn start(
        options: OverlayOptions,
        reads: ReadSource,
        metrics: Arc<Metrics>,
        supervisor: Arc<SupervisorLink>,
    ) -> Result<Self, AttachError> {
        let OverlayOptions { path, restart, threads, read_ahead_kib, keep_awake } = options;
        // Blocking: the lower mount may be slow, and the kernel sends requests to the overlay.
        let opened = tokio::task::spawn_blocking(move || match restart {
            true => lower::open_beneath_overlay(&path).map(|(lower, old)| (lower, Some(old))),
            false => Ok((LowerMount::open(&path)?, None)),
        });
        let (lower, old) = opened.await.map_err(thread_failed)??;
        let source: Option<Arc<dyn VersionSource>> = match reads {
            ReadSource::Lower => None,
            ReadSource::Cluster(cluster) => Some(FilerSource::start(&lower, cluster).await?),
            ReadSource::LowerCache { always, cache } => match LowerSource::is_wanted(&lower, always)? {
                true => Some(LowerSource::new(
                    cache()?,
                    lower.has_kernel_ctime,
                    metrics.clone(),
                    Handle::current(),
                )),
                false => None,
            },
        };
        let started = tokio::task::spawn_blocking(move || {
            let cpu_latency = CpuLatencyQos::new(keep_awake, &metrics);
            start_session(&lower, source, metrics, cpu_latency, threads)
                .map(|(fs, session, mount)| (fs, session, mount, lower))
        });
        let (fs, session, mount, lower) = started.await.map_err(thread_failed)??;
        let answered = first_answer(move || lower::await_answer(&mount).map(|()| mount)).await;
        let mount = answered.map_err(|source| AttachError::Unusable { path: lower.path.clone(), source })?;
        let placed = tokio::task::spawn_blocking(move || {
            let at = lower::move_into_place(mount, &lower, old.as_ref(), &supervisor)?;
            at.set_read_ahead(read_ahead_kib);
            let lower = LowerInfo { source: lower.source, fs_type: lower.fs_type };
            // The request threads own the handles: open files are closed with the last of them.
            let OverlayFs { tree, source, status_api, tickets, .. } = fs;
            Ok(Self { at, lower, tree, source, status_api, tickets, session, supervisor })
        });
        placed.await.map_err(thread_failed)?
    }

    /// The lower mount.
    pub fn lower(&self) -> &LowerInfo {
        &self.lower
    }

    /// The absolute path of the mount point.
    pub fn path(&self) -> &std::path::Path {
        &self.at.path
    }

    /// How many inodes the kernel references.
    pub fn inode_count(&self) -> usize {
        self.tree.inodes().len()
    }

    /// The overlay's device number, `MAJOR:MINOR`.
    pub fn device(&self) -> &str {
        &self.at.device
    }

    /// Reads versions; `None` if the lower mount answers all.
    pub fn reader(&self) -> Option<&Arc<Reader>> {
        self.source.as_ref().map(|source| source.reader())
    }

    /// Recognizes the read tickets that the overlay issued.
    pub fn tickets(&self) -> &Arc<TicketIssuer> {
        &self.tickets
    }

    /// The file of a ticket; `None` if the kernel has forgotten it, or the lower mount answers all
    /// reads.
    pub fn warmup_target(&self, file: NodeInstance) -> Option<Arc<dyn WarmupFile>> {
        let tree = self.tree.clone();
        let inode = tree.inodes().get(file.node).filter(|inode| inode.instance() == file)?;
        Some(Arc::new(WarmupTarget { inode, tree, source: self.source.clone()? }))
    }

    /// From now on, [`STATUS_XATTR`](crate::fuse::STATUS_XATTR) of each file holds this address.
    pub fn set_status_api(&self, address: SocketAddr) {
        // There is only one.
        let _ = self.status_api.set(address);
    }

    /// The version that answers reads of the inode `node`; `None` while the lower mount answers.
    pub fn served(&self, node: NodeId) -> Option<Arc<FileVersion>> {
        Some(self.tree.inodes().get(node)?.content.served()?.version)
    }

    /// The last known path of the inode `node`, from the root of the overlay on.
    pub fn path_of(&self, node: NodeId) -> Option<String> {
        self.tree.inodes().get(node)?.shown_path()
    }

    /// Whether files can be served from the cluster: there is one, and its filer's events arrive.
    pub fn is_live(&self) -> bool {
        self.source.as_ref().is_some_and(|source| source.is_live())
    }

    /// Resolves when the session has ended, for whatever reason.
    pub async fn wait(&self) -> SessionEnd {
        self.session.wait().await
    }

    /// Resolves when another process has unmounted the overlay. Open files are served all the
    /// same.
    pub async fn removed(&self) {
        if let Err(error) = self.at.wait_removed().await {
            tracing::warn!(%error, "cannot watch what is mounted; not noticing when another takes over");
            self.wait().await;
        }
        self.supervisor.removed();
    }

    /// Unmounts the overlay at once, and serves open files until they are closed or `grace` is
    /// over. After that, requests for them fail with `ENOTCONN` (`ECONNABORTED`
    /// if they are in flight).
    pub async fn detach(&self, grace: Duration) {
        // Of a layer that was unmounted, the kernel may have given both numbers to another mount.
        if !self.session.is_unmounted() {
            let at = self.at.clone();
            let _ = tokio::task::spawn_blocking(move || unmount::detach(&at)).await;
        }
        self.supervisor.removed();
        self.session.drain(&self.at, grace).await;
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if !self.session.is_unmounted() {
            unmount::detach(&self.at);
        }
    }
}

/// A lower file that is to be cached before programs read it. Opened as root, to find the version
/// that can be served, and kept open while that is read. A warm-up names only files that the
/// kernel let its user find, as for a mount ([`warmup`](crate::warmup)).
struct WarmupTarget {
    inode: Arc<Inode>,
    tree: Arc<LowerTree>,
    source: Arc<dyn VersionSource>,
}

impl WarmupTarget {
    fn open(
        inode: Arc<Inode>,
        tree: &LowerTree,
        source: &dyn VersionSource,
    ) -> io::Result<Option<PinnedVersion>> {
        let file = Arc::new(tree.open(&inode, libc::O_RDONLY)?);
        let attributes = source.resolve(&file, OpenIntent::Probe)?;
        if attributes.fingerprint().size == 0 {
            return Ok(Some(PinnedVersion { version: lower_source::empty_version(&attributes), pin: None }));
        }
        let served = file.inode.content.served();
        Ok(served.map(|served| PinnedVersion { version: served.version, pin: Some(file) }))
    }
}

impl WarmupFile for WarmupTarget {
    fn version(&self) -> BoxFuture<'_, Result<PinnedVersion, FileProblem>> {
        let (inode, tree, source) = (self.inode.clone(), self.tree.clone(), self.source.clone());
        // Blocking: the lower mount may be slow.
        let opened = tokio::task::spawn_blocking(move || Self::open(inode, &tree, source.as_ref()));
        opened
            .map(|opened| match opened.map_err(io::Error::other).flatten() {
                Ok(version) => version.ok_or(FileProblem::NotServed),
                Err(error) => {
                    tracing::info!(%error, "a file cannot be warmed");
                    Err(FileProblem::Unreadable)
                }
            })
            .boxed()
    }
}

fn thread_failed(panic: tokio::task::JoinError) -> AttachError {
    AttachError::Start(std::io::Error::other(panic))
}

/// Starts the session of an overlay over `lower` that is not mounted at a path yet. Returns its
/// root, too.
fn start_session(
    lower: &LowerMount,
    source: Option<Arc<dyn VersionSource>>,
    metrics: Arc<Metrics>,
    cpu_latency: CpuLatencyQos,
    threads: usize,
) -> Result<(OverlayFs, RunningSession, OwnedFd), AttachError> {
    let descriptors = daemon::descriptors::raise_hard_limit();
    // The kernel has applied the callers' umask, or leaves it to the overlay request by request.
    umask(Mode::empty());
    let unusable = |source| AttachError::Unusable { path: lower.path.clone(), source };
    let (over_limit, wakeups) = inode_limit::channel();
    let tree = LowerTree::new(lower, FdLimits::of(descriptors), over_limit).map_err(unusable)?;
    let tree = Arc::new(tree);
    let params = MountParams {
        source: &lower.source,
        subtype: SUBTYPE,
        attributes: lower.attributes,
        allow_other: lower.allow_other,
        default_permissions: lower.kernel_checks,
    };
    let fs = OverlayFs {
        tree,
        files: Arc::new(Handles::new()),
        directories: Arc::new(Handles::new()),
        metrics,
        has_acls: lower.has_acls,
        shows_changes: lower.cache_policy != CachePolicy::Unsafe,
        source,
        // Without affinity: a thread that blocks on the lower mount should run where that does.
        requests: Arc::new(RequestTracker::new(ThreadAffinity::new(false), cpu_latency)),
        notifier: Arc::default(),
        status_api: Arc::default(),
        tickets: Arc::default(),
    };
    let DetachedMount { device, mount } = device::mount_detached(&lower.path, &params)?;
    // The kernel enforces `allow_other` itself.
    let connection = FuseConnection::new(fs.clone(), device, SessionACL::All).map_err(MountError::Session)?;
    let _ = fs.notifier.set(connection.notifier());
    inode_limit::spawn(fs.tree.inodes(), wakeups, connection.notifier()).map_err(AttachError::Start)?;
    let session = connection.serve(threads).map_err(AttachError::Start)?;
    Ok((fs, session, mount))
}
