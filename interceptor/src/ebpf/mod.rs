//! Reads that no daemon sees, observed by eBPF: page-cache hits, mapped files, passthrough, and
//! the processes that read.
//!
//! The programs are in the crate `interceptor-ebpf`; their object is embedded into this one. An
//! [`Observer`] resolves the offsets of the kernel fields that they read ([`btf`], [`offsets`]),
//! attaches for each capability the best program that the kernel accepts ([`probes`]), and owns
//! them: when it is dropped or its process ends, however that happens, the kernel detaches them.
//! Nothing is pinned.
//!
//! ```text
//!  Observer::watch(device) ──► maps ◄── programs ◄── every read, fault and request in the kernel
//!  traffic, latency, readers ◄──┘          │
//!        Receiver<KernelEvent> ◄── ring ◄──┤   a granule turned hot, a stream's window is due
//!              └─► cli::kernel_watcher ─► read::kernel_hints, which fetch
//!                      log ◄── aya-log ◄──┘   a map or ring buffer is full, a field is not readable
//! ```
//!
//! It works for any FUSE mount of the host, not only for ours. No read depends on it: whatever
//! fails here, reads go on as before.

mod btf;
mod calls;
mod device;
mod events;
mod maps;
mod miss_ratio;
mod offsets;
mod probes;
mod settings;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aya::maps::{MapError, RingBuf};
use aya::{Btf, BtfError, Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use interceptor_ebpf::heat::HeatSettings;
use interceptor_ebpf::records::{Latency, Traffic, WatchedMount};
use nix::time::{ClockId, clock_gettime};
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc::Receiver;

use crate::telemetry::MissRatioCurve;

pub use calls::{CallTracer, TracedCall};
pub use device::DeviceNumber;
pub use events::{EventKind, KernelEvent};
pub use maps::ReaderThread;
pub use probes::{ProbeStatus, capability};
pub use settings::ObserverSettings;

use btf::{BtfReadError, KernelBtf};
use events::{Curves, EventThread, Watches};
use maps::{Maps, Pod};
use miss_ratio::CurveEstimator;
use offsets::ResolvedOffsets;

/// The object with the programs; empty if the build did not find one.
static PROGRAMS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/programs"));

/// Whether the programs are in this binary.
pub fn is_built_in() -> bool {
    !PROGRAMS.is_empty()
}

/// No program can be loaded, or a request to a running observer fails.
#[derive(Debug, thiserror::Error)]
pub enum EbpfError {
    /// The binary was built without the programs.
    #[error("the eBPF programs are not built in; `cargo xtask build` builds them")]
    NotBuiltIn,
    /// The kernel's BTF is missing or malformed.
    #[error("the kernel's type information cannot be used: {0}")]
    KernelBtf(String),
    /// The process may not load programs.
    #[error("no permission to load eBPF programs: that takes CAP_BPF and CAP_PERFMON, or root")]
    NotPermitted,
    /// The kernel rejects the maps, or the object is damaged.
    #[error("the eBPF programs cannot be loaded: {0}")]
    Load(#[source] Box<aya::EbpfError>),
    /// A map cannot be read or written.
    #[error("a map of the eBPF programs cannot be used: {0}")]
    Map(#[from] MapError),
    /// The map of watched mounts is full.
    #[error("as many mounts are watched as can be")]
    Full,
    /// The mount is not watched.
    #[error("mount {0} is not watched")]
    NotWatched(DeviceNumber),
    /// The programs' log cannot be read.
    #[error("the log of the eBPF programs cannot be read: {0}")]
    Log(#[from] aya_log::Error),
    /// The read calls of applications cannot be seen.
    #[error("they cannot be seen: {0}")]
    CallsUnseen(String),
    /// The thread that drains the ring buffer cannot be started.
    #[error("cannot wait for events of the kernel: {0}")]
    Thread(#[source] io::Error),
}

impl EbpfError {
    /// What the operator can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotBuiltIn => {
                "build with `cargo xtask build`, which brings a compiler for BPF where it can"
            }
            Self::KernelBtf(_) => "a kernel with CONFIG_DEBUG_INFO_BTF",
            Self::NotPermitted => "run as root, or give the program CAP_BPF and CAP_PERFMON",
            _ => "see the reason",
        }
    }
}

/// Whether the programs are built in.
pub fn built_in() -> bool {
    !PROGRAMS.is_empty()
}

/// The heat of a file that was read lately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileHeat {
    /// The FUSE node.
    pub node: u64,
    /// Bytes read of it, which decay by half in every half-life.
    pub bytes: u64,
    /// The same bytes by granule number, from 0, in no order.
    pub granules: Vec<(u32, u64)>,
}

/// The attached programs and their maps.
pub struct Observer {
    maps: Arc<Mutex<Maps>>,
    watches: Watches,
    curves: Curves,
    /// Bytes of a sampled granule; `None` if nothing is sampled.
    sample_granule: Option<u64>,
    next_watch_id: AtomicU32,
    probes: Vec<ProbeStatus>,
    heat: HeatSettings,
    granule: u64,
    event_thread: EventThread,
    /// Dropping it detaches the programs.
    _programs: Ebpf,
}

impl Observer {
    /// Loads and attaches the programs. No mount is watched yet. Blocks for up to a second.
    ///
    /// Events go to the receiver until the observer is dropped. A caller that does not need them
    /// may drop the receiver.
    ///
    /// # Errors
    /// If no program can be loaded at all.
    pub fn start(settings: &ObserverSettings) -> Result<(Self, Receiver<KernelEvent>), EbpfError> {
        let (mut programs, probes) = load(settings)?;
        let maps = Maps::take(&mut programs)?;
        let ring = programs.take_map("EVENTS").ok_or(MapError::InvalidName { name: "EVENTS".to_owned() })?;
        let log = EbpfLogger::init(&mut programs)?;
        let watches: Watches = Arc::new(RwLock::new(HashMap::new()));
        let shared = settings.for_programs(true);
        let (maps, curves) = (Arc::new(Mutex::new(maps)), Curves::default());
        let (event_thread, events) = EventThread::start(
            RingBuf::try_from(ring)?,
            log,
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
            sample_granule: settings.sampled.map(|_| settings.sample_granule()),
            next_watch_id: AtomicU32::new(1),
            probes,
            heat: shared.heat,
            granule: 1 << shared.granule_shift,
            event_thread,
            _programs: programs,
        };
        Ok((observer, events))
    }

    /// Watches a mount from now on, with counters at zero. Watching it again changes nothing.
    ///
    /// # Errors
    /// If too many mounts are watched.
    pub fn watch(&self, device: DeviceNumber) -> Result<(), EbpfError> {
        let mut maps = self.maps.lock();
        if self.watch_id(device).is_some() {
            return Ok(());
        }
        let watch_id = self.next_watch_id.fetch_add(1, Ordering::Relaxed);
        self.watches.write().insert(watch_id, device);
        let curve = self.sample_granule.map(CurveEstimator::new);
        let sample_rank_limit = curve.as_ref().map_or(0, CurveEstimator::rank_limit);
        self.curves.lock().extend(curve.map(|curve| (watch_id, curve)));
        let mount = WatchedMount {
            watch_id: watch_id.into(),
            device: device.in_kernel(),
            sample_rank_limit,
            last_sample: 0,
        };
        maps.watch(mount).inspect_err(|_| {
            self.watches.write().remove(&watch_id);
            self.curves.lock().remove(&watch_id);
        })
    }

    /// Stops watching a mount. Must be called when the mount is gone, because the kernel reuses
    /// its device number for another mount.
    ///
    /// # Errors
    /// If a map cannot be written.
    pub fn unwatch(&self, device: DeviceNumber) -> Result<(), EbpfError> {
        let mut maps = self.maps.lock();
        let Some(watch_id) = self.watch_id(device) else {
            return Ok(());
        };
        self.watches.write().remove(&watch_id);
        self.curves.lock().remove(&watch_id);
        Ok(maps.unwatch(device.in_kernel(), watch_id)?)
    }

    /// The reads and requests of a mount since it is watched.
    ///
    /// # Errors
    /// If the mount is not watched.
    pub fn traffic(&self, device: DeviceNumber) -> Result<Traffic, EbpfError> {
        let maps = self.maps.lock();
        self.watch_id(device).ok_or(EbpfError::NotWatched(device))?;
        Ok(maps.traffic(device.in_kernel())?)
    }

    /// The latencies of the mount's daemon, by opcode of `linux/fuse.h` (`FUSE_READ` is 15).
    ///
    /// # Errors
    /// If the mount is not watched.
    pub fn latency(&self, device: DeviceNumber) -> Result<HashMap<u32, Latency>, EbpfError> {
        let maps = self.maps.lock();
        let watch_id = self.watch_id(device).ok_or(EbpfError::NotWatched(device))?;
        Ok(maps.latency(watch_id)?)
    }

    /// The miss-ratio curve of the mount's reads; `None` if [`ObserverSettings::sampled`] is
    /// `None`.
    ///
    /// # Errors
    /// If the mount is not watched.
    pub fn curve(&self, device: DeviceNumber) -> Result<Option<MissRatioCurve>, EbpfError> {
        let watch_id = self.watch_id(device).ok_or(EbpfError::NotWatched(device))?;
        let traffic = self.traffic(device)?;
        Ok(self.curves.lock().get_mut(&watch_id).map(|curve| {
            curve.add_counters(traffic.granules_read, traffic.repeated_samples);
            curve.curve()
        }))
    }

    /// The threads that read the mount. If there were many, those that have not read for long may
    /// be missing.
    ///
    /// # Errors
    /// If the mount is not watched.
    pub fn readers(&self, device: DeviceNumber) -> Result<Vec<ReaderThread>, EbpfError> {
        let maps = self.maps.lock();
        let watch_id = self.watch_id(device).ok_or(EbpfError::NotWatched(device))?;
        Ok(maps.readers(watch_id)?)
    }

    /// The `count` files with the most heat, hottest first, as node and bytes. Scans the whole
    /// heat map, which takes some milliseconds for every ten thousand granules.
    ///
    /// # Errors
    /// If the mount is not watched.
    pub fn hottest(&self, device: DeviceNumber, count: usize) -> Result<Vec<(u64, u64)>, EbpfError> {
        let hottest = self.hottest_ranges(device, count)?;
        Ok(hottest.into_iter().map(|file| (file.node, file.bytes)).collect())
    }

    /// Like [`hottest`](Self::hottest), with the heat of each granule.
    ///
    /// # Errors
    /// If the mount is not watched.
    pub fn hottest_ranges(&self, device: DeviceNumber, count: usize) -> Result<Vec<FileHeat>, EbpfError> {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        let tick = self.heat.tick(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
        let maps = self.maps.lock();
        let watch_id = self.watch_id(device).ok_or(EbpfError::NotWatched(device))?;
        let file = |(node, granules): (u64, Vec<(u32, u64)>)| {
            let bytes = granules.iter().fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes));
            FileHeat { node, bytes, granules }
        };
        let mut files: Vec<_> = maps.warm_granules(watch_id, tick)?.into_iter().map(file).collect();
        files.sort_unstable_by_key(|file| (Reverse(file.bytes), file.node));
        files.truncate(count);
        Ok(files)
    }

    /// Bytes of a granule, the unit of heat.
    pub fn granule(&self) -> u64 {
        self.granule
    }

    /// Every capability, and the program that provides it.
    pub fn probes(&self) -> &[ProbeStatus] {
        &self.probes
    }

    /// Whether a program provides `capability`, one of the module [`capability`].
    pub fn sees(&self, capability: &str) -> bool {
        probes::sees(&self.probes, capability)
    }

    /// Events of watched mounts that were lost because the ring buffer or the channel was full.
    pub fn lost(&self) -> u64 {
        let watched: Vec<DeviceNumber> = self.watches.read().values().copied().collect();
        let traffic = watched.iter().filter_map(|device| self.traffic(*device).ok());
        self.dropped() + traffic.map(|traffic| traffic.lost_events).sum::<u64>()
    }

    /// Events that were lost because the channel was full. Those that found the ring buffer full
    /// are in the [`Traffic`] of their mount.
    pub fn dropped(&self) -> u64 {
        self.event_thread.dropped()
    }

    fn watch_id(&self, device: DeviceNumber) -> Option<u32> {
        self.watches.read().iter().find(|(_, watched)| **watched == device).map(|(watch_id, _)| *watch_id)
    }
}

/// The capabilities of this process on this host. Attaches the programs and detaches them again.
pub fn probe_host() -> Vec<ProbeStatus> {
    match load(&ObserverSettings::smallest()) {
        Ok((_, probes)) => probes,
        Err(error) => probes::all_missing(&error.to_string(), error.remedy()),
    }
}

/// A program that does nothing, attached where page-cache reads are observed: the baseline of what
/// any program costs there.
pub struct NoopProgram {
    /// Dropping it detaches the program.
    _program: Ebpf,
}

impl NoopProgram {
    /// Loads and attaches the program.
    ///
    /// # Errors
    /// If the kernel rejects it.
    pub fn start() -> Result<Self, EbpfError> {
        let (mut program, kernel) = (Ebpf::load(PROGRAMS)?, Btf::from_sys_fs()?);
        probes::attach_noop(&mut program, &kernel)
            .map_err(|error| EbpfError::Load(Box::new(error.into())))?;
        Ok(Self { _program: program })
    }
}

/// Loads the object, and attaches every program that the kernel accepts.
fn load(settings: &ObserverSettings) -> Result<(Ebpf, Vec<ProbeStatus>), EbpfError> {
    if !built_in() {
        return Err(EbpfError::NotBuiltIn);
    }
    let offsets = ResolvedOffsets::resolve(&KernelBtf::of_running_kernel()?);
    let kernel = Btf::from_sys_fs()?;
    let (programs, probes) = load_with(settings, &offsets, &kernel, true)?;
    if probes::sees(&probes, capability::CACHED_READS) {
        return Ok((programs, probes));
    }
    // Read-only data is fixed when the object is loaded, so it is loaded again without the flag.
    drop(programs);
    load_with(settings, &offsets, &kernel, false)
}

fn load_with(
    settings: &ObserverSettings,
    offsets: &ResolvedOffsets,
    kernel: &Btf,
    cached_reads_seen: bool,
) -> Result<(Ebpf, Vec<ProbeStatus>), EbpfError> {
    let mut programs = load_object(settings, offsets, cached_reads_seen)?;
    let wanted = |name: &str| settings.inserts || name != capability::INSERTS;
    let probes = probes::attach_all(&mut programs, kernel, offsets, wanted);
    Ok((programs, probes))
}

/// Creates the maps, and prepares the programs to be loaded one by one.
fn load_object(
    settings: &ObserverSettings,
    offsets: &ResolvedOffsets,
    cached_reads_seen: bool,
) -> Result<Ebpf, EbpfError> {
    let field_offsets = Pod(offsets.offsets);
    let (calls, pid_namespace) = (Pod(calls::read_syscalls()), Pod(calls::pid_namespace()));
    let shared = Pod(settings.for_programs(cached_reads_seen));
    let log_level = settings.program_log_level();
    let mut loader = EbpfLoader::new();
    // The object has no CO-RE relocations: the offsets are written into its read-only data.
    loader
        .btf(None)
        .override_global("OFFSETS", &field_offsets, true)
        .override_global("SETTINGS", &shared, true)
        .override_global("CALL_SETTINGS", &calls, true)
        .override_global("PID_NAMESPACE", &pid_namespace, true)
        .override_global(aya_log::LEVEL, &log_level, true);
    for (map, size) in settings.map_sizes() {
        loader.map_max_entries(map, size);
    }
    Ok(loader.load(PROGRAMS)?)
}

impl From<BtfReadError> for EbpfError {
    fn from(error: BtfReadError) -> Self {
        Self::KernelBtf(error.to_string())
    }
}

impl From<BtfError> for EbpfError {
    fn from(error: BtfError) -> Self {
        Self::KernelBtf(error.to_string())
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tracing::level_filters::LevelFilter;

    use super::*;

    /// Instructions of the loaded programs after translation, by name of the program.
    fn translated(log_level: LevelFilter) -> Result<BTreeMap<String, u32>, EbpfError> {
        let (programs, _) = load(&ObserverSettings { log_level, ..ObserverSettings::default() })?;
        let instructions = |(name, program): (&str, &aya::programs::Program)| {
            Some((name.to_owned(), program.info().ok()?.size_translated()? / 8))
        };
        Ok(programs.programs().filter_map(instructions).collect())
    }

    #[test]
    #[cfg_attr(not(is_root), ignore = "needs root")]
    fn what_is_not_logged_is_not_in_the_loaded_programs() {
        let off = match translated(LevelFilter::OFF) {
            Ok(off) if !off.is_empty() => off,
            Ok(_) => return crate::skipped("no program can be loaded"),
            Err(error) => return crate::skipped(error),
        };
        let on = translated(LevelFilter::WARN).unwrap();
        println!("instructions without warnings {off:?}, with {on:?}");
        assert_eq!(off, translated(LevelFilter::ERROR).unwrap());
        // A warning alone takes hundreds of instructions.
        assert!(off.iter().zip(&on).all(|(off, on)| off.0 == on.0 && off.1 <= on.1), "{off:?} {on:?}");
        assert!(off.iter().zip(&on).any(|(off, on)| on.1 - off.1 > 500), "{off:?} {on:?}");
    }
}
