//! The store against a model: whatever happens to the files, a read gives the bytes of the object
//! or nothing.

use std::collections::{HashMap, HashSet};
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;
use tokio::runtime::Handle;

use super::directory::{DirectoryError, inspect};
use super::file::CacheFileError;
use super::format::{FileHeader, Member, SECTOR};
use super::name::{ClusterIdentity, DiskName};
use super::store::DiskStore;
use super::{DiskCache, DiskCacheConfig, FileSource};
use crate::telemetry::{Metrics, Source};

const CAPACITY: u64 = 64 << 20;

fn name(number: u8) -> DiskName {
    ClusterIdentity::new("test", 1).unwrap().name("object", &[&[number]])
}

/// Object number `number`, some sectors and a piece long.
fn object(number: u8) -> Member {
    Member { name: name(number), len: SECTOR * (1 + u64::from(number) % 5) + 100 }
}

/// The bytes of an object from `offset` on.
fn bytes_of(object: &Member, offset: u64, len: u64) -> Vec<u8> {
    (offset..offset + len).map(|at| (at.wrapping_mul(31) ^ at >> 8 ^ object.name.hash()) as u8).collect()
}

fn opened(directory: &TempDir, capacity: u64) -> DiskStore {
    let store = DiskStore::open(directory.path(), capacity).unwrap();
    store.scan();
    store
}

/// Another one, after the one before was dropped.
fn restarted(directory: &TempDir, capacity: u64) -> DiskStore {
    let store = opened(directory, capacity);
    take_over(&store);
    store
}

/// Waits until the store is the one that writes. For a moment after the one before was dropped it
/// may not be: a process that another test has forked holds the lock until it executes its program.
fn take_over(store: &DiskStore) {
    let started = Instant::now();
    while !store.usage().is_writer {
        assert!(started.elapsed() < Duration::from_secs(60), "nobody lets the directory go");
        std::thread::yield_now();
        store.maintain();
    }
}

fn write(store: &DiskStore, object: Member, offset: u64, len: u64) -> u64 {
    store.write(object, offset, &bytes_of(&object, offset, len)).unwrap()
}

/// Whether bytes are there. Those that are must be right.
fn reads(store: &DiskStore, object: &Member, offset: u64, len: u64) -> bool {
    let mut bytes = vec![0; len as usize];
    match store.read(&object.name, offset, &mut bytes) {
        Ok(()) => {
            assert!(bytes == bytes_of(object, offset, len), "wrong bytes");
            true
        }
        Err(_) => false,
    }
}

fn reads_all(store: &DiskStore, object: &Member) -> bool {
    reads(store, object, 0, object.len)
}

/// The files of the cache.
fn files(directory: &TempDir) -> Vec<PathBuf> {
    let below = directory.path().join("interceptor-cache-v1");
    let mut files: Vec<_> = fs::read_dir(below)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .flat_map(|path| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()))
        .collect();
    files.sort();
    files
}

fn on_disk(directory: &TempDir) -> u64 {
    files(directory).iter().map(|path| path.metadata().unwrap().blocks() * 512).sum()
}

#[test]
fn what_was_written_is_there_after_a_restart_without_names_of_anything() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(&directory, CAPACITY);
    let object = object(3);
    assert!(!reads_all(&store, &object));
    assert_eq!(write(&store, object, 0, object.len), object.len);
    assert_eq!(write(&store, object, 0, object.len), 0, "it is there");
    assert!(reads_all(&store, &object) && reads(&store, &object, SECTOR, SECTOR));
    assert!(!reads_all(&store, &Member { name: name(4), ..object }));
    drop(store);
    let store = restarted(&directory, CAPACITY);
    assert!(reads_all(&store, &object));
    assert_eq!(store.usage().files, 1);
    let root = directory.path().join("interceptor-cache-v1");
    assert_eq!(root.metadata().unwrap().mode() & 0o777, 0o700);
    for path in files(&directory) {
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600, "{path:?}");
    }
}

#[test]
fn sectors_come_one_by_one() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(&directory, CAPACITY);
    let object = object(3);
    write(&store, object, SECTOR, 2 * SECTOR);
    assert!(reads(&store, &object, SECTOR, SECTOR) && reads(&store, &object, 2 * SECTOR, SECTOR));
    assert!(!reads(&store, &object, 0, SECTOR) && !reads_all(&store, &object));
    assert!(store.may_have(&object.name, SECTOR, SECTOR) && !store.may_have(&object.name, 0, SECTOR));
    write(&store, object, 0, object.len);
    assert!(reads_all(&store, &object));
}

#[test]
fn older_files_leave_within_the_capacity_and_used_ones_stay() {
    let directory = tempfile::tempdir().unwrap();
    let capacity = 1 << 20;
    let store = opened(&directory, capacity);
    let object = |number: u8| Member { name: name(number), len: 8 * SECTOR };
    write(&store, object(0), 0, 8 * SECTOR);
    for number in 1..100 {
        assert!(reads_all(&store, &object(0)), "it is used all the time");
        write(&store, object(number), 0, 8 * SECTOR);
        assert!(store.usage().used <= capacity);
    }
    assert!(on_disk(&directory) <= capacity);
    assert!(!reads_all(&store, &object(1)) && reads_all(&store, &object(99)));
    assert_eq!(store.usage().evicted, 100 - store.usage().files);
    let large = Member { name: name(200), len: 2 * capacity };
    assert_eq!(write(&store, large, 0, 2 * capacity), 0, "it can never fit");
    drop(store);
    let smaller = restarted(&directory, capacity / 4);
    assert!(smaller.usage().used <= capacity / 4 && on_disk(&directory) <= capacity / 4);
}

#[test]
fn a_second_daemon_reads_what_the_first_writes_and_takes_over_when_it_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (opened(&directory, CAPACITY), opened(&directory, CAPACITY));
    assert!(first.usage().is_writer && !second.usage().is_writer);
    let (one, other) = (object(3), object(4));
    write(&first, one, 0, SECTOR);
    assert!(reads(&second, &one, 0, SECTOR) && !reads_all(&second, &one));
    write(&first, one, 0, one.len);
    assert!(reads_all(&second, &one), "what the first has added since is seen");
    assert_eq!(write(&second, other, 0, other.len), 0, "only one daemon writes");
    second.maintain();
    assert!(!second.usage().is_writer);
    drop(first);
    take_over(&second);
    assert_eq!(write(&second, other, 0, other.len), other.len);
    assert!(reads_all(&second, &one) && reads_all(&second, &other));
}

#[test]
fn a_file_that_another_daemon_removes_can_be_read_by_none_that_opens_it_later() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (opened(&directory, 1 << 20), opened(&directory, 1 << 20));
    let object = |number: u8| Member { name: name(number), len: 8 * SECTOR };
    write(&first, object(0), 0, 8 * SECTOR);
    assert!(reads_all(&second, &object(0)));
    (1..50).for_each(|number| _ = write(&first, object(number), 0, 8 * SECTOR));
    assert!(reads_all(&second, &object(0)), "an open file stays");
    let third = opened(&directory, 1 << 20);
    assert!(!reads_all(&third, &object(0)));
}

#[test]
fn a_removed_directory_is_made_again_and_reads_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(&directory, CAPACITY);
    let object = object(3);
    write(&store, object, 0, object.len);
    fs::remove_dir_all(directory.path().join("interceptor-cache-v1")).unwrap();
    assert!(reads_all(&store, &object), "the file is open");
    let other = Member { name: name(4), ..object };
    assert!(!reads_all(&store, &other));
    assert!(store.write(other, 0, &bytes_of(&other, 0, other.len)).is_err());
    store.maintain();
    assert!(!reads_all(&store, &object));
    assert_eq!(write(&store, other, 0, other.len), other.len);
    assert!(reads_all(&store, &other) && !files(&directory).is_empty());
    fs::remove_dir_all(directory.path()).unwrap();
    store.maintain();
    assert!(!reads_all(&store, &object));
}

#[test]
fn a_look_at_a_directory_says_what_opening_it_would_say_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let looked = |path: &Path| {
        let before = fs::read_dir(directory.path()).unwrap().count();
        let found = inspect(path).map(|(path, free)| (path, free > 0)).map_err(|error| error.to_string());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), before);
        let opened = DiskStore::open(path, CAPACITY).map(drop).map_err(|error| error.to_string());
        assert_eq!(found.clone().map(drop), opened);
        found
    };
    let there = directory.path().join("disk");
    let own = there.join("interceptor-cache-v1");
    assert_eq!(looked(&there), Ok((own.clone(), true)), "a directory that is to be made");
    assert_eq!(looked(&there), Ok((own.clone(), true)), "one of ours");
    fs::set_permissions(&own, fs::Permissions::from_mode(0o750)).unwrap();
    assert!(looked(&there).unwrap_err().contains("750"));
    fs::remove_dir_all(&own).unwrap();
    fs::write(&own, "").unwrap();
    assert!(looked(&there).is_err());
    assert!(looked(&directory.path().join("no/such/parent")).is_err());
    assert!(looked(Path::new("/proc/self/mem")).is_err());
}

#[test]
fn a_directory_that_others_can_read_or_that_is_a_link_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let own = directory.path().join("interceptor-cache-v1");
    fs::create_dir(&own).unwrap();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
    let refused = DiskStore::open(directory.path(), CAPACITY).unwrap_err();
    assert!(matches!(refused, DirectoryError::Foreign { mode: 0o755, .. }), "{refused}");
    fs::remove_dir(&own).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(elsewhere.path(), &own).unwrap();
    let refused = DiskStore::open(directory.path(), CAPACITY).unwrap_err();
    assert!(matches!(refused, DirectoryError::Io { .. }), "{refused}");
    let missing = directory.path().join("no/such/parent");
    assert!(DiskStore::open(&missing, CAPACITY).unwrap_err().to_string().contains("no/such/parent"));
}

#[test]
fn links_and_other_things_under_a_name_are_not_followed() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(&directory, CAPACITY);
    let object = object(3);
    write(&store, object, 0, object.len);
    drop(store);
    let data = files(&directory).into_iter().find(|path| path.extension().is_none()).unwrap();
    let elsewhere = directory.path().join("elsewhere");
    fs::rename(&data, &elsewhere).unwrap();
    symlink(&elsewhere, &data).unwrap();
    let store = restarted(&directory, CAPACITY);
    assert!(!reads_all(&store, &object));
    assert_eq!(write(&store, object, 0, object.len), object.len);
    assert!(reads_all(&store, &object) && elsewhere.exists());
}

#[test]
fn a_file_under_the_name_of_another_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(&directory, CAPACITY);
    let (one, other) = (object(3), Member { name: name(4), len: object(3).len });
    write(&store, one, 0, one.len);
    write(&store, other, 0, other.len);
    drop(store);
    let path = |object: &Member, suffix: &str| {
        let file = format!("{}{suffix}", object.name);
        files(&directory).into_iter().find(|path| path.ends_with(&file)).unwrap()
    };
    // The bytes of one under the checksums of the other, then all of it.
    fs::copy(path(&one, ""), path(&other, "")).unwrap();
    let store = restarted(&directory, CAPACITY);
    assert!(!reads_all(&store, &other) && reads_all(&store, &one));
    write(&store, other, 0, other.len);
    drop(store);
    fs::copy(path(&one, ""), path(&other, "")).unwrap();
    fs::copy(path(&one, ".sums"), path(&other, ".sums")).unwrap();
    let store = restarted(&directory, CAPACITY);
    assert!(!reads_all(&store, &other) && reads_all(&store, &one));
}

#[test]
fn damage_is_an_error_once_and_then_absence() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(&directory, CAPACITY);
    let object = object(3);
    write(&store, object, 0, object.len);
    let data = files(&directory).into_iter().find(|path| path.extension().is_none()).unwrap();
    damage(&data, &Damage::Flip { at: 0.5, bit: 3 });
    let mut bytes = vec![0; object.len as usize];
    let read = store.read(&object.name, 0, &mut bytes);
    assert!(matches!(read, Err(CacheFileError::Damaged)), "{read:?}");
    let read = store.read(&object.name, 0, &mut bytes);
    assert!(matches!(read, Err(CacheFileError::Absent)), "{read:?}");
    assert!(files(&directory).is_empty());
}

#[derive(Debug, Clone)]
enum Damage {
    Flip { at: f64, bit: u8 },
    Truncate { at: f64 },
    Zero { at: f64 },
    Remove,
    Grow,
}

fn damage(path: &Path, how: &Damage) {
    let len = path.metadata().unwrap().len();
    let at = |part: f64| ((len as f64 * part) as u64).min(len.saturating_sub(1));
    let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    match how {
        Damage::Flip { at: part, bit } => {
            let mut bytes = fs::read(path).unwrap();
            if let Some(byte) = bytes.get_mut(at(*part) as usize) {
                *byte ^= 1 << bit;
            }
            file.write_all(&bytes).unwrap();
        }
        Damage::Truncate { at: part } => file.set_len(at(*part)).unwrap(),
        Damage::Zero { at: part } => {
            file.seek(SeekFrom::Start(at(*part))).unwrap();
            file.write_all(&vec![0; (len - at(*part)).min(4096) as usize]).unwrap();
        }
        Damage::Remove => fs::remove_file(path).unwrap(),
        Damage::Grow => file.set_len(len + 4096).unwrap(),
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write { number: u8, first: u64, sectors: u64 },
    Read { number: u8, first: u64, sectors: u64 },
    Damage { file: usize, how: Damage },
    Restart { capacity: u64 },
    Maintain,
}

fn step() -> impl Strategy<Value = Step> {
    let part = || 0.0f64..1.0;
    let damage = prop_oneof![
        (part(), 0u8..8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        part().prop_map(|at| Damage::Truncate { at }),
        part().prop_map(|at| Damage::Zero { at }),
        Just(Damage::Remove),
        Just(Damage::Grow),
    ];
    prop_oneof![
        8 => (0u8..8, 0u64..6, 1u64..7).prop_map(|(number, first, sectors)| Step::Write { number, first, sectors }),
        8 => (0u8..8, 0u64..6, 1u64..7).prop_map(|(number, first, sectors)| Step::Read { number, first, sectors }),
        3 => (any::<usize>(), damage).prop_map(|(file, how)| Step::Damage { file, how }),
        2 => (4u64..40).prop_map(|sectors| Step::Restart { capacity: sectors * SECTOR }),
        1 => Just(Step::Maintain),
    ]
}

/// `sectors` sectors of an object from sector `first` on, cut at its end; empty beyond it.
fn range(object: &Member, first: u64, sectors: u64) -> (u64, u64) {
    let offset = (first * SECTOR).min(object.len);
    (offset, (sectors * SECTOR).min(object.len - offset))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Writes, reads, damage and restarts in any order: no wrong byte, no start refused, and the
    /// space is bounded. Without damage and eviction, what was written is there.
    #[test]
    fn no_wrong_byte_whatever_happens_to_the_files(steps in prop::collection::vec(step(), 1..60)) {
        let directory = tempfile::tempdir().unwrap();
        let mut capacity = CAPACITY;
        let mut store = opened(&directory, capacity);
        // Sectors that must be there, by object.
        let mut present: HashMap<u8, HashSet<u64>> = HashMap::new();
        let mut is_certain = true;
        for step in steps {
            match step {
                Step::Write { number, first, sectors } => {
                    let object = object(number);
                    let (offset, len) = range(&object, first, sectors);
                    if len > 0 {
                        // After damage a write may find that, and start anew.
                        write(&store, object, offset, len);
                        let sectors = offset / SECTOR..(offset + len).div_ceil(SECTOR);
                        present.entry(number).or_default().extend(sectors);
                    }
                }
                Step::Read { number, first, sectors } => {
                    let object = object(number);
                    let (offset, len) = range(&object, first, sectors);
                    if len > 0 {
                        let found = reads(&store, &object, offset, len);
                        let known = present.get(&number);
                        let expected = (offset / SECTOR..(offset + len).div_ceil(SECTOR))
                            .all(|sector| known.is_some_and(|known| known.contains(&sector)));
                        prop_assert!(!is_certain || found == expected);
                        prop_assert!(expected || !found, "what was never written is not there");
                    }
                }
                Step::Damage { file, how } => {
                    let files = files(&directory);
                    if !files.is_empty() {
                        damage(&files[file % files.len()], &how);
                        is_certain = false;
                    }
                }
                Step::Restart { capacity: next } => {
                    drop(store);
                    capacity = next;
                    is_certain = false;
                    store = restarted(&directory, capacity);
                }
                Step::Maintain => store.maintain(),
            }
            prop_assert!(store.usage().used <= capacity);
        }
    }
}

#[tokio::test]
async fn what_is_offered_comes_back_and_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let metrics = Metrics::new();
    let config =
        DiskCacheConfig { directory: directory.path().to_owned(), capacity: CAPACITY, max_queued: 1 << 20 };
    let cache = DiskCache::open(&config, metrics.clone(), Handle::current()).unwrap();
    let object = object(3);
    assert!(!cache.is_second_use(&object, 0) && !cache.is_second_use(&object, SECTOR));
    assert!(cache.is_second_use(&object, 0));
    cache.offer(object, 0, bytes_of(&object, 0, object.len));
    while cache.usage().queued > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(cache.usage().written, object.len);
    let mut bytes = vec![0; object.len as usize];
    assert!(cache.read(&object, 0, &mut bytes).await);
    assert!(bytes == bytes_of(&object, 0, object.len));
    assert_eq!(metrics.totals().fetches[Source::Disk as usize].bytes, object.len);
    let data = files(&directory).into_iter().find(|path| path.extension().is_none()).unwrap();
    damage(&data, &Damage::Zero { at: 0.1 });
    assert!(!cache.read(&object, 0, &mut bytes).await && !cache.read(&object, 0, &mut bytes).await);
    assert_eq!(metrics.totals().integrity_failures, [(Source::Disk, 1)].into());
}

/// A file of the objects, and its header.
fn file_of(number: u8, objects: &[Member]) -> FileHeader {
    let name = ClusterIdentity::new("test", 1).unwrap().name("file", &[&[number]]);
    FileHeader { name, members: objects.into() }
}

fn content_of(objects: &[Member]) -> Vec<u8> {
    objects.iter().flat_map(|object| bytes_of(object, 0, object.len)).collect()
}

/// Fills a file that was begun, as far as there is room.
fn fill(store: &DiskStore, header: &FileHeader) -> bool {
    let Some(file) = store.begin(header.clone()).unwrap() else { return false };
    for (number, object) in header.members.iter().enumerate() {
        if !store.add(&file, number, 0, &bytes_of(object, 0, object.len)).unwrap() {
            break;
        }
    }
    store.finish(&file);
    store.has_file(&header.name)
}

#[test]
fn a_complete_file_is_what_the_kernel_may_read_and_has_its_objects() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(&directory, CAPACITY);
    let objects = [1, 2, 3].map(object);
    let header = file_of(1, &objects);
    write(&store, objects[1], 0, objects[1].len);
    assert!(fill(&store, &header) && !fill(&store, &header), "it is there");
    assert_eq!(store.usage().files, 1, "its objects need no files of their own");
    assert!(objects.iter().all(|object| reads_all(&store, object)));
    assert!(store.complete(&header.name).is_none(), "it was not verified yet");
    drop(store);
    let store = restarted(&directory, CAPACITY);
    assert!(objects.iter().all(|object| reads_all(&store, object)));
    store.prepare(&header.name).unwrap();
    let complete = store.complete(&header.name).unwrap();
    let path = format!("/proc/self/fd/{}", complete.as_fd().as_raw_fd());
    assert!(fs::read(path).unwrap() == content_of(&objects));
}

#[test]
fn a_file_that_is_not_all_there_is_not_complete() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(&directory, CAPACITY);
    let objects = [1, 2].map(object);
    let header = file_of(1, &objects);
    let file = store.begin(header.clone()).unwrap().unwrap();
    store.add(&file, 0, 0, &bytes_of(&objects[0], 0, objects[0].len)).unwrap();
    assert!(matches!(store.prepare(&header.name), Err(CacheFileError::Absent)));
    // As after a crash, another attempt goes on with what is there.
    drop(file);
    drop(store);
    let store = restarted(&directory, CAPACITY);
    assert!(reads_all(&store, &objects[0]) && !reads_all(&store, &objects[1]));
    assert!(fill(&store, &header));
    store.prepare(&header.name).unwrap();
    let file = store.begin(file_of(2, &objects)).unwrap().unwrap();
    store.finish(&file);
    assert!(!store.has_file(&file.header().name), "what remains incomplete is removed");
}

#[test]
fn a_complete_file_with_damage_is_not_handed_out() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(&directory, CAPACITY);
    let header = file_of(1, &[1, 2].map(object));
    assert!(fill(&store, &header));
    let data = files(&directory).into_iter().find(|path| path.extension().is_none()).unwrap();
    damage(&data, &Damage::Flip { at: 0.9, bit: 0 });
    assert!(matches!(store.prepare(&header.name), Err(CacheFileError::Damaged)));
    assert!(store.complete(&header.name).is_none() && files(&directory).is_empty());
}

#[test]
fn a_file_that_the_kernel_reads_does_not_leave_for_others() {
    let directory = tempfile::tempdir().unwrap();
    let store = opened(&directory, 1 << 20);
    let header = file_of(1, &[1, 2].map(object));
    assert!(fill(&store, &header));
    store.prepare(&header.name).unwrap();
    let complete = store.complete(&header.name).unwrap();
    let object = |number: u8| Member { name: name(number), len: 8 * SECTOR };
    (100..150).for_each(|number| _ = write(&store, object(number), 0, 8 * SECTOR));
    assert!(store.complete(&header.name).is_some());
    drop(complete);
    (150..200).for_each(|number| _ = write(&store, object(number), 0, 8 * SECTOR));
    assert!(store.complete(&header.name).is_none());
    assert!(!fill(&store, &file_of(2, &[Member { len: 600 << 10, ..object(1) }])), "it would take too much");
}

#[tokio::test]
async fn a_file_is_made_of_objects_or_read_and_handed_out_once_it_is_verified() {
    let directory = tempfile::tempdir().unwrap();
    let config =
        DiskCacheConfig { directory: directory.path().to_owned(), capacity: CAPACITY, max_queued: 1 << 20 };
    let cache = DiskCache::open(&config, Metrics::new(), Handle::current()).unwrap();
    let objects = [1, 2, 3].map(object);
    let [by_objects, by_reader] = [1, 2].map(|number| file_of(number, &objects));
    for object in &objects {
        cache.offer(*object, 0, bytes_of(object, 0, object.len));
    }
    while cache.usage().queued > 0 {
        tokio::task::yield_now().await;
    }
    assert!(cache.has_all(&objects) && cache.wants_file(&by_objects.name, 1));
    assert!(cache.keep_file(by_objects.name, by_objects.members.clone(), FileSource::Disk).await.unwrap());
    let content = content_of(&objects);
    let read = move |offset: u64, bytes: &mut [u8]| {
        bytes.copy_from_slice(&content[offset as usize..][..bytes.len()]);
        Ok(())
    };
    let source = FileSource::Reader(Box::new(read));
    assert!(cache.keep_file(by_reader.name, by_reader.members.clone(), source).await.unwrap());
    for header in [by_objects, by_reader] {
        let complete = loop {
            match cache.opened(&header.name) {
                Some(complete) => break complete,
                None => tokio::task::yield_now().await,
            }
        };
        let path = format!("/proc/self/fd/{}", complete.as_fd().as_raw_fd());
        assert!(fs::read(path).unwrap() == content_of(&objects));
        assert!(cache.is_complete(&header.name) && !cache.wants_file(&header.name, 1));
    }
}

/// For how long daemons are killed; `DISK_CACHE_KILLS` asks for a number of kills instead.
const KILLING_TIME: Duration = Duration::from_secs(10);
/// What the process that is killed may take.
const FILLED_CAPACITY: u64 = 4 << 20;
/// What it may have written that it has not accounted for: a file, and its checksums.
const MAX_STEP: u64 = 256 << 10;
/// The variable with the directory that it fills.
const FILLED_DIRECTORY: &str = "DISK_CACHE_FILLED";

/// Fills a directory until it is killed: objects piece by piece, files of several objects.
#[test]
#[ignore = "is started, and killed, by the next test"]
fn fills_a_directory_until_it_is_killed() {
    let Some(directory) = std::env::var_os(FILLED_DIRECTORY) else { return };
    let store = DiskStore::open(Path::new(&directory), FILLED_CAPACITY).unwrap();
    store.scan();
    println!("filling");
    for round in std::process::id().. {
        let number = (round % 200) as u8;
        let object = object(number);
        let (offset, len) = range(&object, u64::from(round / 200 % 3), 2);
        if len > 0 {
            write(&store, object, offset, len);
        }
        reads(&store, &object, offset, len.max(1));
        if number.is_multiple_of(7) {
            let objects = [number, number.wrapping_add(1)].map(self::object);
            fill(&store, &file_of(number, &objects));
        }
    }
}

/// Kills a process that fills a directory, at random moments, and damages a file now and then: no
/// wrong byte, no start refused, and the space is bounded.
#[test]
fn a_killed_daemon_leaves_nothing_wrong() {
    let kills = std::env::var("DISK_CACHE_KILLS").ok().and_then(|kills| kills.parse::<u32>().ok());
    let (directory, begun) = (tempfile::tempdir().unwrap(), Instant::now());
    let mut dice = StdRng::seed_from_u64(1);
    let (mut killed, mut found) = (0, 0);
    while kills.map_or(begun.elapsed() < KILLING_TIME, |kills| killed < kills) {
        let mut filling = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "disk::tests::fills_a_directory_until_it_is_killed",
                "--ignored",
                "--nocapture",
            ])
            .env(FILLED_DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(filling.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.contains("filling")), "it has failed to start");
        // A moment of the filling, drawn by lot.
        std::thread::sleep(Duration::from_micros(dice.random_range(0..30_000)));
        filling.kill().unwrap();
        filling.wait().unwrap();
        killed += 1;
        assert!(on_disk(&directory) <= FILLED_CAPACITY + MAX_STEP, "{}", on_disk(&directory));
        let files = files(&directory);
        if dice.random_bool(0.3) && !files.is_empty() {
            let at = dice.random_range(0.0..1.0);
            let how = match dice.random_range(0..4) {
                0 => Damage::Flip { at, bit: 3 },
                1 => Damage::Truncate { at },
                2 => Damage::Zero { at },
                _ => Damage::Remove,
            };
            damage(&files[dice.random_range(0..files.len())], &how);
        }
        let store = DiskStore::open(directory.path(), FILLED_CAPACITY).unwrap();
        store.scan();
        for number in 0..=200 {
            let object = object(number);
            found += (0..object.len.div_ceil(SECTOR))
                .map(|first| range(&object, first, 1))
                .filter(|(offset, len)| reads(&store, &object, *offset, *len))
                .count();
            let objects = [number, number.wrapping_add(1)].map(self::object);
            let name = file_of(number, &objects).name;
            if store.prepare(&name).is_ok() {
                let complete = store.complete(&name).unwrap();
                let path = format!("/proc/self/fd/{}", complete.as_fd().as_raw_fd());
                assert!(fs::read(path).unwrap() == content_of(&objects), "wrong bytes");
                found += 1;
            }
        }
        assert!(store.usage().used <= FILLED_CAPACITY);
    }
    assert!(killed > 0 && found > 0, "{found} sectors and files were found after {killed} kills");
}
