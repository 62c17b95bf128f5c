//! The programs' maps, read from this side.

use std::collections::HashMap;

use aya::Ebpf;
use aya::maps::{HashMap as Hash, Map, MapData, MapError, PerCpuHashMap, PerCpuValues};
use aya::util::nr_cpus;
use interceptor_ebpf::heat::{Heat, UNIT};
use interceptor_ebpf::records::{GranuleKey, Latency, LatencyKey, Reader, ReaderKey, Traffic};
use interceptor_ebpf::settings::{Layout, Settings};

/// Something that both sides know, as `aya` wants to see it.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Record<T>(pub(super) T);

macro_rules! records {
    ($($record:ty),*) => {$(
        // SAFETY: it is `repr(C)`, consists of numbers only and has no padding, as is asserted where it is defined.
        unsafe impl aya::Pod for Record<$record> {}
    )*};
}

records!(Layout, Settings, Traffic, GranuleKey, LatencyKey, Latency, ReaderKey, Reader);

/// A thread that has read from a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadBy {
    /// Its process.
    pub process: u32,
    /// The thread.
    pub thread: u32,
    /// The number of its control group when it was first seen: the inode of the group's directory in cgroup2.
    pub cgroup: u64,
    /// The command that it was running then, up to 15 bytes.
    pub command: String,
    /// Calls.
    pub reads: u64,
    /// Bytes read; those read through mappings are not in it.
    pub bytes: u64,
    /// Bytes that it made the kernel ask the daemon for.
    pub requested_bytes: u64,
}

/// The maps that are read on demand.
pub(super) struct Maps {
    traffic: PerCpuHashMap<MapData, u32, Record<Traffic>>,
    latency: PerCpuHashMap<MapData, Record<LatencyKey>, Record<Latency>>,
    readers: Hash<MapData, Record<ReaderKey>, Record<Reader>>,
    heat: Hash<MapData, Record<GranuleKey>, u64>,
    cpus: usize,
}

impl Maps {
    /// Takes them over. The programs must have been loaded: they find the maps through the descriptors that are taken here.
    pub(super) fn take(programs: &mut Ebpf) -> Result<Self, MapError> {
        Ok(Self {
            traffic: take(programs, "TRAFFIC")?.try_into()?,
            latency: take(programs, "LATENCY")?.try_into()?,
            readers: take(programs, "READERS")?.try_into()?,
            heat: take(programs, "HEAT")?.try_into()?,
            cpus: nr_cpus().map_err(|(_, error)| MapError::IoError(error))?,
        })
    }

    /// Makes the programs look at a mount, which is new to them.
    pub(super) fn watch(&mut self, device: u32, watch: u32) -> Result<(), MapError> {
        let fresh = Record(Traffic { watch: watch.into(), ..Traffic::default() });
        self.traffic.insert(device, PerCpuValues::try_from(vec![fresh; self.cpus])?, 0)
    }

    /// Makes them look away, and frees what is not freed by itself.
    pub(super) fn unwatch(&mut self, device: u32, watch: u32) -> Result<(), MapError> {
        match self.traffic.remove(&device) {
            Err(MapError::KeyNotFound) | Ok(()) => {}
            Err(error) => return Err(error),
        }
        let kinds: Vec<_> = self.latency.keys().flatten().filter(|key| key.0.watch == watch).collect();
        for kind in kinds {
            // Another end of the same watch may have been faster.
            let _ = self.latency.remove(&kind);
        }
        Ok(())
    }

    /// What went through a mount, of all CPUs together.
    pub(super) fn traffic(&self, device: u32) -> Result<Traffic, MapError> {
        let values = self.traffic.get(&device, 0)?;
        Ok(values.iter().fold(Traffic::default(), |sum, Record(part)| added(&sum, part)))
    }

    /// How long its daemon took, by opcode.
    pub(super) fn latency(&self, watch: u32) -> Result<HashMap<u32, Latency>, MapError> {
        let mut found = HashMap::new();
        for entry in self.latency.iter() {
            let (Record(key), values) = entry?;
            if key.watch == watch {
                let sum: &mut Latency = found.entry(key.opcode).or_insert(Latency::NONE);
                values.iter().for_each(|Record(part)| add_latency(sum, part));
            }
        }
        Ok(found)
    }

    /// The granules of each node of a mount of which bytes read are not forgotten at `tick`, and those bytes.
    pub(super) fn warm_granules(
        &self,
        watch: u32,
        tick: u32,
    ) -> Result<HashMap<u64, Vec<(u32, u64)>>, MapError> {
        let mut found: HashMap<u64, Vec<_>> = HashMap::new();
        for entry in self.heat.iter() {
            let (Record(key), heat) = match entry {
                Ok(entry) => entry,
                // It was evicted while we came to it.
                Err(MapError::KeyNotFound) => continue,
                Err(error) => return Err(error),
            };
            if key.watch == watch {
                let bytes = u64::from(Heat(heat).level_at(tick)) * UNIT;
                if bytes > 0 {
                    found.entry(key.node).or_default().push((key.granule, bytes));
                }
            }
        }
        Ok(found)
    }

    /// Who read it.
    pub(super) fn readers(&self, watch: u32) -> Result<Vec<ReadBy>, MapError> {
        let mut found = Vec::new();
        for entry in self.readers.iter() {
            let (Record(key), Record(reader)) = match entry {
                Ok(entry) => entry,
                // It was evicted while we came to it.
                Err(MapError::KeyNotFound) => continue,
                Err(error) => return Err(error),
            };
            if key.watch == u64::from(watch) {
                found.push(read_by(&key, &reader));
            }
        }
        Ok(found)
    }
}

fn take(programs: &mut Ebpf, name: &str) -> Result<Map, MapError> {
    programs.take_map(name).ok_or_else(|| MapError::InvalidName { name: name.to_owned() })
}

fn added(a: &Traffic, b: &Traffic) -> Traffic {
    Traffic {
        watch: b.watch,
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
    }
}

fn add_latency(sum: &mut Latency, part: &Latency) {
    for (sum, part) in sum.buckets.iter_mut().zip(part.buckets) {
        *sum = sum.wrapping_add(part);
    }
    sum.nanos = sum.nanos.wrapping_add(part.nanos);
    sum.errors = sum.errors.wrapping_add(part.errors);
}

fn read_by(key: &ReaderKey, reader: &Reader) -> ReadBy {
    let command = reader.command.split(|byte| *byte == 0).next().unwrap_or_default();
    ReadBy {
        process: (key.thread >> 32) as u32,
        thread: key.thread as u32,
        cgroup: reader.cgroup,
        command: String::from_utf8_lossy(command).into_owned(),
        reads: reader.reads,
        bytes: reader.bytes,
        requested_bytes: reader.requested_bytes,
    }
}
