//! Packages of Debian: an `ar` archive with a version and two tar archives, one with what is said
//! of the package and one with what is installed.

use anyhow::Result;

use super::contents::{PackageContents, compressed};
use super::{DESCRIPTION, MAINTAINER, NAME, PackageIdentity, SUMMARY, archive};

/// What is run after the package is installed and after it is removed: systemd looks at the units.
/// Mounts are neither started nor stopped, because programs use them.
const RELOAD_UNITS: &str = "#!/bin/sh\n\
                            set -e\n\
                            if [ -d /run/systemd/system ]; then\n    systemctl daemon-reload || true\nfi\n";

/// The package. `libc` is the version of the C library that the programs need.
pub(super) fn package(contents: &PackageContents, identity: &PackageIdentity, libc: &str) -> Result<Vec<u8>> {
    let mut control = vec![
        ("control", control(contents, identity, libc).into_bytes(), 0o644),
        ("postinst", RELOAD_UNITS.into(), 0o755),
        ("postrm", RELOAD_UNITS.into(), 0o755),
    ];
    let kept = contents.entries().iter().filter(|entry| entry.is_configuration);
    let kept: String = kept.map(|entry| format!("/{}\n", entry.path)).collect();
    if !kept.is_empty() {
        control.push(("conffiles", kept.into_bytes(), 0o644));
    }
    let members = [
        ("debian-binary", b"2.0\n".to_vec()),
        ("control.tar.gz", compressed(&archive::files(&control, identity.time)?)?),
        ("data.tar.gz", compressed(&archive::tree(contents, "./", identity.time)?)?),
    ];
    let mut package = b"!<arch>\n".to_vec();
    for (name, bytes) in members {
        let (time, size) = (identity.time, bytes.len());
        package.extend(format!("{name:<16}{time:<12}0     0     100644  {size:<10}`\n").bytes());
        package.extend(&bytes);
        // Members begin at even places.
        package.extend((size % 2 == 1).then_some(b'\n'));
    }
    Ok(package)
}

fn control(contents: &PackageContents, identity: &PackageIdentity, libc: &str) -> String {
    let (version, size) = (&identity.version, contents.installed_size().div_ceil(1024));
    let architecture = identity.architecture.debian();
    format!(
        "Package: {NAME}\nVersion: {version}-1\nArchitecture: {architecture}\nMaintainer: {MAINTAINER}\n\
         Installed-Size: {size}\nDepends: libc6 (>= {libc})\nRecommends: fuse3\n\
         Suggests: libibverbs1, ibverbs-providers\nSection: net\nPriority: optional\n\
         Description: {SUMMARY}\n{}",
        extended(DESCRIPTION)
    )
}

/// The lines behind the first of a description: each begins with a blank.
fn extended(text: &str) -> String {
    let (mut lines, mut len) = (String::new(), 0);
    for word in text.split_whitespace() {
        if len == 0 || len + word.len() > 76 {
            lines.push_str(if len == 0 { " " } else { "\n " });
            len = 0;
        } else {
            lines.push(' ');
        }
        lines.push_str(word);
        len += word.len() + 1;
    }
    lines.push('\n');
    lines
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::contents::PackageEntry;
    use super::*;
    use crate::process;
    use crate::setup::zig::Architecture;

    #[test]
    fn the_distribution_reads_the_package() {
        let entries = vec![
            PackageEntry::program("usr/bin/tool", b"#!/bin/sh\n".to_vec()),
            PackageEntry::link("usr/sbin/mount.tool", "../bin/tool"),
            PackageEntry { is_configuration: true, ..PackageEntry::file("etc/tool/conf", b"odd".to_vec()) },
        ];
        let contents = PackageContents::sorted(entries).unwrap();
        let identity = PackageIdentity {
            version: "1.2.3".into(),
            time: 1_700_000_000,
            architecture: Architecture::Amd64,
        };
        let bytes = package(&contents, &identity, "2.31").unwrap();
        assert_eq!(bytes, package(&contents, &identity, "2.31").unwrap(), "it is reproducible");
        if !process::succeeds("dpkg-deb", &["--version"]) {
            return ::tests::host::skipped("there is no dpkg-deb");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let said = |option: &str| {
            let output = Command::new("dpkg-deb").arg(option).arg(file.path()).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let listed = said("--contents");
        assert!(listed.contains("-rwxr-xr-x root/root") && listed.contains(" 2023-11-14 "), "{listed}");
        assert!(listed.contains("usr/sbin/mount.tool -> ../bin/tool"), "{listed}");
        let info = said("--info");
        assert!(info.contains("Depends: libc6 (>= 2.31)") && info.contains("Version: 1.2.3-1"), "{info}");
        assert!(info.contains("conffiles"), "{info}");
    }
}
