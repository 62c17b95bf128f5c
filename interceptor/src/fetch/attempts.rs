//! When to try again, and when to give up.
//!
//! All locations of a volume are asked in turn: one **pass**. After a failed pass over locations that were known from earlier, the
//! next pass over fresh ones follows at once. What comes then depends on what the servers said:
//!
//! * all refused: that is final;
//! * all answered, but none has a good copy (missing or damaged): another fresh lookup and pass a little later, since a volume
//!   may be on the move, and then that is final;
//! * some failed or were busy: more passes with growing pauses, for as long as the retry time lasts.
//!
//! The retry time counts from the arrival of the request that waits, or from the first failure where none does. A request to a
//! server may be silent until then, or for a second; one whose answer comes in goes on. Where all servers have been silent
//! for the retry time already, a reader waits a second: the kernel asks a second time for what it was refused.

use std::time::Duration;

use tokio::time::Instant;

use crate::arrival::Arrival;
use crate::seaweed::http1::Deadlines;
use crate::seaweed::volume::Class;

/// The pause before the second pass over fresh locations; each further one is half as long again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The pause before servers that all said no are asked once more.
const SECOND_LOOK: Duration = Duration::from_millis(300);

/// What any request to a server has, however late it is.
pub(super) const LEAST_TIME: Duration = Duration::from_secs(1);

/// `pause`, half as long again.
pub(super) fn longer(pause: Duration) -> Duration {
    pause + pause / 2
}

/// What a whole pass came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nobody has it.
    Missing,
    /// Some have it, damaged; the others do not have it.
    Damaged,
    /// Some refused; the others do not have it.
    Refused,
    /// Some did not answer usefully, or there was nobody to ask.
    Open,
}

impl Verdict {
    /// The verdict of servers that answered so.
    pub(super) fn of(answers: &[Class]) -> Self {
        let any = |class| answers.contains(&class);
        if answers.is_empty() || any(Class::Failed) || any(Class::Busy) {
            Self::Open
        } else if any(Class::Damaged) {
            Self::Damaged
        } else if any(Class::Refused) {
            Self::Refused
        } else {
            Self::Missing
        }
    }
}

/// What to do after a failed pass.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Look up the locations anew and go through them after this pause.
    Pass(Duration),
    /// Say so.
    GiveUp,
}

/// The history of one fetch.
pub(super) struct Attempts {
    retry_time: Duration,
    passes: u32,
    first_failure: Option<Instant>,
    /// Since when all servers have left readers waiting, if they have.
    silent_since: Option<Instant>,
    pause: Duration,
    /// Passes in a row over fresh locations in which all answered and none had a good copy.
    settled: u32,
}

impl Attempts {
    pub(super) fn new(retry_time: Duration) -> Self {
        Self {
            retry_time,
            passes: 0,
            first_failure: None,
            silent_since: None,
            pause: FIRST_PAUSE,
            settled: 0,
        }
    }

    /// Notes since when all servers that are to be asked have left readers waiting, if they have.
    pub(super) fn servers_silent(&mut self, since: Option<Instant>) {
        self.silent_since = since;
    }

    /// How many passes have failed.
    pub(super) fn passes(&self) -> u32 {
        self.passes
    }

    /// By when a request that is sent now must be over, for a reader that came at `demanded` or for none, if it may take
    /// `longest` while its answer comes in.
    pub(super) fn deadlines(&self, demanded: Option<Arrival>, now: Instant, longest: Duration) -> Deadlines {
        let least = now + LEAST_TIME;
        let Some(silence) = self.limit(demanded) else { return (now + longest).into() };
        let end = demanded.map_or(now, |arrival| arrival.deadline(Duration::ZERO)) + longest;
        Deadlines { silence: silence.max(least), end: end.max(silence).max(least) }
    }

    /// Until when it is tried again; `None` as long as nothing has failed and nobody waits.
    pub(super) fn limit(&self, demanded: Option<Arrival>) -> Option<Instant> {
        let failed = self.first_failure;
        match demanded {
            Some(arrival) => {
                let least = LEAST_TIME.min(self.retry_time);
                let limit = arrival.deadline(self.retry_time);
                let soonest = arrival.deadline(least);
                let limit =
                    self.silent_since.map_or(limit, |since| limit.min(soonest.max(since + self.retry_time)));
                // Bytes that came in for long before the connection broke deserve another try; silence does not.
                let broke_late = failed.filter(|&first| first > limit + LEAST_TIME);
                Some(broke_late.map_or(limit, |first| first + least))
            }
            None => failed.map(|first| first + self.retry_time),
        }
    }

    /// Notes that a pass failed, over locations that were looked up for it (`fresh`) or known from earlier.
    pub(super) fn failed(
        &mut self,
        verdict: Verdict,
        fresh: bool,
        demanded: Option<Arrival>,
        now: Instant,
    ) -> Next {
        self.passes += 1;
        self.first_failure.get_or_insert(now);
        let pause = match verdict {
            Verdict::Refused => return Next::GiveUp,
            _ if !fresh => Duration::ZERO,
            Verdict::Missing | Verdict::Damaged => {
                self.settled += 1;
                if self.settled == 2 {
                    return Next::GiveUp;
                }
                SECOND_LOOK
            }
            Verdict::Open => {
                self.settled = 0;
                let pause = self.pause;
                self.pause = longer(pause);
                pause
            }
        };
        let is_late = self.limit(demanded).is_some_and(|limit| now + pause > limit);
        if is_late { Next::GiveUp } else { Next::Pass(pause) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(verdict: Verdict, first_fresh: bool) -> Vec<u64> {
        let mut attempts = Attempts::new(Duration::from_secs(6));
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        let mut fresh = first_fresh;
        while let Next::Pass(pause) = attempts.failed(verdict, fresh, None, now) {
            pauses.push(pause.as_millis() as u64);
            now += pause;
            fresh = true;
        }
        assert_eq!(attempts.passes() as usize, pauses.len() + 1);
        pauses
    }

    #[test]
    fn silence_is_met_with_growing_pauses_within_the_retry_time() {
        let pauses = run(Verdict::Open, false);
        assert_eq!(pauses[..5], [0, 100, 150, 225, 337]);
        assert!(pauses.iter().sum::<u64>() <= 6000);
        assert!(pauses.len() > 6);
    }

    #[test]
    fn what_a_reader_waits_for_is_silent_until_the_retry_time_is_over_at_most() {
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
        assert_eq!(attempts.deadlines(None, at(5), longest), at(35).into(), "nobody waits");
        assert_eq!(attempts.failed(Verdict::Open, false, Some(arrival), at(5)), Next::Pass(Duration::ZERO));
        assert_eq!(deadlines(&attempts, at(5)), seconds(6, 30));
        assert_eq!(deadlines(&attempts, at(60)), seconds(61, 61), "each has a second");
        assert_eq!(attempts.failed(Verdict::Open, true, Some(arrival), at(6)), Next::GiveUp);
    }

    #[test]
    fn servers_that_have_been_silent_for_long_are_not_waited_for_as_long_again() {
        let mut attempts = Attempts::new(Duration::from_secs(6));
        let arrival = Arrival::now();
        let start = arrival.deadline(Duration::ZERO);
        let second = Duration::from_secs(1);
        for (ago, limit) in [(0, 6), (2, 4), (5, 1), (60, 1)] {
            attempts.servers_silent(Some(start - ago * second));
            assert_eq!(attempts.limit(Some(arrival)), Some(start + limit * second), "silent for {ago} s");
        }
    }

    #[test]
    fn what_breaks_late_is_tried_once_more() {
        let mut attempts = Attempts::new(Duration::from_secs(6));
        let arrival = Arrival::now();
        let late = arrival.deadline(Duration::from_secs(20));
        assert_eq!(attempts.failed(Verdict::Open, false, Some(arrival), late), Next::Pass(Duration::ZERO));
        assert_eq!(attempts.failed(Verdict::Open, true, Some(arrival), late), Next::Pass(FIRST_PAUSE));
        let later = late + LEAST_TIME;
        assert_eq!(attempts.failed(Verdict::Open, true, Some(arrival), later), Next::GiveUp);
    }

    #[test]
    fn a_clear_no_is_believed_the_second_time() {
        assert_eq!(run(Verdict::Missing, false), [0, 300]);
        assert_eq!(run(Verdict::Missing, true), [300]);
        assert_eq!(run(Verdict::Damaged, true), [300]);
    }

    #[test]
    fn a_refusal_is_final() {
        assert_eq!(run(Verdict::Refused, false), [0; 0]);
    }

    #[test]
    fn a_verdict_needs_every_answer() {
        use Class::*;
        assert_eq!(Verdict::of(&[]), Verdict::Open);
        assert_eq!(Verdict::of(&[Missing, Missing]), Verdict::Missing);
        assert_eq!(Verdict::of(&[Missing, Refused]), Verdict::Refused);
        assert_eq!(Verdict::of(&[Refused, Damaged]), Verdict::Damaged);
        assert_eq!(Verdict::of(&[Missing, Failed]), Verdict::Open);
        assert_eq!(Verdict::of(&[Busy]), Verdict::Open);
    }
}
