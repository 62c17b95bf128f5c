//! The filer, as the namespace uses it.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};

use crate::arrival::Arrival;
use crate::seaweed::entry::Entry;
use crate::seaweed::filer::{FilerClient, FilerError, FoundEntry};

/// Why a filer gave no answer. Shared by all requests that wait for the same answer.
pub type FilerFailure = Arc<dyn std::error::Error + Send + Sync>;

/// The source of names: a filer, or a model of one in tests. Each call has a deadline of its own.
pub trait Filer: Send + Sync + 'static {
    /// The entry `name` of the directory with this full path, if it exists, for a request that
    /// came at `arrival`.
    fn lookup(
        &self,
        directory: &str,
        name: &str,
        arrival: Arrival,
    ) -> BoxFuture<'static, Result<FoundEntry, FilerFailure>>;

    /// The first `limit` entries of a directory behind the name `after`, sorted by the bytes of
    /// names, with their chunks. Fewer entries are all that are left; a directory that does not
    /// exist has none.
    fn list(
        &self,
        directory: &str,
        after: &str,
        limit: usize,
    ) -> BoxStream<'static, Result<Entry, FilerFailure>>;

    /// The usage of the cluster.
    fn cluster_usage(&self) -> BoxFuture<'static, Result<ClusterUsage, FilerFailure>>;
}

/// The usage of a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClusterUsage {
    /// Its capacity in bytes.
    pub total: u64,
    /// Used bytes.
    pub used: u64,
    /// The number of files.
    pub files: u64,
}

/// Why a request about a name or a node fails.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NamespaceError {
    /// The node does not exist any more, or its name is gone.
    #[error("stale node")]
    Stale,
    /// The node is not a directory.
    #[error("not a directory")]
    NotDirectory,
    /// The caller is being killed.
    #[error("the caller is being killed")]
    Killed,
    /// The filer did not answer.
    #[error("filer: {0}")]
    Filer(FilerFailure),
}

fn shared(error: FilerError) -> FilerFailure {
    Arc::new(error)
}

impl Filer for FilerClient {
    fn lookup(
        &self,
        directory: &str,
        name: &str,
        arrival: Arrival,
    ) -> BoxFuture<'static, Result<FoundEntry, FilerFailure>> {
        let (filer, directory, name) = (self.clone(), directory.to_owned(), name.to_owned());
        async move { FilerClient::lookup(&filer, &directory, &name, arrival).await.map_err(shared) }.boxed()
    }

    fn list(
        &self,
        directory: &str,
        after: &str,
        limit: usize,
    ) -> BoxStream<'static, Result<Entry, FilerFailure>> {
        FilerClient::list(self, directory, after, limit).map(|entry| entry.map_err(shared)).boxed()
    }

    fn cluster_usage(&self) -> BoxFuture<'static, Result<ClusterUsage, FilerFailure>> {
        let filer = self.clone();
        async move {
            let statistics = filer.statistics().await.map_err(shared)?;
            Ok(ClusterUsage {
                total: statistics.total_bytes,
                used: statistics.used_bytes,
                files: statistics.files,
            })
        }
        .boxed()
    }
}
