//! Where the running kernel keeps a field, from the description of its types that it carries (BTF, `Documentation/bpf/btf.rst` of
//! the kernel).
//!
//! `/sys/kernel/btf/vmlinux` describes the kernel, `/sys/kernel/btf/fuse` the FUSE module where it is one; a module's
//! types and strings are numbered on from the kernel's. One pass over both finds where each type begins and what the named ones are called, a
//! few milliseconds; only what is asked for is looked at more closely.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

/// Where the kernel describes itself.
const KERNEL: &str = "/sys/kernel/btf/vmlinux";
/// Where it describes FUSE, if that is a module.
const FUSE_MODULE: &str = "/sys/kernel/btf/fuse";

/// Kinds of types, by their numbers in BTF.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FWD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// Deepest nesting that is followed; real types have less, broken ones may have a loop.
const DEPTH: u32 = 32;

/// Why there are no types.
#[derive(Debug, thiserror::Error)]
pub(super) enum TypesError {
    /// The kernel does not describe itself.
    #[error("{path}: {source}")]
    Unreadable {
        /// Which file.
        path: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The description is not understood.
    #[error("{path} is not understood")]
    Malformed {
        /// Which file.
        path: &'static str,
    },
}

/// The types of the kernel, and those of its FUSE module.
pub(super) struct Types {
    /// Of each type, from number 1: in which part, and where in it.
    places: Vec<(u8, u32)>,
    parts: Vec<Part>,
    /// Structures and unions by name.
    structures: HashMap<String, u32>,
    /// Enumerators by name: their value.
    enumerators: HashMap<String, u32>,
}

/// One file.
struct Part {
    types: Vec<u8>,
    strings: Vec<u8>,
    /// The offset of its first string, after those of the parts before.
    first_string: u32,
}

impl Types {
    /// Those of the running kernel.
    pub(super) fn of_kernel() -> Result<Self, TypesError> {
        let read = |path| fs::read(path).map_err(|source| TypesError::Unreadable { path, source });
        let kernel = read(KERNEL)?;
        let module = if Path::new(FUSE_MODULE).exists() { Some(read(FUSE_MODULE)?) } else { None };
        let mut types = Self::parse(&kernel).ok_or(TypesError::Malformed { path: KERNEL })?;
        if let Some(module) = module {
            types.add(&module).ok_or(TypesError::Malformed { path: FUSE_MODULE })?;
        }
        Ok(types)
    }

    /// Whether FUSE is a module, whose functions and tracepoints are not in the kernel's own list.
    pub(super) fn fuse_is_module(&self) -> bool {
        self.parts.len() > 1
    }

    fn parse(data: &[u8]) -> Option<Self> {
        let mut types = Self {
            places: Vec::new(),
            parts: Vec::new(),
            structures: HashMap::new(),
            enumerators: HashMap::new(),
        };
        types.add(data)?;
        Some(types)
    }

    /// Takes in one file whose types go on from those that are known.
    fn add(&mut self, data: &[u8]) -> Option<()> {
        const MAGIC: u16 = 0xeb9f;
        if u16::from_ne_bytes(data.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let section = |at: usize| {
            let from = (word(data, 4)?.checked_add(word(data, at)?)?) as usize;
            let length = word(data, at + 4)? as usize;
            data.get(from..from.checked_add(length)?)
        };
        let first_string = match self.parts.last() {
            Some(before) => before.first_string + u32::try_from(before.strings.len()).ok()?,
            None => 0,
        };
        let part = Part { types: section(8)?.to_vec(), strings: section(16)?.to_vec(), first_string };
        let number = u8::try_from(self.parts.len()).ok()?;
        self.parts.push(part);

        let mut at = 0;
        while at < self.parts[usize::from(number)].types.len() {
            self.places.push((number, u32::try_from(at).ok()?));
            let id = u32::try_from(self.places.len()).ok()?;
            let length = self.take(id)?;
            at += length;
        }
        Some(())
    }

    /// Enters a type under its name; gives its length.
    fn take(&mut self, id: u32) -> Option<usize> {
        let entry = self.entry(id)?;
        let count = entry.count() as usize;
        let more = match entry.kind() {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * count,
            kind::ENUM | kind::FUNC_PROTO => 8 * count,
            kind::PTR | kind::FWD | kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT => 0,
            kind::FUNC | kind::FLOAT | kind::TYPE_TAG => 0,
            _ => return None,
        };
        let name = self.name(entry.name()?);
        match entry.kind() {
            kind::STRUCT | kind::UNION if !name.is_empty() => {
                let name = name.to_owned();
                self.structures.entry(name).or_insert(id);
            }
            kind::ENUM => {
                let named: Vec<(String, u32)> = (0..count)
                    .filter_map(|i| {
                        let (name, value) = (entry.word(12 + 8 * i)?, entry.word(16 + 8 * i)?);
                        Some((self.name(name).to_owned(), value))
                    })
                    .collect();
                self.enumerators.extend(named);
            }
            _ => {}
        }
        Some(12 + more)
    }

    fn entry(&self, id: u32) -> Option<Entry<'_>> {
        let (part, at) = *self.places.get(usize::try_from(id).ok()?.checked_sub(1)?)?;
        Some(Entry(self.parts[usize::from(part)].types.get(at as usize..)?))
    }

    fn name(&self, offset: u32) -> &str {
        let part = self.parts.iter().rev().find(|part| part.first_string <= offset);
        let text = part.and_then(|part| part.strings.get((offset - part.first_string) as usize..));
        let end = text.and_then(|text| text.iter().position(|byte| *byte == 0));
        match (text, end) {
            (Some(text), Some(end)) => std::str::from_utf8(&text[..end]).unwrap_or_default(),
            _ => "",
        }
    }

    /// Where the field `path` of a structure is, in bits from its beginning. The path goes through structures that are
    /// embedded, named (`in.h.opcode`) or not, and into the first element of arrays.
    pub(super) fn bit_offset(&self, structure: &str, path: &str) -> Option<u32> {
        let mut id = *self.structures.get(structure)?;
        let mut offset = 0;
        for field in path.split('.') {
            let (within, of) = self.member(id, field, DEPTH)?;
            offset += within;
            id = of;
        }
        Some(offset)
    }

    /// The value of an enumerator.
    pub(super) fn enumerator(&self, name: &str) -> Option<u32> {
        self.enumerators.get(name).copied()
    }

    /// The place, in bits, and type of a member, looked for in embedded structures without a name too.
    fn member(&self, id: u32, wanted: &str, depth: u32) -> Option<(u32, u32)> {
        let entry = self.entry(self.plain(id)?)?;
        if !matches!(entry.kind(), kind::STRUCT | kind::UNION) || depth == 0 {
            return None;
        }
        for i in 0..entry.count() as usize {
            let [name, of, place] = [0, 4, 8].map(|field| entry.word(12 + 12 * i + field));
            // The high byte is the width of a bit field, where the structure has any.
            let place = if entry.has_bit_fields() { place? & 0x00ff_ffff } else { place? };
            match self.name(name?) {
                "" => {
                    if let Some((within, found)) = self.member(of?, wanted, depth - 1) {
                        return Some((place + within, found));
                    }
                }
                name if name == wanted => return Some((place, of?)),
                _ => {}
            }
        }
        None
    }

    /// The type behind qualifiers, other names and arrays.
    fn plain(&self, mut id: u32) -> Option<u32> {
        for _ in 0..DEPTH {
            let entry = self.entry(id)?;
            id = match entry.kind() {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    entry.word(8)?
                }
                kind::ARRAY => entry.word(12)?,
                _ => return Some(id),
            };
        }
        None
    }
}

/// `struct btf_type` and what follows it.
struct Entry<'a>(&'a [u8]);

impl Entry<'_> {
    fn word(&self, at: usize) -> Option<u32> {
        word(self.0, at)
    }

    fn name(&self) -> Option<u32> {
        self.word(0)
    }

    fn info(&self) -> u32 {
        self.word(4).unwrap_or(0)
    }

    fn kind(&self) -> u32 {
        self.info() >> 24 & 0x1f
    }

    fn count(&self) -> u32 {
        self.info() & 0xffff
    }

    fn has_bit_fields(&self) -> bool {
        self.info() >> 31 != 0
    }
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests;
