//! `security.toml`, found and read as `weed` itself does it: values by dotted key.
//!
//! The file is the first `security.toml` of `.`, `~/.seaweedfs`, `/usr/local/etc/seaweedfs` and
//! `/etc/seaweedfs`. An environment variable overrides a key: `WEED_` and the key in capitals,
//! with `_` for `.`. A file that is there and cannot be used is an error; it is never treated as
//! missing.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::proof::ProofKey;
use crate::token::{ReadSigner, ReadVerifier};

/// How long a read token is valid unless it is configured, in seconds.
const DEFAULT_TOKEN_LIFETIME_S: u64 = 60;

/// Why `security.toml` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file that was named is not there.
    #[error("there is no {}; --security takes the security.toml of the cluster, or may be left out", .0.display())]
    Missing(PathBuf),
    /// The file is there and cannot be read.
    #[error("cannot read {}: {source}; make it readable for this user or remove it", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not TOML. The line is not shown: it may hold a key, and errors go to logs.
    #[error("{} is no valid TOML, line {line}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A key has a value of the wrong type.
    #[error("{origin}: `{key}` must be {expected}")]
    Type {
        /// The file or the environment variable that has it.
        origin: String,
        /// The key, dotted.
        key: String,
        /// The type that the key takes.
        expected: &'static str,
    },
}

/// Looks an environment variable up by its name.
type Environment<'a> = Box<dyn Fn(&str) -> Option<String> + 'a>;

/// The content of `security.toml`, with the environment variables that override it.
pub struct SecuritySettings<'a> {
    origin: String,
    table: toml::Table,
    environment: Environment<'a>,
}

impl<'a> SecuritySettings<'a> {
    /// Reads the first `security.toml` of the search path, if there is one, and the environment of
    /// this process.
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub fn load() -> Result<SecuritySettings<'static>, SettingsError> {
        SecuritySettings::read(file().as_deref(), |name| std::env::var(name).ok())
    }

    /// Reads `file`, if there is one; `environment` finds a variable by name.
    ///
    /// # Errors
    /// When the file cannot be read or is not TOML.
    pub fn read(
        file: Option<&Path>,
        environment: impl Fn(&str) -> Option<String> + 'a,
    ) -> Result<Self, SettingsError> {
        let (origin, table) = match file {
            None => ("environment".to_owned(), toml::Table::new()),
            Some(path) => {
                let text = daemon::settings_file::read(path).map_err(|source| match source.kind() {
                    ErrorKind::NotFound => SettingsError::Missing(path.into()),
                    _ => SettingsError::Read { path: path.into(), source },
                })?;
                let table = text.parse().map_err(|error: toml::de::Error| SettingsError::Syntax {
                    path: path.into(),
                    line: 1 + error.span().map_or(0, |span| text[..span.start].matches('\n').count()),
                    reason: error.message().to_owned(),
                })?;
                (path.display().to_string(), table)
            }
        };
        Ok(Self { origin, table, environment: Box::new(environment) })
    }

    /// The file that was read, for error texts.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The text at `key`; an empty one counts as unset.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn text(&self, key: &str) -> Result<Option<String>, SettingsError> {
        if let Some(value) = self.overridden(key) {
            return Ok(Some(value));
        }
        match self.value(key) {
            None => Ok(None),
            Some(toml::Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
            Some(_) => Err(self.wrong_type(key, "text")),
        }
    }

    /// The whole number at `key`, also as text.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn integer(&self, key: &str) -> Result<Option<i64>, SettingsError> {
        let text = match self.overridden(key) {
            Some(text) => text,
            None => match self.value(key) {
                None => return Ok(None),
                Some(toml::Value::Integer(number)) => return Ok(Some(*number)),
                Some(toml::Value::String(text)) if text.is_empty() => return Ok(None),
                Some(toml::Value::String(text)) => text.clone(),
                Some(_) => return Err(self.wrong_type(key, "a whole number")),
            },
        };
        text.trim().parse().map(Some).map_err(|_| self.wrong_type(key, "a whole number"))
    }

    /// Whether `key` is true, also as text or number; unset is false.
    ///
    /// # Errors
    /// When it is of another type.
    pub fn flag(&self, key: &str) -> Result<bool, SettingsError> {
        let text = match self.overridden(key) {
            Some(text) => text,
            None => match self.value(key) {
                None => return Ok(false),
                Some(toml::Value::Boolean(flag)) => return Ok(*flag),
                Some(toml::Value::Integer(number)) => return Ok(*number != 0),
                Some(toml::Value::String(text)) => text.clone(),
                Some(_) => return Err(self.wrong_type(key, "true or false")),
            },
        };
        match text.trim().to_ascii_lowercase().as_str() {
            "1" | "t" | "true" => Ok(true),
            "" | "0" | "f" | "false" => Ok(false),
            _ => Err(self.wrong_type(key, "true or false")),
        }
    }

    /// The signer of tokens that allow reading needles, if the cluster asks for tokens.
    ///
    /// # Errors
    /// When one of their keys has a value of the wrong type.
    pub fn read_signer(&self) -> Result<Option<ReadSigner>, SettingsError> {
        let Some(key) = self.read_key()? else { return Ok(None) };
        let lifetime = self.integer("jwt.signing.read.expires_after_seconds")?;
        let lifetime = lifetime.map_or(DEFAULT_TOKEN_LIFETIME_S, |s| u64::try_from(s).unwrap_or(0));
        Ok(Some(ReadSigner::new(key.as_bytes(), lifetime)))
    }

    /// The verifier of tokens that allow reading needles, if the cluster asks for tokens.
    ///
    /// # Errors
    /// When the key has a value of the wrong type.
    pub fn read_verifier(&self) -> Result<Option<ReadVerifier>, SettingsError> {
        Ok(self.read_key()?.map(|key| ReadVerifier::new(key.as_bytes())))
    }

    /// The key by which engines and their clients prove themselves to each other, if the file has
    /// a secret for that: `jwt.signing.read.key`, else `jwt.signing.key`.
    ///
    /// # Errors
    /// When one of these keys has a value of the wrong type.
    pub fn proof_key(&self) -> Result<Option<Arc<ProofKey>>, SettingsError> {
        let secret = match self.read_key()? {
            Some(secret) => Some(secret),
            None => self.text("jwt.signing.key")?,
        };
        Ok(secret.map(|secret| Arc::new(ProofKey::new(secret.as_bytes()))))
    }

    fn read_key(&self) -> Result<Option<String>, SettingsError> {
        self.text("jwt.signing.read.key")
    }

    fn value(&self, key: &str) -> Option<&toml::Value> {
        let (section, name) = key.rsplit_once('.')?;
        let table = section.split('.').try_fold(&self.table, |table, part| table.get(part)?.as_table())?;
        table.get(name)
    }

    fn overridden(&self, key: &str) -> Option<String> {
        (self.environment)(&variable(key)).filter(|value| !value.is_empty())
    }

    fn wrong_type(&self, key: &str, expected: &'static str) -> SettingsError {
        let origin = match self.overridden(key) {
            Some(_) => format!("environment variable {}", variable(key)),
            None => self.origin.clone(),
        };
        SettingsError::Type { origin, key: key.to_owned(), expected }
    }
}

/// The first `security.toml` of the search path, if there is one.
pub fn file() -> Option<PathBuf> {
    let home = std::env::home_dir().map(|home| home.join(".seaweedfs"));
    let system = ["/usr/local/etc/seaweedfs", "/etc/seaweedfs"].map(PathBuf::from);
    std::iter::once(PathBuf::from("."))
        .chain(home)
        .chain(system)
        .map(|directory| directory.join("security.toml"))
        .find(|path| path.exists())
}

fn variable(key: &str) -> String {
    format!("WEED_{}", key.replace('.', "_").to_ascii_uppercase())
}
