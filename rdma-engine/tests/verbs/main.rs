//! Verbs over a real device: soft-RoCE in the virtual machine (`cargo xtask vm test`), or any RDMA
//! device of this host (`cargo test -p rdma-engine --test verbs -- --include-ignored`). Few hosts
//! have one, so a plain `cargo test` ignores these tests. Without a device, each reports that it is
//! skipped.

mod access;
mod client;
mod engine;
mod faults;
mod hostile;
mod leaks;
mod messages;
mod peer;
mod reads;
mod sessions;
mod two_guests;
mod volume;

use std::fmt::Display;
use std::io::Write;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rdma_engine::verbs::{
    Completion, Poller, PreparedQueuePair, QueuePair, RegisteredBuffer, Timeouts, VerbsError, devices,
};

use self::peer::Side;

/// The deadline of every wait; emulation is slow, on a busy host above all.
const DEADLINE: Duration = Duration::from_secs(120);

/// The right to use the devices: some tests count everything that is open.
type Turn = MutexGuard<'static, ()>;

/// The turn of a test; `None` without a device, which is said.
fn turn() -> Option<Turn> {
    static TURN: Mutex<()> = Mutex::new(());
    // That another test has failed is no reason for this one to fail.
    has_device().then(|| TURN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Whether there is a device for a test; if not, that is said. The first test finds out, because
/// later ones may take a link down.
fn has_device() -> bool {
    static MISSING: LazyLock<Option<VerbsError>> = LazyLock::new(|| match devices() {
        Ok(found) if found.iter().flat_map(|device| &device.ports).any(|port| port.active) => None,
        Ok(_) => Some(VerbsError::NoDevice),
        Err(error) => Some(error),
    });
    if let Some(error) = &*MISSING {
        skipped(error);
    }
    MISSING.is_none()
}

/// Reports the running test as skipped, by a line that `cargo xtask test` counts.
fn skipped(reason: impl Display) {
    let test = thread::current();
    // Not by `eprintln!`, which the test harness captures.
    let _ = writeln!(std::io::stderr(), "skipped: {}: {reason}", test.name().unwrap_or("main"));
}

/// Opens the best port twice, for two ends in one process.
fn two_sides() -> (Side, Side) {
    (Side::open(None).unwrap(), Side::open(None).unwrap())
}

/// Connects two ends that are in one process.
fn connect(
    one: PreparedQueuePair<RegisteredBuffer>,
    other: PreparedQueuePair<RegisteredBuffer>,
    timeouts: Timeouts,
) -> Result<(QueuePair<RegisteredBuffer>, QueuePair<RegisteredBuffer>), VerbsError> {
    let (one_end, other_end) = (one.endpoint(), other.endpoint());
    Ok((one.handshake(&other_end, timeouts)?, other.handshake(&one_end, timeouts)?))
}

/// Takes completions until there are `count`.
fn completions(poller: &mut Poller<RegisteredBuffer>, count: usize) -> Vec<Completion<RegisteredBuffer>> {
    let started = Instant::now();
    let mut done = Vec::new();
    while done.len() < count {
        poller.wait(&mut done, DEADLINE.saturating_sub(started.elapsed())).unwrap();
        assert!(started.elapsed() < DEADLINE, "{} of {count} completions came", done.len());
    }
    assert_eq!(done.len(), count);
    done
}

/// Numbers that look random and are the same at every run (a linear congruential generator,
/// Knuth's MMIX).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit
    }
}
