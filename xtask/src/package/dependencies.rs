//! The crates that the programs are made of, as Cargo resolves them for the target of a package.
//! Crates that only build scripts and tests use are none of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::cargo;
use crate::setup::zig::Architecture;

/// The crates whose programs are packaged.
const PROGRAMS: &[&str] = &["interceptor", "rdma-engine"];

/// The target of the programs in the kernel, which are built apart, and their crate.
const KERNEL_PROGRAMS: (&str, &[&str]) = ("bpfel-unknown-none", &["interceptor-ebpf"]);

/// All crates, and which one uses which.
pub(super) struct DependencyGraph {
    pub(super) crates: Vec<Crate>,
}

/// A crate in the programs.
#[derive(Clone)]
pub(super) struct Crate {
    pub(super) name: String,
    pub(super) version: String,
    /// An SPDX expression, if its manifest has one.
    pub(super) license: Option<String>,
    /// Where its sources are.
    pub(super) directory: PathBuf,
    /// Of the file that the registry has; none for a crate of this workspace.
    pub(super) sha256: Option<String>,
    pub(super) repository: Option<String>,
    /// Names in the software bill of materials, of the crates that it uses.
    pub(super) uses: Vec<String>,
}

impl Crate {
    /// Its package URL, which names it everywhere.
    pub(super) fn url(&self) -> String {
        url(&self.name, &self.version)
    }

    /// Whether it is a part of this project.
    pub(super) fn is_own(&self) -> bool {
        self.sha256.is_none()
    }
}

fn url(name: &str, version: &str) -> String {
    format!("pkg:cargo/{name}@{version}")
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<MetadataPackage>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct MetadataPackage {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    repository: Option<String>,
    manifest_path: PathBuf,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<ResolveNode>,
}

#[derive(Deserialize)]
struct ResolveNode {
    id: String,
    deps: Vec<NodeDependency>,
}

#[derive(Deserialize)]
struct NodeDependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    /// `null` for a dependency of the program itself.
    kind: Option<String>,
}

impl DependencyGraph {
    /// Asks Cargo for those of programs for `architecture`.
    pub(super) fn read(architecture: Architecture) -> Result<Self> {
        let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock"))?;
        let checksums = checksums(&lock);
        let mut crates: BTreeMap<(String, String), Crate> = BTreeMap::new();
        for (target, roots) in [(architecture.target(), PROGRAMS), KERNEL_PROGRAMS] {
            for found in Self::parse(&metadata(target)?, &checksums, roots)?.crates {
                let known = crates.entry((found.name.clone(), found.version.clone()));
                let known = known.or_insert_with(|| Crate { uses: Vec::new(), ..found.clone() });
                known.uses.extend(found.uses);
                known.uses.sort();
                known.uses.dedup();
            }
        }
        Ok(Self { crates: crates.into_values().collect() })
    }

    fn parse(
        metadata: &[u8],
        checksums: &BTreeMap<(String, String), String>,
        roots: &[&str],
    ) -> Result<Self> {
        let Metadata { packages, resolve } = serde_json::from_slice(metadata).context("cargo metadata")?;
        let nodes: BTreeMap<_, _> = resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
        let by_id: BTreeMap<_, _> = packages.iter().map(|package| (package.id.as_str(), package)).collect();
        let begin = packages.iter().filter(|package| roots.contains(&package.name.as_str()));
        let mut left: Vec<&str> = begin.map(|package| package.id.as_str()).collect();
        ensure!(!left.is_empty(), "cargo metadata has none of {roots:?}");
        let mut reached = BTreeSet::new();
        while let Some(id) = left.pop() {
            if reached.insert(id) {
                left.extend(used_by(nodes.get(id).copied()));
            }
        }
        let described = reached.into_iter().map(|id| {
            let package = by_id.get(id).with_context(|| format!("cargo metadata does not describe {id}"))?;
            let name = |id: &str| by_id.get(id).map(|used| url(&used.name, &used.version));
            let directory = package.manifest_path.parent().context("a manifest has a directory")?;
            Ok(Crate {
                name: package.name.clone(),
                version: package.version.clone(),
                // An older way to write the same.
                license: package.license.as_ref().map(|license| license.replace('/', " OR ")),
                directory: directory.to_owned(),
                sha256: checksums.get(&(package.name.clone(), package.version.clone())).cloned(),
                repository: package.repository.clone(),
                uses: used_by(nodes.get(id).copied()).filter_map(name).collect(),
            })
        });
        Ok(Self { crates: described.collect::<Result<_>>()? })
    }
}

/// What Cargo says of all crates, for one target.
fn metadata(target: &str) -> Result<Vec<u8>> {
    let mut command = cargo::cargo();
    command.args(["metadata", "--format-version=1", "--locked", "--filter-platform", target]);
    let output = command.output().context("cannot start cargo")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// The crates that become a part of what is made of `node`.
fn used_by(node: Option<&ResolveNode>) -> impl Iterator<Item = &str> {
    let is_normal = |used: &&NodeDependency| used.dep_kinds.iter().any(|kind| kind.kind.is_none());
    node.into_iter().flat_map(|node| &node.deps).filter(is_normal).map(|used| used.pkg.as_str())
}

/// The checksums in `Cargo.lock`, by name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let value = |block: &str, key: &str| {
        let start = format!("{key} = \"");
        block.lines().find_map(|line| Some(line.strip_prefix(&start)?.strip_suffix('"')?.to_owned()))
    };
    let entry =
        |block: &str| Some(((value(block, "name")?, value(block, "version")?), value(block, "checksum")?));
    lock.split("[[package]]").filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_builds_and_tests_is_left_out() {
        let package = |name: &str| {
            format!(
                r#"{{"id":"{name}","name":"{name}","version":"1.0.0","license":"MIT/Apache-2.0",
                    "repository":null,"manifest_path":"/r/{name}/Cargo.toml"}}"#
            )
        };
        let packages: Vec<_> = ["interceptor", "used", "below", "builds", "tests"].map(package).into();
        let metadata = format!(
            r#"{{"packages":[{}],"resolve":{{"nodes":[
                {{"id":"interceptor","deps":[{{"pkg":"used","dep_kinds":[{{"kind":null}}]}},
                    {{"pkg":"builds","dep_kinds":[{{"kind":"build"}}]}},{{"pkg":"tests","dep_kinds":[{{"kind":"dev"}}]}}]}},
                {{"id":"used","deps":[{{"pkg":"below","dep_kinds":[{{"kind":"build"}},{{"kind":null}}]}}]}},
                {{"id":"below","deps":[]}}]}}}}"#,
            packages.join(",")
        );
        let lock = "version = 4\n\n[[package]]\nname = \"used\"\nversion = \"1.0.0\"\nchecksum = \"abc\"\n\n\
                    [[package]]\nname = \"interceptor\"\nversion = \"1.0.0\"\n";
        let graph = DependencyGraph::parse(metadata.as_bytes(), &checksums(lock), &["interceptor"]).unwrap();
        let names: Vec<_> = graph.crates.iter().map(|found| found.name.as_str()).collect();
        assert_eq!(names, ["below", "interceptor", "used"]);
        assert_eq!(graph.crates[1].uses, ["pkg:cargo/used@1.0.0"]);
        assert_eq!(graph.crates[2].sha256.as_deref(), Some("abc"));
        assert_eq!(graph.crates[2].license.as_deref(), Some("MIT OR Apache-2.0"));
        assert!(graph.crates[1].is_own());
    }
}
