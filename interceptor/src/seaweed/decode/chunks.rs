//! Decodes chunk records. A malformed record is an error for its file: guessing would return wrong
//! bytes.

use std::fmt;

use prost::Message;
use rdma_engine::FileId;

use crate::seaweed::entry::Chunk;
use crate::seaweed::message::{self, TooLarge};
use crate::seaweed::pb;

/// Files end below 2^63 bytes: the kernel's offsets are signed.
pub(super) const MAX_FILE_SIZE: u64 = i64::MAX as u64;

/// The type of encryption with which the S3 gateway stores data (`SSEType` of the filer's
/// protocol).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SseType(i32);

impl fmt::Display for SseType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match pb::SseType::try_from(self.0) {
            Ok(pb::SseType::SseC) => f.write_str("SSE-C"),
            Ok(pb::SseType::SseKms) => f.write_str("SSE-KMS"),
            Ok(pb::SseType::SseS3) => f.write_str("SSE-S3"),
            Ok(pb::SseType::None) | Err(_) => write!(f, "SSE type {}", self.0),
        }
    }
}

/// Why a list of chunks cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// The needle is no chunk manifest.
    #[error("not a chunk manifest: {0}")]
    Manifest(#[from] prost::DecodeError),
    /// The chunk manifest lists far more than any writer puts into one.
    #[error("not a chunk manifest: {0}")]
    TooLarge(#[from] TooLarge),
    /// One record is malformed.
    #[error("chunk record {index}: {fault}")]
    Record {
        /// Its index in the list, from 0.
        index: usize,
        /// What is wrong with it.
        fault: ChunkFault,
    },
}

/// What is wrong with a chunk record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkFault {
    /// The record names no needle.
    #[error("it has no file id")]
    NoFileId,
    /// The needle's name is malformed.
    #[error("`{0}` is not a file id")]
    FileId(String),
    /// The key of an encrypted needle is not one of AES-256.
    #[error("its cipher key has {0} bytes instead of 32")]
    CipherKey(usize),
    /// The data is encrypted with a key that no filer has.
    #[error("its data is encrypted by the S3 gateway ({0})")]
    Encrypted(SseType),
    /// The chunk would lie before the beginning of the file, or beyond the largest file.
    #[error("{size} bytes at offset {offset} are outside of any file")]
    OutOfBounds {
        /// Its offset in the file, in bytes.
        offset: i64,
        /// Its length in bytes.
        size: u64,
    },
}

impl ChunkError {
    /// Whether the list is well-formed, but its data encrypted.
    pub fn is_encrypted(&self) -> bool {
        matches!(self, Self::Record { fault: ChunkFault::Encrypted(_), .. })
    }
}

/// The chunks that a manifest needle lists. `content` is the needle's data, decrypted and
/// decompressed. The list may have manifests again.
pub fn manifest(content: &[u8]) -> Result<Vec<Chunk>, ChunkError> {
    message::check(content)?;
    list(pb::FileChunkManifest::decode(content)?.chunks)
}

/// All chunks of a list, or the fault of the first malformed one.
pub(super) fn list(chunks: Vec<pb::FileChunk>) -> Result<Vec<Chunk>, ChunkError> {
    let decode = |(index, record)| chunk(record).map_err(|fault| ChunkError::Record { index, fault });
    chunks.into_iter().enumerate().map(decode).collect()
}

/// The type of encryption of a record's data by the S3 gateway, if it is encrypted. Gateways of
/// other versions may have other types, so any type but "none" counts, and so do the metadata of
/// encryption without a type.
pub(super) fn encryption(record: &pb::FileChunk) -> Option<SseType> {
    let is_plain = record.sse_type == pb::SseType::None as i32 && record.sse_metadata.is_empty();
    (!is_plain).then_some(SseType(record.sse_type))
}

/// Where in the file the last record ends, in bytes. The offset of a malformed record counts as 0,
/// and its end as at most the largest file.
pub(super) fn end(chunks: &[pb::FileChunk]) -> u64 {
    let end =
        |c: &pb::FileChunk| u64::try_from(c.offset).unwrap_or(0).saturating_add(c.size).min(MAX_FILE_SIZE);
    chunks.iter().map(end).max().unwrap_or(0)
}

fn chunk(record: pb::FileChunk) -> Result<Chunk, ChunkFault> {
    if let Some(sse_type) = encryption(&record) {
        return Err(ChunkFault::Encrypted(sse_type));
    }
    let fid = file_id(&record)?;
    let out_of_bounds = ChunkFault::OutOfBounds { offset: record.offset, size: record.size };
    let offset = match u64::try_from(record.offset) {
        Ok(offset) if record.size <= MAX_FILE_SIZE - offset => offset,
        _ => return Err(out_of_bounds),
    };
    let cipher_key = if record.cipher_key.is_empty() {
        None
    } else {
        let length = record.cipher_key.len();
        let key = <Box<[u8; 32]>>::try_from(record.cipher_key.into_boxed_slice());
        Some(key.map_err(|_| ChunkFault::CipherKey(length))?)
    };
    Ok(Chunk {
        fid,
        offset,
        size: record.size,
        modified_ts_ns: record.modified_ts_ns,
        cipher_key,
        is_compressed: record.is_compressed,
        is_manifest: record.is_chunk_manifest,
    })
}

/// The text form takes precedence. Stored entries and manifests have the message alone.
fn file_id(record: &pb::FileChunk) -> Result<FileId, ChunkFault> {
    if !record.file_id.is_empty() {
        return record.file_id.parse().map_err(|_| ChunkFault::FileId(record.file_id.clone()));
    }
    let fid = record.fid.as_ref().ok_or(ChunkFault::NoFileId)?;
    let id = FileId { volume: fid.volume_id, key: fid.file_key, cookie: fid.cookie };
    if id.volume == 0 || id.key == 0 {
        return Err(ChunkFault::FileId(id.to_string()));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> pb::FileChunk {
        pb::FileChunk { file_id: "3,01637037d6".into(), offset: 8, size: 4, ..Default::default() }
    }

    #[test]
    fn the_cookie_is_a_fixed32() {
        // field 7: { 1: varint 3, 2: varint 1, 3: fixed32 0x637037d6 }
        let wire = [0x3a, 9, 0x08, 3, 0x10, 1, 0x1d, 0xd6, 0x37, 0x70, 0x63];
        let decoded = chunk(pb::FileChunk::decode(&wire[..]).unwrap()).unwrap();
        assert_eq!(decoded.fid.to_string(), "3,01637037d6");
    }

    #[test]
    fn the_text_form_takes_precedence_over_the_message() {
        let fid = pb::FileId { volume_id: 9, file_key: 9, cookie: 9 };
        let decoded = chunk(pb::FileChunk { fid: Some(fid), ..record() }).unwrap();
        assert_eq!(decoded.fid.to_string(), "3,01637037d6");
    }

    #[test]
    fn malformed_records_are_refused_with_their_fault() {
        let fault = |record: pb::FileChunk| chunk(record).unwrap_err();
        assert_eq!(fault(pb::FileChunk { file_id: String::new(), ..record() }), ChunkFault::NoFileId);
        assert_eq!(fault(pb::FileChunk { file_id: "x".into(), ..record() }), ChunkFault::FileId("x".into()));
        let zero = pb::FileId { volume_id: 1, file_key: 0, cookie: 7 };
        let nameless = pb::FileChunk { file_id: String::new(), fid: Some(zero), ..record() };
        assert!(matches!(fault(nameless), ChunkFault::FileId(_)));
        assert_eq!(fault(pb::FileChunk { cipher_key: vec![0; 31], ..record() }), ChunkFault::CipherKey(31));
        let negative = ChunkFault::OutOfBounds { offset: -1, size: 4 };
        assert_eq!(fault(pb::FileChunk { offset: -1, ..record() }), negative);
        let size = i64::MAX as u64;
        assert_eq!(fault(pb::FileChunk { size, ..record() }), ChunkFault::OutOfBounds { offset: 8, size });
        assert_eq!(
            list(vec![record(), pb::FileChunk { offset: -1, ..record() }]),
            Err(ChunkError::Record { index: 1, fault: negative })
        );
    }

    #[test]
    fn encrypted_data_is_refused_whatever_the_type() {
        let fault = |sse_type, sse_metadata: &[u8]| {
            let record = pb::FileChunk { sse_type, sse_metadata: sse_metadata.into(), ..record() };
            chunk(record).err().map(|fault| fault.to_string())
        };
        assert_eq!(fault(0, b""), None);
        for (sse_type, name) in
            [(1, "SSE-C"), (2, "SSE-KMS"), (3, "SSE-S3"), (4, "SSE type 4"), (-1, "SSE type -1")]
        {
            let expected = format!("its data is encrypted by the S3 gateway ({name})");
            assert_eq!(fault(sse_type, b""), Some(expected));
        }
        assert!(fault(0, b"{}").is_some(), "it has a key, but no type");
    }

    #[test]
    fn a_manifest_of_encrypted_chunks_is_distinguished_from_a_malformed_one() {
        let encrypted = pb::FileChunk { sse_type: 1, ..record() };
        let list = pb::FileChunkManifest { chunks: vec![record(), encrypted] };
        assert!(manifest(&list.encode_to_vec()).unwrap_err().is_encrypted());
        let broken = pb::FileChunkManifest { chunks: vec![pb::FileChunk { offset: -1, ..record() }] };
        assert!(!manifest(&broken.encode_to_vec()).unwrap_err().is_encrypted());
    }

    #[test]
    fn the_largest_file_is_allowed() {
        let decoded = chunk(pb::FileChunk { size: i64::MAX as u64 - 8, ..record() }).unwrap();
        assert_eq!(decoded.offset + decoded.size, i64::MAX as u64);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_manifest_or_refused(bytes: Vec<u8>) {
            let _ = manifest(&bytes);
        }

        #[test]
        fn accepted_records_lie_within_a_file(offset: i64, size: u64) {
            let raw = pb::FileChunk { offset, size, ..record() };
            prop_assert!(end(std::slice::from_ref(&raw)) <= MAX_FILE_SIZE);
            if let Ok(c) = chunk(raw) {
                prop_assert!(c.offset.checked_add(c.size).is_some_and(|end| end <= MAX_FILE_SIZE));
            }
        }
    }
}
