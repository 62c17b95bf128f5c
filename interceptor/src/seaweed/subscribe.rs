//! The metadata subscription: everything that changes below a path, as it changes.
//!
//! One task follows the current filer and hands [`Notice`]s to its consumer through a bounded channel; a consumer that
//! is slow slows down the filer, nothing is dropped. The story of a stream:
//!
//! 1. **Where to start.** A subscription begins at a position in the filer's log, not at the moment in which the filer
//!    takes note of it. The position is the filer's own clock, asked for just before, less [`MARGIN`]: this host's clock
//!    does not matter, and a filer's log, which also has the events of its peers with the times of their clocks, may be
//!    out of order by less than the margin. Events may therefore tell of things that are known already.
//! 2. **[`Notice::Live`]** is sent when the stream has shown that it is up to date: by an event that is younger than
//!    [`MAX_LAG`], or by a heartbeat, which a filer sends every 5 s if it has passed on all that it has, the first at once.
//!    Whoever reads an entry after that misses nothing: a change of it is logged after it was read, so it lies behind the
//!    position and comes, or [`Notice::Lost`] comes.
//!    **Filers without heartbeats** are older than these, and do not hold events back (4). Such a
//!    one gives itself away by an event that comes at once after [`PROOF_LASTS`] of silence, as
//!    does the one before: in between a filer that has heartbeats would have sent one, or held
//!    back the event. From then on its stream counts as up to date as long as it answers pings.
//! 3. **[`Notice::Lost`]** is sent when the stream fails or ends, when its filer [falls silent](super::pulse), when calls
//!    have moved to another filer, and when the stream has not shown for [`PROOF_LASTS`] that it is up to date. From then on
//!    nothing that was cached may be trusted unseen, also after the next `Live`: a filer that is killed forgets what it had
//!    not written to its log.
//! 4. **Filers with peers** hold events back. Such a filer passes on nothing that is newer than what every peer is known
//!    to have told it, so that events come in order; when a peer hangs or dies, the events of all are held until the filer
//!    gives that peer up, which takes minutes. Meanwhile there are no heartbeats, as not all has been passed on, so (3) finds
//!    it out for any peer; and as soon as a filer that this client was told of is silent, the stream of another one is not
//!    trusted for [`PEER_HOLD`]. The stream is followed all the same.
//! 5. **Going on.** The next stream begins at the last event that was handed over, for the same reason less
//!    [`MARGIN`]. Heartbeats do not move the position.

use std::collections::HashMap;
use std::time::Duration;

use rand::Rng;
use tokio::sync::mpsc::Sender;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Streaming};

pub use super::event::{EntryChange, EntryRef};
use super::event::{Event, interpret};
use super::failover::{FILER_TIMEOUT, Failure, Filer, within};
use super::filer::FilerClient;
use super::pb;
use crate::vital;

/// How filers call this subscriber in their logs.
const CLIENT_NAME: &str = "interceptor";
/// How far the clocks of a cluster's filers may be apart. It bounds what comes again after each interruption, too.
const MARGIN: Duration = Duration::from_secs(10);
/// An event or heartbeat that is older than this when it comes does not show that the stream is up to date.
const MAX_LAG: Duration = Duration::from_secs(2);
/// How long the stream counts as up to date after it has shown that: a heartbeat may be late by this much less 5 s.
const PROOF_LASTS: Duration = Duration::from_secs(7);
/// How long the other filers may hold back events because of one that is silent: two minutes after the master has given it
/// up, which takes a minute and a half.
const PEER_HOLD: Duration = Duration::from_secs(300);
/// After this long without a message the stream is opened anew.
const RENEW_AFTER: Duration = Duration::from_secs(60);
/// How often it is looked whether the stream still counts as up to date.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
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
    Change(EntryChange),
}

/// Follows what changes at `path_prefix` and below, until the receiver of `notices` is dropped.
pub fn subscribe(filer: FilerClient, path_prefix: String, notices: Sender<Notice>) -> JoinHandle<()> {
    let subscription = Subscription::new(filer, path_prefix, notices);
    tokio::spawn(vital::task("subscription", subscription.run()))
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
    /// Whether a filer may send several old events as one message.
    takes_batches: bool,
    /// What is known of each filer, by its index.
    heartbeats: HashMap<usize, Heartbeats>,
    pause: Duration,
}

/// Whether a filer sends heartbeats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Heartbeats {
    #[default]
    Unknown,
    Sent,
    NotSent,
}

/// Whether a stream is up to date, by what has come of it.
#[derive(Debug)]
struct Freshness {
    heartbeats: Heartbeats,
    begun: Instant,
    /// When the last message came.
    heard: Instant,
    /// When the stream showed last that it is up to date.
    proof: Option<Instant>,
}

impl Freshness {
    /// That of a stream which is asked for now.
    fn new(heartbeats: Heartbeats, now: Instant) -> Self {
        Self { heartbeats, begun: now, heard: now, proof: None }
    }

    /// A message has come. `young` says of each of its events whether that came without delay.
    fn heard<'a>(&mut self, events: impl Iterator<Item = (&'a Event, bool)>, now: Instant) {
        let was_quiet = self.proof == Some(self.heard) && now - self.heard > PROOF_LASTS;
        self.heard = now;
        for (index, (event, young)) in events.enumerate() {
            match event {
                Event::Heartbeat { .. } => self.heartbeats = Heartbeats::Sent,
                // What comes behind others in a message may have waited with them.
                Event::Logged { .. } if young && was_quiet && index == 0 => {
                    if self.heartbeats == Heartbeats::Unknown {
                        self.heartbeats = Heartbeats::NotSent;
                    }
                }
                Event::Logged { .. } => {}
            }
            if young {
                self.proof = Some(now);
            }
        }
    }

    fn is_up_to_date(&self, now: Instant) -> bool {
        match self.heartbeats {
            // What it had to say when it was asked has come by then.
            Heartbeats::NotSent => self.proof.is_some() || now - self.begun > PROOF_LASTS,
            Heartbeats::Unknown | Heartbeats::Sent => self.proof.is_some_and(|at| now - at <= PROOF_LASTS),
        }
    }

    /// Whether so long nothing came that another stream may be better.
    fn is_overdue(&self, now: Instant) -> bool {
        self.heartbeats != Heartbeats::NotSent && now - self.heard > RENEW_AFTER
    }
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
    fn new(filer: FilerClient, path_prefix: String, notices: Sender<Notice>) -> Self {
        Self {
            filer,
            path_prefix,
            notices,
            client_id: rand::rng().random_range(1..=i32::MAX),
            client_epoch: 0,
            position: None,
            told: None,
            takes_batches: true,
            heartbeats: HashMap::new(),
            pause: FIRST_PAUSE,
        }
    }

    async fn run(mut self) {
        let notices = self.notices.clone();
        let client = self.filer.clone();
        loop {
            let end = tokio::select! {
                end = self.follow() => end,
                () = notices.closed() => return,
            };
            let End::Lost(reason) = end else { return };
            if self.lose(reason).await.is_err() {
                return;
            }
            // Half of the pause is random: the subscribers of a filer that restarts do not come back all at once.
            let pause = self.pause.mul_f64(rand::rng().random_range(0.5..=1.0));
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            let ready = async {
                sleep(pause).await;
                client.filers().any_answers().await;
            };
            tokio::select! {
                () = ready => {}
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
            end = self.stream(index, filer) => end,
            silence = filer.pulse().lost() => Failure::from(silence).into(),
            _ = moves.wait_for(|&current| current != index) => {
                return End::Lost(format!("calls have moved away from filer {}", filer.address));
            }
        };
        let End::Lost(reason) = end else { return end };
        client.filers().leave(index, &reason);
        End::Lost(format!("filer {}: {reason}", filer.address))
    }

    async fn stream(&mut self, index: usize, filer: &Filer) -> End {
        let heartbeats = self.heartbeats.get(&index).copied().unwrap_or_default();
        let mut freshness = Freshness::new(heartbeats, Instant::now());
        let stream = match self.open(filer, &mut freshness).await {
            Ok(stream) => stream,
            Err(end) => return end,
        };
        let end = self.drain(index, filer, stream, freshness).await;
        end.err().unwrap_or_else(|| End::Lost("it has ended the stream".into()))
    }

    async fn open(
        &mut self,
        filer: &Filer,
        freshness: &mut Freshness,
    ) -> Result<Streaming<pb::SubscribeMetadataResponse>, End> {
        let mut stub = filer.events();
        let position = match self.position {
            Some(position) => position,
            None => {
                let now =
                    within(FILER_TIMEOUT, stub.ping(pb::PingRequest {})).await?.into_inner().start_time_ns;
                filer.pulse().tells_time(now);
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
        *freshness = Freshness::new(freshness.heartbeats, Instant::now());
        let mut answer = std::pin::pin!(stub.subscribe_metadata(request));
        loop {
            // The answer begins with the first message, which a filer with peers may hold back,
            // and another not have.
            match timeout(LOOK_INTERVAL, answer.as_mut()).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => return Err(self.heed_bounds(Failure::Status(status)).into()),
                Err(_) => self.look(filer, freshness).await?,
            }
        }
    }

    /// Draws conclusions from the time that has passed.
    async fn look(&mut self, filer: &Filer, freshness: &Freshness) -> Result<(), End> {
        self.judge(filer, freshness).await?;
        if freshness.is_overdue(Instant::now()) {
            return Err(Failure::Silent(RENEW_AFTER).into());
        }
        Ok(())
    }

    /// After a message above the bounds: events that are within them may be too large together, so
    /// that each has to come alone.
    fn heed_bounds(&mut self, failure: Failure) -> Failure {
        if let Failure::Status(status) = &failure {
            let is_too_large = matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted);
            self.takes_batches &= !is_too_large;
        }
        failure
    }

    async fn drain(
        &mut self,
        index: usize,
        filer: &Filer,
        mut stream: Streaming<pb::SubscribeMetadataResponse>,
        mut freshness: Freshness,
    ) -> Result<(), End> {
        let client = self.filer.clone();
        loop {
            let message = tokio::select! {
                biased;
                message = stream.message() => match message {
                    Ok(Some(message)) => message,
                    Ok(None) => return Ok(()),
                    Err(status) => return Err(self.heed_bounds(Failure::Status(status)).into()),
                },
                () = sleep(LOOK_INTERVAL) => {
                    self.look(filer, &freshness).await?;
                    continue;
                }
            };
            filer.pulse().heard();
            let events =
                interpret(message, &self.path_prefix, |directory, raw| client.decode(directory, raw));
            let filer_time = filer.pulse().filer_time();
            let young = |event: &Event| is_young(event.ts_ns(), filer_time);
            freshness.heard(events.iter().map(|event| (event, young(event))), Instant::now());
            if self.heartbeats.insert(index, freshness.heartbeats) != Some(freshness.heartbeats)
                && freshness.heartbeats == Heartbeats::NotSent
            {
                tracing::info!(filer = %filer.address, "this filer sends no heartbeats; its events count as long as it answers");
            }
            for event in events {
                let Event::Logged { ts_ns, change } = event else { continue };
                if let Some(change) = change {
                    self.send(Notice::Change(*change)).await?;
                }
                self.position = self.position.max(Some(ts_ns));
            }
            self.judge(filer, &freshness).await?;
        }
    }

    /// Tells the consumer whether the stream of `filer` can be relied on, if that has changed.
    async fn judge(&mut self, filer: &Filer, freshness: &Freshness) -> Result<(), End> {
        let doubt = if self.filer.filers().has_lost_one_within(PEER_HOLD) {
            Some("another filer does not answer, which may hold back the events of all")
        } else if !freshness.is_up_to_date(Instant::now()) {
            Some("it holds back what it knows, or has nothing to say")
        } else {
            None
        };
        match doubt {
            None if self.told != Some(true) => {
                self.pause = FIRST_PAUSE;
                self.send(Notice::Live).await?;
                self.told = Some(true);
                Ok(())
            }
            Some(doubt) if self.told == Some(true) => {
                self.lose(format!("filer {}: {doubt}", filer.address)).await
            }
            _ => Ok(()),
        }
    }

    /// Tells the consumer, unless it knows, that the stream cannot be relied on any more.
    async fn lose(&mut self, reason: String) -> Result<(), End> {
        if self.told == Some(false) {
            return Ok(());
        }
        tracing::warn!(%reason, "metadata subscription lost");
        self.send(Notice::Lost { reason }).await?;
        // Not before: the stream may end while the consumer is busy, and nothing has been told then.
        self.told = Some(false);
        Ok(())
    }

    async fn send(&self, notice: Notice) -> Result<(), End> {
        self.notices.send(notice).await.map_err(|_| End::Abandoned)
    }
}

/// Whether what was sent at the time `ts_ns` comes without delay, if it is known what the filer's clock shows.
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

    use super::super::scripted_filer::{self, Reply, now_ns};
    use super::*;

    #[test]
    fn an_event_that_was_held_back_shows_nothing() {
        let second = 1_000_000_000;
        assert!(is_young(10 * second, Some(11 * second)));
        assert!(is_young(10 * second, Some(9 * second)), "clocks of peers may be ahead");
        assert!(!is_young(10 * second, Some(13 * second)));
        assert!(!is_young(10 * second, None));
    }

    /// A message that says that a file was made now.
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

    /// What a filer says to everything but to a subscription.
    fn other_calls(call: &str) -> Reply {
        match call {
            "Ping" => Reply::pong(),
            "GetFilerConfiguration" => Reply::message(&pb::GetFilerConfigurationResponse::default()),
            _ => Reply::Status(12),
        }
    }

    #[tokio::test]
    async fn after_a_message_above_the_bounds_events_come_alone() {
        let (asked, mut requests) = mpsc::channel(10);
        let filer = scripted_filer::start(move |call, message| match call {
            "SubscribeMetadata" => {
                let request = pb::SubscribeMetadataRequest::decode(message).unwrap();
                let _ = asked.try_send(request.client_supports_batching);
                // As the client's own codec says of such a message.
                Reply::Status(Code::OutOfRange as u16)
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
    async fn a_loss_counts_as_told_once_the_consumer_was_told() {
        let filer = scripted_filer::start(|call, _| other_calls(call)).await;
        let client = scripted_filer::client(vec![filer]).await;
        let (sender, mut notices) = mpsc::channel(1);
        let mut subscription = Subscription::new(client, "/".into(), sender);
        subscription.send(Notice::Live).await.ok().unwrap();
        subscription.told = Some(true);
        // The consumer is busy, and the stream ends meanwhile.
        assert!(subscription.lose("one".into()).now_or_never().is_none());
        assert_eq!(notices.recv().await, Some(Notice::Live));
        subscription.lose("two".into()).await.ok().unwrap();
        let told = notices.recv().now_or_never().flatten();
        assert_eq!(told, Some(Notice::Lost { reason: "two".into() }));
        subscription.lose("three".into()).await.ok().unwrap();
        assert!(notices.recv().now_or_never().is_none(), "it knows");
    }

    #[tokio::test]
    async fn a_filer_without_heartbeats_is_not_lost_again_and_again() {
        let (events, stream) = mpsc::channel(1);
        let (stream, hangs) = (Mutex::new(Some(stream)), Arc::new(AtomicBool::new(false)));
        let is_hung = hangs.clone();
        let filer = scripted_filer::start(move |call, _| match call {
            "SubscribeMetadata" => stream.lock().take().map_or(Reply::Silence, Reply::Stream),
            "Ping" if is_hung.load(Relaxed) => Reply::Silence,
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
                    "so far it may have some, and hold them back"
                );
            }
        }
        assert_eq!(timeout(QUIET, notices.recv()).await.ok(), None, "nothing happens");
        hangs.store(true, Relaxed);
        assert!(matches!(notices.recv().await, Some(Notice::Lost { .. })), "it answers no ping");
    }

    const SOON: Duration = Duration::from_secs(1);
    const QUIET: Duration = Duration::from_secs(8);
    const CHANGE: Event = Event::Logged { ts_ns: 1, change: None };
    const HEARTBEAT: Event = Event::Heartbeat { ts_ns: 1 };

    /// A stream after the given messages, each a time after the one before, with whether it came
    /// without delay.
    fn after(messages: &[(Duration, &Event, bool)]) -> (Freshness, Instant) {
        let mut now = Instant::now();
        let mut freshness = Freshness::new(Heartbeats::Unknown, now);
        for (pause, event, young) in messages {
            now += *pause;
            freshness.heard([(*event, *young)].into_iter(), now);
        }
        (freshness, now)
    }

    #[test]
    fn silence_counts_for_filers_that_have_heartbeats() {
        let streams: [&[_]; 4] = [
            &[(SOON, &HEARTBEAT, true)],
            &[(SOON, &CHANGE, true)],
            &[(SOON, &CHANGE, true), (QUIET, &CHANGE, false), (SOON, &CHANGE, true)],
            // It was known not to have any, and has been exchanged.
            &[(SOON, &CHANGE, true), (QUIET, &CHANGE, true), (SOON, &HEARTBEAT, true)],
        ];
        for messages in streams {
            let (freshness, now) = after(messages);
            assert_ne!(freshness.heartbeats, Heartbeats::NotSent);
            assert!(
                freshness.is_up_to_date(now + SOON) && !freshness.is_up_to_date(now + QUIET),
                "{messages:?}"
            );
            assert!(freshness.is_overdue(now + RENEW_AFTER + SOON));
        }
        let (freshness, now) =
            after(&[(SOON, &CHANGE, false), (SOON, &Event::Heartbeat { ts_ns: 0 }, false)]);
        assert!(!freshness.is_up_to_date(now), "it shows that there are heartbeats, and is none");
    }

    #[test]
    fn silence_does_not_count_for_filers_that_have_no_heartbeats() {
        let (freshness, now) = after(&[(SOON, &CHANGE, true), (QUIET, &CHANGE, true)]);
        assert_eq!(freshness.heartbeats, Heartbeats::NotSent);
        assert!(freshness.is_up_to_date(now + RENEW_AFTER) && !freshness.is_overdue(now + 2 * RENEW_AFTER));
        // The next stream says what it has to say first.
        let next = Freshness::new(Heartbeats::NotSent, now);
        assert!(!next.is_up_to_date(now + SOON) && next.is_up_to_date(now + QUIET));
    }
}
