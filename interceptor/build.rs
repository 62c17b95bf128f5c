//! Compiles the files in `proto` with protox, which needs no `protoc`, embeds the eBPF programs if
//! `cargo xtask build` has built them, and tells the tests whether root has built them.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{env, fs, io};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["filer.proto"], ["proto"])?;
    // Bytes fields stay `Vec`: a slice of the receive buffer would keep all of the buffer alive.
    tonic_prost_build::configure()
        .build_server(false)
        .codec_path("crate::seaweed::message::BoundedCodec")
        .compile_fds(descriptors)?;
    let service = protox::compile(["mount.proto"], ["proto"])?;
    tonic_prost_build::configure().build_client(false).compile_fds(service)?;
    embed_programs()?;
    println!("cargo::rustc-check-cfg=cfg(is_root)");
    if fs::metadata("/proc/self")?.uid() == 0 {
        println!("cargo::rustc-cfg=is_root");
    }
    Ok(())
}

/// Copies the eBPF object to where the crate includes it from: an empty one if none was built.
fn embed_programs() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("not in a workspace")?;
    let built = programs_directory(root);
    let sources = root.join("interceptor-ebpf/src");
    // Cargo watches a directory for changes, but reruns this every time if it does not exist.
    fs::create_dir_all(&built)?;
    println!("cargo::rerun-if-changed={}", built.display());
    println!("cargo::rerun-if-changed={}", sources.display());

    let object = built.join("programs.o");
    let programs = match fs::metadata(&object).and_then(|found| found.modified()) {
        Err(_) => Vec::new(),
        // Both sides must agree on every type that they share.
        Ok(time) if newest(&sources)? > time => {
            println!(
                "cargo::warning=the eBPF programs are older than their sources and left out: run `cargo xtask build`"
            );
            Vec::new()
        }
        Ok(_) => fs::read(&object)?,
    };
    // What has not changed is not to be compiled again.
    let included = PathBuf::from(env::var("OUT_DIR")?).join("programs");
    if fs::read(&included).ok().as_ref() != Some(&programs) {
        fs::write(included, programs)?;
    }
    Ok(())
}

/// Where `cargo xtask build` leaves them: `ebpf` in Cargo's target directory.
fn programs_directory(root: &Path) -> PathBuf {
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");
    root.join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into())).join("ebpf/embedded")
}

fn newest(directory: &Path) -> io::Result<SystemTime> {
    let mut latest = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let time = if entry.file_type()?.is_dir() {
            newest(&entry.path())?
        } else {
            entry.metadata()?.modified()?
        };
        latest = latest.max(time);
    }
    Ok(latest)
}
