//! What is kept for each server that is asked for needles: its gate, and how it has been doing.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::engine::{Engine, Engines};
use super::gate::{Gate, Load};
use super::hedge::Silence;
use super::pace::Pace;
use crate::seaweed::volume::Place;
use crate::telemetry::Source;
use crate::telemetry::health::{LastError, VolumeServerHealth};

/// One server.
pub(super) struct Server {
    gate: Arc<Gate>,
    engine: Option<Arc<Engine>>,
    pace: Mutex<Pace>,
    silence: Silence,
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
        self.silence.is_broken();
    }

    /// Notes that for `time` it said nothing to a request for `bytes`, which another server has answered by now.
    pub(super) fn overtaken(&self, bytes: u64, time: Duration) {
        self.pace.lock().note(bytes, time);
        self.silence.goes_on();
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
        self.silence.is_long()
    }

    /// How it is doing, for people.
    fn health(&self, address: &str) -> VolumeServerHealth {
        let (requests, waiting) = self.gate.load();
        let engine = self.engine.as_ref().map(|engine| engine.health());
        let from_engine = engine.as_ref().and_then(|engine| engine.source.clone());
        VolumeServerHealth {
            address: address.to_owned(),
            source: from_engine.unwrap_or_else(|| Source::Http.label().to_owned()),
            is_silent: self.is_silent(),
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
        let (pace, silence, trouble) = (Mutex::default(), Silence::default(), LastError::default());
        let server = Arc::new(Server { gate, engine, pace, silence, trouble });
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
