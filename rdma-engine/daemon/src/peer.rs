//! The process at the other end of a Unix socket: its user, and whether it is a process of this
//! host rather than one of a container that shares the host's network.
//!
//! The kernel's credentials of a peer (`SO_PEERCRED`) are 0 for root of the host and for root of a
//! container alike. So the peer's process is examined, through files of `/proc` that every user
//! may read: it must be in the process namespace of this process, have the same map of user ids,
//! and the same root file system. `SO_PEERPIDFD` (Linux 6.5) makes sure that the process is the
//! peer's, not a later one with the same number. If something cannot be determined, the process
//! counts as foreign.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The kernel shows this user id for users without a number in this user namespace, unless it is
/// configured otherwise.
const DEFAULT_OVERFLOW_UID: u32 = 65534;

/// The user of the peer's process.
///
/// # Errors
/// If the kernel does not know, or the user has no number in this user namespace.
pub fn user(socket: impl AsFd) -> io::Result<u32> {
    let uid = credentials(socket)?.uid;
    let overflow = fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
    let overflow = overflow.and_then(|text| text.trim().parse().ok()).unwrap_or(DEFAULT_OVERFLOW_UID);
    if uid == overflow { Err(io::Error::other("its user is nobody here")) } else { Ok(uid) }
}

/// Checks that the peer's process is of this host, or of the same container as this process.
///
/// # Errors
/// If it is not, or that cannot be determined; the text says why.
pub fn ensure_of_this_host(socket: impl AsFd) -> io::Result<()> {
    let socket = socket.as_fd();
    let process = process(socket)?;
    let pid = credentials(socket)?.pid;
    let (own, peer) = (ProcessContext::of("self")?, ProcessContext::of(&pid.to_string())?);
    // While the process lives, its number is its own.
    let mut end = [PollFd::new(&process, PollFlags::IN)];
    if poll(&mut end, Some(&Timespec::default()))? > 0 {
        return Err(io::Error::other("its process has ended"));
    }
    if peer.namespaces > 1 {
        Err(io::Error::other("it is in a process namespace of its own, as in a container"))
    } else if peer.user_ids != own.user_ids {
        Err(io::Error::other("it is in a user namespace of its own"))
    } else if peer.root != own.root {
        Err(io::Error::other("it has another root directory, as in a container"))
    } else {
        Ok(())
    }
}

/// The user and the process that connected, or listened. The process is 0 if it has no number in
/// this process namespace.
fn credentials(socket: impl AsFd) -> io::Result<libc::ucred> {
    let unknown = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    // SAFETY: the kernel's credentials are this structure, of which any content is valid.
    unsafe { option(socket.as_fd(), libc::SO_PEERCRED, unknown) }
}

/// A descriptor of the process that connected, or listened.
fn process(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the kernel's answer is an integer.
    match unsafe { option(socket, libc::SO_PEERPIDFD, -1 as libc::c_int) } {
        // SAFETY: the kernel has just made this descriptor for this call.
        Ok(descriptor) => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
            Err(io::Error::other("this kernel does not say which process it is (Linux 6.5 does)"))
        }
        Err(error) => Err(io::Error::other(format!("its process cannot be found: {error}"))),
    }
}

/// Asks the kernel for an option of a socket.
///
/// # Safety
/// The option must be of type `T`, and every content of `T` valid.
unsafe fn option<T: Copy>(socket: BorrowedFd<'_>, name: libc::c_int, mut value: T) -> io::Result<T> {
    let mut length = size_of::<T>() as libc::socklen_t;
    let (socket, place) = (socket.as_raw_fd(), (&raw mut value).cast());
    // SAFETY: the kernel writes at most `length` bytes there, which is the size of `value`.
    let outcome = unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, name, place, &raw mut length) };
    if outcome == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// The properties by which a process of a container differs from one of the host.
#[derive(Debug, PartialEq, Eq)]
struct ProcessContext {
    /// In how many process namespaces it has a number, from that of `/proc` on.
    namespaces: usize,
    /// The user id map of its user namespace.
    user_ids: String,
    /// Device and directory of its root.
    root: (String, String),
}

impl ProcessContext {
    fn of(pid: &str) -> io::Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            fs::read(&path).map_err(|error| io::Error::other(format!("cannot read {path}: {error}")))
        };
        let status = String::from_utf8_lossy(&read("status")?).into_owned();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let unknown = || io::Error::other(format!("/proc/{pid} does not tell of its namespaces"));
        let namespaces = numbers.ok_or_else(unknown)?.split_whitespace().count();
        let user_ids = String::from_utf8_lossy(&read("uid_map")?).into_owned();
        let mounts = String::from_utf8_lossy(&read("mountinfo")?).into_owned();
        Ok(Self { namespaces, user_ids, root: root_of(&mounts).ok_or_else(unknown)? })
    }
}

/// Device and directory of the mount on `/` in a `mountinfo`: of several, the topmost, which comes
/// last.
fn root_of(mounts: &str) -> Option<(String, String)> {
    mounts.lines().rev().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let (device, directory, mount_point) = (fields.next()?, fields.next()?, fields.next()?);
        (mount_point == "/").then(|| (device.to_owned(), directory.to_owned()))
    })
}

/// The user whose process listens at a TCP address. `None` if the address is not of this host, or
/// no process listens there.
///
/// # Errors
/// If the kernel's tables cannot be read.
pub fn listener(address: SocketAddr) -> io::Result<Option<u32>> {
    if !is_of_this_host(address)? {
        return Ok(None);
    }
    let any = [0; 16];
    // The kernel gives a connection to the most specific listener.
    let listeners = match address.ip().to_canonical() {
        IpAddr::V4(ip) => vec![
            ("tcp", kernel_address(&ip.octets())),
            ("tcp6", kernel_address(&ip.to_ipv6_mapped().octets())),
            ("tcp", kernel_address(&any[..4])),
            ("tcp6", kernel_address(&any)),
        ],
        IpAddr::V6(ip) => {
            vec![("tcp6", kernel_address(&ip.octets())), ("tcp6", kernel_address(&any))]
        }
    };
    let table = |name: &str| fs::read_to_string(format!("/proc/self/net/{name}"));
    // A kernel without IPv6 has no table of it.
    let (v4, v6) = (table("tcp")?, table("tcp6").unwrap_or_default());
    Ok(listeners.into_iter().find_map(|(name, ip)| {
        let lines = if name == "tcp" { &v4 } else { &v6 };
        let listening = format!("{ip}:{:04X}", address.port());
        lines.lines().find_map(|line| owner(line, &listening))
    }))
}

/// The owner in a line of `/proc/net/tcp`, if the line is of a socket that listens at this
/// address.
fn owner(line: &str, listening: &str) -> Option<u32> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_whitespace().skip(1);
    let (local, _remote, state) = (fields.next()?, fields.next()?, fields.next()?);
    // Queues, timers and retransmits are between.
    (local == listening && state == LISTEN).then(|| fields.nth(3)?.parse().ok())?
}

/// An address as `/proc/net/tcp` writes it: words in the host's byte order.
fn kernel_address(octets: &[u8]) -> String {
    let words = octets.as_chunks::<4>().0.iter();
    words.map(|&word| format!("{:08X}", u32::from_ne_bytes(word))).collect()
}

/// Whether packets for the address stay on this host: their source is then the address itself.
fn is_of_this_host(address: SocketAddr) -> io::Result<bool> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    // Connecting a UDP socket sends nothing.
    Ok(socket.connect(address).is_ok() && socket.local_addr()?.ip() == address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_process_of_this_host_is_recognized_with_its_user() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert_eq!(user(&one).unwrap(), rustix::process::geteuid().as_raw());
        ensure_of_this_host(&one).unwrap();
    }

    #[test]
    fn roots_differ_by_device_and_directory() {
        let host = "22 27 0:21 / /proc rw - proc proc rw\n27 1 254:0 / / rw - ext4 /dev/vda rw\n";
        assert_eq!(root_of(host), Some(("254:0".into(), "/".into())));
        let container = "30 20 0:57 / / rw - overlay overlay rw\n31 30 254:0 /data /data rw - ext4 d rw\n";
        assert_eq!(root_of(container), Some(("0:57".into(), "/".into())));
        let covered = format!("{host}40 27 0:60 / / rw - tmpfs tmpfs rw\n");
        assert_eq!(root_of(&covered), Some(("0:60".into(), "/".into())));
        assert_eq!(root_of("31 30 254:0 /data /data rw - ext4 d rw\n"), None, "changed its root");
    }

    #[test]
    fn the_listening_user_is_found_for_addresses_of_this_host_only() {
        let own = Some(rustix::process::geteuid().as_raw());
        for ip in ["127.0.0.1", "0.0.0.0", "[::1]", "[::]"] {
            // A host without IPv6 has no such address.
            let Ok(socket) = TcpListener::bind(format!("{ip}:0")) else { continue };
            let port = socket.local_addr().unwrap().port();
            let near = if ip == "[::1]" { "[::1]" } else { "127.0.0.1" };
            let near: SocketAddr = format!("{near}:{port}").parse().unwrap();
            assert_eq!(listener(near).unwrap(), own, "{ip}");
            // Documentation addresses (RFC 5737) belong to no host.
            assert_eq!(listener(format!("192.0.2.1:{port}").parse().unwrap()).unwrap(), None);
            drop(socket);
            assert_eq!(listener(near).unwrap(), None, "{ip}");
        }
        let remote = "  1: 0100007F:1F90 00000000:0000 01 00000000:00000000 00:00000000 00000000  33 0";
        assert_eq!(owner(remote, "0100007F:1F90"), None, "connected, and not listening");
    }
}
