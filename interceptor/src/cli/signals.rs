//! The signals that end a program.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::fuse::supervisor::ORPHANED;

/// The exit code of a command that a signal has ended early.
pub(super) const INTERRUPTED_EXIT_CODE: u8 = 130;

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

/// For a command that blocks: notes a first signal that ends programs; a second one ends this one.
pub(super) fn noted_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut signals = runtime.block_on(async { Signals::new() }).context("cannot catch signals")?;
    let caught = Arc::new(AtomicBool::new(false));
    let noted = caught.clone();
    thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            signals.next().await;
            noted.store(true, Ordering::Relaxed);
            signals.next().await;
            std::process::exit(INTERRUPTED_EXIT_CODE.into());
        });
    })?;
    Ok(caught)
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
