//! Where the status API of a mount or an attached path listens, also when it takes one over: whose
//! predecessor has the address until it notices, or until it is gone.

use std::net::SocketAddr;
use std::time::Duration;

use daemon::address::StatusAddress;
use tokio::time::sleep;

use crate::telemetry::access::ApiSecrets;
use crate::telemetry::server::{BindError, StatusServer};

/// How soon an address is tried again that a predecessor has; twice as late each time, up to the
/// second one.
const BIND_RETRY_INTERVAL: Duration = Duration::from_millis(10);
const MAX_BIND_RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Where it is wanted.
pub(super) struct StatusPlace {
    pub(super) address: StatusAddress,
    /// Nobody asked for that address: any other port of it does as well.
    pub(super) is_default: bool,
    /// Whether a daemon that is there is taken over, which may have the address.
    pub(super) takes_over: bool,
    /// Where that daemon has its own.
    pub(super) predecessor: Option<SocketAddr>,
}

/// What came of binding it.
pub(super) enum PlacedStatus {
    /// `--status-addr none`.
    Nowhere,
    Bound(StatusServer),
    /// A predecessor may have the address.
    Awaited(AwaitedAddress),
}

/// An address that a predecessor may have.
pub(super) struct AwaitedAddress {
    pub(super) address: String,
    /// Whether another port of it does as well.
    pub(super) is_any: bool,
    pub(super) secrets: ApiSecrets,
}

impl StatusPlace {
    /// Binds it if that is possible now.
    pub(super) async fn bind(self, secrets: ApiSecrets) -> Result<PlacedStatus, BindError> {
        let StatusAddress::At(address) = self.address else { return Ok(PlacedStatus::Nowhere) };
        let is_any = self.is_default || address.ends_with(":0");
        // A free port stays the same. The host is what is asked for now: a predecessor may have
        // listened on others.
        let address = match self.predecessor {
            Some(before) if is_any => with_port(&address, before.port()),
            _ => address,
        };
        let may_wait = self.takes_over && (self.predecessor.is_some() || !is_any);
        let awaited = AwaitedAddress { address, is_any, secrets };
        match StatusServer::bind(&awaited.address, awaited.secrets.clone()).await {
            Ok(server) => Ok(PlacedStatus::Bound(server)),
            Err(error) if !error.is_in_use() => Err(error),
            Err(error) if may_wait => {
                tracing::warn!(%error, "the status API waits for its address");
                Ok(PlacedStatus::Awaited(awaited))
            }
            Err(_) if is_any => awaited.bind_elsewhere().await.map(PlacedStatus::Bound),
            Err(error) => Err(error),
        }
    }
}

impl AwaitedAddress {
    /// Binds it, as soon as it is free.
    pub(super) async fn bind_when_free(&self) -> Result<StatusServer, BindError> {
        let mut interval = BIND_RETRY_INTERVAL;
        loop {
            interval = (interval * 2).min(MAX_BIND_RETRY_INTERVAL);
            match StatusServer::bind(&self.address, self.secrets.clone()).await {
                Err(error) if error.is_in_use() => sleep(interval).await,
                bound => return bound,
            }
        }
    }

    /// Binds a free port of the same host.
    pub(super) async fn bind_elsewhere(&self) -> Result<StatusServer, BindError> {
        let server = StatusServer::bind(&with_port(&self.address, 0), self.secrets.clone()).await?;
        tracing::info!("{} is in use: the status API is at {}", self.address, server.address());
        Ok(server)
    }
}

/// The address with another port.
fn with_port(address: &str, port: u16) -> String {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    format!("{host}:{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(address: &str) -> StatusPlace {
        let address = address.parse().unwrap();
        StatusPlace { address, is_default: false, takes_over: false, predecessor: None }
    }

    async fn bound(place: StatusPlace) -> SocketAddr {
        match place.bind(ApiSecrets::default()).await.unwrap() {
            PlacedStatus::Bound(server) => server.address(),
            PlacedStatus::Nowhere | PlacedStatus::Awaited(_) => panic!("it is not bound"),
        }
    }

    #[tokio::test]
    async fn of_a_predecessor_only_a_free_port_is_kept() {
        let before = bound(place("127.0.0.1:0")).await;
        // The predecessor has listened on all hosts, which is not asked for any more.
        let everywhere = SocketAddr::new([0, 0, 0, 0].into(), before.port());
        let taken_over =
            |address| StatusPlace { takes_over: true, predecessor: Some(everywhere), ..place(address) };
        assert_eq!(bound(taken_over("127.0.0.1:0")).await, before);
        let typed = bound(place("127.0.0.1:0")).await.to_string();
        assert_eq!(bound(taken_over(&typed)).await.to_string(), typed);
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_awaited_or_replaced_or_an_error() {
        let other = StatusServer::bind("127.0.0.1:0", ApiSecrets::default()).await.unwrap();
        let taken = other.address().to_string();
        let default = StatusPlace { is_default: true, ..place(&taken) };
        assert_ne!(bound(default).await, other.address());
        let asked_for = place(&taken).bind(ApiSecrets::default()).await;
        assert!(asked_for.is_err_and(|error| error.is_in_use()));

        let taken_over = StatusPlace { takes_over: true, ..place(&taken) };
        let PlacedStatus::Awaited(awaited) = taken_over.bind(ApiSecrets::default()).await.unwrap() else {
            panic!("a predecessor may have it")
        };
        assert!(!awaited.is_any);
        drop(other);
        assert_eq!(awaited.bind_when_free().await.unwrap().address().to_string(), taken);
        assert!(matches!(place("none").bind(ApiSecrets::default()).await, Ok(PlacedStatus::Nowhere)));
    }
}
