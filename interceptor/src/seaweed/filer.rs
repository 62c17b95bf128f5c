//! The client of the filer's gRPC service.
//!
//! [`FilerClient`] is a handle to share. It knows all filers of the cluster
//! ([`failover`](super::failover) chooses which one is asked, and for how long), and decodes what
//! they send ([`entry_filter`](super::entry_filter)). A call that no filer answers fails with an
//! error that names every filer and its reason. Directories are listed by
//! [`listing`](super::listing).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::address::ServerAddress;
use super::decode;
use super::entry::{Attributes, Content, Entry, FileKind, RemoteObject};
use super::entry_filter::EntryFilter;
pub use super::failover::FilerError;
use super::failover::{CallOptions, FilerAnswer, Filers};
use super::locations::{Location, LookupError, VolumeLookup};
use super::pb;
use super::permissions::PermissionRules;
pub use super::rpc::FILER_TIMEOUT;
use super::rpc::Stub;
use super::security::Security;
use crate::arrival::Arrival;
use crate::telemetry::health::FilerHealth;

/// How long the cluster may take to copy an object from its remote storage.
const CACHE_REMOTE_TIMEOUT: Duration = Duration::from_secs(600);
/// A part of every filer's message if there is no such entry. The status code differs by version.
const NOT_FOUND: &str = "no entry is found in filer store";

/// The configuration of a filer and its cluster.
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
    /// The number that marks changes made through this filer.
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

/// The result of a lookup.
#[derive(Debug, Clone, PartialEq)]
pub struct FoundEntry {
    /// The entry with the name, if there is one.
    pub entry: Option<Entry>,
    /// Whether the filer that answered is the one whose events are followed. No event says when
    /// the answer of another one becomes outdated.
    pub is_followed: bool,
}

/// A handle to the filers of a cluster; clones share everything.
#[derive(Clone)]
pub struct FilerClient {
    inner: Arc<FilerClientInner>,
}

struct FilerClientInner {
    filers: Filers,
    entries: EntryFilter,
    configuration: FilerConfiguration,
}

impl FilerClient {
    /// Asks the filers in turn for their configuration, and uses the first that answers. Fails if
    /// none does.
    pub async fn connect(addresses: Vec<ServerAddress>, security: &Security) -> Result<Self, FilerError> {
        Self::connect_as(addresses, security, PermissionRules::default()).await
    }

    /// Like [`connect`](Self::connect); entries have the owners and permissions of `permissions`.
    pub async fn connect_as(
        addresses: Vec<ServerAddress>,
        security: &Security,
        permissions: PermissionRules,
    ) -> Result<Self, FilerError> {
        let filers = Filers::new(addresses, security.grpc_tls())?;
        filers.ping_all();
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
        Ok(Self {
            inner: Arc::new(FilerClientInner {
                filers,
                entries: EntryFilter::new(permissions),
                configuration,
            }),
        })
    }

    /// The configuration of the first filer that answered.
    pub fn configuration(&self) -> &FilerConfiguration {
        &self.inner.configuration
    }

    /// The current filer.
    pub fn current(&self) -> ServerAddress {
        self.filers().current().1.address.clone()
    }

    /// How each filer does, in the order in which they were named.
    pub fn health(&self) -> Vec<FilerHealth> {
        self.filers().health()
    }

    /// Ok if a filer answers now; otherwise the error says why none does.
    pub fn answering(&self) -> Result<(), String> {
        self.filers().answering()
    }

    /// The entry `name` of `directory` (an absolute path without a slash at its end, except for
    /// `/`), for a request that arrived at `arrival`. The root is the entry without a name of `/`;
    /// the filer keeps no entry for it. A name that does not exist, or has expired, has none.
    pub async fn lookup(
        &self,
        directory: &str,
        name: &str,
        arrival: Arrival,
    ) -> Result<FoundEntry, FilerError> {
        if directory == "/" && name.is_empty() {
            return Ok(FoundEntry {
                entry: Some(self.inner.entries.on_this_host(root())),
                is_followed: true,
            });
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
        let FilerAnswer { value, is_followed, .. } = self.filers().call(options, ask).await?;
        Ok(FoundEntry { entry: self.decode_living(directory, value), is_followed })
    }

    /// The locations of a volume; empty if no volume server has it.
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

    /// Has the cluster copy a remote-only file from its remote storage, which may take minutes.
    /// Returns the entry with its chunks. The filer copies the object that the name stands for
    /// now; if that is not `object` any more, there is no entry.
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
            deadline: arrival.deadline(CACHE_REMOTE_TIMEOUT),
            // A second filer would copy the object a second time.
            hedge_after: None,
            ..CallOptions::new(rpc, arrival)
        };
        let FilerAnswer { value, index, .. } = self.filers().call(options, ask).await?;
        let Some(answer) = value else { return Ok(None) };
        let raw = answer.entry;
        let raw = raw.ok_or_else(|| self.filers().refused(rpc, index, "the answer has no entry".into()))?;
        let is_same = decode::remote_object(&raw).as_ref() == Some(object);
        Ok(self.decode_living(directory, Some(raw)).filter(|_| is_same))
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
        &self.inner.filers
    }

    /// The entry of `directory` that a message describes; `None` if its name is illegal.
    pub(super) fn decode(&self, directory: &str, raw: pb::Entry) -> Option<Entry> {
        self.inner.entries.entry(directory, raw)
    }

    /// Like [`decode`](Self::decode), without entries whose time to live is over.
    pub(super) fn decode_living(&self, directory: &str, raw: Option<pb::Entry>) -> Option<Entry> {
        let entry = raw.filter(|raw| !raw.name.is_empty()).and_then(|raw| self.decode(directory, raw))?;
        let living = entry.expires.is_none_or(|end| end > SystemTime::now());
        living.then_some(entry)
    }
}

fn is_not_found(status: &Status) -> bool {
    status.code() == Code::NotFound || status.message().contains(NOT_FOUND)
}

/// Newer filers report a volume that no server has as an error; older ones leave it out of the
/// answer.
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

    fn down_since(&self) -> Option<Instant> {
        self.filers().down_since()
    }
}
