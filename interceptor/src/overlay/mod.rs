//! A layer over a mount that exists: the path stays, programs go on, and what they ask goes through us to the mount below.
//!
//! ```text
//!  program ── open("/mnt/data/f") ──► kernel ──► our FUSE mount on /mnt/data (covers the other)
//!                                                      │ filesystem: translates
//!                                        tree, files, listing: the same call, on a descriptor
//!                                                      ▼
//!                                     a clone of the mount below, attached nowhere ──► its daemon or disk
//! ```
//!
//! [`lower`] looks at what is mounted and refuses what cannot be right; it clones the mount, so that it can be reached when
//! it is covered. [`nodes`] are the files that the kernel knows, each with a descriptor while it is used ([`node_file`],
//! [`remembered`]); where that is the file's, nothing is found by path, so renames below and above do not matter.
//! [`tree`] works on names and attributes, [`files`] and [`listing`] on what is open, [`caller`] makes new files those of who asked.
//! A [`decider`] finds out which files can be served instead of the mount below: [`entries`] from a cluster, [`kept`] from memory that keeps what was read from the mount below
//! ([`opened`]), which [`warm`] fills in advance; where programs go through a directory, [`readdir_ahead`] has the mount below do so first. [`coherence`] sees to it that nobody can tell the difference. [`filesystem`] translates requests into all that.
//!
//! **Coming and going.** Mounting over a path and detaching from it are one step each for who opens files there: every open finds one or the other.
//! When told to go, the layer is detached first, which uncovers the mount below, and goes on serving what is open until that
//! is closed or a grace period is over; the same when somebody else detaches it, such as another layer that takes its [`place`]. When the process dies, its parent
//! ([`supervisor`]) detaches the layer.
//!
//! **Errors** are those of the mount below, unchanged. If it hangs, so do the requests for it, as they would without the layer.

mod attributes;
mod content;
mod credentials;
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
pub mod supervisor;
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

pub use lower::AttachError;

use self::filer_source::Entries;
use self::filesystem::Layer;
use self::inodes::Node;
use self::lower::{Keeping, Lower};
use self::lower_source::Kept;
use self::supervisor::Report;
use self::tree::Tree;
use self::version_source::{VersionSource, Whom};
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
use crate::fuse::{SessionEnd, unmount};
use crate::namespace::NodeId;
use crate::read::{FileVersion, Reader};
use crate::seaweed::filer::FilerClient;
use crate::seaweed::subscribe::Notice;
use crate::telemetry::Metrics;
use crate::warmup::ticket::{NodeInstance, TicketIssuer};
use crate::warmup::wire::FileProblem;
use crate::warmup::{PinnedVersion, WarmupFile};

/// What our layer is called in the kernel's table of mounts.
pub(crate) const FS_TYPE: &str = "fuse.interceptor-attach";

/// The same without `fuse.`.
const SUBTYPE: &str = "interceptor-attach";

/// What to attach to, and how.
#[derive(Debug, Clone)]
pub struct AttachOptions {
    /// The mount point of the mount below.
    pub path: PathBuf,
    /// Whether to take the place of a layer that is there; else there may be none.
    pub restart: bool,
    /// Threads that answer the kernel, each of which can wait for the mount below.
    pub threads: usize,
    /// How far the kernel reads ahead of a sequential reader, in KiB.
    pub read_ahead_kib: u32,
    /// Have the CPUs not sleep while a program makes small requests one after another, if that is possible.
    pub keep_awake: bool,
}

/// Who may answer reads beside the mount below.
pub enum Reads {
    /// Nobody.
    Below,
    /// The cluster whose files the mount below shows.
    Cluster(Cluster),
    /// Memory that keeps what was read from the mount below.
    Kept {
        /// Whether also where the kernel's own pages of the mount below are as near, as they are of a local disk.
        always: bool,
        /// Makes that memory, if it is of use.
        cache: Box<dyn FnOnce() -> Result<Arc<Cache>, ArenaError> + Send>,
    },
}

/// A cluster whose files the mount below shows, and how they are read.
pub struct Cluster {
    /// The cluster's filer.
    pub filer: FilerClient,
    /// The directory of the filer that the mount below shows. Without it, what that mount says of itself is taken.
    pub filer_path: Option<String>,
    /// Brings and keeps what is read.
    pub reader: Arc<Reader>,
    /// Passes on what the filer tells, and keeps account of it.
    pub note: Box<dyn FnOnce(mpsc::Receiver<Notice>) -> mpsc::Receiver<Notice> + Send>,
}

/// What is below, for who is interested.
#[derive(Debug, Clone)]
pub struct Below {
    /// What shows as its source in the kernel's table of mounts.
    pub source: String,
    /// Its type there.
    pub fs_type: String,
}

/// A layer that answers. Dropping it detaches it.
pub struct Attached {
    at: MountInfo,
    below: Below,
    serving: Serving,
    report: Report,
}

/// What answers the kernel, on threads of its own, as long as its mount is in use.
struct Serving {
    tree: Arc<Tree>,
    source: Option<Arc<dyn VersionSource>>,
    session: RunningSession,
    /// Where the status API is, once that is known.
    status_api: Arc<OnceLock<SocketAddr>>,
    tickets: Arc<TicketIssuer>,
}

impl Attached {
    /// Covers the mount at `options.path` with a layer that answers, and says in `report` which mount that is.
    ///
    /// The umask of the process becomes 0 and its limit of open files is raised: files that the kernel remembers take descriptors.
    ///
    /// # Errors
    /// Says what is in the way and what to do about it. Nothing is covered then, and a layer that was to be replaced goes on.
    pub async fn start(
        options: AttachOptions,
        reads: Reads,
        metrics: Arc<Metrics>,
        report: Report,
    ) -> Result<Self, AttachError> {
        let AttachOptions { path, restart, threads, read_ahead_kib, keep_awake } = options;
        // Looking at the mount below, and the kernel's look at us, may block.
        let taken = tokio::task::spawn_blocking(move || match restart {
            true => lower::take_below(&path).map(|(lower, old)| (lower, Some(old))),
            false => Ok((Lower::take(&path)?, None)),
        });
        let (lower, old) = taken.await.map_err(thread_failed)??;
        let source: Option<Arc<dyn VersionSource>> = match reads {
            Reads::Below => None,
            Reads::Cluster(cluster) => Some(Entries::start(&lower, cluster).await?),
            Reads::Kept { always, cache } => match Kept::is_wanted(&lower, always)? {
                true => Some(Kept::new(cache()?, lower.has_change_times, metrics.clone(), Handle::current())),
                false => None,
            },
        };
        let started = tokio::task::spawn_blocking(move || {
            let awake = CpuLatencyQos::new(keep_awake, &metrics);
            start(&lower, source, metrics, awake, threads).map(|(serving, mount)| (serving, mount, lower))
        });
        let (serving, mount, lower) = started.await.map_err(thread_failed)??;
        let answered = first_answer(move || lower::await_answer(&mount).map(|()| mount)).await;
        let mount = answered.map_err(|source| AttachError::Unusable { path: lower.path.clone(), source })?;
        let placed = tokio::task::spawn_blocking(move || {
            let at = lower::place(mount, &lower, old.as_ref(), &report)?;
            at.set_read_ahead(read_ahead_kib);
            let below = Below { source: lower.source, fs_type: lower.fs_type };
            Ok(Self { at, below, serving, report })
        });
        placed.await.map_err(thread_failed)?
    }

    /// The mount below.
    pub fn below(&self) -> &Below {
        &self.below
    }

    /// The full path of the layer and of what it covers.
    pub fn path(&self) -> &std::path::Path {
        &self.at.path
    }

    /// How many files the kernel remembers.
    pub fn nodes(&self) -> usize {
        self.serving.tree.nodes().len()
    }

    /// The device number of the layer, `MAJOR:MINOR`.
    pub fn device(&self) -> &str {
        &self.at.device
    }

    /// Reads what is served instead of the mount below, if anything can be.
    pub fn reader(&self) -> Option<&Arc<Reader>> {
        self.serving.source.as_ref().map(|source| source.reader())
    }

    /// Recognizes the tickets that the layer gives.
    pub fn tickets(&self) -> &Arc<TicketIssuer> {
        &self.serving.tickets
    }

    /// The file that a ticket is about; `None` if the kernel has forgotten it, or nothing can be served.
    pub fn to_warm(&self, file: NodeInstance) -> Option<Arc<dyn WarmupFile>> {
        let tree = self.serving.tree.clone();
        let node = tree.nodes().get(file.node).filter(|node| node.instance() == file)?;
        Some(Arc::new(ToWarm { node, tree, source: self.serving.source.clone()? }))
    }

    /// From now on, files tell who asks them for [`STATUS_XATTR`](crate::fuse::STATUS_XATTR) that the status API is here.
    pub fn status_api_at(&self, address: SocketAddr) {
        // There is only one.
        let _ = self.serving.status_api.set(address);
    }

    /// Which version of the file `node` is served now; `None` while that is what the mount below makes of it.
    pub fn served(&self, node: NodeId) -> Option<Arc<FileVersion>> {
        Some(self.serving.tree.nodes().get(node)?.content.served()?.version)
    }

    /// Where the file `node` was found last, from the root of the layer on.
    pub fn path_of(&self, node: NodeId) -> Option<String> {
        self.serving.tree.nodes().get(node)?.shown_path()
    }

    /// Whether files can be served from the cluster now: there is one, and its events arrive.
    pub fn is_live(&self) -> bool {
        self.serving.source.as_ref().is_some_and(|source| source.is_live())
    }

    /// Resolves when nothing serves the layer any more, whoever brought that about.
    pub async fn wait(&self) -> SessionEnd {
        self.serving.session.wait().await
    }

    /// Resolves when somebody else has taken the layer away from its path. What is open is served all the same.
    pub async fn removed(&self) {
        if let Err(error) = self.at.wait_removed().await {
            tracing::warn!(%error, "cannot watch what is mounted; not noticing when another takes over");
            self.wait().await;
        }
        self.report.removed();
    }

    /// Uncovers the mount below at once, and goes on serving what is open until it is closed or `grace` is over. After that, requests
    /// for it fail with `ENOTCONN`.
    pub async fn detach(&self, grace: Duration) {
        let at = self.at.clone();
        let _ = tokio::task::spawn_blocking(move || unmount::detach(&at)).await;
        self.report.removed();
        self.serving.session.drain(&self.at, grace).await;
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if !self.serving.session.is_unmounted() {
            unmount::detach(&self.at);
        }
    }
}

/// A file of the mount below.
struct ToWarm {
    node: Arc<Node>,
    tree: Arc<Tree>,
    source: Arc<dyn VersionSource>,
}

impl ToWarm {
    fn open(node: Arc<Node>, tree: &Tree, source: &dyn VersionSource) -> io::Result<Option<PinnedVersion>> {
        let file = Arc::new(tree.open(&node, libc::O_RDONLY)?);
        let attributes = source.resolve(&file, Whom::Nobody)?;
        if attributes.stamp().size == 0 {
            return Ok(Some(PinnedVersion { version: lower_source::empty(&attributes), pin: None }));
        }
        let served = file.node.content.served();
        Ok(served.map(|served| PinnedVersion { version: served.version, pin: Some(file) }))
    }
}

impl WarmupFile for ToWarm {
    fn version(&self) -> BoxFuture<'_, Result<PinnedVersion, FileProblem>> {
        let (node, tree, source) = (self.node.clone(), self.tree.clone(), self.source.clone());
        // The mount below may take its time.
        let opened = tokio::task::spawn_blocking(move || Self::open(node, &tree, source.as_ref()));
        opened
            .map(|opened| match opened.map_err(io::Error::other).flatten() {
                Ok(held) => held.ok_or(FileProblem::NotServed),
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

/// Begins to answer for a layer over `lower` that has no place yet, and gives its root.
fn start(
    lower: &Lower,
    source: Option<Arc<dyn VersionSource>>,
    metrics: Arc<Metrics>,
    awake: CpuLatencyQos,
    threads: usize,
) -> Result<(Serving, OwnedFd), AttachError> {
    let descriptors = daemon::descriptors::raise_hard_limit();
    // The kernel has applied the callers' umask, or leaves it to us request by request.
    umask(Mode::empty());
    let unusable = |source| AttachError::Unusable { path: lower.path.clone(), source };
    let (crowded, alarm) = inode_limit::alarm();
    let tree = Tree::new(lower, inode_limit::most(descriptors), crowded).map_err(unusable)?;
    let tree = Arc::new(tree);
    let params = MountParams {
        source: &lower.source,
        subtype: SUBTYPE,
        attributes: lower.attributes,
        allow_other: lower.allow_other,
        default_permissions: lower.kernel_checks,
    };
    let tickets = Arc::<TicketIssuer>::default();
    let (notifier, status_api) = (Arc::new(OnceLock::new()), Arc::new(OnceLock::new()));
    let layer = Layer {
        tree: tree.clone(),
        files: Arc::new(Handles::new()),
        directories: Arc::new(Handles::new()),
        metrics,
        has_acls: lower.has_acls,
        shows_changes: lower.keeping != Keeping::Wrong,
        source: source.clone(),
        // A thread that waits for the mount below had better run where that does.
        arrivals: Arc::new(RequestTracker::new(ThreadAffinity::new(false), awake)),
        notifier: notifier.clone(),
        status_api: status_api.clone(),
        tickets: tickets.clone(),
    };
    let DetachedMount { device, mount } = device::mount_detached(&lower.path, &params)?;
    // The kernel has turned away whom it does not let in.
    let connection = FuseConnection::new(layer, device, SessionACL::All).map_err(MountError::Session)?;
    let _ = notifier.set(connection.notifier());
    inode_limit::spawn(tree.nodes(), alarm, connection.notifier()).map_err(AttachError::Start)?;
    let session = connection.serve(threads).map_err(AttachError::Start)?;
    Ok((Serving { tree, source, session, status_api, tickets }, mount))
}
