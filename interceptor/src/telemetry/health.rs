//! The health of the servers behind a mount, derived from their answers to ordinary requests. No
//! server is probed for it.

use std::fmt::Display;
use std::time::Instant;

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Characters of an error's text that are kept.
const MAX_ERROR_CHARS: usize = 400;

/// The health of filers, volume servers and engines.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// The configured filers, in their order.
    pub filers: Vec<FilerHealth>,
    /// Every volume server that was ever used, by address.
    pub volume_servers: Vec<VolumeServerHealth>,
}

/// A filer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FilerHealth {
    /// `host:port`.
    pub address: String,
    /// Whether it is the filer in use.
    pub is_current: bool,
    /// Whether it has left calls unanswered for a second, or refuses connections.
    #[serde(default)]
    pub is_silent: bool,
    /// The last failure, if there was one.
    pub last_error: Option<ErrorRecord>,
}

/// A volume server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeServerHealth {
    /// `host:port`.
    pub address: String,
    /// The source that is tried first: `verbs`, `local` or `tcp` of its engine, or `http`.
    pub source: String,
    /// Whether it seems to have stopped: other servers were faster while it sent nothing, or it
    /// keeps readers waiting.
    pub is_silent: bool,
    /// Whether it has sent nothing for at least a second while readers wait for it, and nothing
    /// since.
    #[serde(default)]
    pub keeps_readers_waiting: bool,
    /// Requests in flight to it.
    pub requests: u64,
    /// Requests that are queued for it.
    pub waiting: u64,
    /// How fast it was within the last minute; `null` if it was not asked.
    #[serde(default)]
    pub latency: Option<RecentLatency>,
    /// How much slower it is than the others; `null` if it is not, or too little is known.
    #[serde(default)]
    pub slow: Option<Slowness>,
    /// The last failure, if there was one.
    pub last_error: Option<ErrorRecord>,
    /// The engine beside it; `null` if no engine may be used.
    pub engine: Option<EngineHealth>,
}

/// How long a server took to begin its answers, of the last requests within the last minute: at
/// most 128 of each of three sizes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RecentLatency {
    /// The number of requests.
    pub requests: u64,
    /// Half of them took no longer than this, seconds.
    pub p50_seconds: f64,
    /// 99 % of them took no longer than this, seconds.
    pub p99_seconds: f64,
}

/// How much slower than the others a server is, by its last answers to requests of like sizes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Slowness {
    /// Half of its answers took this long or longer to begin, seconds.
    pub p50_seconds: f64,
    /// The same of a server of usual speed.
    pub usual_p50_seconds: f64,
}

/// An engine beside a volume server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EngineHealth {
    /// `host:port` at which it is expected.
    pub address: String,
    /// Whether it is connected.
    pub state: EngineState,
    /// The transport of its bytes; `null` while it is not used.
    pub source: Option<String>,
    /// Why it is not trusted, or does not trust this host, if it is there and not used.
    #[serde(default)]
    pub distrust: Option<String>,
    /// The last failure, if there was one; with the text of `distrust` while that is set.
    pub last_error: Option<ErrorRecord>,
}

/// The state of the connection to an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EngineState {
    /// Connected; it is tried first.
    Connected,
    /// It was connected and no longer answers.
    Lost,
    /// It was never connected; there may be no engine.
    Absent,
    /// A peer answers that does not prove to be the volume server's engine, or that wants TLS or a
    /// certificate which this host does not have; it is not used.
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

/// A failure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorRecord {
    /// The error's text.
    pub text: String,
    /// Seconds since it happened.
    pub seconds_ago: f64,
}

/// The last failure of a server.
#[derive(Debug, Default)]
pub struct LastError(Mutex<Option<(Instant, String)>>);

impl LastError {
    /// Records a failure that happened now.
    pub fn note(&self, error: &dyn Display) {
        let mut text = error.to_string();
        if let Some((cut, _)) = text.char_indices().nth(MAX_ERROR_CHARS) {
            text.truncate(cut);
            text.push('…');
        }
        *self.0.lock() = Some((Instant::now(), text));
    }

    /// The last failure, if there was one.
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
    fn the_last_error_is_kept_and_truncated() {
        let last = LastError::default();
        assert_eq!(last.latest(), None);
        last.note(&"first");
        last.note(&"ü".repeat(MAX_ERROR_CHARS + 1));
        let text = last.latest().unwrap().text;
        assert_eq!(text.chars().count(), MAX_ERROR_CHARS + 1);
        assert!(text.ends_with("ü…"));
    }
}
