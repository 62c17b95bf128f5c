//! Hostile programs and users: an engine, a volume server and a filer that are not what they say,
//! an unprivileged user of the host, and root of a container.
//!
//! Each tries to read data without permission, to have forged bytes accepted, to delay others, and
//! to fill memory.

mod containers;
mod engines;
mod fake;
mod fake_verbs;
mod filers;
mod layers;
mod users;
mod verbs;
mod volume_servers;

use std::fs;
use std::time::Duration;

/// Longest wait for what must happen.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// How much a daemon's memory may grow by what a peer does to it.
const GROWTH_MIB: u64 = 64;

/// Memory of a process, in MiB.
fn resident_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

/// Says how much memory a process takes now, and checks that this is not much more than `before`.
fn assert_bounded(what: &str, pid: u32, before: u64) {
    let after = resident_mib(pid);
    println!("{what}: {before} MiB before, {after} MiB after");
    assert!(after <= before + GROWTH_MIB, "{what}: {before} MiB before, {after} MiB after");
}
