//! What sets the options of a command besides its command line: variables of the environment, a
//! TOML file (`--config FILE`), and the files of a directory beside that (`FILE.d/*.toml`).
//!
//! ```text
//!  typed  >  PROGRAM_OPTION=…  >  FILE.d/*.toml, the last by name first  >  FILE  >  default
//! ```
//!
//! There is one definition of the options, the command line's. Each setting is turned into an
//! argument (`key = value` and `PROGRAM_KEY=value` become `--key=value`), which the same parser
//! checks by itself, so that an error can name the place. Arguments that are typed win. So no
//! place can mean anything that the command line cannot.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io::{self, ErrorKind};
use std::mem::{Discriminant, discriminant};
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Subcommand, error};
use toml::de::{DeTable, DeValue};

use crate::nearest::{mistyped, nearest};
use crate::settings_file;

/// The option that names the file.
const FILE_OPTION: &str = "config";

/// A program with commands whose options can be set elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct ConfigurableProgram<'a> {
    /// Its command line.
    pub definition: fn() -> Command,
    /// The names of these commands. What is an option of another one of them is no error, so that
    /// they can share a file.
    pub commands: &'a [&'a str],
    /// Options that say what to do now, and so can only be typed.
    pub typed_only: &'a [&'a str],
    /// Switches that `no-NAME` turns off.
    pub negatable: &'a [&'a str],
}

/// A line that has been understood.
#[derive(Debug)]
pub struct ConfiguredLine {
    /// What is typed, and what is set elsewhere.
    pub matches: ArgMatches,
    /// What is set elsewhere.
    pub settings: Settings,
}

/// Why a line is not understood.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// What is typed is wrong, or what is typed and set elsewhere do not go together.
    #[error(transparent)]
    Parser(#[from] clap::Error),
    /// What is set elsewhere is wrong.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingOrigin {
    /// From nowhere.
    Default,
    /// A file.
    File {
        /// Its path.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// A variable of the environment.
    Variable(String),
    /// It was typed.
    CommandLine,
}

impl SettingOrigin {
    /// Which file, if it is one: a place sets an option once.
    fn place(&self) -> (Discriminant<Self>, Option<&Path>) {
        let file = if let Self::File { path, .. } = self { Some(path.as_path()) } else { None };
        (discriminant(self), file)
    }
}

impl Display for SettingOrigin {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("default"),
            Self::File { path, line } => {
                // In one line, whatever the name.
                write!(formatter, "{}, line {line}", path.display().to_string().escape_debug())
            }
            Self::Variable(name) => write!(formatter, "{name} of the environment"),
            Self::CommandLine => formatter.write_str("typed"),
        }
    }
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// A file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It is no TOML.
    #[error("{}: {error}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what; shows the line.
        error: toml::de::Error,
    },
    /// The options of this command are only typed.
    #[error("{name:?} is not configured; what is: {known}")]
    NotConfigured {
        /// The command.
        name: String,
        /// The commands that are.
        known: String,
    },
    /// A setting is no option, or has no value that the option takes.
    #[error("{origin}: {reason}")]
    Setting {
        /// Where it is.
        origin: SettingOrigin,
        /// What is wrong.
        reason: String,
    },
}

/// A value that was not typed.
#[derive(Debug, Clone)]
struct Setting {
    origin: SettingOrigin,
    /// `None` for a switch that is off.
    argument: Option<OsString>,
}

/// What is set besides what is typed.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    by_option: BTreeMap<String, Setting>,
}

impl Settings {
    /// As arguments, to stand before those that are typed.
    pub fn arguments(&self) -> impl Iterator<Item = OsString> + '_ {
        self.by_option.values().filter_map(|setting| setting.argument.clone())
    }

    /// The error that the value of `option` conflicts with others or with this host. Names the
    /// place if the value was not typed.
    pub fn wrong(&self, option: &str, reason: String) -> String {
        match self.by_option.get(option) {
            Some(Setting { origin, .. }) => {
                ConfigurationError::Setting { origin: origin.clone(), reason }.to_string()
            }
            None => reason,
        }
    }

    /// Where the value of an option comes from. `matches` are those of the whole line, settings
    /// included.
    fn origin(&self, option: &Arg, matches: &ArgMatches) -> SettingOrigin {
        match option.get_long().and_then(|name| self.by_option.get(name)) {
            Some(setting) => setting.origin.clone(),
            None if matches.value_source(option.get_id().as_str()) == Some(ValueSource::CommandLine) => {
                SettingOrigin::CommandLine
            }
            None => SettingOrigin::Default,
        }
    }
}

impl ConfigurableProgram<'_> {
    /// Understands a line, the program's name in front. `environment` has the variables of this
    /// process.
    ///
    /// # Errors
    /// When something is wrong with it, or with what is set elsewhere.
    pub fn parse(
        &self,
        typed: &[OsString],
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<ConfiguredLine, LineError> {
        // What is wrong with the line shows when it is whole: it may need what is set elsewhere.
        let so_far = (self.definition)().ignore_errors(true).try_get_matches_from(typed).ok();
        let given = so_far.as_ref().and_then(ArgMatches::subcommand);
        let given = given.filter(|(name, _)| self.commands.contains(name));
        let (mut line, mut settings) = (typed.to_vec(), Settings::default());
        if let Some((name, given)) = given {
            settings = KnownOptions::new(self).settings(name, given, environment)?;
            let behind = line.iter().skip(1).position(|argument| argument == name).map_or(1, |at| at + 2);
            line.splice(behind..behind, settings.arguments());
        }
        Ok(ConfiguredLine { matches: (self.definition)().try_get_matches_from(line)?, settings })
    }

    /// The options of a line that is right: what is set as a file with the same meaning, and
    /// defaults as comments, of which `values` has those that are not constant.
    pub fn show(&self, line: &ConfiguredLine, values: &BTreeMap<String, String>) -> String {
        let Some((name, matches)) = line.matches.subcommand() else { return String::new() };
        let known = KnownOptions::new(self);
        let options = known.program.find_subcommand(name).into_iter();
        let options = options.flat_map(|command| known.options(command));
        let lines = options.filter_map(|option| {
            let (name, origin) = (option.get_long()?, line.settings.origin(option, matches));
            let is_default = origin == SettingOrigin::Default;
            let typed = matches.get_raw(option.get_id().as_str());
            let typed = typed.map(|values| values.map(|value| value.to_string_lossy()).collect::<Vec<_>>());
            let typed = typed.map(|values| values.join(","));
            let value = values.get(name).cloned().filter(|_| is_default).or(typed)?;
            let shown = match value.as_str() {
                "true" | "false" => value,
                _ => toml::Value::String(value).to_string(),
            };
            let mark = if is_default { "# " } else { "" };
            Some(format!("{:<44} # {origin}\n", format!("{mark}{name} = {shown}")))
        });
        lines.collect()
    }
}

/// `config`: shows what the options of a command are, or whether they are right.
#[derive(Debug, Args)]
pub struct ConfigOptions {
    #[command(subcommand)]
    verb: ConfigVerb,
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Print the options in effect, as a configuration file, and where each comes from
    Show(TypedLine),
    /// Say whether the options are right; what is wrong is named with its place
    Check(TypedLine),
}

#[derive(Debug, Args)]
struct TypedLine {
    /// The command with its options, as one would run it; a path that it works on may be left out
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    line: Vec<OsString>,
}

impl ConfigOptions {
    /// Whether nothing but the verdict is wanted.
    pub fn is_check(&self) -> bool {
        matches!(self.verb, ConfigVerb::Check(_))
    }

    /// The line of which the options are shown, the program's name in front.
    pub fn line(&self, program: &ConfigurableProgram<'_>) -> Vec<OsString> {
        let (ConfigVerb::Show(TypedLine { line }) | ConfigVerb::Check(TypedLine { line })) = &self.verb;
        let name = (program.definition)().get_name().into();
        [name].into_iter().chain(line.iter().cloned()).collect()
    }

    /// Understands that line, also without the path of a command that needs one.
    ///
    /// # Errors
    /// When something is wrong with it, or with what is set elsewhere.
    pub fn parse(
        &self,
        program: &ConfigurableProgram,
        mut line: Vec<OsString>,
    ) -> Result<ConfiguredLine, LineError> {
        let name = line.get(1).and_then(|name| name.to_str()).unwrap_or_default();
        if !program.commands.contains(&name) {
            let (name, known) = (name.to_owned(), program.commands.join(", "));
            return Err(ConfigurationError::NotConfigured { name, known }.into());
        }
        match program.parse(&line, std::env::vars_os()) {
            Err(LineError::Parser(error)) if error.kind() == error::ErrorKind::MissingRequiredArgument => {
                line.push("/".into());
                program.parse(&line, std::env::vars_os()).map_err(|_| LineError::Parser(error))
            }
            other => other,
        }
    }

    /// What to print of a line that is right: what is in effect
    /// ([`ConfigurableProgram::show`]), or that it is right.
    pub fn text(
        &self,
        program: &ConfigurableProgram,
        line: &ConfiguredLine,
        values: &BTreeMap<String, String>,
    ) -> String {
        match line.matches.subcommand_name() {
            Some(name) if self.is_check() => format!("the options of {name} are right\n"),
            _ => program.show(line, values),
        }
    }
}

/// The options of a program that can be set.
struct KnownOptions<'a> {
    /// Built: until then, a command does not know the names of its options.
    program: Command,
    rules: &'a ConfigurableProgram<'a>,
}

impl<'a> KnownOptions<'a> {
    fn new(rules: &'a ConfigurableProgram<'a>) -> Self {
        let mut program = (rules.definition)();
        program.build();
        Self { program, rules }
    }

    /// What sets options of the command `name`, of which `given` was typed.
    fn settings(
        &self,
        name: &str,
        given: &ArgMatches,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Settings, ConfigurationError> {
        let Some(command) = self.program.find_subcommand(name) else { return Ok(Settings::default()) };
        let mut settings = Settings::default();
        let variables = self.variables(environment)?;
        let named = given.try_get_one::<PathBuf>(FILE_OPTION).ok().flatten().cloned();
        let by_variable = || variables.iter().find(|(option, ..)| option == FILE_OPTION);
        if let Some(file) = named.or_else(|| by_variable().map(|(.., value)| PathBuf::from(value))) {
            self.add_file(&mut settings, command, &file)?;
            for file in drop_ins(&file)? {
                self.add_file(&mut settings, command, &file)?;
            }
        }
        for (option, variable, value) in variables.into_iter().filter(|(option, ..)| option != FILE_OPTION) {
            self.add(&mut settings, command, &option, &value, SettingOrigin::Variable(variable))?;
        }
        let is_typed = |name: &str| {
            let option = command.get_arguments().find(|option| option.get_long() == Some(name));
            option.is_some_and(|option| {
                given.value_source(option.get_id().as_str()) == Some(ValueSource::CommandLine)
            })
        };
        settings.by_option.retain(|name, _| !is_typed(name));
        Ok(settings)
    }

    /// The options of a command that can be set.
    fn options<'c>(&'c self, command: &'c Command) -> impl Iterator<Item = &'c Arg> {
        let typed_only = self.rules.typed_only;
        let never =
            move |name: &str| ["help", "version", FILE_OPTION].contains(&name) || typed_only.contains(&name);
        command.get_arguments().filter(move |option| option.get_long().is_some_and(|name| !never(name)))
    }

    /// The names of all options that can be set for any command of the program.
    fn names(&self) -> impl Iterator<Item = &str> {
        let commands = self.rules.commands.iter().filter_map(|name| self.program.find_subcommand(name));
        commands.flat_map(|command| self.options(command)).filter_map(Arg::get_long)
    }

    /// The switch that `name` negates.
    fn negated<'n>(&self, name: &'n str) -> Option<&'n str> {
        name.strip_prefix("no-").filter(|name| self.rules.negatable.contains(name))
    }

    /// The variables that set options: the option, the variable and its value.
    fn variables(
        &self,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Vec<(String, String, OsString)>, ConfigurationError> {
        let prefix = format!("{}_", self.program.get_name().replace('-', "_").to_uppercase());
        let ours = environment.into_iter().filter_map(|(variable, value)| {
            let variable = variable.into_string().ok()?;
            let option = variable.strip_prefix(&prefix)?.to_lowercase().replace('_', "-");
            // As in a shell script that has nothing to say.
            (!value.is_empty()).then_some((option, variable, value))
        });
        let mut found = Vec::new();
        for (option, variable, value) in ours {
            let name = self.negated(&option).unwrap_or(&option);
            let is_known = |name: &str| self.names().any(|known| known == name);
            let wrong = |reason: String| {
                let origin = SettingOrigin::Variable(variable.clone());
                Err(ConfigurationError::Setting { origin, reason })
            };
            if name == FILE_OPTION || is_known(name) {
                found.push((option, variable, value));
            } else if self.rules.typed_only.contains(&name) {
                return wrong(format!("--{name} can only be typed"));
            } else if name.strip_prefix("no-").is_some_and(is_known) {
                return wrong("there is no such option; the one without NO is turned off by false".into());
            } else if let Some(meant) = mistyped(name, self.names().chain([FILE_OPTION])) {
                // Others may have variables that begin so, such as Kubernetes for a service.
                let meant = meant.replace('-', "_").to_uppercase();
                return wrong(format!("there is no such option; {prefix}{meant} is one"));
            }
        }
        Ok(found)
    }

    fn add_file(
        &self,
        settings: &mut Settings,
        command: &Command,
        path: &Path,
    ) -> Result<(), ConfigurationError> {
        let text = settings_file::read(path)
            .map_err(|error| ConfigurationError::Read { path: path.into(), error })?;
        let table =
            DeTable::parse(&text).map_err(|error| ConfigurationError::Syntax { path: path.into(), error })?;
        for (key, value) in table.get_ref() {
            let line = 1 + text[..key.span().start].matches('\n').count();
            let origin = SettingOrigin::File { path: path.into(), line };
            let key = key.get_ref().as_ref();
            let wrong = |reason: String| ConfigurationError::Setting { origin: origin.clone(), reason };
            let text = plain(value.get_ref()).map_err(|error| wrong(format!("{key}: {error}")))?;
            let option = self.options(command).find(|option| option.get_long() == Some(key));
            if value.get_ref().is_array() && option.is_some_and(|option| !takes_list(option)) {
                return Err(wrong(format!("{key} takes one value, not a list")));
            }
            self.add(settings, command, key, OsStr::new(&text), origin)?;
        }
        Ok(())
    }

    fn add(
        &self,
        settings: &mut Settings,
        command: &Command,
        key: &str,
        value: &OsStr,
        origin: SettingOrigin,
    ) -> Result<(), ConfigurationError> {
        let wrong = |reason: String| ConfigurationError::Setting { origin: origin.clone(), reason };
        let (name, is_negated) = self.negated(key).map_or((key, false), |name| (name, true));
        let Some(option) = self.options(command).find(|option| option.get_long() == Some(name)) else {
            if self.names().any(|known| known == name) {
                return Ok(());
            }
            return Err(wrong(self.unknown(key)));
        };
        let argument = match (option.get_action(), value.to_str()) {
            (ArgAction::SetTrue, Some("true")) => Some(format!("--{name}").into()),
            (ArgAction::SetTrue, Some("false")) => None,
            (ArgAction::SetTrue, _) => {
                return Err(wrong(format!("{key} is true or false, not {}", value.display())));
            }
            (_, Some("true")) if is_negated => Some(format!("--{name}=false").into()),
            (_, Some("false")) if is_negated => Some(format!("--{name}=true").into()),
            _ => {
                let mut argument = OsString::from(format!("--{name}="));
                argument.push(value);
                Some(argument)
            }
        };
        if let Some(argument) = &argument {
            accepted(command, argument).map_err(wrong)?;
        }
        let before = settings.by_option.get(name).map(|before| before.origin.place());
        if before.is_some_and(|place| place == origin.place()) {
            return Err(wrong(format!("{name} is set twice here, once as no-{name}")));
        }
        settings.by_option.insert(name.to_owned(), Setting { origin, argument });
        Ok(())
    }

    fn unknown(&self, key: &str) -> String {
        match (self.rules.typed_only.contains(&key) || key == FILE_OPTION, nearest(key, self.names())) {
            (true, _) => format!("{key:?} can only be typed"),
            (false, Some(nearest)) => format!("unknown key {key:?}; the nearest known one is {nearest:?}"),
            (false, None) => {
                let mut known: Vec<_> = self.names().collect();
                known.sort_unstable();
                known.dedup();
                format!("unknown key {key:?}; known are {}", known.join(", "))
            }
        }
    }
}

/// The files that add to `file`, by name.
fn drop_ins(file: &Path) -> Result<Vec<PathBuf>, ConfigurationError> {
    let mut directory = file.as_os_str().to_owned();
    directory.push(".d");
    let directory = PathBuf::from(directory);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ConfigurationError::Read { path: directory, error }),
    };
    let entries: Result<Vec<_>, _> = entries.collect();
    let entries = entries.map_err(|error| ConfigurationError::Read { path: directory, error })?;
    let is_ours = |path: &PathBuf| {
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        path.extension().is_some_and(|extension| extension == "toml") && !is_hidden
    };
    let mut files: Vec<_> = entries.into_iter().map(|entry| entry.path()).filter(is_ours).collect();
    files.sort_unstable();
    Ok(files)
}

/// Whether the option takes several values, which its help says.
fn takes_list(option: &Arg) -> bool {
    let names = option.get_value_names().into_iter().flatten();
    option.get_value_delimiter().is_some() || names.into_iter().any(|name| name.ends_with("[,…]"))
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

/// Asks the parser of the command line about one option by itself.
fn accepted(command: &Command, argument: &OsStr) -> Result<(), String> {
    let positional = command.get_positionals().map(|_| OsStr::new("/"));
    let arguments = positional.chain([argument]);
    let command = command.clone().no_binary_name(true);
    match command.try_get_matches_from(arguments) {
        Ok(_) => Ok(()),
        // Options that it needs may be set elsewhere.
        Err(error) if error.kind() == error::ErrorKind::MissingRequiredArgument => Ok(()),
        Err(error) => {
            let text = error.render().to_string();
            let reason = text.lines().next().unwrap_or_default();
            Err(reason.strip_prefix("error: ").unwrap_or(reason).to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::value_parser;

    use super::*;

    fn program() -> Command {
        let config = || Arg::new(FILE_OPTION).long(FILE_OPTION).value_parser(value_parser!(PathBuf));
        let switch = |name: &'static str| {
            let arg = Arg::new(name).long(name).num_args(0..=1).require_equals(true);
            arg.default_missing_value("true").value_parser(value_parser!(bool))
        };
        let mount = Command::new("mount")
            .arg(Arg::new("mountpoint").required(true))
            .arg(config())
            .arg(Arg::new("filer").long("filer").value_name("HOST:PORT[,…]"))
            .arg(Arg::new("filer-path").long("filer-path").requires("filer"))
            .arg(Arg::new("threads").long("threads").value_parser(value_parser!(u8)).default_value("2"))
            .arg(switch("nonempty"))
            .arg(switch("ebpf"))
            .arg(Arg::new("restart").long("restart").action(ArgAction::SetTrue));
        let serve = Command::new("serve")
            .arg(config())
            .arg(Arg::new("volume-dir").long("volume-dir").value_delimiter(',').action(ArgAction::Append))
            .arg(Arg::new("no-local").long("no-local").action(ArgAction::SetTrue));
        Command::new("a-program").subcommand(mount).subcommand(serve)
    }

    const PROGRAM: ConfigurableProgram<'_> = ConfigurableProgram {
        definition: program,
        commands: &["mount", "serve"],
        typed_only: &["restart"],
        negatable: &["ebpf"],
    };

    /// What is set for a line, in files of these names and texts, of which the first is named, and
    /// by these variables.
    fn load(line: &str, files: &[(&str, &str)], variables: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("main.toml.d")).unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let mut typed: Vec<OsString> =
            ["a-program"].into_iter().chain(line.split(' ')).map(Into::into).collect();
        if let Some((first, _)) = files.first() {
            typed.extend(["--config".into(), directory.path().join(first).into_os_string()]);
        }
        let variables = variables.iter().map(|(name, value)| (name.into(), value.into()));
        let parsed = PROGRAM.parse(&typed, variables);
        let parsed =
            parsed.map_err(|error| error.to_string().replace(directory.path().to_str().unwrap(), ""))?;
        Ok(parsed.settings.arguments().map(|argument| argument.into_string().unwrap()).collect())
    }

    #[test]
    fn each_place_wins_over_the_one_below() {
        let file = ("main.toml", "filer = [\"a:1\", \"b:2\"]\nnonempty = true\nthreads = 1\n");
        assert_eq!(
            load("mount /", &[file], &[]).unwrap(),
            ["--filer=a:1,b:2", "--nonempty=true", "--threads=1"]
        );
        let first = ("main.toml.d/10-a.toml", "threads = 3\nnonempty = false");
        let second = ("main.toml.d/20-b.toml", "threads = 4");
        let ignored = [("main.toml.d/.30.toml", "wrong"), ("main.toml.d/40.toml.bak", "wrong")];
        let all = [&[second, first][..], &ignored].concat();
        let files = [&[file][..], &all].concat();
        assert_eq!(
            load("mount /", &files, &[]).unwrap(),
            ["--filer=a:1,b:2", "--nonempty=false", "--threads=4"]
        );
        let variables = [("A_PROGRAM_THREADS", "5"), ("OTHER_FILER", "x"), ("A_PROGRAM_FILER", "")];
        let by_variable = ["--filer=a:1,b:2", "--nonempty=false", "--threads=5"];
        assert_eq!(load("mount /", &files, &variables).unwrap(), by_variable);
        assert_eq!(load("mount / --threads=6", &files, &variables).unwrap(), by_variable[..2]);
    }

    #[test]
    fn a_variable_may_name_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "filer = \"a:1\"").unwrap();
        let variable = [("A_PROGRAM_CONFIG", file.path().to_str().unwrap())];
        assert_eq!(load("mount /", &[], &variable).unwrap(), ["--filer=a:1"]);
        let typed = [("main.toml", "filer = \"b:1\"")];
        assert_eq!(load("mount /", &typed, &variable).unwrap(), ["--filer=b:1"]);
    }

    #[test]
    fn options_of_all_kinds_can_be_set() {
        assert_eq!(
            load("serve", &[("main.toml", "volume-dir = [\"/a\", \"/b\"]\nno-local = true")], &[]).unwrap(),
            ["--no-local", "--volume-dir=/a,/b"]
        );
        let off = [("A_PROGRAM_NO_LOCAL", "false")];
        assert_eq!(load("serve", &[("main.toml", "no-local = true")], &off).unwrap(), [""; 0]);
        for (name, value) in [("no-ebpf", "true"), ("ebpf", "false")] {
            let text = format!("{name} = {value}");
            assert_eq!(load("mount /", &[("main.toml", &text)], &[]).unwrap(), ["--ebpf=false"], "{text}");
            let variable = format!("A_PROGRAM_{}", name.replace('-', "_").to_uppercase());
            assert_eq!(load("mount /", &[], &[(&variable, value)]).unwrap(), ["--ebpf=false"], "{variable}");
        }
        // An option that needs another one may stand in another place than that.
        assert_eq!(
            load("mount /", &[("main.toml", "filer-path = \"/x\"")], &[("A_PROGRAM_FILER", "a:1")]).unwrap(),
            ["--filer=a:1", "--filer-path=/x"]
        );
        // What is for another command is none's here.
        assert_eq!(
            load("serve", &[("main.toml", "threads = 4")], &[("A_PROGRAM_FILER", "a")]).unwrap(),
            [""; 0]
        );
    }

    #[test]
    fn errors_name_the_place() {
        for (text, line, word) in [
            ("\n# x\nfillers = 1\n", "line 3", "unknown key \"fillers\"; the nearest known one is \"filer\""),
            (
                "zzz = 1\n",
                "line 1",
                "known are ebpf, filer, filer-path, no-local, nonempty, threads, volume-dir",
            ),
            ("config = \"x\"\n", "line 1", "\"config\" can only be typed"),
            ("restart = true\n", "line 1", "\"restart\" can only be typed"),
            ("[mount]\nfiler = \"a\"\n", "line 1", "expected a text"),
            ("\"threads=1\" = 2\n", "line 1", "unknown key"),
            ("filer = \"a\"\nthreads = 900\n", "line 2", "--threads"),
            ("nonempty = \"perhaps\"\n", "line 1", "perhaps"),
            ("threads = [1, 2]\n", "line 1", "threads takes one value, not a list"),
            ("ebpf = true\nno-ebpf = true\n", "line 2", "ebpf is set twice here"),
            ("no-ebpf = \"perhaps\"\n", "line 1", "perhaps"),
            ("threads = 0x10\n", "line 1", "0x10"),
            ("threads = 0o17\n", "line 1", "0o17"),
            ("threads = 0b11\n", "line 1", "0b11"),
            ("filer = \"a\"\n\nthreads = \n", "line 3", "threads"),
            ("filer = \"a\"\nfiler = \"b\"\n", "line 2", "duplicate"),
        ] {
            let message = load("mount /", &[("main.toml", text)], &[]).unwrap_err();
            assert!(message.contains(line) && message.contains(word), "{text:?}: {message}");
            let dropped = [("main.toml", ""), ("main.toml.d/1.toml", text)];
            let message = load("mount /", &dropped, &[]).unwrap_err();
            assert!(message.contains("main.toml.d/1.toml") && message.contains(word), "{text:?}: {message}");
        }
        let error = load("serve", &[("main.toml", "no-local = \"perhaps\"")], &[]).unwrap_err();
        assert!(error.contains("line 1: no-local is true or false, not perhaps"), "{error}");
        for (variable, value, word) in [
            ("A_PROGRAM_THREADS", "900", "A_PROGRAM_THREADS of the environment: "),
            (
                "A_PROGRAM_THREAD",
                "9",
                "A_PROGRAM_THREAD of the environment: there is no such option; A_PROGRAM_THREADS is one",
            ),
            ("A_PROGRAM_NONEMPTY", "perhaps", "perhaps"),
            ("A_PROGRAM_RESTART", "true", "--restart can only be typed"),
            ("A_PROGRAM_NO_NONEMPTY", "true", "turned off by false"),
        ] {
            let error = load("mount /", &[], &[(variable, value)]).unwrap_err();
            assert!(error.contains(word), "{variable}: {error}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = load("mount / --config /nonexistent/x.toml", &[], &[]).unwrap_err();
        assert!(error.contains("cannot read /nonexistent/x.toml"), "{error}");
    }

    #[test]
    fn what_is_needed_may_stand_elsewhere_or_nowhere() {
        assert!(load("mount", &[], &[]).unwrap_err().contains("required"));
        let error = load("mount --filer-path /x /", &[], &[]).unwrap_err();
        assert!(error.contains("--filer"), "{error}");
        let by_variable = load("mount --filer-path /x /", &[], &[("A_PROGRAM_FILER", "a:1")]);
        assert_eq!(by_variable.unwrap(), ["--filer=a:1"]);
    }

    #[derive(clap::Parser)]
    struct Shown {
        #[command(flatten)]
        config: ConfigOptions,
    }

    #[test]
    fn options_are_shown_with_their_origins() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "\nfiler = \"a:1\"").unwrap();
        let path = file.path().to_str().unwrap();
        let shown = |verb: &str, line: &[&str]| {
            let line = [&["config", verb, "mount", "--nonempty", "--config", path], line].concat();
            let Shown { config } = clap::Parser::try_parse_from(line).unwrap();
            let parsed = config.parse(&PROGRAM, config.line(&PROGRAM))?;
            Ok::<_, LineError>(config.text(&PROGRAM, &parsed, &[("threads".into(), "8".into())].into()))
        };
        let expected = [
            format!("{:<44} # {path}, line 2\n", "filer = \"a:1\""),
            format!("{:<44} # default\n", "# threads = \"8\""),
            format!("{:<44} # typed\n", "nonempty = true"),
        ];
        assert_eq!(shown("show", &[]).unwrap(), expected.concat());
        assert_eq!(shown("show", &["/mnt"]).unwrap(), expected.concat());
        assert_eq!(shown("check", &[]).unwrap(), "the options of mount are right\n");
        let typed = shown("show", &["--threads=4"]).unwrap();
        assert!(typed.contains("\nthreads = \"4\" "), "what is typed is shown as it is: {typed}");
        assert!(shown("check", &["--threads=900"]).unwrap_err().to_string().contains("900"));
        let Shown { config } = clap::Parser::try_parse_from(["config", "show", "list"]).unwrap();
        let error = config.parse(&PROGRAM, config.line(&PROGRAM)).unwrap_err();
        assert_eq!(error.to_string(), "\"list\" is not configured; what is: mount, serve");
    }
}
