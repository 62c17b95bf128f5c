//! From what is typed, and what is set elsewhere ([`daemon::configuration`]), to a command and its
//! options; and `interceptor config`, which shows that.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use daemon::configuration::{ConfigOptions, ConfigurableProgram, ConfiguredLine, LineError};
use daemon::output;

use super::options::{SWITCHES, without_negations};
use super::{Cli, CommandFailure, attach_options, mount_options, mount_plan, understand_foreign_options};

/// What can be set, and how.
const PROGRAM: ConfigurableProgram<'_> = ConfigurableProgram {
    definition: Cli::command,
    commands: &["mount", "attach", "check", "doctor"],
    typed_only: &["restart", "json", "bundle"],
    negatable: &SWITCHES,
};

/// Understands a line, the program's name in front.
pub(super) fn parse(typed: &[OsString]) -> Result<(Cli, ConfiguredLine), LineError> {
    let line = PROGRAM.parse(&without_negations(typed), std::env::vars_os())?;
    Ok((Cli::from_arg_matches(&line.matches)?, line))
}

/// The options of a line that has been understood, as `interceptor config show` prints them.
pub(super) fn shown(line: &ConfiguredLine) -> String {
    // Options of a mount that are wrong together, as without a filer, are shown as they stand.
    let is_mount = line.matches.subcommand_name() == Some("mount");
    let mount = is_mount.then(|| mount_options(line).ok()).flatten();
    PROGRAM.show(line, &mount.map(|(_, in_effect)| in_effect).unwrap_or_default())
}

/// `interceptor config`.
pub(super) fn run(options: &ConfigOptions) -> Result<ExitCode, CommandFailure> {
    let mut typed = options.line(&PROGRAM);
    let is_mount = typed.get(1).is_some_and(|name| name == "mount");
    if is_mount {
        understand_foreign_options(&mut typed).map_err(CommandFailure::usage)?;
    }
    let line = match options.parse(&PROGRAM, without_negations(&typed)) {
        Ok(line) => line,
        Err(LineError::Parser(error)) => return Ok(output::explain_usage(&error)),
        Err(LineError::Configuration(error)) => return Err(CommandFailure::usage(error)),
    };
    let mut values = BTreeMap::new();
    if is_mount {
        let (mount, in_effect) = mount_options(&line)?;
        values.clone_from(&in_effect);
        let (mut plan, _) = mount_plan(mount, in_effect, typed, &line.settings)?;
        if options.is_check() {
            plan.load_secrets()?;
        }
    }
    if line.matches.subcommand_name() == Some("attach") {
        let (attach, _) = attach_options(&line)?;
        if options.is_check() {
            attach.check_secrets()?;
        }
    }
    let text = options.text(&PROGRAM, &line, &values);
    output::print(format_args!("{text}")).map_err(anyhow::Error::from)?;
    Ok(ExitCode::SUCCESS)
}
