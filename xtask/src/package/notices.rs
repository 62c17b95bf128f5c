//! The licences: that of this project, and the texts of those of the crates in the programs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result};

use super::NAME;
use super::dependencies::{Crate, DependencyGraph};

/// How the names of files with licences begin, in capitals.
const NAMES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"];

/// The file `copyright` of a deb.
pub(super) fn copyright() -> String {
    format!(
        "Copyright: the authors of {NAME}\nLicense: Apache-2.0\n\n\
         The text of the licence is in LICENSE beside this file, and on Debian systems in\n\
         /usr/share/common-licenses/Apache-2.0. The licences of the crates that the programs are made of\n\
         are in THIRD-PARTY-LICENSES.txt beside this file.\n"
    )
}

/// Each text once, behind the crates that have it.
pub(super) fn third_party(dependencies: &DependencyGraph) -> Result<String> {
    let mut owners: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut list = String::new();
    for found in dependencies.crates.iter().filter(|found| !found.is_own()) {
        let texts = texts(found)?;
        let license = found.license.as_deref().unwrap_or("see its text below");
        let without_text = if texts.is_empty() { " (it ships no text)" } else { "" };
        let _ = writeln!(list, "{} {}: {license}{without_text}", found.name, found.version);
        for text in texts {
            owners.entry(text).or_default().push(format!("{} {}", found.name, found.version));
        }
    }
    let mut document = format!("The programs of {NAME} are made of these crates, too:\n\n{list}");
    let mut texts: Vec<_> = owners.into_iter().collect();
    texts.sort_by(|one, other| one.1.cmp(&other.1));
    for (text, owners) in texts {
        let _ = write!(document, "\n{}\n{}:\n\n{}\n", "=".repeat(80), owners.join(", "), text);
    }
    Ok(document)
}

/// The texts beside the manifest of a crate.
fn texts(found: &Crate) -> Result<Vec<String>> {
    let entries = fs::read_dir(&found.directory)
        .with_context(|| format!("cannot list {}", found.directory.display()))?;
    let mut texts = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_ascii_uppercase();
        if entry.file_type()?.is_file() && NAMES.iter().any(|start| name.starts_with(start)) {
            let text = String::from_utf8_lossy(&fs::read(entry.path())?).replace('\r', "");
            texts.push(text.trim().to_owned());
        }
    }
    texts.sort();
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_crates_share_is_there_once() {
        let directory = tempfile::tempdir().unwrap();
        let made = |name: &str, text: Option<&str>| {
            let directory = directory.path().join(name);
            fs::create_dir(&directory).unwrap();
            if let Some(text) = text {
                fs::write(directory.join("LICENSE-MIT"), text).unwrap();
            }
            Crate {
                name: name.into(),
                version: "1".into(),
                license: Some("MIT".into()),
                directory,
                sha256: Some("x".into()),
                repository: None,
                uses: Vec::new(),
            }
        };
        let crates = vec![made("a", Some("the text\r\n")), made("b", Some("the text\n")), made("c", None)];
        let document = third_party(&DependencyGraph { crates }).unwrap();
        assert_eq!(document.matches("the text").count(), 1, "{document}");
        assert!(document.contains("a 1, b 1:"), "{document}");
        assert!(document.contains("c 1: MIT (it ships no text)"), "{document}");
    }
}
