//! What is installed where: one list for every kind of package.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};

use super::PackageIdentity;
use super::build::BuiltPrograms;
use super::dependencies::DependencyGraph;
use super::{NAME, notices, sbom};

/// A file or a link.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum EntryContent {
    File {
        bytes: Vec<u8>,
        is_executable: bool,
    },
    /// A symbolic link.
    Link(String),
}

/// Something that is installed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PackageEntry {
    /// Without the leading slash.
    pub(super) path: String,
    pub(super) content: EntryContent,
    /// Whether an upgrade keeps what the operator has changed.
    pub(super) is_configuration: bool,
}

/// All that is installed, in the order of its paths.
#[derive(Debug)]
pub(super) struct PackageContents(Vec<PackageEntry>);

/// Where mount(8) looks for helpers, on every distribution whose `/sbin` is `/usr/sbin`.
const HELPERS: [&str; 2] = ["usr/sbin/mount.interceptor", "usr/sbin/mount.fuse.interceptor"];

/// Files of the source tree, and where they go.
const SOURCES: [(&str, &str); 15] = [
    ("packaging/example.toml", "usr/share/doc/interceptor/examples/mount.toml"),
    ("doc/grafana/interceptor.json", "usr/share/doc/interceptor/grafana/interceptor.json"),
    ("doc/prometheus/interceptor.rules.yml", "usr/share/doc/interceptor/prometheus/interceptor.rules.yml"),
    ("packaging/container/Containerfile", "usr/share/doc/interceptor/Containerfile"),
    ("packaging/kubernetes/Containerfile", "usr/share/doc/interceptor/kubernetes/Containerfile"),
    ("packaging/kubernetes/entrypoint.sh", "usr/share/doc/interceptor/kubernetes/entrypoint.sh"),
    ("packaging/kubernetes/rdma-engine.yaml", "usr/share/doc/interceptor/kubernetes/rdma-engine.yaml"),
    ("packaging/kubernetes/values.yaml", "usr/share/doc/interceptor/kubernetes/values.yaml"),
    ("doc/INSTALL.md", "usr/share/doc/interceptor/INSTALL.md"),
    ("doc/KUBERNETES.md", "usr/share/doc/interceptor/KUBERNETES.md"),
    ("CHANGELOG.md", "usr/share/doc/interceptor/CHANGELOG.md"),
    ("LICENSE", "usr/share/doc/interceptor/LICENSE"),
    ("packaging/systemd/interceptor@.service", "usr/lib/systemd/system/interceptor@.service"),
    ("packaging/systemd/interceptor-attach@.service", "usr/lib/systemd/system/interceptor-attach@.service"),
    ("packaging/systemd/rdma-engine.service", "usr/lib/systemd/system/rdma-engine.service"),
];

/// Configuration that an operator changes.
const CONFIGURATION: (&str, &str) = ("packaging/rdma-engine.env", "etc/interceptor/rdma-engine.env");

/// Directories of completions, as the programs write them and as shells look for them.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions"),
    ("zsh", "usr/share/zsh/site-functions"),
    ("fish", "usr/share/fish/vendor_completions.d"),
];

impl PackageContents {
    /// Everything but debug information.
    pub(super) fn collect(
        programs: &BuiltPrograms,
        dependencies: &DependencyGraph,
        identity: &PackageIdentity,
    ) -> Result<Self> {
        let mut entries = Vec::new();
        for program in &programs.all {
            entries.push(PackageEntry::program(
                &format!("usr/bin/{}", program.name),
                fs::read(&program.stripped)?,
            ));
        }
        for helper in HELPERS {
            entries.push(PackageEntry::link(helper, "../bin/interceptor"));
        }
        for (source, path) in SOURCES {
            entries.push(PackageEntry::file(path, source_file(source)?));
        }
        let (source, path) = CONFIGURATION;
        entries
            .push(PackageEntry { is_configuration: true, ..PackageEntry::file(path, source_file(source)?) });
        for page in files_in(&programs.documents.join("man"))? {
            entries.push(manual_page(1, &page)?);
        }
        for page in files_in(&source_tree().join("packaging/man"))? {
            entries.push(manual_page(8, &page)?);
        }
        entries.push(PackageEntry::link(
            "usr/share/man/man8/mount.fuse.interceptor.8.gz",
            "mount.interceptor.8.gz",
        ));
        for (shell, directory) in COMPLETIONS {
            for (name, bytes) in files_in(&programs.documents.join(shell))? {
                entries.push(PackageEntry::file(&format!("{directory}/{name}"), bytes));
            }
        }
        let doc = |name: &str, text: String| {
            PackageEntry::file(&format!("usr/share/doc/{NAME}/{name}"), text.into_bytes())
        };
        entries.push(doc("copyright", notices::copyright()));
        entries.push(doc("THIRD-PARTY-LICENSES.txt", notices::third_party(dependencies)?));
        entries.push(doc("sbom.cdx.json", sbom::document(dependencies, identity)?));
        Self::sorted(entries)
    }

    /// The debug information of the programs, where debuggers look for it.
    pub(super) fn of_debug_information(programs: &BuiltPrograms) -> Result<Self> {
        let entry = |program: &super::build::BuiltProgram| {
            let path = format!("usr/lib/debug/usr/bin/{}.debug", program.name);
            Ok(PackageEntry::file(&path, fs::read(&program.debug)?))
        };
        Self::sorted(programs.all.iter().map(entry).collect::<Result<_>>()?)
    }

    pub(super) fn sorted(mut entries: Vec<PackageEntry>) -> Result<Self> {
        entries.sort_by(|one, other| one.path.cmp(&other.path));
        let twice = entries.windows(2).find(|pair| pair[0].path == pair[1].path);
        ensure!(twice.is_none(), "{} is installed twice", twice.map_or("", |pair| &pair[0].path));
        Ok(Self(entries))
    }

    pub(super) fn entries(&self) -> &[PackageEntry] {
        &self.0
    }

    /// The directories of all entries, each after the one that it is in.
    pub(super) fn directories(&self) -> Vec<String> {
        let mut directories = std::collections::BTreeSet::new();
        for entry in &self.0 {
            let above = Path::new(&entry.path).ancestors().skip(1);
            directories
                .extend(above.filter_map(Path::to_str).filter(|path| !path.is_empty()).map(str::to_owned));
        }
        directories.into_iter().collect()
    }

    /// Bytes that all files take.
    pub(super) fn installed_size(&self) -> u64 {
        let size = |entry: &PackageEntry| match &entry.content {
            EntryContent::File { bytes, .. } => bytes.len() as u64,
            EntryContent::Link(_) => 0,
        };
        self.0.iter().map(size).sum()
    }
}

impl PackageEntry {
    pub(super) fn file(path: &str, bytes: Vec<u8>) -> Self {
        Self::new(path, EntryContent::File { bytes, is_executable: false })
    }

    pub(super) fn program(path: &str, bytes: Vec<u8>) -> Self {
        Self::new(path, EntryContent::File { bytes, is_executable: true })
    }

    pub(super) fn link(path: &str, target: &str) -> Self {
        Self::new(path, EntryContent::Link(target.to_owned()))
    }

    fn new(path: &str, content: EntryContent) -> Self {
        Self { path: path.to_owned(), content, is_configuration: false }
    }

    /// The permissions.
    pub(super) fn mode(&self) -> u32 {
        match self.content {
            EntryContent::File { is_executable: false, .. } => 0o644,
            EntryContent::File { .. } => 0o755,
            EntryContent::Link(_) => 0o777,
        }
    }
}

fn manual_page(section: u8, (name, text): &(String, Vec<u8>)) -> Result<PackageEntry> {
    let path = format!("usr/share/man/man{section}/{name}.gz");
    Ok(PackageEntry::file(&path, compressed(text)?))
}

/// Compressed, without a time or a name: the same bytes give the same result.
pub(super) fn compressed(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

fn source_tree() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn source_file(name: &str) -> Result<Vec<u8>> {
    fs::read(source_tree().join(name)).with_context(|| format!("cannot read {name}"))
}

/// Names and contents of the files in a directory.
fn files_in(directory: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let entry = entry?;
        let name = entry.file_name().into_string().ok().context("a name is no text")?;
        files.push((name, fs::read(entry.path())?));
    }
    ensure!(!files.is_empty(), "{} is empty", directory.display());
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_source_tree_are_there() {
        for (source, _) in SOURCES.into_iter().chain([CONFIGURATION]) {
            assert!(!source_file(source).unwrap().is_empty(), "{source}");
        }
        assert_eq!(files_in(&source_tree().join("packaging/man")).unwrap()[0].0, "mount.interceptor.8");
    }

    #[test]
    fn directories_come_before_what_is_in_them() {
        let entries =
            ["usr/bin/a", "etc/x", "usr/share/doc/a"].map(|path| PackageEntry::file(path, Vec::new()));
        let contents = PackageContents::sorted(entries.into()).unwrap();
        assert_eq!(contents.directories(), ["etc", "usr", "usr/bin", "usr/share", "usr/share/doc"]);
        let twice = ["a", "a"].map(|path| PackageEntry::file(path, Vec::new()));
        assert!(PackageContents::sorted(twice.into()).is_err());
    }
}
