//! Handing a mount over to another program or other options (`interceptor mount --restart`), and
//! having a daemon read its keys anew (`interceptor reload`).
//!
//! ```text
//!   interceptor mount --restart …                supervisor of the mount
//!     checks its options
//!     connects to the socket of the mount ─────► is it the same user, or root?
//!     its program, arguments, what cannot ─────► does that agree?    no ──► the reason
//!     change                                     ends the worker
//!                                                executes the program in its own place
//!     waits                                      ▼
//!                                                the new program: another worker takes over
//!     ◄────────────────────────────────────────  the mount answers
//! ```
//!
//! The supervisor's process stays what it is for a service manager or a shell; only its program
//! changes. For the kernel nothing happens that would not when a worker is killed
//! ([`supervisor`](super::supervisor)).

use std::convert::Infallible;
use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::{Duration, Instant};

use daemon::peer;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen, socket,
};
use nix::unistd::{fexecve, geteuid};
use serde::{Deserialize, Serialize};

use super::mountinfo::MountInfo;
use super::packets::{receive, send};

/// The variable by which a supervisor tells the program that it executes what it holds: the number
/// of a descriptor.
const HANDOVER_VARIABLE: &str = "INTERCEPTOR_HANDOVER";

/// Variables that a restart takes from its requester; all others stay what they were.
const TAKEN_VARIABLES: [&str; 5] = ["INTERCEPTOR_", "WEED_", "RUST_", "NO_COLOR", "HOME"];

/// How long a supervisor waits for a request, and a requester for the first answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a requester waits for the mount to answer.
const RESTART_TIMEOUT: Duration = Duration::from_secs(90);

/// What must be the same for a mount to be handed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FixedOptions {
    /// Names of options and their values.
    pub values: Vec<(String, String)>,
    /// The filers. Others of the same cluster may come and go, so one that stays is enough.
    pub filers: Vec<String>,
}

impl FixedOptions {
    /// Why `new` cannot come in the place of this.
    fn refusal(&self, new: &Self) -> Option<String> {
        let changed = self.values.iter().zip(&new.values).find(|(old, new)| old != new);
        if let Some(((name, old), (_, new))) = changed {
            return Some(format!(
                "--restart cannot change {name}, which is {old} and would be {new}: unmount, then mount"
            ));
        }
        if !new.filers.iter().any(|filer| self.filers.contains(filer)) {
            return Some(format!(
                "none of the filers ({}) is one that the mount has ({}), so they may be another cluster's: \
                 name one of those as well, or unmount, then mount",
                new.filers.join(", "),
                self.filers.join(", ")
            ));
        }
        None
    }
}

/// What the requester of a restart sends, with a descriptor of its program.
#[derive(Debug, Serialize, Deserialize)]
struct RestartRequest {
    fixed: FixedOptions,
    command: CommandLine,
}

/// What a supervisor is asked for.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Restart(Box<RestartRequest>),
    /// Have the worker read keys and the like anew.
    Reload,
}

/// What the supervisor answers.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Accepted,
    Refused(String),
    /// The mount answers.
    Serving,
    /// What was read anew.
    Reloaded(String),
}

/// A request that is to be done.
pub(super) enum Accepted {
    Restart(Restart),
    /// With its requester.
    Reload(OwnedFd),
}

/// A program to execute, with its arguments and its environment.
#[derive(Debug)]
pub(super) struct Restart {
    program: OwnedFd,
    command: CommandLine,
    /// The process that has asked, and waits for the mount to answer.
    requester: Option<OwnedFd>,
}

/// How a program is executed.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct CommandLine {
    arguments: Vec<Vec<u8>>,
    directory: Vec<u8>,
    environment: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a supervisor holds, for the program that it executes. Descriptors are numbers.
#[derive(Debug, Serialize, Deserialize)]
struct Handover {
    mount: (u64, String),
    init: Vec<u8>,
    status: Option<SocketAddr>,
    device: RawFd,
    ledger: RawFd,
    clones: Vec<RawFd>,
    requester: Option<RawFd>,
    previous: Option<(RawFd, CommandLine)>,
}

/// What a supervisor had before it executed this program.
#[derive(Debug)]
pub(super) struct HandedOver {
    pub(super) mount: (u64, String),
    pub(super) init: Vec<u8>,
    pub(super) status: Option<SocketAddr>,
    pub(super) device: OwnedFd,
    pub(super) ledger: OwnedFd,
    pub(super) clones: Vec<OwnedFd>,
    /// The process that waits for the mount to answer.
    pub(super) requester: Option<OwnedFd>,
    /// The program that executed this one, for the case that this one does not serve.
    pub(super) previous: Option<Restart>,
}

/// Whether a supervisor has executed this program to go on with its mount.
pub(crate) fn is_continued() -> bool {
    env::var_os(HANDOVER_VARIABLE).is_some()
}

/// The name of the socket of a mount, in the abstract name space.
fn socket_address(device: &str) -> nix::Result<UnixAddr> {
    UnixAddr::new_abstract(format!("interceptor-supervisor-{device}").as_bytes())
}

fn seqpacket() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
}

/// Listens for restarts of the mount with this device.
pub(super) fn listener(device: &str) -> nix::Result<OwnedFd> {
    let socket = seqpacket()?;
    bind(socket.as_raw_fd(), &socket_address(device)?)?;
    listen(&socket, Backlog::new(4)?)?;
    Ok(socket)
}

/// Takes a request. `None` if it was refused, which the other side is told.
pub(super) fn accept_request(listener: &OwnedFd, own: Option<&FixedOptions>) -> Option<Accepted> {
    let accepted = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).ok()?;
    // SAFETY: the kernel has just made this descriptor for this process, and nothing else has its
    // number.
    let requester = unsafe { OwnedFd::from_raw_fd(accepted) };
    if let Err(error) = ensure_trusted(&requester, None) {
        tracing::warn!(%error, "refused a process that asks for this mount");
        let text = format!("the daemon does not trust this process: {error}");
        let _ = send(&requester, &Answer::Refused(text), &[]);
        return None;
    }
    if !is_readable(&requester, Instant::now() + ANSWER_TIMEOUT) {
        return None;
    }
    let (request, descriptors) = receive::<Request>(&requester).ok()??;
    let Request::Restart(request) = request else { return Some(Accepted::Reload(requester)) };
    let refusal = match own {
        Some(own) => own.refusal(&request.fixed),
        None => Some("it is no mount of `interceptor mount`".into()),
    };
    let program = descriptors.into_iter().next();
    let (answer, restart) = match (refusal, program) {
        (Some(reason), _) => (Answer::Refused(reason), None),
        (None, None) => (Answer::Refused("there is no program in the request".into()), None),
        (None, Some(program)) => (Answer::Accepted, Some(program)),
    };
    send(&requester, &answer, &[]).ok()?;
    let command = request.command;
    restart.map(|program| Accepted::Restart(Restart { program, command, requester: Some(requester) }))
}

/// Checks that the other side is the user of this process, root, or the owner of the mount, and of
/// this host.
fn ensure_trusted(socket: &OwnedFd, owner: Option<u32>) -> io::Result<()> {
    let user = peer::user(socket)?;
    if ![0, geteuid().as_raw()].contains(&user) && owner != Some(user) {
        return Err(io::Error::other("it belongs to another user"));
    }
    peer::ensure_of_this_host(socket)
}

/// Tells the requester of a restart that the mount answers.
pub(super) fn report_serving(requester: &OwnedFd) {
    let _ = send(requester, &Answer::Serving, &[]);
}

/// Tells the requester what was read anew, or why nothing was.
pub(super) fn report_reloaded(requester: &OwnedFd, outcome: &Result<String, String>) {
    let answer = match outcome.clone() {
        Ok(done) => Answer::Reloaded(done),
        Err(reason) => Answer::Refused(reason),
    };
    let _ = send(requester, &answer, &[]);
}

impl Restart {
    /// This program, as it was executed.
    pub(super) fn of_this_program() -> io::Result<Self> {
        let command = CommandLine {
            arguments: env::args_os().map(OsString::into_vec).collect(),
            directory: env::current_dir()?.into_os_string().into_vec(),
            environment: taken_variables(),
        };
        Ok(Self { program: File::open("/proc/self/exe")?.into(), command, requester: None })
    }

    pub(super) fn take_requester(&mut self) -> Option<OwnedFd> {
        self.requester.take()
    }

    /// Executes the program in the place of this one, which holds `held`. Returns only if that
    /// fails.
    pub(super) fn execute(self, held: HandedOver) -> (io::Error, HandedOver) {
        match self.try_execute(&held) {
            Ok(never) => match never {},
            Err(error) => (error, held),
        }
    }

    fn try_execute(self, held: &HandedOver) -> io::Result<Infallible> {
        let CommandLine { arguments, directory, environment } = self.command;
        let previous = held.previous.as_ref();
        let handover = Handover {
            mount: held.mount.clone(),
            init: held.init.clone(),
            status: held.status,
            device: held.device.as_raw_fd(),
            ledger: held.ledger.as_raw_fd(),
            clones: held.clones.iter().map(AsRawFd::as_raw_fd).collect(),
            requester: held.requester.as_ref().map(AsRawFd::as_raw_fd),
            previous: previous.map(|previous| (previous.program.as_raw_fd(), previous.command.clone())),
        };
        let mut state = File::from(memfd_create(c"interceptor-handover", MFdFlags::empty())?);
        state.write_all(&postcard::to_allocvec(&handover).map_err(io::Error::other)?)?;
        let kept = env::vars_os().filter(|(name, _)| !is_taken(name));
        let kept = kept.map(|(name, value)| (name.into_vec(), value.into_vec()));
        let own = (HANDOVER_VARIABLE.as_bytes().to_vec(), state.as_raw_fd().to_string().into_bytes());
        let variables = kept.chain(environment).chain([own]);
        let variables = variables.map(|(name, value)| CString::new([&name[..], b"=", &value].concat()));
        let variables = variables.collect::<Result<Vec<_>, _>>()?;
        let arguments = arguments.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>()?;
        env::set_current_dir(OsString::from_vec(directory))?;
        let inherited: Vec<&OwnedFd> = [&held.device, &held.ledger]
            .into_iter()
            .chain(&held.clones)
            .chain(&held.requester)
            .chain(previous.map(|previous| &previous.program))
            .collect();
        for descriptor in &inherited {
            fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        let failed = fexecve(self.program, &arguments, &variables);
        for descriptor in &inherited {
            fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        Ok(failed?)
    }
}

/// Whether a restart takes this variable from its requester.
fn is_taken(name: &OsStr) -> bool {
    name != HANDOVER_VARIABLE
        && TAKEN_VARIABLES.iter().any(|taken| name.as_bytes().starts_with(taken.as_bytes()))
}

fn taken_variables() -> Vec<(Vec<u8>, Vec<u8>)> {
    let taken = env::vars_os().filter(|(name, _)| is_taken(name));
    taken.map(|(name, value)| (name.into_vec(), value.into_vec())).collect()
}

impl HandedOver {
    /// What the supervisor held that executed this program, if one did. To be called once.
    ///
    /// # Safety
    /// The process must have no other thread, and only a supervisor may have set the variable.
    pub(super) unsafe fn take() -> io::Result<Option<Self>> {
        let Some(number) = env::var_os(HANDOVER_VARIABLE) else { return Ok(None) };
        // SAFETY: the caller promises that there is no other thread, which could read the
        // environment.
        unsafe { env::remove_var(HANDOVER_VARIABLE) };
        let number: RawFd = number.to_str().and_then(|number| number.parse().ok()).ok_or(Errno::EINVAL)?;
        let take = |number: RawFd| -> io::Result<OwnedFd> {
            // SAFETY: the supervisor has left the descriptor to this program alone, and names each
            // once; one that is not open is refused by the next call.
            let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
            fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
            Ok(descriptor)
        };
        let (mut state, mut bytes) = (File::from(take(number)?), Vec::new());
        state.rewind()?;
        state.read_to_end(&mut bytes)?;
        let handover: Handover = postcard::from_bytes(&bytes).map_err(io::Error::other)?;
        Ok(Some(Self {
            mount: handover.mount,
            init: handover.init,
            status: handover.status,
            device: take(handover.device)?,
            ledger: take(handover.ledger)?,
            clones: handover.clones.into_iter().map(take).collect::<io::Result<_>>()?,
            requester: handover.requester.map(take).transpose()?,
            previous: match handover.previous {
                Some((program, command)) => {
                    Some(Restart { program: take(program)?, command, requester: None })
                }
                None => None,
            },
        }))
    }
}

/// Why a mount was not restarted.
#[derive(Debug, thiserror::Error)]
pub enum RestartError {
    /// There is no supervisor to ask.
    #[error(
        "the daemon of this mount cannot be asked ({0}): it is an older one, another user's, or in another network namespace"
    )]
    Unreachable(io::Error),
    /// The other side is not who it should be.
    #[error("what listens for this mount is not trusted: {0}")]
    Untrusted(io::Error),
    /// The mount goes on as it was.
    #[error("{0}")]
    Refused(String),
    /// It has begun, and not ended well.
    #[error("the mount does not answer yet; the log of its daemon says why")]
    Failed,
}

/// Has the mount `at` handed over to this program with these arguments. Returns when it answers.
///
/// # Errors
/// When it is refused, and when the mount does not answer in 90 s.
pub(crate) fn request(
    at: &MountInfo,
    fixed: FixedOptions,
    arguments: &[OsString],
) -> Result<(), RestartError> {
    let supervisor = connected(at)?;
    let program = File::open("/proc/self/exe").map_err(RestartError::Unreachable)?;
    let directory = env::current_dir().map_err(RestartError::Unreachable)?;
    let command = CommandLine {
        arguments: arguments.iter().map(|argument| argument.as_bytes().to_vec()).collect(),
        directory: directory.into_os_string().into_vec(),
        environment: taken_variables(),
    };
    let request = RestartRequest { fixed, command };
    let request = Request::Restart(Box::new(request));
    send(&supervisor, &request, &[program.as_fd()]).map_err(RestartError::Unreachable)?;
    match answer(&supervisor, ANSWER_TIMEOUT) {
        Some(Answer::Accepted) => {}
        Some(Answer::Refused(reason)) => return Err(RestartError::Refused(reason)),
        _ => return Err(RestartError::Unreachable(io::ErrorKind::TimedOut.into())),
    }
    match answer(&supervisor, RESTART_TIMEOUT) {
        Some(Answer::Serving) => Ok(()),
        Some(Answer::Refused(reason)) => Err(RestartError::Refused(reason)),
        _ => Err(RestartError::Failed),
    }
}

/// Has the daemon of the mount `at` read keys and the like anew. Returns what it has read.
///
/// # Errors
/// When it cannot use them, and when it does not answer in 5 s.
pub(crate) fn request_reload(at: &MountInfo) -> Result<String, RestartError> {
    let supervisor = connected(at)?;
    send(&supervisor, &Request::Reload, &[]).map_err(RestartError::Unreachable)?;
    match answer(&supervisor, ANSWER_TIMEOUT) {
        Some(Answer::Reloaded(done)) => Ok(done),
        Some(Answer::Refused(reason)) => Err(RestartError::Refused(reason)),
        _ => Err(RestartError::Failed),
    }
}

/// A connection to the supervisor of a mount.
fn connected(at: &MountInfo) -> Result<OwnedFd, RestartError> {
    let unreachable = |errno: Errno| RestartError::Unreachable(errno.into());
    let supervisor = seqpacket().map_err(unreachable)?;
    let address = socket_address(&at.device).map_err(unreachable)?;
    connect(supervisor.as_raw_fd(), &address).map_err(unreachable)?;
    let owner = at.super_options.iter().find_map(|option| option.strip_prefix("user_id=")?.parse().ok());
    ensure_trusted(&supervisor, owner).map_err(RestartError::Untrusted)?;
    Ok(supervisor)
}

fn answer(supervisor: &OwnedFd, timeout: Duration) -> Option<Answer> {
    if !is_readable(supervisor, Instant::now() + timeout) {
        return None;
    }
    receive(supervisor).ok()?.map(|(answer, _)| answer)
}

/// Tells the requester that the mount goes on as it was, and why.
pub(super) fn report_failure(requester: &OwnedFd, reason: &str) {
    let _ = send(requester, &Answer::Refused(reason.to_owned()), &[]);
}

/// Waits until there is something to read, or the other end is closed. Returns whether that was in
/// time.
fn is_readable(socket: &OwnedFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(Errno::EINTR) => {}
            ready => return ready == Ok(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(path: &str, filers: &[&str]) -> FixedOptions {
        let values = vec![("--filer-path".to_owned(), path.to_owned())];
        FixedOptions { values, filers: filers.iter().map(|filer| (*filer).to_owned()).collect() }
    }

    #[test]
    fn what_the_kernel_was_told_cannot_change() {
        let own = fixed("/a", &["one:1", "two:2"]);
        assert_eq!(own.refusal(&own), None);
        assert_eq!(own.refusal(&fixed("/a", &["three:3", "two:2"])), None);
        let other_path = own.refusal(&fixed("/b", &["one:1"])).unwrap();
        assert!(other_path.contains("--filer-path, which is /a and would be /b"), "{other_path}");
        let other_cluster = own.refusal(&fixed("/a", &["three:3"])).unwrap();
        assert!(other_cluster.contains("three:3") && other_cluster.contains("two:2"), "{other_cluster}");
    }
}
