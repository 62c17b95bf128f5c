//! What a guest is made of, kept below `target/vm`: QEMU, the tools that run inside, and the
//! kernels.
//!
//! Each is a tree of unpacked packages that is made once and used until the list of its packages
//! changes. A kernel is pinned; when its version has left the archive, the newest of the same line
//! replaces it, with a message.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use ::tests::tools::target_directory;
use anyhow::{Context, Result, bail};

use super::archive::Archive;
use super::initramfs;

/// A line of kernels.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kernel {
    /// Debian 12: no FUSE passthrough
    #[value(name = "6.1")]
    V6_1,
    /// Debian 12 backports: FUSE passthrough
    #[default]
    #[value(name = "6.12")]
    V6_12,
    /// Debian 13 backports: also FUSE over io_uring, and on-demand paging over soft-RoCE
    #[value(name = "7.3")]
    V7_3,
}

/// Where a line of kernels is found in the archive: package names are `{PREFIX}{release}{SUFFIX}`.
struct Line {
    /// The packages of one kernel, by what stands before the release.
    prefixes: &'static [&'static str],
    /// How a release of this line begins and ends.
    release: (&'static str, &'static str),
    /// The release that the tests are known to pass with.
    pinned: &'static str,
}

impl Kernel {
    fn line(self) -> Line {
        match self {
            Kernel::V6_1 => {
                Line { prefixes: &["linux-image-"], release: ("6.1.0-", "-amd64"), pinned: "6.1.0-50-amd64" }
            }
            Kernel::V6_12 => Line {
                prefixes: &["linux-image-"],
                release: ("6.12.", "+deb12-amd64"),
                pinned: "6.12.95+deb12-amd64",
            },
            Kernel::V7_3 => Line {
                prefixes: &["linux-binary-", "linux-modules-", "linux-base-"],
                release: ("7.3.", "+deb13-amd64"),
                pinned: "7.3.4+deb13-amd64",
            },
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kernel::V6_1 => "6.1",
            Kernel::V6_12 => "6.12",
            Kernel::V7_3 => "7.3",
        })
    }
}

/// Everything to start a guest with.
pub(super) struct Equipment {
    /// QEMU, its libraries and firmware; used on the host.
    pub(super) qemu: PathBuf,
    /// libibverbs and its providers, perftest, `ip`, `rdma`, `modprobe`; laid over the host's root
    /// in the guest.
    pub(super) tools: PathBuf,
    /// One kernel and its modules; laid over the host's root in the guest.
    pub(super) kernel: PathBuf,
    /// What QEMU boots, below `kernel`.
    pub(super) image: PathBuf,
    /// The first stage of the boot.
    pub(super) initramfs: PathBuf,
}

/// Packages of QEMU's tree. The static busybox also builds the initramfs.
const QEMU: [&str; 2] = ["qemu-system-x86", "busybox-static"];

/// Packages of the guest's tree.
const TOOLS: [&str; 5] = ["perftest", "ibverbs-providers", "iproute2", "kmod", "busybox-static"];

impl Equipment {
    /// Brings what is not there yet: about 350 MB and 15 s for the first kernel, nothing later.
    pub(super) fn ensure(kernel: Kernel) -> Result<Self> {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            bail!("the virtual machine is for Linux on x86-64 only");
        }
        let root = target_directory().join("vm");
        let archive = Archive::at(&root.join("apt"));
        // The names hold what the trees are made of, so that a change of a list makes a new tree.
        let qemu = root.join(format!("qemu-{}", QEMU.join("-")));
        let tools = root.join(format!("tools-{}", TOOLS.join("-")));
        let line = kernel.line();
        let pinned = root.join(format!("kernel-{}", line.pinned));
        let known = find_kernel(&root, &line).unwrap_or(pinned);
        if ![&qemu, &tools, &known].iter().all(|tree| tree.is_dir()) {
            fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
            archive.update()?;
        }
        if !qemu.is_dir() {
            archive.unpack_closure("QEMU", &owned(&QEMU), &qemu)?;
        }
        if !tools.is_dir() {
            archive.unpack_closure("the tools of the guest", &owned(&TOOLS), &tools)?;
        }
        let kernel_tree = if known.is_dir() { known } else { bring_kernel(&archive, kernel, &root)? };
        let release = release_of(&kernel_tree)?;
        let images = [format!("boot/vmlinuz-{release}"), format!("usr/lib/modules/{release}/vmlinuz")];
        let mut images = images.iter().map(|image| kernel_tree.join(image));
        let image = images.find(|image| image.is_file()).context("the kernel's packages hold no kernel")?;
        let initramfs = initramfs::ensure(&qemu, &tools, &kernel_tree, &release)?;
        Ok(Self { qemu, tools, kernel: kernel_tree, image, initramfs })
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// A kernel of this line that was brought before, the pinned one first.
fn find_kernel(root: &Path, line: &Line) -> Option<PathBuf> {
    let pinned = root.join(format!("kernel-{}", line.pinned));
    if pinned.is_dir() {
        return Some(pinned);
    }
    let mut releases = fs::read_dir(root).ok()?.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let release = name.strip_prefix("kernel-")?;
        (line.number(release).is_some() && entry.path().is_dir()).then(|| release.to_owned())
    });
    releases.next().map(|release| root.join(format!("kernel-{release}")))
}

fn bring_kernel(archive: &Archive, kernel: Kernel, root: &Path) -> Result<PathBuf> {
    let line = kernel.line();
    let first = line.prefixes[0];
    let packages = archive.names(&format!("{first}{}", line.release.0))?;
    let releases: Vec<&str> = packages.iter().filter_map(|name| name.strip_prefix(first)).collect();
    let release = line.choose(&releases).with_context(|| format!("the archive has no kernel {kernel}"))?;
    if release != line.pinned {
        eprintln!("vm: the archive no longer has kernel {}; taking {release}", line.pinned);
    }
    let packages: Vec<String> = line.prefixes.iter().map(|prefix| format!("{prefix}{release}")).collect();
    let tree = root.join(format!("kernel-{release}"));
    archive.unpack_only(&format!("kernel {release}"), &packages, &tree)?;
    Ok(tree)
}

impl Line {
    /// The pinned release, else the newest of the line.
    fn choose<'a>(&self, releases: &[&'a str]) -> Option<&'a str> {
        let candidates = releases.iter().filter(|release| self.number(release).is_some());
        candidates.max_by_key(|&&release| (release == self.pinned, self.number(release))).copied()
    }

    /// The number that distinguishes releases of one line; `None` for a release of another line or
    /// flavour.
    fn number(&self, release: &str) -> Option<u32> {
        release.strip_prefix(self.release.0)?.strip_suffix(self.release.1)?.parse().ok()
    }
}

/// The name of the only directory of modules in a kernel's tree.
fn release_of(tree: &Path) -> Result<String> {
    let modules = tree.join("usr/lib/modules");
    let mut entries = fs::read_dir(&modules).with_context(|| format!("cannot read {}", modules.display()))?;
    let entry = entries.next().context("the kernel's package has no modules")??;
    entry.file_name().into_string().ok().context("the kernel's release is no text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_left_the_archive_is_replaced_by_its_newest_neighbour() {
        let line = Kernel::V6_12.line();
        let pinned = line.pinned;
        let others =
            ["6.12.9+deb12-amd64", "6.12.101+deb12-amd64", "6.12.99+deb12-rt-amd64", "6.12.88+deb12-amd64"];
        assert_eq!(line.choose(&others), Some("6.12.101+deb12-amd64"));
        assert_eq!(line.choose(&[&others[..], &[pinned]].concat()), Some(pinned));
        assert_eq!(line.choose(&["6.12.99+deb12-cloud-amd64", "6.1.0-50-amd64"]), None);
        for kernel in [Kernel::V6_1, Kernel::V6_12, Kernel::V7_3] {
            let line = kernel.line();
            assert!(line.number(line.pinned).is_some(), "{kernel}");
        }
    }
}
