//! Resolves the layout of a file of SeaweedFS: expands chunk manifests, and has the cluster fetch
//! files that are on remote storage only.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::chunks;
use crate::arrival::Arrival;
use crate::read::ReadError;
use crate::read::error::OriginError;
use crate::read::layout::FileLayout;
use crate::read::version::FileVersion;
use crate::seaweed::entry::{Chunk, Content, Entry, RemoteObject};

/// Manifests may list manifests; SeaweedFS makes one level for each factor of 10,000 chunks, so as
/// many levels as this never occur.
const MAX_DEPTH: u32 = 8;
/// Chunks of one file: 8 TB in chunks of 2 MiB, which take 224 MB of memory.
const MAX_CHUNKS: usize = 4_000_000;
/// Manifests of one file that are fetched at the same time.
const MAX_CONCURRENT_MANIFESTS: usize = 8;

/// What resolving asks the cluster for. A trait, so that it can be tested without a cluster.
pub(in crate::read) trait ChunkLists: Sync {
    /// The chunks that the needle of `chunk` lists, for a request that arrived at `arrival`.
    fn read_manifest<'a>(
        &'a self,
        chunk: &'a Chunk,
        arrival: Arrival,
    ) -> BoxFuture<'a, Result<Vec<Chunk>, ReadError>>;

    /// Has the cluster read the file at `path` from its remote storage, and returns its entry with
    /// chunks. `None` if that is not `object` any more.
    fn cache_remote<'a>(
        &'a self,
        path: &'a str,
        object: &'a RemoteObject,
    ) -> BoxFuture<'a, Result<Option<Entry>, OriginError>>;
}

/// Resolves the layout of `file`, for a request that arrived at `arrival`.
pub(in crate::read) async fn resolve(
    lists: &dyn ChunkLists,
    file: &FileVersion,
    arrival: Arrival,
) -> Result<FileLayout, ReadError> {
    let (path, size) = (file.path(), file.size());
    let encrypted = |reason: &str| ReadError::Encrypted(format!("{path}: {reason}"));
    let Some(entry) = file.origin_file::<Entry>() else {
        return Err(ReadError::Damaged(format!("{path}: is no file of this cluster")));
    };
    let listed = match &entry.content {
        Content::Chunks(chunks) => chunks.clone(),
        Content::Remote(object) => {
            let cached = lists.cache_remote(path, object).await.map_err(ReadError::Origin)?;
            let Some(cached) = cached.filter(|cached| cached.attr.size == size) else {
                return Err(ReadError::Replaced(path.to_string()));
            };
            match cached.content {
                Content::Chunks(chunks) => chunks,
                Content::Inline(bytes) => return Ok(FileLayout::inline(bytes, size)),
                Content::Encrypted { reason } => return Err(encrypted(&reason)),
                _ => {
                    let reason = "the cluster did not bring it from its remote storage";
                    return Err(ReadError::Damaged(format!("{path}: {reason}")));
                }
            }
        }
        Content::Encrypted { reason } => return Err(encrypted(reason)),
        Content::Damaged { reason } => return Err(ReadError::Damaged(format!("{path}: {reason}"))),
        Content::Inline(bytes) => return Ok(FileLayout::inline(bytes.clone(), size)),
        Content::None | Content::Target(_) => return Ok(FileLayout::inline(Bytes::new(), size)),
    };
    chunks::layout(&expand(lists, &listed, arrival).await?.into(), size)
}

/// Replaces every manifest by the chunks that it lists, in place, so that the order of the list is
/// kept. Goes level by level: what one level lists is counted before any of the next is fetched.
async fn expand(lists: &dyn ChunkLists, chunks: &[Chunk], arrival: Arrival) -> Result<Vec<Chunk>, ReadError> {
    let mut expanded = chunks.to_vec();
    let mut known = HashSet::new();
    for _ in 0..MAX_DEPTH {
        let manifests: Vec<_> = expanded.iter().filter(|chunk| chunk.is_manifest).cloned().collect();
        let Some(first) = manifests.first().map(|manifest| manifest.fid) else { return Ok(expanded) };
        if let Some(again) = manifests.iter().find(|manifest| known.contains(&manifest.fid)) {
            return Err(ReadError::Damaged(format!("chunk manifest {} lists itself", again.fid)));
        }
        known.extend(manifests.iter().map(|manifest| manifest.fid));
        let mut count = expanded.len();
        let too_many = format!("chunk manifest {first} and its like list more than {MAX_CHUNKS} chunks");
        let mut listed = VecDeque::with_capacity(manifests.len());
        let mut fetched = stream::iter(manifests)
            .map(|manifest| async move { lists.read_manifest(&manifest, arrival).await })
            .buffered(MAX_CONCURRENT_MANIFESTS);
        while let Some(list) = fetched.try_next().await? {
            count += list.len();
            if count > MAX_CHUNKS {
                return Err(ReadError::Damaged(too_many));
            }
            listed.push_back(list);
        }
        expanded = expanded
            .into_iter()
            .flat_map(|chunk| match chunk.is_manifest {
                // As many lists as there are manifests, in their order.
                true => listed.pop_front().unwrap_or_default(),
                false => vec![chunk],
            })
            .collect();
    }
    match expanded.iter().find(|chunk| chunk.is_manifest) {
        Some(deepest) => {
            Err(ReadError::Damaged(format!("chunk manifests nest too deeply at {}", deepest.fid)))
        }
        None => Ok(expanded),
    }
}
