//! `cargo xtask build`: the programs that operators run, with the eBPF programs embedded.

use anyhow::Result;

use crate::{cargo, setup};

/// The verb.
pub(crate) fn command() -> Result<()> {
    setup::ensure()?;
    println!("{}", cargo::build_interceptor()?.display());
    Ok(())
}
