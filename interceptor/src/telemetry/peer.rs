//! Where a request to the status API comes from.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use rdma_engine::bounded_listener::BoundedListener;

/// The two ends of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Theirs.
    pub remote: IpAddr,
    /// Ours, if it is known.
    pub local: Option<IpAddr>,
}

impl Peer {
    /// Whether it is on this host. Connections to one of a host's own addresses come from that same address.
    pub fn is_here(&self) -> bool {
        let remote = self.remote.to_canonical();
        remote.is_loopback() || self.local.is_some_and(|local| local.to_canonical() == remote)
    }
}

impl Connected<IncomingStream<'_, BoundedListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, BoundedListener>) -> Self {
        Self { remote: stream.remote_addr().ip(), local: stream.io().local_addr().ok().map(|at| at.ip()) }
    }
}

/// Where a client on this host reaches a server that listens on `address`.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        // A socket for all of IPv6 takes IPv4 as well, unless the host is set otherwise; its own loopback is certain.
        IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(remote: &str, local: &str) -> Peer {
        Peer { remote: remote.parse().unwrap(), local: Some(local.parse().unwrap()) }
    }

    #[test]
    fn only_this_host_is_here() {
        assert!(peer("127.0.0.1", "127.0.0.1").is_here());
        assert!(peer("::ffff:127.0.0.1", "::1").is_here());
        assert!(peer("10.0.0.5", "10.0.0.5").is_here());
        assert!(!peer("10.0.0.6", "10.0.0.5").is_here());
        assert!(!Peer { remote: "10.0.0.6".parse().unwrap(), local: None }.is_here());
    }

    #[test]
    fn a_server_for_every_address_is_reached_by_loopback() {
        for (bound, reached) in
            [("0.0.0.0:9650", "127.0.0.1:9650"), ("[::]:1", "[::1]:1"), ("10.0.0.5:2", "10.0.0.5:2")]
        {
            assert_eq!(reachable(bound.parse().unwrap()), reached.parse().unwrap());
        }
    }
}
