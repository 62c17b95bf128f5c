//! The head of a response: success or not, redirect, range, encoding.

use super::VolumeError;
use crate::seaweed::http1::{Head, Response};

/// The longest message of an error, in bytes.
const MAX_MESSAGE: usize = 200;

/// Returns responses of success, and turns the others into errors.
pub(super) async fn success(mut response: Response) -> Result<Response, VolumeError> {
    match response.head().status {
        200..=299 => Ok(response),
        404 => Err(VolumeError::NotFound),
        // The needle ends before the range begins.
        416 => Err(VolumeError::Protocol("the range is outside of the needle".to_owned())),
        status @ (429 | 503) => Err(VolumeError::Busy(status)),
        status @ 400..=498 => Err(VolumeError::Refused { status, message: message(&mut response).await }),
        status => Err(VolumeError::Server(status)),
    }
}

/// The beginning of the text that explains an error, as far as that comes.
async fn message(response: &mut Response) -> String {
    let mut text = [0; MAX_MESSAGE];
    let count = response.read(&mut text).await.unwrap_or(0);
    String::from_utf8_lossy(&text[..count]).trim().escape_debug().to_string()
}

/// Whether the body is gzip. The request offers no other encoding to the server.
pub(super) fn is_gzip(head: &Head) -> Result<bool, VolumeError> {
    match head.content_encoding.as_deref() {
        None | Some("" | "identity") => Ok(false),
        Some("gzip") => Ok(true),
        Some(other) => Err(VolumeError::Protocol(format!("content encoding {other:?}"))),
    }
}

/// The checksum in an `ETag`, if that has one: eight hexadecimal digits in quotes.
pub(super) fn etag_checksum(etag: &str) -> Option<u32> {
    let digits = etag.strip_prefix('"')?.strip_suffix('"')?;
    let hexadecimal = digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    hexadecimal.then(|| u32::from_str_radix(digits, 16).ok())?
}

/// A range of bytes, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ContentRange {
    pub(super) first: u64,
    pub(super) last: u64,
}

impl ContentRange {
    /// The range of `length` bytes from `offset` on.
    pub(super) fn of(offset: u64, length: usize) -> Result<Self, VolumeError> {
        let last = (length as u64).checked_sub(1).and_then(|beyond| offset.checked_add(beyond));
        let last = last.ok_or_else(|| VolumeError::Protocol("a range must not be empty".to_owned()))?;
        Ok(Self { first: offset, last })
    }

    /// Parses `bytes FIRST-LAST/TOTAL`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            text.parse::<u64>().ok().filter(|_| digits)
        };
        let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last) = (number(first)?, number(last)?);
        let consistent = first <= last && (total == "*" || number(total)? > last);
        consistent.then_some(Self { first, last })
    }
}

/// Another server to ask.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Redirect {
    pub(super) authority: String,
    pub(super) target: String,
}

impl Redirect {
    /// Where the response of server `authority` redirects the client, if it does.
    pub(super) fn of(head: &Head, authority: &str) -> Result<Option<Self>, VolumeError> {
        if !matches!(head.status, 301 | 302 | 307 | 308) {
            return Ok(None);
        }
        let location = head.location.as_deref().unwrap_or_default();
        let redirect = Self::parse(location, authority);
        redirect.map(Some).ok_or_else(|| VolumeError::Protocol(format!("redirected to {location:?}")))
    }

    fn parse(location: &str, authority: &str) -> Option<Self> {
        let absolute = location.strip_prefix("http://").or_else(|| location.strip_prefix("https://"));
        let (authority, target) = match absolute {
            Some(rest) => rest.split_at(rest.find('/')?),
            None => (authority, location),
        };
        if authority.is_empty() || !target.starts_with('/') {
            return None;
        }
        // The server does not keep the parameter that asks for deleted needles.
        let target = match target {
            complete if complete.contains("readDeleted=") => complete.to_owned(),
            query if query.contains('?') => format!("{query}&readDeleted=true"),
            path => format!("{path}?readDeleted=true"),
        };
        Some(Self { authority: authority.to_owned(), target })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_eight_digits_in_quotes_are_a_checksum() {
        assert_eq!(etag_checksum("\"0a1B2c3d\""), Some(0x0a1b_2c3d));
        for other in ["", "0a1b2c3d", "\"0a1b2c3\"", "\"0a1b2c3d4\"", "W/\"0a1b2c3d\"", "\"+a1b2c3d\"", "\""]
        {
            assert_eq!(etag_checksum(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_range_names_both_ends_and_a_sane_total() {
        assert_eq!(ContentRange::parse("bytes 5-9/10"), Some(ContentRange { first: 5, last: 9 }));
        assert_eq!(ContentRange::parse("bytes 5-9/*"), Some(ContentRange { first: 5, last: 9 }));
        for other in
            ["", "bytes 5-4/5", "bytes 5-9/9", "bytes */10", "5-9/10", "bytes +5-9/10", "bytes 5-/10"]
        {
            assert_eq!(ContentRange::parse(other), None, "{other:?}");
        }
        assert!(ContentRange::of(u64::MAX, 2).is_err());
        assert!(ContentRange::of(0, 0).is_err());
    }

    #[test]
    fn redirects_keep_asking_for_deleted_needles() {
        let parse = |location| Redirect::parse(location, "a:1").map(|r| (r.authority, r.target));
        let to = |authority: &str, target: &str| Some((authority.to_owned(), target.to_owned()));
        assert_eq!(
            parse("http://b:2/3,01637037d6?collection=&proxied=true"),
            to("b:2", "/3,01637037d6?collection=&proxied=true&readDeleted=true")
        );
        assert_eq!(parse("https://b:2/3,01637037d6"), to("b:2", "/3,01637037d6?readDeleted=true"));
        assert_eq!(parse("/x?readDeleted=true"), to("a:1", "/x?readDeleted=true"));
        for nowhere in ["", "http://b:2", "http:///x", "ftp://b/x", "x"] {
            assert_eq!(parse(nowhere), None, "{nowhere:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "\\PC*") {
            let _ = etag_checksum(&text);
            let _ = ContentRange::parse(&text);
            let _ = ContentRange::parse(&format!("bytes {text}"));
            let _ = Redirect::parse(&text, "a:1");
        }
    }
}
