//! The session with the kernel: request threads, each with its own descriptor of the connection.
//!
//! ```text
//!  /dev/fuse ── INIT ──► handshake, through a socket pair ──► reply
//!      │ clone (FUSE_DEV_IOC_CLONE)
//!      ├─► thread fuse-0: a fuser session ── a request panics ──► the clone is closed: the kernel
//!      │                                                     answers the request; a new clone
//!      ├─► thread fuse-1: a fuser session
//!      └─ the mounted descriptor: notifications, backing files, the source of clones
//! ```
//!
//! **A panic costs the request that caused it.** If our code panics, it drops its reply, which
//! answers EIO. fuser may panic before there is a reply, because it does unchecked arithmetic with
//! numbers that come from programs (`utimensat` takes any number of seconds). The kernel keeps a
//! request at the clone that it was read from until it is answered, and answers ECONNABORTED when
//! that clone is closed. So each thread has a fuser session with a clone of its own, and a session
//! that ends by a panic is dropped with its clone and replaced. Requests that wait in tasks keep a
//! clone open until they are answered; their deadlines bound that time.
//!
//! fuser makes a handshake for each session, but the kernel makes one for a connection. The
//! kernel's INIT request is read here and given to each session through a socket pair; the reply
//! of the first session goes to the kernel. Then the descriptor of a clone replaces the socket.
//!
//! **Another process can take over.** The [supervisor](super::supervisor) holds the connection, the
//! INIT request and every clone. A successor makes its sessions of the same INIT request, and has
//! the kernel send again what the dead process had read and not answered (`FUSE_NOTIFY_RESEND`,
//! Linux 6.9), before it reads anything. An older kernel refuses that; then closing the dead
//! process's clones answers those requests with ECONNABORTED.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use fuser::{Config, Filesystem, Notifier, Session, SessionACL};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, recv, send, shutdown, socketpair,
};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use tokio::sync::watch;

use super::mountinfo::MountInfo;
use super::supervisor::{KeptConnection, SupervisorLink};
use super::unmount;

/// The size of the buffer for INIT, in bytes; the kernel refuses reads into less than 8 KiB.
const INIT_CAPACITY: usize = 64 << 10;

/// How long a thread that got no new clone waits before it tries again.
const REPLACE_BACKOFF_MS: u16 = 100;

/// The largest read, in bytes. fuser lets the kernel read up to 16 MiB and a page; a larger
/// request does not come from a kernel and is refused before memory is allocated for it.
pub(crate) const MAX_READ: u32 = 32 << 20;

/// The message that puts all requests that were read and not answered back into the queue: its
/// length in bytes, the code of `FUSE_NOTIFY_RESEND`, and no request number.
const RESEND: [u8; 16] = {
    let (len, code) = (16u32.to_ne_bytes(), 7u32.to_ne_bytes());
    [len[0], len[1], len[2], len[3], code[0], code[1], code[2], code[3], 0, 0, 0, 0, 0, 0, 0, 0]
};

/// The bit in a request's number that says that it is sent again (`FUSE_UNIQUE_RESEND`).
pub(crate) const RESENT: u64 = 1 << 63;

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SessionEnd {
    /// The file system was unmounted everywhere.
    Unmounted,
    /// The connection was aborted (`/sys/fs/fuse/connections/N/abort`). The mount may still be
    /// there, and all requests to it fail.
    Aborted,
}

/// The connection to the kernel was aborted.
#[derive(Debug, thiserror::Error)]
#[error("the connection to the kernel was aborted; the mount was removed, and what was open gives errors")]
pub struct ConnectionAborted;

impl SessionEnd {
    /// Ok for an unmount, which is how a mount ends; anything else is a failure.
    pub fn outcome(self) -> Result<(), ConnectionAborted> {
        match self {
            Self::Unmounted => Ok(()),
            Self::Aborted => Err(ConnectionAborted),
        }
    }
}

/// A connection to the kernel on which the handshake was made, and that no thread serves yet.
pub(crate) struct FuseConnection<F: Filesystem> {
    /// Owns the descriptor that was mounted. It never runs.
    main: Session<F>,
    filesystem: F,
    config: Config,
    /// The kernel's INIT request.
    init: Vec<u8>,
    duplicate: fn(BorrowedFd<'_>) -> io::Result<OwnedFd>,
    /// Who holds the clones as well, if another process is to take over.
    keeper: Option<Arc<SupervisorLink>>,
    clones: AtomicU64,
}

/// A session over a clone of the connection.
struct CloneSession<F: Filesystem> {
    session: Session<F>,
    /// The clone's number at the supervisor.
    number: u64,
}

impl<F: Filesystem + Clone> FuseConnection<F> {
    /// Makes the handshake on `device`, which has been mounted, for `filesystem`. Each thread
    /// serves a copy of `filesystem`, whose [`init`](Filesystem::init) gets the same offer of the
    /// kernel.
    pub(crate) fn new(filesystem: F, device: OwnedFd, acl: SessionACL) -> io::Result<Self> {
        Self::over(filesystem, device, acl, clone_device)
    }

    pub(super) fn over(
        filesystem: F,
        device: OwnedFd,
        acl: SessionACL,
        duplicate: fn(BorrowedFd<'_>) -> io::Result<OwnedFd>,
    ) -> io::Result<Self> {
        let config = Self::config(acl);
        let init = read_init(&device)?;
        let (main, reply) = session(filesystem.clone(), config.clone(), &init, &device)?;
        nix::unistd::write(&device, &reply)?;
        Ok(Self { main, filesystem, config, init, duplicate, keeper: None, clones: AtomicU64::new(0) })
    }

    /// Leaves the connection, and what stands in `ledger`, to a successor.
    pub(crate) fn keep(&mut self, keeper: Arc<SupervisorLink>, ledger: BorrowedFd<'_>) -> io::Result<()> {
        keeper.keep(self.main.as_fd(), ledger, &self.init)?;
        self.keeper = Some(keeper);
        Ok(())
    }

    /// Takes over the connection of a process that has died. Nothing may be read from it before
    /// this returns.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] if requests of the other process can never be answered.
    pub(crate) fn take_over(
        filesystem: F,
        kept: KeptConnection,
        acl: SessionACL,
        keeper: Arc<SupervisorLink>,
    ) -> io::Result<Self> {
        let KeptConnection { device, init, clones, is_predecessor_stuck, .. } = kept;
        let config = Self::config(acl);
        // The kernel had its reply from the first process.
        let (main, _) = session(filesystem.clone(), config.clone(), &init, &device)?;
        if let Err(errno) = nix::unistd::write(&device, &RESEND) {
            if is_predecessor_stuck {
                // Closing clones answers nothing as long as it holds them.
                return Err(io::Error::new(io::ErrorKind::Unsupported, "requests cannot be sent again"));
            }
            tracing::warn!(%errno, "this kernel cannot send requests again; those in flight have failed");
        }
        drop(clones);
        keeper.taken_over()?;
        let (duplicate, keeper, clones) = (clone_device, Some(keeper), AtomicU64::new(0));
        Ok(Self { main, filesystem, config, init, duplicate, keeper, clones })
    }

    fn config(acl: SessionACL) -> Config {
        let mut config = Config::default();
        config.acl = acl;
        config.n_threads = Some(1);
        config
    }

    pub(crate) fn filesystem(&self) -> &F {
        &self.filesystem
    }

    pub(crate) fn notifier(&self) -> Notifier {
        self.main.notifier()
    }

    /// Starts the request threads, which end with the connection.
    pub(crate) fn serve(self, threads: usize) -> io::Result<RunningSession> {
        let (sender, ended) = watch::channel(None);
        let ending = Arc::new(EndReporter { sender, end: Mutex::new(SessionEnd::Unmounted) });
        let connection = Arc::new(self);
        for number in 0..threads.max(1) {
            let (connection, ending) = (connection.clone(), ending.clone());
            let session = connection.session()?;
            thread::Builder::new().name(format!("fuse-{number}")).spawn(move || {
                let end = connection.run(session);
                let mut worst = ending.end.lock();
                *worst = end.max(*worst);
            })?;
        }
        Ok(RunningSession(ended))
    }

    /// A session over a new clone.
    fn session(&self) -> io::Result<CloneSession<F>> {
        let device = (self.duplicate)(self.main.as_fd())?;
        let number = self.clones.fetch_add(1, Ordering::Relaxed);
        if let Some(keeper) = &self.keeper {
            keeper.keep_clone(number, device.as_fd())?;
        }
        let config = self.config.clone();
        let (session, _) = session(self.filesystem.clone(), config, &self.init, &device)?;
        Ok(CloneSession { session, number })
    }

    /// Answers requests until the connection ends.
    fn run(&self, mut clone: CloneSession<F>) -> SessionEnd {
        loop {
            let CloneSession { session, number } = clone;
            let end = session.run();
            match end {
                Ok(()) => return SessionEnd::Unmounted,
                Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => {
                    return SessionEnd::Aborted;
                }
                // The panic has been logged and counted where it happened.
                Err(error) => tracing::debug!(%error, "a request ended its session; it is replaced"),
            }
            if let Some(keeper) = &self.keeper {
                keeper.close_clone(number);
            }
            clone = match self.replacement() {
                Some(clone) => clone,
                None => return SessionEnd::Unmounted,
            };
        }
    }

    /// A new session for a thread whose session has ended by a panic. `None` if the connection has
    /// ended.
    fn replacement(&self) -> Option<CloneSession<F>> {
        let mut logged = false;
        loop {
            match self.session() {
                Ok(session) => return Some(session),
                Err(error) if !logged => {
                    tracing::warn!(%error, "a request thread waits for another descriptor of the connection");
                    logged = true;
                }
                Err(_) => {}
            }
            // Polling for no event reports only the end of the connection.
            let mut main = [PollFd::new(self.main.as_fd(), PollFlags::empty())];
            if poll(&mut main, PollTimeout::from(REPLACE_BACKOFF_MS)) == Ok(1) {
                return None;
            }
        }
    }
}

impl<F: Filesystem> AsFd for FuseConnection<F> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.main.as_fd()
    }
}

/// A connection that request threads serve.
#[derive(Clone)]
pub(crate) struct RunningSession(watch::Receiver<Option<SessionEnd>>);

impl RunningSession {
    /// Resolves when the request threads have ended.
    pub(crate) async fn wait(&self) -> SessionEnd {
        let end = self.0.clone().wait_for(Option::is_some).await.ok().and_then(|end| *end);
        // The threads report their end before they drop the sender.
        end.unwrap_or(SessionEnd::Aborted)
    }

    /// Whether the request threads have ended because the file system was unmounted everywhere.
    pub(crate) fn is_unmounted(&self) -> bool {
        *self.0.borrow() == Some(SessionEnd::Unmounted)
    }

    /// Serves files that are still open after `mount` was detached, for `grace` at most. Then the
    /// connection is aborted: requests in flight fail with `ECONNABORTED`, later ones with
    /// `ENOTCONN`.
    pub(crate) async fn drain(&self, mount: &MountInfo, grace: Duration) {
        if tokio::time::timeout(grace, self.wait()).await.is_err() {
            let path = mount.path.display();
            tracing::warn!(%path, "files are still open; requests for them fail from now on");
            unmount::abort(mount);
        }
    }
}

/// How long a new mount may take to answer its first request.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes the first request of a mount, `ask`, on a thread that may block.
///
/// # Errors
/// That of `ask`; [`io::ErrorKind::TimedOut`] if there is no answer in 30 s.
pub(crate) async fn first_answer<T: Send + 'static>(
    ask: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let answer = tokio::task::spawn_blocking(ask);
    tokio::time::timeout(FIRST_ANSWER_TIMEOUT, answer).await?.map_err(io::Error::other)?
}

/// What the threads share to report their end. The last thread drops it, even by a panic.
struct EndReporter {
    sender: watch::Sender<Option<SessionEnd>>,
    end: Mutex<SessionEnd>,
}

impl Drop for EndReporter {
    fn drop(&mut self) {
        self.sender.send_replace(Some(*self.end.get_mut()));
    }
}

fn read_init(device: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut init = vec![0; INIT_CAPACITY];
    let len = loop {
        match nix::unistd::read(device, &mut init) {
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::EAGAIN) => {}
            read => break read?,
        }
    };
    init.truncate(len);
    Ok(init)
}

/// A fuser session that has processed `init` and reads from the file of `device`, and its reply.
fn session<F: Filesystem>(
    filesystem: F,
    config: Config,
    init: &[u8],
    device: &OwnedFd,
) -> io::Result<(Session<F>, Vec<u8>)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    send(ours.as_raw_fd(), init, MsgFlags::empty())?;
    // A session that reads a second request finds the end of the stream instead of waiting for
    // ever.
    shutdown(ours.as_raw_fd(), Shutdown::Write)?;
    let session = Session::from_fd(filesystem, theirs, config.acl, config)?;
    let mut reply = vec![0; INIT_CAPACITY];
    let len = recv(ours.as_raw_fd(), &mut reply, MsgFlags::MSG_DONTWAIT)?;
    reply.truncate(len);
    // SAFETY: the session owns the descriptor whose file is replaced, and goes on owning it.
    let replaced = unsafe { libc::dup3(device.as_raw_fd(), session.as_fd().as_raw_fd(), libc::O_CLOEXEC) };
    nix::errno::Errno::result(replaced)?;
    Ok((session, reply))
}

nix::ioctl_read!(
    /// Attaches a new descriptor of `/dev/fuse` to the connection of another.
    ioctl_clone, 229, 0, u32
);

fn clone_device(device: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let clone = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mut source = device.as_raw_fd() as u32;
    // SAFETY: the kernel reads one number from `source`, and both descriptors are open.
    unsafe { ioctl_clone(clone.as_raw_fd(), &mut source) }?;
    Ok(clone)
}
