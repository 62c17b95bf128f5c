//! The host side of FUSE that both file systems share: [`mount`](crate::mount) and [`attach`](crate::attach).
//!
//! [`mountpoint`] and [`device`] get the kernel to send requests, [`session`] runs the threads that answer them, [`unmount`] and
//! [`mountinfo`] take a mount away again. [`request_tracker`] knows what is under way, has the threads run where a lone reader waits
//! ([`affinity`]), and the CPUs not sleep meanwhile ([`cpu_latency`]). Nothing here knows which files there are.

pub(crate) mod affinity;
pub(crate) mod capabilities;
pub(crate) mod cpu_latency;
pub(crate) mod device;
mod error;
#[cfg(test)]
pub(crate) mod fuzz;
pub(crate) mod handles;
pub(crate) mod killed;
pub(crate) mod mountinfo;
pub(crate) mod mountpoint;
pub(crate) mod notices;
pub(crate) mod request_tracker;
pub(crate) mod session;
pub(crate) mod unmount;
pub(crate) mod xattr;

pub use error::MountError;
pub use session::SessionEnd;
pub use xattr::STATUS_XATTR;
