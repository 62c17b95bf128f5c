//! `interceptor check`: what this host can do, what a mount would go without, and how to get that.

mod cluster;

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use daemon::output;
use daemon::size::ByteSize;
use futures::future::join_all;

use super::host::{self, Finding, FindingState};
use super::mount;
use super::options::{ConfigurationOptions, Filers, ServerOptions};
use super::untrusted::plain;
use crate::seaweed::address::ServerAddress;
use crate::seaweed::filer::FilerClient;
use crate::seaweed::permissions::PermissionRules;
use crate::seaweed::security::{Security, SecurityError};

/// Looks at this host, without changing anything, and says what a mount would go without.
#[derive(Debug, Clone, Args)]
pub(super) struct CheckOptions {
    /// How it is configured.
    #[command(flatten)]
    pub(super) configuration: ConfigurationOptions,

    /// Filers to try to reach
    #[arg(long, value_name = "HOST:PORT[,…]", value_parser = Filers::from_str)]
    pub(super) filer: Option<Filers>,

    /// Take keys and certificates from this security.toml
    #[arg(long, value_name = "FILE")]
    pub(super) security: Option<PathBuf>,

    /// A directory for --disk-cache
    #[arg(long, value_name = "DIR")]
    pub(super) disk_cache: Option<PathBuf>,

    /// How much of that disk is to be taken [default: a tenth of it]
    #[arg(long, value_name = "SIZE", value_parser = ByteSize::from_str, requires = "disk_cache")]
    pub(super) disk_cache_size: Option<ByteSize>,

    /// Print the findings as JSON
    #[arg(long)]
    pub(super) json: bool,

    /// The volume servers and engines to connect to: those that a mount with the same options
    /// asks.
    #[command(flatten)]
    pub(super) servers: ServerOptions,
}

/// What a check has found.
pub(super) struct CheckOutcome {
    pub(super) findings: Vec<Finding>,
    /// The cluster, if one of its filers answers and its keys can be used.
    pub(super) cluster: Option<ConnectedCluster>,
}

/// A cluster of which a filer answers.
pub(super) struct ConnectedCluster {
    pub(super) filer: FilerClient,
    pub(super) security: Arc<Security>,
}

/// Prints what was found; fails if no mount is possible.
pub(super) fn run(options: &CheckOptions) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let findings = runtime.block_on(check(options)).findings;
    let possible = is_mount_possible(&findings);
    if options.json {
        let document = serde_json::json!({ "mount_possible": possible, "findings": findings });
        output::print(format_args!("{document}\n"))?;
    } else {
        findings.iter().try_for_each(output::print)?;
    }
    Ok(exit_code(possible))
}

/// Whether nothing is missing without which there is no mount.
pub(super) fn is_mount_possible(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.state != FindingState::Missing)
}

/// The exit code of a command that looks for whether a mount is possible.
pub(super) fn exit_code(is_possible: bool) -> ExitCode {
    if is_possible { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Looks at this host, and at the cluster as far as options name it.
pub(super) async fn check(options: &CheckOptions) -> CheckOutcome {
    let mut findings = host::findings();
    findings.extend(host::ebpf_probes());
    findings.extend(host::rdma());
    let security = match &options.security {
        Some(file) => Security::load_from(file),
        None => Security::load(),
    };
    let file = options.security.clone().or_else(Security::file);
    findings.push(security_finding(file, security.as_ref().err()));
    findings.extend(security.as_ref().ok().and_then(host::engine_proofs));
    findings
        .extend(options.disk_cache.as_deref().map(|path| mount::disk::look(path, options.disk_cache_size)));
    let Ok(security) = security else { return CheckOutcome { findings, cluster: None } };
    let (of_network, filer) = network_findings(options, &security).await;
    findings.extend(of_network);
    let security = Arc::new(security);
    CheckOutcome { findings, cluster: filer.map(|filer| ConnectedCluster { filer, security }) }
}

fn security_finding(file: Option<PathBuf>, error: Option<&SecurityError>) -> Finding {
    Finding {
        ability: "security.toml",
        state: if error.is_some() { FindingState::Missing } else { FindingState::Ok },
        found: match (error, file) {
            (Some(error), _) => error.to_string(),
            (None, Some(file)) => format!("{} can be used", file.display()),
            (None, None) => "there is none: plain text, no tokens".into(),
        },
        lost: "a mount does not start without the keys it was told to use",
        remedy: "correct the file, or name another with --security FILE",
    }
}

/// Each filer's answer, of which a mount needs one, and those of the servers behind it. Also
/// returns the first filer that answers.
async fn network_findings(
    options: &CheckOptions,
    security: &Security,
) -> (Vec<Finding>, Option<FilerClient>) {
    let filers = options.filer.as_ref().map_or(&[][..], |Filers(filers)| filers);
    let asked =
        filers.iter().map(|filer| mount::connect(vec![filer.clone()], security, PermissionRules::default()));
    let answers = join_all(asked).await;
    let unanswered =
        if answers.iter().any(Result::is_ok) { FindingState::Lost } else { FindingState::Missing };
    let finding = |(filer, answer): (&ServerAddress, &anyhow::Result<FilerClient>)| Finding {
        ability: "filer",
        state: if answer.is_ok() { FindingState::Ok } else { unanswered },
        found: match answer {
            Ok(answer) => format!("{filer} answers, version {}", answer.configuration().version),
            Err(error) => error.to_string(),
        },
        lost: "a mount needs at least one filer that answers, and another for when that one does not",
        remedy: "start it, and open its HTTP port and its gRPC port to this host",
    };
    let mut findings: Vec<_> = filers.iter().zip(&answers).map(finding).collect();
    let filer = answers.into_iter().flatten().next();
    findings.extend(cluster::findings(filer.as_ref(), &options.servers, security).await);
    (findings, filer)
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            FindingState::Ok => "ok",
            FindingState::Untested => "untested",
            FindingState::Lost => "lost",
            FindingState::Missing => "MISSING",
        };
        // Names of files and texts of peers may be in it.
        writeln!(f, "{:<28} {state:<8} {}", self.ability, plain(&self.found))?;
        match self.state {
            FindingState::Ok | FindingState::Untested => Ok(()),
            FindingState::Lost | FindingState::Missing => {
                writeln!(f, "{:37} without it: {}", "", self.lost)?;
                writeln!(f, "{:37} to get it:  {}", "", self.remedy)
            }
        }
    }
}
