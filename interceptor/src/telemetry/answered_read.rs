//! A read that was answered, and what it waited for.

use std::fmt::{self, Display, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::timeline::{Timeline, TimelineStep};

/// How many steps of a read are kept, the first ones.
const MAX_STEPS: usize = 256;

/// What a read asks for.
#[derive(Debug, Clone, Copy)]
pub struct ReadTarget<'a> {
    /// The path of the file.
    pub path: &'a str,
    /// The first byte.
    pub offset: u64,
    /// How many bytes.
    pub len: usize,
    /// The thread that reads.
    pub caller: u32,
}

/// A read that was answered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AnsweredRead {
    /// When it was answered, in seconds since 1970.
    pub at: f64,
    /// The path of the file.
    pub path: String,
    /// The first byte.
    pub offset: u64,
    /// How many bytes were asked for.
    pub len: u64,
    /// The thread that reads.
    pub caller: u32,
    /// Its name; empty if it had ended by then.
    pub caller_name: String,
    /// Seconds from its arrival at the daemon to the answer.
    pub seconds: f64,
    /// What the application got, if not the bytes.
    pub error: Option<String>,
    /// What its fetches did, in the order in which that began; none if memory had all of it. Steps
    /// may overlap.
    pub steps: Vec<ReadStep>,
}

/// What a fetch did for a read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReadStep {
    /// `layout`, `memory`, `disk`, `lookup`, `queue`, `request`, `connect`, `unpack`, `backoff` or
    /// `lower`.
    pub step: String,
    /// The server, as `host:port`.
    pub server: Option<String>,
    /// The transport of a request, such as `http`.
    pub source: Option<String>,
    /// Seconds from the arrival of the read to the beginning of the step; negative if the fetch
    /// was under way when the read came.
    pub begun: f64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// How long the first byte of the response took, in seconds.
    pub first_byte: Option<f64>,
    /// Why it failed.
    pub error: Option<String>,
    /// What came of it, if that is of interest.
    #[serde(default)]
    pub note: Option<String>,
}

impl AnsweredRead {
    /// A read that is answered now, after `elapsed`.
    pub(super) fn new(
        target: ReadTarget<'_>,
        elapsed: Duration,
        error: Option<&dyn Display>,
        timelines: &[Timeline],
    ) -> Self {
        let begun = Instant::now() - elapsed;
        let mut steps: Vec<_> = timelines.iter().flat_map(Timeline::steps).collect();
        steps.sort_by_key(|step| step.begun);
        steps.truncate(MAX_STEPS);
        let ReadTarget { path, offset, len, caller } = target;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            at: now.as_secs_f64(),
            path: path.to_owned(),
            offset,
            len: len as u64,
            caller,
            caller_name: thread_name(caller),
            seconds: elapsed.as_secs_f64(),
            error: error.map(|error| error.to_string()),
            steps: steps.into_iter().map(|step| ReadStep::new(step, begun)).collect(),
        }
    }
}

/// The name of a thread, of a process that of its first one; empty if there is none by this number.
pub(super) fn thread_name(thread: u32) -> String {
    // It may be cut within a character.
    let name = std::fs::read(format!("/proc/{thread}/comm")).unwrap_or_default();
    let name = String::from_utf8_lossy(&name);
    name.trim_end().to_owned()
}

impl ReadStep {
    fn new(step: TimelineStep, arrival: Instant) -> Self {
        let seconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
        Self {
            step: step.kind.label().to_owned(),
            server: step.server.map(Into::into),
            source: step.source.map(str::to_owned),
            begun: seconds(arrival, step.begun) - seconds(step.begun, arrival),
            seconds: seconds(step.begun, step.ended),
            first_byte: step.first_byte.map(|at| seconds(step.begun, at)),
            error: step.error,
            note: step.note.map(str::to_owned),
        }
    }
}

impl Display for ReadStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.source.as_ref().unwrap_or(&self.step);
        write!(f, "{name}")?;
        if let Some(server) = &self.server {
            write!(f, " {server}")?;
        }
        write!(f, " {:.3} s", self.seconds)?;
        match (self.first_byte, self.error.as_ref().or(self.note.as_ref())) {
            (_, Some(text)) => write!(f, " ({text})"),
            (Some(first), None) => write!(f, " (first byte {first:.3} s)"),
            (None, None) => Ok(()),
        }
    }
}

/// Steps in one line.
pub struct StepList<'a>(pub &'a [ReadStep]);

impl Display for StepList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str(", ")?;
            }
            step.fmt(f)?;
        }
        if self.0.is_empty() { f.write_char('-') } else { Ok(()) }
    }
}
