//! The read calls of applications, for those who follow the reads of a mount.
//!
//! All followers share the programs, which are loaded for the first one and detached after the
//! last.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::WatchedMount;
use crate::ebpf::{CallTracer, DeviceNumber, TracedCall};
use crate::telemetry::Metrics;
use crate::telemetry::followed_call::{CallSource, CallTracing, FollowedCall};
use crate::telemetry::read_followers::ReadFollowers;

/// Gives the calls that read `mount` to the followers of reads. Does not keep the mount.
pub(super) fn source<W: WatchedMount>(
    device: DeviceNumber,
    mount: &Arc<W>,
    metrics: &Arc<Metrics>,
) -> CallSource {
    let (mount, metrics) = (Arc::downgrade(mount), metrics.clone());
    let shared = Mutex::new(Weak::<FollowedTracer>::new());
    Arc::new(move || {
        // Held while the programs are loaded, so that they are loaded once.
        let mut shared = shared.lock();
        let tracer = match shared.upgrade() {
            Some(tracer) => tracer,
            None => {
                let (mount, metrics) = (mount.clone(), metrics.clone());
                let nameless = Arc::<AtomicU64>::default();
                let counted = nameless.clone();
                let take = move |call| {
                    let followers = metrics.slow_reads().followers();
                    match mount.upgrade().and_then(|mount| followed(call, &*mount, followers)) {
                        Some(call) => followers.offer_call(call),
                        None => _ = counted.fetch_add(1, Relaxed),
                    }
                };
                let programs = CallTracer::start(device, take).map_err(|error| format!("calls ({error})"))?;
                let tracer = Arc::new(FollowedTracer { programs, nameless });
                *shared = Arc::downgrade(&tracer);
                tracer
            }
        };
        Ok(Arc::new(SharedTracer { tracer: Some(tracer), runtime: Handle::current() }))
    })
}

/// A call as it is shown; `None` if the mount does not know its file any more.
fn followed<W: WatchedMount>(call: TracedCall, mount: &W, followers: &ReadFollowers) -> Option<FollowedCall> {
    let path = mount.traced_path(call.node, followers)?;
    let (len, error) = match call.returned {
        Ok(len) => (len, None),
        Err(number) => (0, Some(io::Error::from_raw_os_error(number).to_string())),
    };
    Some(FollowedCall {
        offset: call.offset,
        len,
        process: call.process,
        caller: call.thread,
        caller_name: call.command,
        requests: call.requests,
        passthrough: call.passthrough,
        error,
        ..FollowedCall::reported_now(path, call.took)
    })
}

/// The programs, and the calls of files that the mount does not know.
struct FollowedTracer {
    programs: CallTracer,
    nameless: Arc<AtomicU64>,
}

/// One follower's share.
struct SharedTracer {
    /// Only `None` while it is dropped.
    tracer: Option<Arc<FollowedTracer>>,
    runtime: Handle,
}

impl CallTracing for SharedTracer {
    fn unseen(&self) -> Option<String> {
        self.tracer.as_ref()?.programs.unseen().map(str::to_owned)
    }

    fn lost(&self) -> u64 {
        self.tracer.as_ref().map_or(0, |tracer| tracer.programs.lost() + tracer.nameless.load(Relaxed))
    }
}

impl Drop for SharedTracer {
    fn drop(&mut self) {
        // The kernel waits for programs that run before it detaches them.
        let tracer = self.tracer.take();
        self.runtime.spawn_blocking(|| drop(tracer));
    }
}
