//! The program under the name `weed`: what the mount service of seaweedfs-csi-driver runs for each
//! volume, in the place of SeaweedFS's own program.
//!
//! ```text
//!  mount service ── exec ──► weed mount -readOnly … ──► interceptor mount     at the volume's path
//!                            weed mount …           ──► weed mount            at a private path
//!                                                       interceptor attach    over it
//!                                                       a bind mount of both  at the volume's path
//!                            weed version, …        ──► the real program
//! ```
//!
//! The mount service waits ten seconds for a mount point, and from then on pods get bind mounts of
//! it. A pod would keep a bind mount of the real mount alone, if it got that before the layer was
//! there. So the volume's path becomes a mount point when all is in place. It is a single mount,
//! which the mount service's single `umount` takes away, also after everything here was killed.
//!
//! What cannot be served fast is served slowly: a volume that `interceptor mount` does not take is
//! mounted by the real program with the layer, and one without the layer if that cannot be
//! attached. [`arguments`] translates options, [`volume`] keeps the processes of a volume together,
//! [`child`] is one of them, [`private_mount_point`] where the real mount is, and [`quota`] what
//! the driver asks a mount for.

mod arguments;
mod child;
mod private_mount_point;
mod quota;
mod volume;

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use daemon::logs::{self, LogFormat};
use daemon::output;

use self::arguments::VolumeArguments;
use self::volume::Volume;

/// The name under which the program acts as SeaweedFS's.
pub(super) const NAME: &str = "weed";

/// The variable with the path of the real program.
const PROGRAM_VARIABLE: &str = "INTERCEPTOR_WEED";

/// Where that is by default.
const DEFAULT_PROGRAM: &str = "/usr/bin/weed.real";

/// Does what `weed` does with these arguments (the program's name in front). Returns only in the
/// case of `weed mount`, when the volume is unmounted, and after a failure.
pub(super) fn run(arguments: &[OsString]) -> ExitCode {
    match try_run(arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output::error(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn try_run(arguments: &[OsString]) -> anyhow::Result<u8> {
    let Some(volume) = VolumeArguments::parse(&arguments[1..])? else {
        let program = real_program()?;
        let error = Command::new(&program).arg0(NAME).args(&arguments[1..]).exec();
        return Err(error).with_context(|| format!("cannot run {}", program.display()));
    };
    logs::start(LogFormat::Human, logs::filter(None)?);
    // One thread: a child gets a signal when the thread that started it ends.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start to serve a volume")?;
    runtime.block_on(async { Volume::new(volume)?.serve().await })
}

/// SeaweedFS's own program.
fn real_program() -> anyhow::Result<PathBuf> {
    let program = env::var_os(PROGRAM_VARIABLE).filter(|path| !path.is_empty());
    let program = program.map_or_else(|| DEFAULT_PROGRAM.into(), PathBuf::from);
    let is_this = same_file(&program, &env::current_exe()?).with_context(|| {
        format!("no weed of SeaweedFS at {}: {PROGRAM_VARIABLE} says where it is", program.display())
    })?;
    ensure!(!is_this, "{} is interceptor: {PROGRAM_VARIABLE} must name SeaweedFS's weed", program.display());
    Ok(program)
}

fn same_file(one: &Path, other: &Path) -> std::io::Result<bool> {
    Ok(one.canonicalize()? == other.canonicalize()?)
}
