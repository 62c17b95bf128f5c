//! Names of what is on disk: digests of what identifies bytes for ever.

use std::fmt;

use ring::digest::{Context, SHA256};

/// Identifies a cluster, as far as a filer tells: names of different clusters never meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterIdentity([u8; 32]);

impl ClusterIdentity {
    /// The identity by the name of the cluster and the signature of the filer's store. The
    /// signature is a random number that the store gets when it is made, so a cluster that was
    /// wiped and made anew under the same addresses has another. `None` if the filer tells
    /// neither: then nothing may be kept.
    pub fn new(cluster_id: &str, signature: i32) -> Option<Self> {
        let is_known = !cluster_id.is_empty() || signature != 0;
        is_known.then(|| Self(digest(&[b"cluster", cluster_id.as_bytes(), &signature.to_le_bytes()])))
    }

    /// The name of what `parts` identify within this cluster. Things of another `kind` have other
    /// names.
    pub fn name(&self, kind: &str, parts: &[&[u8]]) -> DiskName {
        let parts: Vec<_> = [&self.0[..], kind.as_bytes()].into_iter().chain(parts.iter().copied()).collect();
        DiskName(digest(&parts))
    }
}

/// The digest of `parts`, each of them after its length, so that no two lists have the same input.
fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

/// The name of an object, or of a file, on disk. Says nothing about names in the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiskName(pub(super) [u8; 32]);

impl DiskName {
    /// The name that `text` is the display of.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut name = [0; 32];
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != name.len() || !rest.is_empty() {
            return None;
        }
        for (byte, [high, low]) in name.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Some(Self(name))
    }

    /// 64 bits of the name, as random as any others.
    pub(super) fn hash(&self) -> u64 {
        let [first, ..] = self.0.as_chunks::<8>().0 else { return 0 };
        u64::from_le_bytes(*first)
    }
}

impl fmt::Display for DiskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for DiskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_kinds_and_parts_all_make_other_names() {
        let clusters = [("a", 1), ("a", 2), ("b", 1), ("", 1)];
        let clusters = clusters.map(|(id, signature)| ClusterIdentity::new(id, signature).unwrap());
        let mut names = Vec::new();
        for cluster in clusters {
            for kind in ["object", "file"] {
                for parts in [&[&b"ab"[..], b"c"], &[b"a", b"bc"]] {
                    names.push(cluster.name(kind, parts));
                }
            }
        }
        let total = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), total);
        assert_eq!(ClusterIdentity::new("", 0), None);
    }

    #[test]
    fn a_name_is_parsed_from_its_display_alone() {
        let name = ClusterIdentity::new("c", 1).unwrap().name("object", &[]);
        let text = name.to_string();
        assert_eq!(DiskName::parse(&text), Some(name));
        for wrong in [&text[1..], &text.to_uppercase(), &format!("{text}00"), "", &text.replace('a', "g")] {
            assert!(wrong == text || DiskName::parse(wrong).is_none(), "{wrong}");
        }
    }
}
