//! What is known of each server that is asked for needles: its gate, its engine, and how it does.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::engine::{Engine, EngineConfig};
use super::gate::{Gate, Load};
use super::latency::{LatencyTracker, RecentMedians};
use super::slowness;
use crate::seaweed::volume::NeedleEndpoint;
use crate::telemetry::Source;
use crate::telemetry::health::{LastError, Slowness, VolumeServerHealth};

/// Races lost in a row, without a byte sent in between, after which a server counts as stopped.
const MAX_LOST_RACES: u32 = 3;

/// How long a server that left a reader waiting counts as unresponsive, unless it sends something
/// or another reader waits.
const UNRESPONSIVE_TIMEOUT: Duration = Duration::from_secs(60);

/// A server leaves readers waiting.
#[derive(Debug, Clone, Copy)]
struct Unresponsive {
    since: Instant,
    /// Requests of readers that it has not answered yet.
    requests: u32,
    /// Until when it counts as unresponsive if there are no such requests.
    until: Instant,
}

impl Unresponsive {
    fn is_current(&self) -> bool {
        self.requests > 0 || Instant::now() < self.until
    }
}

/// Counts a request that a reader waits for and that the server does not answer, until it is
/// dropped. Until then what it is counted in stays ([`ServerState::mark_responsive`]).
pub(super) struct UnansweredGuard<'a>(&'a ServerState);

impl Drop for UnansweredGuard<'_> {
    fn drop(&mut self) {
        if let Some(unresponsive) = &mut *self.0.unresponsive.lock() {
            unresponsive.requests = unresponsive.requests.saturating_sub(1);
        }
    }
}

/// The right to probe a server that leaves readers waiting, which one task has at a time.
pub(super) struct Probe(Arc<ServerState>);

impl Probe {
    /// The server that is probed.
    pub(super) fn server(&self) -> &ServerState {
        &self.0
    }

    /// Whether the server still leaves readers waiting. If it does not, the next that does is
    /// another probe's.
    pub(super) fn is_needed(&self) -> bool {
        let unresponsive = self.0.unresponsive.lock();
        let is_needed = unresponsive.is_some_and(|it| it.is_current());
        self.0.is_probed.store(is_needed, Relaxed);
        is_needed
    }
}

/// One server.
pub(super) struct ServerState {
    gate: Arc<Gate>,
    engine: Option<Arc<Engine>>,
    latency: Mutex<LatencyTracker>,
    /// Races that it has lost in a row without having sent a byte.
    lost_races: AtomicU32,
    unresponsive: Mutex<Option<Unresponsive>>,
    /// Whether there is a [`Probe`]; written under the lock of `unresponsive`.
    is_probed: AtomicBool,
    /// When it last sent something.
    last_response: Mutex<Option<Instant>>,
    last_error: LastError,
}

impl ServerState {
    /// The queue in front of it.
    pub(super) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// The engine beside it, if there may be one.
    pub(super) fn engine(&self) -> Option<&Arc<Engine>> {
        self.engine.as_ref()
    }

    /// Records that the response to a request for `bytes` began after `time`.
    pub(super) fn record_first_byte(&self, bytes: u64, time: Duration) {
        self.latency.lock().record(bytes, time);
        self.lost_races.store(0, Relaxed);
    }

    /// Records that it answers, if only with an error.
    pub(super) fn record_answer(&self) {
        self.lost_races.store(0, Relaxed);
    }

    /// Records that for `time` nothing came of the response to a request for `bytes`, which
    /// another server has answered meanwhile.
    pub(super) fn record_lost_race(&self, bytes: u64, time: Duration) {
        self.latency.lock().record(bytes, time);
        self.lost_races.fetch_add(1, Relaxed);
    }

    /// Records that it did not deliver, for the status API.
    pub(super) fn record_error(&self, error: &dyn Display) {
        self.last_error.note(error);
    }

    /// After how long without a byte of the response a request for `bytes` is late.
    pub(super) fn hedge_delay(&self, bytes: u64) -> Duration {
        self.latency.lock().hedge_delay(bytes)
    }

    /// Whether it has lost so many races without having sent a byte that it seems to have stopped.
    pub(super) fn has_stopped(&self) -> bool {
        self.lost_races.load(Relaxed) >= MAX_LOST_RACES
    }

    /// Records that since `since` it has sent nothing to a request that a reader waits for.
    pub(super) fn mark_unresponsive(&self, since: Instant) {
        let until = Instant::now() + UNRESPONSIVE_TIMEOUT;
        let mut unresponsive = self.unresponsive.lock();
        match unresponsive.as_mut().filter(|it| it.is_current()) {
            Some(before) => before.until = until,
            None => *unresponsive = Some(Unresponsive { since, requests: 0, until }),
        }
    }

    /// Begins to probe it; `None` if it is probed already.
    pub(super) fn begin_probe(self: &Arc<Self>) -> Option<Probe> {
        let _unresponsive = self.unresponsive.lock();
        (!self.is_probed.swap(true, Relaxed)).then(|| Probe(self.clone()))
    }

    /// Counts an unanswered request, after [`mark_unresponsive`](Self::mark_unresponsive); `None`
    /// if it has sent something since.
    pub(super) fn count_unanswered(&self) -> Option<UnansweredGuard<'_>> {
        self.unresponsive.lock().as_mut()?.requests += 1;
        Some(UnansweredGuard(self))
    }

    /// Records that it sends something.
    pub(super) fn mark_responsive(&self) {
        let now = Instant::now();
        *self.last_response.lock() = Some(now);
        let mut unresponsive = self.unresponsive.lock();
        match &mut *unresponsive {
            Some(it) if it.requests > 0 => it.until = now,
            it => *it = None,
        }
    }

    /// Whether it has sent something within `time`.
    pub(super) fn responded_within(&self, time: Duration) -> bool {
        self.last_response.lock().is_some_and(|at| at.elapsed() < time)
    }

    /// Whether it leaves readers waiting, or did lately and has sent nothing since.
    pub(super) fn is_unresponsive(&self) -> bool {
        self.unresponsive.lock().is_some_and(|it| it.is_current())
    }

    /// Since when it leaves readers waiting; `None` if it does not, or has sent something since.
    pub(super) fn unresponsive_since(&self) -> Option<Instant> {
        let since = self.unresponsive.lock().filter(Unresponsive::is_current)?.since;
        let last_response = *self.last_response.lock();
        last_response.is_none_or(|at| at <= since).then_some(since)
    }

    /// Whether it seems to have stopped.
    fn is_silent(&self) -> bool {
        self.has_stopped() || self.is_unresponsive()
    }

    /// How it does, for the status API; `slow`: beside the others.
    fn health(&self, address: &str, slow: Option<Slowness>) -> VolumeServerHealth {
        let (requests, waiting) = self.gate.load();
        let engine = self.engine.as_ref().map(|engine| engine.health());
        let from_engine = engine.as_ref().and_then(|engine| engine.source.clone());
        VolumeServerHealth {
            address: address.to_owned(),
            source: from_engine.unwrap_or_else(|| Source::Http.label().to_owned()),
            is_silent: self.is_silent(),
            keeps_readers_waiting: self.is_unresponsive(),
            requests,
            waiting,
            latency: self.latency.lock().recent(Instant::now()),
            slow,
            last_error: self.last_error.latest(),
            engine,
        }
    }
}

/// All servers that were ever asked, by `host:port`: as many as the cluster has had.
pub(super) struct ServerRegistry {
    bound: Load,
    engines: EngineConfig,
    servers: Mutex<HashMap<Box<str>, Arc<ServerState>>>,
}

impl ServerRegistry {
    /// None yet. Each is asked for `bound` at a time, and has an engine if `engines` says so.
    pub(super) fn new(bound: Load, engines: EngineConfig) -> Self {
        Self { bound, engines, servers: Mutex::default() }
    }

    /// The server at `endpoint`.
    pub(super) fn at(&self, endpoint: &NeedleEndpoint) -> Arc<ServerState> {
        let authority = endpoint.authority();
        let mut servers = self.servers.lock();
        if let Some(server) = servers.get(authority) {
            return server.clone();
        }
        let gate = Gate::new(self.bound);
        let engine = match endpoint {
            NeedleEndpoint::Volume(authority) => self.engines.engine(authority),
            NeedleEndpoint::FilerProxy(_) => None,
        };
        let server = Arc::new(ServerState {
            gate,
            engine,
            latency: Mutex::default(),
            lost_races: AtomicU32::new(0),
            unresponsive: Mutex::default(),
            is_probed: AtomicBool::new(false),
            last_response: Mutex::default(),
            last_error: LastError::default(),
        });
        servers.insert(authority.into(), server.clone());
        server
    }

    /// How each of them does, in the order of their addresses.
    pub(super) fn health(&self) -> Vec<VolumeServerHealth> {
        let mut servers: Vec<(Box<str>, Arc<ServerState>)> =
            self.servers.lock().iter().map(|(address, server)| (address.clone(), server.clone())).collect();
        servers.sort_by(|(a, _), (b, _)| a.cmp(b));
        let now = Instant::now();
        // The last answers of a server that is silent say nothing of it.
        let medians = |server: &ServerState| match server.is_silent() {
            true => RecentMedians::default(),
            false => server.latency.lock().recent_medians(now),
        };
        let medians: Vec<_> = servers.iter().map(|(_, server)| medians(server)).collect();
        let slow = slowness::compare(&medians);
        servers.iter().zip(slow).map(|((address, server), slow)| server.health(address, slow)).collect()
    }
}
