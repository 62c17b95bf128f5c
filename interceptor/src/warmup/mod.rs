//! Files brought into the cache ahead of a job, because somebody asks the running daemon to: `interceptor warmup`.
//!
//! ```text
//!  interceptor warmup /mnt/data/train            any user, with that user's rights
//!     │ walks the mount, and reads a ticket of each file: the kernel checks permissions
//!     │ POST /api/v1/warmup {"action":"fetch","device":"0:52","tickets":[…]}
//!  api     same host, no browser, bounded size, valid tickets     ──► refused otherwise
//!     │
//!  desk    a bounded number of jobs, each with a name that cannot be guessed
//!     │
//!  work    node → version of the file → Reader::warm / cached / give_up
//! ```
//!
//! **The client walks, not the daemon.** What a user may see is the kernel's decision, made on the user's own process; the
//! daemon, which may see all, would have to make it a second time. So a request has no paths but a [`ticket`] of each file,
//! which the kernel gives only to a user who may read the file. A ticket names one use of a node number: of a mount that is one
//! version of a file, of an attached path a file, whose version of that moment is meant. Answers hold sizes and what went
//! wrong in one word, and never a name.
//!
//! **Who may ask what.** A user may have fetched and counted what he may read; that takes only what is free. `evict` is for
//! the owner of a file, root and the user of the daemon; `force`, which pushes out files of others, for the last two only.
//! Other hosts are refused even if `--status-addr` lets them see the status, and so are web pages in a browser on this host.
//! Where the status API has a token, these requests need it as well.
//!
//! **A job does not outlive who wants it.** It is cancelled on request, and also when nobody has asked about it for
//! [`JOB_LEASE`]: a client that was killed leaves nothing behind.

pub mod api;
mod batch;
mod registry;
#[cfg(test)]
mod tests;
pub mod ticket;
pub mod wire;

pub use registry::{JOB_LEASE, JobRegistry, PinnedVersion, WarmupFile, WarmupMount};
