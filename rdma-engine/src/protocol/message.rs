//! Requests and answers, the same over every transport.

use bytes::{BufMut, BytesMut};

use super::frame::{self, FrameHeader, MessageKind};
use super::wire::{Fields, Put};
use super::{MAX_READ, MAX_TOKEN, ProtocolError};
use crate::needle::{Flags, HEADER, Header};
use crate::{FileId, Refusal};

/// A request for a range of a needle's stored bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRequest {
    /// The needle.
    pub fid: FileId,
    /// Where the range begins, in bytes of the data as it is stored.
    pub offset: u32,
    /// How many bytes at most; fewer come if the needle ends before.
    pub length: u32,
    /// The token that allows reading the needle, if the cluster asks for one; up to [`MAX_TOKEN`]
    /// bytes. May be left out after the session has shown it once for this needle.
    pub token: Vec<u8>,
}

/// A message of a client after the bootstrap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientMessage {
    /// Asks for data.
    Read(ReadRequest),
    /// Gives back the grant of the request of this number.
    Done,
    /// Cancels the request of this number. It is answered all the same, maybe with
    /// [`Refusal::Cancelled`].
    Cancel,
    /// Asks for an [`EngineMessage::Pong`].
    Ping,
}

impl ClientMessage {
    /// Appends the message under the number `request`.
    pub fn encode(&self, request: u64, out: &mut BytesMut) {
        match self {
            Self::Read(read) => frame::put(out, MessageKind::Read, request, |out| {
                out.put_u32(read.fid.volume);
                out.put_u64(read.fid.key);
                out.put_u32(read.fid.cookie);
                out.put_u32(read.offset);
                out.put_u32(read.length);
                out.put_bytes16(&read.token[..read.token.len().min(MAX_TOKEN)]);
            }),
            Self::Done => frame::put(out, MessageKind::Done, request, |_| {}),
            Self::Cancel => frame::put(out, MessageKind::Cancel, request, |_| {}),
            Self::Ping => frame::put(out, MessageKind::Ping, request, |_| {}),
        }
    }

    /// Reads a message's body.
    ///
    /// # Errors
    /// When it is not a request, or not a whole one.
    pub fn decode(header: FrameHeader, body: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(body);
        let request = match header.kind {
            MessageKind::Read => Self::Read(ReadRequest {
                fid: FileId { volume: fields.u32()?, key: fields.u64()?, cookie: fields.u32()? },
                offset: fields.u32()?,
                length: fields.u32()?,
                token: fields.bytes16(MAX_TOKEN)?.to_vec(),
            }),
            MessageKind::Done => Self::Done,
            MessageKind::Cancel => Self::Cancel,
            MessageKind::Ping => Self::Ping,
            other => return Err(ProtocolError::Kind(other as u8)),
        };
        if fields.0.is_empty() { Ok(request) } else { Err(ProtocolError::Long) }
    }
}

/// The description of a needle that an engine serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeedleInfo {
    /// The record's header as it is on disk, for the client to compare with the file id.
    pub header: Header,
    /// The number of the needle's stored bytes.
    pub data_size: u32,
    /// CRC32C of them, in either form (see [`checksum`](crate::checksum)).
    pub checksum: u32,
    /// Whether they are compressed.
    pub flags: Flags,
    /// Whether the needle was deleted and only waits for compaction.
    pub deleted: bool,
    /// How many bytes the answer brings: as many as were asked for, or up to the needle's end.
    pub length: u32,
}

impl NeedleInfo {
    fn encode(&self, out: &mut BytesMut) {
        out.put_slice(&self.header.to_bytes());
        out.put_u32(self.data_size);
        out.put_u32(self.checksum);
        out.put_u8(self.flags.0);
        out.put_u8(u8::from(self.deleted));
        out.put_u32(self.length);
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Self, ProtocolError> {
        let needle = Self {
            header: Header::parse(&fields.array::<HEADER>()?),
            data_size: fields.u32()?,
            checksum: fields.u32()?,
            flags: Flags(fields.u8()?),
            deleted: match fields.u8()? {
                0 => false,
                1 => true,
                _ => return Err(ProtocolError::Value),
            },
            length: fields.u32()?,
        };
        if needle.length > needle.data_size || needle.length > MAX_READ {
            return Err(ProtocolError::Limit);
        }
        Ok(needle)
    }
}

/// Staging memory that a client may read by RDMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// Where the [`NeedleInfo::length`] bytes are, in the engine's memory.
    pub address: u64,
    /// The key of the memory region. It opens only what was staged for this session.
    pub rkey: u32,
    /// For how many milliseconds the bytes stay there, at most, after the engine has sent this.
    pub lease_ms: u32,
}

/// A message of an engine after the bootstrap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineMessage {
    /// The needle's bytes follow the frame.
    Data(NeedleInfo),
    /// The needle's bytes can be fetched.
    Grant(NeedleInfo, Grant),
    /// The needle's bytes are in a file.
    File {
        /// What the bytes are.
        needle: NeedleInfo,
        /// The session's number of the file.
        file: u32,
        /// Where the record's header is in the file, for the client to compare with
        /// [`NeedleInfo::header`] after it has read the bytes.
        record: u64,
        /// Where the bytes begin in the file.
        position: u64,
        /// Whether the file's descriptor comes with this message, as it does the first time.
        attached: bool,
    },
    /// No bytes come.
    Refused(Refusal),
    /// The engine is there.
    Pong,
    /// The file of this number was replaced or removed: the client closes it, so that its disk
    /// space becomes free. Reads of it that are in progress may finish.
    Forget {
        /// The session's number of the file.
        file: u32,
    },
}

impl EngineMessage {
    /// Appends the message to the request of number `request`.
    pub fn encode(&self, request: u64, out: &mut BytesMut) {
        match self {
            Self::Data(needle) => frame::put(out, MessageKind::Data, request, |out| needle.encode(out)),
            Self::Grant(needle, grant) => frame::put(out, MessageKind::Grant, request, |out| {
                needle.encode(out);
                out.put_u64(grant.address);
                out.put_u32(grant.rkey);
                out.put_u32(grant.lease_ms);
            }),
            Self::File { needle, file, record, position, attached } => {
                frame::put(out, MessageKind::File, request, |out| {
                    needle.encode(out);
                    out.put_u32(*file);
                    out.put_u64(*record);
                    out.put_u64(*position);
                    out.put_u8(u8::from(*attached));
                });
            }
            Self::Refused(refusal) => {
                frame::put(out, MessageKind::Refused, request, |out| out.put_u16(refusal.code()));
            }
            Self::Pong => frame::put(out, MessageKind::Pong, request, |_| {}),
            Self::Forget { file } => frame::put(out, MessageKind::Forget, request, |out| out.put_u32(*file)),
        }
    }

    /// Reads a message's body.
    ///
    /// # Errors
    /// When it is not an answer, or not a whole one.
    pub fn decode(header: FrameHeader, body: &[u8]) -> Result<Self, ProtocolError> {
        let mut fields = Fields(body);
        let answer = match header.kind {
            MessageKind::Data => Self::Data(NeedleInfo::decode(&mut fields)?),
            MessageKind::Grant => {
                let needle = NeedleInfo::decode(&mut fields)?;
                let (address, rkey, lease_ms) = (fields.u64()?, fields.u32()?, fields.u32()?);
                Self::Grant(needle, Grant { address, rkey, lease_ms })
            }
            MessageKind::File => Self::File {
                needle: NeedleInfo::decode(&mut fields)?,
                file: fields.u32()?,
                record: fields.u64()?,
                position: fields.u64()?,
                attached: match fields.u8()? {
                    0 => false,
                    1 => true,
                    _ => return Err(ProtocolError::Value),
                },
            },
            MessageKind::Refused => Self::Refused(Refusal::from_code(fields.u16()?)),
            MessageKind::Pong => Self::Pong,
            MessageKind::Forget => Self::Forget { file: fields.u32()? },
            other => return Err(ProtocolError::Kind(other as u8)),
        };
        if fields.0.is_empty() { Ok(answer) } else { Err(ProtocolError::Long) }
    }
}
