//! `interceptor/proto/filer.proto` declares a part of the filer's protocol, in the same way as the
//! `weed` program.
//!
//! The code that `protoc-gen-go` generates contains the serialized descriptor of each `.proto`
//! file, so the descriptor is in the program. What `weed` declares beyond our file is listed by
//! `cargo test --release -p tests --test descriptors -- --nocapture`.

use std::fs;
use std::path::Path;

use protox::prost::Message;
use protox::prost::encoding::decode_varint;
use protox::prost_reflect::prost_types::field_descriptor_proto::{Label, Type};
use protox::prost_reflect::prost_types::{FileDescriptorProto, FileDescriptorSet};
use protox::prost_reflect::{DescriptorPool, FieldDescriptor, MethodDescriptor};
use tests::tools;

/// The file, under the name that both compilers give it.
const FILE: &str = "filer.proto";

/// What our file declares.
fn our_descriptors() -> FileDescriptorSet {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../interceptor/proto");
    protox::compile([FILE], [directory]).unwrap()
}

fn pool(descriptors: FileDescriptorSet) -> DescriptorPool {
    DescriptorPool::from_file_descriptor_set(descriptors).unwrap()
}

/// The descriptor of the file in a program.
fn embedded_descriptor(program: &[u8]) -> Option<FileDescriptorProto> {
    // The first field is the file's name.
    let start = [&[1 << 3 | 2, FILE.len() as u8], FILE.as_bytes()].concat();
    let candidates = program.windows(start.len()).enumerate().filter(|(_, bytes)| *bytes == start);
    candidates.map(|(offset, _)| &program[offset..]).find_map(|bytes| {
        let length = descriptor_length(bytes)?;
        FileDescriptorProto::decode(&bytes[..length]).ok()
    })
}

/// The length of the serialized `FileDescriptorProto` that `bytes` start with. No length precedes
/// it, but in a file of proto3 `syntax` is the last field.
fn descriptor_length(bytes: &[u8]) -> Option<usize> {
    const SYNTAX: u64 = 12;
    const VARINT: u64 = 0;
    const LENGTH_DELIMITED: u64 = 2;
    let mut rest = bytes;
    loop {
        let tag = decode_varint(&mut rest).ok()?;
        let (field, wire_type) = (tag >> 3, tag & 7);
        let value = decode_varint(&mut rest).ok()?;
        match (field, wire_type) {
            (1..=SYNTAX, LENGTH_DELIMITED) => rest = rest.get(usize::try_from(value).ok()?..)?,
            // The indices of public and weak imports.
            (10 | 11, VARINT) => {}
            _ => return None,
        }
        if field == SYNTAX {
            return Some(bytes.len() - rest.len());
        }
    }
}

/// What a declaration of a field says: number, type, label, name of the message or enum, and
/// whether it is `optional`.
type Declaration<'a> = (i32, Type, Label, &'a str, bool);

fn declaration(field: &FieldDescriptor) -> Declaration<'_> {
    let field = field.field_descriptor_proto();
    (field.number(), field.r#type(), field.label(), field.type_name(), field.proto3_optional())
}

/// What a declaration of a method says: its messages, and which of them are streams.
fn signature(method: &MethodDescriptor) -> (String, bool, String, bool) {
    let name = |message: &protox::prost_reflect::MessageDescriptor| message.full_name().to_owned();
    let (input, output) = (name(&method.input()), name(&method.output()));
    (input, method.is_client_streaming(), output, method.is_server_streaming())
}

/// What `ours` declares and `theirs` lacks, or declares otherwise.
fn differences(ours: &DescriptorPool, theirs: &DescriptorPool) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |name: &str, ours: String, theirs: Option<String>| match theirs {
        Some(theirs) if theirs == ours => {}
        Some(theirs) => found.push(format!("{name} is {ours} here, {theirs} in weed")),
        None => found.push(format!("{name} is {ours} here, and unknown to weed")),
    };
    for message in ours.all_messages() {
        let other = theirs.get_message_by_name(message.full_name());
        compare(message.full_name(), "a message".into(), other.as_ref().map(|_| "a message".into()));
        for field in message.fields() {
            let other = other.as_ref().and_then(|other| other.get_field_by_name(field.name()));
            let text = |field: &FieldDescriptor| format!("{:?}", declaration(field));
            compare(field.full_name(), text(&field), other.as_ref().map(text));
        }
    }
    for value in ours.all_enums().flat_map(|kind| kind.values().collect::<Vec<_>>()) {
        let other = theirs.get_enum_by_name(value.parent_enum().full_name());
        let other = other.and_then(|other| other.get_value_by_name(value.name()));
        compare(value.full_name(), value.number().to_string(), other.map(|other| other.number().to_string()));
    }
    for method in ours.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
        let other = theirs.get_service_by_name(method.parent_service().full_name());
        let other = other.and_then(|other| other.methods().find(|other| other.name() == method.name()));
        let text = |method: &MethodDescriptor| format!("{:?}", signature(method));
        compare(method.full_name(), text(&method), other.as_ref().map(text));
    }
    found
}

/// The fields that `theirs` declares beyond `ours`, in the messages that `ours` has.
fn additions(ours: &DescriptorPool, theirs: &DescriptorPool) -> Vec<String> {
    let mut found = Vec::new();
    for message in ours.all_messages() {
        let Some(other) = theirs.get_message_by_name(message.full_name()) else { continue };
        for field in other.fields().filter(|field| message.get_field_by_name(field.name()).is_none()) {
            found.push(format!("{}: {:?}", field.full_name(), declaration(&field)));
        }
    }
    found
}

#[test]
#[cfg_attr(not(can_serve), ignore = "needs weed")]
fn every_declaration_is_that_of_weed() {
    let program = match tools::weed() {
        Ok(program) => program,
        Err(error) => return tests::host::skipped(&format!("{error:#}")),
    };
    let descriptor = embedded_descriptor(&fs::read(program).unwrap()).expect("weed contains the descriptor");
    let (ours, theirs) = (pool(our_descriptors()), pool(FileDescriptorSet { file: vec![descriptor] }));
    let differences = differences(&ours, &theirs);
    assert!(differences.is_empty(), "change interceptor/proto/{FILE}:\n{}", differences.join("\n"));
    println!("declared by weed alone:\n{}", additions(&ours, &theirs).join("\n"));
}

#[test]
fn a_descriptor_is_found_between_other_bytes() {
    let descriptor = our_descriptors().file.remove(0);
    let name_alone = [&[1 << 3 | 2, FILE.len() as u8], FILE.as_bytes()].concat();
    let program = [&name_alone[..], b"\0\xff", &descriptor.encode_to_vec(), b"\x0a\x0bmore.proto"].concat();
    assert_eq!(embedded_descriptor(&program), Some(descriptor));
    assert_eq!(embedded_descriptor(&name_alone), None);
}

#[test]
fn every_kind_of_difference_is_found() {
    type Change = fn(&mut FileDescriptorProto);
    let ours = pool(our_descriptors());
    let changes: [(&str, Change); 7] = [
        ("LookupDirectoryEntryRequest.directory", |file| file.message_type[0].field[0].number = Some(99)),
        ("LookupDirectoryEntryRequest.directory", |file| {
            file.message_type[0].field[0].set_type(Type::Bytes);
        }),
        ("LookupDirectoryEntryRequest.directory", |file| {
            file.message_type[0].field[0].set_label(Label::Repeated);
        }),
        ("LookupDirectoryEntryRequest.directory", |file| {
            file.message_type[0].field[0].name = Some("folder".into());
        }),
        ("PingRequest", |file| {
            file.message_type.retain(|message| message.name() != "PingRequest");
            file.service[0].method.retain(|method| method.name() != "Ping");
        }),
        ("SSE_KMS", |file| file.enum_type[0].value[2].number = Some(7)),
        ("ListEntries", |file| file.service[0].method[1].server_streaming = Some(false)),
    ];
    assert_eq!(differences(&ours, &ours), Vec::<String>::new());
    for (name, change) in changes {
        let mut descriptors = our_descriptors();
        change(&mut descriptors.file[0]);
        let found = differences(&ours, &pool(descriptors));
        assert!(found.iter().any(|found| found.contains(name)), "{name}: {found:?}");
    }
}
