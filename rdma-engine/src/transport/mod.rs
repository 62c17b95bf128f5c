//! Streams that carry the protocol: TCP connections, with TLS or without, and Unix sockets, the same for both sides.

#[cfg(feature = "verbs")]
pub(crate) mod end;
mod incoming;
#[cfg(feature = "verbs")]
pub(crate) mod messages;
pub(crate) mod peer;
mod socket;
mod tunnel;

pub(crate) use incoming::{Incoming, StreamError};
pub(crate) use socket::Socket;
pub(crate) use tunnel::Tunnel;

use tokio::runtime::{Handle, RuntimeFlavor};

/// Runs `work`, which may wait for a disk or take long, so that the other tasks of this thread need not wait for it.
pub(crate) fn aside<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        // There is no other thread that could take the tasks over.
        RuntimeFlavor::CurrentThread => work(),
        _ => tokio::task::block_in_place(work),
    }
}
