//! Public test suites for file systems, which the end-to-end tests run over layers: `pjdfstest`
//! and `fsx`.

use ::tests::tools::{posix_suite, target_directory};
use anyhow::{Context, Result};

use crate::process;

/// The programs, which are crates of the same name, and their versions.
const SUITES: [(&str, &str); 2] = [("pjdfstest", "0.2.2"), ("fsx", "0.3.2")];

/// Brings what is not here. Says what will be lacking if it cannot be brought.
pub(crate) fn ensure() {
    for (name, version) in SUITES.into_iter().filter(|(name, _)| posix_suite(name).is_none()) {
        if let Err(error) = bring(name, version) {
            eprintln!("setup: {error:#}; its tests will be skipped");
        }
    }
}

fn bring(name: &str, version: &str) -> Result<()> {
    eprintln!("setup: building {name} {version}, which takes a minute");
    let mut install = crate::cargo::cargo();
    // Unoptimised, which is built in half the time: they wait for file systems.
    install.args(["install", "--quiet", "--locked", "--debug", name, "--version", version, "--root"]);
    install.arg(target_directory().join("tools/suites")).stdout(std::io::stderr());
    process::run(&mut install).with_context(|| format!("cannot bring {name}"))
}
