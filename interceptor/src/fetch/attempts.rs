//! When a fetch is retried, and when it fails.
//!
//! All replicas of a volume are asked in turn: one **pass**. After a failed pass over locations
//! that were known from earlier, a pass over fresh ones follows at once. What comes next depends
//! on the servers' answers:
//!
//! * All refused: the fetch fails.
//! * All answered, but none has a good copy (missing or damaged): one more lookup and pass a
//!   little later, because a volume may be on the move; then the fetch fails.
//! * Some failed or were busy: more passes with growing back-off, until the retry time is over.
//!
//! The retry time counts from the arrival of the reader that waits, or from the first failure if
//! no reader waits. A request to a server may stay without a byte until then, or for a second; a
//! request whose response comes in goes on. If all servers have been unresponsive for the retry
//! time already, a reader waits for a second only: the kernel sends a read again that has failed.

use std::time::Duration;

use tokio::time::Instant;

use crate::arrival::Arrival;
use crate::seaweed::http1::Deadlines;
use crate::seaweed::volume::ErrorClass;

/// The back-off before the second pass over fresh locations. Each further one is half as long
/// again.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);

/// The back-off before servers are asked again that all said no.
const CONFIRMATION_BACKOFF: Duration = Duration::from_millis(300);

/// What each request to a server may take at least, however late it is sent.
pub(super) const MIN_REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// The back-off after `backoff`: half as long again.
pub(super) fn next_backoff(backoff: Duration) -> Duration {
    backoff + backoff / 2
}

/// The outcome of a pass in which no server delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PassOutcome {
    /// No server has the needle.
    Missing,
    /// Some servers have it, damaged; the others do not have it.
    Damaged,
    /// Some servers refused; the others do not have it.
    Refused,
    /// Some servers did not answer usefully, or there was no server to ask.
    Unanswered,
}

impl PassOutcome {
    /// The outcome if servers answered so.
    pub(super) fn of(answers: &[ErrorClass]) -> Self {
        let any = |class| answers.contains(&class);
        if answers.is_empty() || any(ErrorClass::Failed) || any(ErrorClass::Busy) {
            Self::Unanswered
        } else if any(ErrorClass::Damaged) {
            Self::Damaged
        } else if any(ErrorClass::Refused) {
            Self::Refused
        } else {
            Self::Missing
        }
    }
}

/// What to do after a failed pass.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NextStep {
    /// Look up the locations and ask all replicas again, after this back-off.
    Retry(Duration),
    /// Fail.
    GiveUp,
}

/// The history of one fetch.
pub(super) struct Attempts {
    retry_time: Duration,
    passes: u32,
    first_failure: Option<Instant>,
    /// Since when all servers have left readers waiting, if they have.
    unresponsive_since: Option<Instant>,
    backoff: Duration,
    /// Passes over fresh locations in a row in which all answered and none had a good copy.
    negative_passes: u32,
}

impl Attempts {
    pub(super) fn new(retry_time: Duration) -> Self {
        Self {
            retry_time,
            passes: 0,
            first_failure: None,
            unresponsive_since: None,
            backoff: FIRST_BACKOFF,
            negative_passes: 0,
        }
    }

    /// Records since when all servers that are to be asked have left readers waiting, if they
    /// have.
    pub(super) fn set_unresponsive_since(&mut self, since: Option<Instant>) {
        self.unresponsive_since = since;
    }

    /// How many passes have failed.
    pub(super) fn passes(&self) -> u32 {
        self.passes
    }

    /// The deadlines of a request that is sent now, for a reader that arrived at `demanded` or for
    /// none. It may take `request_timeout` while its response comes in.
    pub(super) fn deadlines(
        &self,
        demanded: Option<Arrival>,
        now: Instant,
        request_timeout: Duration,
    ) -> Deadlines {
        let least = now + MIN_REQUEST_TIMEOUT;
        let Some(silence) = self.retry_until(demanded) else { return (now + request_timeout).into() };
        let end = demanded.map_or(now, |arrival| arrival.deadline(Duration::ZERO)) + request_timeout;
        Deadlines { silence: silence.max(least), end: end.max(silence).max(least) }
    }

    /// Until when the fetch is retried; `None` as long as nothing has failed and no reader waits.
    pub(super) fn retry_until(&self, demanded: Option<Arrival>) -> Option<Instant> {
        let failed = self.first_failure;
        match demanded {
            Some(arrival) => {
                let least = MIN_REQUEST_TIMEOUT.min(self.retry_time);
                let limit = arrival.deadline(self.retry_time);
                let earliest = arrival.deadline(least);
                let limit = self
                    .unresponsive_since
                    .map_or(limit, |since| limit.min(earliest.max(since + self.retry_time)));
                // A connection that broke after bytes came in for long deserves a retry; one on
                // which nothing came does not.
                let broke_late = failed.filter(|&first| first > limit + MIN_REQUEST_TIMEOUT);
                Some(broke_late.map_or(limit, |first| first + least))
            }
            None => failed.map(|first| first + self.retry_time),
        }
    }

    /// Records that a pass failed, over locations that were looked up for it (`fresh`) or known
    /// from earlier.
    pub(super) fn pass_failed(
        &mut self,
        outcome: PassOutcome,
        fresh: bool,
        demanded: Option<Arrival>,
        now: Instant,
    ) -> NextStep {
        self.passes += 1;
        self.first_failure.get_or_insert(now);
        let backoff = match outcome {
            PassOutcome::Refused => return NextStep::GiveUp,
            _ if !fresh => Duration::ZERO,
            PassOutcome::Missing | PassOutcome::Damaged => {
                self.negative_passes += 1;
                if self.negative_passes == 2 {
                    return NextStep::GiveUp;
                }
                CONFIRMATION_BACKOFF
            }
            PassOutcome::Unanswered => {
                self.negative_passes = 0;
                let backoff = self.backoff;
                self.backoff = next_backoff(backoff);
                backoff
            }
        };
        let is_late = self.retry_until(demanded).is_some_and(|limit| now + backoff > limit);
        if is_late { NextStep::GiveUp } else { NextStep::Retry(backoff) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(outcome: PassOutcome, first_fresh: bool) -> Vec<u64> {
        let mut attempts = Attempts::new(Duration::from_secs(6));
        let mut now = Instant::now();
        let mut backoffs = Vec::new();
        let mut fresh = first_fresh;
        while let NextStep::Retry(backoff) = attempts.pass_failed(outcome, fresh, None, now) {
            backoffs.push(backoff.as_millis() as u64);
            now += backoff;
            fresh = true;
        }
        assert_eq!(attempts.passes() as usize, backoffs.len() + 1);
        backoffs
    }

    #[test]
    fn unanswered_passes_are_retried_with_growing_back_off_until_the_retry_time_is_over() {
        let backoffs = run(PassOutcome::Unanswered, false);
        assert_eq!(backoffs[..5], [0, 100, 150, 225, 337]);
        assert!(backoffs.iter().sum::<u64>() <= 6000);
        assert!(backoffs.len() > 6);
    }

    #[test]
    fn a_request_of_a_reader_waits_for_bytes_until_the_retry_time_is_over() {
        let mut attempts = Attempts::new(Duration::from_secs(6));
        let arrival = Arrival::now();
        let start = arrival.deadline(Duration::ZERO);
        let at = |seconds| start + Duration::from_secs(seconds);
        let longest = Duration::from_secs(30);
        let deadlines = |attempts: &Attempts, now| {
            let Deadlines { silence, end } = attempts.deadlines(Some(arrival), now, longest);
            (silence - start, end - start)
        };
        let seconds = |silence, end| (Duration::from_secs(silence), Duration::from_secs(end));
        assert_eq!(deadlines(&attempts, start), seconds(6, 30));
        assert_eq!(deadlines(&attempts, at(5)), seconds(6, 30), "counted from the arrival");
        assert_eq!(attempts.deadlines(None, at(5), longest), at(35).into(), "no reader waits");
        assert_eq!(
            attempts.pass_failed(PassOutcome::Unanswered, false, Some(arrival), at(5)),
            NextStep::Retry(Duration::ZERO)
        );
        assert_eq!(deadlines(&attempts, at(5)), seconds(6, 30));
        assert_eq!(deadlines(&attempts, at(60)), seconds(61, 61), "each has a second");
        assert_eq!(
            attempts.pass_failed(PassOutcome::Unanswered, true, Some(arrival), at(6)),
            NextStep::GiveUp
        );
    }

    #[test]
    fn a_reader_waits_for_a_second_if_the_servers_have_been_unresponsive_for_long() {
        let mut attempts = Attempts::new(Duration::from_secs(6));
        let arrival = Arrival::now();
        let start = arrival.deadline(Duration::ZERO);
        let second = Duration::from_secs(1);
        for (ago, limit) in [(0, 6), (2, 4), (5, 1), (60, 1)] {
            attempts.set_unresponsive_since(Some(start - ago * second));
            assert_eq!(
                attempts.retry_until(Some(arrival)),
                Some(start + limit * second),
                "unresponsive for {ago} s"
            );
        }
    }

    #[test]
    fn a_response_that_breaks_late_is_retried_once() {
        let mut attempts = Attempts::new(Duration::from_secs(6));
        let arrival = Arrival::now();
        let late = arrival.deadline(Duration::from_secs(20));
        assert_eq!(
            attempts.pass_failed(PassOutcome::Unanswered, false, Some(arrival), late),
            NextStep::Retry(Duration::ZERO)
        );
        assert_eq!(
            attempts.pass_failed(PassOutcome::Unanswered, true, Some(arrival), late),
            NextStep::Retry(FIRST_BACKOFF)
        );
        let later = late + MIN_REQUEST_TIMEOUT;
        assert_eq!(
            attempts.pass_failed(PassOutcome::Unanswered, true, Some(arrival), later),
            NextStep::GiveUp
        );
    }

    #[test]
    fn a_negative_pass_is_confirmed_by_a_second_one() {
        assert_eq!(run(PassOutcome::Missing, false), [0, 300]);
        assert_eq!(run(PassOutcome::Missing, true), [300]);
        assert_eq!(run(PassOutcome::Damaged, true), [300]);
    }

    #[test]
    fn a_refusal_is_final() {
        assert_eq!(run(PassOutcome::Refused, false), [0; 0]);
    }

    #[test]
    fn the_outcome_of_a_pass_depends_on_every_answer() {
        use ErrorClass::*;
        assert_eq!(PassOutcome::of(&[]), PassOutcome::Unanswered);
        assert_eq!(PassOutcome::of(&[Missing, Missing]), PassOutcome::Missing);
        assert_eq!(PassOutcome::of(&[Missing, Refused]), PassOutcome::Refused);
        assert_eq!(PassOutcome::of(&[Refused, Damaged]), PassOutcome::Damaged);
        assert_eq!(PassOutcome::of(&[Missing, Failed]), PassOutcome::Unanswered);
        assert_eq!(PassOutcome::of(&[Busy]), PassOutcome::Unanswered);
    }
}
