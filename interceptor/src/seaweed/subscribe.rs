//! The metadata subscription: everything that changes below a path, as it changes.
//!
//! One task follows the current filer and hands [`Notice`]s to its consumer through a bounded channel; a consumer that
//! is slow slows down the filer, nothing is dropped. The story of a stream:
//!
//! 1. **Where to start.** A subscription begins at a position in the filer's log, not at the moment in which the filer
//!    takes note of it. The position is the filer's own clock, asked for just before, less [`MARGIN`]: this host's clock
//!    does not matter, and a filer's log, which also has the events of its peers with the times of their clocks, may be
//!    out of order by less than the margin. Events may therefore tell of things that are known already.
//! 2. **[`Notice::Live`]** is sent with the first message, be it an event or a heartbeat; a filer without news sends a
//!    heartbeat at once. Whoever reads an entry after that misses nothing: a change of it is logged after it was read,
//!    so it lies behind the position and comes, or [`Notice::Lost`] comes.
//! 3. **[`Notice::Lost`]** is sent when the stream fails, ends, or has been silent for [`SILENCE`] (filers send a
//!    heartbeat every 5 s), and when calls have moved to another filer. From then on nothing that was cached may be
//!    trusted unseen, also after the next `Live`: a filer that is killed forgets what it had not written to its log.
//! 4. **Going on.** The next stream begins at the last event that was handed over, for the same reason less
//!    [`MARGIN`]. Heartbeats do not move the position.

use std::time::Duration;

use rand::Rng;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinHandle;
use tonic::Streaming;

pub use super::event::{Change, EntryRef};
use super::event::{Event, interpret};
use super::failover::{Failure, Filer, within};
use super::filer::{CALL_DEADLINE, FilerClient};
use super::pb;

/// How filers call this subscriber in their logs.
const CLIENT_NAME: &str = "interceptor";
/// How far the clocks of a cluster's filers may be apart. It bounds what comes again after each interruption, too.
const MARGIN: Duration = Duration::from_secs(10);
/// After this long without a message the stream counts as lost: three heartbeats.
const SILENCE: Duration = Duration::from_secs(15);
/// First and longest pause between two streams.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What the subscription tells its consumer.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every notice is a change, boxing would only add an allocation"
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// From now on every change comes.
    Live,
    /// Changes may be missed from now on, until the next `Live`; what was cached before must be checked.
    Lost {
        /// Why, for the log.
        reason: String,
    },
    /// Something changed.
    Change(Change),
}

/// Follows what changes at `path_prefix` and below, until the receiver of `notices` is dropped.
pub fn subscribe(filer: FilerClient, path_prefix: String, notices: Sender<Notice>) -> JoinHandle<()> {
    let subscription = Subscription {
        filer,
        path_prefix,
        notices,
        client_id: rand::rng().random_range(1..=i32::MAX),
        client_epoch: 0,
        position: None,
        told: None,
        pause: FIRST_PAUSE,
    };
    tokio::spawn(subscription.run())
}

struct Subscription {
    filer: FilerClient,
    path_prefix: String,
    notices: Sender<Notice>,
    client_id: i32,
    /// Filers take a client's stream only if this is higher than that of the stream before.
    client_epoch: i32,
    /// The latest event that was handed over, or the start, in ns since the epoch of the filer's clock.
    position: Option<i64>,
    /// Whether the consumer was told last that the stream is alive; nothing before it was told anything.
    told: Option<bool>,
    pause: Duration,
}

/// Why a stream is not followed any longer.
enum End {
    Lost(String),
    /// The consumer is gone.
    Abandoned,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        End::Lost(failure.to_string())
    }
}

impl Subscription {
    async fn run(mut self) {
        let notices = self.notices.clone();
        loop {
            let end = tokio::select! {
                end = self.follow() => end,
                () = notices.closed() => return,
            };
            let End::Lost(reason) = end else { return };
            if self.told != Some(false) {
                tracing::warn!(%reason, "metadata subscription lost");
                self.told = Some(false);
                if self.notices.send(Notice::Lost { reason }).await.is_err() {
                    return;
                }
            }
            // Half of the pause is random: the subscribers of a filer that restarts do not come back all at once.
            let pause = self.pause.mul_f64(rand::rng().random_range(0.5..=1.0));
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = notices.closed() => return,
            }
        }
    }

    /// Follows one stream to its end.
    async fn follow(&mut self) -> End {
        let client = self.filer.clone();
        let mut moves = client.filers().watch();
        let (index, filer) = client.filers().current();
        let end = tokio::select! {
            end = self.stream(filer) => end,
            _ = moves.wait_for(|&current| current != index) => {
                return End::Lost(format!("calls have moved away from filer {}", filer.address));
            }
        };
        let End::Lost(reason) = end else { return end };
        client.filers().leave(index, &reason);
        End::Lost(format!("filer {}: {reason}", filer.address))
    }

    async fn stream(&mut self, filer: &Filer) -> End {
        let stream = match self.open(filer).await {
            Ok(stream) => stream,
            Err(failure) => return failure.into(),
        };
        self.drain(stream).await.err().unwrap_or_else(|| End::Lost("it has ended the stream".into()))
    }

    async fn open(&mut self, filer: &Filer) -> Result<Streaming<pb::SubscribeMetadataResponse>, Failure> {
        let mut stub = filer.events();
        let position = match self.position {
            Some(position) => position,
            None => within(CALL_DEADLINE, stub.ping(pb::PingRequest {})).await?.into_inner().start_time_ns,
        };
        self.position = Some(position);
        self.client_epoch += 1;
        let request = pb::SubscribeMetadataRequest {
            client_name: CLIENT_NAME.into(),
            path_prefix: self.path_prefix.clone(),
            since_ns: position.saturating_sub(MARGIN.as_nanos() as i64),
            client_id: self.client_id,
            client_epoch: self.client_epoch,
            client_supports_batching: true,
            client_supports_idle_heartbeat: true,
        };
        // The answer begins with the first message.
        Ok(within(SILENCE, stub.subscribe_metadata(request)).await?.into_inner())
    }

    async fn drain(&mut self, mut stream: Streaming<pb::SubscribeMetadataResponse>) -> Result<(), End> {
        let client = self.filer.clone();
        while let Some(message) = within(SILENCE, stream.message()).await? {
            if self.told != Some(true) {
                self.told = Some(true);
                self.pause = FIRST_PAUSE;
                self.send(Notice::Live).await?;
            }
            let events =
                interpret(message, &self.path_prefix, |directory, raw| client.decode(directory, raw));
            for event in events {
                let Event::Logged { ts_ns, change } = event else { continue };
                if let Some(change) = change {
                    self.send(Notice::Change(*change)).await?;
                }
                self.position = self.position.max(Some(ts_ns));
            }
        }
        Ok(())
    }

    async fn send(&self, notice: Notice) -> Result<(), End> {
        self.notices.send(notice).await.map_err(|_| End::Abandoned)
    }
}
