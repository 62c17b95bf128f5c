//! Keeps the CPUs awake while a program makes small requests one after another.
//!
//! Such a program waits for each answer, and the thread that answers waits for the next question, so with each step a CPU goes
//! to sleep and is woken. From a virtual CPU that has halted, or from the deeper sleep of a real one, that takes longer than everything else about a small
//! request. Linux lets a process say how long it can wait for CPUs to
//! wake up, for as long as it holds `/dev/cpu_dma_latency` open (*PM Quality of Service*, `Documentation/power/pm_qos_interface.rst`),
//! and gives what was said up when the process ends, however that comes about.
//!
//! CPUs that stay awake cost power, and what shares their cores a little of its speed. So this is said only from the moment in which
//! [`MIN_BURST_REQUESTS`] requests have come, each within [`MAX_REQUEST_GAP`] of the one before, until there was none for [`IDLE_TIMEOUT`]. A program
//! that takes longer than that over its own work would not notice the difference, and one that streams makes large requests, several at a time.
//!
//! In a virtual machine CPUs do not sleep at all meanwhile: the only sleep there is, is to halt. Elsewhere they may sleep
//! as lightly as takes [`MAX_WAKEUP_LATENCY`] to end.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::telemetry::Metrics;
use crate::vital::contained;

const QOS_DEVICE: &str = "/dev/cpu_dma_latency";

/// The kernel's driver that puts idle CPUs to sleep.
const IDLE_DRIVER_PATH: &str = "/sys/devices/system/cpu/cpuidle/current_driver";

/// The driver of virtual machines: it halts, or goes on looking for something to do.
const HALTPOLL_DRIVER: &str = "haltpoll";

/// Small requests in a burst from which the CPUs are kept awake.
const MIN_BURST_REQUESTS: u32 = 16;

/// Requests that come further apart are not in a burst: to wake up is a small part of that time, even if other processes
/// have to be woken, one after another, for the answer.
const MAX_REQUEST_GAP: Duration = Duration::from_millis(8);

/// After so long without another request the CPUs may sleep again.
const IDLE_TIMEOUT: Duration = Duration::from_millis(15);

/// What may be waited for a real CPU: no more than the lightest sleep of common ones takes to end.
const MAX_WAKEUP_LATENCY: Duration = Duration::from_micros(2);

/// What is said when nothing is asked for.
const NO_LIMIT: i32 = i32::MAX;

/// Why the CPUs are not kept awake.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CpuLatencyError {
    /// The kernel does not take what is said to it.
    #[error("{QOS_DEVICE}: {0}")]
    Device(io::Error),
    /// It would take it, to no effect.
    #[error("this kernel has one way only to put a CPU to sleep (no cpuidle driver)")]
    NoIdleDriver,
}

impl CpuLatencyError {
    /// How to have them kept awake.
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

/// Whether this host would let its CPUs be kept awake.
///
/// # Errors
/// Why not.
pub(crate) fn probe() -> Result<(), CpuLatencyError> {
    open().map(drop)
}

/// Opens the device, and finds what to say to it, in microseconds.
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

/// Keeps the CPUs awake as long as requests follow each other. Dropping it lets them sleep.
pub(crate) struct CpuLatencyQos(Option<Worker>);

/// A thread that says when the CPUs are to stay awake, and until when.
struct Worker {
    burst: Arc<Burst>,
    thread: Thread,
}

/// The latest requests.
struct Burst {
    begun: Instant,
    /// When the latest came, in nanoseconds since `begun`.
    latest: AtomicU64,
    length: AtomicU32,
    /// Nobody will ask any more.
    is_stopped: AtomicBool,
}

impl CpuLatencyQos {
    /// Keeps the CPUs of this host awake if that is `wanted` and possible.
    pub(crate) fn new(wanted: bool, metrics: &Arc<Metrics>) -> Self {
        // Who starts a mount has looked whether it is possible, and said so.
        let device = wanted.then(open).and_then(Result::ok);
        Self(
            device.and_then(|(device, max_latency)| Worker::start(device, max_latency, metrics.clone()).ok()),
        )
    }

    /// A small request has come, while no other was under way.
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
        let kept = burst.clone();
        let worker = thread::Builder::new().name("awake".into());
        let worker = worker.spawn(move || {
            let mut device = device;
            while contained(|| run(&kept, &mut device, max_latency, &metrics)).is_none() {
                // What was said last may still hold.
                let _ = device.write_all(&NO_LIMIT.to_ne_bytes());
                kept.end();
            }
        })?;
        Ok(Self { burst, thread: worker.thread().clone() })
    }
}

/// Says when there is a burst, until it is over.
fn run(burst: &Burst, mut device: impl Write, max_latency: i32, metrics: &Metrics) {
    // Of what the kernel refuses there is nothing better to say.
    let mut say = |max_latency: i32| drop(device.write_all(&max_latency.to_ne_bytes()));
    while !burst.has_stopped() {
        if !burst.is_long() {
            thread::park();
            continue;
        }
        say(max_latency);
        let mut since = Instant::now();
        while !burst.has_stopped() && burst.since_latest() < IDLE_TIMEOUT {
            thread::sleep(IDLE_TIMEOUT);
            let now = Instant::now();
            metrics.kept_awake(now.duration_since(since));
            since = now;
        }
        say(NO_LIMIT);
        burst.end();
    }
}

impl Burst {
    fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    /// Another request has come. Returns whether the burst is long enough since then.
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

    /// A device that tells what is said to it.
    struct RecordingDevice(Sender<i32>);

    impl Write for RecordingDevice {
        fn write(&mut self, said: &[u8]) -> io::Result<usize> {
            let said = said.try_into().expect("the kernel takes four bytes");
            let _ = self.0.send(i32::from_ne_bytes(said));
            Ok(4)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const TEST_TIMEOUT: Duration = Duration::from_secs(20);

    fn awake() -> (CpuLatencyQos, Receiver<i32>, Arc<Metrics>) {
        let ((device, said), metrics) = (channel(), Metrics::new());
        (
            CpuLatencyQos(Some(Worker::start(RecordingDevice(device), 7, metrics.clone()).unwrap())),
            said,
            metrics,
        )
    }

    /// Makes requests, one after another, until something is said to the device.
    fn ask(awake: &CpuLatencyQos, said: &Receiver<i32>) -> i32 {
        let begun = Instant::now();
        loop {
            awake.on_request();
            match said.recv_timeout(Duration::from_micros(10)) {
                Ok(said) => return said,
                Err(RecvTimeoutError::Timeout) => assert!(begun.elapsed() < TEST_TIMEOUT),
                Err(RecvTimeoutError::Disconnected) => panic!("the worker has ended"),
            }
        }
    }

    #[test]
    fn cpus_stay_awake_while_requests_follow_each_other() {
        let (awake, said, metrics) = awake();
        for _ in 0..3 {
            assert_eq!(ask(&awake, &said), 7);
            assert_eq!(said.recv_timeout(TEST_TIMEOUT), Ok(NO_LIMIT), "there are no requests any more");
        }
        assert!(metrics.totals().awake >= 3 * IDLE_TIMEOUT);
        assert_eq!(ask(&awake, &said), 7);
        drop(awake);
        assert_eq!(said.recv_timeout(TEST_TIMEOUT), Ok(NO_LIMIT));
        assert_eq!(
            said.recv_timeout(TEST_TIMEOUT),
            Err(RecvTimeoutError::Disconnected),
            "the thread has ended"
        );
    }

    #[test]
    fn requests_that_come_apart_are_no_row() {
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
        assert_eq!(long.iter().filter(|long| **long).count(), 1, "who has been told need not be told again");
        assert!(burst.is_long());
        burst.end();
        assert!(!burst.is_long());
    }
}
