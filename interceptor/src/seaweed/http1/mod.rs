//! A small HTTP/1.1 client for volume servers, made for one thing: a body goes from the socket straight into the memory
//! that the caller has for it.
//!
//! [`Client::get`] takes an idle connection of the server, or opens one, writes the request in one piece and parses the
//! head of the answer (`head`). The [`Response`] then hands out the body by [`Response::read`]: what came along with the
//! head is copied, the rest is read by the kernel into the caller's buffer (`connection`). With the last byte of
//! the body the connection goes back to the pool (`pool`); an answer that is not read to its end takes its connection
//! with it, so that dropping any of these futures is safe at any point.
//!
//! Everything has a limit in time: connecting, the time without any progress, and a deadline per request (`timer`). A
//! pooled connection that turns out to be closed before a byte of the answer came is replaced once by a new one; any
//! other failure is the caller's to judge.

mod connection;
mod head;
mod pool;
mod timer;

use std::fmt;
use std::io;
use std::time::Duration;

use tokio::time::Instant;

pub use head::Head;
pub use pool::{Client, Response};

/// Limits of a [`Client`].
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long a connection may take to be established, TLS included.
    pub connect: Duration,
    /// How long a server may send nothing while something is expected of it.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connect: Duration::from_secs(3), stall: Duration::from_secs(5) }
    }
}

/// By when one request must be over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// From then on the server may be silent for a second at most; what comes in goes on coming in.
    pub silence: Instant,
    /// When all of the answer must be there.
    pub end: Instant,
}

impl From<Instant> for Deadlines {
    fn from(end: Instant) -> Self {
        Self { silence: end, end }
    }
}

/// One GET request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// `host:port`.
    pub authority: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// Header fields beside `Host` and `User-Agent`.
    pub fields: &'a [(&'a str, &'a str)],
}

impl Request<'_> {
    /// The request as it goes over the wire; refused if a part has a character that would end it early.
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

/// Why a request has no complete answer.
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
    /// The server closed the connection where more was due.
    #[error("the server closed the connection {0}")]
    Closed(Where),
    /// Nothing came for longer than the limit.
    #[error("the server sent nothing for {0:?}")]
    Stalled(Duration),
    /// The request's deadline passed.
    #[error("the deadline passed")]
    Deadline,
    /// The head of the answer is no HTTP.
    #[error("the answer is no HTTP: {0}")]
    Head(&'static str),
    /// The answer does not say how long it is.
    #[error("the answer does not say how long it is")]
    UnknownLength,
    /// The chunked coding of the body is broken.
    #[error("the chunked coding of the answer is broken")]
    Chunked,
}

/// Where in an exchange something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    /// Before the first byte of the answer.
    BeforeAnswer,
    /// Within the head of the answer.
    Head,
    /// Within the body.
    Body,
}

impl fmt::Display for Where {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BeforeAnswer => "before it answered",
            Self::Head => "within the head of its answer",
            Self::Body => "within the body of its answer",
        })
    }
}

#[cfg(test)]
mod tests;
