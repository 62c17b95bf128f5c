//! Debian's packages, downloaded and unpacked below `target/` without installing anything.
//!
//! The ordinary apt client does the work, with the machine's own configuration (proxies, keys,
//! mirror) but with lists, state and cache of its own, so that the machine's stay as they are. The
//! suites are pinned too: the virtual machine is always made from the same ones ([`SUITES`]), on
//! the mirror that the machine's own sources name.

use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::{process, progress};

/// Sources of the virtual machine: QEMU and the tools come from the first suite, kernels from all
/// of them. Backports have the lower priority, as everywhere in Debian, so a package without a
/// version comes from the first.
const SUITES: [&str; 3] = ["bookworm", "bookworm-backports", "trixie-backports"];

/// The keys that all of these suites are signed with.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Packages of every Debian-like system: taken as installed, so that they are not downloaded as
/// dependencies.
const BASE: [&str; 19] = [
    "adduser",
    "debconf",
    "dpkg",
    "gcc-12-base",
    "init-system-helpers",
    "iso-codes",
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "libsystemd0",
    "libudev1",
    "lsb-base",
    "passwd",
    "perl",
    "rdma-core",
    "sysvinit-utils",
    "tar",
    "udev",
    "usrmerge",
];

/// A private view of the archive.
pub(super) struct Archive {
    directory: PathBuf,
}

impl Archive {
    /// The view kept in `directory`; lists are brought at the first use of [`Archive::update`].
    pub(super) fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Brings the lists of packages up to date.
    pub(super) fn update(&self) -> Result<()> {
        ensure!(
            process::succeeds("apt-get", &["--version"]) && process::succeeds("dpkg-deb", &["--version"]),
            "the virtual machine is made from Debian packages, and there is no apt-get here"
        );
        for name in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(self.directory.join(name)).context("cannot create apt's directories")?;
        }
        eprintln!("vm: bringing Debian's lists of packages");
        let mirror = mirror()?;
        let keyring =
            if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
        let sources = SUITES.map(|suite| format!("deb {keyring}{mirror} {suite} main\n")).concat();
        fs::write(self.directory.join("sources.list"), sources)?;
        let installed = BASE.map(|name| {
            format!(
                "Package: {name}\nStatus: install ok installed\nVersion: 9999\nArchitecture: amd64\n\
                 Multi-Arch: foreign\nMaintainer: none\nDescription: part of the base system\n\n"
            )
        });
        fs::write(self.directory.join("status"), installed.concat())?;
        process::run(self.apt("apt-get").arg("update")).context("cannot bring Debian's lists of packages")
    }

    /// Names of all packages that begin so.
    pub(super) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let text = text_of(self.apt("apt-cache").args(["pkgnames", prefix]))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Downloads exactly these packages and unpacks them over one another into the new directory
    /// `tree`.
    pub(super) fn unpack_only(&self, label: &str, packages: &[String], tree: &Path) -> Result<()> {
        let files = self.files(&["download"], packages)?;
        self.unpack(label, &files, tree)
    }

    /// The same with all they depend on, save the base system.
    pub(super) fn unpack_closure(&self, label: &str, packages: &[String], tree: &Path) -> Result<()> {
        let files = self.files(&["install", "--no-install-recommends"], packages)?;
        self.unpack(label, &files, tree)
    }

    /// What apt would download.
    fn files(&self, how: &[&str], packages: &[String]) -> Result<Vec<PackageFile>> {
        let listed = text_of(self.apt("apt-get").args(["-qq", "--print-uris"]).args(how).args(packages))
            .with_context(|| format!("apt does not find {}", packages.join(" ")))?;
        Ok(listed.lines().filter_map(PackageFile::parse).collect())
    }

    /// `tree` appears whole or not at all.
    fn unpack(&self, label: &str, files: &[PackageFile], tree: &Path) -> Result<()> {
        let total = files.iter().map(|file| file.size).sum();
        eprintln!("vm: bringing {label} ({})", progress::size(total));
        let work = self.directory.join("incoming");
        let _ = fs::remove_dir_all(&work);
        let (debs, new) = (work.join("debs"), work.join("tree"));
        fs::create_dir_all(&debs)?;
        fs::create_dir_all(&new)?;
        let mut download = self.apt("apt-get");
        download.current_dir(&debs).arg("download").args(files.iter().map(|file| &file.package));
        process::run(&mut download).with_context(|| format!("cannot download {label}"))?;
        for entry in fs::read_dir(&debs)? {
            process::run(Command::new("dpkg-deb").arg("-x").arg(entry?.path()).arg(&new))?;
        }
        merge_usr(&new)?;
        fs::rename(&new, tree).with_context(|| format!("cannot keep {}", tree.display()))?;
        fs::remove_dir_all(&work).context("cannot remove the downloads")
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
        // apt's output is progress, not a result.
        command.stdout(io::stderr());
        for (name, file) in [
            ("Dir::Etc::sourcelist=", "sources.list"),
            ("Dir::State=", "state"),
            ("Dir::State::status=", "status"),
            ("Dir::Cache=", "cache"),
        ] {
            command.arg("-o").arg(option(name, &self.directory.join(file)));
        }
        for setting in [
            "Dir::Etc::sourceparts=/dev/null",
            "APT::Architecture=amd64",
            // apt's unprivileged user may not be able to reach target/.
            "APT::Sandbox::User=root",
            "Debug::NoLocking=1",
            "Acquire::Languages=none",
        ] {
            command.args(["-o", setting]);
        }
        // Progress bars are for terminals.
        command.args(["-o", if io::stderr().is_terminal() { "quiet=0" } else { "quiet=2" }]);
        command
    }
}

/// One package as apt would download it.
#[derive(Debug, PartialEq)]
struct PackageFile {
    /// `NAME=VERSION`
    package: String,
    /// Bytes.
    size: u64,
}

impl PackageFile {
    /// From a line `'URI' NAME_VERSION_ARCHITECTURE.deb SIZE CHECKSUM`.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ').skip(1);
        let (file, size) = (words.next()?, words.next()?);
        let mut parts = file.split('_');
        let (name, version) = (parts.next()?, parts.next()?);
        // The epoch's colon is not for file names.
        Some(Self { package: format!("{name}={}", version.replace("%3a", ":")), size: size.parse().ok()? })
    }
}

fn option(name: &str, path: &Path) -> OsString {
    let mut option = OsString::from(name);
    option.push(path);
    option
}

/// The mirror that this machine takes Debian's own suites from.
fn mirror() -> Result<String> {
    let mut command = Command::new("apt-get");
    command.args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE) $(COMPONENT) $(SITE)",
        "Created-By: Packages",
    ]);
    let targets = text_of(&mut command)?;
    match mirror_among(&targets) {
        Some(mirror) => Ok(mirror.to_owned()),
        None => bail!("the sources of apt name no mirror of Debian ({})", SUITES[0]),
    }
}

/// From lines `URI SUITE COMPONENT …`: the mirror of the first plain suite of Debian, since it has
/// the backports too.
fn mirror_among(targets: &str) -> Option<&str> {
    targets.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (uri, suite, component) = (words.next()?, words.next()?, words.next()?);
        let plain = ["bookworm", "trixie", "forky", "sid", "stable", "oldstable", "testing", "unstable"];
        (component == "main" && plain.contains(&suite.trim_end_matches('/'))).then_some(uri)
    })
}

/// Makes `/usr` the only place for programs and libraries, as on every system that the tree will
/// be laid over: a directory `lib` there would hide the link `lib` of the host.
fn merge_usr(tree: &Path) -> Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        let from = tree.join(name);
        if from.is_dir() {
            move_into(&from, &tree.join("usr").join(name))?;
        }
    }
    Ok(())
}

fn move_into(from: &Path, to: &Path) -> Result<()> {
    if !to.exists() {
        fs::create_dir_all(to.parent().unwrap_or(to))?;
        return fs::rename(from, to).with_context(|| format!("cannot move {}", from.display()));
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            move_into(&entry.path(), &target)?;
        } else {
            fs::rename(entry.path(), &target)?;
        }
    }
    fs::remove_dir(from).with_context(|| format!("cannot remove {}", from.display()))
}

/// What a program prints; fails with what it complained of.
fn text_of(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output();
    let output = output.with_context(|| format!("cannot start {name}"))?;
    ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_that_of_a_plain_suite() {
        let targets = "http://other.example/apt nodistro main x\nhttp://mirror.example/security bookworm-security main x\n\
                       http://mirror.example/debian bookworm contrib x\nhttp://mirror.example/debian bookworm main x\n";
        assert_eq!(mirror_among(targets), Some("http://mirror.example/debian"));
        assert_eq!(mirror_among("http://other.example/ubuntu noble main x\n"), None);
    }

    #[test]
    fn a_download_is_known_by_package_and_version() {
        let line = "'http://mirror.example/pool/q/qemu_7.2%2bdfsg_amd64.deb' qemu_1%3a7.2+dfsg-7_amd64.deb 123 SHA256:00";
        let file = PackageFile { package: "qemu=1:7.2+dfsg-7".to_owned(), size: 123 };
        assert_eq!(PackageFile::parse(line), Some(file));
        assert_eq!(PackageFile::parse("Reading package lists..."), None);
    }

    #[test]
    fn a_tree_is_merged_into_usr() {
        let tree = tempfile::tempdir().unwrap();
        let path = |name: &str| tree.path().join(name);
        fs::create_dir_all(path("lib/x/deep")).unwrap();
        fs::create_dir_all(path("usr/lib/x")).unwrap();
        fs::create_dir_all(path("sbin")).unwrap();
        fs::write(path("lib/x/deep/a"), "a").unwrap();
        fs::write(path("usr/lib/x/b"), "b").unwrap();
        fs::write(path("sbin/c"), "c").unwrap();
        merge_usr(tree.path()).unwrap();
        assert!(
            path("usr/lib/x/deep/a").is_file()
                && path("usr/lib/x/b").is_file()
                && path("usr/sbin/c").is_file()
        );
        assert!(!path("lib").exists() && !path("sbin").exists());
    }
}
