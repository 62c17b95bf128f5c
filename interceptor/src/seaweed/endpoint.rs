//! One filer of a cluster: its address, its connections, and whether it answers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use rustls::ClientConfig;

use super::address::ServerAddress;
use super::channel;
use super::liveness::Liveness;
use super::message::MAX_MESSAGE;
use super::rpc::Stub;
use crate::telemetry::health::LastError;

/// One filer.
///
/// Calls and the subscription have a connection each. Events that their consumer does not take
/// fill the receive window of their connection, and calls on it would wait behind them.
pub(super) struct FilerEndpoint {
    pub(super) address: ServerAddress,
    calls: Stub,
    events: Stub,
    pub(super) liveness: Liveness,
    /// Calls in a row that another filer has answered first.
    pub(super) lost_races: AtomicU32,
    pub(super) last_error: LastError,
}

impl FilerEndpoint {
    /// Prepares the channels without connecting them. Fails only if the host is not a valid one.
    pub(super) fn new(
        address: ServerAddress,
        tls: Option<&Arc<ClientConfig>>,
    ) -> Result<Self, tonic::transport::Error> {
        let stub = || {
            let channel = channel::open(&address, tls.cloned())?;
            Ok(Stub::new(channel).max_decoding_message_size(MAX_MESSAGE))
        };
        Ok(Self {
            calls: stub()?,
            events: stub()?,
            liveness: Liveness::new(),
            lost_races: AtomicU32::new(0),
            last_error: LastError::default(),
            address,
        })
    }

    /// A stub for calls and listings.
    pub(super) fn calls(&self) -> Stub {
        self.calls.clone()
    }

    /// A stub for the subscription and its pings.
    pub(super) fn events(&self) -> Stub {
        self.events.clone()
    }

    /// Records a failure for the status API.
    pub(super) fn record_error(&self, failure: &dyn fmt::Display) {
        self.last_error.note(failure);
    }
}
