//! The signals that end a program.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT, SIGTERM and SIGHUP, which from now on do not end the process by themselves.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    survives_hangup: bool,
}

impl Signals {
    /// Begins to catch them, for a program that ends with its terminal. Must be called on a runtime.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            survives_hangup: false,
        })
    }

    /// The same for a daemon, which outlives its terminal, and has nothing to reload: SIGHUP is only logged.
    pub(super) fn of_daemon() -> io::Result<Self> {
        Ok(Self { survives_hangup: true, ..Self::new()? })
    }

    /// The name of the next one that ends the program. Those that came since the last call are not lost, but several of
    /// a kind are one.
    pub(super) async fn next(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.terminate.recv() => return "SIGTERM",
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
