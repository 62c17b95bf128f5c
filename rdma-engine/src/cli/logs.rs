//! The options of logging.

use clap::Args;
use daemon::logs::{self, FilterError, LogFormat};

/// How to log.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logging")]
pub(super) struct LogOptions {
    /// error, warn, info, debug, trace or off; or a filter such as `info,rdma_engine::store=debug`
    /// [default: RUST_LOG, else info]
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,

    /// Lines for people, or JSON for collectors; on standard error
    #[arg(long, global = true, value_name = "FORMAT", default_value = "human")]
    log_format: LogFormat,
}

impl LogOptions {
    /// Starts to log. No event may have been logged before.
    pub(super) fn start(&self) -> Result<(), FilterError> {
        logs::start(self.log_format, logs::filter(self.log_level.as_deref())?);
        Ok(())
    }

    /// Whether the level is one.
    pub(super) fn check(&self) -> Result<(), FilterError> {
        logs::filter(self.log_level.as_deref()).map(drop)
    }
}
