//! FUSE passthrough: files that the kernel reads without the daemon.
//!
//! The kernel offers passthrough in the handshake to everyone, but requires CAP_SYS_ADMIN in the
//! initial user namespace when a backing file is registered. So [`probe`] registers a file before
//! the first request, and the mount answers opens accordingly.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Weak};

use fuser::{BackingId, FileHandle, FopenFlags, InitFlags, KernelConfig, ReplyOpen};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::cache::resident::ResidentError;
use crate::ledger::{Ledger, RecordId, RecordKind, StoredRecord};
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
    /// OPEN requests were not answered when the file system was mounted, so the kernel sends none.
    #[error("it was not there when the file system was mounted, by a process that has died since")]
    SettledWithout,
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
    ledger: Ledger,
    record: Option<RecordId>,
}

impl Drop for BackingRegistration {
    fn drop(&mut self) {
        let Some(device) = self.device.upgrade() else { return };
        // SAFETY: the descriptor is open as long as `device`, and the kernel reads one number.
        let closed = unsafe { ioctl_backing_close(device.as_raw_fd(), &self.number) };
        if let Err(error) = closed {
            tracing::debug!(%error, "the kernel does not give a backing file back");
        }
        self.ledger.remove(self.record);
    }
}

/// A resident file, or one on disk, that is registered as a backing file.
#[derive(Debug, Clone)]
pub(super) struct BackingFile {
    number: Arc<BackingRegistration>,
    /// Keeps the file, and with it the registration, for the next open. `None` if a predecessor has
    /// registered it.
    file: Option<CompleteFile>,
}

impl BackingFile {
    /// Registers a file when it is opened for the first time; the registration lives as long as
    /// the file. `device` is the connection.
    pub(super) fn register(file: CompleteFile, device: &Arc<OwnedFd>, ledger: &Ledger) -> io::Result<Self> {
        let attached = match file.attachment() {
            Some(attached) => attached,
            None => {
                let number = BackingId::create_raw(device, &file)?;
                let record = ledger.insert(RecordKind::Backing, 0, &number);
                let (device, ledger) = (Arc::downgrade(device), ledger.clone());
                let number = BackingRegistration { number, device, ledger, record };
                file.attach(Box::new(Arc::new(number)))
            }
        };
        let number = attached.downcast_ref::<Arc<BackingRegistration>>().cloned();
        let number = number.ok_or_else(|| io::Error::other("the file is known to another mount"))?;
        Ok(Self { number, file: Some(file) })
    }

    /// The files that a predecessor has registered, by number. Each stays registered until it is
    /// dropped.
    pub(super) fn restore(
        records: &[StoredRecord],
        device: &Arc<OwnedFd>,
        ledger: &Ledger,
    ) -> HashMap<u32, Self> {
        let registered = records.iter().filter(|record| record.kind == RecordKind::Backing);
        registered
            .filter_map(|record| {
                let number: u32 = record.value()?;
                let (device, ledger) = (Arc::downgrade(device), ledger.clone());
                let number = BackingRegistration { number, device, ledger, record: Some(record.id) };
                Some((number.number, Self { number: Arc::new(number), file: None }))
            })
            .collect()
    }

    /// The number of its registration.
    pub(super) fn number(&self) -> u32 {
        self.number.number
    }

    /// The file that the kernel reads, unless a predecessor has registered it.
    pub(super) fn file(&self) -> Option<&CompleteFile> {
        self.file.as_ref()
    }

    /// Answers an OPEN request: the kernel reads the file by itself.
    pub(super) fn reply(&self, handle: u64, reply: ReplyOpen) {
        // SAFETY: the registration lives as long as `self`, and `into_raw` gives it back without
        // closing it.
        let id = unsafe { reply.wrap_backing(self.number.number) };
        reply.opened_passthrough(FileHandle(handle), FopenFlags::FOPEN_NOFLUSH, &id);
        let _ = id.into_raw();
    }
}
