//! A small HTTP/1.1 client for volume servers. It is made for one thing: a body goes from the
//! socket straight into memory of the caller.
//!
//! [`HttpClient::get`] takes an idle connection of the server, or opens one, writes the request in
//! one piece and parses the head of the response (`head`). [`Response::read`] then reads the body:
//! bytes that came along with the head are copied, the rest goes from the kernel into the caller's
//! buffer (`connection`). With the last byte of the body the connection returns to the pool
//! (`pool`). A response that is dropped before closes its connection, so dropping any of these
//! futures is safe at any point.
//!
//! All steps have time limits: connecting, the time without progress, and deadlines per request
//! (`timer`). A pooled connection that turns out to be closed before a byte of the response came
//! is replaced once by a new one. Any other failure is returned to the caller.

mod connection;
mod head;
mod pool;
mod timer;

use std::fmt;
use std::io;
use std::time::Duration;

use tokio::time::Instant;

pub use head::Head;
pub use pool::{HttpClient, Response};

/// Time limits of an [`HttpClient`].
#[derive(Debug, Clone)]
pub struct HttpTimeouts {
    /// How long a connection may take to be established, TLS included.
    pub connect: Duration,
    /// How long a server may send nothing while a response is due.
    pub stall: Duration,
}

impl Default for HttpTimeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(3), stall: Duration::from_secs(5) }
    }
}

/// When one request must be over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// From then on the server may send nothing for a second at most. A response that comes in
    /// goes on.
    pub silence: Instant,
    /// When all of the response must have come.
    pub end: Instant,
}

impl From<Instant> for Deadlines {
    fn from(end: Instant) -> Self {
        Self { silence: end, end }
    }
}

/// One GET request.
#[derive(Debug, Clone, Copy)]
pub struct GetRequest<'a> {
    /// `host:port`.
    pub authority: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// Header fields beside `Host` and `User-Agent`.
    pub fields: &'a [(&'a str, &'a str)],
}

impl GetRequest<'_> {
    /// The request as it is sent. Refused if a part has a character that would end that part
    /// early.
    fn encode(&self) -> Result<Vec<u8>, HttpError> {
        let visible = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
        let printable = |text: &str| text.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
        if self.authority.is_empty() || !visible(self.authority) || !visible(self.target) {
            return Err(HttpError::BadRequest);
        }
        let mut text = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: interceptor/{}\r\n",
            self.target,
            self.authority,
            env!("CARGO_PKG_VERSION"),
        );
        for (name, value) in self.fields {
            if !visible(name) || !printable(value) {
                return Err(HttpError::BadRequest);
            }
            text.extend([name, ": ", value, "\r\n"]);
        }
        text.push_str("\r\n");
        Ok(text.into_bytes())
    }
}

/// Why a request has no complete response.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The server's address or the request has characters that HTTP does not allow there.
    #[error("the address or the request has characters that are not allowed in HTTP")]
    BadRequest,
    /// No connection could be made.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// The connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The server closed the connection before the end of the response.
    #[error("the server closed the connection {0}")]
    Closed(ResponsePhase),
    /// Nothing came for longer than the time limit.
    #[error("the server sent nothing for {0:?}")]
    Stalled(Duration),
    /// The request's deadline passed.
    #[error("the deadline passed")]
    Deadline,
    /// The head of the response is no HTTP.
    #[error("the answer is no HTTP: {0}")]
    Head(&'static str),
    /// The response does not say how long it is.
    #[error("the answer does not say how long it is")]
    UnknownLength,
    /// The chunked coding of the body is broken.
    #[error("the chunked coding of the answer is broken")]
    Chunked,
}

/// How far a response had come when the connection was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponsePhase {
    /// Before its first byte.
    BeforeResponse,
    /// Within its head.
    Head,
    /// Within its body.
    Body,
}

impl fmt::Display for ResponsePhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BeforeResponse => "before it answered",
            Self::Head => "within the head of its answer",
            Self::Body => "within the body of its answer",
        })
    }
}

#[cfg(test)]
mod tests;
