//! RDMA: a safe wrapper over the part of verbs that the engine and its clients use.
//!
//! ```text
//!  devices() ─► Wanted::places() ─► Context::open()            which port, which address
//!                                     │
//!             ProtectionDomain ◄──────┴──────► Poller ── CompletionQueue
//!              │ register()                       │  wait()      ▲
//!              ▼                                  ▼              │
//!         MemoryRegion ─► Slot ── post_reads() ─► QueuePair ─────┘
//!                          ▲                        │
//!                          └──── Completion ◄───────┘           the memory comes back with the result
//! ```
//!
//! **Who owns memory.** A device reads and writes memory behind the compiler's back, long after a function has returned. So posting
//! work *moves* its memory ([`LocalMemory`]) into the queue pair, and the [`Completion`] moves it back. In between nobody can free, read or write
//! it; dropping the queue pair takes the work from the device first and frees the memory then. A [`MemoryRegion`] owns what it registers, or shares the
//! ownership (`Arc`): a borrow would end too early if the region were forgotten instead of dropped.
//!
//! **Many reads at once.** [`QueuePair::post_reads`] hands a batch to the device with one call and asks for a completion of every fourth and of the last; the
//! queue runs in order, so that one stands for those before it, and each still gives a [`Completion`] of its own. The device keeps up to `max_reads` on the way and
//! starts the others as those come back.
//!
//! **Waiting.** One [`Poller`] serves any number of queue pairs of a device. It looks for completions for a little while, as long as that has paid off lately (`looking`),
//! and then sleeps on the completion channel. Others may take completions, too ([`CompletionQueue::take`]): whoever waits for one that comes in a moment need not be woken then.
//!
//! **Faults.** The first failure breaks a queue pair: everything else on it is flushed, each piece of work with a typed [`WorkError`]. A peer that is killed shows as
//! [`WorkError::RemoteAccess`] or [`WorkError::RetryExceeded`]; one that cannot be reached as the latter, after the time that [`Timeouts`] give. Hardware may take its time
//! with that, so whoever waits keeps a deadline and calls [`QueuePair::abort`] when it has passed.
//!
//! The names follow the `ibverbs` crate (`handshake`, `RemoteMemory` for its `RemoteMemorySlice`, …), whose next release covers most of this. Until then the types come from
//! `ibverbs-sys`, and the functions from libibverbs when they are first needed (see `library.rs`), so that a host without it runs everything else.

mod completion;
mod context;
mod device;
mod endpoint;
mod error;
mod library;
mod looking;
mod memory;
mod outstanding;
mod queue_pair;
mod select;

pub use self::completion::{CompletionQueue, Poller};
pub use self::context::DeviceContext;
pub use self::device::{Device, Gid, GidEntry, GidKind, LinkLayer, Mtu, Port, devices};
pub use self::endpoint::Endpoint;
pub use self::error::{PostError, VerbsError, WorkError};
pub(crate) use self::looking::{Look, Looking};
pub use self::memory::{
    LocalMemory, MemoryAccess, MemoryRegion, Pages, ProtectionDomain, RegisteredBuffer, RemoteMemory,
};
pub use self::outstanding::{Completion, WorkKind};
pub use self::queue_pair::{PreparedQueuePair, QueuePair, QueuePairOptions, RdmaRead, Timeouts, Unposted};
pub use self::select::{PortSelection, PortSelector, current_numa_node};
pub use crate::memory::Memory;
