//! What two sides exchange to connect a reliable queue pair.

use bytes::{BufMut, BytesMut};

use super::ProtocolError;
use super::wire::Fields;

/// Over verbs, data up to this many bytes comes in the message: to fetch it would take another
/// round trip.
pub const MAX_INLINE_DATA: u32 = 8 << 10;

/// How many requests a client may have sent as messages whose answer it has not received or whose
/// grant it has not given back. An engine has receives posted for twice as many messages, and a
/// client one for each of its requests, so neither ever lacks a receive.
pub const MESSAGE_WINDOW: usize = 64;

/// The longest message of a client, in bytes.
pub const MAX_REQUEST_SIZE: usize = 2304;

/// The longest message of an engine, in bytes.
pub const MAX_ANSWER_SIZE: usize = MAX_INLINE_DATA as usize + 128;

/// A port of an RDMA device through which the engine can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerbsOffer {
    /// Identifies the offer among those of the engine; the client names it in its choice.
    pub port: u8,
    /// The port's GID; zeros on an InfiniBand port without global routing.
    pub gid: [u8; 16],
    /// The port's LID; 0 on Ethernet.
    pub lid: u16,
    /// The link's speed in Gbit/s, so that the client can choose the fastest; 0 if unknown.
    pub gigabits: u16,
}

impl VerbsOffer {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_u8(self.port);
        out.put_slice(&self.gid);
        out.put_u16(self.lid);
        out.put_u16(self.gigabits);
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(bytes);
        Ok(Self { port: fields.u8()?, gid: fields.array()?, lid: fields.u16()?, gigabits: fields.u16()? })
    }
}

/// One end of a queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueuePairEnd {
    /// The [`VerbsOffer::port`] that it connects through.
    pub port: u8,
    /// Its number, 24 bits.
    pub number: u32,
    /// The first packet's sequence number, 24 bits.
    pub sequence: u32,
    /// The GID of the port that it is on.
    pub gid: [u8; 16],
    /// The LID of that port.
    pub lid: u16,
    /// The largest packet that its side can take, in bytes: 256 to 4096.
    pub mtu: u16,
    /// How many RDMA READs of the other side it can answer at a time.
    pub reads: u8,
}

impl QueuePairEnd {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_u8(self.port);
        out.put_u32(self.number);
        out.put_u32(self.sequence);
        out.put_slice(&self.gid);
        out.put_u16(self.lid);
        out.put_u16(self.mtu);
        out.put_u8(self.reads);
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(bytes);
        let end = Self {
            port: fields.u8()?,
            number: fields.u32()?,
            sequence: fields.u32()?,
            gid: fields.array()?,
            lid: fields.u16()?,
            mtu: fields.u16()?,
            reads: fields.u8()?,
        };
        let valid = end.number < 1 << 24
            && end.sequence < 1 << 24
            && matches!(end.mtu, 256 | 512 | 1024 | 2048 | 4096);
        if valid { Ok(end) } else { Err(ProtocolError::Value) }
    }
}
