//! What the status API asks a running mount: its levels, and whether it works.

use std::path::{Path, absolute};
use std::sync::{Arc, Weak};

use std::future::ready;

use futures::FutureExt;
use nix::sys::statvfs::statvfs;
use tokio::sync::Mutex;

use crate::cache::Cache;
use crate::cache::arena::SizeClassUsage;
use crate::mount::{Mount, MountStatus};
use crate::seaweed::filer::FilerClient;
use crate::telemetry::status::ReadinessCheck;
use crate::telemetry::{CacheClass, CacheUsage, Metrics, ResidentFiles, Status};

/// Has the metrics tell how full `cache` is.
pub(super) fn watch_cache(metrics: &Metrics, cache: &Arc<Cache>) {
    let cache = cache.clone();
    metrics.set_cache_usage(Box::new(move || {
        let (usage, files) = (cache.usage(), cache.resident_usage());
        let class = |class: &SizeClassUsage| CacheClass {
            slot: class.size,
            used: class.slots * class.size,
            held: class.held,
        };
        CacheUsage {
            capacity: usage.capacity,
            used: usage.used,
            resident: usage.resident,
            withheld: usage.withheld,
            prefaulting: cache.is_prefaulting(),
            resident_files: ResidentFiles {
                ready: files.files,
                waiting: files.waiting,
                promoted: files.promoted,
                failed: files.failed,
                displaced: files.displaced,
                retired: files.retired,
            },
            pinned: usage.pinned,
            rdma: cache.registrations().registered(),
            allocated: usage.allocated,
            backing: cache.backing().label().to_owned(),
            classes: cache.classes().iter().map(class).collect(),
        }
    }));
}

/// Connects the status API with `mount` and `filer`; the daemon can be ready from now on. Holds no
/// strong reference to the mount.
pub(super) fn watch(status: &Status, mount: &Arc<Mount>, filer: &FilerClient, mountpoint: &Path) {
    let known = |mount: &Arc<Mount>| -> Box<dyn Fn() -> Option<MountStatus> + Send + Sync> {
        let mount: Weak<Mount> = Arc::downgrade(mount);
        Box::new(move || mount.upgrade().map(|mount| mount.status()))
    };
    let metrics = status.metrics();
    let (nodes, live, takeovers) = (known(mount), known(mount), known(mount));
    metrics.set_takeovers(Box::new(move || takeovers().map_or(0, |mount| mount.takeovers)));
    metrics.set_nodes(Box::new(move || nodes().map_or(0, |mount| mount.nodes as u64)));
    metrics.set_subscription_live(Box::new(move || live().is_some_and(|mount| mount.live)));
    let filers = filer.clone();
    status.set_filers(Box::new(move || filers.health()));

    status.add_check("mount", mount_answers(mountpoint));
    let filer = filer.clone();
    status.add_check("filer", Box::new(move || ready(filer.answering()).boxed()));
    let metrics = status.metrics().clone();
    status.add_check("volume servers", Box::new(move || ready(volume_servers_answer(&metrics)).boxed()));
}

/// Whether no volume server keeps readers waiting.
fn volume_servers_answer(metrics: &Metrics) -> Result<(), String> {
    let servers = metrics.volume_servers().unwrap_or_default().into_iter();
    let silent: Vec<_> = servers.filter(|server| server.keeps_readers_waiting).collect();
    if silent.is_empty() {
        return Ok(());
    }
    let addresses: Vec<_> = silent.into_iter().map(|server| server.address).collect();
    Err(format!("no answer to readers from {}", addresses.join(", ")))
}

/// A check that sends a request through the kernel to the mount; `statfs` is one that the kernel
/// never answers itself.
pub(in crate::cli) fn mount_answers(mountpoint: &Path) -> ReadinessCheck {
    let path = absolute(mountpoint).unwrap_or_else(|_| mountpoint.to_owned());
    // If the mount hangs, only one thread hangs with it; other callers wait for the lock until
    // they give up.
    let one_at_a_time = Arc::new(Mutex::new(()));
    Box::new(move || {
        let (path, one_at_a_time) = (path.clone(), one_at_a_time.clone());
        async move {
            let turn = one_at_a_time.lock_owned().await;
            let asked = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                statvfs(&path)
            });
            match asked.await {
                Ok(answer) => answer.map(drop).map_err(|errno| errno.desc().to_owned()),
                Err(error) => Err(error.to_string()),
            }
        }
        .boxed()
    })
}
