//! Converts the end of a queue pair between its form in the bootstrap and that of `verbs`.

use crate::protocol::{ProtocolError, QueuePairEnd, VerbsOffer};
use crate::verbs::{Endpoint, Gid, Mtu, PortSelection};

/// This side's end for the other side, on the port that was offered as `port`.
pub(crate) fn describe(endpoint: &Endpoint, port: u8) -> QueuePairEnd {
    QueuePairEnd {
        port,
        number: endpoint.queue_pair,
        sequence: endpoint.first_packet,
        gid: endpoint.gid.map_or([0; 16], |gid| gid.0),
        lid: endpoint.lid,
        // At most 4096.
        mtu: endpoint.mtu.bytes() as u16,
        reads: endpoint.served_reads,
    }
}

/// The other side's end.
///
/// # Errors
/// When its MTU is none of verbs.
pub(crate) fn endpoint(end: &QueuePairEnd) -> Result<Endpoint, ProtocolError> {
    Ok(Endpoint {
        queue_pair: end.number,
        first_packet: end.sequence,
        lid: end.lid,
        gid: (end.gid != [0; 16]).then_some(Gid(end.gid)),
        mtu: Mtu::from_bytes(end.mtu.into()).ok_or(ProtocolError::Value)?,
        served_reads: end.reads,
    })
}

/// Whether a queue pair on `port` can reach the port on offer: both are on InfiniBand, or on RoCE
/// with the same version of IP.
pub(crate) fn reaches(port: &PortSelection, offer: &VerbsOffer) -> bool {
    match (port.gid, offer.gid != [0; 16]) {
        (Some(own), true) => own.gid.address().is_ipv4() == Gid(offer.gid).address().is_ipv4(),
        (None, _) => offer.lid != 0,
        (Some(_), false) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::verbs::{GidEntry, GidKind};

    fn gid(address: &str) -> Gid {
        Gid::from(address.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn an_end_survives_the_conversion() {
        for (lid, address, code) in [(0, Some("10.9.0.1"), 1), (0, Some("fd00::1"), 5), (7, None, 3)] {
            let own = Endpoint {
                queue_pair: 0x12_3456,
                first_packet: 0xab_cdef,
                lid,
                gid: address.map(gid),
                mtu: Mtu::from_code(code).unwrap(),
                served_reads: 16,
            };
            let described = describe(&own, 3);
            assert_eq!(described.port, 3);
            assert_eq!(endpoint(&described), Ok(own));
            assert_eq!(endpoint(&QueuePairEnd { mtu: 1500, ..described }), Err(ProtocolError::Value));
        }
    }

    #[test]
    fn ports_of_different_networks_or_ip_versions_do_not_reach_each_other() {
        let port = |address: Option<&str>| PortSelection {
            device: "a".to_owned(),
            port: 1,
            gid: address.map(|address| GidEntry { index: 0, gid: gid(address), kind: GidKind::RoceV2 }),
        };
        let offer = |address: Option<&str>, lid| VerbsOffer {
            port: 0,
            gid: address.map_or([0; 16], |address| gid(address).0),
            lid,
            gigabits: 100,
        };
        assert!(reaches(&port(Some("10.0.0.1")), &offer(Some("10.0.0.2"), 0)));
        assert!(reaches(&port(Some("fd00::1")), &offer(Some("fd00::2"), 0)));
        assert!(!reaches(&port(Some("10.0.0.1")), &offer(Some("fd00::2"), 0)));
        assert!(reaches(&port(None), &offer(None, 4)));
        assert!(!reaches(&port(None), &offer(Some("10.0.0.2"), 0)));
        assert!(!reaches(&port(Some("10.0.0.1")), &offer(None, 4)));
    }
}
