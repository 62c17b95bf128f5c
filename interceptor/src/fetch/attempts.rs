//! When to try again, and when to give up.
//!
//! All locations of a volume are asked in turn: one **pass**. After a failed pass over locations that were known from earlier, the
//! next pass over fresh ones follows at once. What comes then depends on what the servers said:
//!
//! * all refused: that is final;
//! * all answered, but none has a good copy (missing or damaged): another fresh lookup and pass a little later, since a volume
//!   may be on the move, and then that is final;
//! * some failed or were busy: more passes with growing pauses, for as long as the retry time lasts.

use std::time::Duration;

use tokio::time::Instant;

use crate::seaweed::volume::Class;

/// The pause before the second pass over fresh locations; each further one is half as long again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The pause before servers that all said no are asked once more.
const SECOND_LOOK: Duration = Duration::from_millis(300);

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
    pause: Duration,
    /// Passes in a row over fresh locations in which all answered and none had a good copy.
    settled: u32,
}

impl Attempts {
    pub(super) fn new(retry_time: Duration) -> Self {
        Self { retry_time, passes: 0, first_failure: None, pause: FIRST_PAUSE, settled: 0 }
    }

    /// How many passes have failed.
    pub(super) fn passes(&self) -> u32 {
        self.passes
    }

    /// Notes that a pass failed, over locations that were looked up for it (`fresh`) or known from earlier.
    pub(super) fn failed(&mut self, verdict: Verdict, fresh: bool, now: Instant) -> Next {
        self.passes += 1;
        let first_failure = *self.first_failure.get_or_insert(now);
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
        if now + pause > first_failure + self.retry_time { Next::GiveUp } else { Next::Pass(pause) }
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
        while let Next::Pass(pause) = attempts.failed(verdict, fresh, now) {
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
