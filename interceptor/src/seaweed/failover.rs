//! Several filers of one cluster, of which one is in use.
//!
//! All calls and the metadata subscription use the same filer, the current one: filers with stores of their own copy
//! changes from each other with a delay, so an answer of one filer must not be judged by the events of another. A call
//! that the current filer does not answer makes the next one current, for everyone. Answers that are errors are
//! answers: they change nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::address::ServerAddress;
use super::channel;
use super::pb::seaweed_filer_client::SeaweedFilerClient;
use crate::telemetry::health::{FilerHealth, LastError};

/// Entries with many chunks are large; SeaweedFS itself allows messages of this size, in bytes.
const MAX_MESSAGE: usize = 1 << 30;
/// First and longest pause after all filers failed in turn.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A stub of the filer's service.
pub(super) type Stub = SeaweedFilerClient<Channel>;

/// Why a filer did not do what it was asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FilerError {
    /// No filer answered.
    #[error("no filer answers {rpc}: {}; check that a filer runs there, that its gRPC port is open to this host, and that security.toml fits", Reasons(.tried))]
    Unreachable {
        /// The call.
        rpc: &'static str,
        /// Every filer that was asked, and why it failed last.
        tried: Vec<(ServerAddress, String)>,
    },
    /// A filer answered with an error.
    #[error("filer {filer} refuses {rpc}: {message}; its log says more")]
    Refused {
        /// The filer.
        filer: ServerAddress,
        /// The call.
        rpc: &'static str,
        /// What it said.
        message: String,
    },
    /// An address cannot be used.
    #[error("`{0}` is not a usable filer address")]
    Address(ServerAddress),
    /// No filer was named.
    #[error("no filer is named; give at least one HOST:PORT")]
    NoFiler,
}

struct Reasons<'a>(&'a [(ServerAddress, String)]);

impl fmt::Display for Reasons<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (filer, reason)) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{filer} (gRPC port {}): {reason}", filer.grpc_port)?;
        }
        Ok(())
    }
}

/// What can go wrong with one call of one filer.
#[derive(Debug)]
pub(super) enum Failure {
    /// An error came back, from the filer or from the transport.
    Status(Status),
    /// Nothing came for this long.
    Silent(Duration),
}

impl Failure {
    /// Whether the filer itself said so: another one would say the same.
    fn is_answer(&self) -> bool {
        use std::error::Error;
        match self {
            Failure::Silent(_) => false,
            // The transport's errors have a source; `Unavailable` and `Cancelled` also come from a filer that stops.
            // `Unknown` without a source is what Go makes of any error, but also a stream that was cut off.
            Failure::Status(status) => {
                let stopping =
                    matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded);
                let cut = status.code() == Code::Unknown && status.message().contains("missing grpc-status");
                !stopping && !cut && status.source().is_none()
            }
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use std::error::Error;
        let status = match self {
            Failure::Silent(limit) => return write!(f, "no answer within {} s", limit.as_secs_f32()),
            Failure::Status(status) => status,
        };
        // Each layer repeats the text of those below it.
        let mut text = status.message().to_owned();
        let mut source = status.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) && cause_text != "transport error" {
                text = format!("{text}: {cause_text}");
            }
            source = cause.source();
        }
        f.write_str(&text)
    }
}

/// Waits for a call or for the next message of a stream, no longer than `limit`.
pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result.map_err(Failure::Status),
        Err(_) => Err(Failure::Silent(limit)),
    }
}

/// One filer. Calls and the subscription have a connection each: events that nobody takes fill the receive window of
/// their connection, and calls would wait behind them.
pub(super) struct Filer {
    pub(super) address: ServerAddress,
    calls: Stub,
    events: Stub,
    trouble: LastError,
}

impl Filer {
    /// A stub for calls and listings.
    pub(super) fn calls(&self) -> Stub {
        self.calls.clone()
    }

    /// A stub for the subscription.
    pub(super) fn events(&self) -> Stub {
        self.events.clone()
    }
}

/// The filers of a cluster; see the module.
pub(super) struct Filers {
    all: Vec<Filer>,
    current: watch::Sender<usize>,
}

impl Filers {
    /// Prepares channels, connects none.
    pub(super) fn new(
        addresses: Vec<ServerAddress>,
        tls: Option<Arc<ClientConfig>>,
    ) -> Result<Self, FilerError> {
        if addresses.is_empty() {
            return Err(FilerError::NoFiler);
        }
        let stub = |address: &ServerAddress| match channel::open(address, tls.clone()) {
            Ok(channel) => Ok(Stub::new(channel).max_decoding_message_size(MAX_MESSAGE)),
            Err(_) => Err(FilerError::Address(address.clone())),
        };
        let filer = |address| {
            Ok(Filer {
                calls: stub(&address)?,
                events: stub(&address)?,
                trouble: LastError::default(),
                address,
            })
        };
        let all = addresses.into_iter().map(filer).collect::<Result<_, _>>()?;
        Ok(Self { all, current: watch::Sender::new(0) })
    }

    /// The filer in use and its index.
    pub(super) fn current(&self) -> (usize, &Filer) {
        let index = *self.current.borrow();
        (index, &self.all[index])
    }

    /// Tells when another filer becomes current.
    pub(super) fn watch(&self) -> watch::Receiver<usize> {
        self.current.subscribe()
    }

    /// Makes the next filer current, unless `index` is not current any more.
    pub(super) fn leave(&self, index: usize, reason: &dyn fmt::Display) {
        self.all[index].trouble.note(reason);
        let next = (index + 1) % self.all.len();
        let moved = self.current.send_if_modified(|current| {
            let leaving = *current == index && next != index;
            if leaving {
                *current = next;
            }
            leaving
        });
        if moved {
            tracing::warn!(from = %self.all[index].address, to = %self.all[next].address, %reason, "filer left");
        }
    }

    /// How each of them is doing.
    pub(super) fn health(&self) -> Vec<FilerHealth> {
        let current = self.current().0;
        let health = |(index, filer): (usize, &Filer)| FilerHealth {
            address: filer.address.to_string(),
            is_current: index == current,
            last_error: filer.trouble.told(),
        };
        self.all.iter().enumerate().map(health).collect()
    }

    /// Starts a call that goes on with the next filer as long as none answers: until each was asked once and
    /// `patience` is over.
    pub(super) fn attempts(&self, rpc: &'static str, patience: Duration) -> Attempts<'_> {
        let tried = BTreeMap::new();
        let index = self.current().0;
        Attempts { filers: self, rpc, index, patience, give_up: None, pause: FIRST_PAUSE, failed: 0, tried }
    }
}

/// The attempts of one call; see [`Filers::attempts`].
pub(super) struct Attempts<'a> {
    filers: &'a Filers,
    rpc: &'static str,
    index: usize,
    patience: Duration,
    give_up: Option<Instant>,
    pause: Duration,
    /// Failures since the start or since the last progress.
    failed: usize,
    tried: BTreeMap<usize, String>,
}

impl Attempts<'_> {
    /// The filer to ask now.
    pub(super) fn filer(&self) -> &Filer {
        &self.filers.all[self.index]
    }

    /// The call got further, if not to its end: what failed before does not count any more.
    pub(super) fn progressed(&mut self) {
        self.give_up = None;
        self.failed = 0;
        self.pause = FIRST_PAUSE;
        self.tried.clear();
    }

    /// Takes note of a failure. `Ok` when the call is to be tried again, with [`filer`](Self::filer); it may have
    /// slept before. Otherwise the error to report.
    pub(super) async fn failed(&mut self, failure: Failure) -> Result<(), FilerError> {
        if failure.is_answer() {
            self.filer().trouble.note(&failure);
            return Err(self.refused(failure.to_string()));
        }
        let give_up = *self.give_up.get_or_insert_with(|| Instant::now() + self.patience);
        self.filers.leave(self.index, &failure);
        self.tried.insert(self.index, failure.to_string());
        self.failed += 1;
        let filers = self.filers.all.len();
        self.index = (self.index + 1) % filers;
        if !self.failed.is_multiple_of(filers) {
            return Ok(());
        }
        if Instant::now() + self.pause > give_up {
            let tried = std::mem::take(&mut self.tried);
            let named = tried.into_iter().map(|(i, reason)| (self.filers.all[i].address.clone(), reason));
            return Err(FilerError::Unreachable { rpc: self.rpc, tried: named.collect() });
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }

    /// The error for an answer that is of no use.
    pub(super) fn refused(&self, message: String) -> FilerError {
        FilerError::Refused { filer: self.filer().address.clone(), rpc: self.rpc, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filers(count: u16) -> Filers {
        let address = |i| ServerAddress { host: "127.0.0.1".into(), http_port: i, grpc_port: i };
        Filers::new((1..=count).map(address).collect(), None).unwrap()
    }

    fn silent() -> Failure {
        Failure::Silent(Duration::from_secs(10))
    }

    #[tokio::test]
    async fn a_filer_that_does_not_answer_is_left_for_the_next() {
        let filers = filers(2);
        let mut attempts = filers.attempts("Test", Duration::ZERO);
        assert!(attempts.failed(silent()).await.is_ok());
        assert_eq!((attempts.filer().address.http_port, filers.current().0), (2, 1));
        let FilerError::Unreachable { tried, .. } = attempts.failed(silent()).await.unwrap_err() else {
            panic!("not unreachable");
        };
        assert_eq!(tried.iter().map(|(filer, _)| filer.http_port).collect::<Vec<_>>(), [1, 2]);
    }

    #[tokio::test]
    async fn an_answer_that_is_an_error_ends_the_call_and_moves_nobody() {
        let filers = filers(2);
        let failure = Failure::Status(Status::unknown("store is down"));
        let error = filers.attempts("Test", Duration::from_secs(10)).failed(failure).await.unwrap_err();
        assert!(matches!(error, FilerError::Refused { .. }), "{error}");
        assert_eq!(filers.current().0, 0);
    }

    #[tokio::test]
    async fn only_the_current_filer_can_be_left() {
        let filers = filers(3);
        filers.leave(2, &"test");
        assert_eq!(filers.current().0, 0);
        filers.leave(0, &"test");
        assert_eq!(filers.current().0, 1);
    }
}
