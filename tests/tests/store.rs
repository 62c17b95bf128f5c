//! The volume store reader beside the real volume server: the files on disk, and the server's
//! changes to them.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rdma_engine::client::{Client, ClientOptions, ReadError, ReadTarget, Trust};
use rdma_engine::metrics::Metrics;
use rdma_engine::needle::{HEADER, Header, Tail, Version};
use rdma_engine::protocol::Transport;
use rdma_engine::store::{IndexChange, ReadMode, Store, StoreError, Superblock, VolumeInfo, parse_entry};
use rdma_engine::{FileId, Refusal, checksum, server};
use tests::needles::Assigned;
use tests::{Cluster, Needles, Pattern, data, eventually, host};

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

fn fid(assigned: &Assigned) -> FileId {
    assigned.fid.parse().unwrap()
}

fn read(store: &Store, assigned: &Assigned) -> Result<Vec<u8>, Refusal> {
    let refused = |error| match error {
        StoreError::Refused(refusal) => refusal,
        StoreError::WouldBlock => panic!("a caller that may wait was told to"),
    };
    let record = store.locate(fid(assigned), ReadMode::Blocking).map_err(refused)?;
    let mut bytes = vec![0; record.data_size as usize];
    record.read_into(0, &mut bytes, ReadMode::Blocking).map_err(refused)?;
    Ok(bytes)
}

fn store_of(cluster: &Cluster) -> Store {
    Store::new(vec![cluster.volume_servers()[0].directory()], None).unwrap()
}

/// Writes needles of one volume: as many as asked for, of a collection of their own.
fn one_volume(needles: &Needles, collection: &str, count: u64) -> Vec<Assigned> {
    let mut found: Vec<Assigned> = Vec::new();
    while (found.len() as u64) < count {
        let assigned = needles.assign(&format!("collection={collection}")).unwrap();
        if found.first().is_none_or(|first| fid(first).volume == fid(&assigned).volume) {
            found.push(assigned);
        }
    }
    found
}

#[test]
#[cfg_attr(not(can_serve), ignore = "needs weed")]
fn the_layout_that_weed_writes() {
    if !host::can_serve() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let needles = Needles::new(&cluster);
    let written = one_volume(&needles, "layout", 30);
    for (index, at) in (0..).zip(&written) {
        match index % 3 {
            0 => needles.put(at, &Pattern::new(index).bytes(0, 1000 * index as usize + 1), "", &[]).unwrap(),
            1 => needles.put(at, &data::text(index, 5000), "", &[("Content-Type", "text/plain")]).unwrap(),
            _ => needles.put(at, &[], "", &[]).unwrap(),
        }
    }
    for at in &written[20..] {
        needles.delete(at).unwrap();
    }
    let volume = fid(&written[0]).volume;
    let directory = cluster.volume_servers()[0].directory();
    let file = |extension: &str| fs::read(directory.join(format!("layout_{volume}.{extension}"))).unwrap();
    let (dat, idx) = (file("dat"), file("idx"));

    let superblock = Superblock::parse(dat.first_chunk().unwrap()).unwrap();
    assert_eq!((superblock.version, superblock.revision, superblock.first_record), (Version::V3, 0, 8));
    let info = VolumeInfo::parse(&file("vif")).unwrap();
    let width = info.offset_width.expect("weed says how wide offsets are");
    assert!(!info.is_remote);
    assert_eq!(idx.len() % width.entry_length(), 0);

    // Records follow each other up to the very end, live ones and tombstones, and each has its
    // entry in the index.
    let mut at = 8;
    let mut last = 0;
    for entry in idx.chunks(width.entry_length()) {
        let (key, change) = parse_entry(width, entry);
        let header = Header::parse(dat[at..at + HEADER].first_chunk().unwrap());
        assert_eq!(header.key, key);
        let size = header.size.cast_unsigned();
        let position = u32::from_be_bytes(entry[8..12].try_into().unwrap());
        assert_eq!(position as usize * 8, at, "tombstones too point at their records");
        match change {
            IndexChange::Written(position) => assert_eq!(position.size, size),
            IndexChange::Deleted => assert_eq!((size, entry.last_chunk::<4>()), (0, Some(&[0xff; 4]))),
        }
        let length = usize::try_from(Version::V3.record_length(size)).unwrap();
        let mut tail_at = at + HEADER;
        if size > 0 {
            let data_size = u32::from_be_bytes(dat[tail_at..tail_at + 4].try_into().unwrap()) as usize;
            let data = &dat[tail_at + 4..tail_at + 4 + data_size];
            tail_at += 4 + data_size;
            let end = at + HEADER + size as usize + Version::V3.trailer();
            let tail = Tail::parse(Version::V3, &dat[tail_at..end]).unwrap();
            assert_eq!(tail.checksum, checksum::crc32c(data), "the checksum is stored as it is");
            assert_eq!(tail.flags.is_gzip(), data.starts_with(&[0x1f, 0x8b]));
            assert!(tail.last_modified.is_some());
            assert!(tail.append_at_ns > last);
            last = tail.append_at_ns;
            assert!((1..=8).contains(&(at + length - end)), "padding is never empty");
        } else {
            assert_eq!(length, 32);
        }
        at += length;
    }
    assert_eq!(at, dat.len());

    let store = store_of(&cluster);
    for assigned in &written {
        let expected = needles.get(assigned).unwrap().unwrap_or_default();
        assert!(read(&store, assigned).unwrap() == expected, "{}", assigned.fid);
    }
    assert!(store.locate(fid(&written[20]), ReadMode::Blocking).unwrap().deleted);

    // A filer compresses what is worth it, and names what it writes.
    let filer = cluster.filer();
    filer.put_as("/poem.txt", &data::text(1, 50_000), "", &[("Content-Type", "text/plain")]).unwrap();
    let chunk = filer.chunks("/poem.txt").unwrap()[0]["file_id"].as_str().unwrap().to_owned();
    let chunk = Assigned { fid: chunk, server: cluster.volume_servers()[0].address() };
    let compressed = store.locate(fid(&chunk), ReadMode::Blocking).unwrap();
    assert!(compressed.flags().is_gzip() && compressed.data_size < 50_000);
    assert!(read(&store, &chunk).unwrap() == needles.get(&chunk).unwrap().unwrap());
}

#[test]
#[cfg_attr(not(can_serve), ignore = "needs weed")]
fn what_the_server_does_to_a_volume_is_followed() {
    if !host::can_serve() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let needles = Needles::new(&cluster);
    let store = store_of(&cluster);
    let written = one_volume(&needles, "life", 40);
    for (index, at) in (0..).zip(&written) {
        needles.put(at, &Pattern::new(index).bytes(0, 20_000), "", &[]).unwrap();
        assert!(
            read(&store, at).unwrap() == Pattern::new(index).bytes(0, 20_000),
            "seen as soon as it is written"
        );
    }

    // Compaction: everything moves, deleted needles go, what was located before can still be read.
    for at in &written[..20] {
        needles.delete(at).unwrap();
    }
    assert!(read(&store, &written[0]).unwrap() == Pattern::new(0).bytes(0, 20_000), "deleted, not compacted");
    let held = store.locate(fid(&written[30]), ReadMode::Blocking).unwrap();
    eventually("a compaction", 4 * WAIT_TIMEOUT, || {
        // Again and again: it does nothing before the master has heard of the garbage.
        needles.vacuum().ok()?;
        let outcome = store.locate(fid(&written[30]), ReadMode::Blocking).ok()?;
        (outcome.file.revision() > held.file.revision()).then_some(())
    })
    .unwrap();
    for (index, at) in (0..).zip(&written) {
        match index < 20 {
            true => assert_eq!(read(&store, at), Err(Refusal::NoNeedle)),
            false => assert!(read(&store, at).unwrap() == Pattern::new(index).bytes(0, 20_000)),
        }
    }
    let mut bytes = vec![0; 20_000];
    held.read_into(0, &mut bytes, ReadMode::Blocking).unwrap();
    assert!(bytes == Pattern::new(30).bytes(0, 20_000) && held.file.is_unlinked());

    // Conversion to shards.
    let volume = fid(&written[0]).volume;
    let encode = format!("ec.encode -collection=life -volumeId={volume} -force -fullPercent=0 -quietFor=0s");
    match cluster.shell(&["lock", &encode, "unlock"]) {
        Ok(_) => assert_eq!(read(&store, &written[30]), Err(Refusal::ErasureCoded)),
        Err(error) if format!("{error:#}").contains("no free ec shard slots") => {
            host::skipped("the disk has too little room for shards");
        }
        Err(error) => panic!("{error:#}"),
    }

    // A collection that is deleted takes its files with it.
    let gone = one_volume(&needles, "gone", 1).remove(0);
    needles.put(&gone, b"soon gone", "", &[]).unwrap();
    assert_eq!(read(&store, &gone).unwrap(), b"soon gone");
    // A restart of the server changes nothing, and while it is down the files are there.
    cluster.volume_servers()[0].kill();
    assert_eq!(read(&store, &gone).unwrap(), b"soon gone");
    cluster.restart_volume_server(0).unwrap();
    assert_eq!(read(&store, &gone).unwrap(), b"soon gone");
    cluster.shell(&["lock", "collection.delete -collection=gone -force", "unlock"]).unwrap();
    eventually("the end of a collection", WAIT_TIMEOUT, || {
        (read(&store, &gone) == Err(Refusal::NoVolume)).then_some(())
    })
    .unwrap();
}

#[test]
#[cfg_attr(not(can_serve), ignore = "needs weed")]
fn an_index_that_was_cut_off_is_refused_or_right() {
    if !host::can_serve() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let needles = Needles::new(&cluster);
    let written = one_volume(&needles, "cut", 10);
    for (index, at) in (0..).zip(&written) {
        needles.put(at, &Pattern::new(index).bytes(0, 3000), "", &[]).unwrap();
    }
    let volume = fid(&written[0]).volume;
    let copy = tempfile::tempdir().unwrap();
    let from = cluster.volume_servers()[0].directory();
    for extension in ["dat", "idx", "vif"] {
        let name = format!("cut_{volume}.{extension}");
        fs::copy(from.join(&name), copy.path().join(&name)).unwrap();
    }
    let path = copy.path().join(format!("cut_{volume}.idx"));
    let whole = fs::read(&path).unwrap();
    let store = Store::new(vec![copy.path().into()], None).unwrap();
    let entry = whole.len() / written.len();
    for length in [10 * entry, 10 * entry - 1, 6 * entry + 4, entry + 1, entry, entry - 1, 0, 10 * entry] {
        fs::write(&path, &whole[..length]).unwrap();
        for (index, at) in (0..).zip(&written) {
            match read(&store, at) {
                Ok(bytes) => assert!(bytes == Pattern::new(index as u64).bytes(0, 3000)),
                Err(refusal) => {
                    assert_eq!(refusal, Refusal::NoNeedle);
                    assert!((index + 1) * entry > length, "needle {index} is in an index of {length} bytes");
                }
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Put { slot: usize, seed: u64, size: usize, text: bool },
    Delete(usize),
    Read(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let slot = 0usize..12;
    let size = prop_oneof![4 => 0usize..3000, 2 => 3000usize..100_000, 1 => 1_000_000usize..3_000_000];
    let step = prop_oneof![
        4 => (slot.clone(), any::<u64>(), size, any::<bool>())
            .prop_map(|(slot, seed, size, text)| Step::Put { slot, seed, size, text }),
        1 => slot.clone().prop_map(Step::Delete),
        5 => slot.prop_map(Step::Read),
    ];
    prop::collection::vec(step, 20..80)
}

/// With compaction running all the time, every read of random operations, over each transport and
/// from the store itself, equals what was written last and what the volume server sends.
#[test]
#[cfg_attr(not(can_serve), ignore = "needs weed")]
fn random_operations_under_compaction() {
    if !host::can_serve() {
        return;
    }
    let cluster = Cluster::builder().start().unwrap();
    let needles = Needles::new(&cluster);
    let store = Arc::new(store_of(&cluster));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let metrics = Arc::new(Metrics::default());
    let listen = "127.0.0.1:0".parse().unwrap();
    let options = server::EngineOptions::default();
    let engine = server::Engine::bind(listen, store.clone(), None, metrics, &options);
    let engine = runtime.block_on(engine).unwrap();
    let address = engine.address().unwrap().to_string();
    runtime.spawn(engine.serve());
    let clients = [Transport::Tcp, Transport::Local].map(|transport| {
        let trust = Trust { named: true, ..Trust::default() };
        Client::new(
            address.clone(),
            ClientOptions { transports: vec![transport], trust, ..ClientOptions::default() },
        )
    });

    let ended = Arc::new(AtomicBool::new(false));
    let compactor = {
        let (needles, ended) = (needles.clone(), ended.clone());
        std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                // A server that is busy answers late; the next call comes soon enough.
                let _ = needles.vacuum();
            }
        })
    };
    let revisions = Mutex::new(std::collections::HashSet::new());
    let reads = AtomicU64::new(0);
    let check = |at: &Assigned, expected: &Option<(Vec<u8>, bool)>| {
        let target = ReadTarget { fid: fid(at), offset: 0, token: None };
        for source in 0..3 {
            let outcome = eventually("an answer that is not only for the moment", WAIT_TIMEOUT, || {
                let outcome = match source {
                    0 => read(&store, at),
                    client => {
                        let mut bytes = vec![0; 3_100_000];
                        let deadline = tokio::time::Instant::now() + WAIT_TIMEOUT;
                        match runtime.block_on(clients[client - 1].read(target, &mut bytes, deadline)) {
                            Ok(delivered) => {
                                bytes.truncate(delivered.needle.length as usize);
                                Ok(bytes)
                            }
                            Err(ReadError::Refused(refusal)) => Err(refusal),
                            Err(error) => panic!("{}: {error}", at.fid),
                        }
                    }
                };
                let passing = [Refusal::Compacting, Refusal::Loading, Refusal::Stale, Refusal::UnknownFormat];
                (!matches!(&outcome, Err(refusal) if passing.contains(refusal))).then_some(outcome)
            })
            .unwrap();
            reads.fetch_add(1, Ordering::Relaxed);
            match (outcome, expected) {
                (Ok(bytes), Some((content, _))) => {
                    assert!(bytes == *content, "{} from source {source}", at.fid)
                }
                // Deleted, and compacted away.
                (Err(Refusal::NoNeedle), Some((_, true)) | None) => {}
                (outcome, expected) => {
                    let size = |bytes: &Vec<u8>| bytes.len();
                    let expected = expected.as_ref().map(|(content, deleted)| (content.len(), deleted));
                    panic!(
                        "{} from source {source}: {:?}, expected {expected:?}",
                        at.fid,
                        outcome.as_ref().map(size)
                    )
                }
            }
        }
        let served = needles.get(at).unwrap();
        if let (Some(served), Some((content, _))) = (&served, expected) {
            assert!(served == content, "the volume server has other bytes of {}", at.fid);
        }
        if let Ok(record) = store.locate(fid(at), ReadMode::Blocking) {
            revisions.lock().unwrap().insert(record.file.revision());
        }
    };
    let config = Config { cases: 8, max_shrink_iters: 0, failure_persistence: None, ..Config::default() };
    let began = std::time::Instant::now();
    // The master compacts when it has heard of the garbage, which takes it some seconds.
    while revisions.lock().unwrap().len() < 2 {
        assert!(began.elapsed() < 8 * WAIT_TIMEOUT, "nothing was compacted");
        // A new one each time: a runner that has run its cases runs none again.
        TestRunner::new(config.clone())
            .run(&steps(), |steps| {
                let slots: Vec<_> = (0..12).map(|_| needles.assign("").unwrap()).collect();
                let mut model: Vec<Option<(Vec<u8>, bool)>> = vec![None; slots.len()];
                for step in steps {
                    match step {
                        Step::Put { slot, seed, size, text } => {
                            let content =
                                if text { data::text(seed, size) } else { Pattern::new(seed).bytes(0, size) };
                            needles.put(&slots[slot], &content, "", &[]).unwrap();
                            // The server may have compressed it: the stored form counts, and must
                            // unpack to the content.
                            let stored = needles.get(&slots[slot]).unwrap().unwrap();
                            if stored.len() == content.len() {
                                assert!(stored == content);
                            }
                            model[slot] = Some((stored, false));
                        }
                        Step::Delete(slot) => {
                            needles.delete(&slots[slot]).unwrap();
                            if let Some((_, deleted)) = &mut model[slot] {
                                *deleted = true;
                            }
                        }
                        Step::Read(slot) => check(&slots[slot], &model[slot]),
                    }
                }
                for (at, expected) in slots.iter().zip(&model) {
                    check(at, expected);
                }
                Ok(())
            })
            .unwrap();
    }
    ended.store(true, Ordering::Relaxed);
    compactor.join().unwrap();
    let revisions = revisions.lock().unwrap().len();
    println!("{} reads over {revisions} revisions", reads.load(Ordering::Relaxed));
    runtime.shutdown_background();
}
