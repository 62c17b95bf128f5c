//! `interceptor unmount`: takes a mount or a layer away and waits for its daemon.
//!
//! The kernel unmounts, and the daemon notices: the same as `umount`, but that nothing else than a
//! mount of ours is ever taken away, and that a new mount can begin when this returns.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueHint};
use daemon::output;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::statvfs::statvfs;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::local_mounts;
use super::mount_address::mount_at;
use crate::fuse::mountinfo::MountInfo;

/// How long to wait for the daemon. Open files are served for five seconds after the mount is gone.
const DAEMON_TIMEOUT: Duration = Duration::from_secs(10);

/// Unmounts a mount, or takes a layer away.
#[derive(Debug, Clone, Args)]
pub(super) struct UnmountOptions {
    /// Where it is mounted
    #[arg(value_name = "MOUNTPOINT", value_hint = ValueHint::DirPath)]
    path: PathBuf,

    /// Take it away even if programs use it. What they have open is served for a while: by `mount`
    /// for five seconds, by `attach` for its --grace
    #[arg(long, short)]
    lazy: bool,

    /// Only take it away if its daemon is gone, else do nothing
    #[arg(long, conflicts_with = "lazy")]
    if_dead: bool,
}

/// Unmounts, and returns when the daemon has ended, or serves nothing but open files.
pub(super) fn run(options: &UnmountOptions) -> anyhow::Result<()> {
    let path = &options.path;
    if options.if_dead {
        return match mount_at(path) {
            // `statvfs` always asks the daemon.
            Ok(mount) if statvfs(&mount.path) == Err(Errno::ENOTCONN) => unmount(&mount, true),
            _ => Ok(()),
        };
    }
    let mount = mount_at(path)?;
    let daemon = local_mounts::daemon_of(&mount).and_then(|pid| Pid::from_raw(pid.cast_signed()));
    // Opened while the daemon lives for certain, so that it is no later process of this number.
    let daemon = daemon.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    unmount(&mount, options.lazy)?;
    if let Some(daemon) = daemon {
        let limit = Timespec::try_from(DAEMON_TIMEOUT).ok();
        let ended = poll(&mut [PollFd::new(&daemon, PollFlags::IN)], limit.as_ref());
        if ended == Ok(0) {
            output::note(format_args!(
                "{} is unmounted; files that are open are still served",
                path.display()
            ));
        }
    }
    Ok(())
}

fn unmount(mount: &MountInfo, is_lazy: bool) -> anyhow::Result<()> {
    let path = mount.path.display();
    let mut flags = MntFlags::UMOUNT_NOFOLLOW;
    flags.set(MntFlags::MNT_DETACH, is_lazy);
    match umount2(&mount.path, flags) {
        Ok(()) => Ok(()),
        Err(Errno::EBUSY) => bail!(
            "{path} is in use (`fuser -vm {path}` shows by which programs); --lazy does not wait for them"
        ),
        Err(Errno::EPERM) => by_fusermount(mount, is_lazy),
        Err(errno) => Err(errno).with_context(|| format!("cannot unmount {path}")),
    }
}

/// As users other than root have to.
fn by_fusermount(mount: &MountInfo, is_lazy: bool) -> anyhow::Result<()> {
    let mut command = Command::new("fusermount3");
    command.args(if is_lazy { &["-u", "-z", "--"][..] } else { &["-u", "--"] }).arg(&mount.path);
    let output = command.output().context("unmounting takes root or the program fusermount3")?;
    if output.status.success() {
        return Ok(());
    }
    bail!("{}", String::from_utf8_lossy(&output.stderr).trim())
}
