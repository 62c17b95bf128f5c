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

/// Where the status API is wanted.
pub(super) struct StatusPlace {
    pub(super) address: StatusAddress,
    /// Nobody asked for that address: any other one does as well.
    pub(super) is_default: bool,
    /// Whether a daemon that is there is taken over, which may have the address.
    pub(super) takes_over: bool,
    /// Where that daemon has its own.
    pub(super) predecessor: Option<SocketAddr>,
}

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
    /// Offers it at `place`, or, if a predecessor may have that, gets ready to do so when it is
    /// free.
    pub(super) async fn offer(
        place: StatusPlace,
        secrets: ApiSecrets,
        status: &Arc<Status>,
        jobs: &Arc<JobRegistry>,
    ) -> Result<Self, BindError> {
        let StatusAddress::At(mut address) = place.address else { return Ok(Self::Nowhere) };
        let is_any = place.is_default || address.ends_with(":0");
        // A free port stays the same.
        if let (Some(before), true, Some((host, _))) = (place.predecessor, is_any, address.rsplit_once(':')) {
            address = format!("{host}:{}", before.port());
        }
        let may_wait = place.takes_over && (place.predecessor.is_some() || !is_any);
        let server = match StatusServer::bind(&address, secrets.clone()).await {
            Err(error) if may_wait && error.is_in_use() => return Ok(Self::Waiting { address, secrets }),
            Err(error) if place.is_default && error.is_in_use() => {
                StatusServer::bind_elsewhere(&address, secrets).await?
            }
            bound => bound?,
        };
        Ok(Self::serve(server, status, jobs))
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
