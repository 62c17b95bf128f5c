//! The texts of a bundle: this host, how `interceptor` is configured, and what running mounts say
//! of themselves.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Display;
use std::fs;

use daemon::configuration::ConfiguredLine;

use super::DoctorOptions;
use super::bundle::BundledText;
use super::redaction::Redactor;
use super::security_file::SecurityFile;
use crate::cli::command_line;
use crate::cli::http::StatusClient;
use crate::cli::local_mounts::{self, LocalMount};
use crate::fuse::mountinfo::MountInfo;
use crate::seaweed::security::Security;
use crate::telemetry::access;

/// Mounts that are asked, at most.
const MAX_MOUNTS: usize = 32;

/// What may not be in a bundle, and which keys of `security.toml` are set.
pub(super) struct HostSecrets {
    pub(super) redactor: Redactor,
    set_keys: BTreeSet<String>,
}

impl HostSecrets {
    /// Reads keys and tokens.
    ///
    /// # Errors
    /// When the token of the daemons cannot be used.
    pub(super) fn read(options: &DoctorOptions) -> anyhow::Result<Self> {
        let file = options.check.security.clone().or_else(Security::file);
        let text = |(name, value): (OsString, OsString)| {
            Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
        };
        let SecurityFile { set, secrets } =
            SecurityFile::read(file.as_deref(), std::env::vars_os().filter_map(text));
        let token = options.status_token_file.as_deref().map(access::text).transpose()?;
        Ok(Self { redactor: Redactor::new(secrets.into_iter().chain(token)), set_keys: set })
    }
}

/// Gathers everything but the `findings`.
///
/// # Errors
/// When the mount table cannot be read.
pub(super) fn collect(
    options: &DoctorOptions,
    line: &ConfiguredLine,
    version: &str,
    secrets: &HostSecrets,
    findings: String,
) -> anyhow::Result<Vec<BundledText>> {
    let mut texts = vec![
        BundledText::new("findings.json", findings),
        BundledText::new("version.txt", format!("interceptor {version}\n")),
        BundledText::new("configuration/doctor.toml", command_line::shown(line)),
        BundledText::new("configuration/mount.toml", mount_configuration(options)),
        BundledText::new("configuration/security-keys.txt", lines(&secrets.set_keys)),
        BundledText::of_file("host/kernel.txt", "/proc/version"),
        BundledText::of_file("host/meminfo.txt", "/proc/meminfo"),
        BundledText::of_file("host/limits.txt", "/proc/self/limits"),
        BundledText::new("host/fuse-mounts.txt", fuse_mounts()),
    ];
    texts.extend(running_mounts(options)?);
    Ok(texts)
}

fn lines<L: Display>(lines: impl IntoIterator<Item = L>) -> String {
    lines.into_iter().map(|line| format!("{line}\n")).collect()
}

/// The options of a mount with the same configuration file and variables, or why there is none.
fn mount_configuration(options: &DoctorOptions) -> String {
    let file = options.check.configuration.config.iter();
    let file = file.flat_map(|file| [OsString::from("--config"), file.into()]);
    let typed: Vec<_> = ["interceptor", "mount"].map(OsString::from).into_iter().chain(file).collect();
    let typed = [typed, vec!["/".into()]].concat();
    match command_line::parse(&typed) {
        Ok((_, line)) => command_line::shown(&line),
        Err(error) => format!("{error}\n"),
    }
}

/// The lines of the mount table that are of FUSE.
fn fuse_mounts() -> String {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_else(|error| format!("{error} - fuse"));
    let is_fuse = |line: &&str| {
        let kind = line.split_once(" - ").map(|(_, rest)| rest);
        kind.is_some_and(|kind| kind.starts_with("fuse") && !kind.starts_with("fusectl"))
    };
    lines(table.lines().filter(is_fuse))
}

/// Status and metrics of each mount of this host, or why there are none.
fn running_mounts(options: &DoctorOptions) -> anyhow::Result<Vec<BundledText>> {
    let client = StatusClient::with_token(options.status_token_file.clone());
    let question =
        |client: &StatusClient| -> anyhow::Result<_> { Ok((client.status()?, client.get("/metrics")?.body)) };
    let mounts = local_mounts::ask_all(&client, MAX_MOUNTS, question)?;
    let texts = mounts.into_iter().enumerate().flat_map(|(number, LocalMount { mount, report })| {
        let name = |file: &str| format!("mounts/{number}/{file}");
        let MountInfo { path, fs_type, source, .. } = &mount;
        let described = format!("{} {fs_type} {source}\n", path.display());
        match report {
            Ok((status, metrics)) => vec![
                BundledText::new(name("mount.txt"), described),
                BundledText::new(name("status.json"), status),
                BundledText::new(name("metrics.txt"), metrics),
            ],
            Err(error) => vec![BundledText::new(name("mount.txt"), format!("{described}{error}\n"))],
        }
    });
    Ok(texts.collect())
}
