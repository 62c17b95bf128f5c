//! Logs: one line for each event, on standard error, for people or as JSON.

use std::io::{self, IsTerminal};
use std::{env, panic, thread};

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Time, level, message and fields, for people.
    Human,
    /// One JSON object a line, for collectors.
    Json,
}

/// The text of a log filter is not one.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no log level and no filter such as \"info,interceptor::fetch=debug\": {1}")]
pub struct FilterError(String, tracing_subscriber::filter::ParseError);

/// Says what to log. `level` is a level (of this program; libraries only warn) or a whole filter; without it
/// `RUST_LOG` counts, and without that, `info`.
pub fn filter(level: Option<&str>) -> Result<EnvFilter, FilterError> {
    let chosen = level.map(str::to_owned).or_else(|| env::var("RUST_LOG").ok());
    let chosen = chosen.filter(|text| !text.is_empty()).unwrap_or_else(|| "info".into());
    let directives = match chosen.to_ascii_lowercase().as_str() {
        "off" => "off".to_owned(),
        level @ ("error" | "warn" | "info" | "debug" | "trace") => {
            format!("warn,interceptor={level},rdma_engine={level}")
        }
        _ => chosen.clone(),
    };
    EnvFilter::try_new(directives).map_err(|error| FilterError(chosen, error))
}

/// Begins to log, panics included: a thread that dies says so in the log before it unwinds. To be called once.
pub fn start(format: LogFormat, filter: EnvFilter) {
    let color = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(color);
    match format {
        LogFormat::Human => builder.with_target(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let message = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("unknown");
        let location = info.location().map(ToString::to_string).unwrap_or_default();
        let thread = thread::current().name().unwrap_or("unnamed").to_owned();
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(thread, location, %backtrace, "panic: {message}");
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_of_this_program_only() {
        assert_eq!(filter(Some("Debug")).unwrap().to_string(), "rdma_engine=debug,interceptor=debug,warn");
        assert_eq!(filter(Some("off")).unwrap().to_string(), "off");
    }

    #[test]
    fn a_filter_is_taken_as_it_is() {
        assert_eq!(filter(Some("h2=trace")).unwrap().to_string(), "h2=trace");
    }

    #[test]
    fn nonsense_is_refused() {
        let message = filter(Some("interceptor=loud")).unwrap_err().to_string();
        assert!(message.contains("interceptor=loud"), "{message}");
    }
}
