//! One connection to a server: writes a request, reads the head of the response, and then its body
//! into the caller's memory.

use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::head::{Framing, Head};
use super::timer::{self, ExchangeTimer};
use super::{Deadlines, HttpError, HttpTimeouts, ResponsePhase};

/// The size of the read buffer in bytes, which bounds the head of a response. The response to a
/// small read fits in with its body, and so takes one system call. Of a larger one at most this
/// much is copied.
const BUFFER_SIZE: usize = 16 << 10;

/// The most that is read at once, in bytes: the caller computes the checksum of what was read
/// while it is still in the CPU's cache.
const MAX_READ: usize = 512 << 10;

/// The longest line of the chunked coding in bytes, and the most trailer lines after the last
/// chunk.
const MAX_LINE: usize = 1 << 10;
const MAX_TRAILERS: usize = 32;

enum MaybeTlsStream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl MaybeTlsStream {
    async fn connect(authority: &str, tls: Option<&Arc<ClientConfig>>) -> io::Result<Self> {
        let stream = TcpStream::connect(authority).await?;
        stream.set_nodelay(true)?;
        let Some(config) = tls else {
            return Ok(Self::Plain(stream));
        };
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        let stream = TlsConnector::from(config.clone()).connect(name, stream).await?;
        Ok(Self::Tls(Box::new(stream)))
    }

    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer).await,
            Self::Tls(stream) => stream.read(buffer).await,
        }
    }

    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(bytes).await,
            Self::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }
}

/// What comes next of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyState {
    /// This many bytes, above 0, and then the end.
    Plain(u64),
    /// The line with the length of a chunk.
    ChunkSize,
    /// The end of line after a chunk, and then a line with a length.
    ChunkEnd,
    /// This many bytes of a chunk, above 0.
    Chunk(u64),
    /// Nothing: all of it was read.
    Done,
}

pub(super) struct HttpConnection {
    stream: MaybeTlsStream,
    timer: ExchangeTimer,
    buffer: Box<[u8]>,
    /// The part of `buffer` that was read and not yet used.
    unread: std::ops::Range<usize>,
    body: BodyState,
}

impl HttpConnection {
    pub(super) async fn open(
        authority: &str,
        tls: Option<&Arc<ClientConfig>>,
        timeouts: &HttpTimeouts,
        deadlines: Deadlines,
    ) -> Result<Self, HttpError> {
        let by = timer::due(Instant::now(), timeouts.connect, deadlines);
        let timed_out = || io::Error::new(io::ErrorKind::TimedOut, "timed out");
        let stream = tokio::time::timeout_at(by, MaybeTlsStream::connect(authority, tls))
            .await
            .unwrap_or_else(|_| Err(timed_out()))
            .map_err(HttpError::Connect)?;
        Ok(Self {
            stream,
            timer: ExchangeTimer::new(timeouts.stall, deadlines),
            buffer: vec![0; BUFFER_SIZE].into(),
            unread: 0..0,
            body: BodyState::Done,
        })
    }

    /// Whether an idle connection is still open, as far as this host knows. A connection on which
    /// bytes came without a request is not usable either.
    pub(super) fn is_usable(&self) -> bool {
        let mut byte = [0];
        let quiet = self.stream.tcp().try_read(&mut byte);
        quiet.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether the body was read to its end.
    pub(super) fn is_over(&self) -> bool {
        self.body == BodyState::Done
    }

    /// Whether the body was read to its end and no bytes came after it.
    pub(super) fn is_finished(&self) -> bool {
        self.is_over() && self.unread.is_empty()
    }

    /// Whether any byte came of the response that is being waited for.
    pub(super) fn has_answered(&self) -> bool {
        self.unread.end > 0
    }

    /// Sends an encoded request and reads the head of the response.
    pub(super) async fn exchange(&mut self, request: &[u8], deadlines: Deadlines) -> Result<Head, HttpError> {
        self.timer.begin(deadlines);
        self.unread = 0..0;
        self.timer.limit(self.stream.write_all(request)).await?;
        loop {
            let mut head = self.read_head().await?;
            // Informational responses precede the real one.
            if !(100..200).contains(&head.status) {
                self.body = match head.framing {
                    Framing::Length(0) => BodyState::Done,
                    Framing::Length(length) => BodyState::Plain(length),
                    Framing::Chunked => BodyState::ChunkSize,
                    // The text of an error is not read if its end cannot be told.
                    Framing::UntilClose if head.status >= 300 => {
                        head.keep_alive = false;
                        BodyState::Done
                    }
                    Framing::UntilClose => return Err(HttpError::UnknownLength),
                };
                return Ok(head);
            }
        }
    }

    /// Reads the next bytes of the body into `dst`. Returns how many: 0 only if the body is over
    /// or `dst` is empty.
    pub(super) async fn read_body(&mut self, dst: &mut [u8]) -> Result<usize, HttpError> {
        loop {
            let left = match self.body {
                BodyState::Done => return Ok(0),
                BodyState::ChunkEnd => {
                    if !self.read_line().await?.is_empty() {
                        return Err(HttpError::Chunked);
                    }
                    self.body = BodyState::ChunkSize;
                    continue;
                }
                BodyState::ChunkSize => {
                    self.body = self.next_chunk().await?;
                    continue;
                }
                BodyState::Plain(left) | BodyState::Chunk(left) => left,
            };
            let most = dst.len().min(MAX_READ).min(usize::try_from(left).unwrap_or(usize::MAX));
            if most == 0 {
                return Ok(0);
            }
            let count = self.read_some(&mut dst[..most]).await?;
            let left = left - count as u64;
            self.body = match self.body {
                BodyState::Chunk(_) if left > 0 => BodyState::Chunk(left),
                BodyState::Chunk(_) => BodyState::ChunkEnd,
                _ if left > 0 => BodyState::Plain(left),
                _ => BodyState::Done,
            };
            return Ok(count);
        }
    }

    async fn read_head(&mut self) -> Result<Head, HttpError> {
        loop {
            if !self.unread.is_empty()
                && let Some((head, length)) = Head::parse(&self.buffer[self.unread.clone()])?
            {
                self.unread.start += length;
                return Ok(head);
            }
            let phase =
                if self.unread.is_empty() { ResponsePhase::BeforeResponse } else { ResponsePhase::Head };
            self.fill(phase).await?;
        }
    }

    /// Reads more into the buffer, after the unread part.
    async fn fill(&mut self, phase: ResponsePhase) -> Result<(), HttpError> {
        if self.unread.is_empty() {
            self.unread = 0..0;
        } else if self.unread.end == self.buffer.len() {
            if self.unread.start == 0 {
                return Err(HttpError::Head("the head is too long"));
            }
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        let count = self.timer.limit(self.stream.read(&mut self.buffer[self.unread.end..])).await?;
        if count == 0 {
            return Err(HttpError::Closed(phase));
        }
        self.unread.end += count;
        Ok(())
    }

    /// Reads at least one byte into `dst`, which is not empty: from the buffer if that has any,
    /// else from the socket.
    async fn read_some(&mut self, dst: &mut [u8]) -> Result<usize, HttpError> {
        if !self.unread.is_empty() {
            let count = self.unread.len().min(dst.len());
            dst[..count].copy_from_slice(&self.buffer[self.unread.start..][..count]);
            self.unread.start += count;
            return Ok(count);
        }
        match self.timer.limit(self.stream.read(dst)).await? {
            0 => Err(HttpError::Closed(ResponsePhase::Body)),
            count => Ok(count),
        }
    }

    /// Reads the line before a chunk; after the last chunk also the trailer.
    async fn next_chunk(&mut self) -> Result<BodyState, HttpError> {
        let line = self.read_line().await?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(HttpError::Chunked);
        }
        match u64::from_str_radix(digits, 16).map_err(|_| HttpError::Chunked)? {
            0 => {
                for _ in 0..=MAX_TRAILERS {
                    if self.read_line().await?.is_empty() {
                        return Ok(BodyState::Done);
                    }
                }
                Err(HttpError::Chunked)
            }
            length => Ok(BodyState::Chunk(length)),
        }
    }

    /// Reads a line, without its end.
    async fn read_line(&mut self) -> Result<String, HttpError> {
        loop {
            let unread = &self.buffer[self.unread.clone()];
            if let Some(length) = unread.iter().position(|&b| b == b'\n') {
                let line = unread[..length].strip_suffix(b"\r").unwrap_or(&unread[..length]);
                let line = str::from_utf8(line).map_err(|_| HttpError::Chunked)?.to_owned();
                self.unread.start += length + 1;
                return Ok(line);
            }
            if unread.len() > MAX_LINE {
                return Err(HttpError::Chunked);
            }
            self.fill(ResponsePhase::Body).await?;
        }
    }
}
