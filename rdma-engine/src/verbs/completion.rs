//! Completion queues, and waiting for completions.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use ibverbs_sys as ffi;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use super::adaptive_poll::AdaptivePoll;
use super::outstanding::{Completion, Outstanding, SERIALS, WorkId, WorkKind};
use super::{DeviceContext, LocalMemory, VerbsError, WorkError};

/// How many completions are taken from the device with one call.
const POLL_BATCH: usize = 32;

/// Receives the completions of any number of queue pairs of one device. Made by [`Poller::new`].
pub struct CompletionQueue<M: LocalMemory> {
    raw: NonNull<ffi::ibv_cq>,
    channel: NonNull<ffi::ibv_comp_channel>,
    context: Arc<DeviceContext>,
    /// The next completion makes an event, or has made one that the poller has not taken yet.
    armed: AtomicBool,
    /// The lock is held while completions are taken, so that those of a queue keep their order.
    state: Mutex<QueueState<M>>,
}

// SAFETY: verbs may be called from any thread and from several at once; our own state is behind
// the lock, and `M` is `Send`.
unsafe impl<M: LocalMemory> Send for CompletionQueue<M> {}
// SAFETY: as above.
unsafe impl<M: LocalMemory> Sync for CompletionQueue<M> {}

struct QueueState<M> {
    queue_pairs: HashMap<u32, Weak<WorkQueues<M>>>,
    next_serial: u32,
    /// Room that is promised to no queue pair. A device whose completion queue overflows is
    /// broken, so each queue pair is promised room for all its completions.
    free: u32,
    /// Room that was promised to queue pairs that are gone. Their completions may still lie in the
    /// queue until it was seen empty.
    retired: u32,
}

/// The work of one queue pair.
pub(super) struct WorkQueues<M> {
    pub(super) send: Mutex<Outstanding<M>>,
    pub(super) receive: Mutex<Outstanding<M>>,
    pub(super) broken: AtomicBool,
}

/// Locks, even if a thread panicked with the lock: the queues are consistent wherever it can be
/// left.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<M: LocalMemory> CompletionQueue<M> {
    /// The device.
    pub fn context(&self) -> &Arc<DeviceContext> {
        &self.context
    }

    pub(super) fn as_raw(&self) -> *mut ffi::ibv_cq {
        self.raw.as_ptr()
    }

    /// Takes all completions that have arrived, without waiting. Returns how many were added to
    /// `into`.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn take(&self, into: &mut Vec<Completion<M>>) -> Result<usize, VerbsError> {
        self.take_with(&mut lock(&self.state), into)
    }

    /// As [`take`](Self::take), but takes none if another thread is taking them.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn try_take(&self, into: &mut Vec<Completion<M>>) -> Result<usize, VerbsError> {
        match self.state.try_lock() {
            Ok(mut state) => self.take_with(&mut state, into),
            Err(TryLockError::Poisoned(state)) => self.take_with(&mut state.into_inner(), into),
            Err(TryLockError::WouldBlock) => Ok(0),
        }
    }

    fn take_with(
        &self,
        state: &mut QueueState<M>,
        into: &mut Vec<Completion<M>>,
    ) -> Result<usize, VerbsError> {
        let before = into.len();
        let mut buffer = [MaybeUninit::<ffi::ibv_wc>::uninit(); POLL_BATCH];
        loop {
            let raw = self.as_raw();
            // SAFETY: the queue is valid, its context has the function (every provider does), and
            // the buffer has room for as many as are asked for.
            let count = unsafe {
                let poll = (*(*raw).context).ops.poll_cq.expect("every provider has poll_cq");
                poll(raw, POLL_BATCH as i32, buffer.as_mut_ptr().cast())
            };
            let count = usize::try_from(count).map_err(|_| VerbsError::last("ibv_poll_cq"))?;
            for completion in &buffer[..count] {
                // SAFETY: the call has filled the first `count`.
                state.complete(unsafe { completion.assume_init_ref() }, into);
            }
            if count < POLL_BATCH {
                // The queue is empty, so no completion of a retired queue pair is left.
                state.free += std::mem::take(&mut state.retired);
                return Ok(into.len() - before);
            }
        }
    }

    /// Makes the next completion wake the [`Poller`]. A completion that arrived before makes no
    /// event, so a waiter takes the completions that are there after it has armed the queue.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn arm(&self) -> Result<(), VerbsError> {
        if self.armed.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let raw = self.as_raw();
        // SAFETY: as in `take_with`.
        let returned = unsafe {
            let notify = (*(*raw).context).ops.req_notify_cq.expect("every provider has req_notify_cq");
            notify(raw, 0)
        };
        VerbsError::check("ibv_req_notify_cq", returned)
            .inspect_err(|_| self.armed.store(false, Ordering::SeqCst))
    }

    /// Promises room for `completions` and gives the queue pair its serial.
    pub(super) fn enter(&self, queues: &Arc<WorkQueues<M>>, completions: u32) -> Result<u32, VerbsError> {
        let mut state = lock(&self.state);
        if completions > state.free {
            return Err(VerbsError::CompletionQueueFull { free: state.free, needed: completions });
        }
        state.free -= completions;
        loop {
            let serial = state.next_serial & SERIALS;
            state.next_serial = serial + 1;
            if let Entry::Vacant(entry) = state.queue_pairs.entry(serial) {
                entry.insert(Arc::downgrade(queues));
                return Ok(serial);
            }
        }
    }

    /// The queue pair is destroyed.
    pub(super) fn leave(&self, serial: u32, completions: u32) {
        let mut state = lock(&self.state);
        state.queue_pairs.remove(&serial);
        state.retired += completions;
    }
}

impl<M: LocalMemory> Drop for CompletionQueue<M> {
    fn drop(&mut self) {
        // SAFETY: queue pairs hold an `Arc` of their completion queue, so none is left. Every
        // event was acknowledged when it was taken, or the call would wait for ever. The channel
        // has no other queue.
        unsafe {
            (self.context.functions.ibv_destroy_cq)(self.raw.as_ptr());
            (self.context.functions.ibv_destroy_comp_channel)(self.channel.as_ptr());
        }
    }
}

impl<M: LocalMemory> fmt::Debug for CompletionQueue<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionQueue").field("context", &self.context).finish_non_exhaustive()
    }
}

/// Waits for the completions of a queue; meant for one thread per device.
pub struct Poller<M: LocalMemory> {
    queue: Arc<CompletionQueue<M>>,
    poll: AdaptivePoll,
}

impl<M: LocalMemory> Poller<M> {
    /// A new completion queue with room for `capacity` completions: the sum of the depths of all
    /// queue pairs that will use it.
    ///
    /// # Errors
    /// When the device has no more completion queues, or none so large.
    pub fn new(context: &Arc<DeviceContext>, capacity: u32) -> Result<Self, VerbsError> {
        let functions = context.functions;
        // SAFETY: the context is open, and the queue keeps it so.
        let channel = unsafe { (functions.ibv_create_comp_channel)(context.as_raw()) };
        let channel = NonNull::new(channel).ok_or_else(|| VerbsError::last("ibv_create_comp_channel"))?;
        let size = i32::try_from(capacity.max(1)).unwrap_or(i32::MAX);
        // SAFETY: context and channel are valid; the first vector always exists.
        let raw = unsafe {
            (functions.ibv_create_cq)(context.as_raw(), size, ptr::null_mut(), channel.as_ptr(), 0)
        };
        let Some(raw) = NonNull::new(raw) else {
            let error = VerbsError::last("ibv_create_cq");
            // SAFETY: made above and used by no queue.
            unsafe { (functions.ibv_destroy_comp_channel)(channel.as_ptr()) };
            return Err(error);
        };
        let state = QueueState { queue_pairs: HashMap::new(), next_serial: 0, free: capacity, retired: 0 };
        let queue = CompletionQueue {
            raw,
            channel,
            context: Arc::clone(context),
            armed: AtomicBool::new(false),
            state: Mutex::new(state),
        };
        let poller = Self { queue: Arc::new(queue), poll: AdaptivePoll::new() };
        let channel = poller.channel();
        fcntl_getfl(channel)
            .and_then(|flags| fcntl_setfl(channel, flags | OFlags::NONBLOCK))
            .map_err(|error| VerbsError::Call { call: "fcntl", source: error.into() })?;
        Ok(poller)
    }

    /// For the queue pairs.
    pub fn queue(&self) -> &Arc<CompletionQueue<M>> {
        &self.queue
    }

    /// Waits until there are completions, and takes them all. Returns how many were added to
    /// `into`: 0 when `timeout` has passed.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn wait(&mut self, into: &mut Vec<Completion<M>>, timeout: Duration) -> Result<usize, VerbsError> {
        let started = Instant::now();
        let before = into.len();
        if let Some(mut guard) = self.poll.begin() {
            loop {
                self.queue.take(into)?;
                // No waiter waits for the completion of a send.
                let found = into[before..].iter().any(|completion| completion.work != WorkKind::Send);
                if found || !guard.keep_spinning() {
                    self.poll.ended(found);
                    break;
                }
            }
        }
        while into.len() == before {
            self.queue.arm()?;
            // A completion that arrived before the queue was armed makes no event.
            if self.queue.take(into)? == 0 {
                let left = timeout.saturating_sub(started.elapsed());
                let woken = !left.is_zero() && self.sleep(left)?;
                self.queue.take(into)?;
                if !woken {
                    break;
                }
            }
        }
        Ok(into.len() - before)
    }

    /// Blocks until there is an event. Another thread may have [armed](CompletionQueue::arm) the
    /// queue for it. Returns false when the time has passed.
    ///
    /// # Errors
    /// When the system has failed.
    pub fn sleep(&self, time: Duration) -> Result<bool, VerbsError> {
        let time = Timespec::try_from(time).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        let channel = self.channel();
        let mut files = [PollFd::new(&channel, PollFlags::IN)];
        match poll(&mut files, Some(&time)) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(VerbsError::Call { call: "poll", source: error.into() }),
        }
        let functions = self.queue.context.functions;
        let (mut queue, mut context) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the channel is valid and does not block. It serves this one queue, which each
        // event names. Each event is acknowledged once.
        unsafe {
            while (functions.ibv_get_cq_event)(self.queue.channel.as_ptr(), &mut queue, &mut context) == 0 {
                (functions.ibv_ack_cq_events)(queue, 1);
            }
        }
        self.queue.armed.store(false, Ordering::SeqCst);
        Ok(true)
    }

    /// The descriptor that becomes readable with an event.
    fn channel(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel has its descriptor until it is destroyed, which the borrow of `self`
        // prevents.
        unsafe { BorrowedFd::borrow_raw(self.queue.channel.as_ref().fd) }
    }
}

impl<M: LocalMemory> QueueState<M> {
    fn complete(&mut self, completion: &ffi::ibv_wc, into: &mut Vec<Completion<M>>) {
        let id = WorkId::decode(completion.wr_id());
        // A queue pair that is gone has dropped its memory.
        let Some(queues) = self.queue_pairs.get(&id.serial).and_then(Weak::upgrade) else { return };
        let outcome = match completion.error() {
            None => Ok(completion.len()),
            Some((status, _)) => Err(WorkError::from_status(status)),
        };
        if outcome.is_err() {
            queues.broken.store(true, Ordering::Relaxed);
        }
        let queue = if id.receive { &queues.receive } else { &queues.send };
        lock(queue).complete(id.serial, id.sequence, outcome, into);
    }
}

impl<M: LocalMemory> fmt::Debug for Poller<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller").field("queue", &self.queue).field("poll", &self.poll).finish_non_exhaustive()
    }
}
