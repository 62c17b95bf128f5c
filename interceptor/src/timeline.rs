//! What a fetch did and how long each step took, for reads that turn out to be slow.
//!
//! A fetch writes to its [`Timeline`] as it goes on, and every reader that waits for it gets the
//! whole of it: also of what happened before that reader came. Hedged requests run at the same
//! time, so steps may overlap.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Waits that are shorter than this are not kept.
const MIN_WAIT: Duration = Duration::from_micros(100);

/// Steps that are kept of a fetch: it is tried again for as long as its reader waits.
const MAX_STEPS: usize = 64;

/// What a step does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepKind {
    /// Finds out which chunks a file has.
    Layout,
    /// Waits for memory of the cache.
    Memory,
    /// Reads the disk cache.
    Disk,
    /// Asks which servers have a volume.
    Lookup,
    /// Waits at the gate of a server, which has enough requests already.
    Queue,
    /// Asks a server or the engine beside it.
    Request,
    /// Opens a connection: to a server within a request, to an engine before it.
    Connect,
    /// Decompresses or decrypts what came, within a request.
    Unpack,
    /// Waits before the servers are asked again.
    Backoff,
    /// Reads the mount below an attached path.
    Lower,
}

impl StepKind {
    /// Its name in the log and in the status API.
    pub fn label(self) -> &'static str {
        match self {
            Self::Layout => "layout",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Lookup => "lookup",
            Self::Queue => "queue",
            Self::Request => "request",
            Self::Connect => "connect",
            Self::Unpack => "unpack",
            Self::Backoff => "backoff",
            Self::Lower => "lower",
        }
    }

    /// Whether it is of interest however long it took.
    fn is_work(self) -> bool {
        matches!(self, Self::Request | Self::Disk | Self::Lower)
    }
}

/// A step that has ended.
#[derive(Debug, Clone)]
pub struct TimelineStep {
    /// What it did.
    pub kind: StepKind,
    /// Which server it was about, as `host:port`.
    pub server: Option<Box<str>>,
    /// The transport of a request, such as `http`.
    pub source: Option<&'static str>,
    /// When it began.
    pub begun: Instant,
    /// When the first byte of a response came.
    pub first_byte: Option<Instant>,
    /// When it ended.
    pub ended: Instant,
    /// Why it failed, if it did.
    pub error: Option<String>,
    /// What came of it, if that is of interest.
    pub note: Option<&'static str>,
}

/// The steps of one fetch. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Timeline(Arc<Mutex<Vec<TimelineStep>>>);

impl Timeline {
    /// Begins a step.
    pub fn begin(&self, kind: StepKind) -> OngoingStep<'_> {
        let now = Instant::now();
        let step = TimelineStep {
            kind,
            server: None,
            source: None,
            begun: now,
            first_byte: None,
            ended: now,
            error: None,
            note: None,
        };
        OngoingStep { timeline: self, step: Some(step) }
    }

    /// Begins a step that is about `server`.
    pub fn begin_at(&self, kind: StepKind, server: &str) -> OngoingStep<'_> {
        let mut ongoing = self.begin(kind);
        if let Some(step) = &mut ongoing.step {
            step.server = Some(server.into());
        }
        ongoing
    }

    /// The steps that have ended so far, in the order of their ends.
    pub fn steps(&self) -> Vec<TimelineStep> {
        self.0.lock().clone()
    }

    fn push(&self, mut step: TimelineStep) {
        step.ended = Instant::now();
        let is_short = step.ended - step.begun < MIN_WAIT;
        if is_short && !step.kind.is_work() && step.error.is_none() && step.note.is_none() {
            return;
        }
        let mut steps = self.0.lock();
        // The last one tells how it ended.
        if steps.len() == MAX_STEPS {
            steps.pop();
        }
        steps.push(step);
    }
}

/// A step that is under way. If it is dropped, it was given up.
#[derive(Debug)]
pub struct OngoingStep<'a> {
    timeline: &'a Timeline,
    /// `None` once it has ended.
    step: Option<TimelineStep>,
}

impl OngoingStep<'_> {
    /// Ends it.
    pub fn end(mut self) {
        self.finish(|_| ());
    }

    /// Ends it and keeps it, however short it was, with a note.
    pub fn end_noting(mut self, note: &'static str) {
        self.finish(|step| step.note = Some(note));
    }

    /// Ends it with what came of it.
    pub fn end_with<T, E: Display>(mut self, outcome: &Result<T, E>) {
        self.finish(|step| step.error = outcome.as_ref().err().map(E::to_string));
    }

    /// Ends a request over `source` whose response began at `first_byte`.
    pub fn end_request<T, E: Display>(
        mut self,
        source: &'static str,
        first_byte: Option<Instant>,
        outcome: &Result<T, E>,
    ) {
        self.finish(|step| {
            step.source = Some(source);
            step.first_byte = first_byte.filter(|at| *at >= step.begun);
            step.error = outcome.as_ref().err().map(E::to_string);
        });
    }

    fn finish(&mut self, complete: impl FnOnce(&mut TimelineStep)) {
        if let Some(mut step) = self.step.take() {
            complete(&mut step);
            self.timeline.push(step);
        }
    }
}

impl Drop for OngoingStep<'_> {
    fn drop(&mut self) {
        self.finish(|step| step.error = Some("given up".into()));
    }
}

#[cfg(test)]
impl OngoingStep<'_> {
    /// As if it had begun that much earlier.
    pub(crate) fn backdated(mut self, by: Duration) -> Self {
        let step = self.step.as_mut().expect("it goes on");
        step.begun -= by;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_waits_are_left_out_and_work_is_not() {
        let timeline = Timeline::default();
        timeline.begin(StepKind::Memory).end();
        timeline.begin_at(StepKind::Queue, "a:1").end_with(&Err::<(), _>("full"));
        timeline.begin_at(StepKind::Queue, "b:2").backdated(Duration::from_millis(3)).end();
        timeline.begin_at(StepKind::Request, "b:2").end_request("http", None, &Ok::<_, String>(()));
        drop(timeline.begin_at(StepKind::Request, "c:3"));
        let steps = timeline.steps();
        assert!(steps[1].ended - steps[1].begun >= Duration::from_millis(3));
        let steps: Vec<_> = steps
            .iter()
            .map(|step| (step.kind.label(), step.server.as_deref().unwrap(), step.error.as_deref()))
            .collect();
        assert_eq!(
            steps,
            [
                ("queue", "a:1", Some("full")),
                ("queue", "b:2", None),
                ("request", "b:2", None),
                ("request", "c:3", Some("given up")),
            ]
        );
    }

    #[test]
    fn a_fetch_that_is_tried_for_long_keeps_a_bounded_number() {
        let timeline = Timeline::default();
        for _ in 0..10 * MAX_STEPS {
            timeline.begin(StepKind::Request).end_with(&Err::<(), _>("refused"));
        }
        timeline.begin(StepKind::Request).end_with(&Err::<(), _>("the last"));
        let steps = timeline.steps();
        assert_eq!((steps.len(), steps[MAX_STEPS - 1].error.as_deref()), (MAX_STEPS, Some("the last")));
    }
}
