//! Whether an answer belongs to its request, and whether the bytes have the needle's checksum.

use super::{ReadError, ReadTarget};
use crate::checksum;
use crate::protocol::NeedleInfo;

/// The part of `destination` that the answer fills, if the answer belongs to the request.
pub(super) fn matched_part<'a>(
    needle: &NeedleInfo,
    target: &ReadTarget<'_>,
    destination: &'a mut [u8],
) -> Result<&'a mut [u8], ReadError> {
    check_match(needle, target, destination.len())?;
    Ok(&mut destination[..needle.length as usize])
}

/// Checks that the answer belongs to the request for `requested` bytes.
pub(super) fn check_match(
    needle: &NeedleInfo,
    target: &ReadTarget<'_>,
    requested: usize,
) -> Result<(), ReadError> {
    let NeedleInfo { header, data_size, length, .. } = *needle;
    if header.key != target.fid.key || header.cookie != target.fid.cookie {
        return Err(ReadError::Damaged("the header of another needle"));
    }
    let left =
        data_size.checked_sub(target.offset).ok_or(ReadError::Damaged("the range lies behind the end"))?;
    if u64::from(length) != u64::from(left).min(requested as u64) {
        return Err(ReadError::Damaged("more or less bytes than were asked for"));
    }
    Ok(())
}

/// The CRC32C of the bytes that a read has brought so far.
#[derive(Default)]
pub(super) struct ReadChecksum(u32);

impl ReadChecksum {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0 = checksum::crc32c_append(self.0, bytes);
    }

    /// Compares the checksum, if the bytes are the whole needle. Returns whether they are: a range
    /// has no checksum.
    pub(super) fn verify(&self, needle: &NeedleInfo) -> Result<bool, ReadError> {
        if needle.length != needle.data_size || needle.length == 0 {
            return Ok(false);
        }
        match checksum::matches(needle.checksum, self.0) {
            true => Ok(true),
            false => Err(ReadError::Damaged("the checksum")),
        }
    }
}

/// As [`ReadChecksum::verify`], with the checksum of `bytes`, which is not computed for a range.
#[cfg(feature = "verbs")]
pub(super) fn verify_bytes(needle: &NeedleInfo, bytes: &[u8]) -> Result<bool, ReadError> {
    if needle.length != needle.data_size {
        return Ok(false);
    }
    let mut checksum = ReadChecksum::default();
    checksum.add(bytes);
    checksum.verify(needle)
}
