//! Reads one needle from one volume server over HTTP.
//!
//! There are two kinds of reads. A **whole** read asks for the needle as it is stored, compressed
//! or not. Its `ETag` is then the CRC32C of the body, which is computed while the body arrives and
//! compared before any byte is believed (`body`). If the needle is neither compressed nor
//! encrypted, the body goes straight from the socket to its destination; otherwise it is gathered
//! and decoded from there ([`codec`](super::codec)). A **range** read asks for a part of the
//! logical bytes. The server unpacks if it must, and only the range itself can be checked.
//! Encrypted needles have no ranges.
//!
//! Both ask for deleted needles as well, so that a reader with a slightly old list of chunks still
//! gets the file it opened. A server that does not have the volume may redirect; one redirect is
//! followed. All errors are sorted by [`VolumeError::class`] into what a caller can do about them.
//! After an error the destination's content is undefined. [`ResponseProgress`] tells a caller that
//! may hedge whether the needle has begun to come.

mod body;
mod error;
mod response;

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rdma_engine::FileId;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::time::Instant;

use super::codec::{CodecError, PartlyDecoded};
use super::entry::Chunk;
use super::http1::{Deadlines, GetRequest, HttpClient, HttpTimeouts, Response};
use super::security::Security;
use crate::timeline::{StepKind, Timeline};
use body::BodyReader;
pub use error::{ErrorClass, VolumeError};
use response::{ContentRange, Redirect, is_gzip};

/// The largest needle, in bytes: the size of a record is a signed 32-bit number.
const MAX_NEEDLE: u64 = i32::MAX as u64;

/// What a stored needle may have beyond the bytes of its chunk: nonce and tag, or the overhead of
/// a compression that does not make it smaller.
pub const MAX_NEEDLE_OVERHEAD: u64 = 4096;

/// The largest needle in bytes that is longer than its chunk and is read to memory. Truncating a
/// file cuts its chunk and not the needle. Larger ones do not occur in practice, and are read only
/// if they need no decoding, and so no memory.
const MAX_OVERSIZED_NEEDLE: u64 = 256 << 20;

/// The size in bytes of a list of 10,000 chunks, which is what writers put into one needle.
const EXPECTED_MANIFEST_SIZE: u64 = 2 << 20;

/// Decoding this many bytes or more is moved out of the way of the other tasks of the thread.
const MIN_BLOCKING_WORK: usize = 128 << 10;

/// The server that a needle is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NeedleEndpoint {
    /// A volume server, `host:port`.
    Volume(String),
    /// A filer, `host:port`, which passes the request on to a volume server.
    FilerProxy(String),
}

impl NeedleEndpoint {
    /// `host:port`.
    pub fn authority(&self) -> &str {
        match self {
            Self::Volume(authority) | Self::FilerProxy(authority) => authority,
        }
    }

    fn target(&self, fid: FileId) -> String {
        match self {
            Self::Volume(_) => format!("/{fid}?readDeleted=true"),
            Self::FilerProxy(_) => format!("/?proxyChunkId={fid}&readDeleted=true"),
        }
    }
}

/// When bytes of a response came, and what else takes time within a request.
#[derive(Debug, Default)]
pub struct ResponseProgress {
    timeline: Timeline,
    first_byte_at: OnceLock<Instant>,
    last_byte_at: Mutex<Option<Instant>>,
}

impl ResponseProgress {
    /// Nothing has come yet. How long connecting and unpacking take goes to `timeline`.
    pub fn of(timeline: Timeline) -> Self {
        Self { timeline, first_byte_at: OnceLock::new(), last_byte_at: Mutex::default() }
    }

    /// When the first byte came of a response that is none of an error; `None` if none has come
    /// yet.
    pub fn first_byte_at(&self) -> Option<Instant> {
        self.first_byte_at.get().copied()
    }

    /// When the last byte so far came, of any response.
    pub fn last_byte_at(&self) -> Option<Instant> {
        *self.last_byte_at.lock()
    }

    /// Records that bytes of the needle come now.
    pub fn record(&self) {
        let now = self.record_answer();
        self.first_byte_at.get_or_init(|| now);
    }

    /// Records that bytes come now, of whatever it may be. Returns the time.
    fn record_answer(&self) -> Instant {
        let now = Instant::now();
        *self.last_byte_at.lock() = Some(now);
        now
    }
}

/// Reads needles from volume servers. A clone shares the connections.
#[derive(Clone)]
pub struct VolumeClient {
    http: HttpClient,
    security: Arc<Security>,
}

impl VolumeClient {
    /// A client with the cluster's security and these time limits of its connections.
    pub fn new(security: Arc<Security>, timeouts: HttpTimeouts) -> Self {
        Self { http: HttpClient::new(security.https_tls(), timeouts), security }
    }

    /// Reads the whole needle of `chunk` and verifies it. The logical bytes from `offset` on go to
    /// `dst`. A needle with fewer bytes than the chunk has or `dst` needs is an error.
    pub async fn read_whole(
        &self,
        endpoint: &NeedleEndpoint,
        chunk: &Chunk,
        offset: u64,
        dst: &mut [u8],
        deadlines: Deadlines,
        progress: &ResponseProgress,
    ) -> Result<(), VolumeError> {
        let needed = offset.saturating_add(dst.len() as u64).max(chunk.size);
        let mut body = self.whole(endpoint, chunk.fid, deadlines, progress).await?;
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
            let expected = chunk.size.saturating_add(MAX_NEEDLE_OVERHEAD);
            let mut stored = body.gather(expected, max_needle_size(chunk), deadlines.end).await?;
            body.verify()?;
            let unpacking = progress.timeline.begin_at(StepKind::Unpack, endpoint.authority());
            let unpacked = unpack(&mut stored.bytes, gzip, chunk, offset, dst);
            unpacking.end_with(&unpacked);
            return unpacked;
        };
        if total < needed { Err(VolumeError::Length { needed, found: total }) } else { Ok(()) }
    }

    /// Reads the whole needle of `chunk`, verified and decoded. More than `limit` bytes are an
    /// error.
    pub async fn read_needle(
        &self,
        endpoint: &NeedleEndpoint,
        chunk: &Chunk,
        limit: u64,
        deadlines: Deadlines,
        progress: &ResponseProgress,
    ) -> Result<Vec<u8>, VolumeError> {
        let mut body = self.whole(endpoint, chunk.fid, deadlines, progress).await?;
        let gzip = is_gzip(body.head())?;
        let mut stored = body.gather(EXPECTED_MANIFEST_SIZE, limit, deadlines.end).await?.bytes;
        if !gzip && chunk.cipher_key.is_none() {
            verify_unless_unpacked(&body, chunk)?;
            return Ok(stored);
        }
        body.verify()?;
        run_blocking(stored.len(), || open(&mut stored, gzip, chunk)?.into_vec(limit))
    }

    /// Reads the logical bytes of needle `fid` from `offset` on into `dst`, which is not empty.
    /// Fewer bytes than that are an error.
    pub async fn read_range(
        &self,
        endpoint: &NeedleEndpoint,
        fid: FileId,
        offset: u64,
        dst: &mut [u8],
        deadlines: Deadlines,
        progress: &ResponseProgress,
    ) -> Result<(), VolumeError> {
        let asked = ContentRange::of(offset, dst.len())?;
        let range = format!("bytes={}-{}", asked.first, asked.last);
        let response = self.get(endpoint, fid, ("Range", &range), deadlines, progress).await?;
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
        let mut body = BodyReader::without_checksum(response, progress);
        body.fill(dst).await?;
        body.skip(u64::MAX).await?;
        match body.total() {
            found if found != needed => Err(VolumeError::Length { needed, found }),
            _ => Ok(()),
        }
    }

    /// The token with which a volume server, or its engine, lets needle `fid` be read; `None` if
    /// the cluster has no tokens.
    pub fn read_token(&self, fid: FileId) -> Option<String> {
        self.security.read_token(fid)
    }

    /// Whether the server at `endpoint` sends any response by `deadline`.
    pub async fn answers(&self, endpoint: &NeedleEndpoint, deadline: Instant) -> bool {
        let request = GetRequest { authority: endpoint.authority(), target: "/healthz", fields: &[] };
        self.http.get(&request, deadline, &Timeline::default()).await.is_ok()
    }

    /// Asks for the needle as it is stored.
    async fn whole<'a>(
        &self,
        endpoint: &NeedleEndpoint,
        fid: FileId,
        deadlines: Deadlines,
        progress: &'a ResponseProgress,
    ) -> Result<BodyReader<'a>, VolumeError> {
        let response = self.get(endpoint, fid, ("Accept-Encoding", "gzip"), deadlines, progress).await?;
        match response.head().status {
            200 => Ok(BodyReader::with_checksum(response, progress)),
            status => Err(VolumeError::Protocol(format!("status {status} to a request for a whole needle"))),
        }
    }

    /// Sends a request and follows one redirect. Returns a response with a status of success.
    async fn get(
        &self,
        endpoint: &NeedleEndpoint,
        fid: FileId,
        field: (&str, &str),
        deadlines: Deadlines,
        progress: &ResponseProgress,
    ) -> Result<Response, VolumeError> {
        let token = self.security.read_token(fid).map(|token| format!("Bearer {token}"));
        let fields: Vec<_> =
            std::iter::once(field).chain(token.as_deref().map(|token| ("Authorization", token))).collect();
        let target = endpoint.target(fid);
        let request = GetRequest { authority: endpoint.authority(), target: &target, fields: &fields };
        let mut response = self.http.get(&request, deadlines, &progress.timeline).await?;
        if let Some(redirect) = Redirect::of(response.head(), endpoint.authority())? {
            drop(response);
            let request =
                GetRequest { authority: &redirect.authority, target: &redirect.target, fields: &fields };
            response = self.http.get(&request, deadlines, &progress.timeline).await?;
            if Redirect::of(response.head(), &redirect.authority)?.is_some() {
                return Err(VolumeError::Protocol("redirected more than once".to_owned()));
            }
        }
        progress.record_answer();
        let response = response::success(response).await?;
        progress.record();
        Ok(response)
    }
}

/// Verifies the checksum of a needle that came without encoding. A chunk that its writer
/// compressed and that comes plain was unpacked on the way: the `ETag` is then the checksum of
/// bytes that did not come.
fn verify_unless_unpacked(body: &BodyReader, chunk: &Chunk) -> Result<(), VolumeError> {
    if chunk.is_compressed { Ok(()) } else { body.verify() }
}

/// Decodes the `stored` bytes of the needle of `chunk`, and copies the logical bytes from `offset`
/// on to `dst`. A needle with fewer bytes than the chunk has or `dst` needs is an error. `stored`
/// is overwritten.
pub fn unpack(
    stored: &mut Vec<u8>,
    gzip: bool,
    chunk: &Chunk,
    offset: u64,
    dst: &mut [u8],
) -> Result<(), VolumeError> {
    let needed = offset.saturating_add(dst.len() as u64).max(chunk.size);
    let found = run_blocking(dst.len().max(stored.len()), || {
        open(stored, gzip, chunk)?.copy_into(offset, dst, max_needle_size(chunk))
    })?;
    if found < needed { Err(VolumeError::Length { needed, found }) } else { Ok(()) }
}

fn open<'a>(stored: &'a mut Vec<u8>, gzip: bool, chunk: &Chunk) -> Result<PartlyDecoded<'a>, CodecError> {
    // Encrypted bytes hardly compress: gzip around them adds or saves little.
    let limit = stored.len() as u64 + stored.len() as u64 / 2 + MAX_NEEDLE_OVERHEAD;
    PartlyDecoded::open(stored, gzip, chunk.cipher_key.as_deref(), chunk.is_compressed, limit)
}

/// The most bytes that the needle of `chunk` may have, stored or decoded.
fn max_needle_size(chunk: &Chunk) -> u64 {
    chunk.size.saturating_add(MAX_NEEDLE_OVERHEAD).max(MAX_OVERSIZED_NEEDLE)
}

/// Does `work`, on about `bytes` bytes. If that is long, the other tasks of this thread move to
/// another thread first.
fn run_blocking<T>(bytes: usize, work: impl FnOnce() -> Result<T, CodecError>) -> Result<T, VolumeError> {
    let can_move = Handle::current().runtime_flavor() != RuntimeFlavor::CurrentThread;
    let outcome =
        if can_move && bytes >= MIN_BLOCKING_WORK { tokio::task::block_in_place(work) } else { work() };
    Ok(outcome?)
}

#[cfg(test)]
mod tests;
