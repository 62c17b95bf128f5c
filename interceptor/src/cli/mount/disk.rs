//! The disk cache of a mount: opened, named after the cluster, watched.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use daemon::size::ByteSize;
use nix::sys::statvfs::statvfs;
use tokio::runtime::Handle;

use crate::cli::host::{self, Finding, FindingState};
use crate::cli::mount_address::answer_of;
use crate::cli::options::FetchOptions;
use crate::disk::{self, ClusterIdentity, DiskCache, DiskCacheConfig};
use crate::read::DiskTier;
use crate::seaweed::filer::FilerClient;
use crate::telemetry::{DiskCacheUsage, Metrics, Status};

/// Bytes of the memory cache that may wait to be written: one in as many.
const QUEUE_DIVISOR: u64 = 8;
/// The most of them.
const MAX_QUEUED: u64 = 128 << 20;
/// Without a size, one in as many bytes of the file system.
const DEFAULT_DIVISOR: u64 = 10;
/// How long a look at the directory may take.
const INSPECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The disk that `options` name, for blocks of the cluster of `filer`. A disk that cannot be used
/// is no reason not to mount: the status says why there is none.
pub(super) fn tier(
    options: &FetchOptions,
    cache_size: ByteSize,
    filer: &FilerClient,
    status: &Status,
) -> Option<DiskTier> {
    let directory = options.disk_cache.as_deref()?;
    let configuration = filer.configuration();
    let Some(cluster) = ClusterIdentity::new(&configuration.cluster_id, configuration.signature) else {
        return go_without("the filer does not tell which cluster it belongs to".into(), status);
    };
    let config = DiskCacheConfig {
        directory: directory.to_owned(),
        capacity: options.disk_cache_size.map_or_else(|| default_size(directory), |size| size.0),
        max_queued: (cache_size.0 / QUEUE_DIVISOR).min(MAX_QUEUED),
    };
    match DiskCache::open(&config, status.metrics().clone(), Handle::current()) {
        Ok(disk) => {
            tracing::info!("disk cache of {} in {}", ByteSize(config.capacity), directory.display());
            watch(status.metrics(), &disk);
            Some(DiskTier::new(disk, cluster))
        }
        Err(error) => go_without(error.to_string(), status),
    }
}

fn go_without(found: String, status: &Status) -> Option<DiskTier> {
    host::go_without(&finding(FindingState::Lost, found), status);
    None
}

fn finding(state: FindingState, found: String) -> Finding {
    Finding {
        ability: "disk cache",
        state,
        found,
        lost: "nothing is kept on disk",
        remedy: "a directory on a disk of this host that this user may write and nobody else has used",
    }
}

/// What a mount with this directory and size, or the default size, would find. A disk that hangs is
/// not waited for.
pub(in crate::cli) fn look(directory: &Path, size: Option<ByteSize>) -> Finding {
    let asked = directory.to_owned();
    let answer = answer_of(move || inspected(&asked, size)).recv_timeout(INSPECT_TIMEOUT);
    answer.unwrap_or_else(|_| {
        let found = format!("{} does not answer within {INSPECT_TIMEOUT:?}", directory.display());
        finding(FindingState::Lost, found)
    })
}

fn inspected(directory: &Path, size: Option<ByteSize>) -> Finding {
    match disk::inspect(directory) {
        Ok((path, free)) => {
            let size = size.unwrap_or_else(|| ByteSize(default_size(directory)));
            let (path, free) = (path.display(), ByteSize(free));
            finding(FindingState::Ok, format!("{path} can be used, for up to {size}; {free} are free there"))
        }
        Err(error) => finding(FindingState::Lost, error.to_string()),
    }
}

/// A tenth of the file system that `directory` is on, or will be made on.
fn default_size(directory: &Path) -> u64 {
    let stat = directory.ancestors().find_map(|path| statvfs(path).ok());
    stat.map_or(0, |stat| stat.blocks() * stat.fragment_size() / DEFAULT_DIVISOR)
}

/// Has the metrics tell how full the disk is.
fn watch(metrics: &Metrics, disk: &Arc<DiskCache>) {
    let disk = Arc::downgrade(disk);
    metrics.set_disk_cache(Box::new(move || {
        let usage = disk.upgrade().map(|disk| disk.usage()).unwrap_or_default();
        DiskCacheUsage {
            capacity: usage.capacity,
            used: usage.used,
            queued: usage.queued,
            files: usage.files,
            written: usage.written,
            dropped: usage.dropped,
            evicted_files: usage.evicted,
            is_writer: usage.is_writer,
        }
    }));
}
