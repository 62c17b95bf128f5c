//! FUSE passthrough: files that the kernel reads without the daemon.
//!
//! The kernel offers passthrough in the handshake to everyone, but requires CAP_SYS_ADMIN in the
//! initial user namespace when a backing file is registered. So [`probe`] registers a file before
//! the first request, and the mount answers opens accordingly.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Weak};

use fuser::{BackingId, FileHandle, FopenFlags, InitFlags, KernelConfig, ReplyOpen};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::cache::resident::ResidentError;
use crate::read::CompleteFile;

/// Why the kernel does not read resident files by itself.
#[derive(Debug, thiserror::Error)]
pub enum PassthroughUnavailable {
    /// The user has switched it off.
    #[error("switched off by --no-passthrough")]
    SwitchedOff,
    /// The kernel did not offer it.
    #[error("this kernel does not offer it; it takes Linux 6.9 with CONFIG_FUSE_PASSTHROUGH")]
    NotOffered,
    /// There are no resident files.
    #[error("{0}")]
    NoFiles(#[from] ResidentError),
    /// The process lacks CAP_SYS_ADMIN in the initial user namespace.
    #[error("it takes the capability CAP_SYS_ADMIN, not only within a user namespace")]
    NotPermitted,
    /// The kernel refuses for another reason.
    #[error("the kernel refuses: {0}")]
    Refused(#[source] io::Error),
}

/// Requests passthrough in the handshake, and returns whether the kernel supports it. The backing
/// files lie on a tmpfs, which adds one to the stack of file systems.
pub(super) fn negotiate(config: &mut KernelConfig) -> bool {
    config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() && config.set_max_stack_depth(1).is_ok()
}

/// Registers an empty file of the same kind as resident files. Its registration stays as long as
/// the mount.
pub(super) fn probe(session: impl AsFd) -> Result<(), PassthroughUnavailable> {
    let file = memfd_create(c"interceptor-probe", MFdFlags::MFD_CLOEXEC)
        .map_err(|errno| PassthroughUnavailable::Refused(errno.into()))?;
    match BackingId::create_raw(session, file) {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Err(PassthroughUnavailable::NotPermitted),
        Err(error) => Err(PassthroughUnavailable::Refused(error)),
    }
}

nix::ioctl_write_ptr!(
    /// Removes the registration of a backing file.
    ioctl_backing_close, 229, 2, u32
);

/// The registration of a backing file, valid for the whole connection, whichever descriptor it was
/// made through.
#[derive(Debug)]
struct BackingRegistration {
    number: u32,
    /// Does not keep a connection that has ended.
    device: Weak<OwnedFd>,
}

impl Drop for BackingRegistration {
    fn drop(&mut self) {
        let Some(device) = self.device.upgrade() else { return };
        // SAFETY: the descriptor is open as long as `device`, and the kernel reads one number.
        let closed = unsafe { ioctl_backing_close(device.as_raw_fd(), &self.number) };
        if let Err(error) = closed {
            tracing::debug!(%error, "the kernel does not give a backing file back");
        }
    }
}

/// A resident file, or one on disk, that is registered as a backing file.
#[derive(Debug, Clone)]
pub(super) struct BackingFile {
    number: Arc<BackingRegistration>,
    /// Keeps the file, and with it the registration, for the next open.
    file: CompleteFile,
}

impl BackingFile {
    /// Registers a file when it is opened for the first time; the registration lives as long as
    /// the file. `device` is the connection.
    pub(super) fn register(file: CompleteFile, device: &Arc<OwnedFd>) -> io::Result<Self> {
        let attached = match file.attachment() {
            Some(attached) => attached,
            None => {
                let number = BackingId::create_raw(device, &file)?;
                let number = BackingRegistration { number, device: Arc::downgrade(device) };
                file.attach(Box::new(Arc::new(number)))
            }
        };
        let number = attached.downcast_ref::<Arc<BackingRegistration>>().cloned();
        let number = number.ok_or_else(|| io::Error::other("the file is known to another mount"))?;
        Ok(Self { number, file })
    }

    /// The file that the kernel reads.
    pub(super) fn file(&self) -> &CompleteFile {
        &self.file
    }

    /// Answers an OPEN request: the kernel reads the file by itself.
    pub(super) fn reply(&self, reply: ReplyOpen) {
        // SAFETY: the registration lives as long as `self`, and `into_raw` gives it back without
        // closing it.
        let id = unsafe { reply.wrap_backing(self.number.number) };
        reply.opened_passthrough(FileHandle(0), FopenFlags::FOPEN_NOFLUSH, &id);
        let _ = id.into_raw();
    }
}
