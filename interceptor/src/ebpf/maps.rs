//! The programs' maps, as user space reads and writes them.

use std::collections::HashMap;

use aya::Ebpf;
use aya::maps::{Array, HashMap as Hash, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use aya::util::nr_cpus;
use interceptor_ebpf::call::{CallRecord, CallSettings};
use interceptor_ebpf::event::Event;
use interceptor_ebpf::heat::{Heat, UNIT};
use interceptor_ebpf::records::{
    GranuleKey, Latency, LatencyKey, PendingHeat, ReaderKey, ReaderSlot, ReaderStats, Traffic, WatchedMount,
    device_index,
};
use interceptor_ebpf::settings::{FieldOffsets, PidNamespace, ProgramSettings};

use super::EbpfError;

/// A type of the shared library, marked as plain data for aya.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Pod<T>(pub(super) T);

macro_rules! records {
    ($($record:ty),*) => {$(
        // SAFETY: the type is `repr(C)`, consists of integers only and has no padding, which is
        // asserted where it is defined.
        unsafe impl aya::Pod for Pod<$record> {}
    )*};
}

records!(
    FieldOffsets,
    ProgramSettings,
    Traffic,
    GranuleKey,
    LatencyKey,
    Latency,
    ReaderKey,
    ReaderStats,
    WatchedMount,
    ReaderSlot,
    PendingHeat,
    CallSettings,
    PidNamespace,
    CallRecord,
    Event
);

/// The record that a program has put into a ring buffer; `None` if it has another size.
pub(super) fn record<T>(data: &[u8]) -> Option<T>
where
    Pod<T>: aya::Pod,
{
    // SAFETY: the length is checked, all bytes are valid for a `Pod`, and `read_unaligned` needs no
    // alignment.
    (data.len() == size_of::<T>()).then(|| unsafe { data.as_ptr().cast::<T>().read_unaligned() })
}

/// A name with zeros behind it.
pub(super) fn text_of(name: &[u8]) -> String {
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

/// A thread that has read from a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReaderThread {
    /// The id of its process.
    pub process: u32,
    /// The id of the thread.
    pub thread: u32,
    /// The id of its cgroup at its first read: the inode number of the directory in cgroup2.
    pub cgroup: u64,
    /// The command name at its first read, up to 15 bytes.
    pub command: String,
    /// Read calls.
    pub reads: u64,
    /// Bytes read, without those read through memory mappings.
    pub bytes: u64,
    /// Bytes that the kernel requested from the daemon on behalf of the thread.
    pub requested_bytes: u64,
}

/// All maps but the ring buffer. They are read when a caller asks.
pub(super) struct Maps {
    devices: Array<MapData, u32>,
    watched: Array<MapData, Pod<WatchedMount>>,
    traffic: PerCpuArray<MapData, Pod<Traffic>>,
    reader_slots: Array<MapData, Pod<ReaderSlot>>,
    pending: PerCpuArray<MapData, Pod<PendingHeat>>,
    latency: PerCpuHashMap<MapData, Pod<LatencyKey>, Pod<Latency>>,
    readers: Hash<MapData, Pod<ReaderKey>, Pod<ReaderStats>>,
    heat: Hash<MapData, Pod<GranuleKey>, u64>,
    /// Device number in the kernel's encoding to the index in `watched` and `traffic`.
    mount_indices: HashMap<u32, u32>,
    cpus: usize,
}

impl Maps {
    /// Takes the maps out of `programs`. Programs must be loaded before: loading resolves maps
    /// through the descriptors that are taken here.
    pub(super) fn take(programs: &mut Ebpf) -> Result<Self, MapError> {
        Ok(Self {
            devices: take(programs, "DEVICES")?.try_into()?,
            watched: take(programs, "WATCHED")?.try_into()?,
            traffic: take(programs, "TRAFFIC")?.try_into()?,
            reader_slots: take(programs, "READER_SLOTS")?.try_into()?,
            pending: take(programs, "PENDING_HEAT")?.try_into()?,
            latency: take(programs, "LATENCY")?.try_into()?,
            readers: take(programs, "READERS")?.try_into()?,
            heat: take(programs, "HEAT")?.try_into()?,
            mount_indices: HashMap::new(),
            cpus: nr_cpus().map_err(|(_, error)| MapError::IoError(error))?,
        })
    }

    /// Makes the programs watch a mount that they do not watch yet, with counters at zero.
    pub(super) fn watch(&mut self, watched: WatchedMount) -> Result<(), EbpfError> {
        let taken = |index: &u32| self.mount_indices.values().any(|other| other == index);
        let index = (0..self.watched.len()).find(|index| !taken(index));
        let device_index = device_index(watched.device);
        // Two devices with one device index are so rare that the second is not watched.
        let (Some(index), 0) = (index, self.devices.get(&device_index, 0)?) else {
            return Err(EbpfError::Full);
        };
        self.watched.set(index, Pod(watched), 0)?;
        let fresh = vec![Pod(Traffic::default()); self.cpus];
        self.traffic.set(index, PerCpuValues::try_from(fresh).map_err(MapError::from)?, 0)?;
        self.devices.set(device_index, index + 1, 0)?;
        self.mount_indices.insert(watched.device, index);
        Ok(())
    }

    /// Makes the programs ignore a mount, and frees its latencies, which no LRU evicts.
    pub(super) fn unwatch(&mut self, device: u32, watch_id: u32) -> Result<(), MapError> {
        if self.mount_indices.remove(&device).is_some() {
            self.devices.set(device_index(device), 0, 0)?;
        }
        let keys: Vec<_> = self.latency.keys().flatten().filter(|key| key.0.watch_id == watch_id).collect();
        for key in keys {
            // The key may be gone already: `unwatch` of the same mount may run twice.
            let _ = self.latency.remove(&key);
        }
        Ok(())
    }

    /// Sets the rank below which the programs sample a group of granules.
    pub(super) fn set_sampling(&mut self, device: u32, rank_limit: u32) -> Result<(), MapError> {
        let index = self.mount_index(device)?;
        let Pod(watched) = self.watched.get(&index, 0)?;
        if watched.sample_rank_limit == rank_limit {
            return Ok(());
        }
        self.watched.set(index, Pod(WatchedMount { sample_rank_limit: rank_limit, ..watched }), 0)
    }

    /// The traffic of a mount, summed over all CPUs.
    pub(super) fn traffic(&self, device: u32) -> Result<Traffic, MapError> {
        let values = self.traffic.get(&self.mount_index(device)?, 0)?;
        Ok(values.iter().fold(Traffic::default(), |sum, Pod(part)| sum_traffic(&sum, part)))
    }

    fn mount_index(&self, device: u32) -> Result<u32, MapError> {
        self.mount_indices.get(&device).copied().ok_or(MapError::KeyNotFound)
    }

    /// The latencies of a mount's daemon by opcode, summed over all CPUs.
    pub(super) fn latency(&self, watch_id: u32) -> Result<HashMap<u32, Latency>, MapError> {
        let mut found = HashMap::new();
        for entry in self.latency.iter() {
            let (Pod(key), values) = entry?;
            if key.watch_id == watch_id {
                let sum: &mut Latency = found.entry(key.opcode).or_insert(Latency::NONE);
                values.iter().for_each(|Pod(part)| add_latency(sum, part));
            }
        }
        Ok(found)
    }

    /// By node of a mount: the granules whose heat at `tick` is not zero, with that heat in bytes.
    pub(super) fn warm_granules(
        &self,
        watch_id: u32,
        tick: u32,
    ) -> Result<HashMap<u64, Vec<(u32, u64)>>, MapError> {
        let mut found: HashMap<u64, Vec<_>> = HashMap::new();
        for entry in self.heat.iter() {
            let (Pod(key), heat) = match entry {
                Ok(entry) => entry,
                // The kernel evicted the entry after its key was listed.
                Err(MapError::KeyNotFound) => continue,
                Err(error) => return Err(error),
            };
            if key.watch_id == watch_id {
                let bytes = u64::from(Heat(heat).level_at(tick)) * UNIT;
                if bytes > 0 {
                    found.entry(key.node).or_default().push((key.granule, bytes));
                }
            }
        }
        for values in self.pending.iter() {
            for Pod(pending) in values?.iter().filter(|Pod(pending)| pending.watch_id == watch_id) {
                let granules = found.entry(pending.node).or_default();
                match granules.iter_mut().find(|(granule, _)| *granule == pending.granule) {
                    Some((_, bytes)) => *bytes = bytes.saturating_add(pending.bytes),
                    None => granules.push((pending.granule, pending.bytes)),
                }
            }
        }
        Ok(found)
    }

    /// The threads that read a mount, as far as the LRU map still has them.
    pub(super) fn readers(&self, watch_id: u32) -> Result<Vec<ReaderThread>, MapError> {
        let mut found = HashMap::new();
        for entry in self.readers.iter() {
            let (Pod(key), Pod(reader)) = match entry {
                Ok(entry) => entry,
                // The kernel evicted the entry after its key was listed.
                Err(MapError::KeyNotFound) => continue,
                Err(error) => return Err(error),
            };
            if key.watch_id == u64::from(watch_id) {
                found.insert(key.pid_tgid, reader_thread(&key, &reader));
            }
        }
        for slot in self.reader_slots.iter() {
            let Pod(slot) = slot?;
            let of_mount = slot.watch_id == u64::from(watch_id);
            if let Some(reader) = found.get_mut(&slot.pid_tgid).filter(|_| of_mount) {
                reader.reads += slot.reads;
                reader.bytes += slot.bytes;
            }
        }
        Ok(found.into_values().filter(|reader| reader.reads > 0 || reader.requested_bytes > 0).collect())
    }
}

/// Takes a map out of `programs`, by its name.
pub(super) fn take(programs: &mut Ebpf, name: &str) -> Result<Map, MapError> {
    programs.take_map(name).ok_or_else(|| MapError::InvalidName { name: name.to_owned() })
}

fn sum_traffic(a: &Traffic, b: &Traffic) -> Traffic {
    Traffic {
        cached_reads: a.cached_reads.wrapping_add(b.cached_reads),
        cached_bytes: a.cached_bytes.wrapping_add(b.cached_bytes),
        direct_reads: a.direct_reads.wrapping_add(b.direct_reads),
        direct_bytes: a.direct_bytes.wrapping_add(b.direct_bytes),
        passthrough_reads: a.passthrough_reads.wrapping_add(b.passthrough_reads),
        passthrough_bytes: a.passthrough_bytes.wrapping_add(b.passthrough_bytes),
        map_windows: a.map_windows.wrapping_add(b.map_windows),
        map_bytes: a.map_bytes.wrapping_add(b.map_bytes),
        faults: a.faults.wrapping_add(b.faults),
        requests: a.requests.wrapping_add(b.requests),
        fill_requests: a.fill_requests.wrapping_add(b.fill_requests),
        fill_bytes: a.fill_bytes.wrapping_add(b.fill_bytes),
        inserted_folios: a.inserted_folios.wrapping_add(b.inserted_folios),
        inserted_bytes: a.inserted_bytes.wrapping_add(b.inserted_bytes),
        lost_events: a.lost_events.wrapping_add(b.lost_events),
        granules_read: a.granules_read.wrapping_add(b.granules_read),
        repeated_samples: a.repeated_samples.wrapping_add(b.repeated_samples),
        lost_samples: a.lost_samples.wrapping_add(b.lost_samples),
    }
}

fn add_latency(sum: &mut Latency, part: &Latency) {
    for (sum, part) in sum.buckets.iter_mut().zip(part.buckets) {
        *sum = sum.wrapping_add(part);
    }
    sum.nanos = sum.nanos.wrapping_add(part.nanos);
    sum.errors = sum.errors.wrapping_add(part.errors);
}

fn reader_thread(key: &ReaderKey, reader: &ReaderStats) -> ReaderThread {
    ReaderThread {
        process: (key.pid_tgid >> 32) as u32,
        thread: key.pid_tgid as u32,
        cgroup: reader.cgroup,
        command: text_of(&reader.command),
        reads: reader.reads,
        bytes: reader.bytes,
        requested_bytes: reader.requested_bytes,
    }
}
