//! What `--version` says.

use std::fmt::Write;

/// The commit that a program was built from: `option_env!("SOURCE_COMMIT")` in its `main.rs`, so
/// that another commit has nothing but the program itself linked again. `cargo xtask` sets the
/// variable, from git where the sources are a clone.
pub type SourceCommit = Option<&'static str>;

/// The text behind the program's name: the version, then a line each for commit and features.
/// `features` are the optional parts of the program, each with whether it was built in.
pub fn long_text(version: &str, commit: SourceCommit, features: &[(&str, bool)]) -> String {
    let commit = commit.filter(|commit| !commit.is_empty()).unwrap_or("unknown");
    let (mut present, mut absent) = (Vec::new(), Vec::new());
    for (name, is_built_in) in features {
        if *is_built_in { &mut present } else { &mut absent }.push(*name);
    }
    let mut text = format!("{version}\ncommit: {commit}\nfeatures: ");
    text.push_str(if present.is_empty() { "none".into() } else { present.join(", ") }.as_str());
    if !absent.is_empty() {
        let _ = write!(text, " (without {})", absent.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_out_is_said() {
        let text = long_text("1.2.3", Some("abc"), &[("ebpf", true), ("verbs", true)]);
        assert_eq!(text, "1.2.3\ncommit: abc\nfeatures: ebpf, verbs");
        let text = long_text("1.2.3", None, &[("ebpf", false), ("verbs", true)]);
        assert_eq!(text, "1.2.3\ncommit: unknown\nfeatures: verbs (without ebpf)");
        assert!(
            long_text("1", Some(""), &[("ebpf", false)]).ends_with("unknown\nfeatures: none (without ebpf)")
        );
    }
}
