//! The two ends of a connection, which must be exchanged before it can be made.

use super::VerbsError;
use super::device::{Gid, Mtu};

/// One end of a connection, as the other end needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Number of the queue pair, 24 bits.
    pub queue_pair: u32,
    /// Number of the first packet that it will send, 24 bits.
    pub first_packet: u32,
    /// Address on an InfiniBand fabric; 0 on RoCE.
    pub lid: u16,
    /// Global address; always there on RoCE.
    pub gid: Option<Gid>,
    /// Largest packet that its link takes.
    pub mtu: Mtu,
    /// How many READs it answers at once; 0 if it serves none.
    pub served_reads: u8,
}

impl Endpoint {
    /// Bytes of the encoded form.
    pub const SIZE: usize = 28;

    /// The encoded form, big-endian: number of the queue pair and of the first packet (u32 each),
    /// LID (u16), MTU code (u8), served reads (u8), GID (16 bytes, zero if there is none).
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..4].copy_from_slice(&self.queue_pair.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.first_packet.to_be_bytes());
        bytes[8..10].copy_from_slice(&self.lid.to_be_bytes());
        bytes[10] = self.mtu.code();
        bytes[11] = self.served_reads;
        bytes[12..28].copy_from_slice(&self.gid.map_or([0; 16], |gid| gid.0));
        bytes
    }

    /// Decodes an endpoint.
    ///
    /// # Errors
    /// [`VerbsError::Endpoint`] for numbers that no queue pair has.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Result<Self, VerbsError> {
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut gid = [0; 16];
        gid.copy_from_slice(&bytes[12..28]);
        let endpoint = Self {
            queue_pair: word(0),
            first_packet: word(4),
            lid: u16::from_be_bytes([bytes[8], bytes[9]]),
            gid: (gid != [0; 16]).then_some(Gid(gid)),
            mtu: Mtu::from_code(bytes[10]).ok_or(VerbsError::Endpoint("its MTU is none of verbs"))?,
            served_reads: bytes[11],
        };
        endpoint.check()?;
        Ok(endpoint)
    }

    /// Whether the numbers can be those of a queue pair.
    pub(super) fn check(&self) -> Result<(), VerbsError> {
        if self.queue_pair >> 24 != 0 || self.first_packet >> 24 != 0 {
            return Err(VerbsError::Endpoint("its numbers have more than 24 bits"));
        }
        if self.gid.is_none() && self.lid == 0 {
            return Err(VerbsError::Endpoint("it has neither LID nor GID"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Endpoint {
        Endpoint {
            queue_pair: 0x12_3456,
            first_packet: 0xab_cdef,
            lid: 0,
            gid: Some(Gid::from("10.9.0.1".parse::<std::net::IpAddr>().unwrap())),
            mtu: Mtu::from_code(5).unwrap(),
            served_reads: 16,
        }
    }

    #[test]
    fn bytes_are_big_endian_and_come_back() {
        let bytes = endpoint().to_bytes();
        assert_eq!(bytes[..12], [0, 0x12, 0x34, 0x56, 0, 0xab, 0xcd, 0xef, 0, 0, 5, 16]);
        assert_eq!(bytes[22..], [0xff, 0xff, 10, 9, 0, 1]);
        assert_eq!(Endpoint::from_bytes(&bytes).unwrap(), endpoint());
        let infiniband = Endpoint { lid: 7, gid: None, ..endpoint() };
        assert_eq!(Endpoint::from_bytes(&infiniband.to_bytes()).unwrap(), infiniband);
    }

    #[test]
    fn nonsense_is_refused() {
        for (at, byte) in [(0, 1), (4, 1), (10, 0), (10, 6)] {
            let mut bytes = endpoint().to_bytes();
            bytes[at] = byte;
            assert!(matches!(Endpoint::from_bytes(&bytes), Err(VerbsError::Endpoint(_))), "{at}");
        }
        let nowhere = Endpoint { gid: None, ..endpoint() };
        assert!(Endpoint::from_bytes(&nowhere.to_bytes()).is_err());
    }
}
