//! What a program needs of the system it runs on: libraries, and a version of the C library.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, Result, ensure};

/// A version of glibc.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LibcVersion {
    major: u32,
    minor: u32,
}

impl fmt::Display for LibcVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Needs of a program.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Needs {
    /// The newest version of the C library of which a symbol is used.
    pub(super) libc: LibcVersion,
    /// Shared libraries.
    pub(super) libraries: Vec<String>,
}

/// The dynamic section, and the entries in it.
const SHT_DYNAMIC: u32 = 6;
const DT_NEEDED: u64 = 1;

impl Needs {
    /// Reads them from a program for a 64-bit little-endian machine.
    pub(super) fn of(program: &[u8]) -> Result<Self> {
        ensure!(program.starts_with(b"\x7fELF\x02\x01"), "no ELF program of 64 bits");
        let sections = Sections { program };
        let dynamic = sections.all()?.into_iter().find(|section| section.kind == SHT_DYNAMIC);
        let dynamic = dynamic.context("a program without shared libraries")?;
        let strings = sections.bytes(sections.all()?.get(dynamic.link as usize).context("no strings")?)?;
        let entries = sections.bytes(&dynamic)?.chunks_exact(16);
        let needed = entries.filter(|entry| number(entry, 0, 8) == Some(DT_NEEDED));
        let libraries = needed.map(|entry| text(strings, number(entry, 8, 8).unwrap_or(u64::MAX)));
        // Names of versions are among the strings.
        let versions: BTreeSet<_> = strings.split(|byte| *byte == 0).filter_map(libc_version).collect();
        let libc = *versions.last().context("it uses no symbol of the C library")?;
        Ok(Self { libc, libraries: libraries.collect::<Option<_>>().context("a library without a name")? })
    }
}

/// `GLIBC_2.31`, but not `GLIBC_PRIVATE`.
fn libc_version(name: &[u8]) -> Option<LibcVersion> {
    let mut parts = std::str::from_utf8(name).ok()?.strip_prefix("GLIBC_")?.split('.');
    Some(LibcVersion { major: parts.next()?.parse().ok()?, minor: parts.next()?.parse().ok()? })
}

struct Sections<'a> {
    program: &'a [u8],
}

struct Section {
    kind: u32,
    offset: u64,
    size: u64,
    /// The number of another section.
    link: u32,
}

impl<'a> Sections<'a> {
    fn all(&self) -> Result<Vec<Section>> {
        let field = |at, len| number(self.program, at, len).context("the program is cut off");
        let (table, size, count) = (field(0x28, 8)?, field(0x3a, 2)?, field(0x3c, 2)?);
        let section = |index: u64| {
            let at = usize::try_from(table.checked_add(index * size)?).ok()?;
            let header = self.program.get(at..at.checked_add(64)?)?;
            Some(Section {
                kind: number(header, 4, 4)? as u32,
                offset: number(header, 0x18, 8)?,
                size: number(header, 0x20, 8)?,
                link: number(header, 0x28, 4)? as u32,
            })
        };
        (0..count).map(section).collect::<Option<_>>().context("the table of sections is cut off")
    }

    fn bytes(&self, section: &Section) -> Result<&'a [u8]> {
        let range = || {
            let start = usize::try_from(section.offset).ok()?;
            self.program.get(start..start.checked_add(usize::try_from(section.size).ok()?)?)
        };
        range().context("a section is cut off")
    }
}

/// The number of `len` bytes at `at`.
fn number(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let mut padded = [0; 8];
    padded[..len].copy_from_slice(bytes.get(at..at + len)?);
    Some(u64::from_le_bytes(padded))
}

/// The string at `at`, which ends with NUL.
fn text(strings: &[u8], at: u64) -> Option<String> {
    let tail = strings.get(usize::try_from(at).ok()?..)?;
    let end = tail.iter().position(|byte| *byte == 0)?;
    Some(std::str::from_utf8(&tail[..end]).ok()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_needs_the_c_library() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let needs = Needs::of(&own).unwrap();
        assert!(needs.libraries.iter().any(|name| name == "libc.so.6"), "{needs:?}");
        assert!(needs.libc >= LibcVersion { major: 2, minor: 17 }, "{needs:?}");
        // Whatever is cut off, nothing panics.
        for len in [0, 6, 16, 63, 64, own.len() / 2] {
            assert!(Needs::of(&own[..len]).is_err());
        }
    }

    #[test]
    fn versions_are_ordered_by_number() {
        let version = |name: &str| libc_version(name.as_bytes());
        assert!(version("GLIBC_2.9").unwrap() < version("GLIBC_2.31").unwrap());
        assert_eq!(version("GLIBC_2.2.5").unwrap().to_string(), "2.2");
        assert_eq!(version("GLIBC_PRIVATE"), None);
        assert_eq!(version("GCC_3.0"), None);
    }
}
