//! The host side of FUSE that both file systems share: [`mount`](crate::mount) and [`attach`](crate::attach).
//!
//! [`mountpoint`] and [`device`] get the kernel to send requests, [`session`] runs the threads that answer them, [`unmount`] and
//! [`mountinfo`] take a mount away again. [`request_tracker`] knows what is under way, has the threads run where a lone reader waits
//! ([`affinity`]), and the CPUs not sleep meanwhile ([`cpu_latency`]). Nothing here knows which files there are.

pub(crate) mod affinity;
pub(crate) mod cpu_latency;
pub(crate) mod device;
#[cfg(test)]
pub(crate) mod fuzz;
pub(crate) mod handles;
pub(crate) mod killed;
pub(crate) mod mountinfo;
pub(crate) mod mountpoint;
pub(crate) mod request_tracker;
pub(crate) mod session;
pub(crate) mod unmount;
pub(crate) mod xattr;

pub use mountpoint::MountError;
pub use session::SessionEnd;
pub use xattr::STATUS_XATTR;

use crate::arrival::Arrival;
use crate::namespace::Filer;
use crate::seaweed::entry::{Entry, Kind};

/// The entry of a directory that is to be shown.
pub(crate) async fn find_root(filer: &dyn Filer, path: &str) -> Result<Entry, MountError> {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let directory = if directory.is_empty() { "/" } else { directory };
    match filer.lookup(directory, name, Arrival::now()).await.map_err(MountError::Filer)?.entry {
        Some(entry) if entry.attr.kind == Kind::Directory => Ok(entry),
        Some(_) => Err(MountError::FilerPathNotDirectory { path: path.into() }),
        None => Err(MountError::FilerPathMissing { path: path.into() }),
    }
}
