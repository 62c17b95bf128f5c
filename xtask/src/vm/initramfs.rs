//! The first stage of a guest's boot: busybox, the few modules that reach the host's file systems,
//! and a script that enters them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::process;

/// Modules that the script needs before it can see any file of the host. Those they depend on come
/// along.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// The script that the kernel starts.
const INIT: &str = include_str!("init.sh");

/// The image for one kernel, made anew (a tenth of a second) so that it never lags behind the
/// script.
pub(super) fn ensure(qemu: &Path, tools: &Path, kernel: &Path, release: &str) -> Result<PathBuf> {
    let modules = kernel.join("usr/lib/modules").join(release);
    let dependencies = modules.join("modules.dep");
    if !dependencies.is_file() {
        let mut depmod = Command::new(tools.join("usr/bin/kmod"));
        depmod.arg0("depmod").env("LD_LIBRARY_PATH", libraries(tools));
        process::run(depmod.arg("-b").arg(kernel.join("usr")).arg(release))?;
    }
    let order = load_order(&fs::read_to_string(&dependencies)?, &MODULES)?;
    let busybox = qemu.join("usr/bin/busybox");

    let image = kernel.join("initramfs.cpio");
    let root = kernel.join("initramfs");
    let _ = fs::remove_dir_all(&root);
    for name in ["bin", "dev", "lower", "modules", "proc", "root", "sys", "writable"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy(&busybox, root.join("bin/busybox")).context("the packages hold no busybox")?;
    fs::write(root.join("init"), INIT)?;
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755))?;
    let mut names = String::new();
    for (number, module) in order.iter().enumerate() {
        let name = format!("{number:02}.ko");
        unpack_module(&busybox, &modules.join(module), &root.join("modules").join(&name))?;
        names += &format!("{name}\n");
    }
    fs::write(root.join("modules/order"), names)?;

    let mut archive = Command::new("sh");
    archive.args(["-c", "\"$0\" find . | \"$0\" cpio -o -H newc 2>/dev/null"]).arg(&busybox);
    archive.current_dir(&root).stdout(File::create(&image).context("cannot write the initramfs")?);
    process::run(&mut archive)?;
    fs::remove_dir_all(&root)?;
    Ok(image)
}

/// Where the libraries of an unpacked tree are.
pub(super) fn libraries(tree: &Path) -> PathBuf {
    tree.join("usr/lib/x86_64-linux-gnu")
}

/// Files of the modules named `wanted` and of all they depend on, each after those it needs.
/// `dependencies` is the text of `modules.dep`.
fn load_order(dependencies: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let mut needs = BTreeMap::new();
    for line in dependencies.lines() {
        let Some((module, rest)) = line.split_once(':') else { continue };
        needs.insert(module, rest.split_ascii_whitespace().collect::<Vec<_>>());
    }
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        let is_wanted =
            |path: &str| path.rsplit('/').next().and_then(|file| file.split('.').next()) == Some(name);
        // One that is built into the kernel has no file and needs none.
        let Some((module, dependencies)) = needs.iter().find(|(path, _)| is_wanted(path)) else { continue };
        // The list names the nearest first.
        for path in dependencies.iter().rev().chain([module]) {
            if !order.iter().any(|known| known == path) {
                order.push((*path).to_owned());
            }
        }
    }
    ensure!(!order.is_empty(), "the kernel has none of the modules {}", wanted.join(" "));
    Ok(order)
}

fn unpack_module(busybox: &Path, module: &Path, to: &Path) -> Result<()> {
    if module.extension().is_none_or(|extension| extension == "ko") {
        fs::copy(module, to).with_context(|| format!("cannot copy {}", module.display()))?;
        return Ok(());
    }
    let mut unpack = Command::new(busybox);
    unpack.args(["unxz", "-c"]).arg(module).stdout(File::create(to)?).stderr(Stdio::inherit());
    process::run(&mut unpack).with_context(|| format!("cannot unpack {}", module.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need() {
        let text = "kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz\n\
                    kernel/net/9p/9pnet.ko.xz:\nkernel/fs/netfs/netfs.ko.xz:\n\
                    kernel/net/9p/9pnet_virtio.ko.xz: kernel/v/virtio_ring.ko.xz kernel/v/virtio.ko.xz kernel/net/9p/9pnet.ko.xz\n";
        let order = load_order(text, &["9pnet_virtio", "9p", "virtio_pci"]).unwrap();
        assert_eq!(
            order,
            [
                "kernel/net/9p/9pnet.ko.xz",
                "kernel/v/virtio.ko.xz",
                "kernel/v/virtio_ring.ko.xz",
                "kernel/net/9p/9pnet_virtio.ko.xz",
                "kernel/fs/netfs/netfs.ko.xz",
                "kernel/fs/9p/9p.ko.xz"
            ]
        );
        assert!(load_order(text, &["absent"]).is_err());
    }
}
