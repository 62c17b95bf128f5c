//! A needle's record, found and examined: the description of the data, and where the data is.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::StoreError;
use super::data::{DataFile, ReadMode};
use super::entry::RecordPosition;
use super::index::IndexEntry;
use crate::FileId;
use crate::checksum;
use crate::needle::{Flags, HEADER, Header, MAX_TAIL, Tail, Version};
use crate::refusal::Refusal;

/// Bytes of `dataSize`.
const DATA_SIZE: usize = 4;

/// Nearly all tails are shorter than this; longer ones are read into allocated memory.
const STACK_TAIL_SIZE: usize = 512;

/// A needle whose record was found and agrees with the file id. It holds the file open, so the
/// data can be read even if the volume is compacted or removed meanwhile.
#[derive(Debug, Clone)]
pub struct NeedleRecord {
    /// The volume's data file.
    pub file: Arc<DataFile>,
    /// The record's header, as it is on disk.
    pub header: Header,
    /// Where the record begins in the file, in bytes.
    pub offset: u64,
    /// Where its data begins, in bytes.
    pub data_offset: u64,
    /// How many bytes of data there are.
    pub data_size: u32,
    /// What follows the data.
    pub tail: Tail,
    /// Whether the needle was deleted. A volume server returns it only to clients that ask for
    /// deleted needles.
    pub deleted: bool,
}

impl NeedleRecord {
    /// How many of the `length` bytes from `offset` on the needle has; 0 at its end.
    ///
    /// # Errors
    /// [`Refusal::OutOfRange`] if `offset` is behind the end.
    pub fn clamp(&self, offset: u32, length: u32) -> Result<u32, Refusal> {
        self.data_size.checked_sub(offset).map(|left| left.min(length)).ok_or(Refusal::OutOfRange)
    }

    /// Fills `destination` with the data from `offset` on. If that is all data, its checksum is
    /// verified.
    ///
    /// # Errors
    /// [`Refusal::OutOfRange`] if there are fewer bytes, [`Refusal::Damaged`] if the checksum does
    /// not agree. The content of `destination` after an error is undefined.
    pub fn read_into(&self, offset: u32, destination: &mut [u8], mode: ReadMode) -> Result<(), StoreError> {
        let length = u32::try_from(destination.len()).map_err(|_| Refusal::OutOfRange)?;
        if self.clamp(offset, length)? != length {
            return Err(Refusal::OutOfRange.into());
        }
        self.file.read_exact_at(destination, self.data_offset + u64::from(offset), mode)?;
        if length == self.data_size && !self.matches(checksum::crc32c(destination)) {
            return Err(Refusal::Damaged.into());
        }
        Ok(())
    }

    /// Whether `crc`, the CRC32C of all data, is that of the record. Always true if there is no
    /// data.
    pub fn matches(&self, crc: u32) -> bool {
        self.data_size == 0 || checksum::matches(self.tail.checksum, crc)
    }
}

/// Whether there is a record of `key` at `position`, of the size that is in `position`.
pub(super) fn is_at(data: &DataFile, version: Version, key: u64, position: RecordPosition) -> bool {
    let mut bytes = [0; HEADER];
    let read = data.read_exact_at(&mut bytes, position.offset, ReadMode::Blocking);
    let header = Header::parse(&bytes);
    // The trailer must be there too: a record at which the file ends was never finished.
    let end = position.offset + version.record_length(position.size) - 8;
    let ends = data.read_exact_at(&mut [0], end - 1, ReadMode::Blocking);
    read.is_ok() && ends.is_ok() && header.key == key && header.size == position.size.cast_signed()
}

/// Reads the description in the record at `found`, and compares it with the file id.
pub(super) fn examine(
    file: &Arc<DataFile>,
    version: Version,
    fid: FileId,
    found: IndexEntry,
    mode: ReadMode,
) -> Result<NeedleRecord, StoreError> {
    let RecordPosition { offset, size } = found.position;
    let sized = version != Version::V1 && size > 0;
    let mut head = [0; HEADER + DATA_SIZE];
    let head_length = if sized { head.len() } else { HEADER };
    file.read_exact_at(&mut head[..head_length], offset, mode)?;
    let [header @ .., s0, s1, s2, s3] = head;
    let header = Header::parse(&header);
    if header.key != fid.key || header.size.cast_unsigned() != size {
        return Err(Refusal::Stale.into());
    }
    if header.cookie != fid.cookie {
        return Err(Refusal::WrongCookie.into());
    }

    let data_size = if sized { u32::from_be_bytes([s0, s1, s2, s3]) } else { size };
    let data_offset = offset + head_length as u64;
    let optional = match sized {
        true => size.checked_sub(DATA_SIZE as u32).and_then(|rest| rest.checked_sub(data_size)),
        false => Some(0),
    };
    let optional = optional.ok_or(Refusal::Damaged)? as usize;
    let length = optional + version.trailer();
    if (sized && optional == 0) || length > MAX_TAIL {
        return Err(Refusal::Damaged.into());
    }
    let mut short = [0; STACK_TAIL_SIZE];
    let mut long = Vec::new();
    let tail = match short.get_mut(..length) {
        Some(tail) => tail,
        None => {
            long.resize(length, 0);
            &mut long[..]
        }
    };
    file.read_exact_at(tail, data_offset + u64::from(data_size), mode)?;
    let tail = Tail::parse(version, tail).map_err(|_| Refusal::Damaged)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if tail.is_expired(now) {
        return Err(Refusal::Expired.into());
    }
    if tail.flags.is_manifest() {
        return Err(Refusal::Manifest.into());
    }
    Ok(NeedleRecord {
        file: file.clone(),
        header,
        offset,
        data_offset,
        data_size,
        tail,
        deleted: found.deleted,
    })
}

impl NeedleRecord {
    /// The flags of the data.
    pub fn flags(&self) -> Flags {
        self.tail.flags
    }
}
