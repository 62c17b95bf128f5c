//! Bounds the memory that a protobuf message takes, before it is decoded.
//!
//! A record without fields takes two bytes on the wire and some hundred in memory, so the length
//! of a long message says little. [`check`] scans its wire form without allocating, and refuses a
//! message with more length-delimited fields (records, strings, byte strings) than any filer
//! sends. A message too short for that many is not scanned. [`BoundedCodec`] checks every answer
//! of a filer.

use std::marker::PhantomData;

use bytes::Buf;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// The longest message, in bytes. The filer folds lists of 10,000 chunks into manifests, so an
/// entry has some megabytes at most.
pub(super) const MAX_MESSAGE: usize = 16 << 20;

/// The most length-delimited fields of a message, nested ones included: several times those of an
/// entry of 10,000 chunks.
const MAX_FIELDS: usize = 250_000;

/// The fewest bytes of a length-delimited field: its key and its length.
const MIN_FIELD_BYTES: usize = 2;

/// How deeply records nest: an event has an entry, with chunks, with file ids.
const MAX_NESTING: u32 = 5;

/// A message that would take too much memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of {bytes} bytes with {fields} records or more")]
pub struct TooLarge {
    bytes: usize,
    fields: usize,
}

/// Refuses a message that is too long or has too many fields.
///
/// # Errors
/// See [`TooLarge`].
pub(super) fn check(message: &[u8]) -> Result<(), TooLarge> {
    if message.len() <= MAX_FIELDS * MIN_FIELD_BYTES {
        return Ok(());
    }
    let mut fields = 0;
    count(message, MAX_NESTING, &mut fields);
    if message.len() > MAX_MESSAGE || fields > MAX_FIELDS {
        return Err(TooLarge { bytes: message.len(), fields });
    }
    Ok(())
}

/// Counts length-delimited fields until there are too many. The wire form does not distinguish
/// records from text, so a field that can be parsed as a record counts as one. Malformed input
/// ends the scan, as it ends decoding.
fn count(mut message: &[u8], nesting: u32, fields: &mut usize) {
    while !message.is_empty() && *fields <= MAX_FIELDS {
        let Ok((tag, wire)) = decode_key(&mut message) else { return };
        if wire != WireType::LengthDelimited {
            if skip_field(wire, tag, &mut message, DecodeContext::default()).is_err() {
                return;
            }
            continue;
        }
        let length = decode_varint(&mut message).ok().and_then(|length| usize::try_from(length).ok());
        let Some((field, rest)) = length.and_then(|length| message.split_at_checked(length)) else { return };
        *fields += 1;
        if nesting > 0 {
            count(field, nesting - 1, fields);
        }
        message = rest;
    }
}

/// prost's codec, with answers checked before they are decoded.
pub(crate) struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(ProstCodec::<T, U>::default().decoder())
    }
}

/// See [`BoundedCodec`].
pub(crate) struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // The buffer has the whole message in one piece.
        check(buffer.chunk()).map_err(|error| Status::resource_exhausted(error.to_string()))?;
        self.0.decode(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seaweed::pb;
    use proptest::prelude::*;

    fn entry(chunks: usize) -> pb::Entry {
        let fid = pb::FileId { volume_id: 9, file_key: u64::MAX, cookie: u32::MAX };
        let chunk = pb::FileChunk {
            file_id: "4294967295,ffffffffffffffffffffffff".into(),
            size: 2 << 20,
            offset: i64::MAX,
            fid: Some(fid),
            modified_ts_ns: i64::MAX,
            cipher_key: vec![0xff; 32],
            ..Default::default()
        };
        pb::Entry { name: "f".into(), chunks: vec![chunk; chunks], ..Default::default() }
    }

    #[test]
    fn the_longest_list_of_chunks_of_a_filer_is_accepted() {
        let event = pb::ListEntriesResponse { entry: Some(entry(20_000)) };
        check(&event.encode_to_vec()).unwrap();
    }

    #[test]
    fn few_bytes_that_decode_to_much_memory_are_refused() {
        // Two bytes a chunk: 2 MiB that decode to more than 200.
        let nothing = pb::Entry { chunks: vec![pb::FileChunk::default(); 1 << 20], ..Default::default() };
        let message = pb::ListEntriesResponse { entry: Some(nothing) }.encode_to_vec();
        assert!(message.len() < 3 << 20);
        assert!(check(&message).is_err());
        assert!(check(&vec![0; MAX_MESSAGE + 1]).is_err());
    }

    /// Why shorter messages need no scan.
    #[test]
    fn the_shortest_message_that_is_refused_is_scanned() {
        let fields = |count| [0x0a, 0].repeat(count);
        let mut counted = 0;
        count(&fields(3), MAX_NESTING, &mut counted);
        assert_eq!(counted, 3);
        check(&fields(MAX_FIELDS)).unwrap();
        assert_eq!(check(&fields(MAX_FIELDS + 1)).unwrap_err().fields, MAX_FIELDS + 1);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_have_no_more_fields_than_fit(bytes: Vec<u8>) {
            let mut fields = 0;
            count(&bytes, MAX_NESTING, &mut fields);
            prop_assert!(fields * MIN_FIELD_BYTES <= bytes.len());
        }
    }
}
