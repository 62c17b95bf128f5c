//! The usage of the cluster for `statfs`, refreshed in the background so that `df` never waits
//! long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::ReplyStatfs;
use futures::FutureExt;
use parking_lot::Mutex;

use crate::namespace::{ClusterUsage, Filer, NowOrLater};

/// How long figures are used; `weed mount` uses them as long.
const MAX_AGE: Duration = Duration::from_secs(20);
/// How long the first caller waits for figures.
const FIRST_QUERY_TIMEOUT: Duration = Duration::from_secs(2);
/// The unit of the figures in bytes.
const BLOCK_SIZE: u32 = 4096;

pub(super) struct UsageCache {
    filer: Arc<dyn Filer>,
    runtime: tokio::runtime::Handle,
    latest: Mutex<CachedUsage>,
}

#[derive(Default)]
struct CachedUsage {
    usage: Option<ClusterUsage>,
    requested_at: Option<Instant>,
}

impl UsageCache {
    pub(super) fn new(filer: Arc<dyn Filer>, runtime: tokio::runtime::Handle) -> Arc<Self> {
        Arc::new(Self { filer, runtime, latest: Mutex::default() })
    }

    /// The latest figures; zeros if there are none. Starts a refresh if they are old.
    pub(super) fn latest(self: &Arc<Self>) -> NowOrLater<ClusterUsage> {
        let mut latest = self.latest.lock();
        let due = latest.requested_at.is_none_or(|at| at.elapsed() > MAX_AGE);
        if let (false, known) | (true, known @ Some(_)) = (due, latest.usage) {
            if due {
                latest.requested_at = Some(Instant::now());
                self.runtime.spawn(self.clone().refresh());
            }
            return NowOrLater::Now(known.unwrap_or_default());
        }
        latest.requested_at = Some(Instant::now());
        let refreshed = self.clone().refresh();
        NowOrLater::Later(
            async move { tokio::time::timeout(FIRST_QUERY_TIMEOUT, refreshed).await.unwrap_or_default() }
                .boxed(),
        )
    }

    async fn refresh(self: Arc<Self>) -> ClusterUsage {
        match self.filer.cluster_usage().await {
            Ok(usage) => {
                self.latest.lock().usage = Some(usage);
                usage
            }
            Err(error) => {
                tracing::debug!(%error, "cannot learn how full the cluster is");
                self.latest.lock().usage.unwrap_or_default()
            }
        }
    }
}

pub(super) fn reply(usage: ClusterUsage, reply: ReplyStatfs) {
    let blocks = |bytes: u64| bytes / u64::from(BLOCK_SIZE);
    let free = blocks(usage.total.saturating_sub(usage.used));
    // A cluster has no limit on files; this is the largest number that `df` computes with.
    let files = i64::MAX as u64;
    reply.statfs(
        blocks(usage.total),
        free,
        free,
        files,
        files - usage.files.min(files),
        BLOCK_SIZE,
        MAX_NAME_LEN,
        BLOCK_SIZE,
    );
}

/// The longest name in bytes that the kernel accepts.
pub(super) const MAX_NAME_LEN: u32 = 255;
