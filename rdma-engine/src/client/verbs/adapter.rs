//! An RDMA device as all clients of this process share it: one protection domain, one completion
//! queue with its thread, and the memory that is registered with it.
//!
//! The device is opened with the first connection and closed with the last. Sharing the domain is
//! safe: nothing in it can be reached from outside.
//!
//! **Waiting for completions.** The adapter thread dispatches all completions. But to wake the
//! thread, and to have the thread wake the reader, takes longer than a small needle is on its way.
//! So a reader that waits alone polls the completion queue itself for a short time
//! ([`AdaptivePoll`]); meanwhile the queue makes no events. It yields to the other tasks of its
//! thread every [`SPIN_YIELD_INTERVAL`].
//!
//! *Invariant*: while a reader sleeps (waits without polling), the queue is armed, or the adapter
//! thread is awake and will take what arrives. Therefore a reader that goes to sleep first arms
//! the queue and takes what arrived before, and the thread arms the queue again while there are
//! sleepers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::{RecvError, TryRecvError};
use tokio::task::yield_now;

use super::completion_waiters::CompletionWaiters;
use super::posted_buffer::PostedBuffer;
use super::registered_parts::RegisteredParts;
use crate::verbs::{
    AdaptivePoll, Completion, CompletionQueue, DeviceContext, Poller, ProtectionDomain, SpinGuard, VerbsError,
};

/// Completions that may be outstanding on one device: enough for some hundred connections.
const COMPLETION_QUEUE_CAPACITY: u32 = 8192;

/// How long the thread sleeps without completions before it checks whether the adapter is in use.
/// A completion for which no event came would be found then.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// How long a spinning reader keeps its thread from other tasks.
const SPIN_YIELD_INTERVAL: Duration = Duration::from_micros(20);

/// One open device.
pub(super) struct Adapter {
    name: String,
    pub(super) domain: Arc<ProtectionDomain>,
    pub(super) queue: Arc<CompletionQueue<PostedBuffer>>,
    /// The device gives no completions any more.
    failed: AtomicBool,
    pub(super) registered: Arc<RegisteredParts>,
    waiters: Arc<CompletionWaiters>,
}

/// The devices in use.
static ADAPTERS: Mutex<Vec<Weak<Adapter>>> = Mutex::new(Vec::new());

impl Adapter {
    /// The device of this name; opens it if this process does not have it open.
    pub(super) fn open(name: &str) -> Result<Arc<Self>, VerbsError> {
        let mut adapters = ADAPTERS.lock();
        adapters.retain(|adapter| adapter.strong_count() > 0);
        let open = adapters.iter().filter_map(Weak::upgrade).find(|adapter| adapter.name == name);
        if let Some(adapter) = open.filter(|adapter| !adapter.failed.load(Ordering::Relaxed)) {
            return Ok(adapter);
        }
        let context = DeviceContext::open(name)?;
        let poller = Poller::new(&context, COMPLETION_QUEUE_CAPACITY)?;
        let domain = ProtectionDomain::new(&context)?;
        let adapter = Arc::new(Self {
            name: name.to_owned(),
            registered: RegisteredParts::new(domain.clone()),
            domain,
            queue: Arc::clone(poller.queue()),
            failed: AtomicBool::new(false),
            waiters: Arc::default(),
        });
        let (weak, waiters) = (Arc::downgrade(&adapter), Arc::clone(&adapter.waiters));
        thread::Builder::new()
            .name(format!("rdma {name}"))
            .spawn(move || dispatch_completions(poller, &weak, &waiters))
            .map_err(|source| VerbsError::Call { call: "clone", source })?;
        adapters.push(Arc::downgrade(&adapter));
        Ok(adapter)
    }

    /// Waits for what a completion will send to `receiver`. `poll` has learned from earlier waits
    /// of the same kind.
    pub(super) async fn wait_for<T>(
        &self,
        receiver: &mut oneshot::Receiver<T>,
        poll: &Mutex<AdaptivePoll>,
    ) -> Result<T, RecvError> {
        let mut waiter = self.waiters.enter();
        let guard = if waiter.spins() { poll.lock().begin() } else { None };
        if let Some(guard) = guard {
            // Lets other tasks post their requests first: a reader that is not alone does not
            // spin.
            yield_now().await;
            if waiter.is_alone() {
                let found = self.spin(guard, receiver).await;
                poll.lock().ended(found.is_some());
                if let Some(outcome) = found {
                    return outcome;
                }
            }
        }
        waiter.stop_spinning();
        let mut done = Vec::new();
        // A device that fails here also fails its thread.
        let _ = self.queue.arm().and_then(|()| self.queue.take(&mut done));
        dispatch(&mut done);
        receiver.await
    }

    /// Takes completions until the awaited one is among them, or the time for spinning is over.
    async fn spin<T>(
        &self,
        mut guard: SpinGuard,
        receiver: &mut oneshot::Receiver<T>,
    ) -> Option<Result<T, RecvError>> {
        let mut done = Vec::new();
        let mut last_yield = Instant::now();
        loop {
            self.queue.try_take(&mut done).ok()?;
            dispatch(&mut done);
            match receiver.try_recv() {
                Ok(received) => return Some(Ok(received)),
                Err(TryRecvError::Closed) => return Some(receiver.await),
                Err(TryRecvError::Empty) if !guard.keep_spinning() => return None,
                Err(TryRecvError::Empty) => {}
            }
            if last_yield.elapsed() >= SPIN_YIELD_INTERVAL {
                yield_now().await;
                last_yield = Instant::now();
            }
        }
    }
}

/// Dispatches all completions, as long as the adapter is in use.
fn dispatch_completions(
    mut poller: Poller<PostedBuffer>,
    adapter: &Weak<Adapter>,
    waiters: &CompletionWaiters,
) {
    let mut done = Vec::new();
    while adapter.strong_count() > 0 {
        let outcome = match waiters.has_sleepers() {
            true => poller.wait(&mut done, IDLE_CHECK_INTERVAL),
            // A reader that goes to sleep arms the queue.
            false => poller.sleep(IDLE_CHECK_INTERVAL).and_then(|_| poller.queue().take(&mut done)),
        };
        if let Err(error) = outcome {
            tracing::error!(%error, "an RDMA device has failed");
            if let Some(adapter) = adapter.upgrade() {
                adapter.failed.store(true, Ordering::Relaxed);
            }
            return;
        }
        dispatch(&mut done);
    }
}

/// Hands each completion to the buffer that was posted with it.
fn dispatch(done: &mut Vec<Completion<PostedBuffer>>) {
    for completion in done.drain(..) {
        if let Some(buffer) = completion.memory {
            buffer.complete(completion.result);
        }
    }
}
