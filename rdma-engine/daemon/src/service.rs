//! The service manager's notification protocol (`sd_notify`, `Type=notify`): readiness, the end,
//! and the watchdog. Without a service manager every call does nothing.
//!
//! Messages are datagrams to the socket that `NOTIFY_SOCKET` names. Sending never blocks; a message
//! that cannot be sent is lost, as one to a service manager that restarts would be.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The service is ready; `text` is what the service manager shows of it.
pub fn ready(text: &str) {
    notify(&format!("READY=1\nSTATUS={}\n", text.replace('\n', " ")));
}

/// The service has begun to end.
pub fn stopping() {
    notify("STOPPING=1\n");
}

/// The service is alive. To be called once in each [`watchdog_interval`].
pub fn alive() {
    notify("WATCHDOG=1\n");
}

/// How often the service manager wants [`alive`] to be called, which is half of the time after
/// which it ends the service (`WatchdogSec=`). `None` if it does not.
pub fn watchdog_interval() -> Option<Duration> {
    let number = |name: &str| env::var(name).ok()?.parse::<u64>().ok();
    let own = [std::process::id(), std::os::unix::process::parent_id()].map(u64::from);
    // The process that the service manager started may be the supervisor of this one.
    let is_meant = number("WATCHDOG_PID").is_none_or(|pid| own.contains(&pid));
    let limit = number("WATCHDOG_USEC").filter(|limit| is_meant && *limit > 0)?;
    Some(Duration::from_micros(limit) / 2)
}

fn notify(message: &str) {
    if let Some(socket) = env::var_os("NOTIFY_SOCKET") {
        let _ = send(&socket, message);
    }
}

fn send(socket: &OsStr, message: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to_addr(message.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(receiver: &UnixDatagram) -> String {
        let mut message = [0; 256];
        let len = receiver.recv(&mut message).unwrap();
        String::from_utf8(message[..len].to_vec()).unwrap()
    }

    #[test]
    fn messages_reach_sockets_of_both_kinds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let receiver = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), "READY=1\n").unwrap();
        assert_eq!(received(&receiver), "READY=1\n");

        let name = format!("@interceptor-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name[1..]).unwrap();
        let receiver = UnixDatagram::bind_addr(&address).unwrap();
        send(OsStr::new(&name), "WATCHDOG=1\n").unwrap();
        assert_eq!(received(&receiver), "WATCHDOG=1\n");
    }

    #[test]
    fn a_socket_that_is_gone_is_an_error_and_no_panic() {
        assert!(send(OsStr::new("/nonexistent/notify"), "READY=1\n").is_err());
        assert!(send(OsStr::new(""), "READY=1\n").is_err());
    }
}
