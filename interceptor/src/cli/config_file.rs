//! `--config FILE`: the options of a command in TOML, under the names they have on the command
//! line.
//!
//! There is one definition of the options, the command line's. The file is turned into arguments
//! (`key = value` becomes `--key=value`), which the same parser checks one by one, so that an
//! error can name the line. Options that are typed on the command line are left out. So the file
//! can never mean anything that the command line cannot.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};
use toml::de::{DeTable, DeValue};

use super::options::{negated_switch, without_negation};

/// What is wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigError {
    /// It cannot be read.
    #[error("cannot read --config {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// It is no TOML.
    #[error("{}: {error}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what; shows the line.
        error: toml::de::Error,
    },
    /// A line of it is no option, or has no value that the option takes.
    #[error("{}, line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

/// What a file stands for.
#[derive(Debug, Default)]
pub(super) struct FileOptions {
    /// Its options as arguments.
    pub(super) arguments: Vec<OsString>,
    /// The lines of these options, by name.
    lines: BTreeMap<String, usize>,
    path: PathBuf,
}

impl FileOptions {
    /// The error that the value of `option` conflicts with others or with this host. Names the
    /// line if the value comes from this file.
    pub(super) fn wrong(&self, option: &str, reason: String) -> String {
        match self.lines.get(option) {
            Some(&line) => ConfigError::Line { path: self.path.clone(), line, reason }.to_string(),
            None => reason,
        }
    }
}

/// The arguments that the file at `path` stands for, without those that `given` has from the
/// command line.
///
/// `command` is the subcommand whose options may be in the file.
pub(super) fn arguments(
    path: &Path,
    command: &Command,
    given: &ArgMatches,
) -> Result<FileOptions, ConfigError> {
    let text =
        daemon::settings_file::read(path).map_err(|error| ConfigError::Read { path: path.into(), error })?;
    let table = DeTable::parse(&text).map_err(|error| ConfigError::Syntax { path: path.into(), error })?;
    let mut file = FileOptions { path: path.into(), ..FileOptions::default() };
    for (key, value) in table.get_ref() {
        let line = 1 + text[..key.span().start].matches('\n').count();
        let wrong = |reason: String| ConfigError::Line { path: path.into(), line, reason };
        let key = key.get_ref().as_ref();
        // An older file has some switches under their negative names.
        let name = negated_switch(key).unwrap_or(key);
        let option = command
            .get_arguments()
            .find(|argument| argument.get_long() == Some(name) && name != "config")
            .ok_or_else(|| wrong(format!("unknown key {key:?}; known are {}", known_keys(command))))?;
        let value = plain(value.get_ref()).map_err(|error| wrong(format!("{key}: {error}")))?;
        let argument = without_negation(format!("--{key}={value}").into()).to_string_lossy().into_owned();
        accepted(command, &argument).map_err(wrong)?;
        if given.value_source(option.get_id().as_str()) != Some(ValueSource::CommandLine) {
            file.lines.insert(name.to_owned(), line);
            file.arguments.push(argument.into());
        }
    }
    Ok(file)
}

fn known_keys(command: &Command) -> String {
    let names = command.get_arguments().filter_map(|argument| argument.get_long());
    names.filter(|name| !["config", "help"].contains(name)).collect::<Vec<_>>().join(", ")
}

/// A value as it would be typed.
fn plain(value: &DeValue) -> Result<String, &'static str> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        // With 0x, 0o or 0b before it if it was written so, which few options take: without it
        // the digits would be another number.
        DeValue::Integer(number) => Ok(number.to_string()),
        DeValue::Float(number) => Ok(number.as_str().to_owned()),
        DeValue::Boolean(value) => Ok(value.to_string()),
        DeValue::Array(items) => {
            let items = items.iter().map(|item| match item.get_ref() {
                DeValue::Array(_) => Err("a list must not hold lists"),
                other => plain(other),
            });
            Ok(items.collect::<Result<Vec<_>, _>>()?.join(","))
        }
        DeValue::Datetime(_) | DeValue::Table(_) => {
            Err("expected a text, a number, true or false, or a list")
        }
    }
}

/// Asks the parser of the command line about one option on its own.
fn accepted(command: &Command, argument: &str) -> Result<(), String> {
    let positional = command.get_positionals().map(|_| "/");
    let arguments = positional.chain([argument]);
    let command = command.clone().no_binary_name(true);
    command.try_get_matches_from(arguments).map(drop).map_err(|error| {
        let text = error.render().to_string();
        let reason = text.lines().next().unwrap_or_default();
        reason.strip_prefix("error: ").unwrap_or(reason).to_owned()
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use clap::{Arg, ArgAction};

    use super::*;

    fn command() -> Command {
        Command::new("mount")
            .arg(Arg::new("mountpoint").required(true))
            .arg(Arg::new("config").long("config"))
            .arg(Arg::new("filer").long("filer"))
            .arg(Arg::new("threads").long("threads").value_parser(clap::value_parser!(u8)))
            .arg(
                Arg::new("nonempty")
                    .long("nonempty")
                    .action(ArgAction::Set)
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true")
                    .value_parser(clap::value_parser!(bool)),
            )
    }

    fn load(text: &str, typed: &[&str]) -> Result<Vec<String>, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let given = command().try_get_matches_from([&["mount", "/mnt"], typed].concat()).unwrap();
        arguments(file.path(), &command(), &given)
            .map(|found| {
                found.arguments.into_iter().map(|argument| argument.into_string().unwrap()).collect()
            })
            .map_err(|error| error.to_string())
    }

    #[test]
    fn keys_become_options() {
        assert_eq!(
            load("filer = [\"a:1\", \"b:2\"]\nnonempty = true\nthreads = 4\n", &[]).unwrap(),
            ["--filer=a:1,b:2", "--nonempty=true", "--threads=4"]
        );
    }

    #[test]
    fn the_command_line_wins() {
        let text = "filer = \"a:1\"\nthreads = 4\n";
        assert_eq!(load(text, &["--filer", "b:2"]).unwrap(), ["--threads=4"]);
    }

    #[test]
    fn errors_name_the_line() {
        for (text, line, word) in [
            ("\n# x\nfillers = 1\n", "line 3", "unknown key \"fillers\"; known are filer, threads, nonempty"),
            ("config = \"x\"\n", "line 1", "unknown key"),
            ("[mount]\nfiler = \"a\"\n", "line 1", "unknown key \"mount\"; known are filer"),
            ("\"threads=1\" = 2\n", "line 1", "unknown key"),
            ("filer = \"a\"\nthreads = 900\n", "line 2", "--threads"),
            ("nonempty = \"perhaps\"\n", "line 1", "perhaps"),
            ("threads = 0x10\n", "line 1", "0x10"),
            ("[filer]\nx = 1\n", "line 1", "expected a text"),
            ("filer = \"a\"\n\nthreads = \n", "line 3", "threads"),
            ("filer = \"a\"\nfiler = \"b\"\n", "line 2", "duplicate"),
        ] {
            let message = load(text, &[]).unwrap_err();
            assert!(message.contains(line) && message.contains(word), "{text:?}: {message}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let given = command().try_get_matches_from(["mount", "/mnt"]).unwrap();
        let error = arguments(Path::new("/nonexistent/x.toml"), &command(), &given).unwrap_err();
        assert!(error.to_string().contains("--config /nonexistent/x.toml"), "{error}");
    }
}
