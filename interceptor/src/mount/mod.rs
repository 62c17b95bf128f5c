//! The mount: a read-only file system of SeaweedFS, on the host side of FUSE
//! ([`fuse`](crate::fuse)).
//!
//! Thin on purpose: [`filesystem`] translates requests into calls of
//! [`namespace`](crate::namespace) (names, attributes, which version of a file a node is) and
//! [`read`](crate::read) (bytes), and [`directory`] fills READDIR replies. [`notifier`] sends
//! invalidations to the kernel, and [`growth`] has it see files that were appended to.
//!
//! If the kernel can read resident files by itself ([`passthrough`]), each OPEN request is
//! answered, and [`opens`] keeps the answers consistent. Otherwise the first OPEN gets ENOSYS,
//! after which the kernel sends none. [`page_cache_store`] puts hot ranges into the page cache as
//! a whole.
//!
//! Request threads ([`session`](crate::fuse::session)) answer what is in memory. A request that
//! needs the network moves to the tokio runtime together with its reply, where the calls below
//! bound its time.
//!
//! If the filer is away, open files can still be read, and unknown names give EIO. If the mount is
//! unmounted, by this process or another, the session ends and [`Mount::wait`] returns. If this
//! process dies, its [supervisor](crate::fuse::supervisor) starts another one, which takes the
//! connection over: what the kernel was told stands in the [ledger](crate::ledger), open files and
//! directories among it ([`handle_records`]). If both die, the kernel answers ENOTCONN for the
//! mount point until it is unmounted, which the next start on the same mount point does.

mod attr;
#[cfg(test)]
mod bounds_tests;
mod context;
mod directory;
mod filesystem;
#[cfg(test)]
mod fuzz;
mod growth;
mod handle_records;
mod notifier;
mod opens;
mod page_cache_store;
mod passthrough;
mod statfs;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuser::SessionACL;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub use passthrough::PassthroughUnavailable;

use self::context::MountContext;
use self::filesystem::SeaweedFilesystem;
use self::handle_records::HandleRecords;
use self::notifier::KernelNotifier;
use self::opens::Opens;
use self::page_cache_store::PageCacheStore;
use self::statfs::UsageCache;
use crate::fuse::affinity::ThreadAffinity;
use crate::fuse::cpu_latency::CpuLatencyQos;
use crate::fuse::mountinfo::{MountInfo, MountTable};
use crate::fuse::notices::{self, NoticeHandler};
use crate::fuse::request_tracker::RequestTracker;
use crate::fuse::session::{FuseConnection, RunningSession, first_answer};
use crate::fuse::supervisor::{KeptConnection, SupervisorLink};
use crate::fuse::{MountError, SessionEnd, device, mountpoint, unmount};
use crate::ledger::{Ledger, LedgerError, RecordKind, StoredRecord};
use crate::namespace::invalidate::{self, InvalidationQueue};
use crate::namespace::next_files::NextFilePrefetcher;
use crate::namespace::reconcile;
use crate::namespace::{Filer, KernelFeatures, Namespace, NamespaceOptions, NodeId, find_root};
use crate::read::{FileVersion, OriginFile, Reader};
use crate::seaweed::filer::FilerClient;
use crate::seaweed::subscribe::{EntryChange, Notice};
use crate::vital;
use crate::warmup::ticket::{NodeInstance, TicketIssuer};

/// Parameters of a mount.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// The directory to mount on.
    pub mountpoint: PathBuf,
    /// The directory of the filer to show.
    pub filer_path: String,
    /// Whether other users than the mounting one may use the mount. `None`: if the mounting one is
    /// root.
    pub allow_other: Option<bool>,
    /// Mount over a directory that is not empty, or over another mount.
    pub nonempty: bool,
    /// Show the filer's own directories `/topics` and `/etc`.
    pub include_system_entries: bool,
    /// Request threads. `None`: one for each CPU, but from 2 to 16.
    pub threads: Option<usize>,
    /// How far the kernel reads ahead of a sequential reader, in KiB. The kernel's default is 128.
    pub read_ahead_kib: u32,
    /// Let the kernel read resident files by itself, if it can.
    pub passthrough: bool,
    /// Bind the request threads to the CPU that a lone reader is bound to.
    pub placement: bool,
    /// Keep the CPUs awake during bursts of small requests, if that is possible.
    pub keep_awake: bool,
    /// The address of the status API, as soon as it is known, which
    /// [`STATUS_XATTR`](crate::fuse::STATUS_XATTR) shows.
    pub status_api: Arc<OnceLock<SocketAddr>>,
    /// The source that the mount table shows. `None`: `interceptor:FILER/PATH`.
    pub source: Option<String>,
}

impl MountOptions {
    /// The default options for a mount of the whole filer on `mountpoint`.
    pub fn new(mountpoint: impl Into<PathBuf>) -> Self {
        Self {
            mountpoint: mountpoint.into(),
            filer_path: "/".into(),
            allow_other: None,
            nonempty: false,
            include_system_entries: false,
            threads: None,
            read_ahead_kib: 1024,
            passthrough: true,
            placement: true,
            keep_awake: true,
            status_api: Arc::default(),
            source: None,
        }
    }

    fn allow_other(&self) -> bool {
        self.allow_other.unwrap_or_else(|| nix::unistd::geteuid().is_root())
    }

    fn acl(&self) -> SessionACL {
        if self.allow_other() { SessionACL::All } else { SessionACL::Owner }
    }

    fn threads(&self) -> usize {
        let cpus = || std::thread::available_parallelism().map_or(2, usize::from);
        self.threads.unwrap_or_else(|| cpus().clamp(2, 16))
    }
}

/// The state of a mount, for status pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountStatus {
    /// Nodes that the kernel knows.
    pub nodes: usize,
    /// Entries in the cache of names.
    pub entries: usize,
    /// Whether the filer's events arrive, so that the kernel gets long timeouts.
    pub live: bool,
    /// How often another process took the mount over.
    pub takeovers: u64,
}

/// What was agreed with the kernel when the file system was mounted, for successors.
#[derive(Debug, Serialize, Deserialize)]
struct StoredMount {
    /// Whether OPEN requests are answered.
    answers_opens: bool,
}

/// The limit of the ledger in bytes, beside what it has of [nodes](NamespaceOptions::node_bytes):
/// for what is open, what is absent and what is to be invalidated. A node takes less there than in
/// memory.
const LEDGER_BESIDE_NODES: usize = 128 << 20;

/// A predecessor's mount.
struct Inheritance {
    connection: KeptConnection,
    at: MountInfo,
    ledger: Ledger,
    records: Vec<StoredRecord>,
}

impl Inheritance {
    /// Opens what the predecessor has left.
    ///
    /// # Errors
    /// When it cannot be taken over. Then it has been removed.
    fn open(connection: KeptConnection, supervisor: &SupervisorLink) -> Result<Self, MountError> {
        let (id, device) = &connection.mount;
        let at = MountInfo::with_id(*id).filter(|mount| mount.device == *device);
        let at = at.ok_or_else(|| MountError::Session(io::Error::other("it was unmounted meanwhile")))?;
        let memory = connection.ledger.try_clone().map_err(LedgerError::from);
        match memory.and_then(Ledger::open) {
            Ok((ledger, records)) => Ok(Self { connection, at, ledger, records }),
            Err(error) => Err(give_up(&at, supervisor, error)),
        }
    }
}

/// Removes a mount that cannot be taken over.
fn give_up(at: &MountInfo, supervisor: &SupervisorLink, error: impl std::fmt::Display) -> MountError {
    unmount::abort(at);
    unmount::detach(at);
    supervisor.removed();
    let text = format!("the mount of the process that died cannot be taken over: {error}");
    MountError::Session(io::Error::other(text))
}

/// A mount that answers. Dropping it detaches it.
pub struct Mount {
    at: MountInfo,
    /// Opened in advance, because unmounting must not fail for lack of a descriptor.
    table: Arc<MountTable>,
    namespace: Arc<Namespace>,
    session: RunningSession,
    events: JoinHandle<()>,
    passthrough: Result<(), PassthroughUnavailable>,
    tickets: Arc<TicketIssuer>,
    supervisor: Arc<SupervisorLink>,
}

impl Mount {
    /// Mounts, or takes over the mount of a process that has died, and returns when the mount
    /// answers. `notices` are the filer's events about `options.filer_path`. Requests that wait for
    /// servers do so on the runtime of the caller.
    ///
    /// # Errors
    /// Names the obstacle and its remedy. Nothing new is left mounted then; a mount that is to be
    /// taken over stays for the next attempt, unless that cannot help.
    pub async fn start(
        options: MountOptions,
        filer: FilerClient,
        reader: Arc<Reader>,
        notices: mpsc::Receiver<Notice>,
        supervisor: Arc<SupervisorLink>,
    ) -> Result<Self, MountError> {
        let runtime = tokio::runtime::Handle::current();
        let table = Arc::new(MountTable::open().map_err(MountError::Session)?);
        let filer_path = normal_path(&options.filer_path);
        let own_name = || format!("interceptor:{}{filer_path}", filer.current());
        let source = options.source.clone().unwrap_or_else(own_name);
        let filer: Arc<dyn Filer> = Arc::new(filer);
        let inherited = match supervisor.take_kept() {
            Some(connection) => Some(Inheritance::open(connection, &supervisor)?),
            None => None,
        };

        let namespace_options = NamespaceOptions {
            root_path: filer_path,
            include_system_entries: options.include_system_entries,
            ..NamespaceOptions::beside_cache(reader.cache_capacity())
        };
        let (namespace, queue) = match &inherited {
            Some(Inheritance { at, ledger, records, .. }) => {
                let (filer, ledger) = (filer.clone(), ledger.clone());
                let restored = Namespace::restore(filer, namespace_options, runtime.clone(), ledger, records);
                restored.ok_or_else(|| give_up(at, &supervisor, "its records do not fit together"))?
            }
            None => {
                let root = find_root(filer.as_ref(), &namespace_options.root_path).await?;
                let ledger = Ledger::create(namespace_options.node_bytes + LEDGER_BESIDE_NODES);
                let ledger = ledger.unwrap_or_else(|error| {
                    tracing::warn!(%error, "if this process dies, nobody can take over from it");
                    Ledger::none()
                });
                Namespace::with_ledger(filer.clone(), root, namespace_options, runtime.clone(), ledger)
            }
        };
        let ledger = namespace.ledger();
        let tickets = Arc::<TicketIssuer>::default();
        let context = Arc::new(MountContext {
            namespace: namespace.clone(),
            next_files: NextFilePrefetcher::new(&reader),
            reader: reader.clone(),
            metrics: reader.metrics().clone(),
            usage: UsageCache::new(filer, runtime.clone()),
            runtime,
            requests: RequestTracker::new(
                ThreadAffinity::new(options.placement),
                CpuLatencyQos::new(options.keep_awake, reader.metrics()),
            ),
            wants_passthrough: options.passthrough,
            passthrough_offered: AtomicBool::new(false),
            checks_attributes: AtomicBool::new(false),
            opens: OnceLock::new(),
            handles: HandleRecords::new(ledger.clone()),
            ledger,
            device: OnceLock::new(),
            page_cache: OnceLock::new(),
            status_api: options.status_api.clone(),
            tickets: tickets.clone(),
        });

        // Mounting blocks, and the kernel may send requests meanwhile.
        let (read_ahead, served, watcher) = (options.read_ahead_kib, context.clone(), supervisor.clone());
        let started = tokio::task::spawn_blocking(move || {
            if let Some(Inheritance { connection, at, records, .. }) = inherited {
                let taken = take_over_session(&options, connection, &records, served, queue, watcher.clone());
                let (session, passthrough) = taken.map_err(|error| match error {
                    MountError::Session(error) if error.kind() == io::ErrorKind::Unsupported => {
                        give_up(&at, &watcher, error)
                    }
                    other => other,
                })?;
                return Ok((at, session, passthrough));
            }
            let mountpoint = mountpoint::prepare(&options.mountpoint, options.nonempty)?;
            watcher.mounting_at(&mountpoint).map_err(MountError::Session)?;
            let device = device::mount(&mountpoint, &source, options.allow_other())?;
            let at = match MountInfo::topmost(&mountpoint) {
                Some(at) => at,
                None => return Err(MountError::Vanished { path: mountpoint }),
            };
            let reported = watcher.mounting(at.id, &at.device).map_err(MountError::Session);
            let started =
                reported.and_then(|()| start_session(&options, device, served, queue, watcher.clone()));
            if started.is_err() {
                unmount::detach(&at);
                watcher.removed();
            }
            started.map(|(session, passthrough)| (at, session, passthrough))
        });
        let (at, session, passthrough) =
            started.await.map_err(|panic| MountError::Session(std::io::Error::other(panic)))??;
        let events = tokio::spawn(vital::task("changes", async move {
            notices::follow(&*context, notices).await;
        }));
        let path = at.path.clone();
        let mount = Self { at, table, namespace, session, events, passthrough, tickets, supervisor };
        first_answer(move || std::fs::metadata(path)).await.map_err(MountError::Session)?;
        mount.at.set_read_ahead(read_ahead);
        Ok(mount)
    }

    /// The current state of the mount.
    pub fn status(&self) -> MountStatus {
        let (nodes, entries) = self.namespace.size();
        let takeovers = self.namespace.ledger().generation();
        MountStatus { nodes, entries, live: self.namespace.is_live(), takeovers }
    }

    /// Whether the kernel reads resident files by itself. Otherwise it sends no OPEN requests
    /// either.
    pub fn passthrough(&self) -> Result<(), &PassthroughUnavailable> {
        self.passthrough.as_ref().copied()
    }

    /// The device number of the mount, `MAJOR:MINOR`.
    pub fn device(&self) -> &str {
        &self.at.device
    }

    /// Verifies the tickets of this mount.
    pub fn tickets(&self) -> &Arc<TicketIssuer> {
        &self.tickets
    }

    /// Which version of a file a ticket is about; `None` if the kernel has forgotten it.
    pub fn version_of(&self, file: NodeInstance) -> Option<Arc<FileVersion>> {
        self.namespace.version_of(file.node, file.serial)
    }

    /// Which version of a file a node is; `None` if there is no such node.
    pub fn version(&self, node: NodeId) -> Option<Arc<FileVersion>> {
        self.namespace.version(node).ok()
    }

    /// Resolves when nothing serves the mount any more, for whatever reason.
    pub async fn wait(&self) -> SessionEnd {
        self.session.wait().await
    }

    /// Unmounts. A mount with open files is only detached: new opens fail, open files can be read
    /// for `grace`, and after that give errors.
    ///
    /// # Errors
    /// When the kernel or `fusermount3` refuses.
    pub async fn unmount(&self, grace: Duration) -> Result<(), MountError> {
        let (at, table, session) = (self.at.clone(), self.table.clone(), self.session.clone());
        let unmounted = tokio::task::spawn_blocking(move || match session.is_unmounted() {
            // The kernel may have given both of its numbers to another mount.
            true => Ok(()),
            false => unmount::unmount(&at, &table),
        });
        let unmounted = unmounted.await.map_err(|panic| MountError::Session(std::io::Error::other(panic)));
        // A mount that cannot be removed, as another one covers it, is not to be taken over either.
        self.supervisor.removed();
        unmounted??;
        self.session.drain(&self.at, grace).await;
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.events.abort();
        if !self.session.is_unmounted()
            && let Ok(Some((at, true))) = self.table.find(&self.at)
        {
            let _ = unmount::remove_dead(&at);
        }
        self.supervisor.removed();
    }
}

/// Makes the handshake with the kernel and starts the threads of a mount.
fn start_session(
    options: &MountOptions,
    device: OwnedFd,
    context: Arc<MountContext>,
    queue: InvalidationQueue,
    supervisor: Arc<SupervisorLink>,
) -> Result<(RunningSession, Result<(), PassthroughUnavailable>), MountError> {
    let filesystem = SeaweedFilesystem::new(context.clone());
    let mut connection =
        FuseConnection::new(filesystem, device, options.acl()).map_err(MountError::Session)?;
    let passthrough = context.passthrough(&connection);
    let answers_opens = passthrough.is_ok();
    context.ledger.insert(RecordKind::Mount, 0, &StoredMount { answers_opens });
    if let Some(memory) = context.ledger.descriptor() {
        let kept = memory.and_then(|memory| connection.keep(supervisor, memory.as_fd()));
        kept.map_err(MountError::Session)?;
    }
    if answers_opens {
        let _ = context.opens.set(Opens::new());
    }
    let session = serve(options, connection, context, queue, |_, _| ())?;
    Ok((session, passthrough))
}

/// The same for a connection whose handshake a predecessor has made.
fn take_over_session(
    options: &MountOptions,
    kept: KeptConnection,
    records: &[StoredRecord],
    context: Arc<MountContext>,
    queue: InvalidationQueue,
    supervisor: Arc<SupervisorLink>,
) -> Result<(RunningSession, Result<(), PassthroughUnavailable>), MountError> {
    let stored = records.iter().find(|record| record.kind == RecordKind::Mount);
    let answers_opens =
        stored.and_then(StoredRecord::value).is_some_and(|StoredMount { answers_opens }| answers_opens);
    let filesystem = SeaweedFilesystem::new(context.clone());
    let connection = FuseConnection::take_over(filesystem.clone(), kept, options.acl(), supervisor)
        .map_err(MountError::Session)?;
    let passthrough = match answers_opens {
        true => context.passthrough(&connection),
        false => Err(PassthroughUnavailable::SettledWithout),
    };
    if answers_opens {
        let _ = context.opens.set(Opens::new());
    }
    let (namespace, runtime) = (Arc::downgrade(&context.namespace), context.runtime.clone());
    let prepare = |filesystem: &SeaweedFilesystem, kernel: Arc<KernelNotifier>| {
        filesystem.restore_handles(records);
        runtime.spawn(reconcile::follow(namespace, kernel));
    };
    let session = serve(options, connection, context, queue, prepare)?;
    Ok((session, passthrough))
}

/// Starts the threads of a mount.
fn serve(
    options: &MountOptions,
    connection: FuseConnection<SeaweedFilesystem>,
    context: Arc<MountContext>,
    queue: InvalidationQueue,
    prepare: impl FnOnce(&SeaweedFilesystem, Arc<KernelNotifier>),
) -> Result<RunningSession, MountError> {
    let device = Arc::new(connection.as_fd().try_clone_to_owned().map_err(MountError::Session)?);
    let _ = context.device.set(device.clone());
    let notifier = Arc::new(KernelNotifier::new(connection.notifier(), device));
    context.namespace.set_kernel_features(KernelFeatures {
        prunes: notifier.can_prune(),
        accepts_entries_without_node: context.checks_attributes.load(Relaxed),
    });
    let page_cache =
        PageCacheStore::start(context.namespace.clone(), connection.notifier(), context.reader.clone())
            .map_err(MountError::Session)?;
    let _ = context.page_cache.set(page_cache);
    let ledger = context.ledger.clone();
    invalidate::spawn(queue, notifier.clone(), ledger).map_err(MountError::Session)?;
    let growths = context.namespace.enable_growth();
    let growing = growth::follow(growths, Arc::downgrade(&context), connection.notifier());
    context.runtime.spawn(vital::task("growing files", growing));
    prepare(connection.filesystem(), notifier);
    connection.serve(options.threads()).map_err(MountError::Session)
}

impl NoticeHandler for MountContext {
    const LIVE_MESSAGE: &str = "the filer's events arrive; names and attributes are cached";
    const LOST_MESSAGE: &str =
        "names and attributes are checked every second until the filer's events arrive again";

    fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    fn on_live(&self) {
        growth::refresh_all(self);
    }

    fn on_change(&self, change: &EntryChange) {
        if let Some(old) = &change.old {
            self.reader.replaced(&old.entry, change.new.as_ref().map(|new| &new.entry as &dyn OriginFile));
        }
        self.namespace.apply(change);
        if let Some(node) = change.new.as_ref().and_then(|new| self.namespace.node_growing_to(new)) {
            growth::refresh(self, node);
        }
    }
}

/// The path with one slash before each name and none at the end; `/` for the root.
fn normal_path(path: &str) -> String {
    let names: Vec<_> = path.split('/').filter(|name| !name.is_empty()).collect();
    format!("/{}", names.join("/"))
}

#[cfg(test)]
mod tests {
    use super::normal_path;

    #[test]
    fn paths_have_one_form() {
        for (given, normal) in [("/", "/"), ("", "/"), ("a", "/a"), ("//a//b/", "/a/b"), ("/a b/ü", "/a b/ü")]
        {
            assert_eq!(normal_path(given), normal);
        }
    }
}
