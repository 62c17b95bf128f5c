//! The local socket of a volume that nothing is written to.
//!
//! The driver passes the quota of a volume to its mount (`Configure`), after mounting and when the
//! claim grows. A quota bounds what is written, so there is nothing to do here; but without an
//! answer the driver unmounts the volume.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::seaweed::mount_pb::seaweed_mount_server::{SeaweedMount, SeaweedMountServer};
use crate::seaweed::mount_pb::{ConfigureRequest, ConfigureResponse};

/// A socket that answers. Removed when dropped.
pub(super) struct QuotaSocket(PathBuf);

impl QuotaSocket {
    /// Listens at `path`, in the place of what an earlier process left there. Must be called on a
    /// runtime.
    pub(super) fn listen(path: &Path) -> anyhow::Result<Self> {
        let bind = || match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => UnixListener::bind(path),
        };
        let listener = bind().with_context(|| format!("cannot listen at -localSocket={}", path.display()))?;
        tokio::spawn(async move {
            let connections = UnixListenerStream::new(listener);
            let service = SeaweedMountServer::new(UnlimitedVolume);
            if let Err(error) = Server::builder().serve_with_incoming(service, connections).await {
                tracing::warn!(%error, "the local socket does not answer any more");
            }
        });
        Ok(Self(path.to_owned()))
    }
}

impl Drop for QuotaSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Accepts any quota.
struct UnlimitedVolume;

#[tonic::async_trait]
impl SeaweedMount for UnlimitedVolume {
    async fn configure(
        &self,
        request: Request<ConfigureRequest>,
    ) -> Result<Response<ConfigureResponse>, Status> {
        let bytes = request.get_ref().collection_capacity;
        tracing::info!(bytes, "a quota means nothing to a volume that is only read");
        Ok(Response::new(ConfigureResponse {}))
    }
}
