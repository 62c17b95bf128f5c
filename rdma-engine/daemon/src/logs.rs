//! Logs: one line for each event, on standard error, for people or as JSON. Best effort: see
//! [`crate::lines`].

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::SystemTime;
use std::{env, panic};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime as Timestamp};

use crate::lines::LineWriter;
use crate::{output, panics};

/// The crates whose level a plain `--log-level` sets.
const OWN_CRATES: [&str; 3] = ["interceptor", "rdma_engine", "daemon"];

/// The levels that a filter may name.
const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Time, level, message and fields, for people.
    Human,
    /// One JSON object a line, for collectors.
    Json,
}

/// Why a text is no log filter.
#[derive(Debug, thiserror::Error)]
#[error("{origin} {text:?}: {reason}")]
pub struct FilterError {
    origin: &'static str,
    text: String,
    reason: String,
}

/// The filter of log events. `level` is a level (of this workspace's crates; libraries only warn)
/// or a whole filter. Without it `RUST_LOG` is used, and without that, `info`.
///
/// # Errors
/// When it is neither a level nor a filter.
pub fn filter(level: Option<&str>) -> Result<EnvFilter, FilterError> {
    let (origin, chosen) = match level {
        Some(level) => ("--log-level", Some(level.to_owned())),
        None => ("RUST_LOG", env::var("RUST_LOG").ok()),
    };
    let text = chosen.filter(|text| !text.is_empty()).unwrap_or_else(|| "info".into());
    let directives = match text.to_ascii_lowercase().as_str() {
        "off" => "off".to_owned(),
        level if LEVELS.contains(&level) => {
            OWN_CRATES.iter().fold("warn".to_owned(), |filter, name| format!("{filter},{name}={level}"))
        }
        _ => text.clone(),
    };
    let wrong = |reason| FilterError { origin, text: text.clone(), reason };
    let mut parts = directives.split(',').map(str::trim).filter(|part| !part.is_empty());
    if let Some(directive) = parts.find(|directive| !has_level(directive)) {
        let levels = LEVELS.join(", ");
        return Err(wrong(format!(
            "{directive:?} names no level ({levels}); a filter is such as \"info,interceptor::fetch=debug\""
        )));
    }
    EnvFilter::try_new(&directives).map_err(|error| wrong(error.to_string()))
}

/// Whether a directive has a level. One without (`loud`) would be taken for the name of a module,
/// of which everything would be logged, and of all others nothing.
fn has_level(directive: &str) -> bool {
    let behind_fields = directive.rsplit([']', '}']).next().unwrap_or(directive);
    let level = behind_fields.rsplit('=').next().unwrap_or(behind_fields).to_ascii_lowercase();
    LEVELS.contains(&level.as_str()) || matches!(level.as_str(), "0" | "1" | "2" | "3" | "4" | "5")
}

/// Starts to log, including panics: a thread that panics logs that before it unwinds. Starts a
/// thread. To be called once.
pub fn start(format: LogFormat, filter: EnvFilter) {
    start_without_thread(format, filter);
    start_thread(format);
}

/// As [`start`], without a thread: a line is written at once, or lost if that would block. For a
/// process that is to fork.
pub fn start_without_thread(format: LogFormat, filter: EnvFilter) {
    let color = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(LogWriter)
        // These are written by `eprintln!`, which may panic.
        .log_internal_errors(false)
        .with_ansi(color);
    let changing: Box<dyn Fn(EnvFilter) -> bool + Send + Sync> = match format {
        LogFormat::Human => {
            let builder = builder.with_target(false).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Box::new(move |filter| handle.reload(filter).is_ok())
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Box::new(move |filter| handle.reload(filter).is_ok())
        }
    };
    let _ = CHANGE_FILTER.set(changing);
    panic::set_hook(Box::new(panics::hook));
}

/// From now on lines are queued for a thread, and the next one that can be written tells of those
/// that were lost. To be called once in a process that has [started](start_without_thread) to log
/// in this format.
pub fn start_thread(format: LogFormat) {
    let _ = QUEUE.set(output::stderr(Box::new(move |lost| lost_line(format, lost))));
}

/// Logs by `filter` from now on. Does nothing before logging has started.
pub fn change_filter(filter: EnvFilter) {
    if let Some(change) = CHANGE_FILTER.get() {
        change(filter);
    }
}

/// Changes the filter, whatever the format is.
static CHANGE_FILTER: OnceLock<Box<dyn Fn(EnvFilter) -> bool + Send + Sync>> = OnceLock::new();

/// Where lines go once there is a thread.
static QUEUE: OnceLock<&'static LineWriter> = OnceLock::new();

/// The line that reports lost lines; the filter does not apply to it.
fn lost_line(format: LogFormat, lost: u64) -> Vec<u8> {
    let text = "log lines were lost: standard error could not be written, or not fast enough";
    let mut time = String::new();
    if Timestamp.format_time(&mut Writer::new(&mut time)).is_err() {
        time = format!("{:?}", SystemTime::now());
    }
    let line = match format {
        LogFormat::Human => format!("{time}  WARN {lost} {text}\n"),
        LogFormat::Json => {
            let object = serde_json::json!({
                "timestamp": time, "level": "WARN", "message": text, "lost": lost, "target": module_path!(),
            });
            format!("{object}\n")
        }
    };
    line.into_bytes()
}

/// Passes each event's line to the queue, if there is one.
#[derive(Clone, Copy)]
struct LogWriter;

impl MakeWriter<'_> for LogWriter {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match QUEUE.get() {
            Some(queue) => queue.write(line),
            None => output::write_if_possible(line),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_applies_to_the_crates_of_this_workspace_only() {
        let filter = filter(Some("Debug")).unwrap().to_string();
        for part in ["interceptor=debug", "rdma_engine=debug", "warn"] {
            assert!(filter.contains(part), "{filter}");
        }
        assert_eq!(super::filter(Some("off")).unwrap().to_string(), "off");
    }

    #[test]
    fn a_whole_filter_is_used_unchanged() {
        for text in ["h2=trace", "warn,h2=trace", "info,[span{field=a}]=debug", "interceptor=3"] {
            filter(Some(text)).unwrap();
        }
        assert_eq!(filter(Some("h2=trace")).unwrap().to_string(), "h2=trace");
    }

    #[test]
    fn a_filter_without_a_level_is_refused() {
        for text in
            ["loud", "interceptor=loud", "info,loud", "interceptor::fetch", "info,,h2=", "[span]", "7"]
        {
            let message = filter(Some(text)).unwrap_err().to_string();
            assert!(message.contains("--log-level") && message.contains("debug"), "{message}");
        }
    }

    #[test]
    fn lost_lines_are_reported_in_the_format_of_the_log() {
        let text = String::from_utf8(lost_line(LogFormat::Human, 3)).unwrap();
        assert!(text.contains("  WARN 3 log lines were lost") && text.ends_with('\n'), "{text}");
        let json: serde_json::Value = serde_json::from_slice(&lost_line(LogFormat::Json, 3)).unwrap();
        assert_eq!((&json["lost"], &json["level"]), (&3.into(), &"WARN".into()), "{json}");
    }
}
