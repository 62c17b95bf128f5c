//! The store with generated volumes. The end-to-end suite `store` has those of the real server.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use proptest::prelude::*;
use tempfile::TempDir;

use super::generated::{GeneratedVolume, RecordParts};
use super::*;
use crate::needle::Version;

const COOKIE: u32 = 0x1234_5678;

fn fixture() -> (TempDir, GeneratedVolume, Store) {
    let directory = tempfile::tempdir().unwrap();
    let volume = GeneratedVolume::new(directory.path(), 1, Version::V3, OffsetWidth::Four);
    let store = Store::new(vec![directory.path().into()], None).unwrap();
    (directory, volume, store)
}

fn locate(store: &Store, key: u64) -> Result<NeedleRecord, Refusal> {
    match store.locate(FileId { volume: 1, key, cookie: COOKIE }, ReadMode::Blocking) {
        Ok(record) => Ok(record),
        Err(StoreError::Refused(refusal)) => Err(refusal),
        Err(StoreError::WouldBlock) => panic!("a caller that may wait was told to"),
    }
}

fn read(store: &Store, key: u64) -> Result<Vec<u8>, Refusal> {
    let record = locate(store, key)?;
    let mut data = vec![0; record.data_size as usize];
    match record.read_into(0, &mut data, ReadMode::Blocking) {
        Ok(()) => Ok(data),
        Err(StoreError::Refused(refusal)) => Err(refusal),
        Err(StoreError::WouldBlock) => panic!("a caller that may wait was told to"),
    }
}

/// Closes all files, so that they are read anew.
fn close_all(store: &Store) {
    for volume in store.table.read().volumes.values() {
        volume.close_unused(std::time::Duration::ZERO);
    }
}

#[test]
fn appended_needles_are_found_at_once() {
    let (_directory, mut volume, store) = fixture();
    assert_eq!(read(&store, 1), Err(Refusal::NoNeedle));
    volume.put(1, COOKIE, b"one");
    assert_eq!(read(&store, 1).unwrap(), b"one");
    volume.put(1, COOKIE, b"one again");
    volume.put(2, COOKIE, b"");
    assert_eq!(read(&store, 1).unwrap(), b"one again");
    assert_eq!(read(&store, 2).unwrap(), b"");
}

#[test]
fn every_version_width_and_form_of_checksum_is_read() {
    for version in [Version::V1, Version::V2, Version::V3] {
        for width in [OffsetWidth::Four, OffsetWidth::Five] {
            for legacy in [false, true] {
                for configured in [false, true] {
                    let directory = tempfile::tempdir().unwrap();
                    let mut volume = GeneratedVolume::new(directory.path(), 1, version, width);
                    volume.legacy = legacy;
                    if configured {
                        volume.write_width();
                    }
                    let store = Store::new(vec![directory.path().into()], None).unwrap();
                    assert_eq!(read(&store, 1), Err(Refusal::NoNeedle));
                    for key in 1..40u64 {
                        volume.put(key, COOKIE, &vec![key as u8; key as usize * 7]);
                    }
                    volume.delete(3, COOKIE);
                    for key in 1..40u64 {
                        let data = read(&store, key).unwrap();
                        assert_eq!(
                            data,
                            vec![key as u8; key as usize * 7],
                            "{version:?} {width:?} {legacy} {configured}"
                        );
                    }
                    assert!(locate(&store, 3).unwrap().deleted);
                }
            }
        }
    }
}

#[test]
fn an_index_that_does_not_fit_its_data_is_refused() {
    let (_directory, mut volume, store) = fixture();
    volume.put(1, COOKIE, b"one");
    fs::write(volume.path("vif"), "{\"bytesOffset\":5}").unwrap();
    for _ in 0..30 {
        volume.put(2, COOKIE, b"two");
    }
    assert_eq!(read(&store, 1), Err(Refusal::UnknownFormat));
    fs::write(volume.path("vif"), "{\"bytesOffset\":4}").unwrap();
    assert_eq!(read(&store, 1).unwrap(), b"one");
}

#[test]
fn cookies_and_ranges_are_checked() {
    let (_directory, mut volume, store) = fixture();
    volume.put(1, COOKIE, b"0123456789");
    let wrong = FileId { volume: 1, key: 1, cookie: 1 };
    assert_eq!(store.locate(wrong, ReadMode::Blocking).unwrap_err(), Refusal::WrongCookie.into());
    let none = FileId { volume: 2, key: 1, cookie: 1 };
    assert_eq!(store.locate(none, ReadMode::Blocking).unwrap_err(), Refusal::NoVolume.into());
    let record = locate(&store, 1).unwrap();
    assert_eq!(record.clamp(3, 4), Ok(4));
    assert_eq!(record.clamp(3, u32::MAX), Ok(7));
    assert_eq!(record.clamp(10, 1), Ok(0));
    assert_eq!(record.clamp(11, 0), Err(Refusal::OutOfRange));
    let mut part = [0; 4];
    record.read_into(3, &mut part, ReadMode::Blocking).unwrap();
    assert_eq!(&part, b"3456");
    let beyond = record.read_into(8, &mut part, ReadMode::Blocking);
    assert_eq!(beyond, Err(Refusal::OutOfRange.into()));
}

#[test]
fn a_damaged_byte_is_found() {
    let (_directory, mut volume, store) = fixture();
    volume.put(1, COOKIE, b"0123456789");
    let mut dat = OpenOptions::new().write(true).open(volume.path("dat")).unwrap();
    for (at, refusal) in [
        (8 + 20 + 4, Refusal::Damaged),  // data
        (8 + 16 + 3, Refusal::Damaged),  // dataSize
        (8 + 20 + 10, Refusal::Damaged), // flags: a name that is not there
        (8 + 31, Refusal::Damaged),      // checksum
        (8 + 11, Refusal::Stale),        // key
        (8 + 15, Refusal::Stale),        // size
        (8 + 3, Refusal::WrongCookie),   // cookie
    ] {
        let right = fs::read(volume.path("dat")).unwrap()[at];
        dat.seek(SeekFrom::Start(at as u64)).unwrap();
        dat.write_all(&[right ^ 2]).unwrap();
        assert_eq!(read(&store, 1), Err(refusal), "byte {at}");
        dat.seek(SeekFrom::Start(at as u64)).unwrap();
        dat.write_all(&[right]).unwrap();
        assert_eq!(read(&store, 1).unwrap(), b"0123456789");
    }
}

#[test]
fn expired_needles_and_manifests_are_refused_and_optional_parts_are_skipped() {
    let (_directory, mut volume, store) = fixture();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let stamp = |ago: u64| (now - ago).to_be_bytes()[3..].to_vec();
    let minute = |ago: u64| [stamp(ago), vec![1, 1]].concat();
    let parts = |flags, optional, ago: u64| RecordParts {
        flags,
        optional,
        append_at_ns: (now - ago) * 1_000_000_000,
    };
    volume.put_with(1, COOKIE, b"old", &parts(0x18, minute(61), 61));
    volume.put_with(2, COOKIE, b"new", &parts(0x18, minute(10), 10));
    volume.put_with(3, COOKIE, b"[]", &parts(0x80, vec![], 0));
    volume.put_with(4, COOKIE, b"zip", &parts(0x01, vec![], 0));
    let pairs = [&60_000u16.to_be_bytes()[..], &[b' '; 60_000]].concat();
    volume.put_with(5, COOKIE, b"pairs", &parts(0x20, pairs, 0));
    assert_eq!(read(&store, 1), Err(Refusal::Expired));
    assert_eq!(read(&store, 2).unwrap(), b"new");
    assert_eq!(read(&store, 3), Err(Refusal::Manifest));
    assert!(locate(&store, 4).unwrap().flags().is_gzip());
    assert_eq!(read(&store, 5).unwrap(), b"pairs");
}

#[test]
fn partial_and_preallocated_index_entries_are_ignored() {
    let (_directory, mut volume, store) = fixture();
    volume.put(1, COOKIE, b"one");
    let mut idx = OpenOptions::new().append(true).open(volume.path("idx")).unwrap();
    idx.write_all(&[0; 16 + 7]).unwrap();
    assert_eq!(read(&store, 1).unwrap(), b"one");
    assert_eq!(read(&store, 2), Err(Refusal::NoNeedle));
    // The rest of the entry is written, and another entry.
    idx.write_all(&[0; 9]).unwrap();
    volume.put(2, COOKIE, b"two");
    assert_eq!(read(&store, 2).unwrap(), b"two");
}

#[test]
fn an_index_entry_may_point_back_after_a_failed_write() {
    let (_directory, mut volume, store) = fixture();
    volume.put(1, COOKIE, b"first");
    let end = fs::metadata(volume.path("dat")).unwrap().len();
    volume.put(1, COOKIE, b"second");
    assert_eq!(read(&store, 1).unwrap(), b"second");
    // The server truncates what it could not sync, and logs the old position again.
    OpenOptions::new().write(true).open(volume.path("dat")).unwrap().set_len(end).unwrap();
    assert_eq!(read(&store, 1), Err(Refusal::Stale), "the log is not there yet");
    volume.log(1, 1, 4 + 5 + 1);
    assert_eq!(read(&store, 1).unwrap(), b"first");
}

#[test]
fn an_index_that_shrinks_is_read_anew() {
    let (_directory, mut volume, store) = fixture();
    volume.put(1, COOKIE, b"one");
    volume.put(2, COOKIE, b"two");
    assert_eq!(read(&store, 2).unwrap(), b"two");
    let idx = OpenOptions::new().write(true).open(volume.path("idx")).unwrap();
    idx.set_len(16).unwrap();
    assert_eq!(read(&store, 2), Err(Refusal::NoNeedle));
    assert_eq!(read(&store, 1).unwrap(), b"one");
}

#[test]
fn compaction_is_followed_through_each_step() {
    let (_directory, mut volume, store) = fixture();
    for key in 1..20 {
        volume.put(key, COOKIE, format!("needle {key}").as_bytes());
    }
    volume.delete(7, COOKIE);
    assert_eq!(read(&store, 7).unwrap(), b"needle 7", "deleted needles stay until compaction");
    let held = locate(&store, 9).unwrap();

    let left: Vec<_> = (8..20).rev().map(|key| (key, COOKIE, format!("needle {key}").into_bytes())).collect();
    let compacted = volume.compact(&left);
    assert_eq!(read(&store, 8).unwrap(), b"needle 8");
    volume.swap_data();
    assert_eq!(read(&store, 8), Err(Refusal::Compacting));
    volume.swap_index(compacted);
    for key in 8..20 {
        assert_eq!(read(&store, key).unwrap(), format!("needle {key}").as_bytes());
    }
    assert_eq!(read(&store, 7), Err(Refusal::NoNeedle));
    assert_eq!(locate(&store, 8).unwrap().file.revision(), 1);

    // A record that was located before is read from the old file, which is recognized as such.
    let mut data = [0; 8];
    held.read_into(0, &mut data, ReadMode::Blocking).unwrap();
    assert_eq!(&data, b"needle 9");
    assert!(held.file.is_unlinked());
    volume.put(1, COOKIE, b"after");
    assert_eq!(read(&store, 1).unwrap(), b"after");
}

#[test]
fn without_the_marker_a_half_done_swap_is_refused_all_the_same() {
    let (_directory, mut volume, store) = fixture();
    for key in 1..20 {
        volume.put(key, COOKIE, &[key as u8; 100]);
    }
    assert_eq!(read(&store, 3).unwrap(), [3; 100]);
    let compacted = volume.compact(&[(3, COOKIE, vec![3; 100]), (19, COOKIE, vec![19; 100])]);
    volume.swap_data();
    fs::remove_file(volume.path("cpc")).unwrap();
    assert_eq!(read(&store, 3), Err(Refusal::UnknownFormat), "old index, new data");
    fs::write(volume.path("cpc"), "").unwrap();
    volume.swap_index(compacted);
    assert_eq!(read(&store, 3).unwrap(), [3; 100]);
}

#[test]
fn volumes_may_disappear_and_come_back() {
    let (directory, mut volume, store) = fixture();
    volume.put(1, COOKIE, b"one");
    assert_eq!(read(&store, 1).unwrap(), b"one");
    fs::write(volume.path("note"), "").unwrap();
    close_all(&store);
    assert_eq!(read(&store, 1), Err(Refusal::Incomplete));
    fs::remove_file(volume.path("note")).unwrap();
    assert_eq!(read(&store, 1).unwrap(), b"one");

    let elsewhere = directory.path().join("elsewhere");
    fs::rename(volume.path("dat"), &elsewhere).unwrap();
    close_all(&store);
    fs::write(volume.path("vif"), "{\"files\":[{\"backendType\":\"s3\"}]}").unwrap();
    assert_eq!(read(&store, 1), Err(Refusal::Remote));
    fs::remove_file(volume.path("vif")).unwrap();
    fs::write(volume.path("ecx"), "").unwrap();
    assert_eq!(read(&store, 1), Err(Refusal::ErasureCoded));
    fs::remove_file(volume.path("ecx")).unwrap();
    assert_eq!(read(&store, 1), Err(Refusal::NoVolume));
    fs::rename(&elsewhere, volume.path("dat")).unwrap();
    assert_eq!(read(&store, 1).unwrap(), b"one");

    fs::remove_file(volume.path("dat")).unwrap();
    fs::remove_file(volume.path("idx")).unwrap();
    assert_eq!(read(&store, 1), Err(Refusal::NoVolume));
    let mut again = GeneratedVolume::new(directory.path(), 1, Version::V3, OffsetWidth::Four);
    again.put(1, COOKIE, b"another life");
    assert_eq!(read(&store, 1).unwrap(), b"another life");
}

#[test]
fn superblocks_that_are_not_understood_are_refused() {
    let (_directory, volume, store) = fixture();
    for (bytes, refusal) in
        [(&b""[..], Refusal::Incomplete), (b"\x03", Refusal::Incomplete), (&[9; 64], Refusal::UnknownFormat)]
    {
        fs::write(volume.path("dat"), bytes).unwrap();
        assert_eq!(read(&store, 1), Err(refusal));
    }
}

#[test]
fn files_of_removed_volumes_are_closed() {
    let (_directory, mut volume, store) = fixture();
    volume.put(1, COOKIE, b"one");
    read(&store, 1).unwrap();
    store.close_unused();
    assert_eq!(store.open_volumes(), (1, 1));
    fs::remove_file(volume.path("dat")).unwrap();
    fs::remove_file(volume.path("idx")).unwrap();
    store.close_unused();
    assert_eq!(store.open_volumes(), (0, 0));
}

#[test]
fn a_cached_read_fails_only_if_it_would_have_to_wait() {
    let (_directory, mut volume, store) = fixture();
    volume.put(1, COOKIE, b"one");
    let fid = FileId { volume: 1, key: 1, cookie: COOKIE };
    assert_eq!(store.locate(fid, ReadMode::CachedOnly).unwrap_err(), StoreError::WouldBlock, "not open yet");
    locate(&store, 1).unwrap();
    match store.locate(fid, ReadMode::CachedOnly) {
        Ok(record) => assert_eq!(record.data_size, 3),
        // On a file system that does not report what is cached.
        Err(error) => assert_eq!(error, StoreError::WouldBlock),
    }
}

#[derive(Debug, Clone)]
enum Step {
    Put(u64, Vec<u8>),
    Delete(u64),
    Compact,
    Read(u64),
    PartialEntry,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 1u64..30;
    prop_oneof![
        6 => (key.clone(), prop::collection::vec(any::<u8>(), 0..600)).prop_map(|(key, data)| Step::Put(key, data)),
        2 => key.clone().prop_map(Step::Delete),
        1 => Just(Step::Compact),
        4 => key.prop_map(Step::Read),
        1 => Just(Step::PartialEntry),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn reads_what_was_written_last(steps in prop::collection::vec(step(), 1..120), wide: bool) {
        let directory = tempfile::tempdir().unwrap();
        let width = if wide { OffsetWidth::Five } else { OffsetWidth::Four };
        let mut volume = GeneratedVolume::new(directory.path(), 1, Version::V3, width);
        volume.write_width();
        let store = Store::new(vec![directory.path().into()], None).unwrap();
        let mut model: HashMap<u64, (Vec<u8>, bool)> = HashMap::new();
        for step in steps {
            match step {
                Step::Put(key, data) => {
                    volume.put(key, COOKIE, &data);
                    model.insert(key, (data, false));
                }
                Step::Delete(key) => {
                    volume.delete(key, COOKIE);
                    model.entry(key).and_modify(|(_, deleted)| *deleted = true);
                }
                Step::Compact => {
                    model.retain(|_, (_, deleted)| !*deleted);
                    let left: Vec<_> = model.iter().map(|(&key, (data, _))| (key, COOKIE, data.clone())).collect();
                    let compacted = volume.compact(&left);
                    volume.swap_data();
                    volume.swap_index(compacted);
                }
                Step::PartialEntry => {
                    // As if the server were appending an entry: it must be ignored.
                    let path = volume.path("idx");
                    let length = fs::metadata(&path).unwrap().len();
                    OpenOptions::new().append(true).open(&path).unwrap().write_all(&[0; 5]).unwrap();
                    let _ = read(&store, 1);
                    OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap();
                }
                Step::Read(key) => {
                    let expected = model.get(&key).map(|(data, _)| data.clone()).ok_or(Refusal::NoNeedle);
                    prop_assert_eq!(read(&store, key), expected);
                }
            }
        }
        for (key, (data, deleted)) in &model {
            prop_assert_eq!(&read(&store, *key).unwrap(), data);
            prop_assert_eq!(locate(&store, *key).unwrap().deleted, *deleted);
        }
    }

    #[test]
    fn arbitrary_files_never_panic(dat: Vec<u8>, idx: Vec<u8>, version in 1u8..4, keys: [u64; 3]) {
        let directory = tempfile::tempdir().unwrap();
        let mut head = vec![version, 0, 0, 0, 0, 0, 0, 0];
        head.extend_from_slice(&dat);
        fs::write(directory.path().join("1.dat"), &head).unwrap();
        // Index entries that lead into the arbitrary bytes, followed by arbitrary entries.
        let mut entries = vec![];
        for key in keys {
            entries.extend_from_slice(&key.to_be_bytes());
            entries.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 9]);
        }
        entries.extend_from_slice(&idx);
        fs::write(directory.path().join("1.idx"), &entries).unwrap();
        let store = Store::new(vec![directory.path().into()], None).unwrap();
        for key in keys {
            let _ = read(&store, key);
        }
    }
}

#[test]
fn a_stale_index_is_read_anew_when_it_is_old_enough() {
    let (_directory, mut volume, store) = fixture();
    volume.put(1, COOKIE, b"one");
    volume.put(2, COOKIE, b"two two");
    assert_eq!(read(&store, 2).unwrap(), b"two two");
    // Repaired in place by a tool: same inode, same length, other content.
    let idx = fs::read(volume.path("idx")).unwrap();
    let swapped = [&idx[16..], &idx[..16]].concat();
    let dat = fs::read(volume.path("dat")).unwrap();
    let moved = [&dat[..8], &dat[8 + 40..], &dat[8..8 + 40]].concat();
    assert_eq!(swapped.len(), idx.len());
    OpenOptions::new().write(true).open(volume.path("dat")).unwrap().write_all(&moved).unwrap();
    let mut rewritten = swapped;
    rewritten[11] = 1;
    rewritten[16 + 11] = 7;
    OpenOptions::new().write(true).open(volume.path("idx")).unwrap().write_all(&rewritten).unwrap();
    let began = Instant::now();
    loop {
        match read(&store, 2) {
            Ok(data) => break assert_eq!(data, b"two two"),
            Err(refusal) => assert_eq!(refusal, Refusal::Stale),
        }
        assert!(began.elapsed() < Duration::from_secs(20), "the index was never read again");
        std::thread::yield_now();
    }
}
