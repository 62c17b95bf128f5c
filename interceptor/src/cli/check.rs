//! `interceptor check`: says what this host can do, what a mount would go without, and how to get that.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::Args;

use super::host::{self, Finding, State};
use super::options::Filers;

/// Looks at this host, without changing anything, and says what a mount would go without.
#[derive(Debug, Clone, Args)]
pub(super) struct CheckOptions {
    /// Filers to try to reach
    #[arg(long, value_name = "HOST:PORT[,…]", value_parser = Filers::from_str)]
    pub(super) filer: Option<Filers>,

    /// Take keys and certificates from this security.toml
    #[arg(long, value_name = "FILE")]
    pub(super) security: Option<PathBuf>,

    /// Print the findings as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Prints what was found; fails if no mount is possible.
pub(super) fn run(options: &CheckOptions) -> ExitCode {
    let findings = host::findings();
    let possible = findings.iter().all(|finding| finding.state != State::Missing);
    if options.json {
        println!("{}", serde_json::json!({ "mount_possible": possible, "findings": findings }));
    } else {
        for finding in &findings {
            print!("{finding}");
        }
    }
    if possible { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Ok => "ok",
            State::Lost => "lost",
            State::Missing => "MISSING",
            State::Unused => "-",
        };
        writeln!(f, "{:<24} {state:<8} {}", self.ability, self.found)?;
        match self.state {
            State::Ok => Ok(()),
            State::Unused => writeln!(f, "{:33} not used by this version", ""),
            State::Lost | State::Missing => {
                writeln!(f, "{:33} without it: {}", "", self.lost)?;
                writeln!(f, "{:33} to get it:  {}", "", self.remedy)
            }
        }
    }
}
