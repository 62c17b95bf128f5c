//! Ctrl-C, SIGTERM and SIGHUP: one flag that the long loops poll, so that every command unwinds
//! through its own clean-up.
//!
//! A signal never ends the process by itself. Code that waits calls [`check`] (or waits in
//! [`guard`]) and returns [`Interrupted`] like any other error; destructors on the way out stop
//! what it started.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock, atomic::AtomicBool, atomic::Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Interval at which waiting loops poll the flag.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(50);

static STOP_REQUESTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// The user asked to stop. Not a failure: nothing is printed for it but a word.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Starts to catch the signals.
pub(crate) fn install() -> Result<()> {
    let flag = STOP_REQUESTED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(flag)).context("cannot catch signals")?;
    }
    Ok(())
}

/// Whether the user asked to stop.
pub(crate) fn requested() -> bool {
    STOP_REQUESTED.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// Fails with [`Interrupted`] once the user asked to stop.
pub(crate) fn check() -> Result<()> {
    if requested() { Err(Interrupted.into()) } else { Ok(()) }
}

/// Runs `work` on a thread of its own, so that a read that hangs in the kernel cannot keep this
/// process from cleaning up. On an interrupt, or after `deadline`, the thread is left behind; the
/// caller goes on to unmount, which fails the read.
pub(crate) fn guard<T: Send + 'static>(
    what: &str,
    deadline: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (done, result) = channel();
    thread::spawn(move || done.send(work()));
    let mut waited = Duration::ZERO;
    loop {
        match result.recv_timeout(POLL_INTERVAL) {
            Ok(outcome) => return outcome,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(anyhow!("{what}: the thread that did it panicked"));
            }
            Err(RecvTimeoutError::Timeout) => check()?,
        }
        waited += POLL_INTERVAL;
        if waited >= deadline {
            return Err(anyhow!("{what}: no end after {} s", deadline.as_secs()));
        }
    }
}
