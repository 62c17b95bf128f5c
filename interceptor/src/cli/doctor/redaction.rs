//! Takes secrets out of texts that are given away.
//!
//! Known secrets, the values of `security.toml` and tokens, are replaced wherever they occur. So is
//! what looks like an unknown one: tokens, passwords in addresses and options, private keys.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex_lite::Regex;

/// What stands in the place of a secret.
const REDACTED: &str = "[redacted]";

/// Shorter secrets are parts of words, which would tell them if they were missing. In bytes.
const MIN_SECRET_LENGTH: usize = 8;

/// What looks like a secret; what the groups have stays.
static LOOKS_SECRET: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r#"(?ix)
          (bearer\s+) [^\s"',;]+
        | (:// [^/\s:@"]* :) [^\s/@"]+ (@)
        | ((?: password | passwd | secret | token | key ) \s* = \s* )
          (?: \\? " [^"\n]* " | ' [^'\n]* ' | [^\s,;&"']+ )
        | \b eyJ [\w-]+ \. [\w-]+ \. [\w-]*
        | -----BEGIN\ [A-Z\ ]*PRIVATE\ KEY----- (?s: .*? ) (?: -----END\ [A-Z\ ]*KEY----- | $ )"#;
    Regex::new(pattern).expect("the pattern is right")
});

/// Redacts texts.
pub(super) struct Redactor {
    /// As they may be written, the longest first: one may be a part of another.
    secrets: Vec<String>,
}

impl Redactor {
    /// A redactor of these secrets.
    pub(super) fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        let written = |secret: String| {
            let debug = secret.escape_debug().to_string();
            let json = serde_json::Value::String(secret.clone()).to_string();
            [json[1..json.len() - 1].to_owned(), debug, secret]
        };
        let forms: BTreeSet<String> = secrets.into_iter().flat_map(written).collect();
        let mut secrets: Vec<_> = forms.into_iter().filter(|form| !form.is_empty()).collect();
        secrets.sort_by_key(|form| std::cmp::Reverse(form.len()));
        Self { secrets }
    }

    /// The text without secrets. Nothing is left of a text that has a short one anywhere, or in
    /// which one shows all the same: it may be a part of what replaces it.
    pub(super) fn redact(&self, text: &str) -> String {
        let mut shortest = self.secrets.iter().rev().take_while(|secret| secret.len() < MIN_SECRET_LENGTH);
        if shortest.any(|secret| text.contains(secret)) {
            return String::new();
        }
        // First what is known: what only looks like a secret may be a part of one.
        let text = self.secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret, REDACTED));
        let text =
            LOOKS_SECRET.replace_all(&text, format!("${{1}}${{2}}${{4}}{REDACTED}${{3}}")).into_owned();
        if self.secrets.iter().any(|secret| text.contains(secret)) { String::new() } else { text }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_secrets_are_taken_out_however_they_are_written() {
        let redactor =
            Redactor::new(["quo\"tation".to_owned(), "the long secret".into(), "long secret".into()]);
        let document = serde_json::json!({ "error": "key quo\"tation", "other": "a long secret" });
        assert_eq!(
            redactor.redact(&document.to_string()),
            r#"{"error":"key [redacted]","other":"a [redacted]"}"#
        );
    }

    #[test]
    fn a_known_secret_with_blanks_is_taken_out_whole() {
        let redactor = Redactor::new(["the pass phrase".to_owned()]);
        assert_eq!(redactor.redact("key = \"the pass phrase\" # x"), "key = [redacted] # x");
        assert_eq!(redactor.redact("key=the pass phrase, x"), "key=[redacted], x");
    }

    #[test]
    fn nothing_is_left_of_texts_that_would_tell_a_short_secret() {
        let redactor = Redactor::new(["ab".to_owned(), "longer than that".into()]);
        assert_eq!(redactor.redact(r#"{"ability":"FUSE"}"#), "");
        assert_eq!(redactor.redact("x longer than that"), "x [redacted]");
    }

    #[test]
    fn what_looks_like_a_secret_is_taken_out() {
        let redactor = Redactor::new([]);
        for (text, expected) in [
            ("Authorization: Bearer abc.def", "Authorization: Bearer [redacted]"),
            ("sent eyJhbGciOiJIUzI1NiJ9.eyJmIjoxfQ.c2ln-x_y to it", "sent [redacted] to it"),
            ("https://user:pass@host:80/x", "https://user:[redacted]@host:80/x"),
            ("rw,password=a+b,uid=0", "rw,password=[redacted],uid=0"),
            ("[jwt.signing]\nkey = \"a b, c\" # new", "[jwt.signing]\nkey = [redacted] # new"),
            (r#"{"line":"key = \"a b\" # new"}"#, r#"{"line":"key = [redacted] # new"}"#),
            ("secret='a b'; c", "secret=[redacted]; c"),
            ("-----BEGIN EC PRIVATE KEY-----\nMHc=\n-----END EC PRIVATE KEY-----\nx", "[redacted]\nx"),
        ] {
            assert_eq!(redactor.redact(text), expected);
        }
        for harmless in [
            "http://127.0.0.1:9650/",
            "--filer a:8888,b:8888",
            r#"{"status-token-file":"/etc/token","security":"/etc/s.toml"}"#,
            "interceptor_fetch_bytes_total{source=\"http\"} 5",
        ] {
            assert_eq!(redactor.redact(harmless), harmless);
        }
    }

    proptest! {
        /// Whatever secrets are, and wherever they stand.
        #[test]
        fn no_secret_is_left(
            secrets in prop::collection::vec(".{1,20}", 1..4),
            around in prop::collection::vec("[ -~\n]{0,12}", 1..8),
            in_json: bool,
        ) {
            let mut text = String::new();
            for (at, words) in around.iter().enumerate() {
                text.push_str(words);
                text.push_str(&secrets[at % secrets.len()]);
            }
            if in_json {
                text = serde_json::json!({ "text": text }).to_string();
            }
            let redacted = Redactor::new(secrets.clone()).redact(&text);
            for secret in &secrets {
                prop_assert!(!redacted.contains(secret), "{secret:?} is in {redacted:?}");
                let escaped = serde_json::json!(secret).to_string();
                prop_assert!(!redacted.contains(&escaped[1..escaped.len() - 1]));
            }
        }

        /// Secrets of a sensible length take nothing but themselves away.
        #[test]
        fn the_rest_stays(before in "[a-z ]{0,20}", secret in "[A-Z0-9]{12,40}", after in "[a-z ]{0,20}") {
            let redacted = Redactor::new([secret.clone()]).redact(&format!("{before}{secret}{after}"));
            prop_assert_eq!(redacted, format!("{before}{REDACTED}{after}"));
        }
    }
}
