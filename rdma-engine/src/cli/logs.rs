//! Logs: one line for each event, on standard error, for people or as JSON.

use std::env;
use std::io::{self, IsTerminal};

use anyhow::Context;
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// How to log.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logging")]
pub(super) struct LogOptions {
    /// error, warn, info, debug, trace or off; or a filter such as `info,rdma_engine::store=debug` [default: RUST_LOG, else info]
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,

    /// Lines for people, or JSON for collectors; on standard error
    #[arg(long, global = true, value_name = "FORMAT", default_value = "human")]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Human,
    Json,
}

/// Begins to log.
pub(super) fn start(options: &LogOptions) -> anyhow::Result<()> {
    let chosen = options.log_level.clone().or_else(|| env::var("RUST_LOG").ok());
    let chosen = chosen.filter(|text| !text.is_empty()).unwrap_or_else(|| "info".into());
    let filter =
        EnvFilter::try_new(&chosen).with_context(|| format!("{chosen:?} is no log level and no filter"))?;
    let color = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(color);
    match options.log_format {
        LogFormat::Human => builder.with_target(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
