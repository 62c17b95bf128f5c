//! zig as a linker and C compiler, and the Cargo command that uses it: it has the symbols of each
//! version of the C library, so a program can be made for a distribution older than this one, and
//! for another architecture.
//!
//! Both come as wheels, of pinned versions with pinned checksums, and stay in `target/tools/zig`.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use ::tests::tools::target_directory;
use anyhow::{Context, Result, ensure};

use super::host;
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

/// What programs are built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Architecture {
    Amd64,
    Arm64,
}

impl Architecture {
    /// The target's name for Rust.
    pub(crate) fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// The machine's name for the kernel, and for rpm.
    pub(crate) fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// Its name for Debian.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// That of this host; of a host for which there are no packages, the first one.
    pub(crate) fn of_host() -> Self {
        if Self::Arm64.is_own() { Self::Arm64 } else { Self::Amd64 }
    }

    /// Whether this host can run its programs.
    pub(crate) fn is_own(self) -> bool {
        self.machine() == std::env::consts::ARCH
    }

    /// Where zig has the headers of the C library and of the kernel for it.
    fn headers(self) -> [&'static str; 4] {
        match self {
            Self::Amd64 => ["x86-linux-gnu", "generic-glibc", "x86-linux-any", "any-linux-any"],
            Self::Arm64 => ["aarch64-linux-gnu", "generic-glibc", "aarch64-linux-any", "any-linux-any"],
        }
    }
}

/// Headers, in the directory of stubs.
const HEADERS: &str = "include";

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
    architecture: Architecture,
    /// A directory with libraries that are linked with and never used, and with headers.
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
        let target = self.architecture.target();
        command.env(format!("CMAKE_TOOLCHAIN_FILE_{target}"), self.stubs.join(TOOLCHAIN));
        command.env("BINDGEN_EXTRA_CLANG_ARGS", self.includes()?);
        Ok(command)
    }

    /// Options by which libclang finds zig's headers, and those of libibverbs.
    fn includes(&self) -> Result<String> {
        let library = self.zig.parent().context("zig has a directory")?.join("lib");
        let libc = self.architecture.headers().map(|name| library.join("libc/include").join(name));
        let all = [self.stubs.join(HEADERS), library.join("include")].into_iter().chain(libc);
        Ok(all.map(|directory| format!("-isystem {}", directory.display())).collect::<Vec<_>>().join(" "))
    }

    /// Makes an empty libibverbs: the bindings name it to the linker, which leaves it out, as its
    /// functions are found at run time. Also tells cmake of the compiler of this host, and libclang
    /// of those headers of this host that are the same for all architectures.
    fn make_stubs(&self) -> Result<()> {
        let headers = self.stubs.join(HEADERS);
        fs::create_dir_all(&headers)?;
        for name in ["infiniband", "rdma"] {
            if !headers.join(name).exists() {
                symlink(Path::new("/usr/include").join(name), headers.join(name))?;
            }
        }
        fs::write(self.stubs.join(TOOLCHAIN), HOST_COMPILER)?;
        let library = self.stubs.join("libibverbs.so");
        if library.is_file() {
            return Ok(());
        }
        let source = self.stubs.join("empty.c");
        fs::write(&source, "")?;
        let mut compiler = Command::new(&self.zig);
        let target = format!("{}-linux-gnu", self.architecture.machine());
        compiler.args(["cc", "-target", &target, "-shared", "-o"]);
        process::run(compiler.arg(&library).arg(&source).stdout(std::io::stderr()))
    }
}

/// What there is, brought if need be, to build for `architecture`.
pub(crate) fn ensure(architecture: Architecture) -> Result<Zig> {
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "the pinned zig is for Linux on x86-64 only; --host-libc does without it"
    );
    let kept = target_directory().join("tools/zig");
    let stubs = kept.join("stubs").join(architecture.machine());
    let (zig, cargo_zigbuild) = (kept.join(ZIG_PROGRAM), kept.join(CARGO_PROGRAM));
    let found = Zig { zig, cargo_zigbuild, architecture, stubs };
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
    ensure_standard_library(architecture)?;
    if !architecture.is_own() {
        host::ensure_for_arm64()?;
    }
    Ok(found)
}

/// Has rustup bring Rust's own libraries for another architecture than this one.
fn ensure_standard_library(architecture: Architecture) -> Result<()> {
    let target = architecture.target();
    let output = Command::new("rustc").args(["--print", "sysroot"]).output().context("cannot run rustc")?;
    let sysroot = PathBuf::from(String::from_utf8(output.stdout)?.trim_end());
    if sysroot.join("lib/rustlib").join(target).is_dir() {
        return Ok(());
    }
    process::run(Command::new("rustup").args(["target", "add", target]).stdout(std::io::stderr()))
        .with_context(|| format!("there is no Rust for {target}: bring it with rustup target add {target}"))
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
