//! Events of reads: streams, hot ranges, and the count of lost events.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use interceptor::ebpf::{EventKind, ObserverSettings};
use tests::{Bindfs, eventually, host};

use crate::{PAGE, WAIT_TIMEOUT, WatchedMount, can_observe, every_page, nearly};

#[test]
#[cfg_attr(not(all(can_observe, has_bindfs)), ignore = "needs eBPF and bindfs")]
fn the_next_window_of_a_stream_is_announced() {
    if !can_observe() || !host::has_bindfs() {
        return;
    }
    const SIZE: u64 = 64 << 20;
    let bindfs = Bindfs::start().unwrap();
    let file = bindfs.put("file", &vec![1; SIZE as usize]).unwrap();
    let last = bindfs.put("last", &[1; PAGE as usize]).unwrap();
    // Nothing turns hot but what is read three times.
    let settings = ObserverSettings { hot_bytes: 3 << 20, ..ObserverSettings::default() };
    let mut watched = WatchedMount::start(&bindfs.path(), &settings);
    let mut opened = File::open(&file).unwrap();
    let mut buffer = vec![0; 128 << 10];
    while opened.read(&mut buffer).unwrap() > 0 {}
    // The last file is no stream, as one page of it is read, but hot after a while.
    let last = File::open(last).unwrap();
    let node = bindfs.node(&file).unwrap();
    let mut windows: Vec<Range<u64>> = Vec::new();
    eventually("the hot file", WAIT_TIMEOUT, || {
        for _ in 0..1000 {
            last.read_exact_at(&mut buffer[..PAGE as usize], 0).unwrap();
        }
        while let Ok(event) = watched.events.try_recv() {
            if event.kind != EventKind::Stream {
                return Some(());
            }
            assert_eq!(event.node, node, "{event:?}");
            windows.push(event.range);
        }
        None
    })
    .unwrap();
    assert_eq!(windows[0], settings.stream_min_bytes..settings.stream_min_bytes + settings.stream_window);
    assert!(windows.windows(2).all(|pair| pair[1].start == pair[0].end), "{windows:?}");
    assert!(windows.last().unwrap().end >= SIZE, "{windows:?}");
}

#[test]
#[cfg_attr(not(all(can_observe, has_bindfs)), ignore = "needs eBPF and bindfs")]
fn what_is_lost_is_counted() {
    if !can_observe() || !host::has_bindfs() {
        return;
    }
    const PAGES: u64 = 4096;
    let bindfs = Bindfs::start().unwrap();
    let file = bindfs.put("file", &vec![1; (PAGES * PAGE) as usize]).unwrap();
    let mut watched =
        WatchedMount::start(&bindfs.path(), &ObserverSettings { ring: 1, events: 1, ..every_page() });
    let opened = File::open(&file).unwrap();
    let mut buffer = vec![0; 16 * PAGE as usize];
    for offset in (0..PAGES * PAGE).step_by(buffer.len()) {
        opened.read_exact_at(&mut buffer, offset).unwrap();
    }
    let traffic = watched.observer.traffic(watched.device).unwrap();
    assert!(nearly(traffic.cached_bytes, PAGES * PAGE), "counters lose nothing: {traffic:?}");
    let pages = traffic.cached_bytes / PAGE;
    let mut received = 0;
    let all = eventually("every event, or that it was lost", WAIT_TIMEOUT, || {
        while watched.events.try_recv().is_ok() {
            received += 1;
        }
        (received + watched.observer.lost() == pages).then_some(())
    });
    assert!(all.is_ok(), "{received} received, {} lost", watched.observer.lost());
    assert!(watched.observer.lost() > 0);
}

/// The replay of the library's own test of the arithmetic, here with the kernel's map and real
/// reads.
#[test]
#[cfg_attr(not(all(can_observe, has_bindfs)), ignore = "needs eBPF and bindfs")]
fn a_zipf_replay_flags_what_is_hot_and_loses_nothing() {
    const GRANULES: usize = 100_000;
    const READS: usize = 1_000_000;
    if !can_observe() || !host::has_bindfs() {
        return;
    }
    let bindfs = Bindfs::start().unwrap();
    let path = bindfs.put("file", b"").unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    file.set_len(GRANULES as u64 * PAGE).unwrap();
    // Into the page cache, so that the replay goes as fast as the machine can.
    std::io::copy(&mut &file, &mut std::io::sink()).unwrap();

    let sums: Vec<f64> = (1..=GRANULES)
        .scan(0.0, |sum, rank| {
            *sum += (rank as f64).powf(-0.99);
            Some(*sum)
        })
        .collect();
    let whole = sums[GRANULES - 1];
    let reads_of = |rank: usize| (rank as f64).powf(-0.99) / whole * READS as f64;
    let settings = ObserverSettings { hot_bytes: reads_of(1700) as u64 * PAGE, ..every_page() };
    let mut watched = WatchedMount::start(&bindfs.path(), &settings);
    let mut state = 1u64;
    let mut counts = vec![0u32; GRANULES];
    let mut page = vec![0; PAGE as usize];
    let begun = std::time::Instant::now();
    for _ in 0..READS {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let point = (state >> 11) as f64 / (1u64 << 53) as f64 * whole;
        // Ranks are scattered over the file; the factor is coprime to the number of granules.
        let granule = sums.partition_point(|&sum| sum <= point) * 7919 % GRANULES;
        counts[granule] += 1;
        file.read_exact_at(&mut page, granule as u64 * PAGE).unwrap();
    }
    let took = begun.elapsed();
    let traffic = watched.observer.traffic(watched.device).unwrap();
    assert!(nearly(traffic.cached_bytes, READS as u64 * PAGE), "{traffic:?}");
    assert_eq!(watched.observer.lost(), 0);

    let last = bindfs.put("last", &page).unwrap();
    let opened = File::open(&last).unwrap();
    // CPUs may keep an eighth of what makes it hot to themselves.
    for _ in 0..(reads_of(1700) * 9.0 / 8.0).ceil() as usize {
        opened.read_exact_at(&mut page, 0).unwrap();
    }
    let last_node = bindfs.node(&last).unwrap();
    let flagged: BTreeSet<usize> =
        watched.events_until(last_node).iter().map(|event| (event.range.start / PAGE) as usize).collect();
    let mut ranked: Vec<usize> = (0..GRANULES).collect();
    ranked.sort_by_key(|&granule| std::cmp::Reverse(counts[granule]));
    let top = ranked[..GRANULES / 100].iter().filter(|granule| flagged.contains(granule)).count();
    let far = flagged.iter().filter(|granule| !ranked[..GRANULES * 3 / 100].contains(granule)).count();
    println!(
        "{READS} reads in {took:?}; {} flagged: {top} of the top {}, {far} outside the top 3 %; a map of {} granules",
        flagged.len(),
        GRANULES / 100,
        settings.granules
    );
    assert!(top * 100 >= GRANULES / 100 * 95, "{top}");
    assert!(far * 100 <= flagged.len() * 5, "{far} of {}", flagged.len());
}
