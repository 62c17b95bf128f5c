//! The metadata subscription: all changes below a path, as they happen.
//!
//! One task follows the current filer and sends [`Notice`]s to its consumer through a
//! bounded channel. A slow consumer slows down the filer; nothing is dropped. The life of a
//! stream:
//!
//! 1. **Start.** A subscription begins at a position in the filer's log, not at the moment in
//!    which the filer takes note of it. The position is the time of the filer's own clock, asked
//!    for just before, less [`MARGIN`]. So this host's clock does not matter. A filer's log also
//!    has the events of its peers, with the times of their clocks, and may be out of order by less
//!    than the margin. Some events may therefore be known already.
//! 2. **[`Notice::Live`]** is sent when the stream has shown that it is up to date: by
//!    an event that is younger than [`MAX_LAG`], or by a heartbeat. A filer sends one every 5 s if
//!    it has sent all events that it has, the first at once. A consumer that reads an entry after
//!    `Live` misses no change of it: the change is logged after the read, so it lies behind the
//!    position and comes, or [`Notice::Lost`] comes. For filers without heartbeats see
//!    [`StreamFreshness`].
//! 3. **[`Notice::Lost`]** is sent when the stream fails or ends, when its filer is
//!    [down](super::liveness), when calls have moved to another filer, and when the stream has not
//!    shown for a while that it is up to date. What was cached before must then be checked, even
//!    after the next `Live`: a filer that is killed forgets the events that it had not written to
//!    its log.
//! 4. **Filers with peers** hold events back. Such a filer sends nothing that is newer than what
//!    every peer is known to have told it, so that events come in order. If a peer hangs or dies,
//!    the events of all are held back until the filer gives that peer up, which takes minutes.
//!    Meanwhile there are no heartbeats, so 3 applies for any peer. Besides, as soon as a filer is
//!    down that this client was told of, the stream of another one is not trusted for
//!    [`PEER_HOLD`]. The stream is followed all the same.
//! 5. **Resumption.** The next stream begins at the last event that was sent to the consumer, less
//!    [`MARGIN`] for the same reason. Heartbeats do not move the position.

use std::collections::HashMap;
use std::time::Duration;

use rand::Rng;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Streaming};

use super::endpoint::FilerEndpoint;
pub use super::event::{EntryChange, EntryRef};
use super::event::{StreamEvent, interpret};
use super::filer::FilerClient;
use super::freshness::{HeartbeatSupport, RENEW_TIMEOUT, StreamFreshness};
use super::pb;
use super::rpc::{CallFailure, FILER_TIMEOUT, within};
use crate::vital;

/// The name of this subscriber in the logs of filers.
const CLIENT_NAME: &str = "interceptor";
/// How far the clocks of a cluster's filers may be apart. It also bounds which events come again
/// after each interruption.
const MARGIN: Duration = Duration::from_secs(10);
/// An event or heartbeat that is older than this when it comes does not show that the stream is up
/// to date.
const MAX_LAG: Duration = Duration::from_secs(2);
/// How long the other filers may hold back events because of one that is down: two minutes after
/// the master has given it up, which takes a minute and a half.
const PEER_HOLD: Duration = Duration::from_secs(300);
/// How often the task checks whether the stream still counts as up to date.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// First and longest back-off between two streams.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// What a subscription sends to its consumer.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every event is a change, boxing would only add an allocation"
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// From now on all changes come.
    Live,
    /// Changes may be missed from now on, until the next `Live`. What was cached before must be
    /// checked.
    Lost {
        /// Why, for the log.
        reason: String,
    },
    /// An entry has changed.
    Change(EntryChange),
}

/// Sends the changes of `path_prefix` and below, until the receiver of `events` is dropped.
pub fn subscribe(filer: FilerClient, path_prefix: String, events: Sender<Notice>) -> JoinHandle<()> {
    let subscription = Subscription::new(filer, path_prefix, events);
    tokio::spawn(vital::task("subscription", subscription.run()))
}

struct Subscription {
    filer: FilerClient,
    path_prefix: String,
    events: Sender<Notice>,
    client_id: i32,
    /// A filer accepts a stream of a client only if this is higher than that of the stream before.
    client_epoch: i32,
    /// The time of the latest event that was sent, or of the start, in ns since the epoch by the
    /// filer's clock.
    position: Option<i64>,
    /// Whether the last report to the consumer was `Live`; `None` before the first report.
    reported_live: Option<bool>,
    /// Whether a filer may send several old events as one message.
    takes_batches: bool,
    /// Whether each filer sends heartbeats, by its index.
    heartbeats: HashMap<usize, HeartbeatSupport>,
    backoff: Duration,
}

/// Why a stream is not followed any longer.
enum StreamEnd {
    Lost(String),
    /// The consumer is gone.
    Dropped,
}

impl From<CallFailure> for StreamEnd {
    fn from(failure: CallFailure) -> Self {
        StreamEnd::Lost(failure.to_string())
    }
}

impl Subscription {
    fn new(filer: FilerClient, path_prefix: String, events: Sender<Notice>) -> Self {
        Self {
            filer,
            path_prefix,
            events,
            client_id: rand::rng().random_range(1..=i32::MAX),
            client_epoch: 0,
            position: None,
            reported_live: None,
            takes_batches: true,
            heartbeats: HashMap::new(),
            backoff: FIRST_BACKOFF,
        }
    }

    async fn run(mut self) {
        let events = self.events.clone();
        let client = self.filer.clone();
        loop {
            let end = tokio::select! {
                end = self.follow() => end,
                () = events.closed() => return,
            };
            let StreamEnd::Lost(reason) = end else { return };
            if self.report_lost(reason).await.is_err() {
                return;
            }
            // Half of the back-off is random, so that the subscribers of a filer that restarts do
            // not all come back at once.
            let backoff = self.backoff.mul_f64(rand::rng().random_range(0.5..=1.0));
            self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
            let ready = async {
                sleep(backoff).await;
                client.filers().current_up().await;
            };
            tokio::select! {
                () = ready => {}
                () = events.closed() => return,
            }
        }
    }

    /// Follows one stream to its end.
    async fn follow(&mut self) -> StreamEnd {
        let client = self.filer.clone();
        let mut moves = client.filers().watch_current();
        let (index, filer) = client.filers().current();
        let end = tokio::select! {
            end = self.stream(index, filer) => end,
            outage = filer.liveness.down() => CallFailure::from(outage).into(),
            _ = moves.wait_for(|&current| current != index) => {
                return StreamEnd::Lost(format!("calls have moved away from filer {}", filer.address));
            }
        };
        let StreamEnd::Lost(reason) = end else { return end };
        client.filers().leave(index, &reason);
        StreamEnd::Lost(format!("filer {}: {reason}", filer.address))
    }

    async fn stream(&mut self, index: usize, filer: &FilerEndpoint) -> StreamEnd {
        let heartbeats = self.heartbeats.get(&index).copied().unwrap_or_default();
        let mut freshness = StreamFreshness::new(heartbeats, Instant::now());
        let stream = match self.open(filer, &mut freshness).await {
            Ok(stream) => stream,
            Err(end) => return end,
        };
        let end = self.drain(index, filer, stream, freshness).await;
        end.err().unwrap_or_else(|| StreamEnd::Lost("it has ended the stream".into()))
    }

    async fn open(
        &mut self,
        filer: &FilerEndpoint,
        freshness: &mut StreamFreshness,
    ) -> Result<Streaming<pb::SubscribeMetadataResponse>, StreamEnd> {
        let mut stub = filer.events();
        let position = match self.position {
            Some(position) => position,
            None => {
                let now =
                    within(FILER_TIMEOUT, stub.ping(pb::PingRequest {})).await?.into_inner().start_time_ns;
                filer.liveness.set_filer_time(now);
                now
            }
        };
        self.position = Some(position);
        self.client_epoch += 1;
        let request = pb::SubscribeMetadataRequest {
            client_name: CLIENT_NAME.into(),
            path_prefix: self.path_prefix.clone(),
            since_ns: position.saturating_sub(MARGIN.as_nanos() as i64),
            client_id: self.client_id,
            client_epoch: self.client_epoch,
            client_supports_batching: self.takes_batches,
            client_supports_idle_heartbeat: true,
        };
        *freshness = StreamFreshness::new(freshness.heartbeats, Instant::now());
        let mut answer = std::pin::pin!(stub.subscribe_metadata(request));
        loop {
            // The answer begins with the first message, which a filer with peers may hold back,
            // and which a filer without heartbeats may not have.
            match timeout(POLL_INTERVAL, answer.as_mut()).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => return Err(self.note_message_bounds(CallFailure::Status(status)).into()),
                Err(_) => self.check(filer, freshness).await?,
            }
        }
    }

    /// Reports a stream that is not up to date any more, and ends one that is overdue.
    async fn check(&mut self, filer: &FilerEndpoint, freshness: &StreamFreshness) -> Result<(), StreamEnd> {
        self.report(filer, freshness).await?;
        if freshness.is_overdue(Instant::now()) {
            return Err(CallFailure::Timeout(RENEW_TIMEOUT).into());
        }
        Ok(())
    }

    /// After a message above the size bounds, requests no more batches: events within the bounds
    /// may be above them together.
    fn note_message_bounds(&mut self, failure: CallFailure) -> CallFailure {
        if let CallFailure::Status(status) = &failure {
            let is_too_large = matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted);
            self.takes_batches &= !is_too_large;
        }
        failure
    }

    async fn drain(
        &mut self,
        index: usize,
        filer: &FilerEndpoint,
        mut stream: Streaming<pb::SubscribeMetadataResponse>,
        mut freshness: StreamFreshness,
    ) -> Result<(), StreamEnd> {
        let client = self.filer.clone();
        loop {
            let message = tokio::select! {
                biased;
                message = stream.message() => match message {
                    Ok(Some(message)) => message,
                    Ok(None) => return Ok(()),
                    Err(status) => return Err(self.note_message_bounds(CallFailure::Status(status)).into()),
                },
                () = sleep(POLL_INTERVAL) => {
                    self.check(filer, &freshness).await?;
                    continue;
                }
            };
            filer.liveness.mark_up();
            let events =
                interpret(message, &self.path_prefix, |directory, raw| client.decode(directory, raw));
            let filer_time = filer.liveness.filer_time();
            let young = |event: &StreamEvent| is_young(event.ts_ns(), filer_time);
            freshness.record_message(events.iter().map(|event| (event, young(event))), Instant::now());
            if self.heartbeats.insert(index, freshness.heartbeats) != Some(freshness.heartbeats)
                && freshness.heartbeats == HeartbeatSupport::No
            {
                tracing::info!(filer = %filer.address, "this filer sends no heartbeats; its events count as long as it answers");
            }
            for event in events {
                let StreamEvent::Logged { ts_ns, change } = event else { continue };
                if let Some(change) = change {
                    self.send(Notice::Change(*change)).await?;
                }
                self.position = self.position.max(Some(ts_ns));
            }
            self.report(filer, &freshness).await?;
        }
    }

    /// Reports to the consumer whether the stream of `filer` is up to date, if that has changed.
    async fn report(&mut self, filer: &FilerEndpoint, freshness: &StreamFreshness) -> Result<(), StreamEnd> {
        let doubt = if self.filer.filers().lost_one_within(PEER_HOLD) {
            Some("a filer does not answer, which may hold back the events of all")
        } else if !freshness.is_up_to_date(Instant::now()) {
            Some("it holds back what it knows, or has nothing to say")
        } else {
            None
        };
        match doubt {
            None if self.reported_live != Some(true) => {
                self.backoff = FIRST_BACKOFF;
                self.send(Notice::Live).await?;
                self.reported_live = Some(true);
                Ok(())
            }
            Some(doubt) if self.reported_live == Some(true) => {
                self.report_lost(format!("filer {}: {doubt}", filer.address)).await
            }
            _ => Ok(()),
        }
    }

    /// Reports to the consumer that the stream is not up to date any more, unless it knows.
    async fn report_lost(&mut self, reason: String) -> Result<(), StreamEnd> {
        if self.reported_live == Some(false) {
            return Ok(());
        }
        tracing::warn!(%reason, "metadata subscription lost");
        self.send(Notice::Lost { reason }).await?;
        // Only now: the stream may end while the consumer is busy, before this event was sent.
        self.reported_live = Some(false);
        Ok(())
    }

    async fn send(&self, event: Notice) -> Result<(), StreamEnd> {
        self.events.send(event).await.map_err(|_| StreamEnd::Dropped)
    }
}

/// Whether a message of the time `ts_ns` comes without delay. False if the filer's clock is not
/// known.
fn is_young(ts_ns: i64, now_ns: Option<i64>) -> bool {
    now_ns.is_some_and(|now| now.saturating_sub(ts_ns) < MAX_LAG.as_nanos() as i64)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use futures::FutureExt;
    use parking_lot::Mutex;
    use prost::Message;
    use tokio::sync::mpsc;

    use super::super::scripted_filer::{self, ScriptedReply, now_ns};
    use super::*;

    #[test]
    fn an_event_that_was_held_back_proves_nothing() {
        let second = 1_000_000_000;
        assert!(is_young(10 * second, Some(11 * second)));
        assert!(is_young(10 * second, Some(9 * second)), "clocks of peers may be ahead");
        assert!(!is_young(10 * second, Some(13 * second)));
        assert!(!is_young(10 * second, None));
    }

    /// A message about a file that was created now.
    fn created() -> Vec<u8> {
        let entry = pb::Entry { name: "f".into(), ..Default::default() };
        let notification = pb::EventNotification {
            new_entry: Some(entry),
            new_parent_path: "/".into(),
            ..Default::default()
        };
        let message = pb::SubscribeMetadataResponse {
            directory: "/".into(),
            event_notification: Some(notification),
            ts_ns: now_ns(),
            ..Default::default()
        };
        message.encode_to_vec()
    }

    /// A filer's replies to all calls but the subscription.
    fn other_calls(call: &str) -> ScriptedReply {
        match call {
            "Ping" => ScriptedReply::pong(),
            "GetFilerConfiguration" => ScriptedReply::message(&pb::GetFilerConfigurationResponse::default()),
            _ => ScriptedReply::Status(12),
        }
    }

    #[tokio::test]
    async fn after_a_message_above_the_bounds_no_batches_are_requested() {
        let (asked, mut requests) = mpsc::channel(10);
        let filer = scripted_filer::start(move |call, message| match call {
            "SubscribeMetadata" => {
                let request = pb::SubscribeMetadataRequest::decode(message).unwrap();
                let _ = asked.try_send(request.client_supports_batching);
                // The status that the client's own codec gives such a message.
                ScriptedReply::Status(Code::OutOfRange as u16)
            }
            call => other_calls(call),
        });
        let client = scripted_filer::client(vec![filer.await]).await;
        let (sender, _notices) = mpsc::channel(10);
        subscribe(client, "/".into(), sender);
        for takes_batches in [true, false, false] {
            assert_eq!(requests.recv().await, Some(takes_batches));
        }
    }

    #[tokio::test]
    async fn a_loss_counts_as_reported_only_once_the_consumer_has_it() {
        let filer = scripted_filer::start(|call, _| other_calls(call)).await;
        let client = scripted_filer::client(vec![filer]).await;
        let (sender, mut notices) = mpsc::channel(1);
        let mut subscription = Subscription::new(client, "/".into(), sender);
        subscription.send(Notice::Live).await.ok().unwrap();
        subscription.reported_live = Some(true);
        // The consumer is busy, and the stream ends meanwhile.
        assert!(subscription.report_lost("one".into()).now_or_never().is_none());
        assert_eq!(notices.recv().await, Some(Notice::Live));
        subscription.report_lost("two".into()).await.ok().unwrap();
        let reported = notices.recv().now_or_never().flatten();
        assert_eq!(reported, Some(Notice::Lost { reason: "two".into() }));
        subscription.report_lost("three".into()).await.ok().unwrap();
        assert!(notices.recv().now_or_never().is_none(), "it knows");
    }

    const SILENCE: Duration = Duration::from_secs(8);

    #[tokio::test]
    async fn a_silent_filer_without_heartbeats_is_lost_only_once() {
        let (events, stream) = mpsc::channel(1);
        let (stream, hangs) = (Mutex::new(Some(stream)), Arc::new(AtomicBool::new(false)));
        let is_hung = hangs.clone();
        let filer = scripted_filer::start(move |call, _| match call {
            "SubscribeMetadata" => stream.lock().take().map_or(ScriptedReply::Silence, ScriptedReply::Stream),
            "Ping" if is_hung.load(Relaxed) => ScriptedReply::Silence,
            call => other_calls(call),
        });
        let client = scripted_filer::client(vec![filer.await]).await;
        let (sender, mut notices) = mpsc::channel(1);
        subscribe(client, "/".into(), sender);
        for is_known in [false, true] {
            events.send(created()).await.unwrap();
            assert!(matches!(notices.recv().await, Some(Notice::Change(_))));
            assert_eq!(notices.recv().await, Some(Notice::Live));
            if !is_known {
                let lost = notices.recv().await;
                assert!(
                    matches!(lost, Some(Notice::Lost { .. })),
                    "it may have heartbeats, and hold them back"
                );
            }
        }
        assert_eq!(timeout(SILENCE, notices.recv()).await.ok(), None, "nothing happens");
        hangs.store(true, Relaxed);
        assert!(matches!(notices.recv().await, Some(Notice::Lost { .. })), "it answers no ping");
    }
}
