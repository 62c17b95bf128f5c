//! Warm-up: fills the cache with files before a job reads them (`interceptor warmup`).
//!
//! ```text
//!  interceptor warmup /mnt/data/train            any user, with that user's rights
//!     │ walks the mount, and reads a ticket of each file: the kernel checks permissions
//!     │ POST /api/v1/warmup {"action":"fetch","device":"0:52","tickets":[…]}
//!  api       same host, no browser, bounded size, valid tickets; others are refused
//!     │
//!  registry  a bounded number of jobs, each with an id that cannot be guessed
//!     │
//!  batch     node → version of the file → Reader::warm / cached_bytes / evict
//! ```
//!
//! **The client walks the tree, not the daemon.** The kernel decides what a user may see, on the
//! user's own process; the daemon, which may see everything, would have to decide it a second
//! time. A request therefore has no paths but a [`ticket`] of each file, which the kernel gives
//! only to a user who may read the file. A ticket names one use of a node number: in a mount one
//! version of a file, on an attached path a file, whose current version is meant. Answers have
//! sizes and a word for each problem, and never a name.
//!
//! **Permissions.** A user may fetch and count files that he may read; a fetch takes only free
//! space. `evict` is for the owner of a file, root and the user of the daemon; `force`, which
//! evicts other files, and filling the disk cache, which does so, too, for the last two only.
//! Requests from other hosts are refused even if `--status-addr` lets them read the status, and so
//! are requests of web pages. If the status API has a token, these requests need it as well.
//!
//! **A job does not outlive its client.** It is cancelled on request, and when no request about
//! it has come for [`JOB_LEASE`]: a client that was killed leaves nothing behind.

pub mod api;
mod batch;
mod file;
mod registry;
#[cfg(test)]
mod tests;
pub mod ticket;
pub mod wire;

pub use file::{PinnedVersion, WarmupFile};
pub use registry::{JOB_LEASE, JobRegistry, WarmupMount};
