//! Keeps the CPUs awake during bursts of small requests.
//!
//! A program that makes small requests one after another waits for each answer, and the request
//! thread waits for each question: with every step a CPU goes to sleep and is woken. Waking a
//! virtual CPU that has halted, or a real one from a deep idle state, takes longer than the rest
//! of a small request. Linux lets a process limit the wake-up latency of CPUs for as long as it
//! keeps `/dev/cpu_dma_latency` open (*PM Quality of Service*,
//! `Documentation/power/pm_qos_interface.rst`); the limit goes when the process ends, even if it
//! is killed.
//!
//! CPUs that stay awake take power, and slow down hyperthreads of the same core a little. So the
//! limit holds from the moment in which [`MIN_BURST_REQUESTS`] requests have come, each within
//! [`MAX_REQUEST_GAP`] of the one before, until none has come for [`IDLE_TIMEOUT`]. A program that
//! computes for longer than that between requests would not notice the difference, and one that
//! streams makes large requests, several at a time.
//!
//! Without this the median of the row `rand-4k-fresh` of the benchmark is 51 % longer.
//!
//! In a virtual machine the limit is zero, so that CPUs poll instead of sleeping: halting is their
//! only idle state. Elsewhere CPUs may use idle states that take at most [`MAX_WAKEUP_LATENCY`] to
//! leave.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::telemetry::Metrics;
use crate::vital::contained;

const QOS_DEVICE: &str = "/dev/cpu_dma_latency";

/// Names the kernel's driver for idle CPUs.
const IDLE_DRIVER_PATH: &str = "/sys/devices/system/cpu/cpuidle/current_driver";

/// The idle driver of virtual machines, which halts or polls.
const HALTPOLL_DRIVER: &str = "haltpoll";

/// Consecutive small requests from which the CPUs are kept awake.
const MIN_BURST_REQUESTS: u32 = 16;

/// The longest time between two requests of a burst. Waking up is a small part of a longer time,
/// even if the answer takes wake-ups of several processes.
const MAX_REQUEST_GAP: Duration = Duration::from_millis(8);

/// The CPUs may sleep again after this time without a request.
const IDLE_TIMEOUT: Duration = Duration::from_millis(15);

/// The limit on real CPUs: enough to leave the lightest idle state of common ones.
const MAX_WAKEUP_LATENCY: Duration = Duration::from_micros(2);

/// The value that limits nothing.
const NO_LIMIT: i32 = i32::MAX;

/// Why the CPUs cannot be kept awake.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CpuLatencyError {
    /// The kernel does not take a limit.
    #[error("{QOS_DEVICE}: {0}")]
    Device(io::Error),
    /// A limit would have no effect.
    #[error("this kernel has one way only to put a CPU to sleep (no cpuidle driver)")]
    NoIdleDriver,
}

impl CpuLatencyError {
    /// What makes it possible.
    pub(crate) fn remedy(&self) -> &'static str {
        match self {
            Self::Device(error) if error.kind() == io::ErrorKind::NotFound => {
                "a kernel with CONFIG_CPU_IDLE; in a container pass the device in (--device /dev/cpu_dma_latency)"
            }
            Self::Device(_) => {
                "run as root; in a container pass the device in (--device /dev/cpu_dma_latency)"
            }
            Self::NoIdleDriver => "in a virtual machine: modprobe cpuidle-haltpoll force=1",
        }
    }
}

/// Whether this host lets a process keep its CPUs awake.
///
/// # Errors
/// Why it does not.
pub(crate) fn probe() -> Result<(), CpuLatencyError> {
    open().map(drop)
}

/// Opens the device, and finds the limit to set in microseconds.
fn open() -> Result<(File, i32), CpuLatencyError> {
    let driver = fs::read_to_string(IDLE_DRIVER_PATH).unwrap_or_default();
    let max_latency = match driver.trim() {
        "" | "none" => return Err(CpuLatencyError::NoIdleDriver),
        HALTPOLL_DRIVER => Duration::ZERO,
        _ => MAX_WAKEUP_LATENCY,
    };
    let device = OpenOptions::new().write(true).open(QOS_DEVICE).map_err(CpuLatencyError::Device)?;
    Ok((device, max_latency.as_micros() as i32))
}

/// Keeps the CPUs awake during bursts of requests. Dropping it removes the limit.
pub(crate) struct CpuLatencyQos(Option<Worker>);

/// The thread that sets and removes the limit.
struct Worker {
    burst: Arc<Burst>,
    thread: Thread,
}

/// The latest requests.
struct Burst {
    begun: Instant,
    /// When the latest request came, in nanoseconds since `begun`.
    latest: AtomicU64,
    length: AtomicU32,
    /// No more requests will come.
    is_stopped: AtomicBool,
}

impl CpuLatencyQos {
    /// Keeps the CPUs of this host awake during bursts if that is `wanted` and possible.
    pub(crate) fn new(wanted: bool, metrics: &Arc<Metrics>) -> Self {
        // The start of the mount has reported whether it is possible.
        let device = wanted.then(open).and_then(Result::ok);
        Self(
            device.and_then(|(device, max_latency)| Worker::start(device, max_latency, metrics.clone()).ok()),
        )
    }

    /// Notes a small request that came while no other was in flight.
    pub(crate) fn on_request(&self) {
        if let Some(worker) = &self.0
            && worker.burst.add()
        {
            worker.thread.unpark();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.burst.is_stopped.store(true, Ordering::Relaxed);
        self.thread.unpark();
    }
}

impl Worker {
    fn start(
        device: impl Write + Send + 'static,
        max_latency: i32,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        let burst = Arc::new(Burst {
            begun: Instant::now(),
            latest: AtomicU64::new(0),
            length: AtomicU32::new(0),
            is_stopped: AtomicBool::new(false),
        });
        let shared = burst.clone();
        let worker = thread::Builder::new().name("awake".into());
        let worker = worker.spawn(move || {
            let mut device = device;
            while contained(|| run(&shared, &mut device, max_latency, &metrics)).is_none() {
                // The limit may still be set.
                let _ = device.write_all(&NO_LIMIT.to_ne_bytes());
                shared.end();
            }
        })?;
        Ok(Self { burst, thread: worker.thread().clone() })
    }
}

/// Sets the limit during bursts, until the burst counter is stopped.
fn run(burst: &Burst, mut device: impl Write, max_latency: i32, metrics: &Metrics) {
    // A refusal by the kernel has no remedy at this point.
    let mut set_limit = |max_latency: i32| drop(device.write_all(&max_latency.to_ne_bytes()));
    while !burst.has_stopped() {
        if !burst.is_long() {
            thread::park();
            continue;
        }
        set_limit(max_latency);
        let mut since = Instant::now();
        while !burst.has_stopped() && burst.since_latest() < IDLE_TIMEOUT {
            thread::sleep(IDLE_TIMEOUT);
            let now = Instant::now();
            metrics.kept_awake(now.duration_since(since));
            since = now;
        }
        set_limit(NO_LIMIT);
        burst.end();
    }
}

impl Burst {
    fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    /// Counts a request. Returns whether the burst has become long enough with it.
    fn add(&self) -> bool {
        let now = self.now();
        let before = self.latest.swap(now, Ordering::Relaxed);
        if now.saturating_sub(before) > MAX_REQUEST_GAP.as_nanos() as u64 {
            self.length.store(0, Ordering::Relaxed);
            return false;
        }
        self.length.fetch_add(1, Ordering::Relaxed) + 1 == MIN_BURST_REQUESTS
    }

    fn is_long(&self) -> bool {
        self.length.load(Ordering::Relaxed) >= MIN_BURST_REQUESTS
    }

    fn since_latest(&self) -> Duration {
        Duration::from_nanos(self.now().saturating_sub(self.latest.load(Ordering::Relaxed)))
    }

    fn end(&self) {
        self.length.store(0, Ordering::Relaxed);
    }

    fn has_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};

    use super::*;

    /// A device that records what is written to it.
    struct RecordingDevice(Sender<i32>);

    impl Write for RecordingDevice {
        fn write(&mut self, value: &[u8]) -> io::Result<usize> {
            let value = value.try_into().expect("the kernel takes four bytes");
            let _ = self.0.send(i32::from_ne_bytes(value));
            Ok(4)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const TEST_TIMEOUT: Duration = Duration::from_secs(20);

    fn recorded_qos() -> (CpuLatencyQos, Receiver<i32>, Arc<Metrics>) {
        let ((device, writes), metrics) = (channel(), Metrics::new());
        (
            CpuLatencyQos(Some(Worker::start(RecordingDevice(device), 7, metrics.clone()).unwrap())),
            writes,
            metrics,
        )
    }

    /// Makes requests, one after another, until something is written to the device.
    fn send_requests(qos: &CpuLatencyQos, writes: &Receiver<i32>) -> i32 {
        let begun = Instant::now();
        loop {
            qos.on_request();
            match writes.recv_timeout(Duration::from_micros(10)) {
                Ok(value) => return value,
                Err(RecvTimeoutError::Timeout) => assert!(begun.elapsed() < TEST_TIMEOUT),
                Err(RecvTimeoutError::Disconnected) => panic!("the worker has ended"),
            }
        }
    }

    #[test]
    fn cpus_stay_awake_during_bursts() {
        let (qos, writes, metrics) = recorded_qos();
        for _ in 0..3 {
            assert_eq!(send_requests(&qos, &writes), 7);
            assert_eq!(writes.recv_timeout(TEST_TIMEOUT), Ok(NO_LIMIT), "there are no requests any more");
        }
        assert!(metrics.totals().awake >= 3 * IDLE_TIMEOUT);
        assert_eq!(send_requests(&qos, &writes), 7);
        drop(qos);
        assert_eq!(writes.recv_timeout(TEST_TIMEOUT), Ok(NO_LIMIT));
        assert_eq!(
            writes.recv_timeout(TEST_TIMEOUT),
            Err(RecvTimeoutError::Disconnected),
            "the thread has ended"
        );
    }

    #[test]
    fn requests_with_long_gaps_are_no_burst() {
        let burst = Burst {
            begun: Instant::now() - Duration::from_secs(1),
            latest: AtomicU64::new(0),
            length: AtomicU32::new(0),
            is_stopped: AtomicBool::new(false),
        };
        for _ in 0..2 * MIN_BURST_REQUESTS {
            burst.latest.store(burst.now() - 2 * MAX_REQUEST_GAP.as_nanos() as u64, Ordering::Relaxed);
            assert!(!burst.add());
            assert!(!burst.is_long());
        }
        burst.latest.store(burst.now(), Ordering::Relaxed);
        let long: Vec<_> = (0..2 * MIN_BURST_REQUESTS)
            .map(|_| {
                burst.latest.store(burst.now(), Ordering::Relaxed);
                burst.add()
            })
            .collect();
        assert_eq!(long.iter().position(|long| *long), Some(MIN_BURST_REQUESTS as usize - 1));
        assert_eq!(long.iter().filter(|long| **long).count(), 1, "the worker is woken once per burst");
        assert!(burst.is_long());
        burst.end();
        assert!(!burst.is_long());
    }
}
