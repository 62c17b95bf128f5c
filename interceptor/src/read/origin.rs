//! Where bytes come from when they are not in the cache.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use rdma_engine::FileId;

use super::ReadError;
use crate::arrival::Arrival;
use crate::cache::ObjectId;
use crate::fetch::{Fetcher, Fillable, Priority};
use crate::seaweed::decode;
use crate::seaweed::entry::{Chunk, Entry, RemoteObject};
use crate::seaweed::filer::FilerClient;
use crate::telemetry::Source;

/// An error of an origin, shared by all reads that waited for it.
pub type OriginError = Arc<dyn std::error::Error + Send + Sync>;

/// What a reader needs of the world outside. A trait, so that reading can be tested without a cluster.
pub trait Origin: Send + Sync + 'static {
    /// Fills `dst` with the bytes of `chunk` from `offset` on, in the chunk's own, decoded bytes; how urgently, may change
    /// meanwhile.
    fn read_chunk<'a>(
        &'a self,
        chunk: &'a Chunk,
        offset: u64,
        dst: &'a mut dyn Fillable,
        priority: &'a Priority,
    ) -> BoxFuture<'a, Result<Source, OriginError>>;

    /// The whole decoded content of the needle of `chunk`, which is a list of chunks, for a request that arrived at `arrival`.
    fn read_manifest<'a>(
        &'a self,
        chunk: &'a Chunk,
        arrival: Arrival,
    ) -> BoxFuture<'a, Result<Vec<Chunk>, ReadError>>;

    /// Has the cluster read the file at `path` from its remote storage, and returns its entry with chunks. `None` if that
    /// is not `object` any more.
    fn cache_remote<'a>(
        &'a self,
        path: &'a str,
        object: &'a RemoteObject,
    ) -> BoxFuture<'a, Result<Option<Entry>, OriginError>>;
}

/// Volume, cookie and key are 128 bits, so no two needles have the same id. A needle never changes
/// under its file id.
impl From<FileId> for ObjectId {
    fn from(fid: FileId) -> Self {
        Self(u128::from(fid.volume) << 96 | u128::from(fid.cookie) << 64 | u128::from(fid.key))
    }
}

/// A SeaweedFS cluster as an origin: chunks by way of the source ladder, remote-only files by way of the filer.
pub struct Cluster {
    fetcher: Fetcher,
    filer: FilerClient,
}

impl Cluster {
    /// The cluster that `filer` belongs to, read through `fetcher`.
    pub fn new(fetcher: Fetcher, filer: FilerClient) -> Self {
        Self { fetcher, filer }
    }
}

impl Origin for Cluster {
    fn read_chunk<'a>(
        &'a self,
        chunk: &'a Chunk,
        offset: u64,
        dst: &'a mut dyn Fillable,
        priority: &'a Priority,
    ) -> BoxFuture<'a, Result<Source, OriginError>> {
        async move {
            match self.fetcher.read_chunk(chunk, offset, dst, priority).await {
                Ok(fetched) => Ok(fetched.source),
                Err(error) => Err(Arc::new(error) as OriginError),
            }
        }
        .boxed()
    }

    fn read_manifest<'a>(
        &'a self,
        chunk: &'a Chunk,
        arrival: Arrival,
    ) -> BoxFuture<'a, Result<Vec<Chunk>, ReadError>> {
        async move {
            let read = self.fetcher.read_needle(chunk, arrival).await;
            let content = read.map_err(|error| ReadError::Origin(Arc::new(error)))?;
            decode::manifest(&content).map_err(|error| {
                let reason = format!("chunk manifest {}: {error}", chunk.fid);
                if error.is_encrypted() { ReadError::Encrypted(reason) } else { ReadError::Damaged(reason) }
            })
        }
        .boxed()
    }

    fn cache_remote<'a>(
        &'a self,
        path: &'a str,
        object: &'a RemoteObject,
    ) -> BoxFuture<'a, Result<Option<Entry>, OriginError>> {
        async move {
            let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
            let directory = if directory.is_empty() { "/" } else { directory };
            let cached = self.filer.cache_remote(directory, name, object).await;
            cached.map_err(|error| Arc::new(error) as OriginError)
        }
        .boxed()
    }
}
