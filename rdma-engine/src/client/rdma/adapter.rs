//! An RDMA device as all clients of this process share it: one protection domain, one completion queue with a thread that takes completions, and
//! the memory that was registered for good.
//!
//! Opened with the first connection and closed with the last. Sharing the domain is safe: nothing in it may be reached from outside.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use super::lent::Lent;
use super::registration::Known;
use super::waiting::Waiting;
use crate::verbs::{Completion, CompletionQueue, DeviceContext, Poller, ProtectionDomain, VerbsError};

/// Completions that may be on their way on one device: what it takes for some hundred connections.
const COMPLETIONS: u32 = 8192;

/// How long the thread sleeps without completions before it looks whether anybody is left.
const IDLE: Duration = Duration::from_millis(500);

/// One open device.
pub(super) struct Adapter {
    name: String,
    pub(super) domain: Arc<ProtectionDomain>,
    pub(super) queue: Arc<CompletionQueue<Lent>>,
    /// The device gives no completions any more.
    failed: AtomicBool,
    /// What was registered with it for good.
    pub(super) known: Mutex<Known>,
    /// Who waits for its completions.
    pub(super) waiting: Arc<Waiting>,
}

/// The devices in use.
static ADAPTERS: Mutex<Vec<Weak<Adapter>>> = Mutex::new(Vec::new());

impl Adapter {
    /// The device of this name, opened if nobody has it open.
    pub(super) fn open(name: &str) -> Result<Arc<Self>, VerbsError> {
        let mut adapters = ADAPTERS.lock();
        adapters.retain(|adapter| adapter.strong_count() > 0);
        let open = adapters.iter().filter_map(Weak::upgrade).find(|adapter| adapter.name == name);
        if let Some(adapter) = open.filter(|adapter| !adapter.failed.load(Ordering::Relaxed)) {
            return Ok(adapter);
        }
        let context = DeviceContext::open(name)?;
        let poller = Poller::new(&context, COMPLETIONS)?;
        let adapter = Arc::new(Self {
            name: name.to_owned(),
            domain: ProtectionDomain::new(&context)?,
            queue: Arc::clone(poller.queue()),
            failed: AtomicBool::new(false),
            known: Mutex::default(),
            waiting: Arc::default(),
        });
        let (weak, waiting) = (Arc::downgrade(&adapter), Arc::clone(&adapter.waiting));
        thread::Builder::new()
            .name(format!("rdma {name}"))
            .spawn(move || take_completions(poller, &weak, &waiting))
            .map_err(|source| VerbsError::Call { call: "clone", source })?;
        adapters.push(Arc::downgrade(&adapter));
        Ok(adapter)
    }
}

/// Brings completions to who waits for them, as long as the adapter is in use.
fn take_completions(mut poller: Poller<Lent>, adapter: &Weak<Adapter>, waiting: &Waiting) {
    let mut done = Vec::new();
    while adapter.strong_count() > 0 {
        let outcome = match waiting.is_anybody_asleep() {
            true => poller.wait(&mut done, IDLE),
            // Whoever goes to sleep arms the queue.
            false => poller.sleep(IDLE).and_then(|_| poller.queue().take(&mut done)),
        };
        if let Err(error) = outcome {
            tracing::error!(%error, "an RDMA device has failed");
            if let Some(adapter) = adapter.upgrade() {
                adapter.failed.store(true, Ordering::Relaxed);
            }
            return;
        }
        bring(&mut done);
    }
}

/// Brings completions to who waits for them.
pub(super) fn bring(done: &mut Vec<Completion<Lent>>) {
    for completion in done.drain(..) {
        if let Some(memory) = completion.memory {
            memory.completed(completion.result);
        }
    }
}
