//! The host side of FUSE, which the file systems of `interceptor mount` and `interceptor attach`
//! share.
//!
//! ```text
//!  mountpoint ── checks the path ──► device ── mount(2), fsmount(2), fusermount3 ──► /dev/fuse
//!                                                                                      │
//!  capabilities ── FUSE_INIT ──► session: request threads, each with a clone of it ◄───┘
//!                                   │ request_tracker: requests in flight
//!                                   │   ├─ affinity     binds the threads to a lone reader's CPU
//!                                   │   └─ cpu_latency  keeps CPUs awake during bursts
//!                                   ▼
//!                                the file system
//!  mountinfo, unmount: finds the mount again, and removes it
//!
//!  supervisor: the parent process; starts another one if this one dies, or removes the mount
//!  handover: has it execute another program
//!  packets, worker_end: how they talk, and how the parent sees the other's end
//! ```
//!
//! Nothing here knows which files there are. [`notices`] follows the filer's events on behalf of a
//! file system, [`killed`] answers requests whose caller was killed, and `fuzz` sends raw requests
//! to a whole file system.

pub(crate) mod affinity;
pub(crate) mod capabilities;
pub(crate) mod cpu_latency;
pub(crate) mod device;
mod error;
#[cfg(test)]
pub(crate) mod fuzz;
pub(crate) mod handles;
pub mod handover;
pub(crate) mod killed;
pub(crate) mod mountinfo;
pub(crate) mod mountpoint;
pub(crate) mod notices;
mod packets;
pub(crate) mod request_tracker;
pub(crate) mod session;
pub mod supervisor;
pub(crate) mod unmount;
mod worker_end;
pub(crate) mod xattr;

pub use error::MountError;
pub use session::SessionEnd;
pub use xattr::STATUS_XATTR;
