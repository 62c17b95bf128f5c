use super::*;
use proptest::prelude::*;
use prost::Message;

fn file(attributes: pb::FuseAttributes) -> pb::Entry {
    pb::Entry { name: "f".into(), attributes: Some(attributes), ..Default::default() }
}

fn sized(file_size: u64) -> pb::Entry {
    file(pb::FuseAttributes { file_size, file_mode: 0o644, ..Default::default() })
}

fn chunk(offset: i64, size: u64) -> pb::FileChunk {
    pb::FileChunk { file_id: "3,01637037d6".into(), offset, size, ..Default::default() }
}

fn decode(raw: pb::Entry) -> Entry {
    entry(raw)
}

fn at(seconds: u64, nanoseconds: u32) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds)
}

#[test]
fn the_size_is_the_largest_of_all_sizes_in_the_entry() {
    let chunks = vec![chunk(10, 20), chunk(0, 5)];
    assert_eq!(decode(pb::Entry { chunks: chunks.clone(), ..sized(7) }).attr.size, 30);
    let entry = decode(pb::Entry { chunks, ..sized(50) });
    assert_eq!(entry.attr.size, 50);
    let Content::Chunks(list) = entry.content else { panic!("{:?}", entry.content) };
    assert_eq!((list[0].offset, list[1].offset), (10, 0));
}

#[test]
fn a_file_without_chunks_is_empty_or_zeros() {
    assert_eq!(decode(sized(0)).content, Content::None);
    let sparse = decode(sized(9));
    assert_eq!((sparse.attr.size, sparse.content), (9, Content::Chunks(Arc::from([]))));
}

#[test]
fn inline_content_counts_before_chunks_unless_they_reach_beyond() {
    let inline = |chunks| decode(pb::Entry { content: b"abc".to_vec(), chunks, ..sized(0) });
    assert_eq!(inline(vec![]).attr.size, 3);
    assert_eq!(inline(vec![chunk(0, 3)]).content, Content::Inline(Bytes::from_static(b"abc")));
    let torn = inline(vec![chunk(0, 4)]);
    assert_eq!(torn.attr.size, 4);
    assert!(matches!(torn.content, Content::Damaged { .. }));
}

#[test]
fn a_remote_object_gives_the_size_if_it_is_newer_or_alone() {
    let remote =
        |remote_size, remote_mtime| Some(pb::RemoteEntry { remote_size, remote_mtime, ..Default::default() });
    let only = decode(pb::Entry { remote_entry: remote(100, 0), ..sized(0) });
    assert_eq!(only.attr.size, 100);
    assert!(matches!(only.content, Content::Remote(_)), "{:?}", only.content);
    let cached = decode(pb::Entry { remote_entry: remote(100, 0), chunks: vec![chunk(0, 40)], ..sized(40) });
    assert_eq!(cached.attr.size, 40);
    let newer = decode(pb::Entry { remote_entry: remote(100, 9), chunks: vec![chunk(0, 40)], ..sized(40) });
    assert_eq!(newer.attr.size, 100);
    let inline = decode(pb::Entry { remote_entry: remote(100, 0), content: b"a".to_vec(), ..sized(1) });
    assert!(matches!(inline.content, Content::Inline(_)));
    assert_eq!(decode(pb::Entry { remote_entry: remote(-1, 0), ..sized(0) }).content, Content::None);
}

#[test]
fn states_of_a_remote_object_differ_if_any_field_does() {
    let remote = |change: &dyn Fn(&mut pb::RemoteEntry)| {
        let mut remote = pb::RemoteEntry {
            storage_name: "s".into(),
            remote_e_tag: "a".into(),
            remote_size: 100,
            remote_mtime: 7,
            remote_content_encoding: None,
        };
        change(&mut remote);
        pb::Entry { remote_entry: Some(remote), ..file(times_of(7)) }
    };
    let before = remote(&|_| {});
    assert!(decode(before.clone()).same_content(&decode(before.clone())));
    let cached = pb::Entry { chunks: vec![chunk(0, 100)], ..before.clone() };
    assert_eq!(remote_object(&cached), remote_object(&before), "a copy of it");
    let changes: [&dyn Fn(&mut pb::RemoteEntry); 5] = [
        &|remote| remote.storage_name = "t".into(),
        &|remote| remote.remote_e_tag = "b".into(),
        &|remote| remote.remote_size = 101,
        &|remote| remote.remote_mtime = 6,
        &|remote| remote.remote_content_encoding = Some("gzip".into()),
    ];
    let written = pb::Entry { attributes: Some(times_of(8)), ..before.clone() };
    for after in changes.map(remote).into_iter().chain([written]) {
        assert!(!decode(after.clone()).same_content(&decode(before.clone())), "{after:?}");
        assert_ne!(remote_object(&after), remote_object(&before));
    }
    assert_eq!(remote_object(&sized(100)), None);
}

#[test]
fn a_file_with_a_malformed_chunk_stays_visible_and_has_a_reason() {
    let bad = pb::FileChunk { file_id: "nonsense".into(), ..chunk(8, 8) };
    let entry = decode(pb::Entry { chunks: vec![chunk(0, 8), bad], ..sized(16) });
    assert_eq!((entry.name.as_str(), entry.attr.size), ("f", 16));
    let Content::Damaged { reason } = entry.content else { panic!("{:?}", entry.content) };
    assert_eq!(&*reason, "chunk record 1: `nonsense` is not a file id");
    let huge = decode(sized(u64::MAX));
    assert_eq!(huge.attr.size, i64::MAX as u64);
    assert!(matches!(huge.content, Content::Damaged { .. }));
}

#[test]
fn content_that_the_s3_gateway_encrypted_is_distinguished_from_damaged_content() {
    let content = |raw| decode(raw).content;
    let reason = |raw| match content(raw) {
        Content::Encrypted { reason } => reason.to_string(),
        other => panic!("{other:?}"),
    };
    let marked =
        |key: &str, raw| pb::Entry { extended: [(key.to_owned(), b"AES256".to_vec())].into(), ..raw };
    let encrypted = pb::FileChunk { sse_type: 1, ..chunk(8, 8) };
    assert_eq!(
        reason(pb::Entry { chunks: vec![chunk(0, 8), encrypted.clone()], ..sized(16) }),
        "chunk record 1: its data is encrypted by the S3 gateway (SSE-C)"
    );
    let inline = |chunks| pb::Entry { content: b"abc".to_vec(), chunks, ..sized(0) };
    assert!(reason(inline(vec![pb::FileChunk { sse_type: 9, ..chunk(0, 3) }])).contains("SSE type 9"));
    for key in [
        "X-Amz-Server-Side-Encryption",
        "X-Amz-Server-Side-Encryption-Customer-Algorithm",
        "x-seaweedfs-sse-c-iv",
        "x-seaweedfs-sse-kms-key",
        "X-SeaweedFS-SSE-S3-Key",
    ] {
        let expected = format!("its attribute `{key}` says that the S3 gateway has encrypted it");
        assert_eq!(reason(marked(key, inline(vec![]))), expected);
        assert_eq!(reason(marked(key, pb::Entry { chunks: vec![chunk(0, 8)], ..sized(8) })), expected);
        assert_eq!(content(marked(key, sized(0))), Content::None, "nothing is nothing, encrypted or not");
    }
    assert!(matches!(content(marked("x-amz-storage-class", inline(vec![]))), Content::Inline(_)));
    let directory = pb::Entry { is_directory: true, ..sized(0) };
    assert_eq!(content(marked("x-seaweedfs-sse-s3-encryption", directory)), Content::None);
}

#[test]
fn symbolic_links_have_a_target_and_hard_links_a_count() {
    let target =
        pb::FuseAttributes {
            file_mode: 1 << 27 | 0o777, symlink_target: "a/ü".into(), ..Default::default()
        };
    let link = decode(file(target));
    assert_eq!((link.attr.kind, link.attr.size), (FileKind::Symlink, 4));
    assert_eq!(link.content, Content::Target("a/ü".into()));
    let hard = decode(pb::Entry { hard_link_id: vec![1, 2], hard_link_counter: 3, ..sized(0) });
    assert_eq!((hard.attr.nlink, hard.hard_link), (3, Some(Bytes::from_static(&[1, 2]))));
    assert_eq!(decode(pb::Entry { hard_link_counter: 3, ..sized(0) }).attr.nlink, 1);
    let directory = decode(pb::Entry { is_directory: true, hard_link_id: vec![1], ..sized(0) });
    assert_eq!(directory.hard_link, None, "a directory has one name");
    assert_eq!(decode(pb::Entry { is_directory: true, ..sized(0) }).attr.nlink, 2);
}

#[test]
fn devices_keep_their_number() {
    let device = file(pb::FuseAttributes { file_mode: 1 << 26 | 0o600, rdev: 0x801, ..Default::default() });
    let device = decode(device);
    assert_eq!(
        (device.attr.kind, device.attr.rdev, device.content),
        (FileKind::BlockDevice, 0x801, Content::None)
    );
}

#[test]
fn unset_times_fall_back_to_others() {
    let times = pb::FuseAttributes { mtime: 5, mtime_ns: 7, crtime: 3, crtime_ns: -1, ..Default::default() };
    let entry = decode(file(times));
    assert_eq!((entry.attr.mtime, entry.attr.ctime, entry.attr.crtime), (at(5, 7), at(5, 7), at(3, 0)));
    let changed = pb::FuseAttributes { ctime: 9, ctime_ns: 1, ..times_of(5) };
    assert_eq!(decode(file(changed)).attr.ctime, at(9, 1));
    let unset = pb::FuseAttributes { ctime: GO_ZERO_TIME, ..times_of(5) };
    assert_eq!(decode(file(unset)).attr.ctime, at(5, 0));
    assert_eq!(decode(file(times_of(-2))).attr.mtime, SystemTime::UNIX_EPOCH - Duration::from_secs(2));
}

fn times_of(mtime: i64) -> pb::FuseAttributes {
    pb::FuseAttributes { mtime, ..Default::default() }
}

#[test]
fn a_ttl_counts_from_the_creation_or_the_last_change() {
    let living = |keys: &[&str]| {
        let attributes = pb::FuseAttributes { ttl_sec: 60, mtime: 200, crtime: 100, ..Default::default() };
        let extended = keys.iter().map(|&key| (key.to_owned(), b"true".to_vec())).collect();
        decode(pb::Entry { extended, ..file(attributes) }).expires
    };
    assert_eq!(living(&[]), Some(at(160, 0)));
    assert_eq!(living(&[EXPIRES_S3]), Some(at(260, 0)));
    assert_eq!(living(&[EXPIRES_S3, S3_VERSION_ID]), None);
    assert_eq!(decode(sized(0)).expires, None);
    assert_eq!(decode(file(pb::FuseAttributes { ttl_sec: -5, ..Default::default() })).expires, None);
}

#[test]
fn only_keys_with_the_prefix_are_extended_attributes() {
    let keys = ["xattr-user.b", "xattr-user.a", "xattr-", "Seaweed-x", "X-Amz-Meta-y"];
    let extended = keys.iter().map(|&key| (key.to_owned(), key.as_bytes().to_vec())).collect();
    let entry = decode(pb::Entry { extended, ..sized(0) });
    let names: Vec<_> = entry.xattrs.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["user.a", "user.b"]);
    assert_eq!(entry.xattrs[0].1, Bytes::from_static(b"xattr-user.a"));
}

#[test]
fn an_entry_without_attributes_is_an_empty_file() {
    let entry = decode(pb::Entry { name: "f".into(), ..Default::default() });
    assert_eq!((entry.attr.kind, entry.attr.size, entry.content), (FileKind::File, 0, Content::None));
}

proptest! {
    #[test]
    fn any_bytes_are_an_entry_or_refused(bytes: Vec<u8>) {
        if let Ok(raw) = pb::Entry::decode(&bytes[..]) {
            decode(raw);
        }
    }

    /// Well-formed messages with arbitrary numbers, because random bytes rarely decode.
    #[test]
    fn any_numbers_are_an_entry(
        sizes in any::<(u64, u64, i64, i64)>(),
        times in any::<(i64, i32, i64, i32)>(),
        mode: u32,
        ttl_sec: i32,
        inline: Vec<u8>,
        links: i32,
    ) {
        let attributes = pb::FuseAttributes {
            file_size: sizes.0,
            mtime: times.0,
            mtime_ns: times.1,
            crtime: times.2,
            ctime_ns: times.3,
            file_mode: mode,
            ttl_sec,
            ..Default::default()
        };
        let raw = pb::Entry {
            chunks: vec![chunk(sizes.2, sizes.1)],
            remote_entry: Some(pb::RemoteEntry {
                remote_size: sizes.3,
                remote_mtime: times.2,
                ..Default::default()
            }),
            content: inline,
            hard_link_id: vec![1],
            hard_link_counter: links,
            ..file(attributes)
        };
        let entry = decode(raw);
        prop_assert!(entry.attr.size <= i64::MAX as u64);
        prop_assert!(entry.attr.nlink >= 1);
        prop_assert!(entry.attr.perm <= 0o7777);
        if let Content::Chunks(chunks) = &entry.content {
            prop_assert!(chunks.iter().all(|c| c.offset + c.size <= entry.attr.size));
        }
    }
}
