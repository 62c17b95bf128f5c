//! What is kept for each server that is asked for needles: its gate, and how it has been doing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::engine::{Engine, Engines};
use super::gate::{Gate, Load};
use super::hedge::Silence;
use super::pace::Pace;
use crate::seaweed::volume::Place;

/// One server.
pub(super) struct Server {
    gate: Arc<Gate>,
    engine: Option<Arc<Engine>>,
    pace: Mutex<Pace>,
    silence: Silence,
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

    /// After what time without an answer a request for `bytes` is late.
    pub(super) fn patience(&self, bytes: u64) -> Duration {
        self.pace.lock().patience(bytes)
    }

    /// Whether it seems to have stopped.
    pub(super) fn is_silent(&self) -> bool {
        self.silence.is_long()
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
        let server = Arc::new(Server { gate, engine, pace: Mutex::default(), silence: Silence::default() });
        servers.insert(authority.into(), server.clone());
        server
    }
}
