//! Public test suites for file systems: `pjdfstest`, which checks what POSIX says of calls, and
//! `fsx`, which reads back what it has written.
//!
//! `cargo xtask test` installs both. A layer need not pass all of their cases but must not change
//! any result: the same cases run on the bare mount.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::tools::posix_suite;

/// The settings for `pjdfstest`: what Linux has, and two users that every Debian has.
const PJDFSTEST: &str = r#"
[features]
posix_fallocate = {}
utimensat = {}
utime_now = {}
rename_ctime = {}
[settings]
naptime = 0.01
allow_remount = false
expected_failures = []
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// The outcome of each case of `pjdfstest` in a new directory below `path`, which all users must
/// be able to enter.
///
/// # Errors
/// When the program is missing, or its output is not understood.
pub fn pjdfstest(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let home = tempfile::tempdir()?;
    let settings = home.path().join("settings.toml");
    fs::write(&settings, PJDFSTEST)?;
    let place = tempfile::Builder::new().prefix("pjdfstest-").tempdir_in(path)?;
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777))?;
    let mut command = Command::new(posix_suite("pjdfstest").context("there is no pjdfstest")?);
    command.arg("-c").arg(settings).arg("-p").arg(place.path()).current_dir(home.path());
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let mut results = BTreeMap::new();
    for line in said.lines() {
        let mut words = line.split_whitespace();
        if let (Some(case), Some(result), None) = (words.next(), words.next(), words.next())
            && case.contains("::")
        {
            let plain: String = result.chars().filter(char::is_ascii_alphabetic).collect();
            results.insert(case.to_owned(), plain);
        }
    }
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(results.len() > 300, "only {} results:\n{said}\n{error}", results.len());
    Ok(results)
}

/// What `fsx` is to do beside reading, writing, mapping and truncating.
pub const FSX_WITH: [&str; 7] =
    ["close_open", "invalidate", "fsync", "fdatasync", "sendfile", "posix_fadvise", "copy_file_range"];

/// More of that, which not all file systems have.
pub const FSX_WITH_HOLES: [&str; 2] = ["posix_fallocate", "punch_hole"];

/// Runs `steps` random steps on a file in the directory `path`, with the operations that
/// [`FSX_WITH`] and `more` name. Returns the text of the failure, if there is one.
///
/// # Errors
/// When the program is missing.
pub fn fsx(path: &Path, seed: u64, steps: u32, more: &[&str]) -> anyhow::Result<Option<String>> {
    let home = tempfile::tempdir()?;
    let settings = home.path().join("settings.toml");
    let weights: String = FSX_WITH.iter().chain(more).map(|what| format!("{what} = 1\n")).collect();
    fs::write(&settings, format!("[weights]\n{weights}"))?;
    let file = path.join(format!("fsx-{seed}"));
    let mut command = Command::new(posix_suite("fsx").context("there is no fsx")?);
    command.args(["-q", "-N", &steps.to_string(), "-S", &seed.to_string(), "-f"]).arg(settings);
    let output = command.arg("-P").arg(home.path()).arg(&file).output()?;
    let _ = fs::remove_file(file);
    if output.status.success() {
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    // What follows is the log of all steps.
    Ok(Some(said.lines().next().unwrap_or("it said nothing").to_owned()))
}
