//! What the request threads of a mount share with the tasks that they start.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::handle_records::HandleRecords;
use super::opens::Opens;
use super::page_cache_store::PageCacheStore;
use super::passthrough::{self, BackingFile, PassthroughUnavailable};
use super::statfs::UsageCache;
use crate::fuse::request_tracker::RequestTracker;
use crate::ledger::Ledger;
use crate::namespace::next_files::NextFilePrefetcher;
use crate::namespace::{Namespace, NodeId};
use crate::read::{FileVersion, Reader};
use crate::telemetry::Metrics;
use crate::warmup::ticket::{NodeInstance, ReadTicket, TicketIssuer};

/// The parts of a mount.
pub(super) struct MountContext {
    pub(super) namespace: Arc<Namespace>,
    pub(super) reader: Arc<Reader>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) usage: Arc<UsageCache>,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) next_files: NextFilePrefetcher,
    pub(super) requests: RequestTracker,
    pub(super) wants_passthrough: bool,
    /// Whether the kernel offered passthrough in the handshake.
    pub(super) passthrough_offered: AtomicBool,
    /// Whether the kernel skips listed entries whose attributes no file could have.
    pub(super) checks_attributes: AtomicBool,
    /// Set before the first request if OPEN requests are answered.
    pub(super) opens: OnceLock<Opens<FileVersion, BackingFile>>,
    /// What a successor would find.
    pub(super) ledger: Ledger,
    pub(super) handles: HandleRecords,
    /// The connection, through which backing files are registered. Set before the first request.
    pub(super) device: OnceLock<Arc<OwnedFd>>,
    /// Set before the first request.
    pub(super) page_cache: OnceLock<PageCacheStore>,
    /// What [`STATUS_XATTR`](crate::fuse::STATUS_XATTR) shows.
    pub(super) status_api: Arc<OnceLock<SocketAddr>>,
    /// Issues the values of [`READ_TICKET_XATTR`](crate::warmup::ticket::READ_TICKET_XATTR).
    pub(super) tickets: Arc<TicketIssuer>,
}

impl MountContext {
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    /// Whether the kernel can read backing files by itself. To be called between the handshake and
    /// the first request.
    pub(super) fn passthrough(&self, session: impl AsFd) -> Result<(), PassthroughUnavailable> {
        if !self.wants_passthrough {
            return Err(PassthroughUnavailable::SwitchedOff);
        }
        if !self.passthrough_offered.load(Ordering::Relaxed) {
            return Err(PassthroughUnavailable::NotOffered);
        }
        passthrough::probe(session)?;
        Ok(self.reader.keep_resident_files()?)
    }

    /// Fetches the files that a reader of many small files reads next. `hit`: the file that it
    /// reads now was in memory.
    pub(super) fn prefetch_next_files(&self, node: NodeId, size: u64, hit: bool) {
        self.next_files.follow_walk(&self.namespace, &self.reader, node);
        self.next_files.follow_epoch(&self.namespace, &self.reader, node, size, hit);
    }

    /// A ticket for a user who may read the file, which the kernel has checked
    /// (`default_permissions`).
    pub(super) fn read_ticket(&self, node: NodeId, user: u32) -> Option<String> {
        let (serial, owner) = self.namespace.file_identity(node)?;
        let file = NodeInstance { node, serial };
        Some(self.tickets.issue(&ReadTicket { file, user, is_owner: user == owner }))
    }
}
