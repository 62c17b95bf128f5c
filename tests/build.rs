//! Tells the suites what this machine has, so that tests that cannot run here are ignored.
//!
//! libtest knows no test that finds at run time that it cannot run. These conditions are therefore
//! looked up when the suites are built, and again when `cargo xtask setup` has brought a tool. A
//! suite that runs elsewhere, or after the machine has changed, is run with `--include-ignored`:
//! each test looks once more for what it needs (`src/host.rs`).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

#[path = "src/tools.rs"]
#[expect(unreachable_pub, reason = "the suites use it as a module of a library")]
mod tools;

fn main() {
    let brought = tools::target_directory().join("tools");
    // Cargo would run this at every build if the directory were missing.
    let _ = fs::create_dir_all(&brought);
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/tools.rs");
    println!("cargo::rerun-if-changed={}", brought.display());

    let is_root = fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let has_weed = tools::weed().is_ok();
    for (name, holds) in [
        ("can_serve", has_weed),
        ("can_mount", has_weed && is_root && Path::new("/dev/fuse").exists()),
        ("can_observe", is_root && Path::new("/sys/kernel/btf/vmlinux").exists()),
        ("has_bindfs", tools::on_path("bindfs").is_some()),
        ("has_browser", tools::browser().is_some()),
        ("has_posix_suites", ["pjdfstest", "fsx"].iter().all(|name| tools::posix_suite(name).is_some())),
        ("has_rdma", fs::read_dir("/sys/class/infiniband").is_ok_and(|mut devices| devices.next().is_some())),
    ] {
        println!("cargo::rustc-check-cfg=cfg({name})");
        if holds {
            println!("cargo::rustc-cfg={name}");
        }
    }
}
