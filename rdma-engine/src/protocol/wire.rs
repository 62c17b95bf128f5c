//! Numbers and short byte strings, big-endian, into and out of a message.

use bytes::{BufMut, BytesMut};

use super::ProtocolError;

/// Writes a message's fields. Its numbers and arrays are those of [`BufMut`].
pub(super) trait Put {
    /// Appends a byte string of at most 65,535 bytes, with its length before it. A longer one is
    /// cut; every caller has its own limit.
    fn put_bytes16(&mut self, bytes: &[u8]);
}

impl Put for BytesMut {
    fn put_bytes16(&mut self, bytes: &[u8]) {
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        self.put_u16(length);
        self.put_slice(&bytes[..usize::from(length)]);
    }
}

/// The rest of a message that is being decoded. Every method fails if too few bytes are left.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        let (array, rest) = self.0.split_first_chunk().ok_or(ProtocolError::Short)?;
        self.0 = rest;
        Ok(*array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, ProtocolError> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, ProtocolError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, ProtocolError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, ProtocolError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A byte string of at most `limit` bytes, with its length before it.
    pub(super) fn bytes16(&mut self, limit: usize) -> Result<&'a [u8], ProtocolError> {
        let length = usize::from(self.u16()?);
        if length > limit {
            return Err(ProtocolError::Limit);
        }
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(ProtocolError::Short)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// Text in UTF-8 of at most `limit` bytes.
    pub(super) fn text16(&mut self, limit: usize) -> Result<String, ProtocolError> {
        let bytes = self.bytes16(limit)?;
        Ok(std::str::from_utf8(bytes).map_err(|_| ProtocolError::Text)?.to_owned())
    }
}
