//! Files brought into the cache ahead of a job, because somebody asks the running daemon to: `interceptor warmup`.
//!
//! ```text
//!  interceptor warmup /mnt/data/train            any user, with that user's rights
//!     │ walks the mount: the kernel checks permissions; holds each file it names
//!     │ POST /api/v1/warmup {"action":"fetch","device":"0:52","nodes":[…]}
//!  api     same host, no browser, bounded size          ──► refused otherwise
//!     │
//!  desk    a bounded number of jobs, each with a name that cannot be guessed
//!     │
//!  work    node → version of the file → Reader::warm / cached / give_up
//! ```
//!
//! **The client walks, not the daemon.** What a user may see is the kernel's decision, made on the user's own process; the
//! daemon, which may see all, would have to make it a second time. So a request has numbers of nodes (`st_ino`) instead of
//! paths. A node is one version of a file, so there is no question which content is meant, or, of an attached path, a file, whose version of that moment is meant; the client holds the file
//! while it names it, so the node cannot be another's by then. Answers hold sizes and what went wrong in one word, and
//! never a name. Who guesses numbers can have files fetched that he may not read, and learns their sizes.
//!
//! **Who may ask what.** Every process on the host may ask for everything: to fetch takes only what is free; `force` and
//! `evict` make reads of others slower, never wrong. Other hosts are refused even if `--status-addr` lets them see the
//! status, and so are web pages in a browser on this host.
//!
//! **A job does not outlive who wants it.** It is cancelled on request, and also when nobody has asked about it for
//! [`LEASE`]: a client that was killed leaves nothing behind.

pub mod api;
mod desk;
#[cfg(test)]
mod tests;
pub mod wire;
mod work;

pub use desk::{Desk, Held, LEASE, Mounted, Wanted};
