//! RDMA: a safe wrapper over the part of verbs that the engine and its clients use.
//!
//! ```text
//!  devices() ─► PortSelector::select() ─► DeviceContext::open()     which port, which address
//!                                          │
//!                  ProtectionDomain ◄──────┴──────► Poller ── CompletionQueue
//!                   │ register()                       │  wait()      ▲
//!                   ▼                                  ▼              │
//!   MemoryRegion ─► RegisteredBuffer ── post_reads() ─► QueuePair ────┘
//!                          ▲                             │
//!                          └──────── Completion ◄────────┘    memory and result come back
//! ```
//!
//! **Who owns memory.** A device reads and writes memory behind the compiler's back, long after
//! the posting function has returned. So posting work *moves* its memory ([`LocalMemory`]) into
//! the queue pair, and the [`Completion`] moves it back. In between no code can free, read or
//! write it; dropping the queue pair takes the work from the device first and frees the memory
//! then. A [`MemoryRegion`] owns what it registers, or shares the ownership (`Arc`): a borrow
//! would end too early if the region were forgotten instead of dropped.
//!
//! **Many reads at once.** [`QueuePair::post_reads`] posts a batch with one call and asks for a
//! completion of every fourth and of the last. The queue runs in order, so that completion stands
//! for those before it, and each read still gives a [`Completion`] of its own. The device keeps up
//! to `max_reads` in flight and starts the others as those complete.
//!
//! **Waiting.** One [`Poller`] serves any number of queue pairs of a device. It spins for a short
//! time, as long as that has been successful lately (`adaptive_poll`), and then blocks on the
//! completion channel. Other threads may take completions, too ([`CompletionQueue::take`]), so
//! that a thread whose completion is about to come need not be woken.
//!
//! **Faults.** The first failure breaks a queue pair: everything else on it is flushed, each piece
//! of work with a typed [`WorkError`]. A peer that is killed shows as [`WorkError::RemoteAccess`]
//! or [`WorkError::RetryExceeded`]; one that cannot be reached shows as the latter, after the time
//! that [`Timeouts`] give. Hardware may take longer, so a waiter keeps a deadline and calls
//! [`QueuePair::abort`] when it has passed.
//!
//! The names follow the `ibverbs` crate (`handshake`, `RemoteMemory` for its `RemoteMemorySlice`,
//! …), whose next release covers most of this. Until then the types come from `ibverbs-sys`, and
//! the functions from libibverbs when they are first needed (see `library.rs`), so that a host
//! without it runs everything else.

mod adaptive_poll;
mod completion;
mod context;
mod device;
mod endpoint;
mod error;
mod library;
mod memory;
mod outstanding;
mod port_selector;
mod queue_pair;

pub(crate) use self::adaptive_poll::{AdaptivePoll, SpinGuard};
pub use self::completion::{CompletionQueue, Poller};
pub use self::context::{DeviceContext, devices};
pub use self::device::{Device, Gid, GidEntry, GidKind, LinkLayer, Mtu, Port};
pub use self::endpoint::Endpoint;
pub use self::error::{PostError, VerbsError, WorkError};
pub use self::memory::{
    LocalMemory, MemoryAccess, MemoryRegion, Pages, ProtectionDomain, RegisteredBuffer, RemoteMemory,
};
pub use self::outstanding::{Completion, WorkKind};
pub use self::port_selector::{PortSelection, PortSelector, current_numa_node};
pub use self::queue_pair::{PreparedQueuePair, QueuePair, QueuePairOptions, RdmaRead, Timeouts, Unposted};
pub use crate::memory::Memory;
