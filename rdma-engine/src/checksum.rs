//! The checksum that SeaweedFS stores with every needle: CRC32C (Castagnoli) of the stored bytes,
//! that is of the compressed or encrypted form where there is one.

/// CRC32C of `data`.
pub fn crc32c(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
}

/// CRC32C of a stream whose earlier part has the checksum `crc` (0 if it is empty) and whose next
/// part is `data`.
pub fn crc32c_append(crc: u32, data: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, data)
}

/// The form in which SeaweedFS before 3.09 stored a checksum; records of that age still carry it.
pub const fn legacy(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Whether `stored` is the checksum `crc` in either of the two forms.
pub const fn matches(stored: u32, crc: u32) -> bool {
    stored == crc || stored == legacy(crc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standard() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(legacy(0xe306_9283), 0xc78a_b0e5);
        assert_eq!(crc32c_append(crc32c(b"12345"), b"6789"), 0xe306_9283);
    }

    #[test]
    fn both_forms_match_and_others_do_not() {
        assert!(matches(0xe306_9283, 0xe306_9283));
        assert!(matches(0xc78a_b0e5, 0xe306_9283));
        assert!(!matches(0xe306_9284, 0xe306_9283));
    }
}
