use proptest::prelude::*;

use super::super::offsets::{OWNER_CONNECTION, REQUEST_OWNER, ResolvedOffsets};
use super::*;

/// Encodes BTF.
#[derive(Default)]
struct Writer {
    types: Vec<u8>,
    strings: Vec<u8>,
    first_string: u32,
}

impl Writer {
    fn after(kernel: &Writer) -> Self {
        Self { first_string: kernel.strings.len() as u32, ..Self::default() }
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        if self.strings.is_empty() && self.first_string == 0 {
            self.strings.push(0);
        }
        let at = self.first_string + self.strings.len() as u32;
        self.strings.extend(name.bytes().chain([0]));
        at
    }

    fn add(&mut self, name: &str, kind: u32, count: u32, size: u32, rest: &[u32]) {
        let name = self.name(name);
        for word in [name, kind << 24 | count, size].iter().chain(rest) {
            self.types.extend(word.to_ne_bytes());
        }
    }

    fn finish(&self) -> Vec<u8> {
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        let mut data = 0xeb9f_u16.to_ne_bytes().to_vec();
        data.extend([1, 0]);
        data.extend([24, 0, types, types, strings].iter().flat_map(|word| word.to_ne_bytes()));
        data.extend(&self.types);
        data.extend(&self.strings);
        data
    }
}

/// ```c
/// typedef struct { u32 a; struct { u32 b; bool c: 1, d: 1; } ; } inner;
/// struct outer { u32 first; const inner many[2]; };
/// ```
fn kernel() -> Writer {
    let mut writer = Writer::default();
    writer.add("u32", kind::INT, 0, 4, &[32]); // 1
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| writer.name(name));
    let bit_fields = 1 << 31;
    writer.add("", kind::STRUCT, bit_fields | 3, 8, &[b, 1, 0, c, 1, 1 << 24 | 32, d, 1, 1 << 24 | 33]); // 2
    writer.add("", kind::STRUCT, 2, 12, &[a, 1, 0, 0, 2, 32]); // 3
    writer.add("inner", kind::TYPEDEF, 0, 3, &[]); // 4
    writer.add("", kind::CONST, 0, 4, &[]); // 5
    writer.add("", kind::ARRAY, 0, 0, &[5, 1, 2]); // 6
    let [first, many] = ["first", "many"].map(|name| writer.name(name));
    writer.add("outer", kind::STRUCT, 2, 28, &[first, 1, 0, many, 6, 32]); // 7
    let green = writer.name("GREEN");
    writer.add("colour", kind::ENUM, 1, 4, &[green, 6]); // 8
    writer
}

#[test]
fn fields_are_found_through_typedefs_qualifiers_arrays_and_anonymous_members() {
    let types = KernelBtf::parse(&kernel().finish()).unwrap();
    assert_eq!(types.bit_offset("outer", "first"), Some(0));
    assert_eq!(types.bit_offset("outer", "many"), Some(32));
    assert_eq!(types.bit_offset("outer", "many.a"), Some(32));
    assert_eq!(types.bit_offset("outer", "many.b"), Some(64));
    assert_eq!(types.bit_offset("outer", "many.d"), Some(97));
    assert_eq!(types.enumerator("GREEN"), Some(6));
    for (structure, path) in [("outer", "none"), ("inner", "a"), ("outer", "first.a"), ("outer", "")] {
        assert_eq!(types.bit_offset(structure, path), None, "{structure} {path}");
    }
}

#[test]
fn split_btf_of_a_module_continues_the_kernels_ids() {
    let kernel = kernel();
    let mut module = Writer::after(&kernel);
    let held = module.name("held");
    module.add("holder", kind::STRUCT, 1, 32, &[held, 7, 64]);
    let mut types = KernelBtf::parse(&kernel.finish()).unwrap();
    assert!(!types.fuse_is_module());
    types.add(&module.finish()).unwrap();
    assert!(types.fuse_is_module());
    assert_eq!(types.bit_offset("holder", "held.many.b"), Some(128));
}

#[test]
fn what_a_request_belongs_to_is_a_mount_or_a_channel() {
    for (owner, held_by, connection) in [("fm", "fuse_mount", "fc"), ("chan", "fuse_chan", "conn")] {
        let mut writer = Writer::default();
        writer.add("u64", kind::INT, 0, 8, &[64]); // 1
        let [owner, connection] = [owner, connection].map(|name| writer.name(name));
        writer.add("fuse_req", kind::STRUCT, 1, 152, &[owner, 1, 144 * 8]); // 2
        writer.add(held_by, kind::STRUCT, 1, 16, &[connection, 1, 8 * 8]); // 3
        let resolved = ResolvedOffsets::resolve(&KernelBtf::parse(&writer.finish()).unwrap());
        assert_eq!(resolved.missing(&[REQUEST_OWNER, OWNER_CONNECTION]), [""; 0]);
        assert_eq!((resolved.offsets.request_owner, resolved.offsets.owner_connection), (144, 8));
    }
}

#[test]
fn a_cycle_of_types_ends() {
    let mut writer = Writer::default();
    writer.add("loop", kind::STRUCT, 1, 4, &[0, 1, 0]);
    writer.add("turn", kind::TYPEDEF, 0, 2, &[]);
    let types = KernelBtf::parse(&writer.finish()).unwrap();
    assert_eq!(types.bit_offset("loop", "field"), None);
}

proptest! {
    #[test]
    fn malformed_btf_is_rejected_or_harmless(at in 0usize..400, byte: u8, cut in 0usize..400) {
        let mut data = kernel().finish();
        let at = at % data.len();
        data[at] = byte;
        data.truncate(data.len() - cut % 40);
        if let Some(types) = KernelBtf::parse(&data) {
            types.bit_offset("outer", "many.b");
        }
    }
}
