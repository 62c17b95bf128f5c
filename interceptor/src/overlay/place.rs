//! The place of a layer among the mounts at its path: over the mount below, or in the place of another layer.
//!
//! ```text
//!   attach              mount below ◄ layer
//!   attach --restart    mount below ◄ old layer
//!                       mount below ◄ new layer ◄ old layer      move_mount(MOVE_MOUNT_BENEATH)
//!                       mount below ◄ new layer                  umount2(MNT_DETACH), of the old layer alone
//! ```
//!
//! A layer answers before it gets its place, and each step is one for who opens files: every open meets the old layer or the new one. The old one sees that it was
//! taken away ([`MountInfo::wait_removed`]) and serves what is open.
//!
//! To find the mount below under an old layer takes no word from its daemon, which may be of another version, or dead: a thread with a mount namespace of its own takes the
//! layer away there, where nobody else sees it, and looks.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::mount::{MoveMountFlags, move_mount};

use super::lower::{FS_TYPE, Lower, full_path};
use super::refusal::AttachError;
use super::supervisor::Report;
use crate::fuse::MountError;
use crate::fuse::mountinfo::{MountInfo, mount_id};
use crate::fuse::unmount;

/// Takes hold of the mount below the layer at `given`, and tells which layer that is. Changes nothing that anybody else sees.
pub(super) fn take_below(given: &Path) -> Result<(Lower, MountInfo), AttachError> {
    let path = full_path(given)?;
    let Some(old) = MountInfo::topmost(&path).filter(|mount| mount.fs_type == FS_TYPE) else {
        return Err(AttachError::NothingAttached { path });
    };
    nothing_below(&path)?;
    let failed = |source| AttachError::NoLookBelow { path: path.clone(), source };
    // The namespace goes with the thread; the clone of the mount below stays.
    let looking = std::thread::Builder::new().name("look-below".into()).spawn({
        let path = path.clone();
        move || {
            uncover_for_this_thread(&path)?;
            Ok(Lower::take(&path))
        }
    });
    let looked = looking.map_err(failed)?.join();
    let lower = looked.unwrap_or_else(|_| Err(io::Error::other("a thread panicked"))).map_err(failed)??;
    Ok((Lower { mount_id: old.parent, ..lower }, old))
}

/// What is mounted on a layer would go with it.
fn nothing_below(path: &Path) -> Result<(), AttachError> {
    match MountInfo::submounts(path).into_iter().next() {
        Some(inner) => Err(AttachError::MountsBelow { path: path.into(), below: inner.path }),
        None => Ok(()),
    }
}

fn uncover_for_this_thread(path: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Without this the mount would go in other namespaces, too.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    if let Some(layer) = MountInfo::topmost(path).filter(|mount| mount.fs_type == FS_TYPE) {
        unmount::detach(&layer);
    }
    Ok(())
}

/// Gives the layer whose root is `layer` its place at the path of `lower`: over that, or in the place of `old`, which is over it. If that fails, what was there is still there.
///
/// `report` is told of the layer before it can be seen.
pub(super) fn place(
    layer: OwnedFd,
    lower: &Lower,
    old: Option<&MountInfo>,
    report: &Report,
) -> Result<MountInfo, AttachError> {
    let path = &lower.path;
    let unplaced = |source| MountError::Refused { path: path.clone(), source };
    let (id, device) = (mount_id(&layer).map_err(unplaced)?, device(&layer).map_err(unplaced)?);
    report.placing(id, &device).map_err(AttachError::Start)?;
    match old {
        None => move_mount(&layer, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|errno| unplaced(errno.into()))?,
        Some(old) => replace(&layer, old)?,
    }
    // Held, it would be busy for who wants to unmount it.
    drop(layer);
    let placed = MountInfo::with_id(id).ok_or_else(|| MountError::Vanished { path: path.clone() })?;
    if placed.parent != lower.mount_id {
        unmount::detach(&placed);
        return Err(AttachError::Changed { path: path.clone() });
    }
    Ok(placed)
}

fn replace(layer: &OwnedFd, old: &MountInfo) -> Result<(), AttachError> {
    // Something may have come since the first look.
    nothing_below(&old.path)?;
    let failed = |source| AttachError::NoBeneath { path: old.path.clone(), source };
    let Some(held) = old.open_root().map_err(failed)? else {
        return Err(AttachError::Changed { path: old.path.clone() });
    };
    let beneath = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH
        | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH
        | MoveMountFlags::MOVE_MOUNT_BENEATH;
    move_mount(layer, "", &held, "", beneath).map_err(|errno| failed(errno.into()))?;
    match unmount::detach_by_root(&held) {
        // Somebody else was faster.
        Ok(()) | Err(Errno::EINVAL) => Ok(()),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Waits until the layer answers for its root.
pub(super) fn await_answer(layer: &OwnedFd) -> io::Result<()> {
    statx(layer, "", AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS)?;
    Ok(())
}

/// `MAJOR:MINOR` of a mount, without asking its daemon.
fn device(root: &OwnedFd) -> io::Result<String> {
    let found = statx(root, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::empty())?;
    Ok(format!("{}:{}", found.stx_dev_major, found.stx_dev_minor))
}
