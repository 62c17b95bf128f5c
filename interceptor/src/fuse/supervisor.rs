//! The supervisor: the process that a user starts. It watches over the one that serves.
//!
//! A FUSE mount outlives its daemon as a path at which every call fails, and a killed process
//! cannot clean up. So the supervisor waits for the end of its child, the worker. What it does then
//! depends on what the worker has left with it:
//!
//! ```text
//!              supervisor                                 worker
//!   ┌──────────────────────────────┐      ┌────────────────────────────────────┐
//!   │ which mount it is            │◄─────┤ mounts                             │
//!   │ the connection, INIT, ledger │◄─────┤ makes the handshake                │
//!   │ each clone                   │◄─────┤ serves a clone on each thread      │
//!   └──────────────┬───────────────┘      └────────────────────────────────────┘
//!                  │ fork, when the worker is dead    ▲
//!                  └──────────────────────────────────┘
//! ```
//!
//! * The connection: another worker takes over. As long as a process holds a descriptor of the
//!   connection the kernel keeps requests that are not read, and as long as one holds the clone
//!   that a request was read from, the kernel keeps that one unanswered
//!   ([`session`](super::session)). What the kernel was told stands in the
//!   [ledger](crate::ledger).
//! * Only which mount it is: the supervisor removes the mount. Other mounts may come to the same
//!   path, so it is known by its number, and reported before programs can reach it.
//!
//! A worker that is killed may not end. To drop a name the kernel takes the lock of a directory,
//! which a reader holds until the worker answers; and a thread that waits for a lock in the kernel
//! cannot be killed. So the supervisor watches the worker's first thread, and does not wait for
//! others that are stuck when that is gone. Only the successor's answers set them free.
//!
//! Workers that die soon after they began are replaced later and later, and in the end the mount is
//! removed: a request that kills every worker would be sent to each of them.
//!
//! The supervisor has one thread, maps no cache, opens nothing on the mount, and has little reason
//! to die itself. If it does, the kernel signals the worker to end. Only if both are killed at
//! once, a dead mount stays; `umount -l` removes it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use daemon::output;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{ForkResult, Pid, fork, getppid, setpgid};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::handover::{self, Accepted, FixedOptions, HandedOver, Restart};
use super::mountinfo::MountInfo;
use super::worker_end::{DyingWorker, reap};
use super::{mountpoint, packets, unmount};

/// Signals that are forwarded to the worker.
const FORWARDED_SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// The worker's parent-death signal. It is a signal of its own: the kernel may send several, and a
/// second SIGTERM would cut the grace period short.
pub const ORPHANED: Signal = Signal::SIGUSR1;

/// A worker that has served for this long did not die of what it began with.
const STABLE_AFTER: Duration = Duration::from_secs(1);

/// After so many workers in a row that were not [stable](STABLE_AFTER), the mount is removed.
const MAX_FAILURES: u32 = 20;

/// The same for workers that end by themselves because they cannot begin, as when no filer answers.
/// With the backoff that is a quarter of an hour.
const MAX_REFUSALS: u32 = 180;

/// The longest time between two workers.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// What a worker tells its supervisor.
#[derive(Debug, Serialize, Deserialize)]
enum Message {
    /// A mount is about to be made at this path.
    MountingAt(PathBuf),
    /// The mount with this id and device (`MAJOR:MINOR`) is about to be reachable.
    Mounting { id: u64, device: String },
    /// It is unmounted: its numbers may be reused.
    Removed,
    /// With two descriptors: the connection and the ledger. From now on the mount is to be kept.
    Keep { init: Vec<u8> },
    /// With a descriptor: a clone of the connection, from which requests are about to be read.
    Clone { number: u64 },
    /// A clone is to be closed, with the requests that were read from it.
    Close { number: u64 },
    /// What was read from clones of earlier workers is in the kernel's queue again.
    TakenOver,
    /// The status API is here; a successor's is to be there as well.
    StatusAt(SocketAddr),
    /// What came of reading keys and the like anew.
    Reloaded(Result<String, String>),
    /// The mount answers.
    Serving,
}

/// A connection to the kernel that a worker has left to its successor.
#[derive(Debug)]
pub(crate) struct KeptConnection {
    /// The descriptor that was mounted.
    pub(crate) device: OwnedFd,
    /// The memory of the [ledger](crate::ledger).
    pub(crate) ledger: OwnedFd,
    /// The kernel's INIT request.
    pub(crate) init: Vec<u8>,
    /// The mount's id and device.
    pub(crate) mount: (u64, String),
    /// Clones from which requests were read that were not answered.
    pub(crate) clones: Vec<OwnedFd>,
    /// Whether threads of the predecessor wait for an answer, and hold its descriptors until then.
    pub(crate) is_predecessor_stuck: bool,
}

/// The worker's end of its link to the supervisor.
#[derive(Debug)]
pub struct SupervisorLink {
    socket: OwnedFd,
    kept: Mutex<Option<KeptConnection>>,
    /// Where the predecessor's status API was.
    status_before: Option<SocketAddr>,
}

impl SupervisorLink {
    /// A link whose other end is closed.
    #[cfg(test)]
    pub(crate) fn unheard() -> Self {
        let (socket, _) = packets::pair().unwrap();
        Self { socket, kept: Mutex::new(None), status_before: None }
    }

    /// Whether a predecessor has left a mount.
    pub(crate) fn has_kept(&self) -> bool {
        self.kept.lock().is_some()
    }

    /// Where the predecessor's status API was.
    pub(crate) fn status_before(&self) -> Option<SocketAddr> {
        self.status_before
    }

    /// The status API is here; a successor's is to be there as well.
    pub(crate) fn status_at(&self, address: SocketAddr) {
        let _ = self.send(&Message::StatusAt(address), &[]);
    }

    /// What the predecessor has left. `None` for the first worker, and from the second call on.
    pub(crate) fn take_kept(&self) -> Option<KeptConnection> {
        self.kept.lock().take()
    }

    /// A mount is about to be made at `path`. If the worker dies before it can tell which one it
    /// is, a dead one there is removed.
    pub(crate) fn mounting_at(&self, path: &Path) -> io::Result<()> {
        self.send(&Message::MountingAt(path.to_owned()), &[])
    }

    /// The mount is about to be reachable, with mount id `id` and device `MAJOR:MINOR`. If the
    /// worker dies now, it is removed.
    pub(crate) fn mounting(&self, id: u64, device: &str) -> io::Result<()> {
        self.send(&Message::Mounting { id, device: device.to_owned() }, &[])
    }

    /// The mount is unmounted: its numbers may be reused.
    pub(crate) fn removed(&self) {
        // It fails only after the supervisor's end.
        let _ = self.send(&Message::Removed, &[]);
    }

    /// Leaves the connection to a successor. If the worker dies from now on, another one is
    /// started.
    pub(crate) fn keep(&self, device: BorrowedFd<'_>, ledger: BorrowedFd<'_>, init: &[u8]) -> io::Result<()> {
        self.send(&Message::Keep { init: init.to_vec() }, &[device, ledger])
    }

    /// Leaves a clone, before anything is read from it.
    pub(crate) fn keep_clone(&self, number: u64, clone: BorrowedFd<'_>) -> io::Result<()> {
        self.send(&Message::Clone { number }, &[clone])
    }

    /// Requests that were read from a clone are not to be sent again.
    pub(crate) fn close_clone(&self, number: u64) {
        let _ = self.send(&Message::Close { number }, &[]);
    }

    /// The requests that the predecessor has not answered are in the kernel's queue.
    pub(crate) fn taken_over(&self) -> io::Result<()> {
        self.send(&Message::TakenOver, &[])
    }

    /// What came of reading keys and the like anew, for those who have asked for it.
    pub(crate) fn reloaded(&self, outcome: Result<String, String>) {
        let _ = self.send(&Message::Reloaded(outcome), &[]);
    }

    /// The mount answers.
    pub(crate) fn serving(&self) -> io::Result<()> {
        self.send(&Message::Serving, &[])
    }

    fn send(&self, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        packets::send(&self.socket, message, descriptors)
    }
}

/// How a program is supervised.
pub struct Supervision<'a> {
    /// The type of mounts beneath which one of it may have come, to replace them.
    pub replaces: Option<&'a str>,
    /// Whether the worker gets a process group of its own, so that signals of a terminal reach the
    /// supervisor alone, which forwards them once.
    pub own_group: bool,
    /// What a restart cannot change. `None`: this kind of mount is not restarted in this way.
    pub fixed: Option<FixedOptions>,
    /// Called in each worker. May start threads.
    pub begin_worker: &'a dyn Fn(),
    /// Called in the supervisor when the mount answers for the first time. An error ends the mount.
    pub on_serving: &'a mut dyn FnMut() -> io::Result<()>,
}

/// Runs `serve`, which returns an exit code, in a child process, and again in another one if that
/// dies and has left a connection. Returns the exit code of the last one. Does not return in the
/// children.
///
/// # Safety
/// The process must have no other thread.
///
/// # Errors
/// A child process cannot be started or waited for.
pub unsafe fn supervise(
    mut how: Supervision<'_>,
    serve: impl FnOnce(SupervisorLink) -> u8,
) -> io::Result<ExitCode> {
    let mut awaited: SigSet = FORWARDED_SIGNALS.into_iter().collect();
    awaited.add(Signal::SIGCHLD);
    let mut usual = SigSet::empty();
    // Blocked, so that no signal is lost between fork and wait. They are blocked already if a
    // supervisor has executed this program.
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&awaited), Some(&mut usual))?;
    awaited.iter().for_each(|signal| usual.remove(signal));
    let signals = SignalFd::with_flags(&awaited, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut watched = Watched::new(signals);
    // SAFETY: the caller promises that there is no other thread.
    if let Some(handed_over) = unsafe { HandedOver::take() }? {
        watched.continue_with(handed_over);
    }
    let (mut serve, mut failures) = (Some(serve), 0);
    let parent = Pid::this();
    loop {
        let (ours, theirs) = packets::pair()?;
        // SAFETY: the caller promises that there is no other thread, so no lock is held by a thread
        // that the child does not have.
        match unsafe { fork() }? {
            ForkResult::Child => {
                let (status_before, kept) = (watched.status, watched.into_kept());
                drop(ours);
                if how.own_group {
                    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
                }
                let orphaned = prctl::set_pdeathsig(ORPHANED).is_err() || getppid() != parent;
                sigprocmask(SigmaskHow::SIG_SETMASK, Some(&usual), None)?;
                (how.begin_worker)();
                let link = SupervisorLink { socket: theirs, kept: Mutex::new(kept), status_before };
                let serve = serve.take().filter(|_| !orphaned);
                let code = serve.map_or(1, |serve| serve(link));
                output::flush();
                std::process::exit(code.into())
            }
            ForkResult::Parent { child } => {
                drop(theirs);
                let code = watched.await_end(child, &ours, &mut how)?;
                let is_restart = watched.restart.is_some();
                if code.is_none_or(|code| code > 2) && !watched.is_ending && !is_restart {
                    tracing::error!(code, "the process that served is dead");
                }
                let Some(mount) = watched.mount() else {
                    if let (Some(path), None) = (&watched.mounting_at, code) {
                        mountpoint::remove_if_dead(path);
                    }
                    let was_mounted = watched.mount.is_some();
                    if was_mounted {
                        tracing::info!("unmounted by somebody else");
                    }
                    let is_wanted = was_mounted || watched.is_ending;
                    let killed = if is_wanted { ExitCode::SUCCESS } else { ExitCode::FAILURE };
                    return Ok(code.map_or(killed, ExitCode::from));
                };
                if let Some(restart) = watched.restart.take() {
                    watched.execute(restart, Restart::of_this_program().ok());
                } else if let Some(previous) = watched.previous.take() {
                    tracing::error!("the new program does not serve; the one before goes on");
                    let requester = watched.requester.take();
                    if let Some(requester) = &requester {
                        handover::report_failure(
                            requester,
                            "the new program does not serve; its log says why",
                        );
                    }
                    watched.execute(previous, None);
                }
                let served = watched.serving_since.take();
                let is_stable = served.is_some_and(|since| since.elapsed() > STABLE_AFTER);
                failures = if is_stable { 0 } else { failures + 1 };
                let limit = if code.is_some_and(|code| code <= 2) { MAX_REFUSALS } else { MAX_FAILURES };
                if watched.kept.is_none() || watched.is_ending || failures > limit {
                    if failures > limit {
                        tracing::error!(
                            "{failures} processes in a row have ended early; the mount is given up"
                        );
                    }
                    let orderly = code.filter(|code| (1..=2).contains(code));
                    let killed = if watched.is_ending { ExitCode::SUCCESS } else { ExitCode::FAILURE };
                    watched.remove(&mount, how.replaces);
                    return Ok(orderly.map_or(killed, ExitCode::from));
                }
                if watched.pause(backoff(failures))? {
                    watched.remove(&mount, how.replaces);
                    return Ok(ExitCode::SUCCESS);
                }
                tracing::warn!(path = %mount.path.display(), "another process takes over");
            }
        }
    }
}

/// How long to wait for the next worker after so many that failed in a row.
fn backoff(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        more => (Duration::from_millis(50) * 2u32.saturating_pow(more - 2)).min(MAX_BACKOFF),
    }
}

/// What the supervisor holds.
struct Watched {
    signals: SignalFd,
    /// The id and device of the mount that the worker reported last.
    mount: Option<(u64, String)>,
    kept: Option<Kept>,
    /// Where the worker makes a mount that it has not reported yet.
    mounting_at: Option<PathBuf>,
    /// Where the worker's status API is.
    status: Option<SocketAddr>,
    /// Where restarts are asked for.
    listener: Option<OwnedFd>,
    /// Whether the address for that was in use.
    was_refused: bool,
    /// Processes that wait for the worker to have read keys and the like anew.
    reloads: Vec<OwnedFd>,
    /// A restart that begins when the worker has ended.
    restart: Option<Restart>,
    /// The process that waits for the mount to answer.
    requester: Option<OwnedFd>,
    /// The program that was executed before this one, until this one has served.
    previous: Option<Restart>,
    /// Whether threads of the last worker are stuck.
    is_stuck: bool,
    /// Whether the program was told to end.
    is_ending: bool,
    /// Since when the worker serves.
    serving_since: Option<Instant>,
    /// Whether any worker has served.
    was_served: bool,
}

struct Kept {
    device: OwnedFd,
    ledger: OwnedFd,
    init: Vec<u8>,
    /// Clones of the worker that runs, by their numbers.
    clones: BTreeMap<u64, OwnedFd>,
    /// Clones of earlier ones.
    earlier: Vec<OwnedFd>,
}

impl Watched {
    fn new(signals: SignalFd) -> Self {
        Self {
            signals,
            mount: None,
            kept: None,
            mounting_at: None,
            status: None,
            listener: None,
            was_refused: false,
            reloads: Vec::new(),
            restart: None,
            requester: None,
            previous: None,
            is_stuck: false,
            is_ending: false,
            serving_since: None,
            was_served: false,
        }
    }

    /// Takes what this process held before it executed this program.
    fn continue_with(&mut self, held: HandedOver) {
        let HandedOver { mount, init, status, device, ledger, clones, requester, previous } = held;
        self.kept = Some(Kept { device, ledger, init, clones: BTreeMap::new(), earlier: clones });
        (self.mount, self.status) = (Some(mount), status);
        (self.requester, self.previous) = (requester, previous);
    }

    /// Executes another program in the place of this one, if it can.
    fn execute(&mut self, mut restart: Restart, previous: Option<Restart>) {
        let (Some(kept), Some(mount)) = (self.kept.take(), self.mount.clone()) else { return };
        // Its name must be free.
        self.listener = None;
        let Kept { device, ledger, init, earlier: clones, .. } = kept;
        let requester = restart.take_requester();
        let held =
            HandedOver { mount, init, status: self.status, device, ledger, clones, requester, previous };
        let (error, held) = restart.execute(held);
        tracing::error!(%error, "cannot execute another program; this one goes on");
        let HandedOver { init, device, ledger, clones, requester, .. } = held;
        if let Some(requester) = requester {
            let text = format!("the program cannot be executed in the place of the one that runs: {error}");
            handover::report_failure(&requester, &text);
        }
        self.kept = Some(Kept { device, ledger, init, clones: BTreeMap::new(), earlier: clones });
    }

    /// Listens for restarts and reloads of the mount, if there is one and the address is free: the
    /// kernel gives the number of a mount that is gone to the next one at once.
    fn listen(&mut self) {
        let Some((_, device)) = self.mount.as_ref().filter(|_| self.listener.is_none()) else { return };
        match handover::listener(device) {
            Ok(listener) => self.listener = Some(listener),
            Err(errno) if !self.was_refused => {
                tracing::debug!(%errno, "this mount cannot be reloaded or restarted yet");
                self.was_refused = true;
            }
            Err(_) => {}
        }
    }

    /// In the child: closes what only the supervisor needs.
    fn into_kept(self) -> Option<KeptConnection> {
        let (kept, mount) = (self.kept?, self.mount?);
        let clones = kept.clones.into_values().chain(kept.earlier).collect();
        Some(KeptConnection {
            device: kept.device,
            ledger: kept.ledger,
            init: kept.init,
            mount,
            clones,
            is_predecessor_stuck: self.is_stuck,
        })
    }

    /// The mount, if it still exists.
    fn mount(&self) -> Option<MountInfo> {
        let (id, device) = self.mount.as_ref()?;
        MountInfo::with_id(*id).filter(|mount| mount.device == *device)
    }

    /// Forwards signals and takes messages until the worker has ended. Returns its exit code;
    /// `None` if a signal ended it.
    fn await_end(
        &mut self,
        worker: Pid,
        link: &OwnedFd,
        how: &mut Supervision<'_>,
    ) -> io::Result<Option<u8>> {
        let (mut is_open, mut dying) = (true, DyingWorker::new(worker));
        loop {
            self.listen();
            let mut sources = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            // A link whose other end is closed is always readable.
            sources.extend(is_open.then(|| PollFd::new(link.as_fd(), PollFlags::POLLIN)));
            sources.extend(self.listener.as_ref().map(|from| PollFd::new(from.as_fd(), PollFlags::POLLIN)));
            match poll(&mut sources, dying.timeout()) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let is_asked = sources.last().and_then(PollFd::any) == Some(true);
            let request = match &self.listener {
                Some(listener) if is_asked && self.restart.is_none() && !self.is_ending => {
                    handover::accept_request(listener, how.fixed.as_ref())
                }
                _ => None,
            };
            // Until it has been waited for, the worker's pid is not reused.
            match request {
                Some(Accepted::Restart(restart)) => {
                    tracing::info!("ending the process that serves, to have another program take over");
                    self.restart = Some(restart);
                    kill(worker, Signal::SIGKILL)?;
                }
                Some(Accepted::Reload(requester)) => {
                    self.reloads.push(requester);
                    kill(worker, Signal::SIGHUP)?;
                }
                None => {}
            }
            while is_open {
                match packets::receive(link) {
                    Ok(Some((message, descriptors))) => self.handle(message, descriptors, worker, how),
                    Ok(None) => is_open = false,
                    Err(Errno::EAGAIN) => break,
                    Err(errno) => {
                        tracing::warn!(%errno, "cannot read what the process that serves says");
                        is_open = false;
                    }
                }
            }
            while let Some(info) = self.signals.read_signal()? {
                match Signal::try_from(info.ssi_signo as i32)? {
                    Signal::SIGCHLD => {
                        if let Some(code) = reap(worker)? {
                            self.take_rest(link, worker, how);
                            self.is_stuck = false;
                            return Ok(code);
                        }
                    }
                    signal => {
                        self.is_ending |= signal != Signal::SIGHUP;
                        // Until it has been waited for, the worker's pid is not reused.
                        kill(worker, signal)?;
                    }
                }
            }
            if dying.is_stuck() {
                tracing::warn!("threads of the process that served are stuck; not waiting for them");
                self.take_rest(link, worker, how);
                self.is_stuck = true;
                return Ok(None);
            }
        }
    }

    /// Takes what the worker said before its end, and makes its clones those of an earlier one.
    fn take_rest(&mut self, link: &OwnedFd, worker: Pid, how: &mut Supervision<'_>) {
        while let Ok(Some((message, descriptors))) = packets::receive(link) {
            self.handle(message, descriptors, worker, how);
        }
        if let Some(kept) = &mut self.kept {
            kept.earlier.extend(std::mem::take(&mut kept.clones).into_values());
        }
    }

    fn handle(
        &mut self,
        message: Message,
        descriptors: Vec<OwnedFd>,
        worker: Pid,
        how: &mut Supervision<'_>,
    ) {
        let mut descriptors = descriptors.into_iter();
        match message {
            Message::MountingAt(path) => self.mounting_at = Some(path),
            Message::Mounting { id, device } => {
                (self.mount, self.mounting_at) = (Some((id, device)), None);
            }
            Message::Removed => {
                (self.mount, self.kept, self.listener) = (None, None, None);
            }
            Message::Keep { init } => {
                if let (Some(device), Some(ledger)) = (descriptors.next(), descriptors.next()) {
                    let (clones, earlier) = (BTreeMap::new(), Vec::new());
                    self.kept = Some(Kept { device, ledger, init, clones, earlier });
                }
            }
            Message::Clone { number } => {
                if let (Some(kept), Some(clone)) = (&mut self.kept, descriptors.next()) {
                    kept.clones.insert(number, clone);
                }
            }
            Message::Close { number } => {
                if let Some(kept) = &mut self.kept {
                    kept.clones.remove(&number);
                }
            }
            Message::TakenOver => {
                if let Some(kept) = &mut self.kept {
                    kept.earlier.clear();
                }
            }
            Message::Reloaded(outcome) => {
                for requester in std::mem::take(&mut self.reloads) {
                    handover::report_reloaded(&requester, &outcome);
                }
            }
            Message::StatusAt(address) => self.status = Some(address),
            Message::Serving if self.requester.is_some() => {
                (self.was_served, self.serving_since) = (true, Some(Instant::now()));
                self.previous = None;
                if let Some(requester) = self.requester.take() {
                    handover::report_serving(&requester);
                }
            }
            Message::Serving if !self.was_served => {
                (self.was_served, self.serving_since) = (true, Some(Instant::now()));
                if let Err(error) = (how.on_serving)() {
                    tracing::error!(%error, "nobody waits for the mount any more");
                    self.is_ending = true;
                    let _ = kill(worker, Signal::SIGTERM);
                }
            }
            Message::Serving => self.serving_since = Some(Instant::now()),
        }
    }

    /// Waits; returns whether a signal has ended the program meanwhile.
    fn pause(&mut self, time: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + time;
        loop {
            while let Some(info) = self.signals.read_signal()? {
                let signal = Signal::try_from(info.ssi_signo as i32)?;
                if [Signal::SIGINT, Signal::SIGTERM].contains(&signal) {
                    return Ok(true);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let mut sources = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            match poll(&mut sources, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Unmounts the mount, without a request to its daemon.
    fn remove(&mut self, mount: &MountInfo, replaces: Option<&str>) {
        // First abort, so that pending requests fail even if a process still holds the connection.
        unmount::abort(mount);
        self.kept = None;
        // The worker may have died between the two steps of `attach --restart`. The old overlay
        // would be in the way, and its end would uncover a dead one.
        if let Some(old) = mount.covered_by().filter(|other| Some(&*other.fs_type) == replaces) {
            unmount::detach(&old);
        }
        unmount::detach(mount);
        tracing::warn!(path = %mount.path.display(), "removed the mount; what was there before is back");
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn messages_arrive_with_their_descriptors() {
        let (ours, theirs) = packets::pair().unwrap();
        let link = SupervisorLink { socket: theirs, kept: Mutex::new(None), status_before: None };
        let null = File::open("/dev/null").unwrap();
        link.mounting(7, "0:99").unwrap();
        link.keep(null.as_fd(), null.as_fd(), &[1; 104]).unwrap();
        link.keep_clone(3, null.as_fd()).unwrap();
        link.removed();
        drop(link);
        let mut all = Vec::new();
        while let Some((message, descriptors)) = packets::receive(&ours).unwrap() {
            all.push((message, descriptors.len()));
        }
        assert!(matches!(&all[0], (Message::Mounting { id: 7, device }, 0) if device == "0:99"), "{all:?}");
        assert!(matches!(&all[1], (Message::Keep { init }, 2) if init.len() == 104), "{all:?}");
        assert!(matches!(&all[2], (Message::Clone { number: 3 }, 1)), "{all:?}");
        assert!(matches!(&all[3], (Message::Removed, 0)), "{all:?}");
        assert_eq!(all.len(), 4);
    }

    #[test]
    fn the_next_worker_comes_at_once_and_later_ones_later() {
        assert!(backoff(0).is_zero() && backoff(1).is_zero());
        assert!((2..100).map(backoff).is_sorted() && backoff(100) == MAX_BACKOFF);
        let all: Duration = (0..=MAX_FAILURES).map(backoff).sum();
        assert!(all > Duration::from_secs(30) && all < Duration::from_secs(120), "{all:?}");
    }
}
