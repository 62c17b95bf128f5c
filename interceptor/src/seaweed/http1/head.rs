//! The head of a response: status, length of the body, and the few fields that this client uses.

use super::HttpError;

/// The most fields of a head. Volume servers send about ten.
const MAX_FIELDS: usize = 96;

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// It has this many bytes.
    Length(u64),
    /// It comes in chunks, each with its length.
    Chunked,
    /// It ends with the connection, so a body that is cut off looks like a whole one.
    UntilClose,
}

/// The head of a response.
#[derive(Debug)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// `Content-Encoding`.
    pub content_encoding: Option<String>,
    /// `Content-Range`.
    pub content_range: Option<String>,
    /// `ETag`.
    pub etag: Option<String>,
    /// `Location`.
    pub location: Option<String>,
    pub(super) framing: Framing,
    /// Whether the connection can be used again after the body.
    pub(super) keep_alive: bool,
}

impl Head {
    /// The length of the body in bytes, if the head says it.
    pub fn content_length(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(length) => Some(length),
            Framing::Chunked | Framing::UntilClose => None,
        }
    }

    /// Parses the head at the start of `bytes`. Returns it with its length in bytes, or `None` if
    /// it is not complete yet.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, HttpError> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        let length = match response.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err(HttpError::Head("too many fields")),
            Err(_) => return Err(HttpError::Head("malformed head")),
        };
        let mut head = Self {
            status: response.code.unwrap_or(0),
            content_encoding: None,
            content_range: None,
            etag: None,
            location: None,
            framing: Framing::UntilClose,
            keep_alive: response.version == Some(1),
        };
        for field in response.headers.iter() {
            head.take(field)?;
        }
        if matches!(head.status, 100..=199 | 204 | 304) {
            head.framing = Framing::Length(0);
        }
        Ok(Some((head, length)))
    }

    fn take(&mut self, field: &httparse::Header<'_>) -> Result<(), HttpError> {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        let text = || {
            let text = str::from_utf8(field.value).map_err(|_| HttpError::Head("a field is not text"))?;
            Ok::<_, HttpError>(text.trim().to_owned())
        };
        if is("content-length") {
            let text = text()?;
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            let length = text.parse().ok().filter(|_| digits).ok_or(HttpError::Head("bad Content-Length"))?;
            match self.framing {
                Framing::Length(other) if other != length => {
                    return Err(HttpError::Head("two values of Content-Length"));
                }
                Framing::Chunked => self.keep_alive = false,
                _ => self.framing = Framing::Length(length),
            }
        } else if is("transfer-encoding") {
            if !text()?.eq_ignore_ascii_case("chunked") {
                return Err(HttpError::Head("unknown Transfer-Encoding"));
            }
            if matches!(self.framing, Framing::Length(_)) {
                self.keep_alive = false;
            }
            self.framing = Framing::Chunked;
        } else if is("connection") {
            for option in text()?.split(',').map(str::trim) {
                if option.eq_ignore_ascii_case("close") {
                    self.keep_alive = false;
                }
            }
        } else if is("content-encoding") {
            self.content_encoding = Some(text()?);
        } else if is("content-range") {
            self.content_range = Some(text()?);
        } else if is("etag") {
            self.etag = Some(text()?);
        } else if is("location") {
            self.location = Some(text()?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(text: &str) -> Result<Head, HttpError> {
        Head::parse(text.as_bytes()).map(|parsed| parsed.expect("a whole head").0)
    }

    #[test]
    fn the_fields_that_are_used_are_parsed() {
        let text = "HTTP/1.1 206 Partial Content\r\ncontent-length: 7\r\nETAG: \"1f00\"\r\n\
                    Content-Range: bytes 0-6/9\r\nContent-Encoding: gzip\r\nLocation: /x\r\n\r\nbody";
        let (head, length) = Head::parse(text.as_bytes()).unwrap().unwrap();
        assert_eq!(length, text.len() - 4);
        assert_eq!((head.status, head.content_length(), head.keep_alive), (206, Some(7), true));
        assert_eq!(head.etag.as_deref(), Some("\"1f00\""));
        assert_eq!(head.content_range.as_deref(), Some("bytes 0-6/9"));
        assert_eq!(head.content_encoding.as_deref(), Some("gzip"));
        assert_eq!(head.location.as_deref(), Some("/x"));
    }

    #[test]
    fn fields_decide_how_the_body_ends_and_whether_the_connection_is_kept() {
        let of = |fields: &str| {
            let head = head(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).unwrap();
            (head.framing, head.keep_alive)
        };
        assert_eq!(of("Content-Length: 3\r\n"), (Framing::Length(3), true));
        assert_eq!(of("Content-Length: 3\r\nContent-Length: 3\r\n"), (Framing::Length(3), true));
        assert_eq!(of("Content-Length: 3\r\nConnection: Close\r\n"), (Framing::Length(3), false));
        assert_eq!(of("Transfer-Encoding: chunked\r\n"), (Framing::Chunked, true));
        assert_eq!(of("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n"), (Framing::Chunked, false));
        assert_eq!(of("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"), (Framing::Chunked, false));
        assert_eq!(of(""), (Framing::UntilClose, true));
        assert_eq!(head("HTTP/1.1 204 None\r\n\r\n").unwrap().framing, Framing::Length(0));
        assert!(!head("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n").unwrap().keep_alive);
    }

    #[test]
    fn contradictory_or_odd_lengths_are_refused() {
        for fields in [
            "Content-Length: 3\r\nContent-Length: 4\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: \r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
        ] {
            let parsed = head(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"));
            assert!(matches!(parsed, Err(HttpError::Head(_))), "{fields:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Head::parse(&bytes);
            let _ = Head::parse(&[b"HTTP/1.1 200 OK\r\n".as_slice(), &bytes].concat());
        }
    }
}
