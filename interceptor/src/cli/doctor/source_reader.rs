//! Reads a file from one source, the way a mount does, and measures that.
//!
//! A reader has a [`Fetcher`] of its own that may use one engine transport, or none. A fetcher
//! falls back to the volume server by itself, so each read reports where its bytes came from.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use serde::{Serialize, Serializer};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::arrival::Arrival;
use crate::cli::check::ConnectedCluster;
use crate::cli::mount;
use crate::cli::options::VolumeServerAccess;
use crate::fetch::{EngineConfig, Fetcher, FetcherConfig};
use crate::priority::Priority;
use crate::read::{ClusterOrigin, FileLayout, FileVersion, Object, Origin};
use crate::telemetry::health::{EngineState, VolumeServerHealth};
use crate::telemetry::{Metrics, Source};
use crate::timeline::Timeline;

/// Bytes of a file that are read, at most. All of them are in memory at the same time.
const MAX_BYTES: u64 = 64 << 20;

/// How long a file is read, at most, once bytes come.
const MAX_READ_TIME: Duration = Duration::from_secs(2);

/// How long the first bytes may take over a slow network.
const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an engine has to be connected, and how often that is tried. RDMA takes a while if it is
/// emulated.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(6);
const CONNECT_INTERVAL: Duration = Duration::from_millis(200);

/// How long reading a file from a source may take in all.
const SOURCE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a failed read is retried, and how long one request may take: no program waits for it.
const RETRY_TIME: Duration = Duration::from_secs(1);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How many bytes are read to measure the time to the first byte.
const PROBE_SIZE: u64 = 4096;

/// Objects of which such a read is made, at most.
const MAX_PROBES: usize = 16;

/// Reads at the same time, as the read-ahead of a stream has them.
const CONCURRENT_READS: usize = 4;

/// What came of reading a file from a source.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Measurement {
    #[serde(serialize_with = "label")]
    pub(super) source: Source,
    /// The file's path on the filer.
    pub(super) file: String,
    pub(super) bytes: u64,
    pub(super) seconds: f64,
    /// The median time of small reads, once connections are made.
    pub(super) first_byte_seconds: f64,
    /// Whether whole chunks were read, each of which has a checksum that was right.
    pub(super) is_verified: bool,
    /// The CRC32C of each piece, in their order.
    #[serde(skip)]
    pub(super) checksums: Vec<u32>,
}

/// Why there is no measurement.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(super) enum MeasureError {
    /// The source is an engine, and there is no connection to it.
    #[error("{0}")]
    NotConnected(String),
    /// The bytes did not come, or not from this source, or are wrong.
    #[error("{0}")]
    Failed(String),
}

fn label<S: Serializer>(source: &Source, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(source.label())
}

/// What of an object is read.
struct Piece {
    object: Object,
    length: usize,
}

/// Reads from one source.
pub(super) struct SourceReader {
    source: Source,
    origin: ClusterOrigin,
    metrics: Arc<Metrics>,
    health: Box<dyn Fn() -> Vec<VolumeServerHealth> + Send + Sync>,
}

impl SourceReader {
    /// A reader from `source`, which `engines` has the transport of.
    pub(super) fn new(
        cluster: &ConnectedCluster,
        access: VolumeServerAccess,
        source: Source,
        engines: EngineConfig,
    ) -> Self {
        let config = FetcherConfig {
            route: mount::route(access, &cluster.filer),
            retry_time: RETRY_TIME,
            request_timeout: REQUEST_TIMEOUT,
            engines,
            ..FetcherConfig::default()
        };
        let (lookup, metrics) = (Arc::new(cluster.filer.clone()), Metrics::new());
        let fetcher = Fetcher::new(lookup, cluster.security.clone(), metrics.clone(), config);
        let health = Box::new(fetcher.health());
        Self { source, origin: ClusterOrigin::new(fetcher, cluster.filer.clone()), metrics, health }
    }

    /// The volume servers that were asked so far, as `host:port`.
    pub(super) fn asked_servers(&self) -> Vec<String> {
        (self.health)().into_iter().map(|server| server.address).collect()
    }

    /// Reads `file`, or the beginning of it.
    ///
    /// # Errors
    /// When not all that was asked for came from this source.
    pub(super) async fn measure(&self, file: &FileVersion) -> Result<Measurement, MeasureError> {
        let measured = timeout(SOURCE_TIMEOUT, async {
            let layout = self.origin.resolve(file, Arrival::now()).await;
            let pieces = pieces(&layout.map_err(failed)?);
            let first_byte = self.first_byte(&pieces).await?;
            self.read_all(file, &pieces, first_byte).await
        });
        let late = |_| Err(MeasureError::Failed(format!("not done within {SOURCE_TIMEOUT:?}")));
        measured.await.unwrap_or_else(late)
    }

    /// The time to the first byte, once there are connections.
    async fn first_byte(&self, pieces: &[Piece]) -> Result<Duration, MeasureError> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        loop {
            let mut times = Vec::new();
            let mut is_connected = true;
            for Piece { object, length } in pieces.iter().take(MAX_PROBES) {
                let start = Instant::now();
                let length = (*length).min(PROBE_SIZE as usize);
                let (_, source) = match self.read(object, length).await {
                    // What was asked in the place of an engine says nothing of that engine.
                    Err(_) if self.source != Source::Http && !self.has_engine() => {
                        return Err(self.not_connected());
                    }
                    read => read?,
                };
                is_connected &= source == self.source;
                times.push(start.elapsed());
            }
            times.sort_unstable();
            match times.get(times.len() / 2) {
                None => return Err(MeasureError::Failed("the file has no bytes to read".into())),
                Some(median) if is_connected => return Ok(*median),
                Some(_) if Instant::now() >= deadline => return Err(self.not_connected()),
                Some(_) => sleep(CONNECT_INTERVAL).await,
            }
        }
    }

    async fn read_all(
        &self,
        file: &FileVersion,
        pieces: &[Piece],
        first_byte: Duration,
    ) -> Result<Measurement, MeasureError> {
        let mut measurement = Measurement {
            source: self.source,
            file: file.path().to_owned(),
            bytes: 0,
            seconds: 0.0,
            first_byte_seconds: first_byte.as_secs_f64(),
            is_verified: pieces.iter().all(|piece| piece.length as u64 == piece.object.size),
            checksums: Vec::new(),
        };
        let failures_before = self.integrity_failures();
        let start = Instant::now();
        let mut reads = stream::iter(pieces)
            .map(|piece| self.read(&piece.object, piece.length))
            .buffered(CONCURRENT_READS);
        let mut end = start + FIRST_BYTES_TIMEOUT;
        while let Ok(Some(read)) = timeout_at(end, reads.next()).await {
            let (bytes, source) = read?;
            if source != self.source {
                let (reason, source) = (self.last_error(), source.label());
                return Err(MeasureError::Failed(format!("bytes came over {source} instead: {reason}")));
            }
            measurement.bytes += bytes.len() as u64;
            measurement.checksums.push(crc32c::crc32c(&bytes));
            measurement.seconds = start.elapsed().as_secs_f64();
            end = start + MAX_READ_TIME;
        }
        // A fetcher recovers from wrong bytes by asking again.
        if self.integrity_failures() > failures_before {
            return Err(MeasureError::Failed(format!("wrong bytes came: {}", self.last_error())));
        }
        match measurement.bytes {
            0 => Err(MeasureError::Failed(format!("no bytes within {FIRST_BYTES_TIMEOUT:?}"))),
            _ => Ok(measurement),
        }
    }

    async fn read(&self, object: &Object, length: usize) -> Result<(Vec<u8>, Source), MeasureError> {
        let mut bytes = vec![0; length];
        let priority = Priority::demand(Arrival::now());
        let source = self.origin.read(object, 0, &mut bytes, &priority, &Timeline::default()).await;
        let source = source.map_err(failed)?;
        Ok((bytes, source))
    }

    fn integrity_failures(&self) -> u64 {
        self.metrics.totals().integrity_failures.values().sum()
    }

    fn not_connected(&self) -> MeasureError {
        MeasureError::NotConnected(format!("no connection: {}", self.last_error()))
    }

    fn has_engine(&self) -> bool {
        let servers = (self.health)();
        let mut engines = servers.iter().filter_map(|server| server.engine.as_ref());
        engines.any(|engine| engine.state == EngineState::Connected)
    }

    /// The last error of an engine, if this reads from engines, or else of a volume server.
    fn last_error(&self) -> String {
        let servers = (self.health)();
        let mut of_engines = servers.iter().filter_map(|server| server.engine.as_ref()?.last_error.as_ref());
        let mut of_servers = servers.iter().filter_map(|server| server.last_error.as_ref());
        let error = if self.source == Source::Http { of_servers.next() } else { of_engines.next() };
        error.map_or_else(|| "no server says why".to_owned(), |error| error.text.clone())
    }
}

fn failed(error: impl ToString) -> MeasureError {
    MeasureError::Failed(error.to_string())
}

/// Whole objects, [`MAX_BYTES`] of them at most. Of a first object that is larger, its beginning.
fn pieces(layout: &FileLayout) -> Vec<Piece> {
    let mut left = MAX_BYTES;
    let mut pieces = Vec::new();
    for object in layout.objects().filter(|object| object.size > 0) {
        if object.size > left && !pieces.is_empty() {
            break;
        }
        let length = object.size.min(left);
        left -= length;
        pieces.push(Piece { object, length: length as usize });
    }
    pieces
}
