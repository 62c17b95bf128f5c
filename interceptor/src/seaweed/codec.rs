//! From stored bytes to logical ones: decryption and decompression.
//!
//! A writer compresses before it encrypts, so a reader decrypts before it decompresses. Encrypted
//! bytes are a nonce of 12 bytes, AES-256-GCM ciphertext, and a tag of 16 bytes. Compressed bytes
//! are gzip; zstd is recognised by its magic number. Decompression never yields more than a limit,
//! verifies the checksum of the format, and treats bytes after the compressed data as damage.

use std::io::{self, Read};

use flate2::bufread::MultiGzDecoder;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ruzstd::decoding::StreamingDecoder;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The largest window of zstd, in bytes. A decoder keeps as much text as the header of the data
/// says.
const MAX_ZSTD_WINDOW: u64 = 32 << 20;

/// The buffer for bytes that are verified but not copied, in bytes.
const SCRATCH_SIZE: usize = 32 << 10;

/// Why stored bytes cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The bytes do not decrypt: another key was used, or they are damaged.
    #[error("decryption failed: wrong key or damaged data")]
    Decrypt,
    /// The compressed data is damaged, cut short, or followed by something else.
    #[error("decompression failed: {0}")]
    Decompress(#[source] io::Error),
    /// There are more than this many bytes, which is the caller's limit.
    #[error("there are more than {0} bytes after decompression")]
    TooLong(u64),
}

/// How bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// gzip, one member or several.
    Gzip,
    /// zstd.
    Zstd,
}

impl Compression {
    /// The compression whose magic number `data` begins with. Any file may begin like that: to be
    /// used only if the writer is known to have compressed.
    pub fn by_magic(data: &[u8]) -> Option<Self> {
        if data.starts_with(&GZIP_MAGIC) {
            Some(Self::Gzip)
        } else if data.starts_with(&ZSTD_MAGIC) {
            Some(Self::Zstd)
        } else {
            None
        }
    }

    /// Decompresses all of `data`. The bytes from `offset` on go to `dst`, as many as there are
    /// and fit; the others are only verified. Returns how many bytes there are in all, at most
    /// `limit`. What `dst` has after an error is undefined.
    pub fn decompress_into(
        self,
        data: &[u8],
        offset: u64,
        dst: &mut [u8],
        limit: u64,
    ) -> Result<u64, CodecError> {
        self.with_reader(data, |reader| {
            let mut scratch = [0; SCRATCH_SIZE];
            let mut bounded = reader.take(limit.saturating_add(1));
            let mut total = io::copy(&mut (&mut bounded).take(offset), &mut io::sink())?;
            let mut filled = 0;
            loop {
                let target = if filled < dst.len() { &mut dst[filled..] } else { &mut scratch[..] };
                match read_some(&mut bounded, target)? {
                    0 => return Ok(total),
                    count => {
                        filled = filled.saturating_add(count);
                        total += count as u64;
                    }
                }
            }
        })
        .and_then(|total| if total > limit { Err(CodecError::TooLong(limit)) } else { Ok(total) })
    }

    /// Decompresses all of `data`, which must give `limit` bytes at most.
    pub fn decompress(self, data: &[u8], limit: u64) -> Result<Vec<u8>, CodecError> {
        let mut plain = Vec::new();
        self.with_reader(data, |reader| reader.take(limit.saturating_add(1)).read_to_end(&mut plain))?;
        if plain.len() as u64 > limit { Err(CodecError::TooLong(limit)) } else { Ok(plain) }
    }

    fn with_reader<T>(
        self,
        data: &[u8],
        read: impl FnOnce(&mut dyn Read) -> io::Result<T>,
    ) -> Result<T, CodecError> {
        match self {
            Self::Gzip => read(&mut MultiGzDecoder::new(data)),
            Self::Zstd => ZstdReader::new(data).and_then(|mut reader| read(&mut reader)),
        }
        .map_err(CodecError::Decompress)
    }
}

/// Reads one zstd frame, verifies its checksum, and refuses bytes after it.
struct ZstdReader<'a> {
    decoder: StreamingDecoder<&'a [u8], ruzstd::decoding::FrameDecoder>,
}

impl<'a> ZstdReader<'a> {
    fn new(data: &'a [u8]) -> io::Result<Self> {
        if zstd_window(data).is_none_or(|window| window > MAX_ZSTD_WINDOW) {
            return Err(damaged("its window is larger than any writer's"));
        }
        Ok(Self { decoder: StreamingDecoder::new(data).map_err(damaged)? })
    }
}

impl Read for ZstdReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.decoder.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            let frame = &self.decoder.decoder;
            if let Some(stored) = frame.get_checksum_from_data()
                && frame.get_calculated_checksum() != Some(stored)
            {
                return Err(damaged("wrong checksum"));
            }
            if !self.decoder.get_ref().is_empty() {
                return Err(damaged("there is more behind the end"));
            }
        }
        Ok(count)
    }
}

/// The window in the header of a zstd frame, in bytes (RFC 8878, 3.1.1.1); `None` if there is no
/// such header.
fn zstd_window(data: &[u8]) -> Option<u64> {
    let (&descriptor, rest) = data.strip_prefix(&ZSTD_MAGIC)?.split_first()?;
    if descriptor & 0x20 == 0 {
        let exponent = u64::from(*rest.first()?);
        let base = 1 << (10 + (exponent >> 3));
        return Some(base + base / 8 * (exponent & 7));
    }
    // A single segment: the window is the content. Its size follows the dictionary id.
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let length = 1 << (descriptor >> 6);
    let mut size = [0; 8];
    size[..length].copy_from_slice(rest.get(dictionary..)?.get(..length)?);
    let offset = if length == 2 { 256 } else { 0 };
    Some(u64::from_le_bytes(size).saturating_add(offset))
}

fn damaged(reason: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_string())
}

fn read_some(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Decrypts `stored` in place and returns the plaintext in it.
pub fn decrypt<'a>(key: &[u8; 32], stored: &'a mut [u8]) -> Result<&'a [u8], CodecError> {
    let (nonce, sealed) = stored.split_first_chunk_mut::<NONCE_LEN>().ok_or(CodecError::Decrypt)?;
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| CodecError::Decrypt)?;
    let plain = LessSafeKey::new(key).open_in_place(nonce, Aad::empty(), sealed);
    plain.map(|plain| &*plain).map_err(|_| CodecError::Decrypt)
}

/// The stored bytes of a needle, decoded except for the last decompression.
#[derive(Debug)]
pub enum PartlyDecoded<'a> {
    /// These are the logical bytes.
    Plain(&'a [u8]),
    /// They are compressed.
    Compressed(Compression, &'a [u8]),
}

impl<'a> PartlyDecoded<'a> {
    /// Decodes `stored`, except for the last decompression. `gzip` is the needle's flag;
    /// `cipher_key` and `is_compressed` are from the chunk record. Only the record says whether
    /// the plaintext of an encrypted needle is compressed. At most `limit` bytes are unpacked
    /// before decryption.
    pub fn open(
        stored: &'a mut Vec<u8>,
        gzip: bool,
        cipher_key: Option<&[u8; 32]>,
        is_compressed: bool,
        limit: u64,
    ) -> Result<Self, CodecError> {
        let Some(key) = cipher_key else {
            return Ok(if gzip { Self::Compressed(Compression::Gzip, stored) } else { Self::Plain(stored) });
        };
        if gzip {
            *stored = Compression::Gzip.decompress(stored, limit)?;
        }
        let plain = decrypt(key, stored)?;
        Ok(match Compression::by_magic(plain).filter(|_| is_compressed) {
            Some(compression) => Self::Compressed(compression, plain),
            None => Self::Plain(plain),
        })
    }

    /// Copies the logical bytes from `offset` on to `dst`, as many as there are and fit. Returns
    /// how many there are in all.
    pub fn copy_into(self, offset: u64, dst: &mut [u8], limit: u64) -> Result<u64, CodecError> {
        match self {
            Self::Compressed(compression, data) => compression.decompress_into(data, offset, dst, limit),
            Self::Plain(plain) => {
                let start = usize::try_from(offset).map_or(plain.len(), |offset| offset.min(plain.len()));
                let count = dst.len().min(plain.len() - start);
                dst[..count].copy_from_slice(&plain[start..][..count]);
                Ok(plain.len() as u64)
            }
        }
    }

    /// All logical bytes, `limit` at most.
    pub fn into_vec(self, limit: u64) -> Result<Vec<u8>, CodecError> {
        match self {
            Self::Compressed(compression, data) => compression.decompress(data, limit),
            Self::Plain(plain) if plain.len() as u64 > limit => Err(CodecError::TooLong(limit)),
            Self::Plain(plain) => Ok(plain.to_vec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;
    use std::io::Write;

    const LIMIT: u64 = 1 << 20;

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(plain: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(plain, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn encrypt(key: &[u8; 32], plain: &[u8]) -> Vec<u8> {
        let sealing = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
        let mut sealed = plain.to_vec();
        let nonce = [9; NONCE_LEN];
        sealing
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut sealed)
            .unwrap();
        [&nonce[..], &sealed].concat()
    }

    #[test]
    fn bytes_after_the_compressed_data_are_refused() {
        for (compression, mut data) in
            [(Compression::Gzip, gzip(b"some text")), (Compression::Zstd, zstd(b"some text"))]
        {
            assert_eq!(compression.decompress(&data, LIMIT).unwrap(), b"some text");
            data.extend(b"rubbish");
            let error = compression.decompress(&data, LIMIT).unwrap_err();
            assert!(matches!(error, CodecError::Decompress(_)), "{compression:?}: {error}");
        }
    }

    #[test]
    fn data_cut_short_or_damaged_is_refused() {
        let plain: Vec<u8> = (0..50_000u32).flat_map(|n| (n % 977).to_le_bytes()).collect();
        for (compression, data) in [(Compression::Gzip, gzip(&plain)), (Compression::Zstd, zstd(&plain))] {
            assert!(compression.decompress(&data[..data.len() - 1], LIMIT).is_err(), "{compression:?}");
            assert!(compression.decompress(&data[..data.len() / 2], LIMIT).is_err(), "{compression:?}");
        }
        let mut data = gzip(&plain);
        let middle = data.len() / 2;
        data[middle] ^= 0x10;
        assert!(Compression::Gzip.decompress(&data, LIMIT).is_err());
    }

    #[test]
    fn gzip_of_several_members_is_one_text() {
        let data = [gzip(b"one "), gzip(b"text")].concat();
        assert_eq!(Compression::Gzip.decompress(&data, LIMIT).unwrap(), b"one text");
    }

    #[test]
    fn a_compressed_void_stops_at_the_limit() {
        let data = gzip(&vec![0; 3 << 20]);
        assert!(matches!(Compression::Gzip.decompress(&data, LIMIT), Err(CodecError::TooLong(LIMIT))));
        let mut dst = [0; 16];
        let error = Compression::Gzip.decompress_into(&data, 0, &mut dst, LIMIT).unwrap_err();
        assert!(matches!(error, CodecError::TooLong(LIMIT)));
    }

    #[test]
    fn a_zstd_frame_does_not_name_the_memory_that_it_gets() {
        let plain: Vec<u8> = (0..50_000u32).flat_map(u32::to_le_bytes).collect();
        let mut data = zstd(&plain);
        assert!(zstd_window(&data).is_some_and(|window| window <= MAX_ZSTD_WINDOW));
        assert_eq!(Compression::Zstd.decompress(&data, LIMIT).unwrap(), plain);
        for (frame, window) in [
            (&[0x00, 0x58][..], Some(2 << 20)),
            (&[0x00, 0xff], Some((1 << 41) + (7 << 38))),
            (&[0x20, 200], Some(200)),
            (&[0x61, 9, 1, 2], Some(0x201 + 256)),
            (&[0xe0, 0, 0, 0, 0, 1, 0, 0, 0], Some(1 << 32)),
            (&[0xe0, 0, 0, 0], None),
        ] {
            assert_eq!(zstd_window(&[&ZSTD_MAGIC, frame].concat()), window, "{frame:?}");
        }
        // A window of 64 MiB, for the same text.
        let descriptor = data[4];
        if descriptor & 0x20 == 0 {
            data[5] = 0x80;
        } else {
            data.splice(4..5, [descriptor & !0xe0, 0x80]);
            data.drain(6..6 + (1 << (descriptor >> 6)));
        }
        assert_eq!(zstd_window(&data), Some(64 << 20));
        assert!(Compression::Zstd.decompress(&data, LIMIT).is_err());
    }

    #[test]
    fn wrong_keys_and_short_texts_do_not_decrypt() {
        let mut stored = encrypt(&[1; 32], b"secret");
        assert!(matches!(decrypt(&[2; 32], &mut stored.clone()), Err(CodecError::Decrypt)));
        for length in 0..stored.len() {
            assert!(decrypt(&[1; 32], &mut stored[..length].to_vec()).is_err());
        }
        assert_eq!(decrypt(&[1; 32], &mut stored).unwrap(), b"secret");
    }

    #[test]
    fn encrypted_text_is_unpacked_only_if_the_record_says_so() {
        let packed = gzip(b"some text");
        let open = |is_compressed| {
            let mut stored = encrypt(&[1; 32], &packed);
            PartlyDecoded::open(&mut stored, false, Some(&[1; 32]), is_compressed, LIMIT)
                .and_then(|stored| stored.into_vec(LIMIT))
                .unwrap()
        };
        assert_eq!(open(true), b"some text");
        assert_eq!(open(false), packed, "a file that is itself gzip");
    }

    #[test]
    fn a_plain_text_is_cut() {
        let copy = |offset, length| {
            let (mut stored, mut dst) = (b"0123456789".to_vec(), vec![b'-'; length]);
            let stored = PartlyDecoded::open(&mut stored, false, None, false, LIMIT).unwrap();
            assert_eq!(stored.copy_into(offset, &mut dst, LIMIT).unwrap(), 10);
            String::from_utf8(dst).unwrap()
        };
        assert_eq!(copy(0, 10), "0123456789");
        assert_eq!(copy(3, 4), "3456");
        assert_eq!(copy(8, 4), "89--");
        assert_eq!(copy(u64::MAX, 2), "--");
    }

    proptest! {
        #[test]
        fn a_window_of_the_text_is_the_text(
            plain in proptest::collection::vec(any::<u8>(), 0..5000),
            offset in 0usize..6000,
            length in 0usize..6000,
        ) {
            for (compression, data) in [(Compression::Gzip, gzip(&plain)), (Compression::Zstd, zstd(&plain))] {
                let mut dst = vec![0xEE; length];
                let total = compression.decompress_into(&data, offset as u64, &mut dst, LIMIT).unwrap();
                prop_assert_eq!(total, plain.len() as u64);
                let expected = &plain[offset.min(plain.len())..(offset + length).min(plain.len())];
                prop_assert_eq!(&dst[..expected.len()], expected);
                prop_assert!(dst[expected.len()..].iter().all(|&b| b == 0xEE));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut data: Vec<u8>, offset in 0u64..100) {
            let mut dst = [0; 64];
            for (compression, magic) in [(Compression::Gzip, &GZIP_MAGIC[..]), (Compression::Zstd, &ZSTD_MAGIC[..])] {
                let _ = compression.decompress_into(&data, offset, &mut dst, LIMIT);
                let _ = compression.decompress_into(&[magic, &data].concat(), offset, &mut dst, LIMIT);
            }
            prop_assert!(decrypt(&[3; 32], &mut data).is_err());
        }

        #[test]
        fn one_changed_byte_is_noticed_or_harmless(
            plain in proptest::collection::vec(0u8..8, 1..2000), at: prop::sample::Index, flip in 1u8..,
        ) {
            let mut data = gzip(&plain);
            let at = at.index(data.len());
            data[at] ^= flip;
            if let Ok(text) = Compression::Gzip.decompress(&data, LIMIT) {
                prop_assert_eq!(text, plain);
            }
        }
    }
}
