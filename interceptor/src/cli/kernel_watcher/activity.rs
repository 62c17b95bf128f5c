//! The hot files and the readers of a mount: eBPF's counters by path and by command.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;

use super::WatchedMount;
use crate::ebpf::{DeviceNumber, FileHeat, Observer, ReaderThread};
use crate::telemetry::activity::{Activity, HotFile, ReaderGroup};
use crate::telemetry::metrics::Gauge;

/// Files and readers that are reported.
const MAX_SHOWN: usize = 12;
/// Parts of a file that are reported.
const MAX_CELLS: u64 = 48;
/// Where control groups are, since version 2 of them.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Bytes by reading thread at the previous sample.
struct ReaderSample {
    at: Instant,
    bytes: HashMap<u32, u64>,
}

/// Tells what goes on in `mount`. Keeps neither it nor the programs.
pub(super) fn gauge<W: WatchedMount>(
    observer: &Arc<Observer>,
    device: DeviceNumber,
    mount: &Arc<W>,
) -> Gauge<Option<Activity>> {
    let (observer, mount) = (Arc::downgrade(observer), Arc::downgrade(mount));
    let last = Mutex::new(ReaderSample { at: Instant::now(), bytes: HashMap::new() });
    Box::new(move || {
        let observer = observer.upgrade()?;
        let hottest = observer.hottest_ranges(device, MAX_SHOWN).ok()?;
        let granule = observer.granule();
        let hottest = hottest.iter().map(|seen| hot_file(seen, granule, &mount)).collect();
        let read = observer.readers(device).ok()?;
        let mut last = last.lock();
        let now = ReaderSample {
            at: Instant::now(),
            bytes: read.iter().map(|reader| (reader.thread, reader.bytes)).collect(),
        };
        let seconds = now.at.duration_since(last.at).as_secs_f64();
        let readers = readers(&read, &last.bytes, seconds);
        *last = now;
        Some(Activity { hottest, readers, seconds })
    })
}

fn hot_file<W: WatchedMount>(seen: &FileHeat, granule: u64, mount: &Weak<W>) -> HotFile {
    let mount = mount.upgrade();
    let version = mount.as_ref().and_then(|mount| mount.version(seen.node));
    let last = seen.granules.iter().map(|(granule, _)| u64::from(*granule) + 1).max().unwrap_or(1);
    let size = version.as_ref().map(|version| version.size());
    let (cell_bytes, cells) = cells(seen, granule, size.unwrap_or(last * granule));
    HotFile {
        path: mount.and_then(|mount| mount.path(seen.node)),
        node: seen.node,
        size,
        bytes: seen.bytes,
        cells,
        cell_bytes,
    }
}

/// What was read of each part of a file of `size` bytes, and how large these parts are.
fn cells(seen: &FileHeat, granule: u64, size: u64) -> (u64, Vec<u64>) {
    let granules = size.div_ceil(granule).max(1);
    let in_cell = granules.div_ceil(MAX_CELLS);
    let mut cells = vec![0; granules.div_ceil(in_cell) as usize];
    for (granule, bytes) in &seen.granules {
        // The file may have become shorter since.
        if let Some(cell) = cells.get_mut((u64::from(*granule) / in_cell) as usize) {
            *cell += bytes;
        }
    }
    (in_cell * granule, cells)
}

/// The threads that read, those together that run the same command in the same control group.
fn readers(read: &[ReaderThread], before: &HashMap<u32, u64>, seconds: f64) -> Vec<ReaderGroup> {
    #[derive(Default)]
    struct CommandTotals {
        processes: HashSet<u32>,
        bytes: u64,
        lately: u64,
        requested: u64,
    }
    let mut sums: BTreeMap<(u64, &str), CommandTotals> = BTreeMap::new();
    for reader in read {
        let sum = sums.entry((reader.cgroup, &reader.command)).or_default();
        sum.processes.insert(reader.process);
        sum.bytes += reader.bytes;
        sum.lately += reader.bytes.saturating_sub(before.get(&reader.thread).copied().unwrap_or(0));
        sum.requested += reader.requested_bytes;
    }
    let mut most: Vec<_> = sums.into_iter().filter(|(_, sum)| sum.bytes > 0).collect();
    most.sort_by_key(|(_, sum)| std::cmp::Reverse((sum.lately, sum.bytes)));
    let reading = |((cgroup, command), sum): ((u64, &str), CommandTotals)| ReaderGroup {
        command: command.to_owned(),
        cgroup: cgroup_path(cgroup, &sum.processes),
        processes: sum.processes.len() as u64,
        bytes_per_second: sum.lately as f64 / seconds.max(1e-3),
        bytes: sum.bytes,
        requested_bytes: sum.requested,
    };
    most.into_iter().take(MAX_SHOWN).map(reading).collect()
}

/// The path of a control group, as one of its processes knows it that is still there.
fn cgroup_path(number: u64, processes: &HashSet<u32>) -> String {
    let path = |process: &u32| {
        let groups = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
        let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?.to_owned();
        // A process may have moved, or have come to the number of one that has ended.
        let found = fs::metadata(Path::new(CGROUP_ROOT).join(path.trim_start_matches('/'))).ok()?;
        (found.ino() == number).then_some(path)
    };
    processes.iter().find_map(path).unwrap_or_else(|| format!("id {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_file_is_told_of_in_parts() {
        let seen = |granules: &[(u32, u64)]| FileHeat { node: 1, bytes: 0, granules: granules.to_vec() };
        assert_eq!(cells(&seen(&[(0, 5), (2, 7)]), MIB, 3 * MIB - 1), (MIB, vec![5, 0, 7]));
        assert_eq!(cells(&seen(&[]), MIB, 0), (MIB, vec![0]));
        let (cell, large) = cells(&seen(&[(0, 1), (1, 2), (99, 4), (200, 9)]), MIB, 100 * MIB);
        assert_eq!((cell, large.len()), (3 * MIB, 34));
        assert_eq!((large[0], large[33]), (3, 4));
    }

    #[test]
    fn readers_of_one_command_are_one() {
        let by = |process, thread, command: &str, bytes| ReaderThread {
            process,
            thread,
            cgroup: u64::MAX,
            command: command.to_owned(),
            reads: 1,
            bytes,
            requested_bytes: 1,
        };
        let read = [by(1, 1, "train", 100), by(1, 2, "train", 50), by(9, 9, "cat", 60), by(8, 8, "idle", 0)];
        let told = readers(&read, &[(1, 90), (9, 0)].into(), 2.0);
        assert_eq!(told.len(), 2);
        assert_eq!((told[0].command.as_str(), told[0].bytes_per_second), ("train", 30.0));
        assert_eq!((told[1].processes, told[1].bytes, told[1].requested_bytes), (1, 60, 1));
        assert_eq!(told[1].cgroup, format!("id {}", u64::MAX));
    }
}
