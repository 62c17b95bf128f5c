//! Loopback ports, each leased to one server at a time.
//!
//! A SeaweedFS server needs its HTTP port and, by convention, its gRPC port 10,000 above. Both are
//! chosen below the range from which the kernel takes the local ports of outgoing connections.
//! Several test programs run at once, and a server that is killed and restarted must find its port
//! again: a lease is therefore also a socket in the abstract Unix namespace, named after the port.
//! The kernel drops it with the process, so no stale lease can exist.

use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// How far above the HTTP port the gRPC port of a SeaweedFS server is.
pub const GRPC_OFFSET: u16 = 10_000;

const FIRST: u16 = 11_000;
/// No pair's HTTP port is another's gRPC port.
const COUNT: u16 = GRPC_OFFSET;

/// A pair of ports held for a server's lifetime: `http()` and `grpc()`.
#[derive(Debug)]
pub struct PortLease {
    http: u16,
    _claim: UnixListener,
}

impl PortLease {
    /// Leases a pair of which both ports are free now.
    ///
    /// # Errors
    /// When no pair is free.
    pub fn take() -> anyhow::Result<PortLease> {
        let start: u16 = rand::random_range(0..COUNT);
        for step in 0..COUNT {
            let http = FIRST + (start + step) % COUNT;
            let Some(claim) = claim(http) else { continue };
            if is_free(http) && is_free(http + GRPC_OFFSET) {
                return Ok(PortLease { http, _claim: claim });
            }
        }
        anyhow::bail!("no free pair of loopback ports from {FIRST} on")
    }

    /// The HTTP port.
    pub fn http(&self) -> u16 {
        self.http
    }

    /// The gRPC port.
    pub fn grpc(&self) -> u16 {
        self.http + GRPC_OFFSET
    }

    /// `127.0.0.1:HTTP`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.http)
    }
}

fn claim(port: u16) -> Option<UnixListener> {
    let name = SocketAddr::from_abstract_name(format!("interceptor-tests-port-{port}")).ok()?;
    UnixListener::bind_addr(&name).ok()
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn leases_never_overlap() {
        let leases: Vec<_> = (0..50).map(|_| PortLease::take().unwrap()).collect();
        let ports: HashSet<_> = leases.iter().flat_map(|lease| [lease.http(), lease.grpc()]).collect();
        assert_eq!(ports.len(), 100);
    }
}
