//! The signals that end a program.

use std::future::pending;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::fuse::supervisor::ORPHANED;

type OnHangup = Box<dyn FnMut() + Send>;

/// SIGINT, SIGTERM and SIGHUP, which from now on do not end the process by themselves.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    /// What SIGHUP does in a program that outlives its terminal.
    on_hangup: Option<OnHangup>,
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
            on_hangup: None,
            orphaned: None,
        })
    }

    /// The same for a daemon that outlives its terminal, and that a supervisor watches, whose end
    /// ends the program as well.
    pub(super) fn of_watched_daemon() -> io::Result<Self> {
        let orphaned = signal(SignalKind::from_raw(ORPHANED as i32))?;
        Ok(Self { orphaned: Some(orphaned), on_hangup: Some(Box::new(|| ())), ..Self::new()? })
    }

    /// Has SIGHUP do this from now on, and once for each one that came before.
    pub(super) fn on_hangup(&mut self, action: impl FnMut() + Send + 'static) {
        self.on_hangup = Some(Box::new(action));
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
                    match &mut self.on_hangup {
                        Some(action) => action(),
                        None => return "SIGHUP",
                    }
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
