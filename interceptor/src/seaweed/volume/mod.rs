//! Reads of one needle from one volume server, over HTTP.
//!
//! There are two kinds. A **whole** read asks for the needle as it is stored, compressed or not: its `ETag` is then the CRC32C
//! of the body, which is summed up while the body arrives and compared before anything is believed (`body`). If the needle is
//! neither compressed nor encrypted, the body goes straight from the socket to its destination, otherwise it is gathered and
//! decoded from there ([`codec`](super::codec)). A **range** read asks for a part of the logical bytes; the server unpacks if it
//! must, and there is nothing to check but that the range is the one that was asked for. Encrypted needles have no ranges.
//!
//! Both ask for deleted needles as well: a reader with a slightly old list of chunks still gets the file it opened. A server that
//! does not have the volume may redirect; that is followed once. What else may come back is sorted by [`VolumeError::class`] into
//! what a caller can do about it. After any error the destination's content is undefined. [`Begun`] tells a caller who may turn to
//! another server whether this one has said anything yet.

mod answer;
mod body;
mod error;

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rdma_engine::FileId;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::time::Instant;

use super::codec::{CodecError, Stored};
use super::entry::Chunk;
use super::http1::{Client, Deadlines, Limits, Request, Response};
use super::security::Security;
use answer::{ContentRange, Redirect, is_gzip};
use body::Body;
pub use error::{Class, VolumeError};

/// More than any needle holds: the size of a record is a signed 32-bit number.
const MAX_NEEDLE: u64 = i32::MAX as u64;

/// What a stored needle may have beyond the bytes of its chunk: nonce and tag, or the overhead of bytes that do not
/// compress.
pub const OVERHEAD: u64 = 4096;

/// What a needle may have, in bytes, if its chunk has less: the chunk of a file that was truncated is cut, its needle is
/// not. Larger ones are not made in practice, and are read only if they need no memory, as they are and in order.
const MAX_UNEXPECTED: u64 = 256 << 20;

/// A list of 10,000 chunks, which is what writers put into one needle.
const USUAL_LIST: u64 = 2 << 20;

/// Work on this many bytes or more is kept away from the tasks of the same thread.
const LONG_WORK: usize = 128 << 10;

/// Where a needle is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// At a volume server, `host:port`.
    Volume(String),
    /// At a filer, `host:port`, which passes the request on to a volume server.
    Filer(String),
}

impl Place {
    /// `host:port`.
    pub fn authority(&self) -> &str {
        match self {
            Self::Volume(authority) | Self::Filer(authority) => authority,
        }
    }

    fn target(&self, fid: FileId) -> String {
        match self {
            Self::Volume(_) => format!("/{fid}?readDeleted=true"),
            Self::Filer(_) => format!("/?proxyChunkId={fid}&readDeleted=true"),
        }
    }
}

/// How an answer comes, for whoever watches a request. Errors of the server are answers too.
#[derive(Debug, Default)]
pub struct Begun {
    at: OnceLock<Instant>,
    last: Mutex<Option<Instant>>,
}

impl Begun {
    /// When it began to come; `None` if nothing has come yet.
    pub fn at(&self) -> Option<Instant> {
        self.at.get().copied()
    }

    /// When something of it came last.
    pub fn last(&self) -> Option<Instant> {
        *self.last.lock()
    }

    /// It comes now.
    pub fn now(&self) {
        let now = Instant::now();
        self.at.get_or_init(|| now);
        *self.last.lock() = Some(now);
    }
}

/// Reads needles from volume servers. A clone shares the connections.
#[derive(Clone)]
pub struct VolumeClient {
    http: Client,
    security: Arc<Security>,
}

impl VolumeClient {
    /// A client with the cluster's security and these limits for its connections.
    pub fn new(security: Arc<Security>, limits: Limits) -> Self {
        Self { http: Client::new(security.https_tls(), limits), security }
    }

    /// Reads the whole needle of `chunk` and verifies it; the logical bytes from `offset` on go to `dst`. A needle that has
    /// fewer bytes than the chunk or than `dst` needs is an error.
    pub async fn read_whole(
        &self,
        place: &Place,
        chunk: &Chunk,
        offset: u64,
        dst: &mut [u8],
        deadlines: Deadlines,
        begun: &Begun,
    ) -> Result<(), VolumeError> {
        let needed = offset.saturating_add(dst.len() as u64).max(chunk.size);
        let mut body = self.whole(place, chunk.fid, deadlines, begun).await?;
        let gzip = is_gzip(body.head())?;
        let total = if !gzip && chunk.cipher_key.is_none() {
            match body.head().content_length() {
                Some(found) if found < needed => return Err(VolumeError::Length { needed, found }),
                Some(found) if found > MAX_NEEDLE => return Err(VolumeError::TooLarge(MAX_NEEDLE)),
                _ => {}
            }
            body.skip(offset).await?;
            body.fill(dst).await?;
            body.skip(u64::MAX).await?;
            verify_unless_unpacked(&body, chunk)?;
            body.total()
        } else {
            let expected = chunk.size.saturating_add(OVERHEAD);
            let mut stored = body.gather(expected, longest(chunk), deadlines.end).await?;
            body.verify()?;
            return unpack(&mut stored.bytes, gzip, chunk, offset, dst);
        };
        if total < needed { Err(VolumeError::Length { needed, found: total }) } else { Ok(()) }
    }

    /// Reads the whole needle of `chunk`, verified and decoded, if it has no more than `limit` bytes.
    pub async fn read_needle(
        &self,
        place: &Place,
        chunk: &Chunk,
        limit: u64,
        deadlines: Deadlines,
        begun: &Begun,
    ) -> Result<Vec<u8>, VolumeError> {
        let mut body = self.whole(place, chunk.fid, deadlines, begun).await?;
        let gzip = is_gzip(body.head())?;
        let mut stored = body.gather(USUAL_LIST, limit, deadlines.end).await?.bytes;
        if !gzip && chunk.cipher_key.is_none() {
            verify_unless_unpacked(&body, chunk)?;
            return Ok(stored);
        }
        body.verify()?;
        aside(stored.len(), || open(&mut stored, gzip, chunk)?.into_vec(limit))
    }

    /// Reads the logical bytes of needle `fid` from `offset` on into `dst`, which is not empty. They must all be there.
    pub async fn read_range(
        &self,
        place: &Place,
        fid: FileId,
        offset: u64,
        dst: &mut [u8],
        deadlines: Deadlines,
        begun: &Begun,
    ) -> Result<(), VolumeError> {
        let asked = ContentRange::of(offset, dst.len())?;
        let range = format!("bytes={}-{}", asked.first, asked.last);
        let response = self.get(place, fid, ("Range", &range), deadlines, begun).await?;
        let head = response.head();
        if head.status != 206 {
            return Err(VolumeError::Protocol(format!("status {} to a request for a range", head.status)));
        }
        if is_gzip(head)? || head.content_range.as_deref().and_then(ContentRange::parse) != Some(asked) {
            let found = head.content_range.as_deref().unwrap_or("no range");
            return Err(VolumeError::Protocol(format!("{found:?} for {range:?}")));
        }
        let needed = dst.len() as u64;
        if let Some(found) = head.content_length().filter(|&found| found != needed) {
            return Err(VolumeError::Length { needed, found });
        }
        let mut body = Body::unsummed(response, begun);
        body.fill(dst).await?;
        body.skip(u64::MAX).await?;
        match body.total() {
            found if found != needed => Err(VolumeError::Length { needed, found }),
            _ => Ok(()),
        }
    }

    /// The token that a volume server, or its engine, asks for to let needle `fid` be read; none if the cluster has no tokens.
    pub fn read_token(&self, fid: FileId) -> Option<String> {
        self.security.read_token(fid)
    }

    /// Whether the server at `place` says anything by `deadline`, whatever it is.
    pub async fn answers(&self, place: &Place, deadline: Instant) -> bool {
        let request = Request { authority: place.authority(), target: "/healthz", fields: &[] };
        self.http.get(&request, deadline).await.is_ok()
    }

    /// Asks for the needle as it is stored.
    async fn whole<'a>(
        &self,
        place: &Place,
        fid: FileId,
        deadlines: Deadlines,
        begun: &'a Begun,
    ) -> Result<Body<'a>, VolumeError> {
        let response = self.get(place, fid, ("Accept-Encoding", "gzip"), deadlines, begun).await?;
        match response.head().status {
            200 => Ok(Body::summed(response, begun)),
            status => Err(VolumeError::Protocol(format!("status {status} to a request for a whole needle"))),
        }
    }

    /// Sends a request and follows a redirection. The answer has a status of success.
    async fn get(
        &self,
        place: &Place,
        fid: FileId,
        field: (&str, &str),
        deadlines: Deadlines,
        begun: &Begun,
    ) -> Result<Response, VolumeError> {
        let token = self.security.read_token(fid).map(|token| format!("Bearer {token}"));
        let fields: Vec<_> =
            std::iter::once(field).chain(token.as_deref().map(|token| ("Authorization", token))).collect();
        let target = place.target(fid);
        let request = Request { authority: place.authority(), target: &target, fields: &fields };
        let response = self.http.get(&request, deadlines).await?;
        let Some(redirect) = Redirect::of(response.head(), place.authority())? else {
            begun.now();
            return answer::success(response).await;
        };
        drop(response);
        let request = Request { authority: &redirect.authority, target: &redirect.target, fields: &fields };
        let response = self.http.get(&request, deadlines).await?;
        begun.now();
        if Redirect::of(response.head(), &redirect.authority)?.is_some() {
            return Err(VolumeError::Protocol("redirected more than once".to_owned()));
        }
        answer::success(response).await
    }
}

/// Compares the checksum of a needle that came as it is. A chunk that its writer compressed and that comes plain was unpacked
/// on the way: the `ETag` is then the checksum of bytes that were never seen.
fn verify_unless_unpacked(body: &Body, chunk: &Chunk) -> Result<(), VolumeError> {
    if chunk.is_compressed { Ok(()) } else { body.verify() }
}

/// Undoes what was done to the needle of `chunk` when it was `stored`, and takes the logical bytes from `offset` on to `dst`. A needle
/// that has fewer bytes than the chunk or than `dst` needs is an error. `stored` is used up.
pub fn unpack(
    stored: &mut Vec<u8>,
    gzip: bool,
    chunk: &Chunk,
    offset: u64,
    dst: &mut [u8],
) -> Result<(), VolumeError> {
    let needed = offset.saturating_add(dst.len() as u64).max(chunk.size);
    let found = aside(dst.len().max(stored.len()), || {
        open(stored, gzip, chunk)?.copy_into(offset, dst, longest(chunk))
    })?;
    if found < needed { Err(VolumeError::Length { needed, found }) } else { Ok(()) }
}

fn open<'a>(stored: &'a mut Vec<u8>, gzip: bool, chunk: &Chunk) -> Result<Stored<'a>, CodecError> {
    // What is encrypted hardly compresses: gzip around it adds or saves little.
    let limit = stored.len() as u64 + stored.len() as u64 / 2 + OVERHEAD;
    Stored::open(stored, gzip, chunk.cipher_key.as_deref(), chunk.is_compressed, limit)
}

/// The most bytes that the needle of `chunk` may have, stored or unpacked.
fn longest(chunk: &Chunk) -> u64 {
    chunk.size.saturating_add(OVERHEAD).max(MAX_UNEXPECTED)
}

/// Does `work`, on about `bytes` bytes, so that the other tasks of this thread need not wait for it.
fn aside<T>(bytes: usize, work: impl FnOnce() -> Result<T, CodecError>) -> Result<T, VolumeError> {
    let others = Handle::current().runtime_flavor() != RuntimeFlavor::CurrentThread;
    let outcome = if others && bytes >= LONG_WORK { tokio::task::block_in_place(work) } else { work() };
    Ok(outcome?)
}

#[cfg(test)]
mod tests;
