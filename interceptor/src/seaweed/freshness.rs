//! Whether a subscription's stream is up to date, by what has come of it.

use std::time::Duration;

use tokio::time::Instant;

use super::event::StreamEvent;

/// How long a stream counts as up to date after it has shown that it is: heartbeats come every 5
/// s, so one may be late by 2 s.
const FRESH_TIMEOUT: Duration = Duration::from_secs(7);
/// After so long without a message the stream is opened again.
pub(super) const RENEW_TIMEOUT: Duration = Duration::from_secs(60);

/// Whether a filer sends heartbeats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum HeartbeatSupport {
    #[default]
    Unknown,
    Yes,
    No,
}

/// Whether a stream is up to date.
///
/// Filers **without heartbeats** are of older versions, and do not hold events back. Such a filer
/// is recognised by an event that comes without delay after [`FRESH_TIMEOUT`] of silence, if the
/// message before did as well: a filer with heartbeats would have sent one meanwhile, or held back
/// the event. From then on its stream counts as up to date as long as the filer answers pings.
#[derive(Debug)]
pub(super) struct StreamFreshness {
    pub(super) heartbeats: HeartbeatSupport,
    opened: Instant,
    last_message: Instant,
    /// When the stream last showed that it is up to date.
    last_proof: Option<Instant>,
}

impl StreamFreshness {
    /// The state of a stream that is opened now.
    pub(super) fn new(heartbeats: HeartbeatSupport, now: Instant) -> Self {
        Self { heartbeats, opened: now, last_message: now, last_proof: None }
    }

    /// Records a message. Each of its events comes with whether it came without delay.
    pub(super) fn record_message<'a>(
        &mut self,
        events: impl Iterator<Item = (&'a StreamEvent, bool)>,
        now: Instant,
    ) {
        let was_silent =
            self.last_proof == Some(self.last_message) && now - self.last_message > FRESH_TIMEOUT;
        self.last_message = now;
        for (index, (event, is_young)) in events.enumerate() {
            match event {
                StreamEvent::Heartbeat { .. } => self.heartbeats = HeartbeatSupport::Yes,
                // Only the first event counts: others may have waited for it, in one message.
                StreamEvent::Logged { .. } if is_young && was_silent && index == 0 => {
                    if self.heartbeats == HeartbeatSupport::Unknown {
                        self.heartbeats = HeartbeatSupport::No;
                    }
                }
                StreamEvent::Logged { .. } => {}
            }
            if is_young {
                self.last_proof = Some(now);
            }
        }
    }

    pub(super) fn is_up_to_date(&self, now: Instant) -> bool {
        match self.heartbeats {
            // By then all events have come that the filer had when the stream was opened.
            HeartbeatSupport::No => self.last_proof.is_some() || now - self.opened > FRESH_TIMEOUT,
            HeartbeatSupport::Unknown | HeartbeatSupport::Yes => {
                self.last_proof.is_some_and(|at| now - at <= FRESH_TIMEOUT)
            }
        }
    }

    /// Whether nothing has come for so long that the stream should be opened again.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.heartbeats != HeartbeatSupport::No && now - self.last_message > RENEW_TIMEOUT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const SILENCE: Duration = Duration::from_secs(8);
    const CHANGE: StreamEvent = StreamEvent::Logged { ts_ns: 1, change: None };
    const HEARTBEAT: StreamEvent = StreamEvent::Heartbeat { ts_ns: 1 };

    /// A stream after the given messages. Each has its distance from the one before, and whether
    /// it came without delay.
    fn after(messages: &[(Duration, &StreamEvent, bool)]) -> (StreamFreshness, Instant) {
        let mut now = Instant::now();
        let mut freshness = StreamFreshness::new(HeartbeatSupport::Unknown, now);
        for (pause, event, young) in messages {
            now += *pause;
            freshness.record_message([(*event, *young)].into_iter(), now);
        }
        (freshness, now)
    }

    #[test]
    fn a_silent_stream_of_a_filer_with_heartbeats_is_outdated() {
        let streams: [&[_]; 4] = [
            &[(SECOND, &HEARTBEAT, true)],
            &[(SECOND, &CHANGE, true)],
            &[(SECOND, &CHANGE, true), (SILENCE, &CHANGE, false), (SECOND, &CHANGE, true)],
            // The filer was known not to have any, and has been replaced by another version.
            &[(SECOND, &CHANGE, true), (SILENCE, &CHANGE, true), (SECOND, &HEARTBEAT, true)],
        ];
        for messages in streams {
            let (freshness, now) = after(messages);
            assert_ne!(freshness.heartbeats, HeartbeatSupport::No);
            assert!(
                freshness.is_up_to_date(now + SECOND) && !freshness.is_up_to_date(now + SILENCE),
                "{messages:?}"
            );
            assert!(freshness.is_overdue(now + RENEW_TIMEOUT + SECOND));
        }
        let (freshness, now) =
            after(&[(SECOND, &CHANGE, false), (SECOND, &StreamEvent::Heartbeat { ts_ns: 0 }, false)]);
        assert!(
            !freshness.is_up_to_date(now),
            "a late heartbeat shows that there are heartbeats, and proves nothing"
        );
    }

    #[test]
    fn a_silent_stream_of_a_filer_without_heartbeats_is_up_to_date() {
        let (freshness, now) = after(&[(SECOND, &CHANGE, true), (SILENCE, &CHANGE, true)]);
        assert_eq!(freshness.heartbeats, HeartbeatSupport::No);
        assert!(
            freshness.is_up_to_date(now + RENEW_TIMEOUT) && !freshness.is_overdue(now + 2 * RENEW_TIMEOUT)
        );
        // The next stream begins with the events that the filer has.
        let next = StreamFreshness::new(HeartbeatSupport::No, now);
        assert!(!next.is_up_to_date(now + SECOND) && next.is_up_to_date(now + SILENCE));
    }
}
