//! The signals that end a program.

use std::future::pending;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::overlay::supervisor::ORPHANED;

/// SIGINT, SIGTERM and SIGHUP, which from now on do not end the process by themselves.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    survives_hangup: bool,
    /// Until the supervisor has ended, if there is one.
    orphaned: Option<Signal>,
}

impl Signals {
    /// Catches the signals from now on, for a program that ends with its terminal. Must be called
    /// on a runtime.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            survives_hangup: false,
            orphaned: None,
        })
    }

    /// The same for a daemon, which outlives its terminal, and has nothing to reload: SIGHUP is
    /// only logged.
    pub(super) fn of_daemon() -> io::Result<Self> {
        Ok(Self { survives_hangup: true, ..Self::new()? })
    }

    /// The same for a daemon that a supervisor watches, whose end ends the program as well.
    pub(super) fn of_watched_daemon() -> io::Result<Self> {
        let orphaned = signal(SignalKind::from_raw(ORPHANED as i32))?;
        Ok(Self { orphaned: Some(orphaned), ..Self::of_daemon()? })
    }

    /// The name of the next signal that ends the program. Signals that came since the last call
    /// are not lost, but several of a kind are one.
    pub(super) async fn next(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.terminate.recv() => return "SIGTERM",
                () = once(&mut self.orphaned) => return "the end of the supervisor",
                _ = self.hangup.recv() => {
                    if !self.survives_hangup {
                        return "SIGHUP";
                    }
                    tracing::info!("SIGHUP is ignored; SIGTERM and SIGINT end this program");
                }
            }
        }
    }
}

/// Resolves when the signal comes for the first time. The kernel sends one for each thread of the
/// supervisor that ends.
async fn once(awaited: &mut Option<Signal>) {
    match awaited {
        Some(signal) => _ = signal.recv().await,
        None => pending().await,
    }
    *awaited = None;
}
