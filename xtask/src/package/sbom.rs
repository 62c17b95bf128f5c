//! The software bill of materials, in the format of CycloneDX 1.5.

use anyhow::Result;
use serde_json::{Value, json};

use super::dependencies::{Crate, DependencyGraph};
use super::{NAME, PackageIdentity};

/// The document, with each crate in the programs and which of them uses which.
pub(super) fn document(dependencies: &DependencyGraph, identity: &PackageIdentity) -> Result<String> {
    let version = &identity.version;
    let name = format!("pkg:generic/{NAME}@{version}");
    let own = dependencies.crates.iter().filter(|found| found.is_own());
    let top = json!({ "ref": name, "dependsOn": own.map(Crate::url).collect::<Vec<_>>() });
    let uses = dependencies.crates.iter().map(|found| json!({ "ref": found.url(), "dependsOn": found.uses }));
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": name,
                "name": NAME,
                "version": version,
                "licenses": [{ "license": { "id": "Apache-2.0" } }],
            },
        },
        "components": dependencies.crates.iter().map(component).collect::<Vec<_>>(),
        "dependencies": std::iter::once(top).chain(uses).collect::<Vec<_>>(),
    });
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

fn component(found: &Crate) -> Value {
    let mut component = json!({
        "type": "library",
        "bom-ref": found.url(),
        "name": found.name,
        "version": found.version,
        "purl": found.url(),
    });
    if let Some(license) = &found.license {
        component["licenses"] = json!([{ "expression": license }]);
    }
    if let Some(sha256) = &found.sha256 {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": sha256 }]);
    }
    if let Some(repository) = &found.repository {
        component["externalReferences"] = json!([{ "type": "vcs", "url": repository }]);
    }
    component
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::zig::Architecture;

    #[test]
    fn every_reference_leads_to_a_component() {
        let dependencies = DependencyGraph::read(Architecture::Amd64).unwrap();
        let identity =
            PackageIdentity { version: "1.2.3".into(), time: 0, architecture: Architecture::Amd64 };
        let document: Value = serde_json::from_str(&document(&dependencies, &identity).unwrap()).unwrap();
        let components = document["components"].as_array().unwrap();
        let known: Vec<_> =
            components.iter().map(|component| component["bom-ref"].as_str().unwrap()).collect();
        for name in ["pkg:cargo/interceptor@", "pkg:cargo/fuser@", "pkg:cargo/ring@", "pkg:cargo/aya-ebpf@"] {
            assert!(known.iter().any(|reference| reference.starts_with(name)), "{name}");
        }
        for name in ["pkg:cargo/protox@", "pkg:cargo/proptest@", "pkg:cargo/xtask@"] {
            assert!(!known.iter().any(|reference| reference.starts_with(name)), "{name}");
        }
        for dependency in document["dependencies"].as_array().unwrap() {
            for used in dependency["dependsOn"].as_array().unwrap() {
                assert!(known.contains(&used.as_str().unwrap()), "{used}");
            }
        }
    }
}
