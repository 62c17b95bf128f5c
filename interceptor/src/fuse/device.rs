//! Connecting to the kernel's FUSE: by `mount(2)` for root, by `fusermount3` for other users, and
//! by `fsmount(2)` for a mount that is moved to its path later.
//!
//! fuser can mount as well, but when its session ends it unmounts the path, where another mount
//! may be by then; and its errors say less.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount as mount_call};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, socketpair,
};
use nix::unistd::{getgid, getuid};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};

use super::error::MountError;
use super::mountpoint::FS_TYPE;

/// Parameters of a detached mount.
pub(crate) struct MountParams<'a> {
    /// The source that the kernel's mount table shows.
    pub(crate) source: &'a str,
    /// What the mount table shows after `fuse.` in the type; tells our kinds of mounts apart.
    pub(crate) subtype: &'a str,
    pub(crate) attributes: MountAttrFlags,
    /// Whether other users than the mounting one may use the mount.
    pub(crate) allow_other: bool,
    /// Whether the kernel checks permissions by the attributes it has, without a request.
    pub(crate) default_permissions: bool,
}

/// Mounts a read-only tree on `path` and returns the connection.
pub(crate) fn mount(path: &Path, source: &str, allow_other: bool) -> Result<OwnedFd, MountError> {
    match mount_by_kernel(path, source, allow_other) {
        Err(MountError::NotPermitted) => mount_by_helper(path, source, allow_other),
        done => done,
    }
}

fn mount_by_kernel(path: &Path, source: &str, allow_other: bool) -> Result<OwnedFd, MountError> {
    let device = open_device()?;
    let (user, group) = (getuid(), getgid());
    let mut data = format!(
        "fd={},rootmode=40000,user_id={user},group_id={group},default_permissions",
        device.as_raw_fd()
    );
    if allow_other {
        data.push_str(",allow_other");
    }
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOATIME;
    match mount_call(Some(source), path, Some(FS_TYPE), flags, Some(data.as_str())) {
        Ok(()) => Ok(device.into()),
        Err(Errno::EPERM) => Err(MountError::NotPermitted),
        Err(Errno::ENODEV) => Err(MountError::NoDevice),
        Err(errno) => Err(MountError::Refused { path: path.into(), source: errno.into() }),
    }
}

/// A mount that is not attached to any path yet.
pub(crate) struct DetachedMount {
    /// The connection, `/dev/fuse`.
    pub(crate) device: OwnedFd,
    /// The root of the mount. Closing it destroys the mount unless it has been attached by then.
    pub(crate) mount: OwnedFd,
}

/// Makes a mount that is to be attached to `path` later. Needs Linux 5.4.
///
/// # Errors
/// [`MountError::NotPermitted`] if the process lacks `CAP_SYS_ADMIN`.
pub(crate) fn mount_detached(path: &Path, params: &MountParams<'_>) -> Result<DetachedMount, MountError> {
    let device = open_device()?;
    let mount = configured(&device, params).map_err(|errno| match errno {
        rustix::io::Errno::PERM => MountError::NotPermitted,
        rustix::io::Errno::NODEV => MountError::NoDevice,
        errno => MountError::Refused { path: path.into(), source: errno.into() },
    })?;
    Ok(DetachedMount { device: device.into(), mount })
}

fn configured(device: &File, params: &MountParams<'_>) -> rustix::io::Result<OwnedFd> {
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: &str| fsconfig_set_string(&context, key, value);
    set("source", params.source)?;
    set("subtype", params.subtype)?;
    set("fd", &device.as_raw_fd().to_string())?;
    set("rootmode", "40000")?;
    set("user_id", &getuid().to_string())?;
    set("group_id", &getgid().to_string())?;
    let flags = [
        ("default_permissions", params.default_permissions),
        ("allow_other", params.allow_other),
        ("ro", params.attributes.contains(MountAttrFlags::MOUNT_ATTR_RDONLY)),
    ];
    for (flag, _) in flags.into_iter().filter(|(_, is_set)| *is_set) {
        fsconfig_set_flag(&context, flag)?;
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, params.attributes)
}

fn open_device() -> Result<File, MountError> {
    OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => MountError::NoDevice,
        _ => MountError::DeviceForbidden(error),
    })
}

/// Mounts by `fusermount3`, which sends the connection through the socket that `_FUSE_COMMFD`
/// names.
fn mount_by_helper(path: &Path, source: &str, allow_other: bool) -> Result<OwnedFd, MountError> {
    let refused = |source: io::Error| MountError::Refused { path: path.into(), source };
    let (ours, helpers) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty())
        .map_err(|errno| refused(errno.into()))?;
    let name = source.replace('\\', "\\\\").replace(',', "\\,");
    let mut options =
        format!("ro,nodev,nosuid,noatime,default_permissions,fsname={name},subtype=interceptor");
    if allow_other {
        options.push_str(",allow_other");
    }
    let helper = Command::new("fusermount3")
        .args(["-o", &options, "--"])
        .arg(path)
        .env("_FUSE_COMMFD", helpers.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => MountError::NoPermission,
            _ => refused(error),
        })?;
    // With the parent's copy of the helper's end closed, the wait below ends when the helper
    // fails.
    drop(helpers);
    let device = receive_descriptor(&ours);
    let output = helper.wait_with_output().map_err(refused)?;
    match device {
        Ok(Some(device)) if output.status.success() => Ok(device),
        Err(errno) => Err(refused(errno.into())),
        _ => {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(MountError::Helper { path: path.into(), message })
        }
    }
}

fn receive_descriptor(socket: &OwnedFd) -> nix::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut data = [IoSliceMut::new(&mut byte)];
    let mut control = nix::cmsg_space!(RawFd);
    let message = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut data, Some(&mut control), flags) {
            Err(Errno::EINTR) => {}
            message => break message?,
        }
    };
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = part
            && let Some(descriptor) = descriptors.first()
        {
            // SAFETY: the kernel has just made this descriptor for this process, and nothing else
            // has its number.
            return Ok(Some(unsafe { OwnedFd::from_raw_fd(*descriptor) }));
        }
    }
    Ok(None)
}
