//! The settings of fetches.

use std::sync::Arc;
use std::time::Duration;

use super::engine::EngineConfig;
use crate::seaweed::http1::HttpTimeouts;

/// How many bytes one server is asked for at a time. Speculation may have half of it, 32 MiB,
/// which is the widest window of a stream, so one stream alone never waits at the gate: 32 MiB
/// keep a link of 100 Gbit/s busy while the server takes 2.5 ms to respond. All of it takes 50 ms
/// over 10 Gbit/s, which is as long as a reader may have to wait for the requests of others.
const BYTES_PER_SERVER: u64 = 64 << 20;

/// How a volume server is reached.
#[derive(Clone, Default)]
pub enum VolumeServerRoute {
    /// At the address that the cluster uses itself.
    #[default]
    Direct,
    /// At the address for clients outside of the cluster.
    PublicUrl,
    /// Through a filer, which passes requests on. The function returns the filer to ask now, as
    /// `host:port`.
    FilerProxy(Arc<dyn Fn() -> String + Send + Sync>),
}

/// The settings of a [`Fetcher`](super::Fetcher).
#[derive(Clone)]
pub struct FetcherConfig {
    /// How volume servers are reached.
    pub route: VolumeServerRoute,
    /// The data centre whose servers are preferred.
    pub data_center: Option<String>,
    /// How long a reader waits for servers that send nothing, and how long a failed fetch is
    /// retried.
    pub retry_time: Duration,
    /// How long a reader waits for a response that comes in, and in the queue of a server that
    /// answers other requests.
    pub request_timeout: Duration,
    /// How many requests one server is sent at a time; further ones wait. Speculation has half of
    /// it.
    pub requests_per_server: usize,
    /// How many bytes one server is asked for at a time; further requests wait. Speculation has
    /// half of it.
    pub bytes_per_server: u64,
    /// Time limits of the connections.
    pub timeouts: HttpTimeouts,
    /// Which engines may be asked.
    pub engines: EngineConfig,
}

impl Default for FetcherConfig {
    fn default() -> Self {
        Self {
            route: VolumeServerRoute::Direct,
            data_center: None,
            retry_time: Duration::from_secs(6),
            request_timeout: Duration::from_secs(30),
            requests_per_server: 64,
            bytes_per_server: BYTES_PER_SERVER,
            timeouts: HttpTimeouts::default(),
            engines: EngineConfig::default(),
        }
    }
}
