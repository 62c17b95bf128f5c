//! `interceptor doctor`: what `interceptor check` looks at, and whether files can be read, from
//! each source, measured. What was found can be written to an archive for a bug report.

mod bundle;
mod directory;
mod limits;
mod redaction;
mod report_texts;
mod security_file;
mod source_reader;
mod test_read;
mod verdict;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueHint};
use daemon::configuration::ConfiguredLine;
use daemon::output::{self, OutputError};
use serde_json::json;

use self::bundle::Bundle;
use self::report_texts::HostSecrets;
use self::source_reader::Measurement;
use super::check::{self, CheckOptions, CheckOutcome, exit_code, is_mount_possible};
use super::host::Finding;
use super::options::filer_path;
use super::untrusted::plain;

/// Tests everything that a mount needs, reads included, and changes nothing.
#[derive(Debug, Clone, Args)]
pub(super) struct DoctorOptions {
    /// The filer's directory that is to be mounted; a file of it is read
    #[arg(long, value_name = "PATH", default_value = "/", value_parser = filer_path)]
    filer_path: String,

    /// Write an archive for a bug report to this file, which must not be there yet: findings,
    /// options, limits, and the status and metrics of running mounts; without keys, tokens and
    /// passwords
    #[arg(long, value_name = "FILE.tar.gz", value_hint = ValueHint::FilePath)]
    bundle: Option<PathBuf>,

    /// The file with the token that the daemons of running mounts were given with the same option,
    /// for the archive
    #[arg(long, value_name = "FILE")]
    status_token_file: Option<PathBuf>,

    /// What is looked at, as by `interceptor check`.
    #[command(flatten)]
    check: CheckOptions,
}

/// Prints what was found, and the verdict; fails if no mount is possible, or nothing can be read.
/// `version` is what `--version` says.
pub(super) fn run(options: &DoctorOptions, line: &ConfiguredLine, version: &str) -> anyhow::Result<ExitCode> {
    // What cannot be written is better known before anything takes time.
    let bundle = match &options.bundle {
        Some(path) => Some((path, Bundle::create(path)?, HostSecrets::read(options)?)),
        None => None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start threads")?;
    let mut examination = Examination::new(!options.check.json);
    runtime.block_on(examination.conduct(options));
    // What waits for a peer is not waited for.
    runtime.shutdown_background();

    let works = is_mount_possible(&examination.findings);
    let verdict = verdict::verdict(&examination.findings);
    let mut document = json!({
        "mount_possible": verdict::obstacles(&examination.findings).is_empty(),
        "verdict": verdict,
        "findings": examination.findings,
        "reads": examination.measurements,
    });
    let mut bundled = None;
    if let Some((path, bundle, secrets)) = bundle {
        let findings = format!("{document:#}\n");
        let texts = report_texts::collect(options, line, version, &secrets, findings)?;
        let names = bundle.publish(&texts, &secrets.redactor)?;
        document["bundle"] = json!({ "path": path, "files": names });
        bundled = Some((path, names));
    }
    if options.check.json {
        output::print(format_args!("{document}\n"))?;
        return Ok(exit_code(works));
    }
    // Only now: a closed standard output leaves the archive as it is.
    examination.printed?;
    if let Some((path, names)) = bundled {
        output::print(format_args!("\n{} has\n  {}\n", path.display(), names.join("\n  ")))?;
    }
    output::print(format_args!("\n{}\n", plain(&verdict)))?;
    Ok(exit_code(works))
}

/// What has been found so far.
struct Examination {
    findings: Vec<Finding>,
    measurements: Vec<Measurement>,
    /// Whether findings are printed as they come.
    prints: bool,
    /// How that has gone.
    printed: Result<(), OutputError>,
}

impl Examination {
    /// Nothing yet.
    fn new(prints: bool) -> Self {
        Self { findings: Vec::new(), measurements: Vec::new(), prints, printed: Ok(()) }
    }

    /// Looks at everything.
    async fn conduct(&mut self, options: &DoctorOptions) {
        let CheckOutcome { findings, cluster } = check::check(&options.check).await;
        self.add(findings);
        self.add(limits::findings());
        let Some(cluster) = cluster else {
            if options.check.filer.is_none() {
                self.add([test_read::untested("no filer is named (--filer)")]);
            }
            return;
        };
        let (finding, files) = directory::examine(&cluster.filer, &options.filer_path).await;
        self.add([finding]);
        let servers = &options.check.servers;
        let (findings, measurements) = test_read::read_from_each_source(&cluster, servers, &files).await;
        self.add(findings);
        self.measurements = measurements;
    }

    fn add(&mut self, findings: impl IntoIterator<Item = Finding>) {
        for finding in findings {
            if self.prints && self.printed.is_ok() {
                self.printed = output::print(&finding);
            }
            self.findings.push(finding);
        }
    }
}
