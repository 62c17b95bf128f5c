//! Values of `security.toml` by dotted key, each overridable by an environment variable.

use std::path::Path;

use super::SecurityError;

/// Finds an environment variable by its name.
type Environment<'a> = Box<dyn Fn(&str) -> Option<String> + 'a>;

/// The file's content and what the environment overrides of it.
pub(super) struct Settings<'a> {
    origin: String,
    table: toml::Table,
    environment: Environment<'a>,
}

impl<'a> Settings<'a> {
    /// Reads `file`, if there is one; `environment` finds a variable by name.
    pub(super) fn read(
        file: Option<&Path>,
        environment: impl Fn(&str) -> Option<String> + 'a,
    ) -> Result<Self, SecurityError> {
        let (origin, table) = match file {
            None => ("environment".to_owned(), toml::Table::new()),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| SecurityError::Read { path: path.into(), source })?;
                let table = text.parse().map_err(|source| SecurityError::Syntax {
                    path: path.into(),
                    source: Box::new(source),
                })?;
                (path.display().to_string(), table)
            }
        };
        Ok(Self { origin, table, environment: Box::new(environment) })
    }

    /// The file that was read, for error texts.
    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    /// The text at `key`; an empty one counts as unset.
    pub(super) fn text(&self, key: &str) -> Result<Option<String>, SecurityError> {
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
    pub(super) fn integer(&self, key: &str) -> Result<Option<i64>, SecurityError> {
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
    pub(super) fn flag(&self, key: &str) -> Result<bool, SecurityError> {
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

    fn value(&self, key: &str) -> Option<&toml::Value> {
        let (section, name) = key.rsplit_once('.')?;
        let table = section.split('.').try_fold(&self.table, |table, part| table.get(part)?.as_table())?;
        table.get(name)
    }

    fn overridden(&self, key: &str) -> Option<String> {
        (self.environment)(&variable(key)).filter(|value| !value.is_empty())
    }

    fn wrong_type(&self, key: &str, expected: &'static str) -> SecurityError {
        let origin = match self.overridden(key) {
            Some(_) => format!("environment variable {}", variable(key)),
            None => self.origin.clone(),
        };
        SecurityError::Type { origin, key: key.to_owned(), expected }
    }
}

fn variable(key: &str) -> String {
    format!("WEED_{}", key.replace('.', "_").to_ascii_uppercase())
}
