//! The programs' maps, read from this side.

use std::collections::HashMap;

use aya::Ebpf;
use aya::maps::{Array, HashMap as Hash, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use aya::util::nr_cpus;
use interceptor_ebpf::heat::{Heat, UNIT};
use interceptor_ebpf::records::{
    GranuleKey, Latency, LatencyKey, Reader, ReaderKey, Seat, Traffic, Warmth, Watched, device_place,
};
use interceptor_ebpf::settings::{Layout, Settings};

use super::EbpfError;

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

records!(
    Layout, Settings, Traffic, GranuleKey, LatencyKey, Latency, ReaderKey, Reader, Watched, Seat, Warmth
);

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

/// The maps that are read and written on demand.
pub(super) struct Maps {
    devices: Array<MapData, u32>,
    watched: Array<MapData, Record<Watched>>,
    traffic: PerCpuArray<MapData, Record<Traffic>>,
    seats: Array<MapData, Record<Seat>>,
    warmth: PerCpuArray<MapData, Record<Warmth>>,
    latency: PerCpuHashMap<MapData, Record<LatencyKey>, Record<Latency>>,
    readers: Hash<MapData, Record<ReaderKey>, Record<Reader>>,
    heat: Hash<MapData, Record<GranuleKey>, u64>,
    /// Where the mounts are that are watched, by device.
    places: HashMap<u32, u32>,
    cpus: usize,
}

impl Maps {
    /// Takes them over. The programs must have been loaded: they find the maps through the descriptors that are taken here.
    pub(super) fn take(programs: &mut Ebpf) -> Result<Self, MapError> {
        Ok(Self {
            devices: take(programs, "DEVICES")?.try_into()?,
            watched: take(programs, "WATCHED")?.try_into()?,
            traffic: take(programs, "TRAFFIC")?.try_into()?,
            seats: take(programs, "SEATS")?.try_into()?,
            warmth: take(programs, "WARMTH")?.try_into()?,
            latency: take(programs, "LATENCY")?.try_into()?,
            readers: take(programs, "READERS")?.try_into()?,
            heat: take(programs, "HEAT")?.try_into()?,
            places: HashMap::new(),
            cpus: nr_cpus().map_err(|(_, error)| MapError::IoError(error))?,
        })
    }

    /// Makes the programs look at a mount, which is new to them.
    pub(super) fn watch(&mut self, watched: Watched) -> Result<(), EbpfError> {
        let taken = |place: &u32| self.places.values().any(|other| other == place);
        let place = (0..self.watched.len()).find(|place| !taken(place));
        let entry = device_place(watched.device);
        // Two devices in one place are so rare that the second goes without.
        let (Some(place), 0) = (place, self.devices.get(&entry, 0)?) else {
            return Err(EbpfError::Full);
        };
        self.watched.set(place, Record(watched), 0)?;
        let fresh = vec![Record(Traffic::default()); self.cpus];
        self.traffic.set(place, PerCpuValues::try_from(fresh).map_err(MapError::from)?, 0)?;
        self.devices.set(entry, place + 1, 0)?;
        self.places.insert(watched.device, place);
        Ok(())
    }

    /// Makes them look away, and frees what is not freed by itself.
    pub(super) fn unwatch(&mut self, device: u32, watch: u32) -> Result<(), MapError> {
        if self.places.remove(&device).is_some() {
            self.devices.set(device_place(device), 0, 0)?;
        }
        let kinds: Vec<_> = self.latency.keys().flatten().filter(|key| key.0.watch == watch).collect();
        for kind in kinds {
            // Another end of the same watch may have been faster.
            let _ = self.latency.remove(&kind);
        }
        Ok(())
    }

    /// Has fewer or more granules of a mount sampled.
    pub(super) fn sample(&mut self, device: u32, below: u32) -> Result<(), MapError> {
        let place = self.place(device)?;
        let Record(watched) = self.watched.get(&place, 0)?;
        if watched.sampled_below == below {
            return Ok(());
        }
        self.watched.set(place, Record(Watched { sampled_below: below, ..watched }), 0)
    }

    /// What went through a mount, of all CPUs together.
    pub(super) fn traffic(&self, device: u32) -> Result<Traffic, MapError> {
        let values = self.traffic.get(&self.place(device)?, 0)?;
        Ok(values.iter().fold(Traffic::default(), |sum, Record(part)| added(&sum, part)))
    }

    fn place(&self, device: u32) -> Result<u32, MapError> {
        self.places.get(&device).copied().ok_or(MapError::KeyNotFound)
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
        for values in self.warmth.iter() {
            for Record(warmth) in values?.iter().filter(|Record(warmth)| warmth.watch == watch) {
                let granules = found.entry(warmth.node).or_default();
                match granules.iter_mut().find(|(granule, _)| *granule == warmth.granule) {
                    Some((_, bytes)) => *bytes = bytes.saturating_add(warmth.bytes),
                    None => granules.push((warmth.granule, warmth.bytes)),
                }
            }
        }
        Ok(found)
    }

    /// Who read it.
    pub(super) fn readers(&self, watch: u32) -> Result<Vec<ReadBy>, MapError> {
        let mut found = HashMap::new();
        for entry in self.readers.iter() {
            let (Record(key), Record(reader)) = match entry {
                Ok(entry) => entry,
                // It was evicted while we came to it.
                Err(MapError::KeyNotFound) => continue,
                Err(error) => return Err(error),
            };
            if key.watch == u64::from(watch) {
                found.insert(key.thread, read_by(&key, &reader));
            }
        }
        for seat in self.seats.iter() {
            let Record(seat) = seat?;
            if let Some(reader) = found.get_mut(&seat.thread).filter(|_| seat.watch == u64::from(watch)) {
                reader.reads += seat.reads;
                reader.bytes += seat.bytes;
            }
        }
        Ok(found.into_values().filter(|reader| reader.reads > 0 || reader.requested_bytes > 0).collect())
    }
}

fn take(programs: &mut Ebpf, name: &str) -> Result<Map, MapError> {
    programs.take_map(name).ok_or_else(|| MapError::InvalidName { name: name.to_owned() })
}

fn added(a: &Traffic, b: &Traffic) -> Traffic {
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
        touched: a.touched.wrapping_add(b.touched),
        sampled_again: a.sampled_again.wrapping_add(b.sampled_again),
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
