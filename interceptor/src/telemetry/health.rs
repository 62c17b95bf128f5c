//! How the servers behind a mount are doing, as they themselves have shown it: nobody is asked for this.

use std::fmt::Display;
use std::time::Instant;

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The longest text that is kept of an error, characters.
const MAX_ERROR_CHARS: usize = 400;

/// Filers, volume servers and engines.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// The filers that the mount was told of, in that order.
    pub filers: Vec<FilerHealth>,
    /// Every volume server that was ever asked, by address.
    pub volume_servers: Vec<VolumeServerHealth>,
}

/// A filer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FilerHealth {
    /// `host:port`.
    pub address: String,
    /// Whether it is the one that is asked.
    pub is_current: bool,
    /// Whether it has left calls unanswered for a second, or cannot be connected to.
    #[serde(default)]
    pub is_silent: bool,
    /// What failed last, if anything has.
    pub last_error: Option<ErrorRecord>,
}

/// A volume server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeServerHealth {
    /// `host:port`.
    pub address: String,
    /// What is asked first at present: `verbs`, `local` or `tcp` of its engine, or `http`.
    pub source: String,
    /// Whether it seems to have stopped: others were faster, and it had said nothing, or it keeps readers waiting.
    pub is_silent: bool,
    /// Whether it has said nothing for a second or more to requests that readers wait for, and nothing since.
    #[serde(default)]
    pub keeps_readers_waiting: bool,
    /// Requests under way to it.
    pub requests: u64,
    /// Requests that wait for their turn at it.
    pub waiting: u64,
    /// What failed last, if anything has.
    pub last_error: Option<ErrorRecord>,
    /// The engine beside it; `null` if none may be asked.
    pub engine: Option<EngineHealth>,
}

/// An engine beside a volume server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EngineHealth {
    /// `host:port` where it is looked for.
    pub address: String,
    /// Whether it is there.
    pub state: EngineState,
    /// What its bytes come by; `null` while it is not asked.
    pub source: Option<String>,
    /// What failed last, if anything has.
    pub last_error: Option<ErrorRecord>,
}

/// Whether an engine is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EngineState {
    /// It is asked first.
    Connected,
    /// It was, and does not answer any more.
    Lost,
    /// There was never a connection; there may be no such engine.
    Absent,
    /// Something answers, and does not prove that it is the volume server's: it is not asked.
    Unproved,
}

impl EngineState {
    /// All states, in order of the values of the label `state`.
    pub const ALL: [EngineState; 4] =
        [EngineState::Connected, EngineState::Lost, EngineState::Absent, EngineState::Unproved];

    /// The value of the label `state`.
    pub const fn label(self) -> &'static str {
        match self {
            EngineState::Connected => "connected",
            EngineState::Lost => "lost",
            EngineState::Absent => "absent",
            EngineState::Unproved => "unproved",
        }
    }
}

/// Something that failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorRecord {
    /// What, for people.
    pub text: String,
    /// How long ago, seconds.
    pub seconds_ago: f64,
}

/// Remembers the last of the failures that it is told of.
#[derive(Debug, Default)]
pub struct LastError(Mutex<Option<(Instant, String)>>);

impl LastError {
    /// This has failed now.
    pub fn note(&self, error: &dyn Display) {
        let mut text = error.to_string();
        if let Some((cut, _)) = text.char_indices().nth(MAX_ERROR_CHARS) {
            text.truncate(cut);
            text.push('…');
        }
        *self.0.lock() = Some((Instant::now(), text));
    }

    /// What failed last.
    pub fn latest(&self) -> Option<ErrorRecord> {
        let last = self.0.lock();
        let (at, text) = last.as_ref()?;
        Some(ErrorRecord { text: text.clone(), seconds_ago: at.elapsed().as_secs_f64() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_kept_in_short() {
        let last = LastError::default();
        assert_eq!(last.latest(), None);
        last.note(&"first");
        last.note(&"ü".repeat(MAX_ERROR_CHARS + 1));
        let text = last.latest().unwrap().text;
        assert_eq!(text.chars().count(), MAX_ERROR_CHARS + 1);
        assert!(text.ends_with("ü…"));
    }
}
