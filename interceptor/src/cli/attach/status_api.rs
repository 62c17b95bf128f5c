//! The status API of a layer, which may begin later than the layer: a successor has to wait until
//! its predecessor releases the address.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::cli::status_place::{AwaitedAddress, PlacedStatus, StatusPlace};
use crate::telemetry::Status;
use crate::telemetry::access::ApiSecrets;
use crate::telemetry::server::{BindError, StatusServer};
use crate::vital;

/// How long the predecessor may take to release the address. It does so as soon as it notices the
/// takeover.
const ADDRESS_RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the status API is offered, or will be.
pub(super) enum StatusApi {
    /// `--status-addr none`.
    Nowhere,
    /// Another has the address.
    Waiting(AwaitedAddress),
    /// It answers.
    Serving { address: SocketAddr, task: JoinHandle<()> },
}

impl StatusApi {
    /// Offers it at `place`, with `more` routes, or, if a predecessor may have that, gets ready to
    /// do so when it is free.
    pub(super) async fn offer(
        place: StatusPlace,
        secrets: ApiSecrets,
        status: &Arc<Status>,
        more: &Router,
    ) -> Result<Self, BindError> {
        Ok(match place.bind(secrets).await? {
            PlacedStatus::Nowhere => Self::Nowhere,
            PlacedStatus::Bound(server) => Self::serve(server, status, more),
            PlacedStatus::Awaited(awaited) => Self::Waiting(awaited),
        })
    }

    /// Binds the address once it is free, if it was not. If it does not become free, takes another
    /// one if that will do, or else logs that and goes on without.
    pub(super) async fn take_over(&mut self, status: &Arc<Status>, more: &Router) {
        let Self::Waiting(awaited) = self else { return };
        let bound = match timeout(ADDRESS_RELEASE_TIMEOUT, awaited.bind_when_free()).await {
            Ok(bound) => bound,
            Err(_) if awaited.is_any => awaited.bind_elsewhere().await,
            Err(_) => StatusServer::bind(&awaited.address, awaited.secrets.clone()).await,
        };
        let bound = bound.inspect_err(|error| tracing::warn!("going without: {error}")).ok();
        *self = bound.map_or(Self::Nowhere, |server| Self::serve(server, status, more));
    }

    fn serve(server: StatusServer, status: &Arc<Status>, more: &Router) -> Self {
        let address = server.address();
        let serving = server.serve(status.clone(), more.clone());
        let task = tokio::spawn(vital::task("status API", serving));
        Self::Serving { address, task }
    }

    /// Where it answers.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Serving { address, .. } => Some(*address),
            Self::Nowhere | Self::Waiting(_) => None,
        }
    }

    /// Lets go of the address.
    pub(super) fn stop(&self) {
        if let Self::Serving { task, .. } = self {
            task.abort();
        }
    }
}
