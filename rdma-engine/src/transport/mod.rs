//! Streams that carry the protocol: TCP connections, with or without TLS, and Unix sockets. Both
//! sides use the same.

mod incoming;
#[cfg(feature = "verbs")]
pub(crate) mod messages;
#[cfg(feature = "verbs")]
pub(crate) mod queue_pair_end;
mod socket;
mod tunnel;

pub(crate) use incoming::{Incoming, StreamError};
pub(crate) use socket::Socket;
pub(crate) use tunnel::Tunnel;

use tokio::runtime::{Handle, RuntimeFlavor};

/// How a request is sent, and its answer if there is room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestPath {
    /// Over the stream of the bootstrap.
    Stream,
    /// As a message of the queue pair.
    Message,
}

/// Runs `work`, which may wait for a disk or take long, while other threads take over the tasks of
/// this one.
pub(crate) fn run_blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        // There is no other thread that could take the tasks over.
        RuntimeFlavor::CurrentThread => work(),
        _ => tokio::task::block_in_place(work),
    }
}
