//! `cargo xtask setup`: installs what building and running need, and nothing twice.
//!
//! * [`host`]: what the operating system must provide (a C compiler, FUSE, the Rust components);
//! * [`weed`]: the SeaweedFS program;
//! * [`bpf`]: the compiler of the programs that run in the kernel;
//! * [`zig`]: the linker for the C library of old distributions, for packages alone;
//! * [`axe`]: a checker of web pages, for one test alone;
//! * [`suites`]: public test suites for file systems, for the end-to-end suites alone.
//!
//! Every other verb runs [`ensure`] first; on a machine that lacks nothing it takes a few
//! milliseconds and prints nothing.

pub(crate) mod axe;
pub(crate) mod bpf;
pub(crate) mod host;
pub(crate) mod suites;
mod weed;
mod wheel;
pub(crate) mod zig;

use std::path::PathBuf;

use anyhow::Result;

/// What the other verbs take from a prepared machine.
pub(crate) struct PreparedMachine {
    /// The `weed` program.
    pub(crate) weed: PathBuf,
}

/// Prepares the machine; quiet where nothing is to be done.
pub(crate) fn ensure() -> Result<PreparedMachine> {
    let needs_weed = weed::find()?.is_none();
    host::ensure(needs_weed)?;
    bpf::ensure();
    Ok(PreparedMachine { weed: weed::ensure()? })
}

/// Prepares what only tests and pictures need, as far as that is possible.
pub(crate) fn ensure_for_tests() {
    host::ensure_for_tests();
}

/// Prepares what boots the trees in which packages are tried.
pub(crate) fn ensure_for_trees() -> Result<()> {
    host::ensure_for_trees()
}

/// The verb itself: prepares, then says what there is.
pub(crate) fn command() -> Result<()> {
    let prepared = ensure()?;
    ensure_for_tests();
    for line in host::report() {
        println!("{line}");
    }
    println!("{:<14}{}", "bpf", bpf::report());
    println!("{:<14}{} ({})", "weed", prepared.weed.display(), weed::version(&prepared.weed)?);
    Ok(())
}
