//! What is kept for each server that is asked for needles: its gate, and how it has been doing.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::engine::{Engine, Engines};
use super::gate::{Gate, Load};
use super::pace::Pace;
use crate::seaweed::volume::Place;
use crate::telemetry::Source;
use crate::telemetry::health::{LastError, VolumeServerHealth};

/// A server leaves readers waiting.
#[derive(Debug, Clone, Copy)]
struct Unanswering {
    since: Instant,
    /// Requests that it has not answered yet.
    requests: u32,
    /// Until when it counts as one that does, if there are none.
    until: Instant,
}

impl Unanswering {
    fn is_so(&self) -> bool {
        self.requests > 0 || Instant::now() < self.until
    }
}

/// A request that a reader waits for and that its server does not answer.
pub(super) struct UnansweredRequest<'a>(&'a Server);

impl Drop for UnansweredRequest<'_> {
    fn drop(&mut self) {
        if let Some(unanswering) = &mut *self.0.unanswering.lock() {
            unanswering.requests = unanswering.requests.saturating_sub(1);
        }
    }
}

/// Races that a server has lost in a row, without a byte in between, after which it counts as stopped.
const SILENT: u32 = 3;

/// How long a server that left a reader waiting counts as one that does, unless it says something or another reader waits.
const UNANSWERING_FOR: Duration = Duration::from_secs(60);

/// One server.
pub(super) struct Server {
    gate: Arc<Gate>,
    engine: Option<Arc<Engine>>,
    pace: Mutex<Pace>,
    /// Races that it has lost in a row without having sent a byte.
    lost_races: AtomicU32,
    unanswering: Mutex<Option<Unanswering>>,
    /// When it said something last.
    heard: Mutex<Option<Instant>>,
    trouble: LastError,
}

impl Server {
    /// The way to it.
    pub(super) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// The engine beside it, if there may be one.
    pub(super) fn engine(&self) -> Option<&Arc<Engine>> {
        self.engine.as_ref()
    }

    /// Notes that it began to answer a request for `bytes` after `time`.
    pub(super) fn answered(&self, bytes: u64, time: Duration) {
        self.pace.lock().note(bytes, time);
        self.lost_races.store(0, Relaxed);
    }

    /// Notes that for `time` it said nothing to a request for `bytes`, which another server has answered by now.
    pub(super) fn overtaken(&self, bytes: u64, time: Duration) {
        self.pace.lock().note(bytes, time);
        self.lost_races.fetch_add(1, Relaxed);
    }

    /// Notes that it did not deliver.
    pub(super) fn failed(&self, error: &dyn Display) {
        self.trouble.note(error);
    }

    /// After what time without an answer a request for `bytes` is late.
    pub(super) fn patience(&self, bytes: u64) -> Duration {
        self.pace.lock().patience(bytes)
    }

    /// Whether it seems to have stopped.
    pub(super) fn is_silent(&self) -> bool {
        self.lost_races.load(Relaxed) >= SILENT
    }

    /// Notes that it has said nothing since `since` to a request that a reader waits for. Returns whether that is new.
    pub(super) fn unanswering(&self, since: Instant) -> bool {
        let until = Instant::now() + UNANSWERING_FOR;
        let mut unanswering = self.unanswering.lock();
        match unanswering.as_mut().filter(|it| it.is_so()) {
            Some(before) => {
                before.until = until;
                false
            }
            None => {
                *unanswering = Some(Unanswering { since, requests: 0, until });
                true
            }
        }
    }

    /// Notes that it leaves a request unanswered until the result is dropped; after [`unanswering`](Self::unanswering).
    pub(super) fn leaves_unanswered(&self) -> UnansweredRequest<'_> {
        if let Some(unanswering) = &mut *self.unanswering.lock() {
            unanswering.requests += 1;
        }
        UnansweredRequest(self)
    }

    /// Notes that it says something.
    pub(super) fn answers(&self) {
        let now = Instant::now();
        *self.heard.lock() = Some(now);
        let mut unanswering = self.unanswering.lock();
        match &mut *unanswering {
            Some(it) if it.requests > 0 => it.until = now,
            it => *it = None,
        }
    }

    /// Whether it has said something within `time`.
    pub(super) fn was_heard_within(&self, time: Duration) -> bool {
        self.heard.lock().is_some_and(|at| at.elapsed() < time)
    }

    /// Whether it leaves readers waiting, or did lately and has said nothing since.
    pub(super) fn is_unanswering(&self) -> bool {
        self.unanswering.lock().is_some_and(|it| it.is_so())
    }

    /// Since when it leaves readers waiting and says nothing to anybody, if it does.
    pub(super) fn silent_since(&self) -> Option<Instant> {
        let since = self.unanswering.lock().filter(Unanswering::is_so)?.since;
        let heard = *self.heard.lock();
        heard.is_none_or(|heard| heard <= since).then_some(since)
    }

    /// How it is doing, for people.
    fn health(&self, address: &str) -> VolumeServerHealth {
        let (requests, waiting) = self.gate.load();
        let engine = self.engine.as_ref().map(|engine| engine.health());
        let from_engine = engine.as_ref().and_then(|engine| engine.source.clone());
        VolumeServerHealth {
            address: address.to_owned(),
            source: from_engine.unwrap_or_else(|| Source::Http.label().to_owned()),
            is_silent: self.is_silent() || self.is_unanswering(),
            keeps_readers_waiting: self.is_unanswering(),
            requests,
            waiting,
            last_error: self.trouble.told(),
            engine,
        }
    }
}

/// All servers that were ever asked, by `host:port`. There are as many as the cluster has had.
pub(super) struct Servers {
    bound: Load,
    engines: Engines,
    servers: Mutex<HashMap<Box<str>, Arc<Server>>>,
}

impl Servers {
    /// None yet; each will be given no more than `bound` at a time, and have an engine as `engines` says.
    pub(super) fn new(bound: Load, engines: Engines) -> Self {
        Self { bound, engines, servers: Mutex::default() }
    }

    /// The one at `place`.
    pub(super) fn at(&self, place: &Place) -> Arc<Server> {
        let authority = place.authority();
        let mut servers = self.servers.lock();
        if let Some(server) = servers.get(authority) {
            return server.clone();
        }
        let gate = Gate::new(self.bound);
        let engine = match place {
            Place::Volume(authority) => self.engines.beside(authority),
            Place::Filer(_) => None,
        };
        let server = Arc::new(Server {
            gate,
            engine,
            pace: Mutex::default(),
            lost_races: AtomicU32::new(0),
            unanswering: Mutex::default(),
            heard: Mutex::default(),
            trouble: LastError::default(),
        });
        servers.insert(authority.into(), server.clone());
        server
    }

    /// How each of them is doing, in the order of their addresses.
    pub(super) fn health(&self) -> Vec<VolumeServerHealth> {
        let mut servers: Vec<(Box<str>, Arc<Server>)> =
            self.servers.lock().iter().map(|(address, server)| (address.clone(), server.clone())).collect();
        servers.sort_by(|(a, _), (b, _)| a.cmp(b));
        servers.iter().map(|(address, server)| server.health(address)).collect()
    }
}
