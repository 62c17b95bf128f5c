//! One connection to a server: writes a request, reads the head of the answer, and then its body into the caller's memory.

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
use super::timer::{self, Timer};
use super::{Deadlines, HttpError, Limits, Where};

/// The read buffer, which bounds the head of an answer. The answer to a small read fits with its body, so that it takes
/// one system call; of a larger one at most this much is copied.
const BUFFER: usize = 16 << 10;

/// The most that is read at once: the caller sums up what was read while it is still in the processor's cache.
const MAX_READ: usize = 512 << 10;

/// What a line of the chunked coding may have in bytes, and how many trailer lines may follow the last chunk.
const MAX_LINE: usize = 1 << 10;
const MAX_TRAILERS: usize = 32;

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
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

/// Where the reader of a body stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    /// This many bytes are left, and then it is over.
    Plain(u64),
    /// A chunk's length line comes next.
    ChunkSize,
    /// The end of line after a chunk comes next, and then a length line.
    ChunkEnd,
    /// This many bytes are left of the chunk, above 0.
    Chunk(u64),
    /// All of it was read.
    Done,
}

pub(super) struct Connection {
    stream: Stream,
    timer: Timer,
    buffer: Box<[u8]>,
    /// What was read into `buffer` and not yet used.
    unread: std::ops::Range<usize>,
    body: Body,
}

impl Connection {
    pub(super) async fn open(
        authority: &str,
        tls: Option<&Arc<ClientConfig>>,
        limits: &Limits,
        deadlines: Deadlines,
    ) -> Result<Self, HttpError> {
        let by = timer::due(Instant::now(), limits.connect, deadlines);
        let timed_out = || io::Error::new(io::ErrorKind::TimedOut, "timed out");
        let stream = tokio::time::timeout_at(by, Stream::connect(authority, tls))
            .await
            .unwrap_or_else(|_| Err(timed_out()))
            .map_err(HttpError::Connect)?;
        Ok(Self {
            stream,
            timer: Timer::new(limits.stall, deadlines),
            buffer: vec![0; BUFFER].into(),
            unread: 0..0,
            body: Body::Done,
        })
    }

    /// Whether an idle connection is still open, as far as this host knows. One that has something to say on its own is not
    /// usable either.
    pub(super) fn is_usable(&self) -> bool {
        let mut byte = [0];
        let quiet = self.stream.tcp().try_read(&mut byte);
        quiet.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether the body was read to its end.
    pub(super) fn is_over(&self) -> bool {
        self.body == Body::Done
    }

    /// Whether the body was read to its end and nothing came after it.
    pub(super) fn is_finished(&self) -> bool {
        self.is_over() && self.unread.is_empty()
    }

    /// Whether anything came of the answer that is being waited for.
    pub(super) fn has_answered(&self) -> bool {
        self.unread.end > 0
    }

    /// Sends an encoded request and reads the head of the answer.
    pub(super) async fn exchange(&mut self, request: &[u8], deadlines: Deadlines) -> Result<Head, HttpError> {
        self.timer.begin(deadlines);
        self.unread = 0..0;
        self.timer.limit(self.stream.write_all(request)).await?;
        loop {
            let mut head = self.read_head().await?;
            // Informational answers precede the real one.
            if !(100..200).contains(&head.status) {
                self.body = match head.framing {
                    Framing::Length(0) => Body::Done,
                    Framing::Length(length) => Body::Plain(length),
                    Framing::Chunked => Body::ChunkSize,
                    // What an error has to say is not worth the doubt whether it is all of it.
                    Framing::UntilClose if head.status >= 300 => {
                        head.keep_alive = false;
                        Body::Done
                    }
                    Framing::UntilClose => return Err(HttpError::UnknownLength),
                };
                return Ok(head);
            }
        }
    }

    /// Reads the next bytes of the body into `dst`: how many, 0 only if the body is over or `dst` is empty.
    pub(super) async fn read_body(&mut self, dst: &mut [u8]) -> Result<usize, HttpError> {
        loop {
            let left = match self.body {
                Body::Done => return Ok(0),
                Body::ChunkEnd => {
                    if !self.read_line().await?.is_empty() {
                        return Err(HttpError::Chunked);
                    }
                    self.body = Body::ChunkSize;
                    continue;
                }
                Body::ChunkSize => {
                    self.body = self.next_chunk().await?;
                    continue;
                }
                Body::Plain(left) | Body::Chunk(left) => left,
            };
            let most = dst.len().min(MAX_READ).min(usize::try_from(left).unwrap_or(usize::MAX));
            if most == 0 {
                return Ok(0);
            }
            let count = self.read_some(&mut dst[..most]).await?;
            let left = left - count as u64;
            self.body = match self.body {
                Body::Chunk(_) if left > 0 => Body::Chunk(left),
                Body::Chunk(_) => Body::ChunkEnd,
                _ if left > 0 => Body::Plain(left),
                _ => Body::Done,
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
            let place = if self.unread.is_empty() { Where::BeforeAnswer } else { Where::Head };
            self.fill(place).await?;
        }
    }

    /// Reads more into the buffer, behind what is unread.
    async fn fill(&mut self, place: Where) -> Result<(), HttpError> {
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
            return Err(HttpError::Closed(place));
        }
        self.unread.end += count;
        Ok(())
    }

    /// Reads at least a byte into `dst`, which is not empty: from the buffer if that has any, else from the socket.
    async fn read_some(&mut self, dst: &mut [u8]) -> Result<usize, HttpError> {
        if !self.unread.is_empty() {
            let count = self.unread.len().min(dst.len());
            dst[..count].copy_from_slice(&self.buffer[self.unread.start..][..count]);
            self.unread.start += count;
            return Ok(count);
        }
        match self.timer.limit(self.stream.read(dst)).await? {
            0 => Err(HttpError::Closed(Where::Body)),
            count => Ok(count),
        }
    }

    /// Reads the line before a chunk, and after the last one the trailer.
    async fn next_chunk(&mut self) -> Result<Body, HttpError> {
        let line = self.read_line().await?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(HttpError::Chunked);
        }
        match u64::from_str_radix(digits, 16).map_err(|_| HttpError::Chunked)? {
            0 => {
                for _ in 0..=MAX_TRAILERS {
                    if self.read_line().await?.is_empty() {
                        return Ok(Body::Done);
                    }
                }
                Err(HttpError::Chunked)
            }
            length => Ok(Body::Chunk(length)),
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
            self.fill(Where::Body).await?;
        }
    }
}
