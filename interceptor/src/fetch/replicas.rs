//! Finds the replicas of a volume: where they are, and in which order to ask them.

use std::sync::Arc;

use tokio::time::{Instant, sleep_until};

use super::config::{FetcherConfig, VolumeServerRoute};
use super::gate::Load;
use super::replica::{FetchContext, Replica};
use super::servers::ServerRegistry;
use crate::seaweed::locations::{Location, Locations, LookupError, VolumeLookup};
use crate::seaweed::volume::NeedleEndpoint;

/// The replicas of all volumes.
pub(super) struct Replicas {
    locations: Locations,
    servers: Arc<ServerRegistry>,
    route: VolumeServerRoute,
}

/// The replicas of one volume, in the order in which to ask them.
pub(super) struct ReplicaList {
    /// The locations that they were made from; none for a filer that passes requests on.
    pub(super) locations: Option<Arc<[Location]>>,
    pub(super) replicas: Vec<Replica>,
    /// Whether the locations were looked up just now.
    pub(super) is_fresh: bool,
}

impl Replicas {
    pub(super) fn new(lookup: Arc<dyn VolumeLookup>, config: &FetcherConfig) -> Self {
        let bound = Load { requests: config.requests_per_server, bytes: config.bytes_per_server };
        Self {
            locations: Locations::new(lookup, config.data_center.clone()),
            servers: Arc::new(ServerRegistry::new(bound, config.engines.clone())),
            route: config.route.clone(),
        }
    }

    pub(super) fn servers(&self) -> &Arc<ServerRegistry> {
        &self.servers
    }

    /// The replicas of the volume that the fetch reads from: others than those that were made from
    /// `stale`, if there are any. If a reader waits, the lookup takes no longer than the reader
    /// does.
    pub(super) async fn locate(
        &self,
        stale: Option<&Arc<[Location]>>,
        cx: &FetchContext<'_>,
    ) -> Result<ReplicaList, LookupError> {
        let volume = cx.chunk.fid.volume;
        let late = async {
            cx.priority.raised().await;
            sleep_until(cx.deadlines().silence).await;
        };
        tokio::select! {
            biased;
            located = self.look_up(volume, stale) => located,
            () = late => Err(LookupError { volume, reason: "no filer has said in time where it is".to_owned() }),
        }
    }

    async fn look_up(
        &self,
        volume: u32,
        stale: Option<&Arc<[Location]>>,
    ) -> Result<ReplicaList, LookupError> {
        if let VolumeServerRoute::FilerProxy(filer) = &self.route {
            let filer = filer();
            let replicas = vec![self.replica(NeedleEndpoint::FilerProxy(filer.clone()), filer)];
            return Ok(ReplicaList { locations: None, replicas, is_fresh: true });
        }
        let (locations, is_fresh) = match stale {
            None => self.locations.get(volume).await?,
            Some(stale) => (self.locations.refresh(volume, stale).await?, true),
        };
        Ok(self.at(Some(locations), is_fresh))
    }

    /// The replicas at `locations`, in the order in which to ask them.
    pub(super) fn at(&self, locations: Option<Arc<[Location]>>, is_fresh: bool) -> ReplicaList {
        let replica = |location: Location| {
            let address = match &self.route {
                VolumeServerRoute::PublicUrl if !location.public_url.is_empty() => location.public_url,
                _ => location.url.clone(),
            };
            self.replica(NeedleEndpoint::Volume(address), location.url)
        };
        let ordered = locations.as_ref().map(|locations| self.locations.order(locations));
        let replicas = ordered.into_iter().flatten().map(replica).collect();
        ReplicaList { locations, replicas, is_fresh }
    }

    fn replica(&self, endpoint: NeedleEndpoint, name: String) -> Replica {
        let server = self.servers.at(&endpoint);
        Replica { endpoint, name, server }
    }

    /// Notes that the server of `replica` failed: it is asked last for a while.
    pub(super) fn failed(&self, replica: &Replica) {
        self.locations.failed(&replica.name);
    }

    /// Since when no filer has answered lookups; `None` if one does.
    pub(super) fn lookup_down_since(&self) -> Option<Instant> {
        self.locations.lookup_down_since()
    }
}

impl ReplicaList {
    /// Since when all of them have left readers waiting; `None` if one answers.
    pub(super) fn unresponsive_since(&self) -> Option<Instant> {
        let since = self.replicas.iter().map(|replica| replica.server.unresponsive_since());
        since.collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// Their addresses, for an error's text.
    pub(super) fn names(&self) -> String {
        let names: Vec<_> = self.replicas.iter().map(|replica| replica.endpoint.authority()).collect();
        if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
    }
}
