//! Uses of blocks on their way to the policy.
//!
//! A hit must not wait for the policy's lock. It appends the block's key to one of several small
//! buffers; each thread keeps to one of them. The next thread that needs the policy, or that fills
//! a buffer and finds the policy's lock free, hands the keys over (X. Ding, S. Jiang and X. Zhang,
//! *BP-Wrapper*, ICDE 2009). A use that finds its buffer full is lost.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::key::BlockKey;
use super::policy::Policy;
use super::sync::Mutex;

/// Number of buffers.
const STRIPES: usize = 16;
/// From this many keys on, a buffer is handed to the policy if the policy's lock is free.
const FLUSH_THRESHOLD: usize = 64;
/// The most keys that a buffer holds.
const STRIPE_CAPACITY: usize = 1024;

/// Buffered uses.
#[derive(Debug, Default)]
pub(super) struct AccessBuffer {
    stripes: [Stripe; STRIPES],
}

/// On a cache line of its own, so that threads do not disturb each other.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe(Mutex<Vec<BlockKey>>);

impl AccessBuffer {
    /// Records a use of `key`.
    pub(super) fn record(&self, key: BlockKey, policy: &Mutex<Box<dyn Policy<BlockKey>>>) {
        let mut keys = self.stripes[stripe()].0.lock();
        if keys.len() < STRIPE_CAPACITY {
            keys.push(key);
        }
        if keys.len() >= FLUSH_THRESHOLD
            && let Some(mut policy) = policy.try_lock()
        {
            keys.drain(..).for_each(|key| policy.touch(&key));
        }
    }

    /// Hands all uses to the policy.
    pub(super) fn flush(&self, policy: &mut dyn Policy<BlockKey>) {
        for stripe in &self.stripes {
            // No deadlock: a thread that holds a buffer's lock only tries the policy's lock.
            stripe.0.lock().drain(..).for_each(|key| policy.touch(&key));
        }
    }
}

/// The buffer of this thread.
fn stripe() -> usize {
    thread_local!(static STRIPE: Cell<Option<usize>> = const { Cell::new(None) });
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    STRIPE.with(|stripe| {
        stripe.get().unwrap_or_else(|| {
            let number = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
            stripe.set(Some(number));
            number
        })
    })
}
