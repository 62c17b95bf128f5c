//! The origin of a request to the status API.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tokio_util::either::Either;

use super::tls::StatusListener;

/// The two ends of a TCP connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// The client's address.
    pub remote: IpAddr,
    /// The server's address, if it is known.
    pub local: Option<IpAddr>,
    /// Whether the connection is under TLS.
    pub is_encrypted: bool,
}

impl Peer {
    /// Whether the client is on this host. The kernel uses the same address on both ends of a
    /// connection to one of the host's own addresses.
    pub fn is_local(&self) -> bool {
        let remote = self.remote.to_canonical();
        remote.is_loopback() || self.local.is_some_and(|local| local.to_canonical() == remote)
    }
}

impl Connected<IncomingStream<'_, StatusListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, StatusListener>) -> Self {
        let (connection, is_encrypted) = match stream.io() {
            Either::Left(plain) => (plain, false),
            Either::Right(secure) => (secure.get_ref().0, true),
        };
        let local = connection.local_addr().ok().map(|at| at.ip());
        Self { remote: stream.remote_addr().ip(), local, is_encrypted }
    }
}

/// The address at which a client on this host reaches a server that listens on `address`.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        // An unspecified IPv6 socket accepts IPv4 only if the host allows that; the IPv6 loopback
        // works in any case.
        IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(remote: &str, local: &str) -> Peer {
        Peer { remote: remote.parse().unwrap(), local: Some(local.parse().unwrap()), is_encrypted: false }
    }

    #[test]
    fn only_clients_on_this_host_are_local() {
        assert!(peer("127.0.0.1", "127.0.0.1").is_local());
        assert!(peer("::ffff:127.0.0.1", "::1").is_local());
        assert!(peer("10.0.0.5", "10.0.0.5").is_local());
        assert!(!peer("10.0.0.6", "10.0.0.5").is_local());
        assert!(!Peer { local: None, ..peer("10.0.0.6", "10.0.0.5") }.is_local());
    }

    #[test]
    fn a_server_on_all_addresses_is_reached_by_loopback() {
        for (bound, reached) in
            [("0.0.0.0:9650", "127.0.0.1:9650"), ("[::]:1", "[::1]:1"), ("10.0.0.5:2", "10.0.0.5:2")]
        {
            assert_eq!(reachable(bound.parse().unwrap()), reached.parse().unwrap());
        }
    }
}
