//! The client of the filer's gRPC service.
//!
//! [`FilerClient`] is a handle to share: it knows all filers of the cluster ([`failover`](super::failover) chooses
//! which one is asked, and for how long), and decodes what they send ([`intake`](super::intake)). A call that no filer
//! answers fails with an error that names every filer and its reason.
//!
//! [`list`](FilerClient::list) reads ahead of its consumer by a bounded number of entries; see
//! [`listing`](super::listing).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::Stream;
use futures::future::BoxFuture;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::address::ServerAddress;
use super::decode;
use super::entry::{Attributes, Content, Entry, FileKind, RemoteObject};
use super::failover::{Answered, CallOptions, Filers, Stub};
pub use super::failover::{FILER_TIMEOUT, FilerError};
use super::intake::Intake;
use super::listing;
use super::locations::{Location, LookupError, VolumeLookup};
use super::owners::OwnerMaps;
use super::pb;
use super::security::Security;
use crate::arrival::Arrival;
use crate::telemetry::health::FilerHealth;

/// How long the cluster may take to copy an object from its remote storage.
const CACHE_REMOTE_DEADLINE: Duration = Duration::from_secs(600);
/// What every filer says in one way or another when there is no such entry; the status code differs by version.
const NOT_FOUND: &str = "no entry is found in filer store";

/// What a filer tells about itself and its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilerConfiguration {
    /// Addresses of the masters.
    pub masters: Vec<String>,
    /// Whether new chunks are encrypted.
    pub cipher: bool,
    /// Version of the filer.
    pub version: String,
    /// Name of the cluster.
    pub cluster_id: String,
    /// Number that marks the filer's own changes.
    pub signature: i32,
}

/// How much the cluster stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    /// Capacity in bytes.
    pub total_bytes: u64,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Number of needles.
    pub files: u64,
}

/// What a filer says of a name.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundEntry {
    /// What has the name.
    pub entry: Option<Entry>,
    /// Whether the filer that said so is the one whose events are followed. What another one says may cease to be right
    /// without a word.
    pub is_followed: bool,
}

/// A handle to the filers of a cluster; clones share everything.
#[derive(Clone)]
pub struct FilerClient {
    shared: Arc<Shared>,
}

struct Shared {
    filers: Filers,
    intake: Intake,
    configuration: FilerConfiguration,
}

impl FilerClient {
    /// Asks the filers in turn for their configuration and uses the first that answers. Fails when none does.
    pub async fn connect(addresses: Vec<ServerAddress>, security: &Security) -> Result<Self, FilerError> {
        Self::connect_as(addresses, security, OwnerMaps::default()).await
    }

    /// Like [`connect`](Self::connect); entries show their owners as `owners` maps them.
    pub async fn connect_as(
        addresses: Vec<ServerAddress>,
        security: &Security,
        owners: OwnerMaps,
    ) -> Result<Self, FilerError> {
        let filers = Filers::new(addresses, security.grpc_tls())?;
        filers.watch_pulses();
        let options = CallOptions {
            follow_winner: true,
            repeat: false,
            ..CallOptions::new("GetFilerConfiguration", Arrival::now())
        };
        let ask = |mut stub: Stub| async move {
            stub.get_filer_configuration(pb::GetFilerConfigurationRequest {}).await
        };
        let answer = filers.call(options, ask).await?.value.into_inner();
        let configuration = FilerConfiguration {
            masters: answer.masters,
            cipher: answer.cipher,
            version: answer.version,
            cluster_id: answer.cluster_id,
            signature: answer.signature,
        };
        Ok(Self { shared: Arc::new(Shared { filers, intake: Intake::new(owners), configuration }) })
    }

    /// What the first filer that answered told about itself.
    pub fn configuration(&self) -> &FilerConfiguration {
        &self.shared.configuration
    }

    /// The filer in use now.
    pub fn current(&self) -> ServerAddress {
        self.filers().current().1.address.clone()
    }

    /// How each filer is doing, in the order in which they were named.
    pub fn health(&self) -> Vec<FilerHealth> {
        self.filers().health()
    }

    /// Whether a filer answers now; else why none does.
    pub fn answering(&self) -> Result<(), String> {
        self.filers().answering()
    }

    /// The entry `name` of `directory` (an absolute path without a slash at its end, except for `/`), for a request that
    /// arrived at `arrival`. The root is the entry without a name of `/`; the filer keeps no entry for it. Names that do not
    /// exist, or not any more, are `None`.
    pub async fn lookup(
        &self,
        directory: &str,
        name: &str,
        arrival: Arrival,
    ) -> Result<FoundEntry, FilerError> {
        if directory == "/" && name.is_empty() {
            return Ok(FoundEntry { entry: Some(root()), is_followed: true });
        }
        let ask = |mut stub: Stub| {
            let request = pb::LookupDirectoryEntryRequest { directory: directory.into(), name: name.into() };
            async move {
                match stub.lookup_directory_entry(request).await {
                    Err(status) if is_not_found(&status) => Ok(None),
                    answer => answer.map(|answer| answer.into_inner().entry),
                }
            }
        };
        let options = CallOptions::new("LookupDirectoryEntry", arrival);
        let Answered { value, is_followed, .. } = self.filers().call(options, ask).await?;
        Ok(FoundEntry { entry: self.living(directory, value), is_followed })
    }

    /// The first `limit` entries of `directory` after the name `after`, in the order of their names' bytes, with their chunks.
    /// A directory that does not exist has none. The first error is the last item.
    pub fn list(
        &self,
        directory: &str,
        after: &str,
        limit: usize,
    ) -> impl Stream<Item = Result<Entry, FilerError>> + Send + Unpin + use<> {
        listing::list(self.clone(), directory.to_owned(), after.to_owned(), limit)
    }

    /// Where a volume is; empty if no volume server has it.
    pub async fn lookup_volume(&self, volume: u32) -> Result<Vec<Location>, FilerError> {
        let ask = |mut stub: Stub| {
            let request = pb::LookupVolumeRequest { volume_ids: vec![volume.to_string()] };
            async move {
                match stub.lookup_volume(request).await {
                    Err(status) if lacks_volume(&status, volume) => Ok(pb::LookupVolumeResponse::default()),
                    answer => answer.map(tonic::Response::into_inner),
                }
            }
        };
        let options = CallOptions::new("LookupVolume", Arrival::now());
        let mut answer = self.filers().call(options, ask).await?.value;
        let found = answer.locations_map.remove(&volume.to_string()).unwrap_or_default();
        Ok(found.locations.into_iter().map(location).collect())
    }

    /// Has the cluster copy a remote-only file from its remote storage, which may take minutes, and gives the entry
    /// with its chunks. `None` if the name does not stand for `object` any more: the filer copies whatever it does.
    pub async fn cache_remote(
        &self,
        directory: &str,
        name: &str,
        object: &RemoteObject,
    ) -> Result<Option<Entry>, FilerError> {
        let ask = |mut stub: Stub| {
            let request =
                pb::CacheRemoteObjectToLocalClusterRequest { directory: directory.into(), name: name.into() };
            async move {
                match stub.cache_remote_object_to_local_cluster(request).await {
                    Err(status) if is_not_found(&status) => Ok(None),
                    answer => answer.map(|answer| Some(answer.into_inner())),
                }
            }
        };
        let rpc = "CacheRemoteObjectToLocalCluster";
        let arrival = Arrival::now();
        let options = CallOptions {
            deadline: arrival.deadline(CACHE_REMOTE_DEADLINE),
            // A second filer would copy the object a second time.
            hedge_after: None,
            ..CallOptions::new(rpc, arrival)
        };
        let Answered { value, index, .. } = self.filers().call(options, ask).await?;
        let Some(answer) = value else { return Ok(None) };
        let raw = answer.entry;
        let raw = raw.ok_or_else(|| self.filers().refused(rpc, index, "the answer has no entry".into()))?;
        let is_same = decode::remote_object(&raw).as_ref() == Some(object);
        Ok(self.living(directory, Some(raw)).filter(|_| is_same))
    }

    /// How much the cluster stores.
    pub async fn statistics(&self) -> Result<Statistics, FilerError> {
        let ask = |mut stub: Stub| async move { stub.statistics(pb::StatisticsRequest {}).await };
        let options = CallOptions::new("Statistics", Arrival::now());
        let pb::StatisticsResponse { total_size, used_size, file_count } =
            self.filers().call(options, ask).await?.value.into_inner();
        Ok(Statistics { total_bytes: total_size, used_bytes: used_size, files: file_count })
    }

    pub(super) fn filers(&self) -> &Filers {
        &self.shared.filers
    }

    /// The entry that a message describes, unless its name is illegal.
    pub(super) fn decode(&self, directory: &str, raw: pb::Entry) -> Option<Entry> {
        self.shared.intake.entry(directory, raw)
    }

    /// The same, unless there is none or its time to live is over.
    pub(super) fn living(&self, directory: &str, raw: Option<pb::Entry>) -> Option<Entry> {
        let entry = raw.filter(|raw| !raw.name.is_empty()).and_then(|raw| self.decode(directory, raw))?;
        let living = entry.expires.is_none_or(|end| end > SystemTime::now());
        living.then_some(entry)
    }
}

fn is_not_found(status: &Status) -> bool {
    status.code() == Code::NotFound || status.message().contains(NOT_FOUND)
}

/// Newer filers report a volume that nobody has as an error, older ones leave it out of the answer.
fn lacks_volume(status: &Status, volume: u32) -> bool {
    status.message().contains(&format!("volume id {volume} not found"))
}

fn location(raw: pb::Location) -> Location {
    let pb::Location { url, public_url, grpc_port, data_center } = raw;
    Location { url, public_url, data_center, grpc_port }
}

/// The root directory as every mount of SeaweedFS shows it.
fn root() -> Entry {
    let start = SystemTime::UNIX_EPOCH;
    Entry {
        name: String::new(),
        attr: Attributes {
            kind: FileKind::Directory,
            perm: 0o755,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: start,
            ctime: start,
            crtime: start,
            nlink: 2,
            rdev: 0,
            inode: 1,
        },
        content: Content::None,
        xattrs: Arc::from([]),
        hard_link: None,
        expires: None,
    }
}

impl VolumeLookup for FilerClient {
    fn lookup(&self, volume: u32) -> BoxFuture<'_, Result<Vec<Location>, LookupError>> {
        Box::pin(async move {
            let found = self.lookup_volume(volume).await;
            found.map_err(|error| LookupError { volume, reason: error.to_string() })
        })
    }

    fn silent_since(&self) -> Option<Instant> {
        self.filers().silent_since()
    }
}
