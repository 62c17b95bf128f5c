//! Packages of Fedora, of Red Hat's and SUSE's distributions.

use anyhow::Result;
use rpm::{BuildConfig, CompressionType, Dependency, FileMode, FileOptions, PackageBuilder, Scriptlet};

use super::contents::{EntryContent, PackageContents};
use super::{DESCRIPTION, NAME, PackageIdentity, SUMMARY};

/// As in a deb: systemd looks at the units.
const RELOAD_UNITS: &str = "if [ -d /run/systemd/system ]; then systemctl daemon-reload || :; fi";

/// The package. `libc` is the version of the C library that the programs need.
pub(super) fn package(contents: &PackageContents, identity: &PackageIdentity, libc: &str) -> Result<Vec<u8>> {
    // All distributions with systemd read this version of the format and this compression.
    let time = u32::try_from(identity.time).unwrap_or(0);
    let config = BuildConfig::v4().compression(CompressionType::Gzip).source_date(time).reserved_space(None);
    let machine = identity.architecture.machine();
    let mut builder = PackageBuilder::new(NAME, &identity.version, "Apache-2.0", machine, SUMMARY);
    builder.using_config(config).description(DESCRIPTION).build_host("localhost");
    builder.requires(Dependency::any(format!("libc.so.6(GLIBC_{libc})(64bit)")));
    builder.recommends(Dependency::any("fuse3"));
    builder.suggests(Dependency::any("libibverbs"));
    builder.post_install_script(Scriptlet::new(RELOAD_UNITS));
    builder.post_uninstall_script(Scriptlet::new(RELOAD_UNITS));
    for entry in contents.entries() {
        let path = format!("/{}", entry.path);
        match &entry.content {
            EntryContent::File { bytes, .. } => {
                let mode = FileMode::regular(entry.mode() as u16);
                let mut options = FileOptions::new(path).mode(mode);
                if entry.is_configuration {
                    options = options.config().noreplace();
                } else if entry.path.starts_with("usr/share/doc") || entry.path.starts_with("usr/share/man") {
                    options = options.doc();
                }
                builder.with_file_contents(bytes.clone(), options)?;
            }
            EntryContent::Link(target) => {
                builder.with_symlink(FileOptions::symlink(path, target))?;
            }
        }
    }
    let mut bytes = Vec::new();
    builder.build()?.write(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::contents::PackageEntry;
    use super::*;
    use crate::process;
    use crate::setup::zig::Architecture;

    #[test]
    fn rpm_reads_the_package() {
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
        if !process::succeeds("rpm", &["--version"]) {
            return ::tests::host::skipped("there is no rpm");
        }
        let file = tempfile::Builder::new().suffix(".rpm").tempfile().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let said = |query: &[&str]| {
            let output = Command::new("rpm").args(["-qp"]).args(query).arg(file.path()).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        assert!(said(&[]).starts_with("interceptor-1.2.3-1.x86_64"));
        let listed = said(&["-lv"]);
        assert!(listed.contains("/usr/bin/tool") && listed.contains("mount.tool -> ../bin/tool"), "{listed}");
        assert!(said(&["--requires"]).contains("libc.so.6(GLIBC_2.31)(64bit)"));
        assert_eq!(said(&["--configfiles"]).trim(), "/etc/tool/conf");
    }
}
