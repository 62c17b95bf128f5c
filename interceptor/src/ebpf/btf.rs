//! Offsets of kernel structure fields, from the BTF of the running kernel
//! (`Documentation/bpf/btf.rst` of the kernel).
//!
//! `/sys/kernel/btf/vmlinux` describes the kernel, `/sys/kernel/btf/fuse` the FUSE module if FUSE
//! is built as one. The module's is *split BTF*: its type ids and string offsets continue those
//! of the kernel. One pass over both files records where each type starts and indexes the named
//! ones, which takes a few milliseconds; members are decoded only when a field is looked up.
//!
//! The parser is written by hand because nothing at hand offers member offsets. `Btf` of aya-obj
//! 0.3 finds a type's id by name, but keeps types, members and enumerators private to the crate
//! and reads no split BTF. aya's CO-RE relocations need access records in the object that clang
//! emits and rustc does not. `btf-rs` parses both files, but is under the LGPL, which static
//! linking does not suit.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";
const FUSE_MODULE_BTF: &str = "/sys/kernel/btf/fuse";

/// `BTF_KIND_…` of `linux/btf.h`.
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

/// Deepest nesting of types that is followed. Real types nest less; malformed ones may have a
/// cycle.
const MAX_DEPTH: u32 = 32;

/// The kernel's BTF cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum BtfReadError {
    /// The file cannot be read; a kernel without `CONFIG_DEBUG_INFO_BTF` has none.
    #[error("{path}: {source}")]
    Unreadable {
        /// The file under `/sys/kernel/btf`.
        path: &'static str,
        /// The error of reading it.
        source: io::Error,
    },
    /// The file is not valid BTF.
    #[error("{path} is not understood")]
    Malformed {
        /// The file under `/sys/kernel/btf`.
        path: &'static str,
    },
}

/// The types of the kernel and of its FUSE module.
pub(super) struct KernelBtf {
    /// By type id minus 1: the index of the blob in `blobs`, and the type's offset in its types.
    types: Vec<(u8, u32)>,
    blobs: Vec<BtfBlob>,
    /// Structures and unions: name to type id.
    structures: HashMap<String, u32>,
    /// Enumerators: name to value.
    enumerators: HashMap<String, u32>,
}

/// The type and string sections of one BTF file.
struct BtfBlob {
    types: Vec<u8>,
    strings: Vec<u8>,
    /// The string offset at which this file's own strings start, after those of earlier files.
    first_string: u32,
}

impl KernelBtf {
    /// Reads the BTF of the running kernel, and of its FUSE module if there is one.
    pub(super) fn of_running_kernel() -> Result<Self, BtfReadError> {
        let read = |path| fs::read(path).map_err(|source| BtfReadError::Unreadable { path, source });
        let kernel = read(VMLINUX_BTF)?;
        let module = if Path::new(FUSE_MODULE_BTF).exists() { Some(read(FUSE_MODULE_BTF)?) } else { None };
        let mut types = Self::parse(&kernel).ok_or(BtfReadError::Malformed { path: VMLINUX_BTF })?;
        if let Some(module) = module {
            types.add(&module).ok_or(BtfReadError::Malformed { path: FUSE_MODULE_BTF })?;
        }
        Ok(types)
    }

    /// Whether FUSE is a module. Its functions and tracepoints are then absent from vmlinux BTF.
    pub(super) fn fuse_is_module(&self) -> bool {
        self.blobs.len() > 1
    }

    fn parse(data: &[u8]) -> Option<Self> {
        let mut types = Self {
            types: Vec::new(),
            blobs: Vec::new(),
            structures: HashMap::new(),
            enumerators: HashMap::new(),
        };
        types.add(data)?;
        Some(types)
    }

    /// Adds one file whose type ids and string offsets continue those already added.
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
        let first_string = match self.blobs.last() {
            Some(before) => before.first_string + u32::try_from(before.strings.len()).ok()?,
            None => 0,
        };
        let blob = BtfBlob { types: section(8)?.to_vec(), strings: section(16)?.to_vec(), first_string };
        let number = u8::try_from(self.blobs.len()).ok()?;
        self.blobs.push(blob);

        let mut at = 0;
        while at < self.blobs[usize::from(number)].types.len() {
            self.types.push((number, u32::try_from(at).ok()?));
            let id = u32::try_from(self.types.len()).ok()?;
            let length = self.index(id)?;
            at += length;
        }
        Some(())
    }

    /// Indexes a type by its name. Returns the length of its record in bytes.
    fn index(&mut self, id: u32) -> Option<usize> {
        let btf_type = self.btf_type(id)?;
        let count = btf_type.count() as usize;
        let more = match btf_type.kind() {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * count,
            kind::ENUM | kind::FUNC_PROTO => 8 * count,
            kind::PTR | kind::FWD | kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT => 0,
            kind::FUNC | kind::FLOAT | kind::TYPE_TAG => 0,
            _ => return None,
        };
        let name = self.name(btf_type.name()?);
        match btf_type.kind() {
            kind::STRUCT | kind::UNION if !name.is_empty() => {
                let name = name.to_owned();
                self.structures.entry(name).or_insert(id);
            }
            kind::ENUM => {
                let named: Vec<(String, u32)> = (0..count)
                    .filter_map(|i| {
                        let (name, value) = (btf_type.word(12 + 8 * i)?, btf_type.word(16 + 8 * i)?);
                        Some((self.name(name).to_owned(), value))
                    })
                    .collect();
                self.enumerators.extend(named);
            }
            _ => {}
        }
        Some(12 + more)
    }

    fn btf_type(&self, id: u32) -> Option<BtfType<'_>> {
        let (blob, at) = *self.types.get(usize::try_from(id).ok()?.checked_sub(1)?)?;
        Some(BtfType(self.blobs[usize::from(blob)].types.get(at as usize..)?))
    }

    fn name(&self, offset: u32) -> &str {
        let blob = self.blobs.iter().rev().find(|blob| blob.first_string <= offset);
        let text = blob.and_then(|blob| blob.strings.get((offset - blob.first_string) as usize..));
        let end = text.and_then(|text| text.iter().position(|byte| *byte == 0));
        match (text, end) {
            (Some(text), Some(end)) => std::str::from_utf8(&text[..end]).unwrap_or_default(),
            _ => "",
        }
    }

    /// The offset of the field `path` of a structure, in bits from its start. The path descends
    /// through embedded structures (`in.h.opcode`), through anonymous ones without naming them,
    /// and into the first element of arrays.
    pub(super) fn bit_offset(&self, structure: &str, path: &str) -> Option<u32> {
        let mut id = *self.structures.get(structure)?;
        let mut offset = 0;
        for field in path.split('.') {
            let (within, of) = self.member(id, field, MAX_DEPTH)?;
            offset += within;
            id = of;
        }
        Some(offset)
    }

    /// The value of an enumerator.
    pub(super) fn enumerator(&self, name: &str) -> Option<u32> {
        self.enumerators.get(name).copied()
    }

    /// The bit offset and type id of a member; anonymous members are searched too.
    fn member(&self, id: u32, member_name: &str, depth: u32) -> Option<(u32, u32)> {
        let btf_type = self.btf_type(self.resolve(id)?)?;
        if !matches!(btf_type.kind(), kind::STRUCT | kind::UNION) || depth == 0 {
            return None;
        }
        for i in 0..btf_type.count() as usize {
            let [name, member_type, offset] = [0, 4, 8].map(|field| btf_type.word(12 + 12 * i + field));
            // With `kind_flag` set, the high byte of the offset is the width of the bit field.
            let offset = if btf_type.has_bit_fields() { offset? & 0x00ff_ffff } else { offset? };
            match self.name(name?) {
                "" => {
                    if let Some((within, found)) = self.member(member_type?, member_name, depth - 1) {
                        return Some((offset + within, found));
                    }
                }
                name if name == member_name => return Some((offset, member_type?)),
                _ => {}
            }
        }
        None
    }

    /// The type id behind typedefs, qualifiers, type tags and arrays.
    fn resolve(&self, mut id: u32) -> Option<u32> {
        for _ in 0..MAX_DEPTH {
            let btf_type = self.btf_type(id)?;
            id = match btf_type.kind() {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    btf_type.word(8)?
                }
                kind::ARRAY => btf_type.word(12)?,
                _ => return Some(id),
            };
        }
        None
    }
}

/// A `struct btf_type` and the bytes after it: its members, enumerators or parameters.
struct BtfType<'a>(&'a [u8]);

impl BtfType<'_> {
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
