//! Reading anew what may change while a daemon runs: keys, certificates and tokens, and how much is
//! logged. By SIGHUP, and by `interceptor reload MOUNTPOINT`, which also says what came of it.
//!
//! Everything else takes `interceptor mount --restart`. A file that cannot be used changes nothing.

use std::collections::{BTreeMap, BTreeSet};
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

/// The option that is taken over from configuration files.
const RELOADED_OPTION: &str = "log-level";

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
    /// Of `interceptor mount`.
    pub(super) command_line: Option<RunningCommandLine>,
}

/// A command line that may name a configuration file, and what the options were when it was read.
pub(super) struct RunningCommandLine {
    pub(super) typed: Vec<OsString>,
    pub(super) in_effect: BTreeMap<String, String>,
}

impl RunningCommandLine {
    /// The options with what configuration files say now, and the names of those that have changed
    /// and stay as they are.
    fn read_anew(&self) -> anyhow::Result<(options::MountOptions, Vec<String>)> {
        let (_, line) = parse(&self.typed)?;
        let (options, newer) = mount_options(&line).map_err(|failure| anyhow::anyhow!("{failure}"))?;
        let names = self.in_effect.keys().chain(newer.keys()).collect::<BTreeSet<_>>();
        let is_kept = |name: &&String| {
            name.as_str() != RELOADED_OPTION && self.in_effect.get(*name) != newer.get(*name)
        };
        Ok((options, names.into_iter().filter(is_kept).map(|name| format!("--{name}")).collect()))
    }
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
        let read = self.command_line.as_ref().map(RunningCommandLine::read_anew).transpose()?;
        let filter = match &read {
            Some((options, _)) => Some(logs::filter(options.log.log_level.as_deref())?),
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
            done.push("the certificate of the status API");
        }
        if let Some(filter) = filter {
            logs::change_filter(filter);
            done.push("what is logged");
        }
        let done = if done.is_empty() { "there is nothing to reload".into() } else { done.join(", ") };
        Ok(match read {
            Some((_, kept)) if !kept.is_empty() => {
                format!("{done}; as before, until `interceptor mount --restart`: {}", kept.join(", "))
            }
            _ => done,
        })
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
