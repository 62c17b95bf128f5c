//! Uses of blocks on their way to the policy.
//!
//! A hit must not wait for the policy's lock. It leaves the block's key in one of several small buffers, each thread
//! keeping to one, and goes on; whoever next needs the policy, or fills a buffer and finds the policy free, brings the
//! keys there (X. Ding, S. Jiang and X. Zhang, *BP-Wrapper*, ICDE 2009). A use that finds its buffer full is lost.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::key::BlockKey;
use super::policy::Policy;
use super::sync::Mutex;

/// Number of buffers.
const STRIPES: usize = 16;
/// A buffer with this many keys is brought to the policy if that is free.
const FULL: usize = 64;
/// A buffer with this many keys takes no more.
const OVERFULL: usize = 1024;

/// Buffered uses.
#[derive(Debug, Default)]
pub(super) struct Uses {
    stripes: [Stripe; STRIPES],
}

/// On a cache line of its own, so that threads do not disturb each other.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe(Mutex<Vec<BlockKey>>);

impl Uses {
    /// Notes a use of `key`.
    pub(super) fn note(&self, key: BlockKey, policy: &Mutex<Box<dyn Policy<BlockKey>>>) {
        let mut keys = self.stripes[stripe()].0.lock();
        if keys.len() < OVERFULL {
            keys.push(key);
        }
        if keys.len() >= FULL
            && let Some(mut policy) = policy.try_lock()
        {
            keys.drain(..).for_each(|key| policy.touch(&key));
        }
    }

    /// Brings everything to the policy.
    pub(super) fn bring(&self, policy: &mut dyn Policy<BlockKey>) {
        for stripe in &self.stripes {
            // Whoever holds a buffer's lock only ever tries the policy's, so this cannot be a deadlock.
            stripe.0.lock().drain(..).for_each(|key| policy.touch(&key));
        }
    }
}

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
