//! Files that the kernel reads without asking: whether this mount may have them, and the numbers that it knows them by.
//!
//! The kernel offers passthrough in the handshake whoever we are, and then asks for CAP_SYS_ADMIN in the initial user
//! namespace when it is shown a file to read. So a file is shown to it before the first request: [`probe`] finds out what
//! would happen, and the mount does with opens what fits the answer.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Weak};

use fuser::{BackingId, FileHandle, FopenFlags, InitFlags, KernelConfig, ReplyOpen};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::cache::resident::{ResidentError, ResidentFile};

/// Why the kernel does not read resident files by itself.
#[derive(Debug, thiserror::Error)]
pub enum PassthroughUnavailable {
    /// The user does not want it.
    #[error("switched off by --no-passthrough")]
    SwitchedOff,
    /// The kernel did not offer it.
    #[error("this kernel does not offer it; it takes Linux 6.9 with CONFIG_FUSE_PASSTHROUGH")]
    NotOffered,
    /// There is no place for files that the kernel could read.
    #[error("{0}")]
    NoFiles(#[from] ResidentError),
    /// The process lacks the right.
    #[error("it takes the capability CAP_SYS_ADMIN, not only within a user namespace")]
    NotPermitted,
    /// Another refusal.
    #[error("the kernel refuses: {0}")]
    Refused(#[source] io::Error),
}

/// Asks for passthrough in the handshake, and says whether the kernel knows it. The backing files lie on a tmpfs, which is one file system below this one.
pub(super) fn negotiate(config: &mut KernelConfig) -> bool {
    config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok() && config.set_max_stack_depth(1).is_ok()
}

/// Shows the kernel an empty file of the kind that resident files are. The number it gives for that file stays taken as
/// long as the mount lives.
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
    /// Gives back the number of a backing file.
    ioctl_backing_close, 229, 2, u32
);

/// The kernel's number for a file that it reads by itself. It belongs to the connection, whichever
/// descriptor of that the file was shown through.
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

/// A resident file and the kernel's number for it.
#[derive(Debug, Clone)]
pub(super) struct BackingFile {
    number: Arc<BackingRegistration>,
    /// Keeps the file, and with it the number, for whoever opens it next.
    file: Arc<ResidentFile>,
}

impl BackingFile {
    /// The kernel is told of a file when it is opened first; its number is then kept with the file as
    /// long as that lives. `device` is the connection.
    pub(super) fn register(file: Arc<ResidentFile>, device: &Arc<OwnedFd>) -> io::Result<Self> {
        let attached = match file.attachment() {
            Some(attached) => attached,
            None => {
                let number = BackingId::create_raw(device, &*file)?;
                let number = BackingRegistration { number, device: Arc::downgrade(device) };
                file.attach(Box::new(Arc::new(number)))
            }
        };
        let number = attached.downcast_ref::<Arc<BackingRegistration>>().cloned();
        let number = number.ok_or_else(|| io::Error::other("the resident file is known to another mount"))?;
        Ok(Self { number, file })
    }

    /// The file that the kernel reads.
    pub(super) fn file(&self) -> &Arc<ResidentFile> {
        &self.file
    }

    /// Answers an open: the kernel is to read the file by itself.
    pub(super) fn reply(&self, reply: ReplyOpen) {
        // SAFETY: the number is open as long as `self`, and goes back without being closed.
        let id = unsafe { reply.wrap_backing(self.number.number) };
        reply.opened_passthrough(FileHandle(0), FopenFlags::FOPEN_NOFLUSH, &id);
        let _ = id.into_raw();
    }
}
