//! Reading anew what may change while a daemon runs: keys, certificates and tokens, and how much is
//! logged. By SIGHUP, and by `interceptor reload MOUNTPOINT`, which also says what came of it.
//!
//! Everything else takes `interceptor mount --restart`. A file that cannot be used changes nothing.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, ValueHint};
use daemon::{logs, output};

use super::command_line::parse;
use super::{mount_address, mount_options, options};
use crate::fuse::handover;
use crate::fuse::supervisor::SupervisorLink;
use crate::seaweed::security::Security;
use crate::telemetry::access::ApiSecrets;

/// Has a running daemon read its keys, certificates and tokens anew.
#[derive(Debug, Clone, Args)]
pub(super) struct ReloadOptions {
    /// The mount point
    #[arg(value_name = "MOUNTPOINT", value_hint = ValueHint::DirPath)]
    path: PathBuf,
}

/// Asks the daemon, and prints what came of it.
pub(super) fn run(options: &ReloadOptions) -> anyhow::Result<()> {
    let at = mount_address::mount_at(&options.path)?;
    let shown = at.path.display();
    let done = handover::request_reload(&at).with_context(|| format!("{shown} goes on as it was"))?;
    output::print(format_args!("{done}\n"))?;
    Ok(())
}

/// What a daemon reads anew.
pub(super) struct Reloadable {
    pub(super) security: Option<Arc<Security>>,
    /// The file that was named, if one was.
    pub(super) security_file: Option<PathBuf>,
    pub(super) api: ApiSecrets,
    pub(super) api_files: options::StatusAccessOptions,
    /// The command line of `interceptor mount`, which may name a configuration file.
    pub(super) typed: Option<Vec<OsString>>,
}

impl Reloadable {
    /// Reads everything anew, and tells the log and the requesters what came of it.
    pub(super) fn reload(&self, supervisor: &SupervisorLink) {
        let outcome = self.try_reload();
        match &outcome {
            Ok(done) => tracing::info!("reloaded: {done}"),
            Err(error) => tracing::error!("not reloaded: {error:#}"),
        }
        supervisor.reloaded(outcome.map_err(|error| format!("{error:#}")));
    }

    fn try_reload(&self) -> anyhow::Result<String> {
        // Nothing changes before everything has been read.
        let security = match &self.security {
            Some(_) => Some(load(self.security_file.as_ref())?),
            None => None,
        };
        let api = self.api_files.load()?;
        let filter = match &self.typed {
            Some(typed) => Some(logs::filter(options_now(typed)?.log.log_level.as_deref())?),
            None => None,
        };
        let mut done = Vec::new();
        if let (Some(used), Some(newer)) = (&self.security, security) {
            used.renew(newer)?;
            done.push("keys and certificates");
        }
        if let (Some(used), Some(newer)) = (&self.api.token, api.token) {
            used.renew(&newer);
            done.push("the token of the status API");
        }
        if let (Some(used), Some(newer)) = (&self.api.certificate, api.certificate) {
            used.renew(&newer);
            done.push("its certificate");
        }
        if let Some(filter) = filter {
            logs::change_filter(filter);
            done.push("what is logged");
        }
        Ok(if done.is_empty() { "there is nothing to reload".into() } else { done.join(", ") })
    }
}

/// The security settings as they are now.
pub(super) fn load(file: Option<&PathBuf>) -> anyhow::Result<Security> {
    let loaded = match file {
        Some(file) => Security::load_from(file),
        None => Security::load(),
    };
    loaded.context("cannot use security.toml")
}

/// The options of a command line with what its configuration files say now.
fn options_now(typed: &[OsString]) -> anyhow::Result<options::MountOptions> {
    let (_, line) = parse(typed)?;
    let (options, _) = mount_options(&line).map_err(|failure| anyhow::anyhow!("{failure}"))?;
    Ok(options)
}
