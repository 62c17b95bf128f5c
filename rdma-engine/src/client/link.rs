//! The client's link to its engine: one connection that all requests share, made again after a
//! loss.
//!
//! While an engine does not answer, reads fail at once, and it is tried again after a backoff that
//! doubles. A transport that was on offer and did not work is left out for a while.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};

use super::connection::EngineConnection;
use super::dial::{Dial, dial};
use super::registration_cache::RegistrationCache;
use super::{ClientOptions, ReadError};
use crate::protocol::Transport;

const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// For how long other transports are preferred after one did not work: an RDMA network that is set
/// up wrong, or an engine that hands over unfit files, stays so for a while.
const AVOID_TIME: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct EngineLink {
    address: String,
    options: ClientOptions,
    state: Mutex<LinkState>,
    caches: Mutex<Vec<Arc<RegistrationCache>>>,
    /// Held by the reader that connects.
    dialing: tokio::sync::Mutex<()>,
}

struct LinkState {
    connection: Option<Arc<EngineConnection>>,
    /// The time of the next attempt, at the earliest.
    next_attempt: Instant,
    backoff: Duration,
    /// Why the last attempt failed, or the last connection ended.
    reason: String,
    /// Why the engine was not trusted when it was last connected to.
    distrust: Option<String>,
    /// Transports that are left out until then, if another one is left.
    avoided: HashMap<Transport, Instant>,
}

impl EngineLink {
    pub(super) fn new(address: String, options: ClientOptions) -> Self {
        let state = LinkState {
            connection: None,
            next_attempt: Instant::now(),
            backoff: MIN_BACKOFF,
            reason: String::new(),
            distrust: None,
            avoided: HashMap::new(),
        };
        let (caches, dialing) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { address, options, state: Mutex::new(state), caches, dialing }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn distrust(&self) -> Option<String> {
        self.state.lock().distrust.clone()
    }

    /// Lets RDMA devices register parts of this memory, from the next connection on.
    pub(super) fn register(&self, cache: Arc<RegistrationCache>) {
        self.caches.lock().push(cache);
    }

    /// The connection, if there is one.
    pub(super) fn current(&self) -> Option<Arc<EngineConnection>> {
        self.state.lock().connection.clone().filter(|connection| connection.is_open())
    }

    /// The connection; makes one if there is none.
    pub(super) async fn connection(&self, deadline: Instant) -> Result<Arc<EngineConnection>, ReadError> {
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        self.check_backoff()?;
        let _dialing = timeout_at(deadline, self.dialing.lock()).await.map_err(|_| ReadError::Deadline)?;
        // Another reader may have connected meanwhile.
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        self.check_backoff()?;
        let limit = deadline.min(Instant::now() + self.options.connect);
        let request = Dial {
            address: &self.address,
            options: &self.options,
            transports: self.transports(),
            caches: self.caches.lock().clone(),
        };
        match timeout_at(limit, dial(request, |transport| self.state.lock().avoid(transport))).await {
            Ok(Ok(connection)) => {
                let (address, transport) = (&self.address, connection.path().transport().name());
                tracing::debug!(address, transport, "connected to an engine");
                let mut state = self.state.lock();
                (state.connection, state.distrust) = (Some(connection.clone()), None);
                Ok(connection)
            }
            Ok(Err(error)) => Err(self.failed(error)),
            // The caller's own deadline says nothing about the engine.
            Err(_) if limit == deadline => Err(ReadError::Deadline),
            Err(_) => Err(self.failed(ReadError::Lost("connecting took too long".to_owned()))),
        }
    }

    /// The transports to try now.
    fn transports(&self) -> Vec<Transport> {
        let mut transports = self.options.transports.clone();
        let (state, now) = (self.state.lock(), Instant::now());
        for avoided in [Transport::Verbs, Transport::Local] {
            if transports.len() > 1 && state.avoided.get(&avoided).is_some_and(|&until| now < until) {
                transports.retain(|&transport| transport != avoided);
            }
        }
        transports
    }

    fn check_backoff(&self) -> Result<(), ReadError> {
        let state = self.state.lock();
        match Instant::now() < state.next_attempt {
            true => Err(ReadError::Unavailable(state.reason.clone())),
            false => Ok(()),
        }
    }

    /// Notes that the engine could not be reached.
    fn failed(&self, error: ReadError) -> ReadError {
        let mut state = self.state.lock();
        state.back_off(&error);
        state.distrust = error.remedy().map(|remedy| format!("{error}; {remedy}"));
        tracing::debug!(address = self.address, %error, "cannot connect to an engine");
        error
    }

    /// Adjusts backoff and transports to the outcome of a request.
    pub(super) fn learn(&self, connection: &Arc<EngineConnection>, error: Option<&ReadError>) {
        let mut state = self.state.lock();
        let current = state.connection.as_ref().is_some_and(|current| Arc::ptr_eq(current, connection));
        if current && connection.is_open() && error.is_none() {
            state.backoff = MIN_BACKOFF;
        } else if current && !connection.is_open() {
            let reason = connection.end().unwrap_or_default();
            tracing::debug!(address = self.address, reason, "lost an engine");
            if connection.path().is_unusable() {
                state.avoid(connection.path().transport());
            }
            state.connection = None;
            state.back_off(&ReadError::Lost(reason));
        }
    }
}

impl LinkState {
    fn avoid(&mut self, transport: Transport) {
        self.avoided.insert(transport, Instant::now() + AVOID_TIME);
    }

    fn back_off(&mut self, error: &ReadError) {
        self.reason = error.to_string();
        self.next_attempt = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
    }
}
