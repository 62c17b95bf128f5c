//! The status API of a layer, which may begin later than the layer: a successor has to wait until
//! its predecessor releases the address.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use daemon::address::StatusAddress;
use tokio::task::JoinHandle;

use crate::telemetry::Status;
use crate::telemetry::access::ApiSecrets;
use crate::telemetry::server::{BindError, StatusServer};
use crate::vital;
use crate::warmup::{self, JobRegistry};

/// How long the predecessor may take to release the address. It does so as soon as it notices the
/// takeover.
const ADDRESS_RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often that is tried.
const BIND_RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Where the status API is offered, or will be.
pub(super) enum StatusApi {
    /// `--status-addr none`.
    Nowhere,
    /// Another has the address.
    Waiting { address: String, secrets: ApiSecrets },
    /// It answers.
    Serving { address: SocketAddr, task: JoinHandle<()> },
}

impl StatusApi {
    /// Offers it at `address`, or, if `may_wait`, gets ready to do so when that is free.
    pub(super) async fn offer(
        address: &StatusAddress,
        secrets: ApiSecrets,
        may_wait: bool,
        status: &Arc<Status>,
        jobs: &Arc<JobRegistry>,
    ) -> Result<Self, BindError> {
        let StatusAddress::At(address) = address else { return Ok(Self::Nowhere) };
        match StatusServer::bind(address, secrets.clone()).await {
            Ok(server) => Ok(Self::serve(server, status, jobs)),
            Err(error) if may_wait && error.is_in_use() => {
                Ok(Self::Waiting { address: address.clone(), secrets })
            }
            Err(error) => Err(error),
        }
    }

    /// Binds the address once it is free, if it was not. If it does not become free, logs that and
    /// goes on without.
    pub(super) async fn take_over(&mut self, status: &Arc<Status>, jobs: &Arc<JobRegistry>) {
        let Self::Waiting { address, secrets } = self else { return };
        let deadline = tokio::time::Instant::now() + ADDRESS_RELEASE_TIMEOUT;
        let bound = loop {
            match StatusServer::bind(address, secrets.clone()).await {
                Err(error) if error.is_in_use() && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(BIND_RETRY_INTERVAL).await;
                }
                bound => break bound,
            }
        };
        *self = match bound {
            Ok(server) => Self::serve(server, status, jobs),
            Err(error) => {
                tracing::warn!("going without: {error}");
                Self::Nowhere
            }
        };
    }

    fn serve(server: StatusServer, status: &Arc<Status>, jobs: &Arc<JobRegistry>) -> Self {
        let address = server.address();
        let serving = server.serve(status.clone(), warmup::api::router(jobs.clone()));
        let task = tokio::spawn(vital::task("status API", serving));
        Self::Serving { address, task }
    }

    /// Where it answers.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Serving { address, .. } => Some(*address),
            Self::Nowhere | Self::Waiting { .. } => None,
        }
    }

    /// Lets go of the address.
    pub(super) fn stop(&self) {
        if let Self::Serving { task, .. } = self {
            task.abort();
        }
    }
}
