//! zig as a linker and C compiler, and the Cargo command that uses it: it has the symbols of each
//! version of the C library, so a program can be made for a distribution older than this one.
//!
//! Both come as wheels, of pinned versions with pinned checksums, and stay in `target/tools/zig`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ::tests::tools::target_directory;
use anyhow::{Context, Result, ensure};

use super::wheel::Wheel;
use crate::{cargo, process};

const ZIG: Wheel = Wheel {
    requirement: "ziglang==0.17.1",
    sha256: "ea6cc5d87b033cf0aedfbc8f9549a908cae6c50ac31f1698188fa48a74524b54",
    megabytes: 101,
};
const CARGO_ZIGBUILD: Wheel = Wheel {
    requirement: "cargo-zigbuild==0.24.1",
    sha256: "238a1ab54a95053a4eadc34775c81f795a8ad75f80bfed63f3f445f518102375",
    megabytes: 2,
};

/// Where the programs lie in what is kept.
const ZIG_PROGRAM: &str = "zig/ziglang/zig";
const CARGO_PROGRAM: &str = "cargo-zigbuild/cargo_zigbuild-0.24.1.data/scripts/cargo-zigbuild";

/// The target that everything is built for.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The toolchain file of cmake, in the directory of stubs.
const TOOLCHAIN: &str = "host.cmake";

/// What it says. The flags that are given are those of another compiler.
const HOST_COMPILER: &str = "\
set(CMAKE_C_COMPILER cc)
set(CMAKE_C_FLAGS \"-fPIC -w\" CACHE STRING \"\" FORCE)
";

/// The programs.
pub(crate) struct Zig {
    zig: PathBuf,
    cargo_zigbuild: PathBuf,
    /// A directory with libraries that are linked with and never used.
    stubs: PathBuf,
}

impl Zig {
    /// `cargo build` for a target that has the version of its C library behind its name.
    pub(crate) fn cargo(&self) -> Result<Command> {
        let mut command = cargo::prepared(Command::new(&self.cargo_zigbuild));
        command.arg("zigbuild").env("CARGO_ZIGBUILD_ZIG_PATH", &self.zig);
        command.env("STUB_LIBRARIES", &self.stubs);
        // The bindings of libibverbs build a library and tools of RDMA to get at its headers.
        // Nothing of them gets into a program, and zig can neither link the libraries of this host
        // nor read the version scripts: the compiler of this host builds them.
        command.env(format!("CMAKE_TOOLCHAIN_FILE_{TARGET}"), self.stubs.join(TOOLCHAIN));
        // libclang does not find zig's headers. Those of this host describe the same types.
        command.env("BINDGEN_EXTRA_CLANG_ARGS", host_includes()?);
        Ok(command)
    }

    /// Makes an empty libibverbs: the bindings name it to the linker, which leaves it out, as its
    /// functions are found at run time. And tells cmake of the compiler of this host.
    fn make_stubs(&self) -> Result<()> {
        fs::create_dir_all(&self.stubs)?;
        fs::write(self.stubs.join(TOOLCHAIN), HOST_COMPILER)?;
        let library = self.stubs.join("libibverbs.so");
        if library.is_file() {
            return Ok(());
        }
        let source = self.stubs.join("empty.c");
        fs::write(&source, "")?;
        let mut compiler = Command::new(&self.zig);
        compiler.args(["cc", "-target", "x86_64-linux-gnu", "-shared", "-o"]);
        process::run(compiler.arg(&library).arg(&source).stdout(std::io::stderr()))
    }
}

/// What there is, brought if need be.
pub(crate) fn ensure() -> Result<Zig> {
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "the pinned zig is for Linux on x86-64 only; --host-libc does without it"
    );
    let kept = target_directory().join("tools/zig");
    let stubs = kept.join("stubs");
    let found = Zig { zig: kept.join(ZIG_PROGRAM), cargo_zigbuild: kept.join(CARGO_PROGRAM), stubs };
    for (wheel, name, program) in
        [(ZIG, "zig", &found.zig), (CARGO_ZIGBUILD, "cargo-zigbuild", &found.cargo_zigbuild)]
    {
        if !program.is_file() {
            let brought = bring(&wheel, &kept.join(name), program);
            brought
                .context("cannot bring zig; --host-libc makes packages for distributions as new as this")?;
        }
    }
    found.make_stubs()?;
    Ok(found)
}

/// Options by which clang finds the headers of this host's compiler and C library.
fn host_includes() -> Result<String> {
    let output = Command::new("cc").arg("-print-file-name=include").output().context("cannot run cc")?;
    ensure!(output.status.success(), "cc does not tell where its headers are");
    let own = String::from_utf8(output.stdout)?;
    let directories = [own.trim_end(), "/usr/include/x86_64-linux-gnu", "/usr/include"];
    Ok(directories.map(|directory| format!("-isystem {directory}")).join(" "))
}

fn bring(wheel: &Wheel, kept: &Path, program: &Path) -> Result<()> {
    let work = kept.with_extension("incoming");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let unpacked = wheel.unpack(&work).and_then(|unpacked| {
        let _ = fs::remove_dir_all(kept);
        fs::rename(&unpacked, kept)?;
        // pip would do that when it installs.
        Ok(fs::set_permissions(program, Permissions::from_mode(0o755))?)
    });
    let _ = fs::remove_dir_all(&work);
    unpacked
}
