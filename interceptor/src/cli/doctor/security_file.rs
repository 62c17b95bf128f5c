//! What a bundle may tell of `security.toml`: which keys are set. And what it must not: their
//! values.

use std::collections::BTreeSet;
use std::path::Path;

use toml::{Table, Value};

/// How variables begin that override keys of the file.
const VARIABLE_PREFIX: &str = "WEED_";

/// Parts of the names of keys whose values are secret. Paths of private keys count as secret, too.
const SECRET_NAMES: [&str; 4] = ["key", "secret", "password", "token"];

/// `security.toml` and the variables that override it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct SecurityFile {
    /// The names of the keys and variables that have a value.
    pub(super) set: BTreeSet<String>,
    /// The values of those that are secret.
    pub(super) secrets: BTreeSet<String>,
}

impl SecurityFile {
    /// Reads the file, if there is one and it can be read, and the `variables` of the environment.
    pub(super) fn read(path: Option<&Path>, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut security = Self::default();
        let text = path.and_then(|path| daemon::settings_file::read(path).ok()).unwrap_or_default();
        match text.parse::<Table>() {
            Ok(table) => security.add_table("", &table),
            Err(_) => security.add_lines(&text),
        }
        for (name, value) in variables {
            if name.starts_with(VARIABLE_PREFIX) {
                security.add(name, &value);
            }
        }
        security
    }

    fn add_table(&mut self, prefix: &str, table: &Table) {
        for (name, value) in table {
            let name = format!("{prefix}{name}");
            match value {
                Value::Table(table) => self.add_table(&format!("{name}."), table),
                Value::String(text) => self.add(name, text),
                other => self.add(name, &other.to_string()),
            }
        }
    }

    /// Takes what follows the names in a file that is no TOML: a program that was told so may have
    /// written the line down.
    fn add_lines(&mut self, text: &str) {
        for (name, value) in text.lines().filter_map(|line| line.trim_start().split_once(['=', ' '])) {
            let value = value.trim_start_matches(|letter: char| letter.is_whitespace() || letter == '=');
            let values: Vec<_> = match value.chars().next() {
                Some(quote @ ('"' | '\'')) => value[1..].split(quote).take(1).collect(),
                Some('[') => value.split(',').collect(),
                _ => vec![value],
            };
            for value in values {
                let is_around = |letter: char| letter.is_whitespace() || "'\"[]".contains(letter);
                self.add(name.trim().to_owned(), value.trim_matches(is_around));
            }
        }
    }

    fn add(&mut self, name: String, value: &str) {
        if value.is_empty() {
            return;
        }
        let lowercase = name.to_ascii_lowercase();
        if SECRET_NAMES.iter().any(|part| lowercase.contains(part)) {
            self.secrets.insert(value.to_owned());
        }
        self.set.insert(name);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(text: &str, variables: &[(&str, &str)]) -> SecurityFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        SecurityFile::read(Some(file.path()), variables)
    }

    #[test]
    fn names_are_told_and_values_are_secret() {
        let text = "[jwt.signing]\nkey = \"a b\"\nexpires_after_seconds = 10\n[jwt.signing.read]\nkey = \"\"\n\
                    [grpc.client]\ncert = \"/c.crt\"\nkey = \"/c.key\"\n";
        let variables = [("WEED_JWT_SIGNING_READ_KEY", "c"), ("HOME", "/root")];
        let found = read(text, &variables);
        let names = [
            "WEED_JWT_SIGNING_READ_KEY",
            "grpc.client.cert",
            "grpc.client.key",
            "jwt.signing.expires_after_seconds",
            "jwt.signing.key",
        ];
        assert_eq!(found.set, names.map(str::to_owned).into());
        assert_eq!(found.secrets, ["a b", "c", "/c.key"].map(str::to_owned).into());
        assert_eq!(SecurityFile::read(None, []), SecurityFile::default());
    }

    #[test]
    fn a_file_that_is_no_toml_has_secrets_as_well() {
        let text = "[jwt.signing\n  key = \"a key\" # old, new\npassword a word\ntokens = ['one', 'two']\n\
                    secret = \"half\n";
        let secrets = ["a key", "a word", "one", "two", "half"];
        assert_eq!(read(text, &[]).secrets, secrets.map(str::to_owned).into());
    }
}
