//! SeaweedFS as an origin: a file is a list of chunks, each of them a needle on a volume server.
//!
//! Nothing of it shows outside: an entry of the filer is an [`OriginFile`], a chunk becomes an
//! [`Object`], and its file id an [`ObjectId`], of which the rest of [`read`](crate::read) knows no
//! more than that equal ids mean equal bytes.
//!
//! [`ObjectId`]: crate::cache::ObjectId

pub(super) mod chunks;
mod content_id;
pub(super) mod resolve;

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::ReadError;
use super::error::OriginError;
use super::layout::{FileLayout, Object};
use super::origin::Origin;
use super::version::{FileVersion, OriginFile};
use crate::arrival::Arrival;
use crate::cache::resident::ContentId;
use crate::fetch::Fetcher;
use crate::priority::Priority;
use crate::seaweed::decode;
use crate::seaweed::entry::{Chunk, Content, Entry, RemoteObject};
use crate::seaweed::filer::FilerClient;
use crate::telemetry::Source;
use crate::timeline::Timeline;
use crate::write_target::WriteTarget;
use resolve::ChunkLists;

/// A SeaweedFS cluster: chunks by way of the source ladder, remote-only files by way of the filer.
pub struct ClusterOrigin {
    fetcher: Fetcher,
    filer: FilerClient,
}

impl ClusterOrigin {
    /// The cluster that `filer` belongs to, read through `fetcher`.
    pub fn new(fetcher: Fetcher, filer: FilerClient) -> Self {
        Self { fetcher, filer }
    }
}

impl OriginFile for Entry {
    fn size(&self) -> u64 {
        self.attr.size
    }

    fn content_id(&self) -> Option<ContentId> {
        content_id::content_id(self)
    }

    fn layout(&self) -> Option<FileLayout> {
        chunks::known_layout(self)
    }

    fn is_remote(&self) -> bool {
        matches!(self.content, Content::Remote(_))
    }

    fn encrypted(&self) -> Option<&str> {
        match &self.content {
            Content::Encrypted { reason } => Some(reason),
            _ => None,
        }
    }
}

impl Origin for ClusterOrigin {
    fn resolve<'a>(
        &'a self,
        file: &'a FileVersion,
        arrival: Arrival,
    ) -> BoxFuture<'a, Result<FileLayout, ReadError>> {
        resolve::resolve(self, file, arrival).boxed()
    }

    fn read<'a>(
        &'a self,
        object: &'a Object,
        offset: u64,
        dst: &'a mut dyn WriteTarget,
        priority: &'a Priority,
        timeline: &'a Timeline,
    ) -> BoxFuture<'a, Result<Source, OriginError>> {
        async move {
            match self.fetcher.read_chunk(&chunks::chunk(object), offset, dst, priority, timeline).await {
                Ok(fetched) => Ok(fetched.source),
                Err(error) => Err(Arc::new(error) as OriginError),
            }
        }
        .boxed()
    }
}

impl ChunkLists for ClusterOrigin {
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
