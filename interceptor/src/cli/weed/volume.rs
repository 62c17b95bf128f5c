//! Keeps the processes of one volume together.
//!
//! The mount service knows one process for each volume, this one. It starts it, waits ten seconds
//! for the mount point, ends it by SIGTERM and kills it five seconds later; if it ends by itself,
//! the service unmounts the path, and the driver makes the volume anew. So the volume ends with any
//! of its processes, and its path is unmounted first. Deadlines here are shorter than those of the
//! service.

use std::env;
use std::ffi::OsString;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::arguments::VolumeArguments;
use super::child::Child;
use super::private_mount_point::PrivateMountPoint;
use super::quota::QuotaSocket;
use super::{PROGRAM_VARIABLE, real_program};
use crate::cli::signals::Signals;
use crate::fuse::mountinfo::MountInfo;
use crate::fuse::unmount;

/// When the volume's path is to be a mount point, with the layer or without it: the mount service
/// gives up two seconds later.
const LAYER_TIMEOUT: Duration = Duration::from_secs(8);

/// Up to when a mount that failed is replaced by the real one. Later there would be no time left.
const REPLACEMENT_TIMEOUT: Duration = Duration::from_secs(4);

/// How long the real mount may take. It tries to reach the filer for 55 seconds.
const REAL_MOUNT_TIMEOUT: Duration = Duration::from_secs(60);

/// For how long files that are open are served when the volume ends.
const OPEN_FILES_GRACE: Duration = Duration::from_secs(1);

/// How long each of at most two processes may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the status API of a volume listens: each pod's network has several volumes.
const STATUS_ADDRESS: (&str, &str) = ("INTERCEPTOR_STATUS_ADDR", "127.0.0.1:0");

/// A volume that is to be mounted.
pub(super) struct Volume {
    arguments: VolumeArguments,
    signals: Signals,
    started: Instant,
}

/// How an attempt to mount the volume ended.
enum Attempt {
    /// The volume was mounted, or is not wanted any more; with the exit code.
    Ended(u8),
    /// The real program is to try it.
    Replaced,
}

impl Volume {
    /// Must be called on a runtime.
    pub(super) fn new(arguments: VolumeArguments) -> anyhow::Result<Self> {
        let mut signals = Signals::new().context("cannot catch signals")?;
        signals.on_hangup(|| ());
        Ok(Self { arguments, signals, started: Instant::now() })
    }

    /// Mounts the volume and serves it until it is unmounted, a signal comes, or a process of it
    /// ends. Returns the exit code.
    pub(super) async fn serve(mut self) -> anyhow::Result<u8> {
        self.prepare_mount_point()?;
        if self.arguments.is_read_only()
            && let Attempt::Ended(code) = self.serve_by_mount().await?
        {
            return Ok(code);
        }
        self.serve_by_weed().await
    }

    /// Makes the directory, and unmounts what an earlier process left there, as `weed mount` does.
    fn prepare_mount_point(&self) -> anyhow::Result<()> {
        let path = &self.arguments.mount_point;
        if MountInfo::topmost(path).is_some() {
            umount2(path, MntFlags::UMOUNT_NOFOLLOW)
                .with_context(|| format!("{} is mounted already, and stays so", path.display()))?;
        }
        if let Some(mode) = self.arguments.created_mode() {
            let made = DirBuilder::new().recursive(true).mode(mode).create(path);
            made.with_context(|| format!("cannot make the directory {}", path.display()))?;
        }
        Ok(())
    }

    /// Has `interceptor mount` serve the volume.
    async fn serve_by_mount(&mut self) -> anyhow::Result<Attempt> {
        let translated = match self.arguments.for_mount() {
            Ok(translated) => translated,
            Err(error) => {
                tracing::warn!("{error}; `weed mount` mounts the volume, with a layer over it");
                return Ok(Attempt::Replaced);
            }
        };
        if !translated.ignored.is_empty() {
            tracing::info!("of no meaning to a volume that is only read: {}", translated.ignored.join(", "));
        }
        let _socket = self.arguments.local_socket().map(QuotaSocket::listen).transpose()?;
        let path = self.arguments.mount_point.clone();
        let mut daemon = Child::start("interceptor mount", own_command(translated.arguments)?)?;
        let mut mounted = None;
        loop {
            tokio::select! {
                code = daemon.ended() => {
                    let code = code?;
                    if code == 0 || mounted.is_some() || self.started.elapsed() > REPLACEMENT_TIMEOUT {
                        return Ok(Attempt::Ended(code));
                    }
                    tracing::warn!("`weed mount` mounts the volume in its place, with a layer over it");
                    return Ok(Attempt::Replaced);
                }
                signal = self.signals.next() => {
                    tracing::info!(signal, "unmounting");
                    daemon.stop(2 * STOP_TIMEOUT).await;
                    if let Some(mounted) = &mounted {
                        unmount::detach(mounted);
                    }
                    return Ok(Attempt::Ended(0));
                }
                mount = MountInfo::wait_mounted(&path), if mounted.is_none() => mounted = Some(mount?),
            }
        }
    }

    /// Has `weed mount` serve the volume, with a layer over it.
    async fn serve_by_weed(&mut self) -> anyhow::Result<u8> {
        let place = PrivateMountPoint::new()?;
        let mut command = Command::new(real_program()?);
        command.arg0(super::NAME).args(self.arguments.for_weed(place.path()));
        let mut weed = Child::start("weed mount", command)?;
        let mut layer = None;
        let code = self.serve_layered(&place, &mut weed, &mut layer).await;
        if let Some(layer) = &mut layer {
            layer.stop(STOP_TIMEOUT).await;
        }
        weed.stop(STOP_TIMEOUT).await;
        code
    }

    /// Shows the mount of `weed` at the volume's path, with a layer if that can be had, until
    /// something ends. The caller ends what is left.
    async fn serve_layered(
        &mut self,
        place: &PrivateMountPoint,
        weed: &mut Child,
        layer: &mut Option<Child>,
    ) -> anyhow::Result<u8> {
        let real = tokio::select! {
            mount = MountInfo::wait_mounted(place.path()) => mount?,
            code = weed.ended() => return Ok(code?),
            signal = self.signals.next() => return Ok(ended_by(signal)),
            () = sleep_until(self.started + REAL_MOUNT_TIMEOUT) => {
                bail!("`weed mount` has not mounted the volume within {REAL_MOUNT_TIMEOUT:?}");
            }
        };
        let attached = tokio::select! {
            attached = attach(&self.arguments, place.path(), self.started + LAYER_TIMEOUT, layer) => attached,
            code = weed.ended() => return Ok(code?),
            signal = self.signals.next() => return Ok(ended_by(signal)),
        };
        if let Err(error) = attached {
            tracing::warn!("{error:#}; the volume is served by `weed mount` alone, as slowly as that is");
            if let Some(mut late) = layer.take() {
                late.stop(STOP_TIMEOUT / 2).await;
            }
            // One that was killed may be there still.
            if let Some(dead) = MountInfo::topmost(place.path()).filter(|top| top.id != real.id) {
                unmount::detach(&dead);
            }
        }
        let shown = BoundMount::new(place.path(), &self.arguments.mount_point)?;
        tracing::info!(has_layer = layer.is_some(), "mounted {}", shown.0.path.display());
        tokio::select! {
            code = weed.ended() => {
                let code = code?;
                tracing::error!(code, "`weed mount` has ended, and with it the volume");
                Ok(code)
            }
            _ = ended(layer) => bail!("the layer has ended, and with it the volume, which can be mounted anew"),
            removed = shown.0.wait_unmounted() => {
                tracing::info!("another process has unmounted the volume");
                removed.map(|()| 0).context("cannot watch the mount point")
            }
            signal = self.signals.next() => Ok(ended_by(signal)),
        }
    }
}

/// The mount at the volume's path. Unmounted when dropped.
struct BoundMount(MountInfo);

impl BoundMount {
    fn new(from: &Path, to: &Path) -> anyhow::Result<Self> {
        let none = None::<&Path>;
        mount(Some(from), to, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("cannot mount on {}", to.display()))?;
        let bound = MountInfo::topmost(to);
        bound.map(Self).with_context(|| format!("{} was unmounted at once", to.display()))
    }
}

impl Drop for BoundMount {
    fn drop(&mut self) {
        unmount::detach(&self.0);
    }
}

/// Attaches a layer to the mount at `path`. The child is in `layer` from when it is started.
async fn attach(
    arguments: &VolumeArguments,
    path: &Path,
    deadline: Instant,
    layer: &mut Option<Child>,
) -> anyhow::Result<()> {
    let command = own_command(arguments.for_attach(path, OPEN_FILES_GRACE)?)?;
    let layer = layer.insert(Child::start("interceptor attach", command)?);
    match timeout_at(deadline, layer.printed("attached ")).await {
        Ok(attached) => attached,
        Err(_) => bail!("the layer does not answer in time"),
    }
}

/// Resolves when the layer has ended, if there is one.
async fn ended(layer: &mut Option<Child>) {
    match layer {
        Some(layer) => _ = layer.ended().await,
        None => std::future::pending().await,
    }
}

fn ended_by(signal: &str) -> u8 {
    tracing::info!(signal, "unmounting");
    0
}

/// This program under its own name. Variables are options of it, unless they are of this file.
fn own_command(arguments: Vec<OsString>) -> anyhow::Result<Command> {
    let mut command = Command::new(env::current_exe().context("cannot find this program")?);
    command.args(arguments).env_remove(PROGRAM_VARIABLE);
    let (name, value) = STATUS_ADDRESS;
    if env::var_os(name).is_none() {
        command.env(name, value);
    }
    Ok(command)
}
