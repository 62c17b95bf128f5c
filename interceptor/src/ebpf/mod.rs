//! What the kernel sees of reads that no daemon can see: page-cache hits, mapped files, passthrough, whoever reads.
//!
//! The programs are in the crate `interceptor-ebpf`; their object is embedded into this one. An [`Observer`] finds out where this
//! kernel keeps the fields that they read ([`types`], [`layout`]), loads for each sight the best program that the kernel takes ([`ladder`]),
//! and owns them: when it is dropped or its process ends in any way, the kernel detaches them. Nothing is pinned.
//!
//! ```text
//!  Observer::watch(device) ──► maps ◄── programs ◄── the kernel, whenever somebody reads
//!  Observer::traffic, latency, readers ◄──┘ │
//!                  Receiver<Event> ◄── ring ◄┘   a granule turned hot, a stream needs its next window
//! ```
//!
//! It works for any FUSE mount of the host, not only for ours. Nothing of it is on the way of a byte: whatever fails here, reads go on as before.

mod curve;
mod device;
mod events;
mod ladder;
mod layout;
mod maps;
mod settings;
mod types;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aya::maps::{MapError, RingBuf};
use aya::{Btf, BtfError, Ebpf, EbpfLoader};
use interceptor_ebpf::heat::HeatSettings;
use interceptor_ebpf::records::{Latency, Traffic, Watched};
use nix::time::{ClockId, clock_gettime};
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc::Receiver;

use crate::telemetry::MissRatioCurve;

pub use device::Device;
pub use events::{Event, Kind};
pub use ladder::{Rung, sight};
pub use maps::ReadBy;
pub use settings::Settings;

use curve::Curve;
use events::{Curves, Drain, Watches};
use layout::Found;
use maps::{Maps, Record};
use types::{Types, TypesError};

/// The programs, as the build has found them; empty if it has not.
static PROGRAMS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/programs"));

/// Why nothing can be seen.
#[derive(Debug, thiserror::Error)]
pub enum EbpfError {
    /// The binary was built without the programs.
    #[error("the eBPF programs are not built in; `cargo xtask build` builds them")]
    NotBuiltIn,
    /// The kernel does not say where its fields are.
    #[error("the kernel's type information cannot be used: {0}")]
    Types(String),
    /// The kernel does not let this process load programs.
    #[error("no permission to load eBPF programs: that takes CAP_BPF and CAP_PERFMON, or root")]
    NotPermitted,
    /// The kernel refuses the maps, or the object is damaged.
    #[error("the eBPF programs cannot be loaded: {0}")]
    Load(#[source] Box<aya::EbpfError>),
    /// A map cannot be used.
    #[error("a map of the eBPF programs cannot be used: {0}")]
    Map(#[from] MapError),
    /// There is no place for another mount.
    #[error("as many mounts are watched as can be")]
    Full,
    /// The mount is not watched.
    #[error("mount {0} is not watched")]
    NotWatched(Device),
    /// The thread that waits for events cannot be started.
    #[error("cannot wait for events of the kernel: {0}")]
    Thread(#[source] io::Error),
}

impl EbpfError {
    /// What would help.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotBuiltIn => {
                "build with `cargo xtask build`, which brings a compiler for BPF where it can"
            }
            Self::Types(_) => "a kernel with CONFIG_DEBUG_INFO_BTF",
            Self::NotPermitted => "run as root, or give the program CAP_BPF and CAP_PERFMON",
            _ => "see the reason",
        }
    }
}

/// Whether the programs are built in.
pub fn built_in() -> bool {
    !PROGRAMS.is_empty()
}

/// A file that was read lately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HotFile {
    /// Its node.
    pub node: u64,
    /// Bytes read of it that are not forgotten.
    pub bytes: u64,
    /// The same by granule, in no order; the first granule has the number 0.
    pub granules: Vec<(u32, u64)>,
}

/// The programs at work.
pub struct Observer {
    maps: Arc<Mutex<Maps>>,
    watches: Watches,
    curves: Curves,
    /// The size of the granules that are sampled.
    sampled: Option<u64>,
    next_watch: AtomicU32,
    rungs: Vec<Rung>,
    heat: HeatSettings,
    granule: u64,
    drain: Drain,
    /// Owns the programs and their attachments.
    _programs: Ebpf,
}

impl Observer {
    /// Loads and attaches the programs. No mount is watched yet. Takes up to a second of the caller's time.
    ///
    /// Events go to the receiver until the observer is dropped; who does not want them may drop it.
    ///
    /// # Errors
    /// When nothing can be seen at all; the text is for people.
    pub fn start(settings: &Settings) -> Result<(Self, Receiver<Event>), EbpfError> {
        let (mut programs, rungs) = load(settings)?;
        let maps = Maps::take(&mut programs)?;
        let ring = programs.take_map("EVENTS").ok_or(MapError::InvalidName { name: "EVENTS".to_owned() })?;
        let watches: Watches = Arc::new(RwLock::new(HashMap::new()));
        let shared = settings.for_programs(true);
        let (maps, curves) = (Arc::new(Mutex::new(maps)), Curves::default());
        let (drain, events) = Drain::start(
            RingBuf::try_from(ring)?,
            watches.clone(),
            curves.clone(),
            maps.clone(),
            settings.events,
        )
        .map_err(EbpfError::Thread)?;
        let observer = Self {
            maps,
            watches,
            curves,
            sampled: settings.sampled.map(|_| settings.sample_granule()),
            next_watch: AtomicU32::new(1),
            rungs,
            heat: shared.heat,
            granule: 1 << shared.granule_shift,
            drain,
            _programs: programs,
        };
        Ok((observer, events))
    }

    /// Watches a mount from now on, with counters at zero. Watching it again changes nothing.
    ///
    /// # Errors
    /// When too many mounts are watched.
    pub fn watch(&self, device: Device) -> Result<(), EbpfError> {
        let mut maps = self.maps.lock();
        if self.number(device).is_some() {
            return Ok(());
        }
        let watch = self.next_watch.fetch_add(1, Ordering::Relaxed);
        self.watches.write().insert(watch, device);
        let curve = self.sampled.map(Curve::new);
        let sampled_below = curve.as_ref().map_or(0, Curve::below);
        self.curves.lock().extend(curve.map(|curve| (watch, curve)));
        let device = device.in_kernel();
        maps.watch(Watched { watch: watch.into(), device, sampled_below, last_sample: 0 }).inspect_err(|_| {
            self.watches.write().remove(&watch);
            self.curves.lock().remove(&watch);
        })
    }

    /// Does not watch it any more. To be called when the mount is gone: its device number may come back for another.
    ///
    /// # Errors
    /// When the kernel does not let go of it.
    pub fn unwatch(&self, device: Device) -> Result<(), EbpfError> {
        let mut maps = self.maps.lock();
        let Some(watch) = self.number(device) else {
            return Ok(());
        };
        self.watches.write().remove(&watch);
        self.curves.lock().remove(&watch);
        Ok(maps.unwatch(device.in_kernel(), watch)?)
    }

    /// What went through a mount since it is watched.
    ///
    /// # Errors
    /// When it is not watched.
    pub fn traffic(&self, device: Device) -> Result<Traffic, EbpfError> {
        let maps = self.maps.lock();
        self.number(device).ok_or(EbpfError::NotWatched(device))?;
        Ok(maps.traffic(device.in_kernel())?)
    }

    /// How long the mount's daemon took for requests, by opcode (`FUSE_READ` is 15, see `linux/fuse.h`).
    ///
    /// # Errors
    /// When it is not watched.
    pub fn latency(&self, device: Device) -> Result<HashMap<u32, Latency>, EbpfError> {
        let maps = self.maps.lock();
        let watch = self.number(device).ok_or(EbpfError::NotWatched(device))?;
        Ok(maps.latency(watch)?)
    }

    /// What share of the reads a cache would have missed, for every size that it might have; `None` if that is not among the settings.
    ///
    /// # Errors
    /// When it is not watched.
    pub fn curve(&self, device: Device) -> Result<Option<MissRatioCurve>, EbpfError> {
        let watch = self.number(device).ok_or(EbpfError::NotWatched(device))?;
        let traffic = self.traffic(device)?;
        Ok(self.curves.lock().get_mut(&watch).map(|curve| {
            curve.count(traffic.touched, traffic.sampled_again);
            curve.told()
        }))
    }

    /// The threads that read the mount, those that have not read for long left out if there were many.
    ///
    /// # Errors
    /// When it is not watched.
    pub fn readers(&self, device: Device) -> Result<Vec<ReadBy>, EbpfError> {
        let maps = self.maps.lock();
        let watch = self.number(device).ok_or(EbpfError::NotWatched(device))?;
        Ok(maps.readers(watch)?)
    }

    /// The files that were read most lately, hottest first: their nodes, and the bytes that are not forgotten. Looks through everything
    /// that is warm, which takes some milliseconds for every ten thousand granules.
    ///
    /// # Errors
    /// When it is not watched.
    pub fn hottest(&self, device: Device, count: usize) -> Result<Vec<(u64, u64)>, EbpfError> {
        let hottest = self.hottest_ranges(device, count)?;
        Ok(hottest.into_iter().map(|file| (file.node, file.bytes)).collect())
    }

    /// Like [`hottest`](Self::hottest), with what was read of which part of each file.
    ///
    /// # Errors
    /// When it is not watched.
    pub fn hottest_ranges(&self, device: Device, count: usize) -> Result<Vec<HotFile>, EbpfError> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        let tick = self.heat.tick(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
        let maps = self.maps.lock();
        let watch = self.number(device).ok_or(EbpfError::NotWatched(device))?;
        let file = |(node, granules): (u64, Vec<(u32, u64)>)| {
            let bytes = granules.iter().fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes));
            HotFile { node, bytes, granules }
        };
        let mut files: Vec<_> = maps.warm_granules(watch, tick)?.into_iter().map(file).collect();
        files.sort_unstable_by_key(|file| (Reverse(file.bytes), file.node));
        files.truncate(count);
        Ok(files)
    }

    /// Bytes of a granule, whose heat is kept as one.
    pub fn granule(&self) -> u64 {
        self.granule
    }

    /// What is seen, and what is not.
    pub fn rungs(&self) -> &[Rung] {
        &self.rungs
    }

    /// Whether `sight`, one of [`sight`], is seen.
    pub fn sees(&self, sight: &str) -> bool {
        ladder::sees(&self.rungs, sight)
    }

    /// Events of the mounts that are watched that were lost, because the ring or the channel was full.
    pub fn lost(&self) -> u64 {
        let watched: Vec<Device> = self.watches.read().values().copied().collect();
        let traffic = watched.iter().filter_map(|device| self.traffic(*device).ok());
        self.dropped() + traffic.map(|traffic| traffic.lost_events).sum::<u64>()
    }

    /// Of these, those that found the channel full. Those that found the ring full are counted with the [`Traffic`] of their mount.
    pub fn dropped(&self) -> u64 {
        self.drain.dropped()
    }

    fn number(&self, device: Device) -> Option<u32> {
        self.watches.read().iter().find(|(_, watched)| **watched == device).map(|(number, _)| *number)
    }
}

/// What could be seen on this host by this process. Loads the programs and lets go of them again.
pub fn rungs() -> Vec<Rung> {
    match load(&Settings { granules: 1, files: 1, readers: 1, mounts: 1, ring: 1, ..Settings::default() }) {
        Ok((_, rungs)) => rungs,
        Err(error) => ladder::none(&error.to_string(), error.remedy()),
    }
}

/// A program that does nothing, where reads through the page cache are seen: what any program costs there.
pub struct Idle {
    /// Owns the program and its attachment.
    _program: Ebpf,
}

impl Idle {
    /// Loads and attaches it.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn start() -> Result<Self, EbpfError> {
        let (mut program, kernel) = (Ebpf::load(PROGRAMS)?, Btf::from_sys_fs()?);
        ladder::attach_idle(&mut program, &kernel)
            .map_err(|error| EbpfError::Load(Box::new(error.into())))?;
        Ok(Self { _program: program })
    }
}

/// Loads and attaches what the kernel takes.
fn load(settings: &Settings) -> Result<(Ebpf, Vec<Rung>), EbpfError> {
    if !built_in() {
        return Err(EbpfError::NotBuiltIn);
    }
    let types = Types::of_kernel()?;
    let found = Found::in_types(&types);
    let kernel = Btf::from_sys_fs()?;
    let (programs, rungs) = load_with(settings, &found, &kernel, true)?;
    if ladder::sees(&rungs, sight::CACHED_READS) {
        return Ok((programs, rungs));
    }
    // The programs have to know before they are loaded, so they are loaded again.
    drop(programs);
    load_with(settings, &found, &kernel, false)
}

fn load_with(
    settings: &Settings,
    found: &Found,
    kernel: &Btf,
    cached_reads_seen: bool,
) -> Result<(Ebpf, Vec<Rung>), EbpfError> {
    let layout = Record(found.layout);
    let shared = Record(settings.for_programs(cached_reads_seen));
    let mut loader = EbpfLoader::new();
    // The offsets come from us; the object asks for no relocations.
    loader.btf(None).override_global("LAYOUT", &layout, true).override_global("SETTINGS", &shared, true);
    for (map, size) in settings.map_sizes() {
        loader.map_max_entries(map, size);
    }
    let mut programs = loader.load(PROGRAMS)?;
    let wanted = |name: &str| settings.inserts || name != sight::INSERTS;
    let rungs = ladder::climb(&mut programs, kernel, found, wanted);
    Ok((programs, rungs))
}

impl From<TypesError> for EbpfError {
    fn from(error: TypesError) -> Self {
        Self::Types(error.to_string())
    }
}

impl From<BtfError> for EbpfError {
    fn from(error: BtfError) -> Self {
        Self::Types(error.to_string())
    }
}

impl From<aya::EbpfError> for EbpfError {
    fn from(error: aya::EbpfError) -> Self {
        let refused = |error: &io::Error| error.raw_os_error() == Some(libc::EPERM);
        match &error {
            aya::EbpfError::MapError(MapError::CreateError { io_error, .. }) if refused(io_error) => {
                Self::NotPermitted
            }
            _ => Self::Load(Box::new(error)),
        }
    }
}
