//! axe-core, a checker of the accessibility of web pages, which a test lets look at the dashboard.
//!
//! It is one script. pip downloads a wheel that carries it; only one with the checksum that is
//! written down here is taken.

use std::fs;

use ::tests::browser::kept_axe;
use anyhow::{Context, Result};

use super::wheel::Wheel;

const WHEEL: Wheel = Wheel {
    requirement: "axe-playwright-python==0.1.8",
    sha256: "fdd263c998388f1a8e67cad02677e612d946248bd44d163be5e8650ea31f95f8",
    megabytes: 1,
};
/// Where the script lies in the wheel.
const SCRIPT_IN_WHEEL: &str = "axe_playwright_python/axe.min.js";

/// Brings it if it is not here. Says what will be lacking if it cannot be brought.
pub(crate) fn ensure() {
    if !kept_axe().is_file()
        && let Err(error) = bring()
    {
        eprintln!("setup: cannot bring axe-core: {error:#}; its test will be skipped");
    }
}

fn bring() -> Result<()> {
    let work = tempfile::tempdir()?;
    let script = WHEEL.unpack(work.path())?.join(SCRIPT_IN_WHEEL);
    let kept = kept_axe();
    fs::create_dir_all(kept.parent().context("it has a directory")?)?;
    // A test that runs meanwhile sees all of it or nothing.
    let whole = kept.with_extension("new");
    fs::copy(&script, &whole).context("the wheel has no script")?;
    Ok(fs::rename(whole, kept)?)
}
