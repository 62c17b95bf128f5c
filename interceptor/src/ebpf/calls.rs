//! The read calls of applications, followed from the system call to its end for `interceptor
//! trace`.
//!
//! The programs of calls are loaded apart from those of the [`Observer`](super::Observer), since
//! they see every system call of the host: nothing is attached at other times.

use std::fs;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use aya::maps::{MapData, PerCpuArray, RingBuf};
use aya::{Btf, Ebpf};
use interceptor_ebpf::call::{CallRecord, CallSettings};
use interceptor_ebpf::records::WatchedMount;
use interceptor_ebpf::settings::PidNamespace;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::level_filters::LevelFilter;

use super::btf::KernelBtf;
use super::device::DeviceNumber;
use super::maps::{self, Maps};
use super::offsets::ResolvedOffsets;
use super::probes::{self, ProbeStatus, capability};
use super::settings::ObserverSettings;
use super::{EbpfError, load_object};
use crate::vital::contained;

/// How long a call may stay in the ring buffer.
const DRAIN_INTERVAL: Duration = Duration::from_millis(20);

/// Read calls of the whole system that are followed at the same time, those that have read nothing
/// of the mount so far included.
const MAX_CALLS: u32 = 8192;

/// A read call that has returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracedCall {
    /// The FUSE node of the file.
    pub node: u64,
    /// The first byte that was read, rounded down to a page if the page cache had it.
    pub offset: u64,
    /// The bytes that were read, or the error number.
    pub returned: Result<u64, i32>,
    /// The process that called; 0 if it is in another PID namespace.
    pub process: u32,
    /// Its thread, likewise.
    pub thread: u32,
    /// The name of the thread, up to 15 bytes.
    pub command: String,
    /// How long the call took.
    pub took: Duration,
    /// How many requests the kernel sent to the daemon during the call, readahead included.
    pub requests: u32,
    /// Whether a backing file was read (passthrough).
    pub passthrough: bool,
}

/// The programs that follow the read calls of one mount, and the thread that takes the calls from
/// them. Dropping it detaches the programs and joins the thread.
pub struct CallTracer {
    /// Closed to end the thread.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
    unseen: Option<String>,
    lost: PerCpuArray<MapData, u64>,
    /// Dropping it detaches the programs.
    programs: Option<Ebpf>,
}

impl CallTracer {
    /// Gives the calls that read files of the mount to `take`, on a thread of its own. Blocks for
    /// up to a second.
    ///
    /// # Errors
    /// If calls cannot be seen.
    pub fn start(
        device: DeviceNumber,
        take: impl Fn(TracedCall) + Send + 'static,
    ) -> Result<Self, EbpfError> {
        let settings = ObserverSettings {
            calls: MAX_CALLS,
            log_level: LevelFilter::OFF,
            ..ObserverSettings::smallest()
        };
        let offsets = ResolvedOffsets::resolve(&KernelBtf::of_running_kernel()?);
        let kernel = Btf::from_sys_fs()?;
        let mut programs = load_object(&settings, &offsets, true)?;
        let probes = probes::attach_calls(&mut programs, &kernel, &offsets);
        let missing: Vec<_> = probes.iter().filter(|probe| probe.attached_to.is_none()).collect();
        let reason = |probe: &ProbeStatus| probe.reason.clone().unwrap_or_default();
        let lacks = |name| missing.iter().find(|probe| probe.capability == name);
        // Without pages and requests there is nothing that a call could read.
        let reads = lacks(capability::CALL_PAGES).filter(|_| lacks(capability::CALL_REQUESTS).is_some());
        let needed = lacks(capability::CALL_BEGINS).or(lacks(capability::CALL_ENDS)).or(reads);
        if let Some(needed) = needed {
            return Err(EbpfError::CallsUnseen(reason(needed)));
        }
        let unseen: Vec<_> =
            missing.iter().map(|probe| format!("{} ({})", probe.lost, reason(probe))).collect();
        Maps::take(&mut programs)?.watch(WatchedMount {
            watch_id: 1,
            device: device.in_kernel(),
            sample_rank_limit: 0,
            last_sample: 0,
        })?;
        let ring = RingBuf::try_from(maps::take(&mut programs, "CALL_EVENTS")?)?;
        let lost = PerCpuArray::try_from(maps::take(&mut programs, "LOST_CALLS")?)?;
        let (stopped, stop) = io::pipe().map_err(EbpfError::Thread)?;
        let thread = thread::Builder::new().name("ebpf-calls".into());
        let thread = thread.spawn(move || drain(ring, &stopped, take)).map_err(EbpfError::Thread)?;
        let unseen = (!unseen.is_empty()).then(|| unseen.join("; "));
        Ok(Self { stop: Some(stop), thread: Some(thread), unseen, lost, programs: Some(programs) })
    }

    /// Which calls are not seen on this host, and why.
    pub fn unseen(&self) -> Option<&str> {
        self.unseen.as_deref()
    }

    /// How many calls found no room in the ring buffer.
    pub fn lost(&self) -> u64 {
        self.lost.get(&0, 0).map_or(0, |by_cpu| by_cpu.iter().fold(0, |sum, lost| sum.wrapping_add(*lost)))
    }
}

impl Drop for CallTracer {
    fn drop(&mut self) {
        // First, or the thread would be given calls without end.
        drop(self.programs.take());
        drop(self.stop.take());
        // A panic of the thread has been logged.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Gives calls to `take` until the other end of `stopped` is closed, and then those that are left.
fn drain(mut ring: RingBuf<MapData>, stopped: &PipeReader, take: impl Fn(TracedCall)) {
    let timeout = PollTimeout::try_from(DRAIN_INTERVAL).expect("a few milliseconds");
    loop {
        let mut stop = [PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
        let ended = poll(&mut stop, timeout).is_ok_and(|ready| ready > 0);
        while let Some(item) = ring.next() {
            let call = maps::record(&item).map(|event| TracedCall::new(&event));
            // The call is lost if this panics.
            contained(|| call.map(&take));
        }
        if ended {
            return;
        }
    }
}

impl TracedCall {
    fn new(event: &CallRecord) -> Self {
        let CallRecord { call, took_ns, returned, process, thread, command } = event;
        let returned = u64::try_from(*returned).map_err(|_| returned.unsigned_abs() as i32);
        Self {
            node: call.node,
            offset: call.first_byte(returned.unwrap_or(0)),
            returned,
            process: *process,
            thread: *thread,
            command: maps::text_of(command),
            took: Duration::from_nanos(*took_ns),
            requests: call.requests,
            passthrough: call.passthrough != 0,
        }
    }
}

/// The PID namespace of this process.
pub(super) fn pid_namespace() -> PidNamespace {
    /// The inode number of the host's (`PROC_PID_INIT_INO` of `linux/proc_ns.h`).
    const OF_HOST: u64 = 0xefff_fffc;
    match fs::metadata("/proc/self/ns/pid") {
        Ok(file) if file.ino() != OF_HOST => {
            let device = DeviceNumber::from_stat(file.dev());
            PidNamespace { device: device.in_kernel().into(), inode: file.ino() }
        }
        _ => PidNamespace::NONE,
    }
}

/// The system calls that read a file, in the numbers of this architecture.
pub(super) fn read_syscalls() -> CallSettings {
    let numbers = [
        libc::SYS_read,
        libc::SYS_pread64,
        libc::SYS_readv,
        libc::SYS_preadv,
        libc::SYS_preadv2,
        libc::SYS_sendfile,
        libc::SYS_splice,
        libc::SYS_copy_file_range,
    ];
    CallSettings { read_syscalls: numbers.map(|number| number as u32) }
}
